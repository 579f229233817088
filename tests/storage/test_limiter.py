"""The lane limiter: strict over processes, fair between tenants, paused by the model, changed while running."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from domain.timings import Timings
from domain.values import Claimant
from storage.engine.database import Database
from storage.rate_limits.breaker import SECOND
from storage.rate_limits.limiter import BOOKED_SECONDS, HORIZON_SECONDS, Limiter
from tests.support.factories import expected_start
from tests.support.stack import ROOT

LIMIT = 10


@pytest.fixture
def limiter(database: Database) -> Limiter:
    return Limiter(database, per_second=LIMIT)


def asker(name: str, *, tenant: str = "t", priority: int = 3, since: int = 0) -> Claimant:
    return Claimant(name, tenant, priority, since)


def most_in_a_second(starts: dict[int, int]) -> int:
    """The fullest of all windows of one second, wherever they begin. Values are how late a start was.

    A window that begins with a late start is shorter by that: the report of it moves only the turns that nobody has
    yet, and on a busy machine it may come after them.
    """
    return max(sum(first <= start < first + SECOND - late for start in starts) for first, late in starts.items())


@pytest.mark.parametrize("processes", [3])
def test_no_second_sees_more_starts_than_the_limit(database_url: str, processes: int) -> None:
    """Three processes that take what they can get; not at half the limit either."""
    per_process = 20
    command = [sys.executable, "-m", "tests.support.limiter_process", database_url, str(LIMIT), str(per_process)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout
            assert process.stdout.readline() == "up\n"
        for process in running:  # all at once
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        lines = [line for process in running for line in process.communicate(timeout=60)[0].splitlines()]
        starts = {int(started): int(late) for started, late in map(str.split, lines)}
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert len(starts) == processes * per_process
    assert most_in_a_second(starts) <= LIMIT
    steady = [start for start in sorted(starts) if start >= min(starts) + SECOND]  # when all of them have asked
    took = (steady[-1] - steady[0]) / SECOND
    assert (len(steady) - 1) / took > LIMIT * 0.5, f"{len(steady)} starts took {took:.1f} s"


async def test_who_waits_long_gets_a_place_and_comes_back(limiter: Limiter) -> None:
    granted = 0
    while (await limiter.reserve("a", asker(f"g{granted}", since=granted))).granted:
        granted += 1
    assert granted >= BOOKED_SECONDS * LIMIT
    await limiter.throttle("a", 2 * HORIZON_SECONDS)  # however slow this machine is
    waiting = [await limiter.reserve("a", asker(f"w{n}", since=100 + n)) for n in range(3)]
    assert not any(turn.granted for turn in waiting)
    places = [turn.position for turn in waiting]
    assert places == sorted(places)
    assert all(turn.seconds > HORIZON_SECONDS / 2 for turn in waiting)
    queued = await limiter.queue_places([f"w{n}" for n in range(3)])
    assert [queued[f"w{n}"].position for n in range(3)] == places
    starts = [expected_start(queued[f"w{n}"]) for n in range(3)]
    assert starts == sorted(starts)
    assert not await limiter.queue_places({"g0"})


async def test_a_place_is_kept_however_often_one_asks(limiter: Limiter) -> None:
    await limiter.throttle("a", 60)
    for name in ("first", "second", "first", "first"):
        turn = await limiter.reserve("a", asker(name, since=0 if name == "first" else 1))
    assert turn.position == 1


async def test_tenants_take_turns_and_urgent_ones_go_first(limiter: Limiter) -> None:
    await limiter.throttle("a", 60)
    for number in range(5):
        await limiter.reserve("a", asker(f"many-{number}", tenant="many", since=number))
    await limiter.reserve("a", asker("few", tenant="few", since=100))
    await limiter.reserve("a", asker("urgent", tenant="many", priority=1, since=200))
    names = ["urgent", "many-0", "few", "many-1", "many-2", "many-3", "many-4"]
    places = await limiter.queue_places(names)
    assert [places[name].position for name in names] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_refusal_pauses_its_lane_and_no_other(limiter: Limiter) -> None:
    assert await limiter.throttle("a", 7) == pytest.approx(7, abs=0.1)
    turn = await limiter.reserve("a", asker("x"))
    assert not turn.granted
    assert 5 < turn.seconds <= 7
    assert (await limiter.reserve("b", asker("y"))).granted


async def test_refusals_without_a_time_pause_longer_each_time_until_one_is_served(limiter: Limiter) -> None:
    pauses = [await limiter.throttle("a", None) for _ in range(4)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(8, abs=0.5)
    await limiter.record_success("b")
    await limiter.record_success("a")
    assert await limiter.throttle("fresh", None) == pytest.approx(1, abs=0.1)
    (lane,) = [lane for lane in await limiter.lanes() if lane.name == "a"]
    assert lane.paused_until is not None, "a call that was under way does not end the pause"


async def test_the_models_own_limit_is_kept(limiter: Limiter) -> None:
    await limiter.record_success("a", per_minute=60)
    assert (await limiter.reserve("a", asker("x"))).granted
    second = await limiter.reserve("a", asker("y"))
    assert not second.granted
    (lane,) = await limiter.lanes()
    assert (lane.per_second, lane.seen) == (1, 1)
    await limiter.record_success("a", per_minute=6_000)
    assert (await limiter.lanes())[0].per_second == LIMIT


async def test_a_limit_is_changed_while_others_run(limiter: Limiter, database: Database) -> None:
    other = Limiter(database, per_second=LIMIT)
    await other.set_limit("a", 0.1)
    assert (await limiter.reserve("a", asker("x"))).granted
    turn = await limiter.reserve("a", asker("y"))
    assert not turn.granted
    assert turn.seconds > 9
    await other.set_limit("a", None)
    assert (await limiter.lanes())[0].per_second == LIMIT


async def test_who_never_comes_back_does_not_hold_up_the_others(limiter: Limiter, database: Database) -> None:
    await limiter.throttle("a", 2)
    await limiter.reserve("a", asker("lost", since=0))
    assert (await limiter.reserve("a", asker("next", since=1))).position == 2
    later = Limiter(database, per_second=LIMIT, timings=Timings(lost_waiter_seconds=-10))
    assert (await later.reserve("a", asker("next", since=1))).position in (0, 1)


async def test_a_cancelled_job_leaves_the_queue(limiter: Limiter) -> None:
    await limiter.throttle("a", 60)
    await asyncio.gather(*(limiter.reserve("a", asker(name, since=n)) for n, name in enumerate(("x", "y"))))
    await limiter.leave("x")
    assert not await limiter.queue_places({"x"})
    assert (await limiter.reserve("a", asker("y", since=1))).position == 1
