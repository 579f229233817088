"""Requests are strict, complete and never echoed; values are frozen; times and names are those of the wire."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistralai.client.models import ChatCompletionStreamRequest
from pydantic import ValidationError

from chatjobs.contracts import (
    OURS,
    BatchSettings,
    ChatRequest,
    ChatResult,
    JobStart,
    JobStatus,
    UserMessage,
    WebhookEventType,
    canonical_json,
    fingerprint,
    parse,
    rfc3339,
    without_nulls,
)
from chatjobs.errors import InvalidRequest
from tests.support.factories import make_body

SECRET = "sk-do-not-repeat"


def problems(body: Any) -> list[str]:
    """The pointers of what is wrong with a request."""
    with pytest.raises(InvalidRequest) as caught:
        ChatRequest.parse(body)
    assert SECRET not in str(caught.value)
    return [problem.pointer for problem in caught.value.problems]


def test_only_messages_are_required() -> None:
    """Everything else has a default."""
    request = ChatRequest.parse(make_body("Hello"))
    assert (request.model, request.on_interrupt, request.max_segments) == ("mistral-small-latest", "continue", 1)
    assert request.limits.first_token_seconds == 60
    assert request.limits.stall_seconds == 120


def test_takes_every_parameter_of_mistral() -> None:
    """The SDK's own request model names the parameters; each is accepted under its own name."""
    theirs = set(ChatCompletionStreamRequest.model_fields)
    ours = {name for name in ChatRequest.model_fields if name not in OURS} | {"stream", "metadata"}
    assert ours == theirs


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"])
def test_a_time_outside_of_the_calendar_is_refused(time: str) -> None:
    """In UTC no datetime has it: once stored, it could not be read again."""
    assert problems(make_body("Hello") | {"startAt": time}) == ["/startAt"]
    with pytest.raises(InvalidRequest) as caught:
        parse(BatchSettings, {"deadline": time})
    assert [problem.pointer for problem in caught.value.problems] == ["/deadline"]


EVERY_PARAMETER = {
    "temperature": 0.3,
    "top_p": 1,
    "top_k": 40,
    "max_tokens": 4000,
    "min_tokens": 0,
    "stream": False,
    "stop": ["END"],
    "random_seed": 1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "web_search"}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logprobs": True,
    "top_logprobs": 5,
    "prompt_logprobs": False,
    "top_prompt_logprobs": 0,
    "n": 1,
    "prediction": {"type": "content", "content": "x"},
    "parallel_tool_calls": True,
    "reasoning_effort": "high",
    "prompt_mode": "reasoning",
    "guardrails": [{"block_on_error": True}],
    "prompt_cache_key": "k",
    "service_tier": "auto",
    "safe_prompt": True,
}


def test_every_parameter_comes_back_as_it_was_sent() -> None:
    """Nothing is renamed, rounded or dropped on the way through storage."""
    body = make_body("Hello", **EVERY_PARAMETER)
    stored = ChatRequest.parse(body).model_dump_json(exclude_unset=True)
    assert json.loads(stored) == body
    assert ChatRequest.model_validate_json(stored) == ChatRequest.parse(body)


@pytest.mark.parametrize(
    "content",
    [
        "text",
        [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}],
        [{"type": "image_url", "image_url": {"url": "https://pictures.example/1.png", "detail": "low"}}],
        [{"type": "document_url", "document_url": "https://papers.example/1.pdf", "document_name": "1"}],
        [{"type": "reference", "reference_ids": [1, "b"]}, {"type": "text", "text": "and this"}],
        [{"type": "file", "file_id": "file-1"}],
        [{"type": "input_audio", "input_audio": "AAAA"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True}],
    ],
)
def test_content_is_text_or_a_list_of_parts(content: Any) -> None:
    """Each kind of part that Mistral takes, unchanged."""
    body = {"messages": [{"role": "user", "content": content}]}
    assert json.loads(ChatRequest.parse(body).model_dump_json(exclude_unset=True)) == body


def test_takes_a_whole_conversation_with_tools() -> None:
    """System, user, assistant with tool calls, tool result, and a prefix to go on from."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "It is", "prefix": True},
        ]
    }
    assert json.loads(ChatRequest.parse(body).model_dump_json(exclude_unset=True)) == body


BAD: dict[str, tuple[Any, str]] = {
    "null": (None, ""),
    "a string": ("x", ""),
    "no messages": ({}, "/messages"),
    "empty messages": ({"messages": []}, "/messages"),
    "too many messages": ({"messages": [{"role": "user", "content": "x"}] * 1001}, "/messages"),
    "unknown role": ({"messages": [{"role": SECRET, "content": "x"}]}, "/messages/0"),
    "unknown message field": ({"messages": [{"role": "user", "content": "x", "y": SECRET}]}, "/messages/0/y"),
    "empty content": (make_body(""), ""),
    "blank content": (make_body(" \n"), ""),
    "too much text": (make_body("x" * 2_000_001), ""),
    "assistant last": ({"messages": [{"role": "assistant", "content": SECRET}]}, ""),
    "model too long": (make_body(model="m" * 65), "/model"),
    "model as a path": (make_body(model="../x"), "/model"),
    "model with a line break": (make_body(model="m\r\nX: y"), "/model"),
    "temperature below": (make_body(temperature=-0.1), "/temperature"),
    "temperature infinite": (make_body(temperature=float("inf")), ""),
    "no tokens": (make_body(max_tokens=0), "/max_tokens"),
    "a fraction of a token": (make_body(max_tokens=5.5), "/max_tokens"),
    "a float for an integer": (make_body(max_tokens=5.0), "/max_tokens"),
    "a string for an integer": (make_body(max_tokens="5"), "/max_tokens"),
    "too large an integer": (make_body(random_seed=2**64), "/random_seed"),
    "several answers": (make_body(n=2), "/n"),
    "unknown field": (make_body(maxTokens=5), "/maxTokens"),
    "17 metadata keys": (make_body(metadata={str(n): "v" for n in range(17)}), "/metadata"),
    "long metadata": (make_body(metadata={"k": "v" * 513}), "/metadata/k"),
    "metadata not text": (make_body(metadata={"k": 1}), "/metadata/k"),
    "17 stops": (make_body(stop=["x"] * 17), "/stop"),
    "request id with a line break": (make_body(id="a\nb"), "/id"),
    "job id with a slash": (make_body(jobId="a/b"), "/jobId"),
    "callback no URL": (make_body(callback="you.example/hook"), "/callback"),
    "callback with a line break": (make_body(callback="https://you.example/\r\nX: y"), "/callback"),
    "long callback": (make_body(callback="https://you.example/" + "x" * 2048), "/callback"),
    "two different URLs": (make_body(callback="https://a.example", webhook={"url": "https://b.example"}), ""),
    "unknown event": (
        make_body(webhook={"url": "https://a.example", "events": ["chat.exploded"]}),
        "/webhook/events/0",
    ),
    "33 further parameters": (make_body(extra={f"p{n}": n for n in range(33)}), "/extra"),
    "a further parameter that is a field": (make_body(extra={"max_tokens": 5}), "/extra"),
    "a further parameter that is a field of ours": (make_body(extra={"onInterrupt": "fail"}), "/extra"),
    "a further parameter without a name": (make_body(extra={"": 5}), "/extra"),
    "long further parameters": (make_body(extra={"x": "y" * 65_536}), "/extra"),
    "further parameters in a list": (make_body(extra=[5]), "/extra"),
    "no time at all": (make_body(limits={"totalSeconds": 0}), "/limits/totalSeconds"),
    "lone surrogate": (make_body("\ud800"), ""),
    "long schema": (
        make_body(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"x": "y" * 65_536}}}),
        "/response_format",
    ),
    "tools of one name": (
        make_body(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}] * 2),
        "",
    ),
}


@pytest.mark.parametrize(("body", "pointer"), BAD.values(), ids=BAD.keys())
def test_names_the_place_that_is_wrong(body: Any, pointer: str) -> None:
    """A JSON pointer into the document as it was sent, and not a word of its contents."""
    assert any(found == pointer or found.startswith(f"{pointer}/") for found in problems(body))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_document_is_a_request_or_an_error(document: Any) -> None:
    """Whatever JSON comes, the answer is a request or InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        assert ChatRequest.parse(document).messages


def test_values_are_frozen() -> None:
    """A request cannot be changed after it was checked."""
    request = ChatRequest.parse(make_body("Hello"))
    with pytest.raises(ValidationError):
        request.model = "other"  # type: ignore[misc]
    assert isinstance(ChatRequest(messages=[UserMessage(content="x")]).messages, tuple)  # type: ignore[arg-type]


def test_the_fingerprint_is_of_what_was_received() -> None:
    """Order and space do not matter; a default that was spelled out does."""
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint(make_body("x")) != fingerprint(make_body("x", model="mistral-small-latest"))
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_the_result_has_the_names_of_the_wire() -> None:
    """Our fields in camelCase, Mistral's as they are, rare ones only where they say something."""
    result = ChatResult(
        job_id="j", request_id="r", status=JobStatus.COMPLETED, model="m", created_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    document = json.loads(result.model_dump_json())
    assert set(document) == {
        *("jobId", "requestId", "status", "model", "createdAt", "startedAt", "completedAt", "content", "reasoning"),
        *("toolCalls", "finishReason", "usage", "usageEstimated", "error", "epoch", "position", "sha256"),
        *("metadata", "replayOf", "previousJobId", "thread", "batchId", "scheduleId", "temporalUrl"),
    }
    assert document["createdAt"] == "2026-01-02T00:00:00.000000Z"
    assert ChatResult.model_validate_json(result.model_dump_json()) == result


def test_times_are_utc() -> None:
    """RFC 3339 with Z, whatever the zone of the value."""
    assert rfc3339(datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-02T01:00:00.000000Z"
    with pytest.raises(ValidationError):
        ChatResult(job_id="j", request_id="r", status=JobStatus.QUEUED, model="m", created_at=datetime(2026, 1, 2))  # noqa: DTZ001


def test_every_terminal_status_has_an_event() -> None:
    """Each outcome can be announced."""
    assert {WebhookEventType.of(s) for s in JobStatus if s.terminal} == set(WebhookEventType)


@pytest.mark.parametrize("document", [{}, {"jobId": "a", "request": {}}, {"jobId": "a/b"}, {"other": 1}, None, 5, []])
def test_the_workflow_argument_is_one_of_two(document: Any) -> None:
    """A job id or a request, exactly one."""
    with pytest.raises(InvalidRequest):
        parse(JobStart, document)


# ------------------------------------------------------------------------------------------------- null


WHOLE: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": "https://a.example/x", "detail": "low"}},
                {"type": "document_url", "document_url": "https://a.example/x", "document_name": "d"},
                {"type": "resource_link", "uri": "u", "metadata": {"kept": None}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}], "closed": True}],
            "tool_calls": [{"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}],
            "prefix": False,
        },
        {"role": "tool", "content": "r", "tool_call_id": "c", "name": "f"},
        {"role": "user", "content": "u"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"kept": None}, "description": "d", "strict": True},
        },
        {"type": "web_search", "kept": None},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"kept": None}, "description": "d", "strict": True},
    },
    "prediction": {"type": "content", "content": "c"},
    "guardrails": [{"kept": None}],
    "webhook": {"url": "https://a.example/", "events": ["chat.failed"]},
    "limits": {"queueSeconds": 1, "firstTokenSeconds": 1, "stallSeconds": 1, "totalSeconds": 1, "maxTotalTokens": 1},
    "metadata": {"k": "v"},
    "stop": ["x"],
}
TAGS = ("role", "type")


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of every member of every object that is the contract's."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        here = (*path, name)
        if isinstance(name, str) and name != "kept":
            yield here
        if isinstance(inner, (dict, list)) and here[-1] != "metadata":
            yield from places(inner, here)


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def dumped(document: Any) -> str | set[str]:
    """The request in a document as it is stored, or the places of what is wrong with it."""
    try:
        return ChatRequest.parse(document).model_dump_json(exclude_unset=True)
    except InvalidRequest as error:
        return {problem.pointer for problem in error.problems}


@pytest.mark.parametrize("path", list(places(WHOLE)), ids=lambda path: "/".join(map(str, path)))
def test_null_is_as_if_absent_or_the_field_is_required(path: tuple[str | int, ...]) -> None:
    """For every member, however deep: nothing else comes of null than of leaving it out."""
    with_null, without = copy.deepcopy(WHOLE), copy.deepcopy(WHOLE)
    at(with_null, path[:-1])[path[-1]] = None
    del at(without, path[:-1])[path[-1]]
    assert dumped(with_null) == dumped(without)


@pytest.mark.parametrize("name", sorted(field.alias or name for name, field in ChatRequest.model_fields.items()))
def test_every_field_but_the_messages_may_be_null(name: str) -> None:
    body = make_body("x")
    if name == "messages":
        assert dumped({**body, name: None}) == {"/messages"}
    else:
        assert dumped({**body, name: None}) == dumped(body)


def test_null_stays_where_json_is_not_ours() -> None:
    stored = json.loads(ChatRequest.parse(WHOLE).model_dump_json(exclude_unset=True))
    assert stored == WHOLE
    assert dumped({**make_body("x"), "nothing": None}) == {"/nothing"}
    assert dumped({**make_body("x"), "metadata": {"k": None}}) == {"/metadata/k"}


def nested(levels: int) -> dict[str, Any]:
    """A request with a tool whose parameters are so many objects within each other."""
    parameters: dict[str, Any] = {}
    for _ in range(levels - 1):
        parameters = {"a": parameters}
    return make_body(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])


def test_what_is_accepted_can_be_read_again() -> None:
    """However deep its JSON is nested: the parser that reads stored requests has a limit."""
    request = ChatRequest.parse(nested(187))
    assert ChatRequest.model_validate_json(request.model_dump_json(exclude_unset=True)) == request
    for levels in (188, 197, 250, 900):
        with pytest.raises(InvalidRequest, match="nested in each other"):
            ChatRequest.parse(nested(levels))


def test_of_many_unknown_fields_the_same_ones_are_kept_in_any_order() -> None:
    """The fingerprint of a request that can never run does not depend on their order either."""
    names = [f"field{number}" for number in range(300)]
    bodies = [make_body() | dict.fromkeys(order, 1) for order in (names, names[::-1])]
    first, second = (without_nulls(ChatRequest, body) for body in bodies)
    assert len(first) < 200
    assert fingerprint(first) == fingerprint(second)


def test_an_integer_beyond_a_double_is_no_finite_number() -> None:
    with pytest.raises(InvalidRequest, match="must be a finite number"):
        ChatRequest.parse(make_body(temperature=10**309))
