"""Workers stopped, killed and frozen under running jobs: somebody else goes on, soon, and nobody reads twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.completer import Completer
from activities.completion import CompletionActivities
from chatjobs.contracts import Channel, Job, JobStatus
from dispatch.intake import TASK_TIMEOUT
from domain.errors import FenceLost
from domain.payloads import CompletionSummary, JobRef
from storage.engine.database import Database
from storage.transcript.writer import TranscriptWriter
from tests.support.factories import accepted, make_store
from tests.support.fakes import STOP, Gate, ScriptedModel, text
from tests.support.service import Service, Watched, service
from tests.support.simulator_process import prompt
from tests.support.stack import Process, Stack, stack, wait_until

pytestmark = pytest.mark.long

HEARTBEAT = 2.0
JOBS = 30
NOISE = 3.0
"""Seconds that a busy machine may add to what is promised."""


@pytest.fixture
def heartbeat() -> float:
    return HEARTBEAT


@pytest.fixture
def machine(tmp_path: Path, heartbeat: float) -> Iterator[Stack]:
    """Three workers, of which two have room for all jobs of a test."""
    env = {"CHATJOBS_HEARTBEAT_SECONDS": str(heartbeat), "CHATJOBS_CONCURRENCY": "20"}
    with stack(tmp_path, workers=3, env=env) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


class Crowd:
    """Jobs that run at the same time, each with a reader."""

    def __init__(self, live: Service, messages: Sequence[str]) -> None:
        self._live = live
        self._messages = messages
        self.ids: list[str] = []
        self._readers: list[asyncio.Task[Watched]] = []

    async def start(self) -> None:
        """Return when all of them stream."""
        self.ids = await asyncio.gather(*(self._live.submit(message) for message in self._messages))
        self._readers = [asyncio.create_task(self._live.watched(job_id)) for job_id in self.ids]
        sim = self._live.stack.simulator
        await asyncio.gather(*(sim.wait(message, tokens=2, timeout=60) for message in self._messages))

    async def ended(self) -> Sequence[Job]:
        """All are complete, and nobody has read anything twice or lost a character."""
        async with asyncio.timeout(120):
            watched = await asyncio.gather(*self._readers)
        jobs = [await self._live.jobs.queries.get(job_id) for job_id in self.ids]
        for message, reader, job in zip(self._messages, watched, jobs, strict=True):
            assert (job.status, reader.ends) == (JobStatus.COMPLETED, [JobStatus.COMPLETED])
            assert (reader.resets, reader.texts[Channel.CONTENT]) == (0, job.content)
            assert job.content == self._live.stack.simulator.answer(message)["text"]
        return jobs


def outcomes(jobs: Sequence[Job]) -> list[str | None]:
    return [attempt.outcome for job in jobs for attempt in job.attempts]


def gaps(job: Job) -> list[float]:
    """Seconds between the end of each attempt and the start of the next."""
    pairs = zip(job.attempts, job.attempts[1:], strict=False)
    return [(later.started_at - before.ended_at).total_seconds() for before, later in pairs if before.ended_at]


async def test_a_rolling_restart(machine: Stack, live: Service) -> None:
    """SIGTERM to one worker after the other under thirty streams: each goes on elsewhere, within two seconds."""
    crowd = Crowd(live, [prompt(f"rolling {n}", tokens=500, tokens_per_second=30) for n in range(JOBS)])
    await crowd.start()
    for process in machine.workers:
        assert await asyncio.to_thread(process.stop, timeout=30) == 0
        process.start()
    jobs = await crowd.ended()
    assert set(outcomes(jobs)) == {"handed_over", "finished"}
    assert outcomes(jobs).count("handed_over") >= JOBS / 3
    waits = sorted(gap for job in jobs for gap in gaps(job))
    assert waits[-1] < 2 + NOISE, f"median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s"


@pytest.mark.parametrize("heartbeat", [1.0])
async def test_ten_kills_of_one_job(machine: Stack, live: Service, heartbeat: float) -> None:
    """kill -9 of whoever has it, again and again: the tenth takeover comes as soon as the first."""
    message = prompt("ten kills", tokens=150, tokens_per_second=20, first_token_seconds=0.2, hold=3)
    crowd = Crowd(live, [message])
    await crowd.start()
    (job_id,) = crowd.ids
    killed: list[datetime] = []
    for kill in range(10):
        await machine.simulator.wait(message, requests=kill + 1, tokens=3, timeout=30)
        victim = await holder(live, job_id)
        for other in machine.workers:  # else there may be nobody who could take over: a start takes its time
            if other is not victim:
                await asyncio.to_thread(other.wait_until_ready)
        victim.kill()
        killed.append(datetime.now(UTC))
        victim.start(wait=False)
    machine.simulator.release(message)
    (job,) = await crowd.ended()
    assert outcomes([job]) == ["lost"] * 10 + ["finished"]
    took = [(later.started_at - at).total_seconds() for at, later in zip(killed, job.attempts[1:], strict=True)]
    assert sorted(took)[-2] < heartbeat + 2 + NOISE, took  # one may meet a moment in which the machine stands still
    assert max(took) < heartbeat + 2 + 4 * NOISE, took


async def holder(live: Service, job_id: str) -> Process:
    """The worker that runs a job's activity; the SDK calls it pid@host."""
    described = await live.run(job_id).describe()
    (pending,) = described.raw_description.pending_activities
    pid = int(pending.last_worker_identity.split("@")[0])
    return next(process for process in live.stack.workers if process.pid == pid)


async def test_a_frozen_worker(machine: Stack, live: Service) -> None:
    """SIGSTOP: its jobs end elsewhere; SIGCONT changes nothing.

    It may swallow what is sent to its open polls: one activity for a heartbeat timeout, two steps of runs for theirs.
    """
    crowd = Crowd(live, [prompt(f"frozen {n}", tokens=60, tokens_per_second=30) for n in range(12)])
    await crowd.start()
    frozen = machine.workers[0]
    frozen.freeze()
    began = time.monotonic()
    jobs = await crowd.ended()
    took = time.monotonic() - began
    frozen.thaw()
    lost = outcomes(jobs).count("lost")
    assert lost > 0
    assert await asyncio.to_thread(wait_until, lambda: frozen.output().count("attempt ended") >= lost, timeout=30)
    for job in jobs:
        assert await live.jobs.queries.get(job.job_id) == job
    assert set(outcomes(jobs)) <= {"lost", "finished"}
    assert took < 2 * HEARTBEAT + 2 * TASK_TIMEOUT.total_seconds() + NOISE


async def test_two_activities_of_one_job(sqlite: Database) -> None:
    """Started by hand, as by a Temporal that has lost count: the later one has the job, the other stops at its next
    write and changes nothing."""
    gates = [Gate(), Gate()]
    model = ScriptedModel(*([*text("Hel"), gate, *text("lo"), STOP] for gate in gates))
    store = make_store(sqlite)
    job_id = await accepted(store)
    async with TranscriptWriter(sqlite).running() as transcript:
        completer = Completer(attempts=store.attempts, transcript=transcript, model=model)
        activities = CompletionActivities(completer=completer)
        early = asyncio.create_task(by_hand(activities, job_id, scheduled=1))
        await gates[0].reached()
        late = asyncio.create_task(by_hand(activities, job_id, scheduled=2))
        await gates[1].reached()
        gates[0].open()
        with pytest.raises(ApplicationError) as stopped:
            await early
        gates[1].open()
        summary = await late
    job = await store.queries.get(job_id)
    assert (stopped.value.type, stopped.value.non_retryable) == (FenceLost.code, True)
    assert (summary.position, job.content, job.epoch) == (5, "Hello", 1)
    assert (outcomes([job]), job.finish_reason) == (["taken_over", None], "stop")  # the seal closes the ledger
    assert model.open_streams == 0


async def by_hand(activities: CompletionActivities, job_id: str, *, scheduled: int) -> CompletionSummary:
    """The activity, scheduled at that second."""
    environment = ActivityEnvironment()
    at = datetime.fromtimestamp(scheduled, UTC)
    environment.info = replace(environment.info, current_attempt_scheduled_time=at)
    return await environment.run(activities.complete_chat, JobRef(job_id=job_id))
