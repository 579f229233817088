"""Jobs that go on after their end: another run of the same workflow, and never two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from chatjobs.contracts import BatchCounts, BatchStatus, Job, JobStatus
from dispatch.sweeper import Sweeper
from domain.errors import TemporalUnavailable, UpstreamInterrupted, UpstreamRefused
from domain.timings import Timings
from domain.values import Cursor, JobHandle
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.rate_limits import breaker
from tests.support.batches import submit_batch
from tests.support.factories import make_body
from tests.support.fakes import HELLO, PATIENCE, Gate, answered, eventually, text
from tests.support.house import HOOK, QUICK, House, house

COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
REFUSED = UpstreamRefused(code="upstream_rejected")
CUT = UpstreamInterrupted(code="upstream_cut")


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite, timings=QUICK) as running:
        yield running


def sweeper(here: House) -> Sweeper:
    """A sweeper that starts at once what was not started, and looks after nothing else."""
    timings = Timings(unstarted_after_seconds=0)
    return Sweeper(intake=here.intake, jobs=here.jobs, deliveries=here.deliveries, client=here.client, timings=timings)


async def resumed(here: House, job_id: str) -> JobHandle:
    """The job, whose run was started again."""
    handle = await here.jobs.seals.resume(job_id)
    await here.intake.start(handle)
    return handle


async def ended(here: House, job_id: str, revision: int) -> Job:
    """The job, once the run of this revision is over."""

    async def look() -> bool:
        job = await here.jobs.queries.get(job_id)
        found = [run async for run in here.client.list_workflows(f"WorkflowId = '{job_id}'")]
        over = all(run.status is not WorkflowExecutionStatus.RUNNING for run in found)
        return job.status.terminal and over and len(found) >= revision

    await eventually(look)
    return await here.jobs.queries.get(job_id)


async def runs_of(here: House, job_id: str) -> list[WorkflowExecutionStatus | None]:
    """How the runs of a job's workflow ended, the oldest first."""
    found = [run async for run in here.client.list_workflows(f"WorkflowId = '{job_id}'")]
    return [run.status for run in sorted(found, key=lambda run: run.start_time)]


async def failed(here: House) -> str:
    """The id of a job that has failed after the text "Hel"; its next attempt says the rest."""
    here.model.scripts = [[*text("Hel"), REFUSED], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.agree(job_id, FAILED)
    return job_id


async def test_a_failed_job_goes_on(here: House) -> None:
    """From its text, for a reader that saw its end, with a webhook of its own."""
    job_id = await failed(here)
    end = (await here.reader.read(Cursor(job_id))).cursor
    await resumed(here, job_id)
    watched = await here.watched(job_id, end)
    job = await ended(here, job_id, 2)
    assert (job.status, job.content, "".join(watched.texts.values()), watched.resets) == (
        *(COMPLETED, "Hello there"),
        *("lo there", 0),
    )
    assert here.model.continued == [None, "Hel"]
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_rejected", "finished"]
    assert await runs_of(here, job_id) == [WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.COMPLETED]
    first, second = here.sender.posts
    assert (first.event.event, second.event.event) == ("chat.failed", "chat.completed")
    assert ("." in first.id, second.id[-2:]) == (False, ".2")


async def test_a_cancelled_job_goes_on(here: House) -> None:
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit()
    await here.readable(job_id, 3)
    await here.jobs.seals.request_cancel(job_id)
    await here.intake.send_cancel(job_id)
    assert (await here.ended(job_id)).status is CANCELLED
    await resumed(here, job_id)
    job = await ended(here, job_id, 2)
    assert (job.status, job.content, here.model.continued) == (COMPLETED, "Hello there", [None, "Hel"])


async def test_it_can_be_cancelled_and_resumed_again(here: House) -> None:
    job_id = await failed(here)
    here.model.scripts = [HELLO, [*text("Hello"), Gate()], HELLO]
    await resumed(here, job_id)
    await here.readable(job_id, 5)
    await here.jobs.seals.request_cancel(job_id)
    assert (await ended(here, job_id, 2)).status is CANCELLED
    await resumed(here, job_id)
    job = await ended(here, job_id, 3)
    assert (job.status, job.content) == (COMPLETED, "Hello there")
    assert [delivery.id[-2:] for delivery in job.deliveries][1:] == [".2", ".3"]


async def test_however_often_it_is_started_there_is_one_more_run(here: House) -> None:
    """By gateways and sweepers at the same time, while it runs, and after its end."""
    job_id, gate = await failed(here), Gate()
    here.model.scripts = [HELLO, [*text("Hello"), gate, *text(" there"), HELLO[-1]]]
    handle = await here.jobs.seals.resume(job_id)
    await asyncio.gather(*(here.intake.start(handle) for _ in range(5)))
    await gate.reached()
    await here.intake.start(handle)
    gate.open()
    assert (await ended(here, job_id, 2)).content == "Hello there"
    await here.intake.start(handle)
    assert (len(await runs_of(here, job_id)), here.model.calls) == (2, 2)


async def test_a_start_that_comes_after_it_has_failed_again(here: House) -> None:
    """Temporal would allow another run; it finds the outcome, and changes nothing."""
    job_id = await failed(here)
    here.model.scripts = [HELLO, [*text("Hello th"), REFUSED], HELLO]
    handle = await resumed(here, job_id)
    before = await ended(here, job_id, 2)
    await here.intake.start(handle)
    assert await ended(here, job_id, 3) == before
    assert (before.status, here.model.calls, len(here.sender.posts)) == (FAILED, 2, 2)


async def test_a_receiver_may_resume_the_job_whose_failure_it_is_told(here: House) -> None:
    """The run that failed waits for the receiver's answer: a sweeper starts the next one after its end."""
    gate = Gate()
    here.sender.answers = [gate, answered(200)]
    here.model.scripts = [[*text("Hel"), REFUSED], HELLO]
    job_id = await here.submit(callback=HOOK)
    await gate.reached()
    handle = await here.jobs.seals.resume(job_id)
    with pytest.raises(TemporalUnavailable, match="earlier run"):
        await here.intake.start(handle)
    await sweeper(here).sweep()
    assert (await here.jobs.queries.get(job_id)).status is JobStatus.QUEUED
    gate.open()

    async def started() -> bool:
        await sweeper(here).sweep()
        return len(await runs_of(here, job_id)) == 2

    await eventually(started)
    job = await ended(here, job_id, 2)
    assert (job.status, job.content) == (COMPLETED, "Hello there")


async def test_its_failures_are_counted_from_the_beginning(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "THRESHOLD", 100)
    refusal = UpstreamInterrupted(code="upstream_error")
    here.model.scripts = [[*text("Hel"), CUT], *[[refusal]] * 8, HELLO]
    job_id = await here.submit()
    before = await here.ended(job_id)
    assert before.status is FAILED
    await resumed(here, job_id)
    job = await ended(here, job_id, 2)
    assert (job.status, job.content) == (COMPLETED, "Hello there")
    assert len(job.attempts) == 10


async def test_a_job_of_a_batch_goes_on_in_a_workflow_of_its_own(here: House, sqlite: Database) -> None:
    """The batch has ended and stays so; its counts follow."""
    here.model.scripts = [[*text("Hel"), REFUSED], HELLO]
    batch_id = await submit_batch(sqlite, here.client, [make_body()])
    async with asyncio.timeout(PATIENCE):
        await here.run(batch_id).result()
    (job,) = await here.jobs.queries.list()
    assert (job.status, job.run.workflow_id) == (FAILED, batch_id)
    handle = await resumed(here, job.job_id)
    done = await ended(here, job.job_id, 1)
    assert (done.status, done.content, done.batch_id) == (COMPLETED, "Hello there", batch_id)
    assert await runs_of(here, job.job_id) == [WorkflowExecutionStatus.COMPLETED]
    batch = await BatchQueries(sqlite).get(batch_id)
    assert (batch.status, batch.counts) == (BatchStatus.COMPLETED, BatchCounts(total=1, completed=1))
    await here.intake.start(replace(handle, created=True))
    assert len(await runs_of(here, job.job_id)) == 1
