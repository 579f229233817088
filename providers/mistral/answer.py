"""What a streamed answer of Mistral says: bytes in, model events out. Pure.

The shape of a chunk is ``mistralai.client.models.CompletionChunk`` (mistralai 3.7), and what servers and gateways that
speak the same language make of it: docs/streams.md has the table. What is not used (id, model, created, role, logprobs,
padding) is not checked. Only choice 0 is read: a job asks for one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final

from chatjobs.contracts import Channel, JsonObject
from domain.errors import UpstreamError, UpstreamInterrupted
from domain.ports import Finish, ModelEvent, PartDelta, StillWorking, TextDelta, Told
from providers.mistral.calls import ToolCalls
from providers.mistral.stream import ErrorData, EventStream
from providers.mistral.usage import ReportedUsage
from providers.mistral.values import DONE, OK, expect, legal, optional, parsed, protocol, whole_text

_DONE: Final = DONE.encode()
_CONTENT: Final = Channel.CONTENT  # an enum's attribute costs more than a module's, and this is once a token
_PLAIN: Final = frozenset({"content", "role"})
"""The fields of a delta that is text and nothing else."""


class ErrorObject(Exception):
    """Mistral sent an error in the middle of the stream."""

    def __init__(self, document: JsonObject) -> None:
        super().__init__()
        self.document = document


class End(Enum):
    """What would have to come for the answer to be whole.

    A finish reason ends an answer. But there are servers that put one on every chunk, and then the first of them says
    nothing: an answer that was cut there would pass for a whole one. So a reason is only believed at once where the
    server was seen to say something without one, and never beside a tool call or where text has followed a reason.
    """

    REASON = "a finish reason"
    DONE = "[DONE]"
    CLOSE = "[DONE], or the proper end of the response"
    NOTHING = "nothing: the answer is whole, whatever follows"


class Answer:
    """One answer as it comes in: ``feed`` it the response's bytes, ``end`` it at their end, then take ``finish``.

    All three raise UpstreamInterrupted (``upstream_protocol``) for what is not Mistral's format, ErrorObject for an
    error in the stream and UpstreamRefused (``upstream_too_large``) beyond the limits of EventStream.
    """

    def __init__(self) -> None:
        self._frames = EventStream()
        self._calls = ToolCalls()
        self._counts = ReportedUsage()
        self._reason: str | None = None
        self._awaits = End.REASON
        self._spoke = False
        self._bare = False  # something was said without a finish reason beside it
        self._doubtful = False  # something was said with, or after, a finish reason
        self._again = False  # something was said after a finish reason
        self._characters = 0  # of the content
        self._messages: str | None = None  # the content that came in whole messages
        self.said = 0
        """How many chunks said something: text, a call, usage, a finish reason."""
        self.done = False
        """``[DONE]`` was read; what follows it does not count."""

    @property
    def whole(self) -> bool:
        """The answer cannot be undone any more; usage may still come, and more text makes it unfinished again."""
        return self._awaits is End.NOTHING

    def feed(self, chunk: bytes) -> Iterator[ModelEvent]:
        """The events in ``chunk``, which may be cut anywhere. The state is as of the last event taken.

        Once the answer is whole nothing is raised any more: whatever is wrong there ends it.
        """
        try:
            for data in self._frames.feed(chunk):
                if data == _DONE:
                    self.done = True
                    return
                yield from self._frame(data)
                if self.done:
                    return
        except (ErrorObject, UpstreamError):
            if not self.whole:
                raise
            self.done = True

    def end(self, *, proper: bool = True) -> Iterator[ModelEvent]:
        """The events in what was left without a blank line; half a chunk is dropped, the answer was cut there.

        ``proper``: the response says itself where it ends. Else, its end is that of the connection, which may be a cut.
        """
        for data in self._frames.tail():
            try:
                yield from self._frame(data)
            except UpstreamInterrupted:
                proper = False
            except ErrorObject:
                if not self.whole:
                    raise
        if self._awaits is End.CLOSE and proper:
            self._awaits = End.NOTHING

    def document(self, body: bytes) -> Iterator[ModelEvent]:
        """The events of a whole completion in one JSON document, which a server sent in place of a stream."""
        document = expect(parsed(body), dict)
        yield from self._read(document)
        if not document.get("choices"):
            raise protocol("there is no choice in the completion")
        self.done = True

    def finish(self) -> Finish:
        """The end of a whole answer; a cut one raises UpstreamInterrupted (``upstream_cut``, ``upstream_empty``)."""
        if self._reason is None or not (self.done or self.whole):
            raise self._cut()
        return Finish(self._reason, self._counts.usage(), self._calls.whole())

    def _cut(self) -> UpstreamInterrupted:
        if not self._spoke:
            message = "Mistral answered with an empty stream; try again, or try another model."
            return UpstreamInterrupted(message, code="upstream_empty", http_status=OK)
        message = "The stream from Mistral ended before the answer did; try again."
        return UpstreamInterrupted(message, code="upstream_cut", http_status=OK)

    def _frame(self, data: bytes) -> Iterable[ModelEvent]:
        if type(data) is ErrorData:
            raise ErrorObject(_error_document(data))
        value = parsed(data)
        return self._read(value) if type(value) is dict else self._read_other(value)

    def _read_other(self, value: Any, depth: int = 0) -> Iterator[ModelEvent]:
        """A frame that is no object: nothing, an object in a list or in a text, or something that nobody knows."""
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
        """Nearly every chunk is one piece of plain text: that one is recognised without looking any further."""
        text = _plain_text(chunk)
        if text is None or self._reason is not None:
            return self._read_any(chunk)
        self._spoke = self._bare = True
        self._characters += len(text)
        return (TextDelta(_CONTENT, text),)

    def _read_any(self, chunk: JsonObject) -> Iterator[ModelEvent]:
        if _is_error(chunk):
            raise ErrorObject(chunk)
        told = self._take_usage(chunk)
        for choice in optional(chunk.get("choices"), list):
            if expect(choice, dict).get("index") in (0, None, "0"):
                yield from self._read_choice(choice, told)

    def _take_usage(self, chunk: JsonObject) -> Told | None:
        """At the top; Groq and Moonshot have places of their own for it."""
        groq, told = chunk.get("x_groq"), None
        for reported in (chunk.get("usage"), groq.get("usage") if isinstance(groq, dict) else None):
            self.said += self._counts.take(reported)
            told = told or self._counts.told(reported)
        return told

    def _read_choice(self, choice: JsonObject, told: Told | None) -> Iterator[ModelEvent]:
        if _truthy(choice.get("error")):
            raise ErrorObject({"error": choice["error"]})
        self.said += self._counts.take(choice.get("usage"))
        told = told or self._counts.told(choice.get("usage"))
        delta = self._delta(choice)
        calls = _tool_calls(delta)
        events = [*_reasoning(delta), *_content(delta)]
        spoke = bool(events or calls)
        if spoke:
            self._speak()
        for event in events:
            if isinstance(event, TextDelta) and event.channel is _CONTENT:
                self._characters += len(event.text)
            yield event._replace(told=told) if told and isinstance(event, TextDelta) else event
        for _ in calls:
            yield StillWorking()
        self._calls.take(calls)
        self._end_with(_finish_reason(choice), spoke=spoke, called=bool(calls))

    def _delta(self, choice: JsonObject) -> JsonObject:
        """What a choice adds: its ``delta``, or what servers send in its place."""
        delta, message = optional(choice.get("delta"), dict), choice.get("message")
        if isinstance(choice.get("delta"), dict) and (delta or not message):
            return delta  # a message beside it is the whole so far, once more
        if message is not None:
            return self._message(expect(message, dict))
        text = choice.get("text")
        return {} if text is None else {"content": expect(text, str)}

    def _message(self, message: JsonObject) -> JsonObject:
        """A message in place of a delta: a piece, or after deltas all of them once more. Raises UpstreamInterrupted."""
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        calls = optional(message.get("tool_calls"), list)
        if self._messages is None and self._spoke:
            if isinstance(content, str | None) and len(text) in (0, self._characters) and self._calls.repeats(calls):
                return {}
            raise protocol("a whole message is not what came in pieces before it")
        if self._messages and text.startswith(self._messages):
            raise protocol("whole messages repeat what came before, and no one can say how much of it is new")
        self._messages = (self._messages or "") + text
        return message

    def _speak(self) -> None:
        self._spoke = True
        if self._reason is not None:  # then it was not the end
            self._again = self._doubtful = True
            self._awaits = End.DONE

    def _end_with(self, reason: str | None, *, spoke: bool, called: bool) -> None:
        """What the end of a chunk means for that of the answer."""
        self.said += spoke or reason is not None
        if reason is None:
            self._bare = self._bare or spoke
            return
        calling = self._reason == "tool_calls" and reason == "stop" and bool(self._calls)
        if self._reason is None or ((spoke or self._awaits is End.DONE) and not calling):
            self._reason = reason  # of several without anything between them, the first one counts
        if called or (spoke and not self._bare):
            self._doubtful = True
        if self._bare and not self._doubtful:
            self._awaits = End.NOTHING
        else:
            self._awaits = End.DONE if self._again and spoke else End.CLOSE


# ---------------------------------------------------------------------------------------------- parts of a chunk


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
            and (len(delta) == 1 or delta.keys() <= _PLAIN)
            and chunk.get("usage") is None
            and "error" not in chunk
            and "error" not in choice
        ):
            return text
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return None


def _content(delta: JsonObject) -> Iterator[ModelEvent]:
    """A string, a part or a list of parts, or nothing. What a model says in refusing is what it says."""
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
    """Reasoning in fields of its own; the same text in several of them, or in the content too, counts once."""
    said = {"".join(event.text for event in _thinking_in_content(delta))}
    for name in _REASONING_FIELDS:
        value = delta.get(name)
        text = _thoughts(value)
        if text not in said:
            said.add(text)
            yield from _text(Channel.REASONING, text)
        elif value and not text:
            yield StillWorking()  # encrypted, or of a kind yet unknown


def _thinking_in_content(delta: JsonObject) -> Iterator[TextDelta]:
    content = delta.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "thinking":
            yield from (event for event in _part(part) if isinstance(event, TextDelta))


def _thoughts(value: Any, depth: int = 0) -> str:
    """The text of a string, of an object that holds it, or of a list of both."""
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
    """``function_call`` is how OpenAI's API called its only one."""
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
"""What servers send on chunks that are not the last."""
_LIMITS: Final = frozenset({"length", "max_tokens", "max_length", "max_output_tokens", "max_new_tokens"})
_KNOWN: Final = frozenset({"stop", "tool_calls", "model_length", "content_filter"})
_FAILURES: Final = frozenset(
    {"error", "network_error", "server_error", "internal_error", "insufficient_system_resource", "overloaded"}
    | {"abort", "aborted", "cancelled", "canceled", "timeout"}
)
"""The server broke off: DeepSeek, GLM, vLLM and SGLang have words of their own for it."""
_LONGEST_REASON: Final = 100


def _finish_reason(choice: JsonObject) -> str | None:
    """Why the model stopped; None where this chunk does not say. Raises UpstreamInterrupted for a failure."""
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
    """``{"object": "error", …}`` is Mistral's; the others come from gateways in front of a model."""
    if "error" in (chunk.get("object"), chunk.get("type")) or _truthy(chunk.get("error")):
        return True
    if chunk.get("choices") or any(_word(chunk.get(name)) in _SIGNS_OF_LIFE for name in ("type", "object", "event")):
        return False
    return any(_says_what(chunk.get(name)) for name in _ERROR_FIELDS)


def _says_what(value: Any) -> bool:
    """A message with a role is one of another language, and no error."""
    return _truthy(value) and not (isinstance(value, dict) and "role" in value)


def _truthy(value: Any) -> bool:
    """Some servers have an error without words, and the code 0, in every chunk."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _word(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _error_document(data: bytes) -> JsonObject:
    """What stands in an event that is an error: an object, or words."""
    try:
        value = parsed(data)
    except UpstreamInterrupted:
        value = data.decode(errors="replace")
    return value if isinstance(value, dict) else {"error": value}
