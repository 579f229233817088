"""Pauses in the lane limiter: what they hold, what they let go on, and the order after them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from chatjobs.errors import PauseNotFound
from domain.values import Claimant, Reservation
from storage.engine.database import Database
from storage.rate_limits.limiter import Limiter
from storage.rate_limits.pauses import PauseStore

FAST = 1_000


@pytest.fixture
def limiter(database: Database) -> Limiter:
    return Limiter(database, per_second=FAST)


@pytest.fixture
def pauses(database: Database) -> PauseStore:
    return PauseStore(database)


def asker(name: str, tenant: str = "acme", *, since: int = 0) -> Claimant:
    return Claimant(name, tenant, 3, since)


@pytest.mark.parametrize(
    ("scope", "held"),
    [
        ({}, ["a/acme", "a/other", "b/acme", "b/other"]),
        ({"lane": "a"}, ["a/acme", "a/other"]),
        ({"tenant": "acme"}, ["a/acme", "b/acme"]),
        ({"lane": "a", "tenant": "acme"}, ["a/acme"]),
    ],
)
async def test_a_pause_holds_what_it_concerns(
    limiter: Limiter, pauses: PauseStore, scope: dict[str, str], held: list[str]
) -> None:
    pause = await pauses.pause(**scope, reason="the budget is spent")
    turns = {
        f"{lane}/{tenant}": await limiter.reserve(lane, asker(f"{lane}-{tenant}", tenant))
        for lane in "ab"
        for tenant in ("acme", "other")
    }
    assert [name for name, turn in turns.items() if not turn.granted] == held
    waiting = await limiter.queue_places([name.replace("/", "-") for name in turns])
    assert {(place.reason, place.expected_start_at) for place in waiting.values()} == {("paused", None)}
    assert len(waiting) == len(held)
    await pauses.resume(pause.pause_id)
    assert set(await limiter.take_due()) == set(waiting)
    for name in held:
        assert (await limiter.reserve(name[0], asker(name.replace("/", "-"), name[2:]))).granted


async def test_a_turn_that_was_granted_before_does_not_hold(limiter: Limiter, pauses: PauseStore) -> None:
    claimant = asker("granted")
    turn = await limiter.reserve("a", claimant)
    assert await limiter.still_holds(turn, claimant)
    pause = await pauses.pause(tenant="acme")
    assert not await limiter.still_holds(turn, claimant)
    assert await limiter.still_holds(turn, asker("granted", "other"))
    await pauses.resume(pause.pause_id)
    assert await limiter.still_holds(turn, claimant)


async def test_jobs_that_wait_already_are_held_and_are_woken_by_nobody(database: Database, pauses: PauseStore) -> None:
    slow = Limiter(database, per_second=0.5)
    ids = await waiting(slow, "a", "acme", 3)
    await pauses.pause(lane="a")
    places = await slow.queue_places(ids)
    assert [(places[one].position, places[one].reason) for one in ids] == [(1, "paused"), (2, "paused"), (3, "paused")]
    await Limiter(database, per_second=FAST).set_limit("a", FAST)
    assert await slow.take_due() == []


async def waiting(limiter: Limiter, lane: str, tenant: str, count: int) -> list[str]:
    """The ids of so many jobs that wait; others may have been granted a turn."""
    ids: list[str] = []
    while len(ids) < count:
        name = f"{tenant}-{len(ids)}"
        if not (await limiter.reserve(lane, asker(name, tenant, since=len(ids)))).granted:
            ids.append(name)
    return ids


async def test_a_paused_tenant_holds_up_nobody(database: Database, limiter: Limiter, pauses: PauseStore) -> None:
    await limiter.throttle("a", 60)
    held = await waiting(limiter, "a", "acme", 3)
    await pauses.pause(tenant="acme")
    (behind,) = await waiting(limiter, "a", "other", 1)
    places = await limiter.queue_places([*held, behind])
    assert (places[behind].position, places[behind].reason, places[held[0]].position) == (1, "paused", 1)
    assert places[behind].expected_start_at is not None, "it waits for the model alone"


async def test_after_its_pause_a_tenant_takes_turns_with_the_others(limiter: Limiter, pauses: PauseStore) -> None:
    """It does not make up for the rounds that it has missed."""
    await limiter.throttle("a", 0)
    await pauses.pause(tenant="acme", lane="a")
    held = await waiting(limiter, "a", "acme", 3)
    await started(limiter, "a", "other", 20)
    await limiter.throttle("a", 60)
    others = await waiting(limiter, "a", "other", 3)
    (pause,) = await pauses.list()
    await pauses.resume(pause.pause_id)
    places = await limiter.queue_places([*held, *others])
    order = sorted(places, key=lambda name: places[name].position)
    assert [name.split("-")[0] for name in order] in (["acme", "other"] * 3, ["other", "acme"] * 3), order


async def started(limiter: Limiter, lane: str, tenant: str, count: int) -> None:
    """So many calls of a tenant, each of which waits before it starts, so that its round passes."""
    for number in range(count):
        claimant = asker(f"{tenant}-start-{number}", tenant, since=number)
        while not (turn := await limiter.reserve(lane, claimant)).granted:  # noqa: ASYNC110 - its turn comes with time
            await asyncio.sleep(min(turn.seconds, 0.01))


async def test_what_two_pauses_hold_waits_for_both(limiter: Limiter, pauses: PauseStore) -> None:
    both = [await pauses.pause(), await pauses.pause(tenant="acme")]
    assert not (await limiter.reserve("a", asker("x"))).granted
    await pauses.resume(both[0].pause_id)
    assert await limiter.take_due() == []
    assert not (await limiter.reserve("a", asker("x"))).granted
    await pauses.resume(both[1].pause_id)
    assert await limiter.take_due() == ["x"]


async def test_a_pause_is_one_however_often_it_is_begun(pauses: PauseStore) -> None:
    first = await pauses.pause(tenant="acme", reason="one", by="key_1")
    second = await pauses.pause(tenant="acme", reason="two", by="key_2")
    third = await pauses.pause(tenant="acme", reason="three")
    assert {one.pause_id for one in (first, second, third)} == {first.pause_id}
    assert [(one.reason, one.paused_by) for one in (second, third)] == [("two", "key_1"), ("three", "operator")]
    assert third.paused_at == first.paused_at
    await pauses.resume(first.pause_id)
    with pytest.raises(PauseNotFound):
        await pauses.resume(first.pause_id)


async def test_a_pause_races_with_reservations_and_loses_to_none_that_comes_later(
    limiter: Limiter, pauses: PauseStore, database: Database
) -> None:
    """Whoever is granted a turn after the pause was committed would call although everything is paused."""

    async def reserve(number: int) -> Reservation:
        return await limiter.reserve("a", asker(f"race-{number}", since=number))

    before = [asyncio.create_task(reserve(number)) for number in range(20)]
    await pauses.pause()
    after: Sequence[Reservation] = await asyncio.gather(*(reserve(number) for number in range(20, 40)))
    await asyncio.gather(*before)
    assert not any(turn.granted for turn in after)
