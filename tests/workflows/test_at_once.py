"""Limits of calls at once and of tokens per minute: two worker processes, and a simulator that logs its calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatjobs.contracts import JobStatus
from domain.timings import Timings
from storage.rate_limits.limiter import Limiter
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

AT_ONCE = 3
CALL_SECONDS = 0.5
SHORT: dict[str, Any] = {"tokens": 25, "tokens_per_second": 50}
LONG: dict[str, Any] = {"tokens": 3_000, "tokens_per_second": 50}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("at-once"), workers=2, env={"CHATJOBS_CONCURRENCY": "20"}) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


async def limited(live: Service, model: str) -> tuple[Limiter, str]:
    """A lane with the limit, and its name; a job makes it."""
    limiter = Limiter(live.database, per_second=1_000)
    before = {lane.name for lane in await limiter.lanes()}
    await live.ended(await live.submit(prompt(tokens=2), model=model))
    (name,) = {lane.name for lane in await limiter.lanes()} - before
    await limiter.set_at_once(name, AT_ONCE)
    return limiter, name


def calls(live: Service, text: str) -> list[dict[str, Any]]:
    return list(live.stack.simulator.requests(text))


def most_at_once(found: Sequence[dict[str, Any]]) -> int:
    """The most calls that ran at the same moment."""
    changes = [(entry["time"], 1) for entry in found] + [(entry["ended"] or time.time(), -1) for entry in found]
    counts: Iterator[int] = itertools.accumulate(change for _, change in sorted(changes))
    return max(counts)


async def test_no_more_calls_run_than_may_and_places_are_not_left_empty(live: Service) -> None:
    """In order, each once; nobody polls: a job that waits is woken once for its place."""
    model, count = "ministral-8b-latest", 24
    limiter, name = await limited(live, model)
    text = prompt("many", **SHORT)
    began = time.monotonic()
    ids = [await live.submit(text, model=model) for _ in range(count)]
    jobs = [await live.ended(job_id) for job_id in ids]
    took = time.monotonic() - began
    assert {(job.status, len(job.attempts)) for job in jobs} == {(JobStatus.COMPLETED, 1)}
    found = calls(live, text)
    assert len(found) == count
    assert most_at_once(found) == AT_ONCE
    assert took < 2.5 * count / AT_ONCE * CALL_SECONDS, took
    (lane,) = [lane for lane in await limiter.lanes() if lane.name == name]
    assert (lane.running, lane.waiting) == (0, 0)


async def test_a_killed_workers_places_are_free_again(live: Service) -> None:
    """Its calls are taken over, and those that wait are not stuck behind them."""
    model = "ministral-3b-latest"
    await limited(live, model)
    running, behind = prompt("running", tokens=100, tokens_per_second=20), prompt("behind", **SHORT)
    ids = [await live.submit(running, model=model) for _ in range(AT_ONCE)]
    await live.stack.simulator.wait(running, requests=AT_ONCE, tokens=2)
    ids += [await live.submit(behind, model=model) for _ in range(4)]
    for worker in live.stack.workers:
        worker.restart()
    jobs = [await live.ended(job_id) for job_id in ids]
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert most_at_once([*calls(live, running), *calls(live, behind)]) <= AT_ONCE


async def test_a_worker_that_stands_still_holds_its_places_for_its_lease_only(tmp_path: Path) -> None:
    """Long before Temporal gives its jobs to another one; each of its places is taken by one of those."""
    env = {"CHATJOBS_CONCURRENCY": str(AT_ONCE), "CHATJOBS_HEARTBEAT_SECONDS": "60"}
    with stack(tmp_path, env=env) as place:
        async with service(place) as live:
            model = "mistral-large-latest"
            await limited(live, model)
            running, behind = prompt("frozen", **LONG), prompt("behind it", **SHORT)
            for _ in range(AT_ONCE):
                await live.submit(running, model=model)
            await place.simulator.wait(running, requests=AT_ONCE, tokens=2)
            place.add_worker()
            place.workers[0].freeze()
            since = time.time()
            for job_id in [await live.submit(behind, model=model) for _ in range(2)]:
                assert (await live.ended(job_id)).status is JobStatus.COMPLETED
            starts = [entry["time"] - since for entry in calls(live, behind)]
            lease = Timings().worker_lease_seconds
            assert lease - Timings().lease_renewal_seconds - 1 < min(starts) < max(starts) < lease + 5, starts


async def test_a_limit_that_is_lowered_holds_for_all_workers_at_once(live: Service) -> None:
    model = "open-mistral-nemo"
    limiter, name = await limited(live, model)
    await limiter.set_at_once(name, None)
    text = prompt("lowered", tokens=50, tokens_per_second=25)
    first = [await live.submit(text, model=model) for _ in range(6)]
    await live.stack.simulator.wait(text, requests=6, tokens=1)
    await limiter.set_at_once(name, 2)
    later = [await live.submit(text, model=model) for _ in range(4)]
    await asyncio.gather(*(live.ended(job_id) for job_id in (*first, *later)))
    found = sorted(calls(live, text), key=lambda entry: float(entry["time"]))
    ends = sorted(entry["ended"] for entry in found[:6])
    assert found[6]["time"] >= ends[4], "the first of them waits until one call runs"
    assert most_at_once(found[6:]) <= 2


async def test_tokens_are_reserved_from_an_estimate_and_settled_with_the_usage(live: Service) -> None:
    """The estimates of two calls fit into the budget, and the usage of all: nobody waits for a minute."""
    model = "codestral-latest"
    limiter, name = await limited(live, model)
    await limiter.set_limits(name, {"at_once": None, "tokens_per_minute": 1_500})
    text = prompt("settled", **SHORT, hold=1)
    began = time.monotonic()
    ids = [await live.submit(text, model=model, max_tokens=600) for _ in range(8)]
    await live.stack.simulator.wait(text, requests=2, tokens=1)
    live.stack.simulator.release(text)
    for job_id in ids:
        assert (await live.ended(job_id)).status is JobStatus.COMPLETED
    assert time.monotonic() - began < 30
    found = calls(live, text)
    assert (len(found), most_at_once(found)) == (len(ids), 2)
    (lane,) = [lane for lane in await limiter.lanes() if lane.name == name]
    assert lane.tokens_used is not None
    assert 8 * SHORT["tokens"] < lane.tokens_used < 1_500


async def test_who_waits_for_tokens_starts_as_soon_as_there_are_more(live: Service) -> None:
    model = "magistral-small-latest"
    limiter, name = await limited(live, model)
    await limiter.set_limits(name, {"at_once": None, "tokens_per_minute": 700})
    first, second = prompt("first", tokens=200, tokens_per_second=50), prompt("second", tokens=2)
    ids = [await live.submit(first, model=model, max_tokens=600)]
    await live.stack.simulator.wait(first, tokens=1)
    ids.append(await live.submit(second, model=model, max_tokens=600))
    async with asyncio.timeout(20):
        while not (place := (await limiter.queue_places([ids[1]])).get(ids[1])):  # noqa: ASYNC110 - another process asks
            await asyncio.sleep(0.05)
    assert place.reason == "rate_limit"
    raised = time.time()
    await limiter.set_limits(name, {"tokens_per_minute": 2_000})
    for job_id in ids:
        assert (await live.ended(job_id)).status is JobStatus.COMPLETED
    (call,) = calls(live, second)
    assert call["time"] - raised < 2
