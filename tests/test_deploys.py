"""Workers that are stopped, killed and frozen under running jobs: somebody else goes on, soon, and nobody reads twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from intake import TASK_TIMEOUT
from tests.service import Service, Watched, service
from tests.simulator_process import prompt
from tests.stack import Process, Stack, stack, wait_until

HEARTBEAT = 2.0
JOBS = 30
NOISE = 3.0
"""Seconds that a busy machine may add to what is promised."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    """Three workers, of which two have room for all jobs of a test."""
    env = {"CHATJOBS_HEARTBEAT_SECONDS": str(HEARTBEAT), "CHATJOBS_CONCURRENCY": "20"}
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
        self._ids: list[str] = []
        self._readers: list[asyncio.Task[Watched]] = []

    async def start(self) -> None:
        """Return when all of them stream."""
        self._ids = await asyncio.gather(*(self._live.submit(message) for message in self._messages))
        self._readers = [asyncio.create_task(self._live.watched(job_id)) for job_id in self._ids]
        sim = self._live.stack.simulator
        await asyncio.gather(*(sim.wait(message, tokens=2, timeout=60) for message in self._messages))

    async def ended(self) -> list[Job]:
        """All are complete, and nobody has read anything twice or lost a character."""
        async with asyncio.timeout(120):
            watched = await asyncio.gather(*self._readers)
        jobs = [await self._live.jobs.get(job_id) for job_id in self._ids]
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
    crowd = Crowd(live, [prompt(f"rolling {n}", tokens=240, tokens_per_second=30) for n in range(JOBS)])
    await crowd.start()
    for process in machine.workers:
        assert await asyncio.to_thread(process.stop, timeout=30) == 0
        process.start()
    jobs = await crowd.ended()
    assert set(outcomes(jobs)) == {"handed_over", "finished"}
    assert outcomes(jobs).count("handed_over") >= JOBS / 3
    waits = sorted(gap for job in jobs for gap in gaps(job))
    print(f"{len(waits)} handovers: median {waits[len(waits) // 2]:.3f} s, longest {waits[-1]:.3f} s")
    assert waits[-1] < 2 + NOISE


async def test_ten_kills_of_one_job(machine: Stack, live: Service) -> None:
    """kill -9 of whoever has it, again and again: the tenth takeover comes as soon as the first."""
    message = prompt("ten kills", tokens=150, tokens_per_second=20, first_token_seconds=0.2)
    crowd = Crowd(live, [message])
    await crowd.start()
    (job_id,) = crowd._ids
    killed: list[datetime] = []
    for kill in range(10):
        await machine.simulator.wait(message, requests=kill + 1, tokens=1, timeout=30)
        victim = await holder(live, job_id)
        victim.kill()
        killed.append(datetime.now(UTC))
        victim.start(wait=False)
    (job,) = await crowd.ended()
    assert outcomes([job]) == ["lost"] * 10 + ["finished"]
    took = [(later.started_at - at).total_seconds() for at, later in zip(killed, job.attempts[1:], strict=True)]
    print("takeovers:", *(f"{seconds:.2f}" for seconds in took))
    assert max(took) < HEARTBEAT + 2 + NOISE


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
    print(f"all ended {took:.1f} s after the freeze; attempts {[len(job.attempts) for job in jobs]}")
    frozen.thaw()
    lost = outcomes(jobs).count("lost")
    assert lost > 0
    assert await asyncio.to_thread(wait_until, lambda: frozen.output().count("attempt ended") >= lost, timeout=30)
    for job in jobs:
        assert await live.jobs.get(job.job_id) == job
    assert set(outcomes(jobs)) <= {"lost", "finished"}
    assert took < 2 * HEARTBEAT + 2 * TASK_TIMEOUT.total_seconds() + NOISE
