"""Deliveries and their tries."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from chatjobs.contracts import DeliveryTry
from chatjobs.errors import DeliveryNotFound
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.webhooks.deliveries import DeliveryStore
from tests.support.deliveries import stored_delivery
from tests.support.factories import accepted, failing, make_job


@pytest.fixture
def deliveries(database: Database) -> DeliveryStore:
    return DeliveryStore(database)


async def promised(store: JobStore) -> str:
    """The id of a delivery that nobody has tried yet."""
    job_id = await accepted(store, webhook={"url": "https://receiver.example/"})
    sealed = await store.seals.seal(failing(job_id), run_id="run-1")
    assert sealed.delivery_id is not None
    return sealed.delivery_id


def a_try(status: int | None = 500, **fields: object) -> DeliveryTry:
    values = {"number": 0, "started_at": datetime.now(UTC), "latency_ms": 12, "status_code": status, **fields}
    return DeliveryTry.model_validate(values)


async def test_tries_are_numbered_and_kept(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id = await promised(store)
    later = datetime.now(UTC) + timedelta(minutes=5)
    for number, status in enumerate((500, 503), 1):
        one = a_try(status, response="no\0")
        made = await deliveries.record_try(delivery_id, one, delivered=False, next_try_at=later)
        assert made.tries == number
    waiting = await stored_delivery(deliveries, delivery_id)
    assert (waiting.status, waiting.next_try_at) == ("pending", later)
    assert [(one.number, one.status_code, one.response) for one in waiting.tries] == [
        (1, 500, "no\ufffd"),
        (2, 503, "no\ufffd"),
    ]
    assert (await deliveries.outgoing(delivery_id)).tries == 2


async def test_delivered_once_it_stays_delivered(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id = await promised(store)
    await deliveries.record_try(delivery_id, a_try(200), delivered=True, next_try_at=None)
    await deliveries.record_try(delivery_id, a_try(500), delivered=False, next_try_at=None)
    found = await stored_delivery(deliveries, delivery_id)
    assert (found.status, found.next_try_at, len(found.tries)) == ("delivered", None, 2)
    assert found.delivered_at is not None


async def test_without_a_next_try_it_has_failed(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id = await promised(store)
    await deliveries.record_try(delivery_id, a_try(410), delivered=False, next_try_at=None)
    assert (await deliveries.outgoing(delivery_id)).status == "failed"


async def test_a_failed_delivery_may_be_tried_by_hand(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id = await promised(store)
    await deliveries.record_try(delivery_id, a_try(410), delivered=False, next_try_at=None)
    await deliveries.record_try(delivery_id, a_try(204), delivered=True, next_try_at=None)
    assert (await deliveries.outgoing(delivery_id)).status == "delivered"


async def test_tries_at_once_get_numbers_of_their_own(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id, began = await promised(store), datetime.now(UTC)
    tries = [a_try(started_at=began + timedelta(milliseconds=n)) for n in range(8)]
    later = began + timedelta(minutes=5)
    numbers = await asyncio.gather(
        *(deliveries.record_try(delivery_id, one, delivered=False, next_try_at=later) for one in tries)
    )
    assert sorted(recorded.tries for recorded in numbers) == list(range(1, 9))


async def test_a_try_that_is_reported_again_is_stored_once(store: JobStore, deliveries: DeliveryStore) -> None:
    """Its first report may have been committed though the answer got lost."""
    delivery_id, one = await promised(store), a_try(200)
    for _ in range(2):
        assert (await deliveries.record_try(delivery_id, one, delivered=True, next_try_at=None)).tries == 1
    assert (await deliveries.outgoing(delivery_id)).tries == 1


async def test_the_sweeper_finds_what_nobody_owns(store: JobStore, deliveries: DeliveryStore) -> None:
    first, second = await promised(store), await promised(store)
    tried = a_try()
    await deliveries.record_try(first, tried, delivered=False, next_try_at=tried.started_at - timedelta(hours=1))
    overdue = await deliveries.overdue(timedelta(0))
    assert [(webhook.id, webhook.tries) for webhook in overdue] == [(first, 1), (second, 0)]
    assert [webhook.id for webhook in await deliveries.overdue(timedelta(minutes=30))] == [first]
    await deliveries.record_try(first, a_try(200), delivered=True, next_try_at=None)
    assert [webhook.id for webhook in await deliveries.overdue(timedelta(0))] == [second]


async def test_what_is_not_there_is_not_found(store: JobStore, deliveries: DeliveryStore) -> None:
    delivery_id = await promised(store)
    with pytest.raises(DeliveryNotFound):
        await deliveries.redeliver(delivery_id, tenant="another")
    assert (await deliveries.redeliver(delivery_id, tenant="default")).id == delivery_id
    with pytest.raises(DeliveryNotFound):
        await deliveries.outgoing("x")
    with pytest.raises(DeliveryNotFound):
        await deliveries.record_try("x", a_try(), delivered=True, next_try_at=None)


async def test_what_no_run_has_sealed_is_wanted_at_once(store: JobStore, database: Database) -> None:
    """A job that is cancelled before it was started has no workflow that would make the first try."""
    await store.acceptance.accept(make_job(job_id="job_1", webhook={"url": "https://hooks.example/x"}))
    await store.seals.request_cancel("job_1")
    (wanted,) = await DeliveryStore(database).take_requests()
    (delivery,) = (await store.queries.get("job_1")).deliveries
    assert wanted.id == delivery.id


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_redelivery_asked_for_during_the_first_try_stays(
    store: JobStore, database: Database, delivered: bool
) -> None:
    """The end of the first try answers the request that it began with, and no newer one, whatever its outcome."""
    deliveries = DeliveryStore(database)
    await store.acceptance.accept(make_job(job_id="job_1", webhook={"url": "https://hooks.example/x"}))
    await store.seals.request_cancel("job_1")
    (delivery,) = (await store.queries.get("job_1")).deliveries
    first, began = await deliveries.open_request(delivery.id), a_try(200 if delivered else 410)
    assert first is not None
    newer = await deliveries.redeliver(delivery.id, notifying=False)
    await deliveries.record_try(delivery.id, began, delivered=delivered, next_try_at=None, request=first.until)
    await deliveries.mark_notified(first)
    assert (await deliveries.outgoing(delivery.id)).status == "pending"
    (taken,) = await deliveries.take_requests()
    assert (taken.id, taken.tries, newer.tries) == (delivery.id, 1, 0)
    await deliveries.mark_notified(taken)
    assert await deliveries.open_request(delivery.id) is None
    await deliveries.record_try(delivery.id, a_try(503), delivered=False, next_try_at=None)
    found = await stored_delivery(deliveries, delivery.id)
    assert (found.status, len(found.tries)) == ("delivered" if delivered else "failed", 2)
