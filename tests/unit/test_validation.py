"""The words for a request that is not valid: plain, with a suggestion for a typo, and the same on every interface."""

from __future__ import annotations

import time
from typing import Any

import pytest

from chatjobs.contracts import MAX_PROBLEMS, ChatRequest, Usage, parse
from chatjobs.errors import InvalidRequest
from tests.support.factories import make_body

HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"max_tokns": 3}, "/max_tokns", "is not a known field; did you mean max_tokens?"),
        ({"maxTokens": 3}, "/maxTokens", "is not a known field; did you mean max_tokens?"),
        ({"on-interrupt": "fail"}, "/on-interrupt", "is not a known field; did you mean onInterrupt?"),
        ({"zzz": 3}, "/zzz", "is not a known field"),
        ({"x" * 10_000: 3}, f"/{'x' * 10_000}", "is not a known field"),
        ({"limits": {"queuSeconds": 3}}, "/limits/queuSeconds", "is not a known field; did you mean queueSeconds?"),
        ({"messages": [HI | {"nam": "x"}]}, "/messages/0/nam", "is not a known field"),
        ({"messages": [HI | {"contnt": "x"}]}, "/messages/0/contnt", "is not a known field; did you mean content?"),
        (
            {"messages": [HI | {"content": [{"type": "text", "txet": "x"}]}]},
            "/messages/0/content/0/txet",
            "is not a known field; did you mean text?",
        ),
        ({"onInterrupt": "contiue"}, "/onInterrupt", "must be one of continue, restart, fail; did you mean continue?"),
        ({"temperature": 9}, "/temperature", "must be at most 2"),
        ({"temperature": "hot"}, "/temperature", "must be a number"),
        ({"max_tokens": 1.5}, "/max_tokens", "must be a whole number"),
        ({"metadata": {"a": 1}}, "/metadata/a", "must be a string"),
        ({"messages": 5}, "/messages", "must be an array"),
        ({"n": 2}, "/n", "must be 1"),
    ],
)
def test_the_words_are_plain(changes: dict[str, Any], pointer: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatRequest.parse(make_body() | changes)
    assert (pointer, message) in refused.value.problems


@pytest.mark.parametrize("field", ["secret words", "sesame " * 20])
def test_a_value_is_not_repeated(field: str) -> None:
    for name in ("onInterrupt", "temperature", "model", "callback", "tool_choice", "response_format", "messages"):
        with pytest.raises(InvalidRequest) as refused:
            ChatRequest.parse(make_body() | {name: field})
        assert field not in str(refused.value)


MANY = 200_000
LARGE: dict[str, dict[str, Any]] = {
    "unknown fields": {f"f{number}": 1 for number in range(MANY)},
    "unknown fields of messages": {"messages": [HI | {f"f{number}": 1 for number in range(200)}] * 1_000},
    "messages": {"messages": [1] * MANY},
    "stops": {"stop": [1] * MANY},
    "metadata": {"metadata": {f"k{number}": 1 for number in range(MANY)}},
    "tools": {"tools": [{"type": "function", "function": {"name": "x"}}] * 50_000},
}


@pytest.mark.parametrize("changes", LARGE.values(), ids=LARGE.keys())
def test_as_much_wrong_as_a_body_can_hold_is_refused_soon(changes: dict[str, Any]) -> None:
    """It holds up whatever else the gateway does. By the time of this process, which others' load does not lengthen."""
    body, began = make_body() | changes, time.process_time()
    with pytest.raises(InvalidRequest) as refused:
        ChatRequest.parse(body)
    assert time.process_time() - began < 4  # it was up to 40
    assert 1 <= len(refused.value.problems) <= MAX_PROBLEMS


def test_of_an_array_the_first_wrong_element_is_told_with_all_that_is_wrong_in_it() -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatRequest.parse(make_body(temperature=9, messages=[HI, {"role": "user", "contnt": "x", "nam": 1}, {"x": 1}]))
    assert {problem.pointer for problem in refused.value.problems} == {
        "/temperature",
        "/messages/1/content",
        "/messages/1/contnt",
        "/messages/1/nam",
    }


def test_fields_that_a_model_does_not_know_but_keeps_are_kept() -> None:
    counters = {f"counter_{number}": number for number in range(2 * MAX_PROBLEMS)}
    usage = parse(Usage, {"prompt_tokens": 1} | counters)
    assert usage.model_dump() == {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 0} | counters
