"""A cancel, at every place where a job can be: row, run, terminal event and webhook tell the same story."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from chatjobs.contracts import JobStatus
from chatjobs.errors import ChatJobsError, JobFinished, JobNotFound
from domain.errors import UpstreamInterrupted
from domain.names import JOBS_QUEUE, WEBHOOKS_QUEUE, delivery_workflow_id, new_job_id
from domain.ports import WebhookResponse
from domain.timings import Timings
from storage.engine.database import Database
from tests.support.cancelling import cancel
from tests.support.factories import make_body
from tests.support.fakes import (
    HELLO,
    OK,
    STOP,
    Gate,
    Gates,
    ScriptedModel,
    ScriptedSender,
    Step,
    answered,
    eventually,
    text,
)
from tests.support.house import HOOK, House, house, working
from tests.support.temporal_server import TemporalServer, temporal_server

CANCELLED, COMPLETED = JobStatus.CANCELLED, JobStatus.COMPLETED
SHIELDED = ("before accept", "after accept", "before seal", "after seal", "first try", "child start")
"""There the cancel interrupts nothing: what is under way ends first."""


@dataclass(frozen=True)
class Point:
    """Where a job is when the cancel comes, and how it ends: cancelled through Temporal, or through our database."""

    place: str
    through_temporal: JobStatus = CANCELLED
    through_us: JobStatus = CANCELLED
    refused: type[ChatJobsError] | None = None
    """Our database's answer, where it does not accept the cancel."""


POINTS = (
    Point("before accept", through_us=COMPLETED, refused=JobNotFound),
    Point("after accept"),
    Point("before claim"),
    Point("after claim"),
    Point("first token"),
    Point("mid-stream"),
    Point("after finish", through_temporal=COMPLETED),
    Point("before seal", through_temporal=COMPLETED),
    Point("after seal", COMPLETED, COMPLETED, JobFinished),
    Point("first try", COMPLETED, COMPLETED, JobFinished),
    Point("child start", COMPLETED, COMPLETED, JobFinished),
)
UNTOLD = [point for point in POINTS if not point.refused]
STREAMING = ("first token", "mid-stream")
"""There the cancel ends what is under way; the model would say nothing more."""


def at(points: Sequence[Point]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("point", points, ids=lambda point: point.place)


BEATS = Timings(heartbeat_seconds=0.05, heartbeat_throttle_seconds=0.05)
"""Cancellation comes with the answer to a heartbeat; there are many of them here."""


@asynccontextmanager
async def stopped_at(point: Point, client: Client, database: Database) -> AsyncIterator[tuple[House, str, Gate]]:
    """A job that is at that place."""
    gate = Gate()
    script: dict[str, list[Step]] = {
        "before accept": [Gate(), *HELLO],  # else the whole job might be done before the cancel comes
        "after accept": [Gate(), *HELLO],
        "first token": [gate, *HELLO],
        "mid-stream": [*text("Hel"), gate, *text("lo"), STOP],
    }
    answers: dict[str, list[WebhookResponse | Gate]] = {
        "first try": [gate, OK],
        "child start": [gate, answered(500)],
    }
    model, sender = ScriptedModel(script.get(point.place, HELLO)), ScriptedSender(*answers.get(point.place, [OK]))
    gates = Gates({point.place: gate})
    async with house(client, database, model=model, sender=sender, gates=gates, timings=BEATS) as here:
        job_id = (await here.direct({"request": make_body(callback=HOOK)})).id
        await gate.reached()
        yield here, job_id, gate


@at(POINTS)
async def test_a_cancel_through_temporal(point: Point, client: Client, database: Database) -> None:
    """Accepted until the answer is whole; then the job completes."""
    async with stopped_at(point, client, database) as (here, job_id, gate):
        await here.run(job_id).cancel()
        await ends(here, job_id, gate, point, point.through_temporal)


@at(POINTS)
async def test_a_cancel_through_the_database(point: Point, client: Client, sqlite: Database) -> None:
    """Accepted until the seal, and once accepted it wins."""
    async with stopped_at(point, client, sqlite) as (here, job_id, gate):
        if point.refused:
            with pytest.raises(point.refused):
                await cancel(here, job_id)
            let_the_model_speak(here)
        else:
            assert not (await cancel(here, job_id)).terminal
        await ends(here, job_id, gate, point, point.through_us)


@at(UNTOLD)
async def test_a_cancel_that_only_the_row_knows(point: Point, client: Client, sqlite: Database) -> None:
    """Temporal is not told: claim, stream or seal finds the wish, and the run ends as cancelled all the same."""
    async with stopped_at(point, client, sqlite) as (here, job_id, gate):
        await here.jobs.seals.request_cancel(job_id)
        if point.place not in STREAMING:
            gate.open()
        await ends(here, job_id, gate, point, CANCELLED)


async def ends(here: House, job_id: str, gate: Gate, point: Point, status: JobStatus) -> None:
    """However the job ends, it ends once, for everybody, and nothing is left running."""
    if point.place in SHIELDED:
        gate.open()
    job = await here.agree(job_id, status)
    watched = await here.watched(job_id)
    assert (watched.ends, watched.resets, here.model.open_streams) == ([status], 0, 0)
    assert job.content == "".join(watched.texts.values())
    if point.place == "mid-stream":
        assert job.content == "Hel"
    if point.place == "child start":
        await still_delivering(here, job.deliveries[0].id)


def let_the_model_speak(here: House) -> None:
    for step in here.model.scripts[0]:
        if isinstance(step, Gate):
            step.open()


async def still_delivering(here: House, delivery_id: str) -> None:
    child = here.client.get_workflow_handle(delivery_workflow_id(delivery_id))
    assert (await child.describe()).status is WorkflowExecutionStatus.RUNNING
    await child.terminate()


@pytest.mark.parametrize("through_us", [False, True], ids=["temporal", "us"])
@pytest.mark.parametrize("queues", [[], [JOBS_QUEUE, WEBHOOKS_QUEUE]], ids=["no worker", "no completion worker"])
async def test_a_cancel_while_nobody_works(
    queues: list[str], through_us: bool, temporal: TemporalServer, sqlite: Database
) -> None:
    """The job waits in Temporal: it ends as cancelled without a call."""
    async with house(await temporal.connect(), sqlite, queues=queues) as here, AsyncExitStack() as later:
        job_id = await here.submit(callback=HOOK)
        await cancel(here, job_id) if through_us else await here.run(job_id).cancel()
        if not queues:
            parts = replace(here.parts, client=await temporal.connect())
            await later.enter_async_context(working(parts))
        job = await here.agree(job_id, CANCELLED)
        assert (here.model.calls, job.attempts) == (0, ())


async def test_a_cancel_before_the_first_step(temporal: TemporalServer, sqlite: Database) -> None:
    """Of a job that came straight through Temporal: it gets its row all the same, and its webhook."""
    async with house(await temporal.connect(), sqlite, queues=[]) as here:
        run = await here.direct({"request": make_body(callback=HOOK)})
        await run.cancel()
        async with working(replace(here.parts, client=await temporal.connect())):
            await here.agree(run.id, CANCELLED)
        assert here.model.calls == 0


@pytest.mark.parametrize("through_us", [False, True], ids=["temporal", "us"])
async def test_a_cancel_between_two_attempts(through_us: bool, client: Client, sqlite: Database) -> None:
    """The pause before a retry is not waited for."""
    model, timings = ScriptedModel([*text("Hel"), UpstreamInterrupted()]), Timings(failure_pause_seconds=3600)
    async with house(client, sqlite, model=model, timings=timings) as here:
        job_id = await here.submit(callback=HOOK)
        await first_attempt_over(here, job_id)
        await cancel(here, job_id) if through_us else await here.run(job_id).cancel()
        job = await here.agree(job_id, CANCELLED)
        assert (here.model.calls, job.content) == (1, "Hel")


async def first_attempt_over(here: House, job_id: str) -> None:
    async def look() -> bool:
        return any(attempt.outcome for attempt in (await here.jobs.queries.get(job_id)).attempts)

    await eventually(look)


async def test_a_cancel_before_the_start(client: Client, sqlite: Database) -> None:
    """A job that Temporal has never heard of is sealed at once, and never runs."""
    async with house(client, sqlite) as here:
        job_id = await here.accept(callback=HOOK)
        assert await cancel(here, job_id) is CANCELLED
        assert await here.jobs.sweep.unstarted(older_than=timedelta(0)) == []
        await here.direct({"jobId": job_id}, job_id=job_id)  # a start that was already on its way
        await here.agree(job_id, CANCELLED)
        assert here.model.calls == 0


async def test_a_cancel_during_the_last_step(client: Client, sqlite: Database) -> None:
    """Without a webhook the run's end and the cancel meet in one workflow task; the seal is done again, and holds."""
    gate = Gate()
    async with house(client, sqlite, gates=Gates({"after seal": gate})) as here:
        job_id = await here.submit()
        await gate.reached()
        await here.run(job_id).cancel()
        gate.open()
        assert (await here.ended(job_id)).status is COMPLETED
        assert (await here.run(job_id).describe()).status is WorkflowExecutionStatus.COMPLETED


async def test_a_cancel_again_and_again(client: Client, sqlite: Database) -> None:
    """As the sweeper sends it, until it is confirmed."""
    async with house(client, sqlite, model=ScriptedModel([*text("Hel"), Gate()])) as here:
        job_id = await here.submit(callback=HOOK)
        await here.readable(job_id, 3)
        for _ in range(3):
            assert not (await cancel(here, job_id)).terminal
        await here.agree(job_id, CANCELLED)
        assert await cancel(here, job_id) is CANCELLED
        await here.intake.send_cancel(job_id)
        await here.intake.send_cancel(new_job_id())


async def test_a_cancel_while_temporal_is_away(tmp_path: Path, sqlite: Database) -> None:
    """The call of the model ends at once all the same; the run follows when Temporal is back."""
    with temporal_server(tmp_path / "temporal") as server:
        model = ScriptedModel([*text("Hel"), Gate()])
        async with house(await server.connect(), sqlite, model=model, chatjobs_heartbeat_seconds=60) as here:
            job_id = await here.submit(callback=HOOK)
            await here.readable(job_id, 3)
            server.process.kill()
            began = time.monotonic()
            await here.jobs.seals.request_cancel(job_id)

            async def hung_up() -> bool:
                return model.open_streams == 0

            await eventually(hung_up)
            took = time.monotonic() - began
            server.process.start()
            job = await here.agree(job_id, CANCELLED)
            assert (job.content, model.calls) == ("Hel", 1)
    assert took < 4, f"{took:.2f} s"  # two seconds, and a busy machine


async def test_a_stream_is_cancelled_within_two_seconds(client: Client, sqlite: Database) -> None:
    """With the worker's own settings: between two tokens, whatever the heartbeat timeout is."""
    script = [step for _ in range(2000) for step in (*text("x"), 0.01)]
    async with house(client, sqlite, model=ScriptedModel(script)) as here:
        job_id = await here.submit(callback=HOOK)
        await here.readable(job_id, 50)
        began = time.monotonic()
        await here.run(job_id).cancel()
        await here.agree(job_id, CANCELLED)
        took = time.monotonic() - began
    assert took < 4, f"{took:.2f} s"  # two seconds, and a busy machine
