"""Prices: their setting, which price a model has, and exact amounts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from chatjobs.contracts import Cost, Usage
from domain.prices import ModelPrice, Prices, Spend, cached_tokens, parse_prices, rest
from domain.settings import Settings, problems

ALL = parse_prices(
    "mistral-small-latest=0.1/0.3, mistral-medium-*=0.4/2, mistral-*=1/1, *=2/6; EUR; cached=0.1; batch=0.5"
)
MILLION = 1_000_000


def used(prompt: int, answer: int, **more: Any) -> Usage:
    return Usage.model_validate({"prompt_tokens": prompt, "completion_tokens": answer, **more})


def amount(*spends: Spend, prices: Prices = ALL) -> str:
    found = prices.cost(spends)
    assert found is not None
    return found.amount


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("mistral-small-latest", "mistral-small-latest"),
        ("mistral-small-2506", "mistral-*"),
        ("mistral-medium-latest", "mistral-medium-*"),
        ("codestral-latest", "*"),
    ],
)
def test_a_models_own_name_comes_first_then_the_longest_pattern(model: str, pattern: str) -> None:
    found = ALL.of(model)
    assert found is not None
    assert found.pattern == pattern


def test_an_exact_name_wins_over_a_longer_pattern() -> None:
    prices = parse_prices("a*bcdefgh=9/9, abcdefgh=1/1; EUR")
    assert prices.of("abcdefgh") == ModelPrice("abcdefgh", Decimal(1), Decimal(1))


def test_amounts_are_exact() -> None:
    """Where floats are not: 0.1 + 0.2, sums of 16 digits, fractions of a millionth of a cent."""
    assert amount(Spend("mistral-small-latest", used(1, 1))) == "0.0000004"
    assert amount(*[Spend("mistral-small-latest", used(MILLION, 0))] * 3) == "0.3"
    assert amount(Spend("mistral-small-latest", used(2**53, 2**53))) == "3602879701.8963968"
    tiny = parse_prices("*=0.000000001/0; EUR")
    assert amount(Spend("a", used(1, 0)), prices=tiny) == "0.000000000000001"
    assert amount() == "0"
    assert amount(Spend("a", used(10 * MILLION, 0)), prices=parse_prices("*=10/0;EUR")) == "100"


def test_cached_tokens_and_batch_jobs_cost_a_part() -> None:
    cached = used(MILLION, 0, prompt_tokens_details={"cached_tokens": MILLION // 2})
    assert amount(Spend("codestral-latest", cached)) == "1.1"  # half at 2, half at 0.2
    assert amount(Spend("codestral-latest", used(0, MILLION), batch=True)) == "3"
    assert amount(Spend("codestral-latest", cached, batch=True)) == "0.55"
    full = parse_prices("*=2/6; EUR")
    assert amount(Spend("codestral-latest", cached, batch=True), prices=full) == "2"


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({}, 0),
        ({"num_cached_tokens": 3}, 3),
        ({"prompt_tokens_details": {"cached_tokens": 4}}, 4),
        ({"prompt_tokens_details": None, "num_cached_tokens": 5}, 5),
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": "6"}}, 0),
        ({"num_cached_tokens": -1}, 0),
    ],
)
def test_cached_tokens_as_servers_report_them(more: dict[str, Any], tokens: int) -> None:
    assert cached_tokens(used(10, 0, **more)) == tokens


def test_more_cached_tokens_than_the_prompt_has_cost_no_less_than_all_cached() -> None:
    odd = used(MILLION, 0, num_cached_tokens=5 * MILLION)
    assert amount(Spend("codestral-latest", odd)) == "0.2"


def test_a_model_without_a_price_makes_the_cost_unknown() -> None:
    """A sum that lacks a part would be read as all of it."""
    prices = parse_prices("mistral-*=1/1; EUR")
    spends = [Spend("mistral-small-latest", used(1, 1)), Spend("other", used(1, 1))]
    assert prices.cost(spends) is None
    assert prices.cost(spends[:1], estimated=True) == Cost(amount="0.000002", currency="EUR", estimated=True)


def test_a_cost_is_estimated_if_one_of_its_calls_is() -> None:
    spends = [Spend("a", used(1, 1)), Spend("a", used(1, 1), estimated=True), Spend("a", used(1, 1))]
    found = [ALL.cost(some) for some in (spends[:1], spends)]
    assert [one is not None and one.estimated for one in found] == [False, True]


def test_the_rest_of_a_usage() -> None:
    counted = [Spend("a", used(3, 2)), Spend("a", used(4, 9))]
    assert rest(used(10, 10), counted) == used(3, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (";EUR", "the prices of models come first"),
        ("EUR", "entry 1 is not MODEL=INPUT/OUTPUT"),
        ("a=1/2, b=1; EUR", "entry 2 is not MODEL=INPUT/OUTPUT"),
        ("a=1/x; EUR", "a price of entry 1 is not a number"),
        ("a=-1/2; EUR", "a price of entry 1 is not a number"),
        ("a=1e3/2; EUR", "a price of entry 1 is not a number"),
        ("a=0,1/0,3; EUR", "entry 1 is not MODEL=INPUT/OUTPUT"),
        ("a=1/2", "the currency is missing"),
        ("a=1/2; eur", "a currency in three capital letters"),
        ("a=1/2; €", "a currency in three capital letters"),
        ("a=1/2; EUR; USD", "there are two currencies"),
        ("a=1/2; EUR; cached=2", "a part of the price, from 0 to 1"),
        ("a=1/2; EUR; batch=0.5; batch=0.4", "batch= is there twice"),
        ("a=1/2, a=2/3; EUR", "a model is there twice"),
    ],
)
def test_what_is_wrong_with_the_setting_is_said_without_it(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATJOBS_PRICES", text)
    with pytest.raises(ValidationError) as refused:
        Settings()
    told = problems(refused.value)
    assert told.startswith("CHATJOBS_PRICES")
    assert words in told


def test_the_setting_is_read_and_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATJOBS_PRICES", " mistral-small-latest = 0.1 / 0.3 ,; EUR; cached=0.10 ;")
    small = ModelPrice("mistral-small-latest", Decimal("0.1"), Decimal("0.3"))
    assert Settings().chatjobs_prices == Prices("EUR", (small,), cached=Decimal("0.1"))
    monkeypatch.setenv("CHATJOBS_PRICES", "")
    assert Settings().chatjobs_prices is None
