"""What a stream of Mistral says, whatever way its bytes are cut: compared with the SDK's own iterator."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistralai.client.models import CompletionChunk, CompletionEvent
from mistralai.client.utils.eventstreaming import stream_events_async
from mistralai.client.utils.unmarshal_json_response import unmarshal_json_response

from chatjobs.contracts import Channel, JsonObject, Usage
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRefused
from domain.ports import Finish, ModelEvent, PartDelta, StillWorking, TextDelta
from providers.mistral.answer import Answer, ErrorObject
from providers.mistral.stream import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES, EventStream
from providers.mistral.values import parsed
from tests.support.mistral_stream import DONE, END, HELLO, USAGE, call, calls, chunk, sse, text

# Examples are large, and machines may be busy: neither says anything about the code.
PATIENT = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Said:
    """What a stream said, in a form that both decoders can fill. ``end`` is a finish reason, or how it failed."""

    content: str = ""
    reasoning: str = ""
    parts: list[Any] = field(default_factory=list)
    calls: dict[int, tuple[str, str, Any]] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    end: str | None = None

    def add(self, event: ModelEvent) -> None:
        match event:
            case TextDelta(Channel.CONTENT, words):
                self.content += words
            case TextDelta(_, words):
                self.reasoning += words
            case PartDelta(part):
                self.parts.append(part)
            case StillWorking():
                pass
            case Finish(reason, usage, tool_calls):
                self.calls = {c.index: (c.id, c.function.name, c.function.arguments) for c in tool_calls}
                self.usage = usage.model_dump() if usage else None
                self.end = reason


def ours(pieces: Iterable[bytes], *, cut: bool = False, proper: bool = True, document: bytes | None = None) -> Said:
    """See ``said_by``; how the answer failed is its end."""
    said = Said()
    try:
        said_by(pieces, said, cut=cut, proper=proper, document=document)
    except UpstreamError as error:
        said.end = error.reason
    except ErrorObject:
        said.end = "error object"
    return said


def said_by(
    pieces: Iterable[bytes],
    said: Said | None = None,
    *,
    cut: bool = False,
    proper: bool = True,
    document: bytes | None = None,
) -> Said:
    """What we make of a response: its end is a ``cut`` of the connection, ``proper``, or cannot be told from a cut."""
    said, answer = said or Said(), Answer()
    events = _events(answer, pieces, cut=cut, proper=proper) if document is None else answer.document(parsed(document))
    for event in events:
        said.add(event)
    said.add(answer.finish())
    return said


def _events(answer: Answer, pieces: Iterable[bytes], *, cut: bool, proper: bool) -> Iterator[ModelEvent]:
    for piece in pieces:
        yield from answer.feed(piece)
        if answer.done:
            return
    if not cut:
        yield from answer.end(proper=proper)


class Body(httpx2.AsyncByteStream):
    """A response's body in the pieces given."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


async def sdks(pieces: Iterable[bytes]) -> Said:
    """What the SDK's iterator makes of it. Its chunks are taken apart here as its documentation describes them."""
    said = Said()
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(pieces))

    def decode(raw: str) -> CompletionEvent:
        event: CompletionEvent = unmarshal_json_response(CompletionEvent, response, raw)
        return event

    try:
        async for event in stream_events_async(response, decode, sentinel="[DONE]"):
            _add(said, event.data)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what we look at
        said.end = type(error).__name__
    return said


def _add(said: Said, data: CompletionChunk) -> None:
    if data.usage:
        said.usage = data.usage.model_dump()
    for choice in data.choices:
        delta = choice.delta.model_dump(by_alias=True)
        _add_content(said, delta.get("content"))
        for piece in delta.get("tool_calls") or []:
            identifier, name, arguments = said.calls.get(piece["index"], ("null", "", ""))
            new, function = piece["function"]["arguments"], piece["function"]
            said.calls[piece["index"]] = (
                identifier if identifier != "null" else piece["id"],
                name or function["name"],
                arguments + new if isinstance(new, str) else new,
            )
        said.end = choice.finish_reason or said.end


def _add_content(said: Said, content: Any) -> None:
    if isinstance(content, str):
        said.content += content
    elif isinstance(content, list):
        for part in content:
            _add_part(said, part, "content")


def _add_part(said: Said, part: dict[str, Any], channel: str) -> None:
    match part:
        case {"type": "text"}:
            setattr(said, channel, getattr(said, channel) + part["text"])
        case {"type": "thinking", "thinking": list(parts)}:
            for one in parts:
                _add_part(said, one, "reasoning")
        case {"type": "UNKNOWN", "raw": raw}:
            said.parts.append(raw)
        case _:
            said.parts.append(part)


# ------------------------------------------------------------------------- any stream, framed and cut in any way

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words, st.lists, max_leaves=4)
references = st.lists(st.integers(0, 99) | words, max_size=3).map(
    lambda ids: {"type": "reference", "reference_ids": ids}
)
text_parts = words.map(lambda said: {"type": "text", "text": said})
thoughts = st.lists(text_parts | references, max_size=3).map(lambda parts: {"type": "thinking", "thinking": parts})
strange_parts = st.builds(lambda value: {"type": "hologram", "data": value}, values)
contents = words | st.lists(text_parts | references | thoughts | strange_parts, max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The chunks of one whole answer: a role, contents, tool calls in pieces, a finish reason, usage."""
    documents = [chunk({"role": "assistant", "content": ""})]
    documents += [text(content) for content in draw(st.lists(contents, max_size=6))]
    for index, name in enumerate(draw(st.lists(words.filter(bool), max_size=2))):
        documents.append(calls(call("", index=index, name=name, id=f"id{index}")))
        documents += [calls(call(words, index=index, name="")) for words in draw(st.lists(words, max_size=3))]
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "model_length", "tired"]))
    usage = draw(st.sampled_from(["same chunk", "later", "never"]))
    documents.append(text("", finish, **({"usage": USAGE} if usage == "same chunk" else {})))
    if usage == "later":
        documents.append({**chunk(), "choices": [], "usage": USAGE})
    return documents


@st.composite
def framed(draw: st.DrawFn, documents: Sequence[dict[str, Any]]) -> bytes:
    """The documents as an event stream with any line ends, fields, comments and line breaks within the JSON."""
    lines: list[str] = []
    for document in documents:
        lines += draw(
            st.lists(st.sampled_from([":", ": ping", "event: message", "id: 7", "retry: 10", "x"]), max_size=2)
        )
        layout = json.dumps(document, indent=draw(st.sampled_from([None, 0])), ensure_ascii=draw(st.booleans()))
        lines += [f"data:{draw(st.sampled_from(['', ' ']))}{line}" for line in layout.split("\n")]
        lines += [""] * draw(st.integers(1, 2))
    lines += draw(st.sampled_from([["data: [DONE]", ""], ["data:[DONE]"], []]))
    body = b"".join(_ended(draw, lines))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + body


def _ended(draw: st.DrawFn, lines: list[str]) -> Iterator[bytes]:
    """Each line with an end of its own; after a CR, an empty line cannot end in LF: the two would be one end."""
    before = ""
    for line in lines:
        ends = ["\r\n", "\r"] if before == "\r" and not line else ["\n", "\r\n", "\r"]
        before = draw(st.sampled_from(ends))
        yield (line + before).encode()


@st.composite
def cut(draw: st.DrawFn, whole: bytes, first: int = 1) -> list[bytes]:
    """``whole`` in pieces, cut anywhere behind ``first``."""
    places = st.integers(min(first, len(whole)), len(whole))
    ends = [0, *sorted(draw(st.sets(places, max_size=12))), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


@PATIENT
@given(st.data())
async def test_agrees_with_the_sdk_on_every_well_formed_stream(data: st.DataObject) -> None:
    """Text, reasoning, parts, tool calls, usage and finish reason, for any framing, cut anywhere."""
    whole = data.draw(framed(data.draw(answers())))
    # The SDK does not recognise a byte order mark that is cut (below).
    pieces = data.draw(cut(whole, first=3))
    assert ours(pieces) == await sdks(pieces)


@PATIENT
@given(st.data())
def test_cuts_never_matter(data: st.DataObject) -> None:
    """Well-formed or not: what is said and how it ends depends on the bytes alone, not on the reads they came in."""
    tokens = st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"data: ", b"data:", b"data", b": x", b"\xef\xbb\xbf", b"\xff", b"\\ud83d", b" ", DONE]
        + [sse(text(word))[:-2] for word in ("a", "é😀", "\ud83d")]
        + [
            sse(text("b"))[:-1],
            b"event: error\n",
            b"error: x\n",
            b'{"usage": {}}',
            DONE[:-1],
            b"data: data: ",
            b"null\n\n",
        ]
        + [sse(END)[:-1], sse({"object": "error"}), b'data: {"choices": 1}\n', sse(calls(call("{")))]
    )
    whole = b"".join(data.draw(st.lists(tokens, max_size=14)))
    assert ours(data.draw(cut(whole))) == ours([whole])


@pytest.mark.parametrize("whole", [HELLO, b"\xef\xbb\xbf" + HELLO.replace(b"\n", b"\r\n"), HELLO.replace(b"\n", b"\r")])
def test_byte_by_byte(whole: bytes) -> None:
    said = ours(whole[i : i + 1] for i in range(len(whole)))
    assert (said.content, said.end, said.usage) == ("Hello", "stop", USAGE)


def test_a_character_cut_in_the_middle_is_whole_again() -> None:
    whole = b"data: " + json.dumps(text("naïve 😀 日本"), ensure_ascii=False).encode() + b"\n\n" + sse(END)
    assert {ours([whole[:place], whole[place:]]).content for place in range(len(whole))} == {"naïve 😀 日本"}


# ------------------------------------------------------------------------------------- where we differ on purpose

HALF = json.dumps(text("\ud83d")).encode()


@dataclass(frozen=True)
class Difference:
    """A stream (in pieces, where they matter), what the SDK makes of it (its end and text), what we make of it, why."""

    stream: bytes | list[bytes]
    sdk: tuple[str | None, str]
    us: tuple[str | None, str]
    why: str


DIFFERENCES = {
    "no finish reason": Difference(
        sse(text("Hel")), (None, "Hel"), ("upstream_cut", "Hel"), "a cut answer must not pass for a whole one"
    ),
    "[DONE] without a finish reason": Difference(
        sse(text("Hel")) + DONE, (None, "Hel"), ("upstream_cut", "Hel"), "the same; [DONE] ends a stream, not an answer"
    ),
    "nothing at all": Difference(b"", (None, ""), ("upstream_empty", ""), "an empty stream is worth another try"),
    "finish reason error": Difference(
        sse(text("Hel", "error")), ("error", "Hel"), ("upstream_error", "Hel"), "it is a failure, and we can go on"
    ),
    "error object": Difference(
        sse(text("Hel"), {"object": "error", "message": "x", "type": "internal", "code": "1"}),
        ("ResponseValidationError", "Hel"),
        ("error object", "Hel"),
        "the SDK takes it for a malformed chunk; we look at what it says",
    ),
    "half of a surrogate pair": Difference(
        b"data: " + HALF + b"\n\n" + sse(END),
        ("ResponseValidationError", ""),
        ("stop", "\ud83d"),
        "legal JSON (RFC 8259, section 8.2); the other half may come in the next chunk, and storage joins them",
    ),
    "cut within the last chunk": Difference(
        sse(text("Hel")) + sse(text("lo"))[:-20],
        ("ResponseValidationError", "Hel"),
        ("upstream_cut", "Hel"),
        "half a chunk at the end is a cut, not a wrong format",
    ),
    "junk behind the finish reason": Difference(
        sse(text("Hi"), END) + b"data: {\n\n" + DONE,
        ("ResponseValidationError", "Hi"),
        ("stop", "Hi"),
        "the answer was whole before",
    ),
    "byte order mark within the stream": Difference(
        [sse(text("a")), b"\xef\xbb\xbf" + sse(text("b"), END)],
        ("stop", "ab"),
        ("stop", "a"),
        "only the first one is a mark (WHATWG HTML); elsewhere it makes a field nobody knows",
    ),
    "byte order mark cut in two": Difference(
        [b"\xef\xbb", b"\xbf" + sse(text("Hi"), END)],
        ("stop", ""),
        ("stop", "Hi"),
        "reads are cut anywhere; the SDK loses the first event",
    ),
    "empty data": Difference(
        b"data:\n\n" + sse(text("Hi"), END),
        ("ResponseValidationError", ""),
        ("stop", "Hi"),
        "an event with empty data is not dispatched (WHATWG HTML)",
    ),
    "invalid UTF-8 in a comment": Difference(
        b": \xff\n" + sse(text("Hi"), END), ("UnicodeDecodeError", ""), ("stop", "Hi"), "nobody reads comments"
    ),
    "invalid UTF-8 in data": Difference(
        sse(text("Hi")).replace(b"Hi", b"\xff"),
        ("UnicodeDecodeError", ""),
        ("upstream_protocol", ""),
        "the same refusal, as an error of ours",
    ),
    "not JSON": Difference(
        b"data: {oops}\n\n", ("ResponseValidationError", ""), ("upstream_protocol", ""), "the same, as an error of ours"
    ),
    "no id, model or delta": Difference(
        sse({"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [{"index": 0, "finish_reason": "stop"}]}),
        ("ResponseValidationError", ""),
        ("stop", "Hi"),
        "gateways leave out what we do not use",
    ),
    "another choice": Difference(
        sse(text("a"), chunk() | {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}, END),
        ("stop", "ab"),
        ("stop", "a"),
        "a job asks for one answer; the SDK leaves the sorting to its caller",
    ),
    "usage that makes no sense": Difference(
        sse(text("Hi", "stop", usage={"prompt_tokens": "many"})),
        ("ResponseValidationError", ""),
        ("stop", "Hi"),
        "the answer is worth more than its bill",
    ),
    "name of a tool in the first piece only": Difference(
        sse(calls(call("{", name="f", id="1")), calls(call("}")), END),
        ("ResponseValidationError", ""),
        ("stop", ""),
        "later pieces have nothing to say about it",
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES.values(), ids=DIFFERENCES)
async def test_differs_from_the_sdk_on_purpose(case: Difference) -> None:
    """A row that no longer holds is a change of the SDK, or of ours that needs a reason."""
    pieces = case.stream if isinstance(case.stream, list) else [case.stream]
    theirs, us = await sdks(pieces), ours(pieces)
    assert (theirs.end, theirs.content) == case.sdk
    assert (us.end, us.content) == case.us, case.why


# ---------------------------------------------------------------------------------------------------- framing


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\ndata:  b \n\n", [b"a", b" b "]),
        (b"data: a\ndata\ndata:b\n\n", [b"a\n\nb"]),
        (b"data:  a \ndata: b\n\n", [b" a \nb"]),
        (b"data: \n\n", []),
        (b"data\n\n", []),
        (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", [b"a", b"b", b"c"]),
        (b": data: a\n\nevent: data\nid: 1\n\n", []),
        (b" data: a\ndata : b\nDATA: c\ndata: d\n\n", [b"d"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"data: a\x0b\x0c\xc2\x85\xe2\x80\xa8b\n\n", [b"a\x0b\x0c\xc2\x85\xe2\x80\xa8b"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a", []),
    ],
    ids=repr,
)
def test_events_are_framed_as_whatwg_says(stream: bytes, data: list[bytes]) -> None:
    """However they are cut."""
    assert EventStream().feed(stream) == data
    frames = EventStream()
    assert [one for i in range(len(stream)) for one in frames.feed(stream[i : i + 1])] == data


def test_the_last_event_counts_without_its_blank_line() -> None:
    frames = EventStream()
    assert (frames.feed(b"data: a\n\ndata: b"), frames.tail(), frames.tail()) == ([b"a"], [b"b"], [])


# ------------------------------------------------------------------------------------------------ what is said


def events(*documents: dict[str, Any]) -> list[ModelEvent]:
    answer = Answer()
    return [*answer.feed(sse(*documents, END) + DONE), answer.finish()]


def test_content_in_parts_keeps_order_and_kinds() -> None:
    """Text is text, thinking is reasoning, everything else stays as it came, references within thinking too."""
    reference: JsonObject = {"type": "reference", "reference_ids": [1, "a"]}
    image: JsonObject = {"type": "image_url", "image_url": "https://x.example/y.png"}
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, reference], "closed": True}
    assert events(text([thinking, {"type": "text", "text": "So"}, image]))[:-1] == [
        TextDelta(Channel.REASONING, "hm"),
        PartDelta(reference),
        TextDelta(Channel.CONTENT, "So"),
        PartDelta(image),
    ]


def test_nothing_is_said_about_nothing() -> None:
    """Roles, empty strings, empty lists and null yield no event."""
    silent = [text(""), text([]), text(None), text([{"type": "text", "text": ""}]), chunk({"role": "assistant"})]
    assert events(*silent) == [Finish("stop", Usage.model_validate(USAGE))]


def test_tool_calls_are_merged_by_index() -> None:
    """Pieces may be interleaved; every piece is a sign of life; the calls come with the end."""
    said = events(
        calls(call('{"a"', name="f", id="1", index=1), call("[", name="g", id="0", index=0)),
        calls(call(": 1}", index=1)),
        calls(call("]", index=0, id="null")),
    )
    assert said[:-1] == [StillWorking()] * 4
    assert isinstance(said[-1], Finish)
    assert [(c.index, c.id, c.function.name, c.function.arguments) for c in said[-1].tool_calls] == [
        (0, "0", "g", "[]"),
        (1, "1", "f", '{"a": 1}'),
    ]


def test_arguments_as_an_object_become_text() -> None:
    said = ours([sse(calls(call("", name="f")), calls(call({"a": [1, None]})), END)])
    assert said.calls == {0: ("null", "f", '{"a": [1, null]}')}


def test_whole_calls_without_an_index_are_told_apart() -> None:
    said = ours([sse(calls(call("1", name="f", index=None), call("2", name="g", index=None)), END)])
    assert [(name, arguments) for _, name, arguments in said.calls.values()] == [("f", "1"), ("g", "2")]


def test_surrogate_halves_meet_in_arguments() -> None:
    """Arguments are joined here, unlike text, which storage joins; what stays alone becomes U+FFFD."""
    said = ours([sse(calls(call("\ud83d", name="f")), calls(call("\ude00 \ude00")), END)])
    assert said.calls[0][2] == "😀 \ufffd"


def test_a_tool_call_without_a_name_is_an_interruption() -> None:
    assert ours([sse(calls(call("{}")), END)]).end == "upstream_protocol"


def test_a_part_that_is_not_json_is_an_interruption() -> None:
    """NaN would be refused by the database later, when nobody can try again."""
    assert ours([sse(text([{"type": "score", "value": float("nan")}]), END)]).end == "upstream_protocol"


def test_one_chunk_may_say_several_things() -> None:
    """Text with a call, usage or finish reason beside it is not taken for plain text."""
    together = chunk({"content": "Hi", "tool_calls": [call("{}", name="f")]})
    assert events(together)[:-1] == [TextDelta(Channel.CONTENT, "Hi"), StillWorking()]
    said = ours([sse(together, text("!", usage=USAGE), text("?", "stop"))])
    assert (said.content, said.calls, said.usage) == ("Hi!?", {0: ("null", "f", "{}")}, USAGE)
    assert ours([sse(text("Hi", error={"message": "x"}))]).end == "error object"


def test_only_the_first_choice_is_read() -> None:
    other = chunk() | {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": None}]}
    assert ours([sse(other, END)]).content == ""


def test_parts_are_fit_to_be_stored() -> None:
    """Lone surrogates are legal on the wire, but in no database."""
    part = {"type": "x", "a\ud83d": ["\ud83d\ude00", "\ud83d"]}
    assert ours([sse(text([part]), END)]).parts == [{"type": "x", "a\ufffd": ["😀", "\ufffd"]}]


@pytest.mark.parametrize("reason", ["length", "model_length", "tool_calls", "tired"])
def test_finish_reasons_are_passed_on_as_they_are(reason: str) -> None:
    assert ours([sse(text("Hi", reason))]).end == reason


def test_usage_may_come_late_and_without_choices() -> None:
    assert ours([sse(text("Hi", "stop"), {"choices": [], "usage": USAGE}) + DONE]).usage == USAGE


def test_further_counters_are_kept() -> None:
    usage = USAGE | {"prompt_audio_seconds": None, "prompt_tokens_details": {"cached_tokens": 1}}
    said = ours([sse(text("Hi", "stop", usage=usage))])
    assert said.usage == USAGE | {"prompt_tokens_details": {"cached_tokens": 1}}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"choices": {}},
        {"choices": [1]},
        7,
        "Hello",
        {"choices": [{"index": 0, "delta": []}]},
        text(7),
        text(["x"]),
        chunk({"tool_calls": ["x"]}),
        calls({"function": 7}),
        calls(call(7, name="f")),
    ],
    ids=repr,
)
def test_what_is_not_a_chunk_is_an_interruption(document: Any) -> None:
    assert ours([sse(document)]).end == "upstream_protocol"


def test_absurdly_nested_json_is_an_interruption() -> None:
    assert ours([b"data: " + b"[" * 200_000 + b"\n\n"]).end == "upstream_protocol"


# ---------------------------------------------------------------------------------------------------- limits


def test_an_event_may_be_as_large_as_the_limit() -> None:
    line = b"data: ".ljust(MAX_EVENT_BYTES, b"x")
    assert EventStream().feed(line + b"\n\n") == [line[6:]]


@pytest.mark.parametrize("end", [b"\n\n", b""])
def test_an_event_beyond_the_limit_is_refused(end: bytes) -> None:
    with pytest.raises(UpstreamRefused) as refusal:
        EventStream().feed(b"data: ".ljust(MAX_EVENT_BYTES + 1, b"x") + end)
    assert refusal.value.reason == "upstream_too_large"


def test_a_growing_event_is_refused_as_soon_as_it_is_too_large() -> None:
    assert MAX_EVENT_BYTES - 4096 < _taken(itertools.repeat(b"x" * 4096)) <= MAX_EVENT_BYTES


def test_a_response_beyond_the_limit_is_refused() -> None:
    """Comments count: nobody may keep us reading for ever."""
    assert MAX_RESPONSE_BYTES - 8000 < _taken(itertools.repeat(b": ping\n\n" * 1000)) <= MAX_RESPONSE_BYTES


def _taken(pieces: Iterable[bytes]) -> int:
    """How many bytes were taken before the refusal."""
    frames, taken = EventStream(), 0
    with suppress(UpstreamRefused):
        for piece in pieces:
            frames.feed(piece)
            taken += len(piece)
    return taken


def test_errors_are_ours() -> None:
    with pytest.raises(UpstreamInterrupted) as cut_short:
        Answer().finish()
    assert (cut_short.value.reason, cut_short.value.http_status, cut_short.value.retryable) == (
        "upstream_empty",
        200,
        True,
    )
