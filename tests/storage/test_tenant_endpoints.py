"""Endpoints of all jobs: whatever ends, and however, has a delivery for each that wants it, from the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from chatjobs.contracts import (
    BatchEventType,
    Delivery,
    DeliveryTry,
    EndpointRequest,
    JobStatus,
    WebhookEventType,
)
from chatjobs.errors import EndpointNotFound, TooManyEndpoints
from dispatch.stores import batch_runs
from domain.names import delivery_id
from domain.settings import Settings
from storage.engine.database import Database
from storage.engine.schema import deliveries as table
from storage.engine.schema import micros, tenant_endpoints
from storage.jobs.store import JobStore
from storage.keys import OLD_SECRET_SIGNS
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import ENDPOINT_DELETED, EndpointStore
from storage.webhooks.tenant_endpoints import MOST_ENDPOINTS, TenantEndpointStore
from tests.support.batches import store_batch
from tests.support.factories import accepted, claimed, failing, make_body

ONE, TWO, OWN = (f"https://receiver.example/{name}" for name in ("one", "two", "own"))
EVERYTHING = (*WebhookEventType, *BatchEventType)


@pytest.fixture
def endpoints(database: Database) -> TenantEndpointStore:
    return TenantEndpointStore(database)


@pytest.fixture
def deliveries(database: Database) -> DeliveryStore:
    return DeliveryStore(database)


def wanted(url: str = ONE, **fields: Any) -> EndpointRequest:
    return EndpointRequest(url=url, **fields)


async def failed(store: JobStore, run_id: str = "run-1", **fields: Any) -> str:
    """The id of a job that has failed."""
    job_id = await accepted(store, **fields)
    await store.seals.seal(failing(job_id), run_id=run_id)
    return job_id


async def urls(deliveries: DeliveryStore, job_id: str) -> set[str]:
    return {delivery.url for delivery in await deliveries.of_job(job_id)}


async def the_only(deliveries: DeliveryStore, job_id: str) -> Delivery:
    (found,) = await deliveries.of_job(job_id)
    return found


async def test_each_endpoint_gets_what_it_wants(
    store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore
) -> None:
    """And the job's own webhook as before; one body, and an id of its own for each."""
    await endpoints.put("default", wanted(ONE))
    await endpoints.put("default", wanted(TWO, events=[WebhookEventType.COMPLETED, BatchEventType.FAILED]))
    await endpoints.put("other", wanted("https://other.example/"))
    job_id = await accepted(store, callback=OWN)
    sealed = await store.seals.seal(failing(job_id), run_id="run-1")
    assert await urls(deliveries, job_id) == {ONE, OWN}
    assert sealed.delivery_id == delivery_id(job_id, WebhookEventType.FAILED, 1)
    assert sealed.endpoint_deliveries == (delivery_id(job_id, WebhookEventType.FAILED, 1, ONE),)
    bodies = [(await deliveries.outgoing(one)).body for one in (sealed.delivery_id, *sealed.endpoint_deliveries)]
    assert bodies[0] == bodies[1]
    again = await store.seals.seal(failing(job_id), run_id="run-1")
    assert (again.delivery_id, again.endpoint_deliveries) == (sealed.delivery_id, ())
    assert len(await deliveries.of_job(job_id)) == 2


async def test_a_receiver_that_is_named_twice_gets_an_event_once(
    store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore
) -> None:
    """As the job's webhook: its endpoint may be deleted. What the job does not want sent there, the endpoint gets."""
    await endpoints.put("default", wanted(OWN))
    job_id = await failed(store, callback=OWN)
    assert (await the_only(deliveries, job_id)).id == delivery_id(job_id, WebhookEventType.FAILED, 1)
    await endpoints.delete("default", OWN)
    assert (await deliveries.outgoing((await the_only(deliveries, job_id)).id)).deleted is False
    await endpoints.put("default", wanted(OWN))
    job_id = await failed(store, webhook={"url": OWN, "events": ["chat.completed"]})
    assert (await the_only(deliveries, job_id)).id == delivery_id(job_id, WebhookEventType.FAILED, 1, OWN)


async def test_however_a_job_ends(
    store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore, database: Database
) -> None:
    """Cancelled before it began, expired, terminated, reopened and failed again."""
    await endpoints.put("default", wanted())
    await store.seals.request_cancel(cancelled := await accepted(store))
    expired = await accepted(store, limits={"queueSeconds": 0.001})
    await asyncio.sleep(0.01)
    assert [one.endpoint_deliveries for one in await store.seals.expire()] == [
        (delivery_id(expired, WebhookEventType.FAILED, 1, ONE),)
    ]
    terminated = await failed(store, run_id="")
    for job_id in (cancelled, expired, terminated):
        assert await urls(deliveries, job_id) == {ONE}
    again = await accepted(store)
    for run_id in ("run-1", "run-2"):
        await claimed(store, again, run_id=run_id)
        await store.seals.seal(failing(again), run_id=run_id)
    ids = {delivery.id for delivery in await deliveries.of_job(again)}
    assert ids == {delivery_id(again, WebhookEventType.FAILED, revision, ONE) for revision in (1, 2)}


async def test_batches_and_their_items(
    store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore, database: Database
) -> None:
    await endpoints.put("default", wanted(ONE))
    await endpoints.put("default", wanted(TWO, events=list(BatchEventType)))
    batch_id = await store_batch(database, [make_body() for _ in range(3)], webhook={"url": TWO})
    runs = batch_runs(Settings(), database)
    await runs.cancel(batch_id)
    await runs.cancel_rest(batch_id)
    await runs.seal(batch_id, run_id="run-1")
    at_once = {one.id for one in await deliveries.take_requests()}
    assert delivery_id(batch_id, BatchEventType.CANCELLED, 1, ONE) in at_once
    assert delivery_id(batch_id, BatchEventType.CANCELLED, 1) not in at_once, "the batch's run sends it"
    async with database.read() as connection:
        rows = (await connection.execute(select(table.c.event, table.c.url, table.c.job_id, table.c.of_endpoint))).all()
    ended = sorted((row.event, row.url, row.of_endpoint) for row in rows if row.job_id == batch_id)
    assert ended == [("batch.cancelled", ONE, True), ("batch.cancelled", TWO, False)]
    assert [(row.event, row.url) for row in rows if row.job_id != batch_id] == [("chat.cancelled", ONE)] * 3


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is executed in write transactions during the block."""
    engine = database._durable if database.is_sqlite else database.reading.sync_engine
    seen: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


async def test_a_tenant_without_endpoints_pays_no_statement(
    store: JobStore, endpoints: TenantEndpointStore, database: Database
) -> None:
    """A seal takes two more with them: who listens, and what is stored for them. One, where none wants the event."""
    counts = []
    for add in (None, wanted(events=[WebhookEventType.COMPLETED]), wanted()):
        if add is not None:
            await endpoints.put("default", add)
        job_id = await accepted(store)
        with statements(database) as seen:
            await store.seals.seal(failing(job_id), run_id="run-1")
        counts.append(len(seen))
        mine = [one for one in seen if "tenant_endpoints" in one and "FROM jobs" not in one]
        assert len(mine) == (add is not None)
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]


async def test_an_endpoint_counts_from_its_answer_on(
    store: JobStore, database_url: str, deliveries: DeliveryStore, endpoints: TenantEndpointStore
) -> None:
    """In every process: none of them remembers who had no endpoints."""
    await failed(store)
    other = await Database.open(database_url)
    await TenantEndpointStore(other).put("default", wanted())
    assert await urls(deliveries, await failed(store)) == {ONE}
    await TenantEndpointStore(other).delete("default", ONE)
    await other.close()
    assert await urls(deliveries, await failed(store)) == set()


async def test_a_url_is_one_endpoint(endpoints: TenantEndpointStore, database: Database) -> None:
    health = EndpointStore(database)
    assert await endpoints.put("default", wanted(secret="a secret")) is True
    assert await endpoints.put("default", wanted(events=[WebhookEventType.FAILED])) is False
    (found,) = await health.list("default")
    assert (found.url, found.events, found.own_secret) == (ONE, (WebhookEventType.FAILED,), True)
    assert (found.status, found.failures, found.successes) == ("ok", 0, 0)
    assert "a secret" not in repr(found) + repr(wanted(secret="a secret"))
    assert await health.list("acme") == []
    assert await health.delete_unused(datetime.now(UTC) + timedelta(days=1)) == 0
    await endpoints.delete("default", ONE)
    with pytest.raises(EndpointNotFound):
        await endpoints.delete("default", ONE)
    (left,) = await health.list("default")
    assert (left.events, left.own_secret) == (None, False), "its health stays"


async def test_there_is_a_most(endpoints: TenantEndpointStore) -> None:
    """Also if all come at once; a change of one that is there is no new one."""
    ways = [endpoints.put("default", wanted(f"https://receiver.example/{n}")) for n in range(MOST_ENDPOINTS + 4)]
    outcomes = await asyncio.gather(*ways, return_exceptions=True)
    assert [one for one in outcomes if one is not True and not isinstance(one, TooManyEndpoints)] == []
    assert outcomes.count(True) == MOST_ENDPOINTS
    kept = next(n for n, one in enumerate(outcomes) if one is True)
    assert await endpoints.put("default", wanted(f"https://receiver.example/{kept}")) is False
    assert await endpoints.put("acme", wanted()) is True


async def test_a_new_secret_and_the_one_before_sign_for_a_day(
    database: Database, endpoints: TenantEndpointStore, store: JobStore, deliveries: DeliveryStore
) -> None:
    """The tenant's own, too, if it was the one before; asked for again, a secret is the newest."""

    async def change(**fields: Any) -> Any:
        await endpoints.put("default", wanted(**fields))
        return await endpoints.secrets_of("default", ONE)

    assert await change() == [None]
    assert await change(secret="first") == ["first", None]
    assert await change(secret="second") == ["second", "first", None]
    assert await change(secret="second") == await change() == ["second", "first", None]
    assert await change(secret="first") == ["first", "second", None]
    job_id = await failed(store)
    found = await deliveries.outgoing((await the_only(deliveries, job_id)).id)
    assert list(found.secrets) == ["first", "second", None]
    assert "first" not in repr(found)
    async with database.write() as connection:
        text = str(await connection.scalar(select(tenant_endpoints.c.secrets)))
        day = round(OLD_SECRET_SIGNS.total_seconds() * 1e6)
        assert day == 24 * 3600 * 1_000_000
        for until in {part for part in text.replace("]", ",").split(",") if part.strip().isdigit()}:
            text = text.replace(until.strip(), str(int(until) - day))
        await connection.execute(update(tenant_endpoints).values(secrets=text))
    assert await endpoints.secrets_of("default", ONE) == ["first"]
    assert await endpoints.secrets_of("acme", ONE) is None


async def test_a_deleted_endpoint_gets_nothing_more(
    store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore
) -> None:
    """What waits for it fails and says why; the webhook of a job with the same URL, and other endpoints, go on."""
    await endpoints.put("default", wanted(ONE))
    await endpoints.put("default", wanted(TWO))
    own, both = await failed(store, callback=ONE), await failed(store)
    to_one = delivery_id(both, WebhookEventType.FAILED, 1, ONE)
    one_try = DeliveryTry(number=0, started_at=datetime.now(UTC), latency_ms=1, status_code=500)
    await deliveries.record_try(to_one, one_try, delivered=False, next_try_at=datetime.now(UTC) + timedelta(hours=1))
    await endpoints.delete("default", ONE)
    deleted_at = datetime.now(UTC)
    assert (await deliveries.outgoing(to_one)).deleted
    await endpoints.put("default", wanted(ONE))
    later = await failed(store)
    assert await deliveries.give_up("default", ONE, deleted_at) == 1
    tries = {one.url: (one.status, [made.error for made in one.tries]) for one in await deliveries.of_job(both)}
    assert tries == {ONE: ("failed", [None, ENDPOINT_DELETED]), TWO: ("pending", [])}
    assert {one.status for job_id in (own, later) for one in await deliveries.of_job(job_id)} == {"pending"}


async def test_a_sweeper_makes_the_tries_that_nobody_makes(
    database: Database, store: JobStore, endpoints: TenantEndpointStore, deliveries: DeliveryStore
) -> None:
    """The process that sealed the job has 20 seconds for it; of a job that no run has sealed, at once."""
    await endpoints.put("default", wanted())
    sealed = await failed(store)
    assert await deliveries.take_requests() == []
    async with database.write() as connection:
        past = micros(datetime.now(UTC)) - 1
        await connection.execute(update(table).where(table.c.wanted_at <= past + 20_000_001).values(wanted_at=past))
    assert [one.id for one in await deliveries.take_requests()] == [
        delivery_id(sealed, WebhookEventType.FAILED, 1, ONE)
    ]
    await store.seals.request_cancel(cancelled := await accepted(store))
    assert [one.id for one in await deliveries.take_requests()] == [
        delivery_id(cancelled, WebhookEventType.CANCELLED, 1, ONE)
    ]
    assert (await store.queries.get(cancelled)).status is JobStatus.CANCELLED
