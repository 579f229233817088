"""Streams in shapes that Mistral does not send, and others do: each is decoded, or is an interruption."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import UpstreamError
from providers.mistral.errors import Private, mistral_errors
from simulator import oddities, wire
from tests.providers.test_mistral_decoding import PATIENT, Said, ours, said_by
from tests.support.mistral_stream import DONE, END, USAGE, call, calls, chunk, sse, text
from tests.support.odd_streams import BROKEN, ERRORS, WHOLE, Outcome


def body(name: str) -> list[bytes]:
    """The pieces of a named stream, as they are written."""
    fault = oddities.named(name)
    return [wire.scripted(frame) for frame in [*fault.frames, *(oddities.ENDING if fault.ending else ())]]


def is_cut(name: str) -> bool:
    return any(frame.cut for frame in oddities.named(name).frames)


def as_outcome(said: Said) -> Outcome:
    found = tuple((name, arguments) for _, name, arguments in said.calls.values())
    return Outcome(said.content, said.reasoning, found, said.usage, said.end or "")


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_stream_is_a_whole_answer(name: str) -> None:
    """However its bytes are cut; a connection that breaks after the end is the end of the response."""
    pieces = body(name)
    assert as_outcome(ours(pieces)) == WHOLE[name]
    whole = b"".join(pieces)
    assert as_outcome(ours([whole])) == WHOLE[name]
    assert as_outcome(ours(whole[at : at + 7] for at in range(0, len(whole), 7))) == WHOLE[name]


@pytest.mark.parametrize("name", BROKEN)
def test_an_odd_stream_that_is_cut_is_an_interruption(name: str) -> None:
    said = ours(body(name), cut=is_cut(name))
    assert said.end == BROKEN[name] or (said.end == "error object" and BROKEN[name] == "upstream_error")


@pytest.mark.parametrize("name", oddities.ERRORS)
def test_an_error_in_an_odd_stream_is_what_it_says(name: str) -> None:
    code, words = ERRORS[name]
    with pytest.raises(UpstreamError) as failed, mistral_errors(Private(b'"a prompt"'), streaming=True):
        said_by(body(name))
    assert failed.value.reason == code
    assert words in failed.value.message


# ------------------------------------------------------------------------------------------ where an answer ends


@pytest.mark.parametrize("reason", [*oddities.NO_REASONS, 7, 1.5, True, [], ["stop"], {"type": "stop"}, "none ", "nil"])
def test_what_is_no_finish_reason_ends_nothing(reason: Any) -> None:
    odd = chunk({"content": "Hi"}) | {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": reason}]}
    assert ours([sse(odd) + DONE]).end == "upstream_cut"
    assert ours([sse(odd, END)]).end == "stop"


@pytest.mark.parametrize(
    ("said", "is_"),
    [("MAX_TOKENS", "length"), ("max_tokens", "length"), ("Length", "length"), ("TOOL_CALLS", "tool_calls")],
)
def test_a_known_reason_in_other_words_is_the_known_one(said: str, is_: str) -> None:
    """An answer that was cut off at a limit must not look like one that was not."""
    assert ours([sse(text("Hi", said)) + DONE]).end == is_


@pytest.mark.parametrize("reason", ["error", "ERROR", "abort", "network_error", "cancelled", "timeout"])
def test_a_reason_that_is_a_failure_is_an_interruption(reason: str) -> None:
    assert ours([sse(text("Hi"), text("", reason)) + DONE]).end == "upstream_error"


BARE, STOPPED, LATE = text("Hel"), text("lo", "stop"), {"choices": [], "usage": USAGE}
CALL = calls(call("{}", name="f", id="1"))
CALLED = chunk({"tool_calls": [call("{}", name="f", id="1")]}, "tool_calls")
NEXT = chunk({"tool_calls": [call("{}", name="g", id="2", index=1)]}, "tool_calls")
STOP = chunk(finish="stop")
ENDS: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    # the chunks; whole if the connection breaks after them; whole if the response ends there
    "text, then a reason": ([BARE, STOP], True, True),
    "text, then text with a reason": ([BARE, STOPPED], True, True),
    "a reason beside all there is": ([STOPPED], False, True),
    "a reason beside each piece": ([text("Hel", "stop"), STOPPED], False, False),
    "a reason beside each piece, and one alone": ([text("Hel", "stop"), STOPPED, STOP], False, True),
    "nothing but a reason": ([STOP], False, True),
    "a call, then a reason": ([CALL, STOP], True, True),
    "a reason beside a call": ([CALLED], False, True),
    "a reason beside a call after text": ([BARE, CALLED], False, True),
    "a reason beside two calls": ([CALLED, NEXT], False, False),
    "text behind a reason": ([BARE, STOP, BARE], False, False),
    "text behind a reason, and one more": ([BARE, STOP, BARE, STOP], False, True),
    "usage behind a reason": ([BARE, STOP, LATE], True, True),
    "usage before the reason": ([BARE, LATE, STOP], True, True),
    "pings behind a reason": ([BARE, STOP, {"type": "ping"}], True, True),
    "no reason": ([BARE, CALL], False, False),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS)
def test_when_an_answer_is_whole(case: tuple[list[dict[str, Any]], bool, bool]) -> None:
    """A cut is one of the connection, or the end of a response that has no other end."""
    chunks, cut, ended = case
    codes = ("upstream_cut", "upstream_empty")
    assert (ours([sse(*chunks)], cut=True).end not in codes) is cut
    assert (ours([sse(*chunks)], proper=False).end not in codes) is cut
    assert (ours([sse(*chunks)]).end not in codes) is ended
    if ours([sse(*chunks) + DONE]).end in codes:
        assert not any(one.get("finish_reason") for part in chunks for one in part["choices"])


def test_half_a_chunk_after_a_doubtful_end_is_a_cut() -> None:
    assert ours([sse(STOPPED) + b'data: {"choices"']).end == "upstream_cut"
    assert ours([sse(BARE, STOP) + b'data: {"choices"']).end == "stop"


def test_content_that_cannot_be_read_after_the_end_is_an_interruption() -> None:
    """There was more, and it is lost; what has no content can be."""
    assert ours([sse(BARE, STOP, calls({"function": 7})) + DONE]).end == "upstream_protocol"
    assert ours([sse(BARE, STOP) + b"data: {oops\n\n" + DONE]).end == "stop"


# ------------------------------------------------------------------------------------------------------- tool calls


def called(*chunks: dict[str, Any]) -> list[tuple[str, str, str]] | str | None:
    said = ours([sse(*chunks, END)])
    return list(said.calls.values()) if said.end == "stop" else said.end


def test_arguments_that_are_no_json_stay_as_the_model_said_them() -> None:
    """As Mistral's own API passes them on."""
    assert called(calls(call('{"a": ', name="f", id="1"))) == [("1", "f", '{"a": ')]
    assert called(calls(call("see below", name="f", id="1"))) == [("1", "f", "see below")]


def test_arguments_that_came_twice_are_said_once() -> None:
    whole = '{"a": [1]}'
    assert called(calls(call(whole, name="f", id="1")), calls(call(whole))) == [("1", "f", whole)]
    assert called(calls(call("{}", name="f", id="1")), calls(call(whole))) == [("1", "f", whole)]
    assert called(calls(call(whole, name="f", id="1")), calls(call({"a": [1]}))) == [("1", "f", whole)]
    assert called(calls(call({"a": 1}, name="f", id="1")), calls(call({"a": 1, "b": 2}))) == [
        ("1", "f", '{"a": 1, "b": 2}')
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        [call({"a": 1}, name="f", id="1"), call({"b": 2})],
        [call('{"a": ', name="f", id="1"), call({"b": 2})],
        [call('{"a": 1}', name="f", id="1"), call('{"a": 2}')],
        [call('{"a": ', name="f", id="1"), call("1}", name="g")],
    ],
    ids=repr,
)
def test_pieces_that_cannot_be_put_together_are_an_interruption(pieces: list[dict[str, Any]]) -> None:
    assert called(*map(calls, pieces)) == "upstream_protocol"


def test_two_calls_of_one_tool_stay_two() -> None:
    lyon, nice = '{"city": "Lyon"}', '{"city": "Nice"}'
    first = {"function": {"name": "f", "arguments": lyon}}
    second = {"function": {"name": "f", "arguments": nice}}
    two = [("null", "f", lyon), ("null", "f", nice)]
    assert called(calls(first, second)) == called(calls(first), calls(second)) == two
    zero = {"index": 0}
    assert called(calls(first | zero, second | zero)) == called(calls(first | zero), calls(second | zero)) == two
    same = {"id": "x", "index": 0}
    assert called(calls(first | same), calls(second | same)) == [("x", "f", lyon), ("x", "f", nice)]


def test_an_old_function_call_is_a_call() -> None:
    old = [chunk({"function_call": {"name": "f", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}})]
    assert called(*old) == [("null", "f", "{}")]


def test_pieces_that_say_nothing_open_nothing() -> None:
    assert called(calls({}, {"index": 0}, {"id": None, "function": None}), chunk({"tool_calls": {}})) == []


# ------------------------------------------------------------------------------------------- text, reasoning, usage


def test_reasoning_in_two_fields_and_the_content_counts_once() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    said = ours([sse(chunk({"content": [thinking], "reasoning_content": "hm", "reasoning": "hm"}), END)])
    assert said.reasoning == "hm"
    assert ours([sse(chunk({"reasoning_content": "a", "reasoning": "b"}), END)]).reasoning == "ab"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "text", "text": "Hi"}, ("Hi", "")),
        ([{"text": "Hi"}, {"type": "output_text", "text": "!"}], ("Hi!", "")),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "reasoning", "text": "?"}], ("", "hm?")),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}], ("", "hm")),
        ([{"type": "thinking", "thinking": ""}], ("", "")),
    ],
    ids=repr,
)
def test_parts_in_other_words(content: Any, said: tuple[str, str]) -> None:
    found = ours([sse(text(content), END)])
    assert (found.content, found.reasoning, found.parts) == (*said, [])


@pytest.mark.parametrize("field", ["error", "reasoning", "content", "usage", "detail"])
def test_what_is_nested_deep_does_no_harm(field: str) -> None:
    """Deeper than the libraries that read and write JSON go."""
    for depth in (60, 400, 900):
        deep: Any = 1
        for _ in range(depth):
            deep = {"a": deep}
        delta = {field: [deep] if field == "content" else deep}
        odd = chunk(delta, **{field: deep}) if field in ("error", "usage", "detail") else chunk(delta)
        assert ours([sse(odd, END)]).end in ("stop", "upstream_protocol", "error object")


def test_a_refusal_is_what_the_model_says() -> None:
    assert ours([sse(chunk({"content": None, "refusal": "I would rather not."}), END)]).content == "I would rather not."


def test_images_and_audio_are_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}}
    said = ours([sse(chunk({"content": "", "images": [image], "audio": {"id": "a"}}), END)])
    assert said.parts == [image, {"type": "audio", "audio": {"id": "a"}}]


def test_a_whole_message_that_differs_from_its_pieces_is_an_interruption() -> None:
    other = {"choices": [{"index": 0, "message": {"content": "Hello there"}, "finish_reason": "stop"}]}
    assert ours([sse(text("Hel"), other) + DONE]).end == "upstream_protocol"
    assert ours([sse(other, other) + DONE]).end == "upstream_protocol"


@pytest.mark.parametrize(
    ("reports", "usage"),
    [
        ([{"prompt_tokens": 3, "total_tokens": 8}], USAGE),
        ([{"completion_tokens": 5, "total_tokens": 8}], USAGE),
        (
            [{"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 5}],
            USAGE | {"prompt_tokens": 0, "total_tokens": 5},
        ),
        ([USAGE, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}, None, [], "x"], USAGE),
        ([{"prompt_tokens": "3", "completion_tokens": 5.0}], USAGE),
        ([{"input_tokens": 3, "output_tokens": 5}], USAGE | {"input_tokens": 3, "output_tokens": 5}),
        ([{"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39}, USAGE], USAGE),
        ([USAGE, {"completion_tokens": 6}], USAGE | {"completion_tokens": 6, "total_tokens": 9}),
        ([{"prompt_tokens": -3, "completion_tokens": True, "total_tokens": 10**30}], None),
        ([{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}], None),
        ([{"cost": 1}], None),
    ],
    ids=repr,
)
def test_the_last_real_counts_are_the_usage(reports: list[Any], usage: dict[str, Any] | None) -> None:
    chunks = [text("Hi"), *({"choices": [], "usage": report} for report in reports), STOP]
    assert ours([sse(*chunks) + DONE]).usage == usage


def test_a_completion_in_one_document_is_an_answer() -> None:
    message = {"role": "assistant", "content": "Hello", "tool_calls": [call({"a": 1}, name="f", id="1")]}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    said = ours([], document=json.dumps(document, indent=1).encode())
    assert (said.content, said.calls, said.usage, said.end) == ("Hello", {0: ("1", "f", '{"a": 1}')}, USAGE, "stop")
    for broken in (b"{}", b'{"choices": []}', json.dumps(document)[:-9].encode(), b"[]"):
        assert ours([], document=broken).end == "upstream_protocol"
    document["choices"] = [{"index": 0, "message": message, "finish_reason": None}]
    assert ours([], document=json.dumps(document).encode()).end == "upstream_cut"
    assert ours([], document=b'{"error": {"message": "no"}}').end == "error object"


# ----------------------------------------------------------------------------- any objects between those of an answer

names = (
    st.sampled_from(["id", "object", "type", "choices", "usage", "delta", "message", "content", "index", "detail", "x"])
    | st.sampled_from(["finish_reason", "text", "tool_calls", "function", "name", "arguments", "refusal", "data"])
    | st.sampled_from(["reasoning", "reasoning_content", "reasoning_details", "images", "audio", "x_groq"])
    | st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"])
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**12)
    | st.sampled_from(
        [0, 0.0, 1.5, "", "null", "stop", "length", "ping", "f", "{", "{}", '{"a": 1}', "[DONE]", "more "]
    )
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
objects = st.dictionaries(names, anything, max_size=5)
choices = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("index", "delta", "message", "finish_reason", "text", "usage"), anything)
)
nearly = st.fixed_dictionaries({"choices": st.lists(choices | anything, max_size=2)}, optional={"usage": anything})
strangers = objects | nearly

WORDS, THOUGHT = ("The tide ", "turns at ", "noon."), "Hm."
VALID = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": THOUGHT}),
    *map(text, WORDS),
    calls(call('{"city": ', name="get_weather", id="abc", index=0)),
    calls(call('"Lyon"}', id="abc", index=0)),
    text("", "tool_calls", usage=USAGE),
]


def _in_order(needle: tuple[str, ...], text: str) -> bool:
    at = 0
    for word in needle:
        at = text.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


@pytest.mark.parametrize("blank_line", [b"\n\n", b""], ids=["a frame", "the rest of the stream"])
@pytest.mark.parametrize("beside", [None, "x", {"delta": {"content": 5}}, {"error": {"message": "no"}}])
def test_a_broken_chunk_ends_no_answer(beside: object, blank_line: bytes) -> None:
    """Its finish reason does not count, although it stands before what is broken."""
    broken = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}, beside]}
    said = ours([sse(text("The tide ")), sse(broken).removesuffix(b"\n\n") + blank_line])
    assert said.end in ("upstream_protocol", "upstream_cut", "error object"), said


@PATIENT
@given(st.data())
def test_what_stands_between_the_chunks_of_an_answer_takes_nothing_away(data: st.DataObject) -> None:
    """The text, reasoning, call and usage of the valid chunks come out whole, or the answer is an interruption."""
    places = data.draw(st.lists(st.tuples(st.integers(0, len(VALID)), strangers), max_size=5))
    chunks = list(VALID)
    for place, stranger in sorted(places, key=lambda pair: -pair[0]):
        chunks.insert(place, stranger)
    ending = data.draw(st.sampled_from([DONE, b""]))
    said = ours([sse(*chunks) + ending])
    if (said.end or "").startswith("upstream_") or said.end == "error object":
        return
    assert _in_order(WORDS, said.content)
    assert THOUGHT in said.reasoning
    assert ("abc", "get_weather", '{"city": "Lyon"}') in said.calls.values()
    assert said.usage is not None
    assert said.usage["prompt_tokens"] > 0


@PATIENT
@given(st.data())
def test_a_stream_that_is_cut_is_never_whole(data: st.DataObject) -> None:
    """Wherever it is cut before its finish reason, and whatever stood between: unless a stranger brought a reason."""
    kept = data.draw(st.integers(0, len(VALID) - 1))
    chunks: list[dict[str, Any]] = VALID[:kept]
    for place, stranger in data.draw(st.lists(st.tuples(st.integers(0, kept), strangers), max_size=4)):
        chunks.insert(min(place, len(chunks)), stranger)
    said = ours([sse(*chunks)], cut=data.draw(st.booleans()))
    if '"finish_reason": "' not in json.dumps(chunks):
        assert said.end is None or said.end.startswith("upstream_") or said.end == "error object"
