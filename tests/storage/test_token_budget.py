"""A lane's budget of tokens per minute: reserved, settled, in order, and told by the model."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.tokens import RequestSize, request_size
from domain.values import Claimant, Reservation
from storage.engine.database import Database
from storage.rate_limits.breaker import SECOND
from storage.rate_limits.budget import FIRST_TYPICAL, SLOT, WINDOW, TokenBudget
from storage.rate_limits.limiter import Limiter
from tests.support.factories import make_job

Row: Any = namedtuple("Row", "tokens_set_to tokens_seen token_spends typical_answer")
NOW = 1_800_000_000 * SECOND
LIMIT = 1_000
LANE = "a"


@pytest.fixture
async def limiter(database: Database) -> Limiter:
    made = Limiter(database, per_second=1_000)
    await made.set_limits(LANE, {"tokens_per_minute": LIMIT})
    return made


def asker(name: str, tokens: int, *, since: int = 0, priority: int = 3) -> Claimant:
    return Claimant(name, "t", priority, since, size=lambda: RequestSize(tokens, 0))


async def used(limiter: Limiter) -> int | None:
    (lane,) = await limiter.lanes()
    return lane.tokens_used


# ------------------------------------------------------------------------------------------------------ the rule


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, LIMIT)), max_size=40))
def test_no_minute_has_more_than_the_budget(asked: list[tuple[int, int]]) -> None:
    """Whenever requests come, and however large they are: the calls of any 60 seconds fit into it."""
    spends, calls, time = "[]", [], NOW
    for wait, cost in asked:
        time += wait * SECOND // 2
        budget = TokenBudget.of(Row(LIMIT, None, spends, None), time)
        assert budget is not None
        time = max(time, budget.free_at(cost))
        budget = TokenBudget.of(Row(LIMIT, None, spends, None), time)
        assert budget is not None
        assert budget.free_at(cost) == time, "the time that was told is the right one"
        spends = budget.reserved(cost)
        calls.append((time, cost))
    for first, _ in calls:
        assert sum(cost for at, cost in calls if first <= at < first + WINDOW) <= LIMIT


def test_a_request_that_is_larger_than_the_budget_goes_alone() -> None:
    empty = TokenBudget(LIMIT, {}, FIRST_TYPICAL, NOW)
    assert empty.free_at(5 * LIMIT) == NOW
    some = TokenBudget(LIMIT, {NOW // SLOT: 1}, FIRST_TYPICAL, NOW)
    assert NOW + WINDOW <= some.free_at(5 * LIMIT) <= NOW + WINDOW + SLOT
    assert empty.free_at(1, ahead=5 * LIMIT) > NOW, "and nothing overtakes it"


def test_a_clock_that_was_set_back_frees_the_budget() -> None:
    later = json.dumps([[NOW // SLOT + 1_000, LIMIT]])
    budget = TokenBudget.of(Row(LIMIT, None, later, None), NOW)
    assert budget is not None
    assert budget.used == 0


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, None),
        ({"max_tokens": 4000}, 4000),
        ({"metadata": {"max_tokens": "7"}}, None),
        ({"stop": ['"max_tokens":5']}, None),
    ],
)
def test_the_size_of_a_request(fields: dict[str, Any], answer: int | None) -> None:
    request = make_job("word " * 700, **fields).request_json
    assert request is not None
    size = request_size(request)
    assert size.answer == answer
    assert 700 < size.prompt < 1_400


def test_an_image_is_not_counted_by_its_bytes() -> None:
    part = {"type": "image_url", "image_url": "data:image/png;base64," + "A" * 1_000_000}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]
    request = make_job(messages=messages).request_json
    assert request is not None
    assert request_size(request).prompt < 3_000


# --------------------------------------------------------------------------------------------------- in the lane


async def test_calls_start_until_the_budget_is_reserved_and_settling_frees_it(limiter: Limiter) -> None:
    turns = [await limiter.reserve(LANE, asker(f"j{number}", 400, since=number)) for number in range(3)]
    assert [turn.granted for turn in turns] == [True, True, False]
    assert 50 < turns[2].seconds < 70
    assert not turns[2].near
    assert await used(limiter) == 800
    places = await limiter.queue_places(["j2"])
    assert places["j2"].reason == "rate_limit"
    assert await limiter.take_due() == []
    await limiter.settle(turns[0], 40, 60)
    assert await used(limiter) == 500
    assert await limiter.take_due() == ["j2"]
    assert (await limiter.reserve(LANE, asker("j2", 400, since=2))).granted


async def test_a_large_request_is_not_starved_by_small_ones(limiter: Limiter) -> None:
    running = await limiter.reserve(LANE, asker("running", 600))
    assert not (await limiter.reserve(LANE, asker("large", 900, since=1))).granted
    for number in range(5):
        assert not (await limiter.reserve(LANE, asker(f"small-{number}", 50, since=2 + number))).granted
    urgent = await limiter.reserve(LANE, asker("urgent", 50, since=9, priority=1))
    assert urgent.granted, "a smaller number of priority goes first"
    await limiter.settle(urgent, 0, 0)
    await limiter.settle(running, 100, 0)
    assert await limiter.take_due() == ["large"], "those behind it do not fit beside it"
    assert not (await limiter.reserve(LANE, asker("small-0", 50, since=2))).granted
    assert (await limiter.reserve(LANE, asker("large", 900, since=1))).granted


async def test_one_that_is_larger_than_the_budget_goes_when_nothing_is_used(limiter: Limiter) -> None:
    first = await limiter.reserve(LANE, asker("first", 10))
    assert not (await limiter.reserve(LANE, asker("giant", 50 * LIMIT, since=1))).granted
    assert not (await limiter.reserve(LANE, asker("next", 10, since=2))).granted
    await limiter.settle(first, 0, 0)
    assert (await limiter.reserve(LANE, asker("giant", 50 * LIMIT, since=1))).granted
    assert not (await limiter.reserve(LANE, asker("next", 10, since=2))).granted


async def test_the_length_of_answers_is_learned(limiter: Limiter) -> None:
    def open_ended(name: str) -> Claimant:
        return Claimant(name, "t", 3, 0, size=lambda: RequestSize(10, None))

    turn = await limiter.reserve(LANE, open_ended("x"))
    assert turn.tokens == 10 + FIRST_TYPICAL
    await limiter.settle(turn, 10, 90, whole=True)
    assert (await limiter.reserve(LANE, open_ended("y"))).tokens == 100


async def test_the_models_own_budget_holds_and_what_others_use_counts(limiter: Limiter) -> None:
    turn = await limiter.reserve(LANE, asker("x", 100))
    await limiter.record_success(LANE, tokens_per_minute=500, tokens_left=150)
    (lane,) = await limiter.lanes()
    assert (lane.tokens_per_minute, lane.tokens_seen, lane.tokens_used) == (500, 500, 350)
    assert not (await limiter.reserve(LANE, asker("y", 200, since=1))).granted
    await limiter.record_success(LANE, tokens_per_minute=5_000, tokens_left=5_000)
    (lane,) = await limiter.lanes()
    assert (lane.tokens_per_minute, lane.tokens_used) == (LIMIT, 350), "what is reserved here is not forgotten"
    assert turn.budget == LIMIT


async def test_the_budget_changes_while_jobs_wait(limiter: Limiter) -> None:
    assert (await limiter.reserve(LANE, asker("x", 900))).granted
    assert not (await limiter.reserve(LANE, asker("y", 900, since=1))).granted
    await limiter.set_limits(LANE, {"tokens_per_minute": 2 * LIMIT})
    assert await limiter.take_due() == ["y"]
    await limiter.set_limits(LANE, {"tokens_per_minute": None})
    turn: Reservation = await limiter.reserve(LANE, asker("y", 900, since=1))
    assert (turn.granted, turn.budget) == (True, None)
    assert await used(limiter) is None
