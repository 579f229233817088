"""The decoder of Mistral's streamed completions: bytes in, model events out. Pure.

The shape of a chunk is ``mistralai.client.models.CompletionChunk`` (mistralai 3.7), and the variants of compatible
servers and gateways: docs/streams.md has the table. Fields that are not used (id, model, created, role, padding) are
not checked; unknown ones are kept (extras.py). Only choice 0 is read: a job requests one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final

from chatjobs.contracts import Channel, JsonObject
from domain.errors import UpstreamError, UpstreamInterrupted
from domain.outcomes import AttemptOutcome
from domain.ports import Finish, ModelEvent, PartDelta, StillWorking, TextDelta, UsageSoFar
from providers.mistral.calls import ToolCalls
from providers.mistral.extras import PER_CHUNK, Extras
from providers.mistral.stream import ErrorData, EventStream
from providers.mistral.usage import ReportedUsage
from providers.mistral.values import DONE, OK, expect, legal, optional, parsed, protocol, whole_text

_DONE: Final = DONE.encode()
_CONTENT: Final = Channel.CONTENT  # a module attribute is faster than an enum's, and this is read once per token
_PLAIN: Final = frozenset({"content", "role"})
"""The fields of a delta that has text only."""
_PLAIN_CHOICE: Final = frozenset({"index", "delta", "finish_reason"})
_PLAIN_CHUNK: Final = PER_CHUNK | {"choices", "usage", "system_fingerprint", "service_tier", "provider"}
"""The fields of a chunk that has text only. The last three are unknown ones that servers repeat on every chunk, also on
the last one, which is read in full."""


class ErrorObject(Exception):
    """Mistral sent an error in the middle of the stream."""

    def __init__(self, document: JsonObject) -> None:
        super().__init__()
        self.document = document


class End(Enum):
    """What is still missing for the answer to be whole.

    A finish reason ends an answer. But some servers put one on every chunk; after the first of those, an answer that
    was cut would pass for a whole one. So a reason ends the answer at once only if an earlier chunk had output without
    a reason, and never together with a tool call or after output has followed a reason.
    """

    REASON = "a finish reason"
    DONE = "[DONE]"
    CLOSE = "[DONE], or the proper end of the response"
    NOTHING = "nothing: the answer is whole, whatever follows"


class Answer:
    """The decoder of one answer: ``feed`` the response's bytes, call ``end`` at their end, then ``finish``.

    All three raise UpstreamInterrupted (``upstream_protocol``) for anything that is not Mistral's format, ErrorObject
    for an error in the stream and UpstreamRefused (``upstream_too_large``) beyond the limits of EventStream.
    """

    def __init__(self) -> None:
        self._frames = EventStream()
        self._calls = ToolCalls()
        self._counts = ReportedUsage()
        self._extras = Extras()
        self._reason: str | None = None
        self._awaits = End.REASON
        self._has_output = False  # there was output: text, a part or a tool call
        self._output_without_reason = False  # there was output in a chunk without a finish reason
        self._output_with_reason = False  # there was output in a chunk with a finish reason, or after one
        self._output_after_reason = False  # there was output after a finish reason
        self._characters = 0  # of the content
        self._message_text: str | None = None  # the content that came in whole messages
        self.meaningful_chunks = 0
        """The number of chunks with content: text, a tool call, usage, a finish reason."""
        self.done = False
        """``[DONE]`` was read; anything after it is ignored."""

    @property
    def whole(self) -> bool:
        """The answer is complete, and later errors are ignored; usage may follow, and more text makes it incomplete."""
        return self._awaits is End.NOTHING

    def feed(self, chunk: bytes) -> Iterator[ModelEvent]:
        """The events in ``chunk``, which may be cut anywhere. The state is as of the last event consumed.

        Once the answer is whole this does not raise: an error ends the answer instead. A frame that is broken does not
        make it whole.
        """
        whole = self.whole
        try:
            for data in self._frames.feed(chunk):
                if data == _DONE:
                    self.done = True
                    return
                yield from self._frame(data)
                whole = self.whole
                if self.done:
                    return
        except (ErrorObject, UpstreamError):
            if not (whole and self.whole):
                raise
            self.done = True

    def end(self, *, proper: bool = True) -> Iterator[ModelEvent]:
        """The events in the rest that no blank line has ended; half a chunk is dropped: the answer was cut there.

        ``proper``: the response's framing marks its end; else it ends with the connection, which may have been cut.
        """
        for data in self._frames.tail():
            whole = self.whole
            try:
                yield from self._frame(data)
            except UpstreamInterrupted:
                proper = False
                if self.whole and not whole:
                    self._awaits = End.REASON
            except ErrorObject:
                if not (whole and self.whole):
                    raise
        if self._awaits is End.CLOSE and proper:
            self._awaits = End.NOTHING

    def document(self, value: Any) -> Iterator[ModelEvent]:
        """The events of a whole completion, the JSON document that is sent in place of a stream or in a batch."""
        document = expect(value, dict)
        yield from self._read(document)
        if not document.get("choices"):
            raise protocol("there is no choice in the completion")
        self.done = True

    def finish(self) -> Finish:
        """The end of the answer. Raises UpstreamInterrupted (``upstream_cut``, ``upstream_empty``) for a cut one."""
        if self._reason is None or not (self.done or self.whole):
            raise self._cut()
        return Finish(self._reason, self._counts.usage(), self._calls.whole(), self._extras.whole())

    def _cut(self) -> UpstreamInterrupted:
        if not self._has_output:
            message = "Mistral answered with an empty stream; try again, or try another model."
            return UpstreamInterrupted(message, code=AttemptOutcome.EMPTY.value, http_status=OK)
        message = "The stream from Mistral ended before the answer did; try again."
        return UpstreamInterrupted(message, code=AttemptOutcome.CUT.value, http_status=OK)

    def _frame(self, data: bytes) -> Iterable[ModelEvent]:
        if type(data) is ErrorData:
            raise ErrorObject(_error_document(data))
        value = parsed(data)
        return self._read(value) if type(value) is dict else self._read_other(value)

    def _read_other(self, value: Any, depth: int = 0) -> Iterator[ModelEvent]:
        """The events of a frame that is not an object: null, objects in a list or in a string. Others raise."""
        if value is None or value == "":
            return
        if isinstance(value, str) and value.strip() == DONE:
            self.done = True
        elif isinstance(value, dict):
            yield from self._read(value)
        elif isinstance(value, list) and depth == 0 and value and all(isinstance(one, dict) for one in value):
            for one in value:
                yield from self._read(one)
        elif isinstance(value, str) and depth == 0 and value.lstrip().startswith(("{", "[")):
            yield from self._read_other(parsed(value.encode(errors="replace")), depth + 1)
        else:
            raise protocol("a chunk is not an object")

    def _read(self, chunk: JsonObject) -> Iterable[ModelEvent]:
        """The events of a chunk. Nearly every chunk is one piece of plain text, for which there is a short path."""
        text = _plain_text(chunk)
        if text is None or self._reason is not None:
            return self._read_any(chunk)
        self._has_output = self._output_without_reason = True
        self._characters += len(text)
        return (TextDelta(_CONTENT, text),)

    def _read_any(self, chunk: JsonObject) -> Iterator[ModelEvent]:
        if _is_error(chunk):
            raise ErrorObject(chunk)
        told = self._take_usage(chunk)
        self._extras.take_chunk(chunk)
        for choice in optional(chunk.get("choices"), list):
            if expect(choice, dict).get("index") in (0, None, "0"):
                yield from self._read_choice(choice, told)

    def _take_usage(self, chunk: JsonObject) -> UsageSoFar | None:
        """Usage at the top level, where most servers have it, and in Groq's ``x_groq``; Moonshot has it in a choice."""
        groq, told = chunk.get("x_groq"), None
        for reported in (chunk.get("usage"), groq.get("usage") if isinstance(groq, dict) else None):
            self.meaningful_chunks += self._counts.take(reported)
            told = told or self._counts.so_far(reported)
        return told

    def _read_choice(self, choice: JsonObject, told: UsageSoFar | None) -> Iterator[ModelEvent]:
        if is_error_value(choice.get("error")):
            raise ErrorObject({"error": choice["error"]})
        self.meaningful_chunks += self._counts.take(choice.get("usage"))
        told = told or self._counts.so_far(choice.get("usage"))
        delta = self._delta(choice)
        self._extras.take_choice(choice)
        self._extras.take_delta(delta)
        calls = _tool_calls(delta)
        events = [*_reasoning(delta), *_content(delta)]
        has_output = bool(events or calls)
        if has_output:
            self._note_output()
        for event in events:
            if isinstance(event, TextDelta) and event.channel is _CONTENT:
                self._characters += len(event.text)
            yield event._replace(told=told) if told and isinstance(event, TextDelta) else event
        for _ in calls:
            yield StillWorking()
        self._calls.take(calls)
        self._take_finish_reason(_finish_reason(choice), has_output=has_output, called=bool(calls))

    def _delta(self, choice: JsonObject) -> JsonObject:
        """The delta of a choice: its ``delta`` field, or what servers send in its place."""
        delta, message = optional(choice.get("delta"), dict), choice.get("message")
        if isinstance(choice.get("delta"), dict) and (delta or not message):
            return delta  # a message beside it repeats the whole answer so far
        if message is not None:
            return self._message(expect(message, dict))
        text = choice.get("text")
        return {} if text is None else {"content": expect(text, str)}

    def _message(self, message: JsonObject) -> JsonObject:
        """A message in place of a delta: a piece, or after deltas their repetition. Raises UpstreamInterrupted."""
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        calls = optional(message.get("tool_calls"), list)
        if self._message_text is None and self._has_output:
            if isinstance(content, str | None) and len(text) in (0, self._characters) and self._calls.repeats(calls):
                return {}
            raise protocol("a whole message is not what came in pieces before it")
        if self._message_text and text.startswith(self._message_text):
            raise protocol("whole messages repeat what came before, and no one can say how much of it is new")
        self._message_text = (self._message_text or "") + text
        return message

    def _note_output(self) -> None:
        self._has_output = True
        if self._reason is not None:  # the reason did not mark the end
            self._output_after_reason = self._output_with_reason = True
            self._awaits = End.DONE

    def _take_finish_reason(self, reason: str | None, *, has_output: bool, called: bool) -> None:
        """Update what is missing for the answer's end after a chunk with this finish reason."""
        self.meaningful_chunks += has_output or reason is not None
        if reason is None:
            self._output_without_reason = self._output_without_reason or has_output
            return
        calling = self._reason == "tool_calls" and reason == "stop" and bool(self._calls)
        if self._reason is None or ((has_output or self._awaits is End.DONE) and not calling):
            self._reason = reason  # of consecutive reasons without output between them, the first one counts
        if called or (has_output and not self._output_without_reason):
            self._output_with_reason = True
        if self._output_without_reason and not self._output_with_reason:
            self._awaits = End.NOTHING
        else:
            self._awaits = End.DONE if self._output_after_reason and has_output else End.CLOSE


# ---------------------------------------------------------------------------------------------- parts of a chunk


def _plain_text(chunk: Any) -> str | None:
    """The text of a chunk with one choice that has plain content only; None for every other chunk.

    The shape is not checked first: any other one ends in the except clause.
    """
    try:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text = delta["content"]
        if (
            choice.get("finish_reason") is None
            and choice["index"] == 0
            and type(text) is str
            and text
            and (len(delta) == 1 or delta.keys() <= _PLAIN)
            and (len(choice) == 3 or _has_nothing_else(choice))
            and chunk.get("usage") is None
            and chunk.keys() <= _PLAIN_CHUNK
        ):
            return text
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return None


def _has_nothing_else(choice: JsonObject) -> bool:
    """Whether the further fields of a choice are null, as vLLM writes ``logprobs`` and ``token_ids``."""
    return all(value is None or name in _PLAIN_CHOICE for name, value in choice.items())


def _content(delta: JsonObject) -> Iterator[ModelEvent]:
    """The content: a string, a part, a list of parts, or nothing. A ``refusal`` counts as content."""
    content = delta.get("content")
    if isinstance(content, str | None):
        yield from _text(_CONTENT, content or "")
    else:
        for part in [content] if isinstance(content, dict) else expect(content, list):
            yield from _part(expect(part, dict))
    yield from _text(_CONTENT, optional(delta.get("refusal"), str))
    for image in optional(delta.get("images"), list):
        yield PartDelta(legal(expect(image, dict)))
    if audio := optional(delta.get("audio"), dict):
        yield PartDelta(legal({"type": "audio", "audio": audio}))


def _part(part: JsonObject) -> Iterator[ModelEvent]:
    match part:
        case {"type": "text" | "output_text", "text": str(text)}:
            yield from _text(Channel.CONTENT, text)
        case {"type": "thinking", "thinking": list(parts)}:
            for one in parts:
                yield from _thought(expect(one, dict))
        case {"type": "thinking" | "reasoning"} if text := _thoughts(part):
            yield from _text(Channel.REASONING, text)
        case {"type": "thinking", "thinking": ""}:
            pass
        case {"text": str(text)} if "type" not in part:
            yield from _text(Channel.CONTENT, text)
        case _:
            yield PartDelta(legal(part))


def _thought(part: JsonObject) -> Iterator[ModelEvent]:
    match part:
        case {"type": "text", "text": str(text)}:
            yield from _text(Channel.REASONING, text)
        case _:
            yield PartDelta(legal(part))


def _text(channel: Channel, text: str) -> Iterator[ModelEvent]:
    if text:
        yield TextDelta(channel, text)


_REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_DEEPEST_THOUGHT: Final = 4
_THOUGHT_FIELDS: Final = ("text", "content", "summary", "thinking", "reasoning")


def _reasoning(delta: JsonObject) -> Iterator[ModelEvent]:
    """Reasoning in separate fields; the same text in several of them, or also in the content, counts once."""
    seen = {"".join(event.text for event in _thinking_in_content(delta))}
    for name in _REASONING_FIELDS:
        value = delta.get(name)
        text = _thoughts(value)
        if text not in seen:
            seen.add(text)
            yield from _text(Channel.REASONING, text)
        elif value and not text:
            yield StillWorking()  # encrypted, or of an unknown kind


def _thinking_in_content(delta: JsonObject) -> Iterator[TextDelta]:
    content = delta.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "thinking":
            yield from (event for event in _part(part) if isinstance(event, TextDelta))


def _thoughts(value: Any, depth: int = 0) -> str:
    """The text of a string, of an object that contains it, or of a list of both."""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST_THOUGHT:
        return ""
    if isinstance(value, list):
        return "".join(_thoughts(one, depth + 1) for one in value if isinstance(one, str | dict))
    if isinstance(value, dict):
        return next((text for name in _THOUGHT_FIELDS if (text := _thoughts(value.get(name), depth + 1))), "")
    return ""


def _tool_calls(delta: JsonObject) -> list[Any]:
    """The pieces of tool calls, also from ``function_call``, the older field of OpenAI's API for a single one."""
    calls = delta.get("tool_calls")
    if isinstance(calls, dict):
        calls = [calls] if calls else []
    old = optional(delta.get("function_call"), dict)
    return [*optional(calls, list), *([{"function": old}] if old else [])]


# ------------------------------------------------------------------------------------------------- finish reasons

_NO_REASONS: Final = frozenset(
    {"", "null", "none", "nil", "undefined", "false", "unspecified", "finish_reason_unspecified"}
    | {"in_progress", "not_finished", "streaming"}
)
"""Values on chunks that are not the last."""
_LIMITS: Final = frozenset({"length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens"})
_KNOWN: Final = frozenset({"stop", "tool_calls", "model_length", "content_filter"})
_FAILURES: Final = frozenset(
    {"error", "network_error", "server_error", "internal_error", "insufficient_system_resource", "overloaded"}
    | {"abort", "aborted", "cancelled", "canceled", "timeout"}
)
"""The server broke off the answer, in the words of DeepSeek, GLM, vLLM and SGLang."""
_LONGEST_REASON: Final = 100


def _finish_reason(choice: JsonObject) -> str | None:
    """Why the model stopped; None if this chunk does not say. Raises UpstreamInterrupted for a failure."""
    value = choice.get("finish_reason")
    if not isinstance(value, str):
        return None
    reason = value.strip()
    word = reason.lower()
    if word in _NO_REASONS:
        return None
    if word in _FAILURES:
        message = "Mistral broke the answer off with an error of its own; try again."
        raise UpstreamInterrupted(message, code="upstream_error", http_status=OK)
    if word in _LIMITS:
        return "length"
    return word if word in _KNOWN else whole_text(reason[:_LONGEST_REASON])


# --------------------------------------------------------------------------------------------------------- errors

_SIGNS_OF_LIFE: Final = frozenset({"ping", "heartbeat", "keepalive", "keep-alive", "keep_alive", "status", "info"})
_ERROR_FIELDS: Final = ("message", "detail", "msg", "errors", "error_message", "error_msg", "errmsg", "base_resp")


def _is_error(chunk: JsonObject) -> bool:
    """Whether a chunk is an error: ``{"object": "error", …}`` is Mistral's, the other forms come from gateways."""
    if "error" in (chunk.get("object"), chunk.get("type")) or is_error_value(chunk.get("error")):
        return True
    kinds = (chunk.get(name) for name in ("type", "object", "event"))
    if chunk.get("choices") or any(isinstance(kind, str) and kind.lower() in _SIGNS_OF_LIFE for kind in kinds):
        return False
    return any(_is_error_text(chunk.get(name)) for name in _ERROR_FIELDS)


def _is_error_text(value: Any) -> bool:
    """Whether the value of an error field is an error; a ``message`` with a role is a message of another format."""
    return is_error_value(value) and not (isinstance(value, dict) and "role" in value)


def is_error_value(value: Any) -> bool:
    """Whether a value says something: some servers send an error object without text and with code 0 in every chunk."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _error_document(data: bytes) -> JsonObject:
    """The error object in an event's data; text that is not an object becomes ``{"error": text}``."""
    try:
        value = parsed(data)
    except UpstreamInterrupted:
        value = data.decode(errors="replace")
    return value if isinstance(value, dict) else {"error": value}
