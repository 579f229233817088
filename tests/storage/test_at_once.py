"""A limit of calls at once: strict over all workers, in order, and nothing that is dead holds a place."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from domain.outcomes import AttemptOutcome
from domain.timings import Timings
from domain.values import AttemptEnd, Claim
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from tests.support.factories import accepted, failing, fences
from tests.support.factories import claimed as claimed_without_limit

FAST = 1_000
LANE = "a"
LIMIT = 2


@pytest.fixture
async def limiter(database: Database) -> Limiter:
    made = Limiter(database, per_second=FAST)
    await made.set_at_once(LANE, LIMIT)
    return made


async def claimed(store: JobStore, limiter: Limiter, job_id: str) -> Claim:
    """A claim by the next attempt, with a reservation in the lane."""
    number = next(fences)
    reserve = limiter.reserver(lambda _: LANE)
    return await store.attempts.claim(job_id, fence=number, claimant=f"c-{number}", run_id="run-1", reserve=reserve)


async def jobs(store: JobStore, count: int) -> list[str]:
    return [await accepted(store) for _ in range(count)]


async def ended(store: JobStore, claim: Claim, outcome: str = AttemptOutcome.HANDED_OVER) -> None:
    await store.attempts.end(claim.job_id, claim.attempt, claim.fence, AttemptEnd(outcome))


async def running(limiter: Limiter) -> int:
    (lane,) = await limiter.lanes()
    return lane.running


async def test_no_more_run_than_may_and_a_place_that_is_freed_wakes_the_next(store: JobStore, limiter: Limiter) -> None:
    ids = await jobs(store, 5)
    claims = [await claimed(store, limiter, job_id) for job_id in ids]
    assert [claim.outcome for claim in claims] == ["taken"] * 2 + ["waiting"] * 3
    assert await running(limiter) == LIMIT
    places = await limiter.queue_places(ids)
    assert [(place.position, place.reason, place.expected_start_at) for place in places.values()] == [
        (1, "at_once", None),
        (2, "at_once", None),
        (3, "at_once", None),
    ]
    assert all(claim.turn and claim.turn.seconds > 60 and not claim.turn.near for claim in claims[2:]), "nobody polls"
    assert await limiter.take_due() == []
    await ended(store, claims[0])
    assert await limiter.take_due() == [ids[2]]
    assert await limiter.take_due() == [], "it is on its way"
    assert (await claimed(store, limiter, ids[2])).outcome == "taken"
    await store.seals.seal(failing(ids[1]), run_id="run-1")
    await store.seals.seal(failing(ids[2]), run_id="run-1")
    assert set(await limiter.take_due()) == {ids[3], ids[4]}


async def test_many_claims_at_the_same_moment(store: JobStore, limiter: Limiter, database: Database) -> None:
    other = Limiter(database, per_second=FAST)
    ids = await jobs(store, 12)
    claims = await asyncio.gather(
        *(claimed(store, (limiter, other)[number % 2], job_id) for number, job_id in enumerate(ids))
    )
    assert [claim.outcome for claim in claims].count("taken") == LIMIT
    assert await running(limiter) == LIMIT


async def test_a_place_goes_to_the_first_in_the_queue_not_to_who_comes_just_then(
    store: JobStore, limiter: Limiter
) -> None:
    first, second, waiting, late = await jobs(store, 4)
    claims = [await claimed(store, limiter, job_id) for job_id in (first, second, waiting)]
    await ended(store, claims[0])
    assert (await claimed(store, limiter, late)).outcome == "waiting", "although there is a place"
    urgent = await accepted(store, priority=1)
    assert (await claimed(store, limiter, urgent)).outcome == "taken"
    await ended(store, claims[1])
    assert (await claimed(store, limiter, waiting)).outcome == "taken"


async def test_a_dead_workers_calls_stop_counting(store: JobStore, database: Database) -> None:
    """Without anybody who cleans up after it; one that comes back counts again."""
    short = Timings(worker_lease_seconds=3)
    dead, alive = (Limiter(database, per_second=FAST, timings=short) for _ in range(2))
    await dead.set_at_once(LANE, LIMIT)
    ids = await jobs(store, 3)
    assert [(await claimed(store, dead, job_id)).outcome for job_id in ids[:2]] == ["taken", "taken"]
    assert (await claimed(store, alive, ids[2])).outcome == "waiting"
    assert await running(alive) == LIMIT
    await asyncio.sleep(3.1)
    assert await running(alive) == 0
    assert (await claimed(store, alive, ids[2])).outcome == "taken"
    await dead.lease.renew()
    assert await running(alive) == LIMIT + 1, "it stood still, and its calls go on"


async def test_a_job_does_not_wait_for_its_own_last_attempt(store: JobStore, limiter: Limiter) -> None:
    """Its worker died, and another one takes it over before the lease is over."""
    ids = await jobs(store, 2)
    for job_id in ids:
        assert (await claimed(store, limiter, job_id)).outcome == "taken"
    assert (await claimed(store, limiter, ids[0])).outcome == "taken"
    assert await running(limiter) == LIMIT


async def test_the_limit_changes_while_calls_run(store: JobStore, limiter: Limiter) -> None:
    """Calls count that began before there was a limit."""
    await limiter.set_at_once(LANE, None)
    ids = await jobs(store, 6)
    claims = [await claimed(store, limiter, job_id) for job_id in ids[:3]]
    await limiter.lease.renew()
    await limiter.set_at_once(LANE, LIMIT)
    assert await running(limiter) == 3
    assert (await claimed(store, limiter, ids[3])).outcome == "waiting"
    await ended(store, claims[0])
    assert await limiter.take_due() == []
    await limiter.set_at_once(LANE, 4)
    assert await limiter.take_due() == [ids[3]]
    await limiter.set_at_once(LANE, None)
    assert (await claimed(store, limiter, ids[3])).outcome == "taken"


async def test_calls_of_other_lanes_and_without_a_limiter_do_not_count(store: JobStore, limiter: Limiter) -> None:
    other, plain, mine = await jobs(store, 3)
    await claimed_without_limit(store, plain)
    reserve = limiter.reserver(lambda _: "b")
    await store.attempts.claim(other, fence=next(fences), claimant="b", run_id="run-1", reserve=reserve)
    assert (await claimed(store, limiter, mine)).outcome == "taken"
    assert [(lane.name, lane.running) for lane in await limiter.lanes()] == [("a", 1), ("b", 1)]


async def test_a_job_of_a_batch_looks_for_a_place_from_its_worker(store: JobStore, limiter: Limiter) -> None:
    """Nobody could wake it: it asks again within a moment, and holds its place in the order meanwhile."""
    for job_id in await jobs(store, LIMIT):
        await claimed(store, limiter, job_id)
    claim = await claimed(store, limiter, await accepted(store))
    assert claim.asker is not None
    turn = await limiter.reserve(LANE, replace(claim.asker, stays=True))
    assert not turn.granted
    assert turn.seconds < 1
    assert await limiter.take_due() == []
