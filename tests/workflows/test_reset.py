"""What operators do with the `temporal` command, what Temporal loses, and what the sweeper makes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from chatjobs.contracts import Job, JobStatus
from dispatch.sweeper import Sweeper
from domain.errors import UpstreamInterrupted, UpstreamRefused
from domain.names import delivery_workflow_id
from domain.ports import Finish
from domain.timings import Timings
from domain.values import Cursor
from storage.engine.database import Database
from storage.jobs.sweep import SweepStore
from storage.rate_limits import breaker
from tests.support.cancelling import cancel
from tests.support.factories import make_body
from tests.support.fakes import HELLO, Gate, answered, eventually, text
from tests.support.house import HOOK, QUICK, House, house
from tests.support.temporal_server import TemporalServer, temporal_server

COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED
NOW = timedelta(0)
CUT = UpstreamInterrupted(code="upstream_cut")


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite, timings=QUICK) as running:
        yield running


def sweeper(here: House, overdue_after: float = 0) -> Sweeper:
    """A sweeper that does not wait, unless told."""
    timings = Timings(unstarted_after_seconds=0, silent_after_seconds=0, overdue_after_seconds=overdue_after)
    return Sweeper(intake=here.intake, jobs=here.jobs, deliveries=here.deliveries, client=here.client, timings=timings)


async def reset(temporal: TemporalServer, job_id: str) -> None:
    which = ("--workflow-id", job_id, "--type", "FirstWorkflowTask")
    await temporal.cli("workflow", "reset", *which, "--reason", "a test")


# -------------------------------------------------------------------------------------------------------- Reset


@pytest.mark.parametrize(("reason", "status"), [("stop", COMPLETED), ("length", JobStatus.INCOMPLETE)])
async def test_reset_of_a_job_with_an_answer(
    temporal: TemporalServer, here: House, reason: str, status: JobStatus
) -> None:
    """The new run ends as the old one did, from storage: no call, no other webhook."""
    here.model.scripts = [[*text("Hello ", "there"), Finish(reason)]]
    before = await here.agree(job_id := await here.submit(callback=HOOK), status)
    result, first = await here.run(job_id).result(), (await here.run(job_id).describe()).run_id
    await reset(temporal, job_id)
    assert await here.agree(job_id, status) == before
    assert await here.run(job_id).result() == result
    assert (here.model.calls, (await here.run(job_id).describe()).run_id != first) == (1, True)


async def test_reset_of_an_inline_job(temporal: TemporalServer, here: House) -> None:
    """The answer is the result again."""
    run = await here.direct({"request": make_body(callback=HOOK)})
    result = await run.result()
    await reset(temporal, run.id)
    await here.agree(run.id, COMPLETED)
    assert await here.run(run.id).result() == result
    assert here.model.calls == 1


async def test_reset_of_a_cancelled_job(temporal: TemporalServer, here: House) -> None:
    """It stays cancelled."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await here.run(job_id).cancel()
    before = await here.agree(job_id, CANCELLED)
    await reset(temporal, job_id)
    assert await here.agree(job_id, CANCELLED) == before
    assert here.model.calls == 1


async def test_reset_of_a_failed_job(temporal: TemporalServer, here: House) -> None:
    """It is open again: the ledger goes on, a reader at the old end resumes, the new outcome has another webhook."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), UpstreamRefused(code="upstream_rejected")], [gate, *HELLO]]
    before = await here.agree(job_id := await here.submit(callback=HOOK), FAILED)
    end = (await here.reader.read(Cursor(job_id))).cursor
    await reset(temporal, job_id)
    await gate.reached()
    assert (await here.jobs.queries.get(job_id)).status is JobStatus.IN_PROGRESS
    gate.open()
    watched = await here.watched(job_id, end)
    job = await here.ended(job_id)
    assert (watched.ends, watched.resets, "".join(watched.texts.values())) == ([COMPLETED], 0, "lo there")
    assert (job.status, job.content, job.error) == (COMPLETED, "Hello there", None)
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_rejected", "finished"]
    ids = [delivery.id for delivery in job.deliveries]
    assert (ids[0], ids[1].endswith(".2")) == (before.deliveries[0].id, True)
    assert [(post.id, post.event.event.value) for post in here.sender.posts] == [
        (ids[0], "chat.failed"),
        (ids[1], "chat.completed"),
    ]


async def test_reset_of_a_job_whose_failures_are_used_up(
    temporal: TemporalServer, here: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator gives it another five."""
    monkeypatch.setattr(breaker, "THRESHOLD", 100)
    here.model.scripts = [*[[CUT]] * 9, HELLO]
    job_id = await here.submit()
    assert (await here.ended(job_id)).status is FAILED
    await reset(temporal, job_id)
    job = await here.ended(job_id)
    assert (job.status, len(job.attempts)) == (COMPLETED, 10)


async def test_reset_of_a_running_job(temporal: TemporalServer, here: House) -> None:
    """The new run takes the job over; the old attempt stops."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await reset(temporal, job_id)
    job = await here.agree(job_id, COMPLETED)
    assert (job.content, job.epoch, here.model.calls) == ("Hello there", 1, 2)
    await nothing_streams(here)


async def nothing_streams(here: House) -> None:
    async def idle() -> bool:
        return here.model.open_streams == 0

    await eventually(idle)


# ------------------------------------------------------------------------------------------ Terminate and delete


async def test_a_terminated_job(temporal: TemporalServer, here: House) -> None:
    """The sweeper seals it as failed, with the text so far, and has its webhook delivered; a Reset reopens it."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await temporal.cli("workflow", "terminate", "--workflow-id", job_id)
    await sweeper(here).sweep()
    job = await delivered(here, job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.content) == (FAILED, "terminated", "Hel")
    assert [post.event.event.value for post in here.sender.posts] == ["chat.failed"]
    await nothing_streams(here)
    await reset(temporal, job_id)
    job = await here.ended(job_id)
    assert (job.status, job.content, job.deliveries[1].id[-2:]) == (COMPLETED, "Hello there", ".2")


async def delivered(here: House, job_id: str) -> Job:
    """The job, once nothing of its webhooks is pending."""

    async def look() -> Job | None:
        job = await here.jobs.queries.get(job_id)
        pending = [delivery for delivery in job.deliveries if delivery.status == "pending"]
        return job if job.deliveries and not pending else None

    job = await eventually(look)
    assert job is not None
    return job


async def test_a_deleted_job_starts_again(temporal: TemporalServer, here: House) -> None:
    """Temporal has lost the run of an unfinished job: the sweeper starts another."""
    here.model.scripts = [[*text("Hel"), Gate()], HELLO]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await deleted(temporal, here, job_id)
    await sweeper(here).sweep()
    job = await here.agree(job_id, COMPLETED)
    assert job.content == "Hello there"


async def test_a_finished_job_that_temporal_does_not_know(here: House) -> None:
    """Its history is gone (retention), its row is not: it does not run again."""
    job_id = await here.accept()
    await cancel(here, job_id)
    before = await here.jobs.queries.get(job_id)
    await sweeper(here).sweep()
    assert await here.jobs.queries.get(job_id) == before
    with pytest.raises(RPCError):
        await here.run(job_id).describe()


async def deleted(temporal: TemporalServer, here: House, job_id: str) -> None:
    await temporal.cli("workflow", "delete", "--workflow-id", job_id, "--yes")

    async def gone() -> bool:
        return not await known(here, job_id)

    await eventually(gone)


async def known(here: House, job_id: str) -> bool:
    """Whether Temporal has a run of the job."""
    try:
        await here.run(job_id).describe(rpc_timeout=timedelta(seconds=1))
    except RPCError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ the sweeper


async def test_the_sweeper_leaves_running_jobs_alone(here: House) -> None:
    """A silent job whose run is there is looked at again later."""
    gate = Gate()
    here.model.scripts = [[*text("Hel"), gate, *text("lo"), Finish("stop")]]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await sweeper(here).sweep()
    assert await here.jobs.sweep.silent(since=timedelta(seconds=10)) == []
    gate.open()
    await here.agree(job_id, COMPLETED)


async def test_the_sweeper_sends_cancels(here: House) -> None:
    """A wish that was committed, and that Temporal was not told of."""
    here.model.scripts = [[*text("Hel"), Gate()]]
    job_id = await here.submit(callback=HOOK)
    await here.readable(job_id, 3)
    await here.jobs.seals.request_cancel(job_id)
    for _ in range(2):
        await sweeper(here).sweep()
    await here.agree(job_id, CANCELLED)


async def test_the_sweeper_adopts_deliveries(here: House) -> None:
    """One that nobody owns is delivered once, however many sweepers there are."""
    job_id = await here.accept(callback=HOOK)
    await cancel(here, job_id)
    await asyncio.gather(*(sweeper(here).sweep() for _ in range(3)))
    job = await delivered(here, job_id)
    assert (job.deliveries[0].status, len(here.sender.posts)) == ("delivered", 1)
    assert await here.deliveries.overdue(NOW) == []


async def test_an_adopted_delivery_keeps_its_place_in_the_schedule(here: House) -> None:
    """Two tries were made before: the next pause is the third one."""
    here.sender.answers = [answered(500)]
    job_id = await here.accept(callback=HOOK)
    await cancel(here, job_id)
    for made in range(1, 4):
        await sweeper(here, overdue_after=-86_400).sweep()
        delivery = await tried(here, job_id, made)
        await here.client.get_workflow_handle(delivery_workflow_id(delivery.id)).terminate()
    assert delivery.next_try_at is not None
    assert timedelta(minutes=29) < delivery.next_try_at - delivery.tries[-1].started_at < timedelta(minutes=37)


async def tried(here: House, job_id: str, times: int) -> Any:
    async def look() -> Any:
        delivery = (await here.jobs.queries.get(job_id)).deliveries[0]
        return delivery if len(delivery.tries) == times else None

    return await eventually(look)


async def test_one_job_that_cannot_be_helped(
    here: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps no other one waiting, and is in the log."""
    bad, good = await here.accept(), await here.accept()
    start = here.intake.start

    async def refuse(job: Any) -> None:
        if job.job_id == bad:
            raise RuntimeError("no")
        await start(job)

    monkeypatch.setattr(here.intake, "start", refuse)
    with caplog.at_level(logging.ERROR):
        await sweeper(here).sweep()
    assert f"sweep failed for {bad}" in caplog.messages
    assert (await here.ended(good)).status is COMPLETED


async def test_a_database_that_cannot_be_read(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error ends a part of one sweep, never the sweeper."""
    for find in ("unstarted", "to_cancel", "silent"):

        async def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("no")

        monkeypatch.setattr(SweepStore, find, broken)
    await sweeper(here).sweep()


async def test_jobs_start_when_temporal_is_back(tmp_path: Path, sqlite: Database) -> None:
    """Accepted while the server was away; started within five seconds of its return, on the same file and port."""
    with temporal_server(tmp_path / "temporal") as server:
        async with house(await server.connect(), sqlite) as here:

            async def all_started() -> bool:
                # A job that a sweeper has just taken is not among the unstarted, and Temporal does not know it yet.
                return all([await known(here, job_id) for job_id in waiting])

            running = asyncio.create_task(sweeper(here).run())
            server.process.kill()
            waiting = [await here.accept() for _ in range(3)]
            await asyncio.sleep(1)
            server.process.start()
            began = time.monotonic()
            await eventually(all_started)
            took = time.monotonic() - began
            for job_id in waiting:
                assert (await here.ended(job_id)).status is COMPLETED
            running.cancel()
    assert took < 5, f"{took:.1f} s"
