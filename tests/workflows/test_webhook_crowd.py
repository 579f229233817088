"""A receiver that is dead holds up nobody but itself, and waiting for a place there is no try."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from sqlalchemy import insert, select
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.webhook import BUSY_PAUSES
from chatjobs.contracts import JobStatus
from domain.names import JOBS_QUEUE, WEBHOOK_DELIVERY, delivery_workflow_id, new_job_id
from domain.payloads import DeliveryReport, DeliveryStart
from domain.ports import BUSY, WebhookResponse
from domain.timings import Timings
from domain.webhook_urls import WebhookPolicy
from providers.webhooks.sender import PER_RECEIVER, HttpWebhookSender
from storage.engine.database import Database
from storage.engine.schema import deliveries, now
from tests.support.cancelling import cancel
from tests.support.deliveries import stored_delivery
from tests.support.fakes import OK, PATIENCE
from tests.support.house import HOOK, House, house
from tests.support.receiver import Answer, receiver
from workflows import options
from workflows.webhook_delivery import deliver

DEAD, GOOD, EACH = 1_000, 20, 20
SECONDS = 60.0
"""Far more than it takes on a busy machine; not enough, if the dead receiver could take all places."""
FULL = WebhookResponse(latency_ms=0, error=BUSY)


@dataclass
class CrowdStart:
    first: int


@workflow.defn(name="Crowd")
class Crowd:
    """The first tries of some deliveries at once; it costs less than as many jobs."""

    @workflow.run
    async def run(self, start: CrowdStart) -> None:
        numbers = range(start.first, start.first + EACH)
        await asyncio.gather(*(deliver(f"dead_{number}", 0, summary="try 1") for number in numbers))


async def promised(here: House, urls: dict[str, str]) -> None:
    """Deliveries that nobody has tried yet, by id: copies of a real one."""
    job_id = await here.accept(callback=HOOK)
    await cancel(here, job_id)
    real = (await here.jobs.queries.get(job_id)).deliveries[0].id
    database = here.parts.database
    async with database.read() as connection:
        row = (await connection.execute(select(deliveries).where(deliveries.c.id == real))).one()
    copies = [dict(row._mapping) | {"id": name, "url": url} for name, url in urls.items()]
    async with database.write() as connection:
        for copy in copies:
            await connection.execute(insert(deliveries).values(copy))


async def delivered(here: House, delivery_id: str) -> DeliveryReport:
    """What the delivery's run reports in the end; it is started unless it runs."""
    async with asyncio.timeout(SECONDS):
        report: DeliveryReport = await here.client.execute_workflow(
            WEBHOOK_DELIVERY,
            DeliveryStart(delivery_id=delivery_id),
            id=delivery_workflow_id(delivery_id),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            task_queue=JOBS_QUEUE,
            result_type=DeliveryReport,
        )
    return report


@pytest.mark.long
async def test_a_dead_receiver_with_a_thousand_deliveries(client: Client, sqlite: Database) -> None:
    """It has eight connections at a time; those for others are delivered within seconds, and no try is lost on it."""
    policy, timings = WebhookPolicy(loopback=True), Timings(webhook_total_seconds=600, webhook_headers_seconds=600)
    with receiver() as dead, receiver() as good:
        dead.answer("/dead", Answer(delay=600))
        urls = {f"dead_{number}": dead.url("/dead") for number in range(DEAD)}
        urls |= {f"good_{number}": good.url("/good") for number in range(GOOD)}
        async with (
            HttpWebhookSender(policy=policy, timings=timings) as sender,
            house(client, sqlite, sender=sender, chatjobs_grace_seconds=0) as here,
            Worker(client, task_queue="crowd", workflows=[Crowd], workflow_runner=UnsandboxedWorkflowRunner()),
        ):
            await promised(here, urls)
            crowds = [
                await client.start_workflow(Crowd.run, CrowdStart(first), id=new_job_id(), task_queue="crowd")
                for first in range(0, DEAD, EACH)
            ]
            await dead.arrived(PER_RECEIVER, path="/dead", timeout=PATIENCE)
            began = time.monotonic()
            reports = await asyncio.gather(*(delivered(here, f"good_{number}") for number in range(GOOD)))
            took = time.monotonic() - began
            called = len(dead.requests("/dead"))
            tried = [(await here.deliveries.outgoing(f"dead_{number}")).tries for number in range(0, DEAD, 50)]
            for crowd in crowds:
                await crowd.terminate("the test is over")
        assert [(report.delivered, report.tries) for report in reports] == [(True, 1)] * GOOD
        assert len(good.requests("/good")) == GOOD
        assert (called, sum(tried)) == (PER_RECEIVER, 0)
        assert took < SECONDS, f"{took:.1f} s"


# ------------------------------------------------------------------------------- waiting for a place is no try


@pytest.fixture
async def here(warp: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(warp, sqlite, indexed=False) as running:
        yield running


def test_the_last_attempt_is_the_one_that_reports() -> None:
    assert options.delivery()["retry_policy"].maximum_attempts == len(BUSY_PAUSES) + 1


async def test_waiting_for_a_place_is_no_try(here: House) -> None:
    """Neither in the schedule nor in the record, however often; the sweeper leaves the delivery alone meanwhile."""
    here.sender.answers = [*[FULL] * 10, OK]
    await promised(here, {"whe_x": HOOK})
    report = await delivered(here, "whe_x")
    assert (report.delivered, report.tries, len(here.sender.posts)) == (True, 1, 11)
    delivery = await stored_delivery(here.deliveries, "whe_x")
    assert (delivery.status, [one.number for one in delivery.tries]) == ("delivered", [1])


async def test_a_place_at_the_last_try(here: House) -> None:
    """Waiting at the end of the schedule does not end it."""
    here.sender.answers = [*[FULL] * 5, WebhookResponse(latency_ms=1, status_code=500)]
    await promised(here, {"whe_x": HOOK})
    report = await here.client.execute_workflow(
        WEBHOOK_DELIVERY,
        DeliveryStart(delivery_id="whe_x", tries_made=9),
        id=delivery_workflow_id("whe_x"),
        task_queue=JOBS_QUEUE,
        result_type=DeliveryReport,
    )
    assert (report.delivered, report.tries, report.retry_in, report.counted) == (False, 1, None, True)
    assert len(here.sender.posts) == 6
    assert (await here.deliveries.outgoing("whe_x")).status == "failed"


async def test_a_job_does_not_wait_for_a_place(here: House) -> None:
    """Its run ends as it should; the delivery goes on by itself, with all of its tries."""
    here.sender.answers = [*[FULL] * 4, OK]
    job_id = await here.accept(callback=HOOK)
    await (await here.direct({"jobId": job_id}, job_id=job_id)).result()
    job = await here.jobs.queries.get(job_id)
    assert (job.status, job.deliveries[0].tries, job.deliveries[0].status) == (JobStatus.COMPLETED, (), "pending")
    assert (job.deliveries[0].next_try_at or now()) > now()
    report = await delivered(here, job.deliveries[0].id)
    assert (report.delivered, report.tries, len(here.sender.posts)) == (True, 1, 5)
