"""How endpoints do: counted with every try, disabled after five days or a 410, enabled by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import update
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from chatjobs.contracts import Delivery, DeliveryTry, Endpoint, Redelivery
from chatjobs.errors import EndpointNotFound
from dispatch.sweeper import Sweeper
from domain.names import JOBS_QUEUE, WEBHOOK_DELIVERY, delivery_workflow_id
from domain.payloads import DeliveryReport, DeliveryStart
from storage.engine.database import Database
from storage.engine.schema import endpoints as table
from storage.engine.schema import micros
from storage.jobs.store import JobStore
from storage.webhooks.deliveries import DeliveryStore, RecordedTry
from storage.webhooks.endpoints import ENDPOINT_DISABLED, EndpointStore
from tests.support.cancelling import cancel
from tests.support.deliveries import stored_delivery
from tests.support.factories import accepted, failing
from tests.support.fakes import OK, answered, eventually
from tests.support.house import House, house
from tests.workflows.test_webhook_delivery import current_details

URL = "https://receiver.example/hook"
DOWN = answered(500, retry_after=3600.0)
DAY = timedelta(days=1)


@pytest.fixture
def deliveries(database: Database) -> DeliveryStore:
    return DeliveryStore(database)


@pytest.fixture
def endpoints(database: Database) -> EndpointStore:
    return EndpointStore(database)


async def promised(store: JobStore, url: str = URL, **fields: str) -> str:
    """The id of a delivery that nobody has tried yet."""
    sealed = await store.seals.seal(failing(await accepted(store, webhook={"url": url}, **fields)), run_id="run-1")
    assert sealed.delivery_id is not None
    return sealed.delivery_id


async def tried(deliveries: DeliveryStore, delivery_id: str, status: int = 500, *, sent: bool = True) -> RecordedTry:
    """A try that was answered with a status, and is to be followed by another in an hour."""
    one = DeliveryTry(number=0, started_at=datetime.now(UTC), latency_ms=1, status_code=status)
    later = None if status == 410 else datetime.now(UTC) + timedelta(hours=1)
    request = (await deliveries.outgoing(delivery_id)).request
    delivered = status == 200
    return await deliveries.record_try(
        delivery_id, one, delivered=delivered, next_try_at=later, request=request, sent=sent
    )


async def passed(database: Database, *, failing_for: timedelta, quiet_for: timedelta = timedelta(hours=1)) -> None:
    """For all endpoints: the first failure was so long ago, and the last one."""
    now = datetime.now(UTC)
    times = {"failing_since": micros(now - failing_for), "last_failure_at": micros(now - quiet_for)}
    async with database.write() as connection:
        await connection.execute(update(table).values(times))


async def the_only(endpoints: EndpointStore) -> Endpoint:
    (found,) = await endpoints.list("default")
    return found


async def test_tries_are_counted(store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore) -> None:
    """A failure begins the days, a success ends them."""
    delivery_id = await promised(store)
    assert await endpoints.list("default") == []
    await tried(deliveries, delivery_id, 500)
    began = (await the_only(endpoints)).failing_since
    await tried(deliveries, delivery_id, 503)
    failed = await the_only(endpoints)
    assert (failed.status, failed.failures, failed.successes, failed.last_error) == ("failing", 2, 0, "HTTP 503")
    assert failed.failing_since == began
    await tried(deliveries, delivery_id, 200)
    well = await the_only(endpoints)
    assert (well.status, well.failures, well.successes, well.failing_since) == ("ok", 2, 1, None)
    assert well.last_success_at is not None


async def test_tries_at_once_are_all_counted(
    store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    ids = [await promised(store) for _ in range(6)]
    await asyncio.gather(*(tried(deliveries, delivery_id, 500) for delivery_id in ids * 2))
    assert (await the_only(endpoints)).failures == 12


async def test_what_was_not_sent_is_not_held_against_a_receiver(
    store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    """A tenant without a secret has sick deliveries, not sick endpoints."""
    await tried(deliveries, await promised(store), 500, sent=False)
    assert await endpoints.list("default") == []


async def test_five_days_of_failures_disable(
    database: Database, store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    """Not a moment before; the delivery has failed then, and what waits for the same URL is to be ended."""
    delivery_id, waiting = await promised(store), await promised(store)
    elsewhere = await promised(store, "https://receiver.example/other")
    await tried(deliveries, delivery_id)
    await passed(database, failing_for=5 * DAY - timedelta(minutes=5))
    assert (await tried(deliveries, delivery_id)).endpoint == "enabled"
    await passed(database, failing_for=5 * DAY)
    assert (await tried(deliveries, delivery_id)).endpoint == "just_disabled"
    disabled = await the_only(endpoints)
    assert (disabled.status, disabled.disabled_reason, disabled.disabled_at is not None) == (
        "disabled",
        "failing",
        True,
    )
    assert (await deliveries.outgoing(delivery_id)).status == "failed"
    assert [(await deliveries.outgoing(one)).disabled for one in (waiting, elsewhere)] == [True, False]
    assert await deliveries.wake("default", URL) == 1
    assert [wanted.id for wanted in await deliveries.take_requests()] == [waiting]


async def test_a_failure_after_long_silence_is_the_first(
    database: Database, store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    """Nobody tried for days: that says nothing against the receiver."""
    delivery_id = await promised(store)
    await tried(deliveries, delivery_id)
    await passed(database, failing_for=30 * DAY, quiet_for=timedelta(hours=49))
    assert (await tried(deliveries, delivery_id)).endpoint == "enabled"
    since = (await the_only(endpoints)).failing_since
    assert since is not None
    assert datetime.now(UTC) - since < timedelta(minutes=1)


async def test_gone_disables_at_once(store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore) -> None:
    await tried(deliveries, delivery_id := await promised(store), 410)
    assert (await the_only(endpoints)).disabled_reason == "gone"
    assert await deliveries.refuse(delivery_id) == 2
    assert (await stored_delivery(deliveries, delivery_id)).tries[-1].error == ENDPOINT_DISABLED


async def test_enabled_by_hand(
    database: Database, store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    """Its days begin anew; it is its tenant's alone."""
    delivery_id = await promised(store)
    await tried(deliveries, delivery_id, 410)
    with pytest.raises(EndpointNotFound):
        await endpoints.enable("acme", URL)
    with pytest.raises(EndpointNotFound):
        await endpoints.enable("default", "https://receiver.example/\0")
    assert await endpoints.list("acme") == []
    for _ in range(2):
        enabled = await endpoints.enable("default", URL)
        assert (enabled.status, enabled.disabled_at, enabled.disabled_reason) == ("ok", None, None)
    assert (await tried(deliveries, delivery_id)).endpoint == "enabled"
    assert (await deliveries.outgoing(delivery_id)).disabled is False


async def test_the_sick_come_first(store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore) -> None:
    for path, status in (("well", 200), ("gone", 410), ("down", 500)):
        await tried(deliveries, await promised(store, f"https://receiver.example/{path}"), status)
    listed = [(one.url.rpartition("/")[2], one.status) for one in await endpoints.list("default")]
    assert listed == [("gone", "disabled"), ("down", "failing"), ("well", "ok")]
    assert [one.status for one in await endpoints.list("default", status="failing")] == ["failing"]
    assert len(await endpoints.list("default", limit=2)) == 2


async def test_what_is_not_used_is_forgotten(
    store: JobStore, deliveries: DeliveryStore, endpoints: EndpointStore
) -> None:
    """A caller may give each job a URL of its own; a disabled one that jobs still name is in use."""
    await tried(deliveries, await promised(store, "https://receiver.example/once"), 200)
    await tried(deliveries, gone := await promised(store), 410)
    between = datetime.now(UTC)
    await deliveries.refuse(gone)
    assert await endpoints.delete_unused(between) == 1
    assert [one.url for one in await endpoints.list("default")] == [URL]
    assert await endpoints.delete_unused(datetime.now(UTC)) == 1


# ----------------------------------------------------------------------------------------------- once more


async def test_what_was_delivered_stays_delivered(store: JobStore, deliveries: DeliveryStore) -> None:
    """Made again and failed, it had been delivered all the same."""
    delivery_id = await promised(store)
    await tried(deliveries, delivery_id, 200)
    await deliveries.redeliver(delivery_id)
    assert (await deliveries.outgoing(delivery_id)).status == "pending"
    await tried(deliveries, delivery_id, 410)
    found = await stored_delivery(deliveries, delivery_id)
    assert (found.status, found.next_try_at, len(found.tries)) == ("delivered", None, 2)


async def test_a_wish_is_told_once(database: Database, store: JobStore, deliveries: DeliveryStore) -> None:
    """Whoever wishes has some seconds to tell Temporal; then a sweeper does; a wish that comes meanwhile stays."""
    delivery_id = await promised(store)
    await tried(deliveries, delivery_id, 410)
    mine = await deliveries.redeliver(delivery_id)
    assert (mine.id, mine.tries, await deliveries.take_requests()) == (delivery_id, 1, [])
    again = await deliveries.redeliver(delivery_id)
    await deliveries.mark_notified(mine)
    await deliveries.mark_notified(again)
    chosen = Redelivery(since=datetime.now(UTC) - DAY, status="pending")
    assert (await deliveries.redeliver_some(chosen, "default")).count == 1
    (taken,) = await deliveries.take_requests()
    assert (taken.id, await deliveries.take_requests()) == (delivery_id, [])
    await deliveries.mark_notified(taken)


async def test_those_of_a_time(store: JobStore, deliveries: DeliveryStore) -> None:
    """Oldest first, in batches, up to a limit; of one status, one URL and one tenant only."""
    ids = [await promised(store) for _ in range(5)]
    for delivery_id in ids:
        await tried(deliveries, delivery_id, 410)
    await tried(deliveries, await promised(store), 200)
    between = (await stored_delivery(deliveries, ids[3])).created_at
    everything = Redelivery(since=between - DAY)
    assert (await deliveries.redeliver_some(everything, "acme")).count == 0
    nowhere = Redelivery(since=between - DAY, url="https://receiver.example/")
    assert (await deliveries.redeliver_some(nowhere, "default")).count == 0
    some = await deliveries.redeliver_some(Redelivery(since=between - DAY, until=between, url=URL), "default", limit=2)
    assert (some.count, some.more) == (2, True)
    assert {wanted.id for wanted in await deliveries.take_requests()} == set(ids[:2])
    rest = await deliveries.redeliver_some(everything, "default")
    assert (rest.count, rest.more) == (3, False)


# ---------------------------------------------------------------------------------------- in the service


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite) as running:
        yield running


async def delivering(here: House, status: str) -> Delivery:
    """A new delivery in a run of its own, once it has a status and a try."""
    job_id = await here.accept(callback=URL)
    await cancel(here, job_id)
    (delivery,) = (await here.jobs.queries.get(job_id)).deliveries
    await here.client.start_workflow(
        WEBHOOK_DELIVERY,
        DeliveryStart(delivery_id=delivery.id),
        id=delivery_workflow_id(delivery.id),
        task_queue=JOBS_QUEUE,
        result_type=DeliveryReport,
    )
    return await become(here, delivery.id, status)


async def become(here: House, delivery_id: str, status: str) -> Delivery:
    async def look() -> Delivery | None:
        found = await stored_delivery(here.deliveries, delivery_id)
        return found if found.status == status and found.tries else None

    found = await eventually(look)
    assert found is not None
    return found


async def test_a_disabled_endpoint_gets_nothing(
    here: House, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It failed for five days: what waits is ended, what is new fails at once; both say why. Enabled, it is back."""
    here.sender.answers = [DOWN]
    waiting = await delivering(here, "pending")
    await passed(sqlite, failing_for=6 * DAY)
    last = await delivering(here, "failed")
    assert [one.error for one in last.tries] == [None]
    assert [record.levelname for record in caplog.records if "is disabled" in record.message] == ["ERROR"]
    sweeper = Sweeper(intake=here.intake, jobs=here.jobs, deliveries=here.deliveries, client=here.client)
    await sweeper.sweep()
    ended = await become(here, waiting.id, "failed")
    assert [one.error for one in ended.tries] == [None, ENDPOINT_DISABLED]
    new = await delivering(here, "failed")
    assert [(one.error, one.status_code) for one in new.tries] == [(ENDPOINT_DISABLED, None)]
    assert len(here.sender.posts) == 2
    here.sender.answers = [OK]
    await EndpointStore(sqlite).enable("default", URL)
    assert (await here.deliveries.redeliver_some(Redelivery(since=waiting.created_at), "default")).count == 3
    await sweeper.sweep()
    for one in (waiting, last, new):
        await become(here, one.id, "delivered")
        await here.run(delivery_workflow_id(one.id)).result()
    assert len(here.sender.posts) == 5


async def test_made_again_its_schedule_begins_anew(here: House) -> None:
    """However many tries there were before: the next one comes in an hour, as this receiver asks, not never."""
    here.sender.answers = [answered(410)]
    delivery = await delivering(here, "failed")
    await EndpointStore(here.parts.database).enable("default", URL)
    for _ in range(12):
        await tried(here.deliveries, delivery.id)
    here.sender.answers = [DOWN]
    await tried(here.deliveries, delivery.id, 410)
    await EndpointStore(here.parts.database).enable("default", URL)
    chosen = Redelivery(since=delivery.created_at)
    assert (await here.deliveries.redeliver_some(chosen, "default")).count == 1
    sweeper = Sweeper(intake=here.intake, jobs=here.jobs, deliveries=here.deliveries, client=here.client)
    await sweeper.sweep()

    async def tried_again() -> bool:
        return (await here.deliveries.outgoing(delivery.id)).tries == 15

    assert await eventually(tried_again)
    again = await stored_delivery(here.deliveries, delivery.id)
    assert again.status == "pending"
    assert again.next_try_at is not None
    assert timedelta(minutes=59) < again.next_try_at - datetime.now(UTC) < timedelta(minutes=61)
    run = here.run(delivery_workflow_id(delivery.id))
    details = await eventually(partial(current_details, run))
    assert details.startswith("try 1: HTTP 500; next try in ")
    scheduled = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    assert [event.event_type async for event in run.fetch_history_events()].count(scheduled) == 1
    await run.terminate("the test is over")
