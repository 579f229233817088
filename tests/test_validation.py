"""The words for a request that is not valid: plain, with a suggestion for a typo, and the same on every interface."""

from __future__ import annotations

from typing import Any

import pytest

from chatjobs.contracts import ChatRequest
from chatjobs.errors import InvalidRequest
from tests.factories import make_body

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
