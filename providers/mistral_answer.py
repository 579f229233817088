"""What a streamed answer of Mistral says: bytes in, model events out. Pure.

The shape of a chunk is ``mistralai.client.models.CompletionChunk`` (mistralai 3.7). What we do not use (id, model,
created, role, logprobs, padding) is not checked. Only choice 0 is read: a job asks for one answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from activities.ports import Finish, ModelEvent, PartDelta, Progress, TextDelta
from chatjobs.contracts import Channel, FunctionCall, JsonObject, ToolCall, Usage
from chatjobs.errors import UpstreamError, UpstreamInterrupted
from providers.event_stream import EventStream

OK: Final = 200
"""The status of every response whose body is read as an answer."""

_DONE: Final = b"[DONE]"
_CONTENT: Final = Channel.CONTENT  # an enum's attribute costs more than a module's, and this is once a token

T = TypeVar("T")


class ErrorObject(Exception):
    """Mistral sent an error in the middle of the stream."""

    def __init__(self, document: JsonObject) -> None:
        super().__init__()
        self.document = document


class Answer:
    """One answer as it comes in: ``feed`` it the response's bytes, ``end`` it at their end, then take ``finish``.

    All three raise UpstreamInterrupted (``upstream_protocol``) for what is not Mistral's format, ErrorObject for an
    error in the stream and UpstreamRefused (``upstream_too_large``) beyond the limits of EventStream.
    """

    def __init__(self) -> None:
        self._frames = EventStream()
        self._calls: dict[int, _Call] = {}
        self._usage: Usage | None = None
        self._empty = True
        self.finish_reason: str | None = None
        """Why the model stopped; the answer is whole from then on, only its usage may still come."""
        self.done = False
        """``[DONE]`` was read; what follows it does not count."""

    def feed(self, chunk: bytes) -> Iterator[ModelEvent]:
        """The events in ``chunk``, which may be cut anywhere. The state is as of the last event taken.

        Behind a finish reason nothing is raised any more: the answer is whole, and whatever is wrong there ends it.
        """
        try:
            for data in self._frames.feed(chunk):
                if data == _DONE:
                    self.done = True
                    return
                yield from self._read(_parse(data))
        except (ErrorObject, UpstreamError):
            if self.finish_reason is None:
                raise
            self.done = True

    def end(self) -> Iterator[ModelEvent]:
        """The events in what was left without a blank line; half a chunk is dropped, the answer was cut there."""
        for data in self._frames.tail():
            try:
                document = _parse(data)
            except UpstreamInterrupted:
                return
            yield from self._read(document)

    def finish(self) -> Finish:
        """The end of a whole answer; a cut one raises UpstreamInterrupted (``upstream_cut``, ``upstream_empty``)."""
        if self.finish_reason is None:
            raise self._cut()
        calls = tuple(self._calls[index].whole(index) for index in sorted(self._calls))
        return Finish(self.finish_reason, self._usage, calls)

    def _cut(self) -> UpstreamInterrupted:
        if self._empty:
            message = "Mistral answered with an empty stream; try again, or try another model."
            return UpstreamInterrupted(message, code="upstream_empty", http_status=OK)
        message = "The stream from Mistral ended before the answer did; try again."
        return UpstreamInterrupted(message, code="upstream_cut", http_status=OK)

    def _read(self, chunk: JsonObject) -> Iterable[ModelEvent]:
        """Nearly every chunk is one piece of plain text: that one is recognised without looking any further."""
        text = _plain_text(chunk)
        if text is None:
            return self._read_any(chunk)
        self._empty = False
        return (TextDelta(_CONTENT, text),)

    def _read_any(self, chunk: JsonObject) -> Iterator[ModelEvent]:
        if _is_error(chunk):
            raise ErrorObject(chunk)
        if chunk.get("usage") is not None:
            self._usage = _usage(chunk["usage"])
        for choice in _expect(chunk.get("choices"), list):
            if _expect(choice, dict).get("index") in (0, None):
                yield from self._read_choice(choice)

    def _read_choice(self, choice: JsonObject) -> Iterator[ModelEvent]:
        delta = _optional(choice.get("delta"), dict)
        for event in _content(delta.get("content")):
            self._empty = False
            yield event
        for position, call in enumerate(_optional(delta.get("tool_calls"), list)):
            self._empty = False
            self._merge(position, _expect(call, dict))
            yield Progress()
        reason = choice.get("finish_reason")
        if reason == "error":
            message = "Mistral broke the answer off with an error of its own; try again."
            raise UpstreamInterrupted(message, code="upstream_error", http_status=OK)
        if reason is not None and self.finish_reason is None:
            self.finish_reason = whole_text(_expect(reason, str))

    def _merge(self, position: int, call: JsonObject) -> None:
        """Pieces with one index are one call. Without an index, calls are told apart by their place in the list."""
        index = call.get("index")
        key = index if isinstance(index, int) else position
        self._calls.setdefault(key, _Call()).add(call)


class _Call:
    """A tool call in pieces: the first id, type and name count; arguments grow."""

    def __init__(self) -> None:
        self._id = self._type = self._name = ""
        self._arguments: list[str] | JsonObject = []

    def add(self, piece: JsonObject) -> None:
        function = _optional(piece.get("function"), dict)
        identifier = _optional(piece.get("id"), str)
        self._id = self._id or ("" if identifier == "null" else identifier)  # "null" is how Mistral leaves it out
        self._type = self._type or _optional(piece.get("type"), str)
        self._name = self._name or _optional(function.get("name"), str)
        self._add_arguments(function.get("arguments"))

    def _add_arguments(self, arguments: Any) -> None:
        """Text is appended; an object is the whole of them."""
        if isinstance(arguments, dict):
            self._arguments = _legal(arguments)
        elif isinstance(arguments, str) and isinstance(self._arguments, list):
            self._arguments.append(arguments)
        elif arguments is not None:
            raise _protocol("a tool call's arguments are neither text nor an object")

    def whole(self, index: int) -> ToolCall:
        if not self._name:
            raise _protocol("a tool call has no name")
        arguments = self._arguments
        return ToolCall(
            id=whole_text(self._id) or "null",
            type=whole_text(self._type) or "function",
            function=FunctionCall(
                name=whole_text(self._name),
                arguments=whole_text("".join(arguments)) if isinstance(arguments, list) else arguments,
            ),
            index=index,
        )


def _plain_text(chunk: Any) -> str | None:
    """The text of a chunk with one choice, plain content and nothing else to look at; None for every other chunk.

    The shape is not checked first: what is not as expected ends in the except clause.
    """
    try:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text = delta["content"]
        if (
            choice["finish_reason"] is None
            and choice["index"] == 0
            and type(text) is str
            and text
            and not delta.get("tool_calls")
            and chunk.get("usage") is None
            and "error" not in chunk
        ):
            return text
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return None


def _content(content: Any) -> Iterator[ModelEvent]:
    """A string, a list of parts, or nothing."""
    if isinstance(content, str):
        if content:
            yield TextDelta(_CONTENT, content)
    elif content is not None:
        for part in _expect(content, list):
            yield from _part(_expect(part, dict))


def _part(part: JsonObject) -> Iterator[ModelEvent]:
    match part:
        case {"type": "text", "text": str(text)}:
            yield from _text(Channel.CONTENT, text)
        case {"type": "thinking", "thinking": str(text)}:
            yield from _text(Channel.REASONING, text)
        case {"type": "thinking", "thinking": list(parts)}:
            for one in parts:
                yield from _thought(_expect(one, dict))
        case _:
            yield PartDelta(_legal(part))


def _thought(part: JsonObject) -> Iterator[ModelEvent]:
    match part:
        case {"type": "text", "text": str(text)}:
            yield from _text(Channel.REASONING, text)
        case _:
            yield PartDelta(_legal(part))


def _text(channel: Channel, text: str) -> Iterator[ModelEvent]:
    if text:
        yield TextDelta(channel, text)


def _is_error(chunk: JsonObject) -> bool:
    """``{"object": "error", …}`` is Mistral's; the others come from gateways in front of a model."""
    return (
        chunk.get("object") == "error"
        or bool(chunk.get("error"))
        or ("choices" not in chunk and ("message" in chunk or "detail" in chunk))
    )


def _usage(value: Any) -> Usage | None:
    """The counters; None where they make no sense: the caller estimates, the answer is worth more than its bill."""
    try:
        counted = {name: count for name, count in _expect(value, dict).items() if count is not None}
        return Usage.model_validate(_legal(counted))
    except (ValidationError, UpstreamInterrupted):
        return None


def _parse(data: bytes) -> JsonObject:
    """One JSON object. Lone surrogates are legal JSON, and halves of a pair may come in two chunks."""
    try:
        document = from_json(data, cache_strings="keys")
    except ValueError:
        document = _parse_slowly(data)  # pydantic's parser refuses lone surrogates
    return document if type(document) is dict else _expect(document, dict)


def _parse_slowly(data: bytes) -> Any:
    try:
        # Decoded here: json.loads would guess UTF-16 from the bytes, and the format is UTF-8.
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        raise _protocol("a chunk is not JSON in UTF-8") from None


def _legal(part: JsonObject) -> JsonObject:
    """``part``, fit to be stored as JSON: numbers finite, text whole Unicode."""
    try:
        text = json.dumps(part, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise _protocol("a part of the answer has a number that JSON does not have") from None
    whole = whole_text(text)
    return part if whole is text else _expect(json.loads(whole), dict)


def whole_text(text: str) -> str:
    """``text`` with the halves of surrogate pairs joined, and U+FFFD for those that stand alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _expect(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _protocol(
            f"a chunk has {_JSON_NAMES.get(type(value), 'something else')} where {_JSON_NAMES[kind]} belongs"
        )
    return value


def _optional(value: Any, kind: type[T]) -> T:
    """An empty ``kind`` for what is missing or null."""
    return kind() if value is None else _expect(value, kind)


_JSON_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "nothing",
}


def _protocol(what: str) -> UpstreamInterrupted:
    return UpstreamInterrupted(
        f"Mistral's stream is not in its format: {what}; check MISTRAL_SERVER_URL, or try again.",
        code="upstream_protocol",
        http_status=OK,
    )
