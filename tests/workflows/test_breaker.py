"""A model that is down: everybody waits at no cost, one job tries it, and an answer frees all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from temporalio.client import Client

from chatjobs.contracts import JobStatus
from domain.errors import UpstreamInterrupted
from domain.timings import Timings
from domain.values import Claimant
from storage.engine.database import Database
from storage.engine.schema import attempts, lanes, micros, now
from storage.rate_limits.limiter import Limiter
from tests.support.fakes import HELLO, ScriptedModel
from tests.support.house import House, house

LANE = "a"


@pytest.fixture
def limiter(database: Database) -> Limiter:
    return Limiter(database, per_second=1000)


def asker(name: str, since: int = 0) -> Claimant:
    return Claimant(name, "t", 3, since)


async def fail(limiter: Limiter, job_id: str, number: int, retry_after: float = 0.0) -> float | None:
    outage = await limiter.record_failure(LANE, job_id, number, "it is down", retry_after)
    return outage.seconds if outage else None


async def wait_over(database: Database) -> None:
    """The breaker's wait ends now."""
    async with database.write() as connection:
        await connection.execute(update(lanes).values(open_until=micros(now())))


async def down(limiter: Limiter) -> None:
    assert [await fail(limiter, f"job-{number}", 1) for number in range(3)][:2] == [None, None]


async def test_three_failures_in_a_row_open_it_and_an_answer_between_them_does_not(limiter: Limiter) -> None:
    await fail(limiter, "x", 1)
    await fail(limiter, "x", 2)
    await limiter.record_answer(LANE, "y")
    assert await fail(limiter, "x", 3) is None
    assert (await limiter.reserve(LANE, asker("z"))).granted
    await fail(limiter, "x", 4)
    assert await fail(limiter, "x", 5) == pytest.approx(Timings().first_outage_wait_seconds, abs=0.1)
    turn = await limiter.reserve(LANE, asker("z"))
    assert not turn.granted
    assert (await limiter.queue_places({"z"}))["z"].reason == "model_down"
    (lane,) = await limiter.lanes()
    assert (lane.down, lane.last_error) == (True, "it is down")


async def test_one_job_probes_and_the_waits_grow_to_a_minute(limiter: Limiter, database: Database) -> None:
    await down(limiter)
    waits = []
    for number in range(7):
        await wait_over(database)
        turn = await limiter.reserve(LANE, asker(f"probe-{number}"))
        assert (turn.granted, turn.probe) == (True, True)
        assert not (await limiter.reserve(LANE, asker("other"))).granted, "one at a time"
        seconds = await fail(limiter, f"probe-{number}", 1)
        assert seconds is not None
        waits.append(round(seconds))
    assert waits == [2, 4, 8, 16, 32, 60, 60]


async def test_the_job_whose_probe_failed_lets_another_one_try(limiter: Limiter, database: Database) -> None:
    """Else one bad prompt would keep everybody waiting."""
    for number in range(3):
        await fail(limiter, "bad", number + 1, 30)  # so long that nobody would come by himself
    for name in ("bad", "good"):
        await limiter.reserve(LANE, asker(name, since=0 if name == "bad" else 1))
    await wait_over(database)
    assert not (await limiter.reserve(LANE, asker("bad"))).granted
    assert await limiter.take_due() == ["good"]
    turn = await limiter.reserve(LANE, asker("good", since=1))
    assert (turn.granted, turn.probe) == (True, True)
    await limiter.record_answer(LANE, "good")
    assert (await limiter.reserve(LANE, asker("bad"))).granted


async def test_a_failure_is_excused_unless_it_was_the_jobs_own(limiter: Limiter, database: Database) -> None:
    async def excused() -> dict[str, bool]:
        async with database.read() as connection:
            rows = await connection.execute(select(attempts.c.job_id, attempts.c.excused))
            return {str(job): bool(value) for job, value in rows}

    async with database.write() as connection:
        for job_id in ("x", "y"):
            row = {"job_id": job_id, "number": 1, "started_at": 1, "estimated": False, "tokens_before": 0}
            await connection.execute(attempts.insert(), row)
    for number in range(3):
        await fail(limiter, "x", number + 1)
    assert await excused() == {"x": True, "y": False}
    await limiter.record_answer(LANE, "y")
    assert await excused() == {"x": False, "y": False}, "another job's call was answered"
    for job_id in ("x", "y", "x"):
        await fail(limiter, job_id, 1)
    await limiter.record_answer(LANE, "z")
    assert await excused() == {"x": True, "y": True}, "two jobs failed in a row: it was the model"


async def test_a_probe_that_tells_nothing_is_followed_by_another(limiter: Limiter, database: Database) -> None:
    await down(limiter)
    await wait_over(database)
    assert (await limiter.reserve(LANE, asker("p"))).probe
    assert not (await limiter.reserve(LANE, asker("q"))).granted
    await limiter.release_probe(LANE, "p")
    assert (await limiter.reserve(LANE, asker("q"))).probe


async def test_a_wait_that_the_model_asks_for_is_kept(limiter: Limiter) -> None:
    await down(limiter)
    await limiter.record_answer(LANE, "x")
    await fail(limiter, "x", 1)
    await fail(limiter, "x", 2)
    assert await fail(limiter, "x", 3, 30) == pytest.approx(30, abs=0.1)
    (lane,) = await limiter.lanes()
    assert lane.probes_at is not None
    assert lane.probes_at > now() + timedelta(seconds=25)


# ------------------------------------------------------------------------------------------- the whole service

DOWN = UpstreamInterrupted("Mistral is down", code="upstream_unavailable", http_status=503)


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    timings = Timings(first_outage_wait_seconds=0.05, longest_outage_wait_seconds=0.05)
    async with house(client, sqlite, model=ScriptedModel([DOWN]), timings=timings) as running:
        yield running


async def test_a_job_that_is_alone_outlives_an_outage(here: House) -> None:
    """More failures than a job may have, and then an answer."""
    here.model.scripts = [[DOWN]] * 7 + [HELLO]
    job = await here.ended(await here.submit())
    assert job.status is JobStatus.COMPLETED
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_unavailable"] * 7 + ["finished"]


async def test_an_outage_does_not_outlive_the_jobs_own_time(here: House) -> None:
    """limits.totalSeconds ends it, and the last cause is told."""
    job = await here.ended(await here.submit(limits={"totalSeconds": 3}))
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.FAILED, "total_timeout")
    assert "Mistral is down" in job.error.message
    assert len(job.attempts) >= 3


async def test_all_jobs_wait_and_all_go_on(here: House) -> None:
    """Ten jobs, and an outage that ends after twelve calls: none fails, and while it lasts few call."""
    here.model.scripts = [[DOWN]] * 12 + [HELLO]
    ids = [await here.submit() for _ in range(10)]
    jobs = await asyncio.gather(*(here.ended(job_id) for job_id in ids))
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert here.model.calls == 12 + 10


async def test_a_job_that_says_how_often_it_tries_is_taken_at_its_word(here: House) -> None:
    """``retry``: its own calls end it as far as they came before everybody waited."""
    job = await here.ended(await here.submit(retry={"attempts": 3}))
    assert job.error is not None
    assert (job.status, job.error.code, len(job.attempts)) == (JobStatus.FAILED, "upstream_unavailable", 3)
