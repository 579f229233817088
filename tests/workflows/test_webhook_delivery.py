"""WebhookDelivery: three days of tries, on a Temporal whose time passes as soon as nothing else is to be done."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.webhook import retry_pause
from chatjobs.contracts import Delivery
from chatjobs.webhooks import verify
from domain.names import JOBS_QUEUE, RETRY_NOW, WEBHOOK_DELIVERY, delivery_workflow_id, new_job_id
from domain.payloads import DeliveryOrder, DeliveryReport, DeliveryStart
from domain.ports import WebhookResponse
from domain.timings import Timings
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from tests.support.cancelling import cancel
from tests.support.deliveries import stored_delivery
from tests.support.fakes import OK, SECRET, Gate, answered, eventually
from tests.support.house import HOOK, House, house
from tests.support.receiver import Answer, receiver
from workflows.webhook_delivery import JITTER, PAUSES, pause_after

HOUR = 3600.0
DOWN = answered(500, response="the receiver is down")


@pytest.fixture
async def here(warp: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(warp, sqlite, indexed=False) as running:
        yield running


async def promised(here: House) -> str:
    """The id of a delivery that nobody has tried yet."""
    job_id = await here.accept(callback=HOOK)
    await cancel(here, job_id)
    return (await here.jobs.queries.get(job_id)).deliveries[0].id


async def delivering(here: House, delivery_id: str, **start: Any) -> WorkflowHandle[Any, DeliveryReport]:
    return await here.client.start_workflow(
        WEBHOOK_DELIVERY,
        DeliveryStart(delivery_id=delivery_id, **start),
        id=delivery_workflow_id(delivery_id),
        task_queue=JOBS_QUEUE,
        result_type=DeliveryReport,
    )


async def delivered(here: House) -> tuple[DeliveryReport, Delivery, list[float]]:
    """What became of a new delivery: the run's report, the stored delivery, the pauses between its tries."""
    run = await delivering(here, delivery_id := await promised(here))
    report = await run.result()
    return report, await stored_delivery(here.deliveries, delivery_id), await pauses(run)


async def pauses(run: WorkflowHandle[Any, Any]) -> list[float]:
    """Seconds of Temporal's time from the end of each try to the next."""
    ended, found = None, []
    async for event in run.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED and ended:
            found.append((event.event_time.ToDatetime() - ended).total_seconds())
        if event.event_type in (
            EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED,
            EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
            EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
        ):
            ended = event.event_time.ToDatetime()
    return found


def on_schedule(found: list[float]) -> bool:
    """Each pause is the schedule's, with 0 to +20 % (and what the test server itself needs)."""
    return all(p <= pause <= p * (1 + JITTER) + 0.5 for p, pause in zip(PAUSES, found, strict=False))


async def test_a_dead_receiver(here: House) -> None:
    """Ten tries in 75 hours, one id, one body, fresh signatures, every try recorded; then it is a dead letter."""
    here.sender.answers = [DOWN]
    began = time.monotonic()
    report, delivery, found = await delivered(here)
    took = time.monotonic() - began
    assert (report.delivered, report.tries, report.retry_in) == (False, 10, None)
    assert (len(found), on_schedule(found)) == (9, True)
    assert 75 * HOUR < sum(found) < 75.6 * 1.2 * HOUR
    posts = here.sender.posts
    assert (len(posts), len({post.id for post in posts}), len({post.body for post in posts})) == (10, 1, 1)
    assert {post.event.event for post in posts} == {delivery.event}
    assert (delivery.status, delivery.next_try_at) == ("failed", None)
    assert [(one.number, one.status_code, one.response) for one in delivery.tries] == [
        (number, 500, "the receiver is down") for number in range(1, 11)
    ]
    assert took < 3, f"{sum(found) / HOUR:.1f} h took {took:.2f} s"


async def test_a_receiver_that_comes_back_after_days(here: House) -> None:
    """Delivered at the last try; delivered once, it stays delivered, and is not sent again."""
    here.sender.answers = [*[DOWN] * 9, OK]
    report, delivery, found = await delivered(here)
    assert (report.delivered, report.tries, len(found)) == (True, 10, 9)
    assert (delivery.status, delivery.delivered_at is not None) == ("delivered", True)
    again = await (await delivering(here, delivery.id)).result()
    assert (again.delivered, len(here.sender.posts)) == (True, 10)
    assert await stored_delivery(here.deliveries, delivery.id) == delivery


@pytest.mark.parametrize(
    ("asked", "waits"), [(0.0, PAUSES[0]), (3.0, PAUSES[0]), (HOUR, HOUR), (1e12, 24 * HOUR), (None, PAUSES[0])]
)
async def test_retry_after_is_honoured(here: House, asked: float | None, waits: float) -> None:
    """The schedule's pause or the receiver's, whichever is longer, up to a day."""
    here.sender.answers = [answered(503, retry_after=asked), OK]
    _, delivery, found = await delivered(here)
    assert waits <= found[0] <= waits * 1.2 + 0.5
    assert (delivery.status, len(delivery.tries)) == ("delivered", 2)


async def test_gone_is_the_end(here: House) -> None:
    """410: nothing more is sent."""
    here.sender.answers = [answered(410, retry_after=5.0)]
    report, delivery, _ = await delivered(here)
    assert (report.delivered, report.tries, delivery.status) == (False, 1, "failed")


@pytest.mark.parametrize(
    "answer",
    [
        answered(302, error="redirect"),
        answered(404),
        WebhookResponse(latency_ms=1, error="connect_error"),
        RuntimeError("with a secret in it"),
    ],
    ids=["redirect", "not found", "no connection", "an error of our own"],
)
async def test_a_try_that_fails_is_followed_by_another(here: House, answer: WebhookResponse | Exception) -> None:
    """Whatever it was; what could not even be tried counts as a try, and the schedule goes on."""
    here.sender.answers = [answer, answer, OK]
    report, delivery, found = await delivered(here)
    assert (report.delivered, len(here.sender.posts), on_schedule(found)) == (True, 3, True)
    recorded = 3 if isinstance(answer, WebhookResponse) else 1
    assert (delivery.status, len(delivery.tries)) == ("delivered", recorded)


async def test_without_a_secret_tries_wait_for_one(warp: Client, sqlite: Database) -> None:
    """Nothing is sent unsigned; every try says why."""
    async with house(warp, sqlite, indexed=False, webhook_secret="") as here:
        report, delivery, _ = await delivered(here)
    assert (report.tries, here.sender.posts, delivery.status) == (10, [], "failed")
    assert "secret" in (delivery.tries[0].error or "")


async def test_without_a_worker_for_webhooks(warp: Client, sqlite: Database) -> None:
    """No try can be made: the schedule passes all the same, and the delivery stays pending for a sweeper."""
    impatient = Timings(delivery_start_seconds=0.05)
    async with house(warp, sqlite, indexed=False, queues=[JOBS_QUEUE], timings=impatient) as here:
        report, delivery, found = await delivered(here)
    assert (report.delivered, report.tries, on_schedule(found)) == (False, 10, True)
    assert (delivery.status, delivery.tries) == ("pending", ())


async def test_a_delivery_that_is_gone(here: House) -> None:
    """Its job was deleted: there is nothing left to try."""
    report = await (await delivering(here, "whe_gone")).result()
    assert (report.delivered, report.retry_in, here.sender.posts) == (False, None, [])


async def test_retry_now_ends_the_pause(here: House) -> None:
    """The signal, while the run waits for its next try."""
    run = await delivering(here, await promised(here), tries_made=4, first_pause=HOUR)
    await run.signal(RETRY_NOW)
    assert (await run.result()).delivered
    described = await run.describe()
    assert described.close_time
    assert described.close_time - described.start_time < timedelta(minutes=1)


async def test_retry_now_during_a_try(here: House) -> None:
    """The signal is not lost: the pause after that try is left out, and only that one."""
    gate = Gate()
    here.sender.answers = [gate, DOWN, DOWN, OK]
    run = await delivering(here, await promised(here))
    await gate.reached()
    await run.signal(RETRY_NOW)
    gate.open()
    assert (await run.result()).tries == 3
    first, second = await pauses(run)
    assert (first < PAUSES[0] / 2, PAUSES[1] <= second) == (True, True)


async def test_the_run_is_readable_in_the_ui(here: House) -> None:
    """Current details say what came of the last try and when the next one is."""
    gate = Gate()
    here.sender.answers = [DOWN, gate, OK]
    run = await delivering(here, await promised(here))
    details = await eventually(lambda: current_details(run))
    assert details.startswith("try 1: HTTP 500; next try in 0:00:0")
    gate.open()
    await run.result()
    assert await current_details(run) == "delivered at try 2"


async def current_details(run: WorkflowHandle[Any, Any]) -> str:
    answer = await run.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(answer.current_details)


@pytest.mark.parametrize("argument", ["hello", None, 5, {"deliveryId": 5}, {"delivery_id": "whe_x", "no": 1}])
async def test_an_argument_that_is_none_of_ours(here: House, argument: Any) -> None:
    """The run fails at once, in place of a task that is retried for ever."""
    run = await here.client.start_workflow(WEBHOOK_DELIVERY, argument, id=new_job_id(), task_queue=JOBS_QUEUE)
    with pytest.raises(WorkflowFailureError) as caught:
        await run.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "validation_failed"


async def test_over_the_wire(client: Client, sqlite: Database) -> None:
    """A job's first try by the real sender to a real receiver: signed, with the outcome."""
    with receiver() as hooks:
        hooks.answer("/hook", Answer(200))
        async with house(client, sqlite, sender=HttpWebhookSender()) as here:
            job = await here.ended(await here.submit(callback=hooks.url("/hook")))
        (received,) = hooks.requests()
    event = verify(received.body, received.headers, secrets=SECRET, now=received.at)
    assert (event.data.job_id, event.data.status, event.data.content) == (job.job_id, job.status, "Hello there")
    assert (job.deliveries[0].status, job.deliveries[0].id) == ("delivered", received.headers["webhook-id"])


# ------------------------------------------------------------------------------------------------ the schedule


def test_the_schedule_is_the_specifications() -> None:
    """Standard Webhooks, "Retries": ten tries in about three days."""
    hours = [seconds / HOUR for seconds in PAUSES]
    assert hours == [5 / HOUR, 5 / 60, 0.5, 2, 5, 10, 14, 20, 24]


@settings(deadline=None)
@given(tries=st.integers(0, 1000), seed=st.integers())
def test_jitter_only_adds(tries: int, seed: int) -> None:
    """0 to +20 %, and nothing after the last try."""
    pause = pause_after(tries, random.Random(seed))  # noqa: S311 - not a secret
    if tries > len(PAUSES):
        assert pause is None
    else:
        assert PAUSES[max(tries, 1) - 1] <= (pause or 0) <= PAUSES[max(tries, 1) - 1] * (1 + JITTER)


@settings(deadline=None)
@given(
    retry_in=st.none() | st.floats(0, 10**6),
    retry_after=st.none() | st.floats(allow_nan=False),
    status=st.sampled_from([200, 204, 302, 410, 429, 500, None]),
)
def test_the_next_try(retry_in: float | None, retry_after: float | None, status: int | None) -> None:
    """There is none after success, 410 and the last try; else it is never earlier than scheduled."""
    error = None if status else "timeout"
    response = WebhookResponse(latency_ms=1, status_code=status, error=error, retry_after=retry_after)
    pause = retry_pause(DeliveryOrder(delivery_id="whe_x", retry_in=retry_in), response)
    if retry_in is None or status in (200, 204, 410):
        assert pause is None
    else:
        assert pause is not None
        assert retry_in <= pause <= max(retry_in, 24 * HOUR)
