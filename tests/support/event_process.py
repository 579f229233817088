"""Processes that make events and number them, and may be killed; started by tests/storage/test_events.py."""

from __future__ import annotations

import asyncio

from chatjobs.contracts import JobError, JobStatus
from domain.payloads import Ending
from domain.timings import Timings
from storage.engine.database import Database
from storage.events.sequencer import Sequencer
from storage.jobs.store import JobStore
from tests.support.factories import make_job

AT_ONCE = 8
"""Jobs that one process has under way at the same time: their transactions overlap."""
PATIENT = Timings(database_busy_seconds=30, database_pool_seconds=30, database_connect_seconds=30)
"""Others write all the time, and the machine may be busy."""


def make_jobs(url: str, name: str, count: int) -> None:
    """Accept, claim and fail so many jobs; their ids begin with the name."""

    async def one(jobs: JobStore, number: int, free: asyncio.Semaphore) -> None:
        async with free:
            job_id = f"{name}-{number}"
            await jobs.acceptance.accept(make_job(job_id=job_id))
            await jobs.attempts.claim(job_id, fence=1, claimant=name, run_id="run")
            error = JobError(code="upstream_cut", message="It failed")
            await jobs.seals.seal(Ending(job_id=job_id, status=JobStatus.FAILED, error=error), run_id="run")

    async def making() -> None:
        database, free = await Database.open(url, timings=PATIENT), asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(one(JobStore(database), number, free) for number in range(count)))
        await database.close()

    asyncio.run(making())


def number_events(url: str) -> None:
    """Number events almost without a rest, for ever."""

    async def numbering() -> None:
        await Sequencer(await Database.open(url, timings=PATIENT), look_seconds=0.002).run()

    asyncio.run(numbering())
