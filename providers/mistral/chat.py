"""Mistral as a ChatModel.

The SDK (mistralai 3.7) does credentials, URL, headers, hooks (providers/mistral/sdk.py). Two things are done here,
because the SDK builds pydantic models for them: the request's body (serialised from our own model) and the decoding of
the stream. `tests/providers/test_mistral_requests.py` compares our requests with those of ``sdk.chat.stream_async``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import httpx2

from chatjobs.contracts import (
    OURS,
    AssistantMessage,
    ChatRequest,
    Content,
    ContentPart,
    Message,
    TextPart,
    message_text,
)
from domain.continuing import AS_MISTRAL, NEVER, Practice, Way, own_prefix
from domain.errors import UpstreamError
from domain.ports import Allowance, Continuing, Finish, ModelEvent, Seam, StillWorking
from domain.timings import Timings
from providers.mistral.answer import Answer
from providers.mistral.echo import Echo
from providers.mistral.errors import NO_ALLOWANCE_HEADER, ErrorAnswer, Private, mistral_errors
from providers.mistral.sdk import MAX_ERROR_BYTES, Operation, SdkCalls, error_answer, http_client, is_encoded
from providers.mistral.stream import MAX_RESPONSE_BYTES, too_large
from providers.mistral.transport import EXCHANGE
from providers.mistral.usage_option import INCLUDE_USAGE, UsageOption
from providers.mistral.values import OK, parsed

MOST_TO_MEASURE: Final = 100
"""Models that wait to be measured; a further one is requested again by the next job that needs it."""
DRAIN_SECONDS: Final = 0.2
"""How long the end of the response may come after the end of the answer; later, the connection is not kept."""

_PLAIN_TYPES: Final = frozenset({"", "text/plain", "application/octet-stream", "binary/octet-stream"})
_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = (b"data:", b"event:", b"error:", b"id:", b"retry:")
_FIRST_BYTES: Final = len(b"retry:")
"""The bytes needed to tell an event stream from JSON, and both from anything else."""

STREAM_CHAT: Final = Operation("stream_chat", "chat", "POST", "/v1/chat/completions#stream", "text/event-stream")
ACCOUNT_CHARACTERS: Final = 8
_VERSION: Final = re.compile(r"-(latest|[0-9]{4})$")
"""The version in a model's name, which its family does not have: mistral-small-latest, mistral-small-2506."""
_RATE_LIMIT_HEADERS: Final = {
    "requests_per_minute": NO_ALLOWANCE_HEADER,
    "requests_left": "x-ratelimit-remaining-req-minute",
    "tokens_per_minute": "x-ratelimit-limit-tokens-minute",
    "tokens_left": "x-ratelimit-remaining-tokens-minute",
}


class MistralChat:
    """Streams chat completions of Mistral (domain.ports.ChatModel). Close it with ``aclose``."""

    def __init__(
        self,
        api_key: str | None = None,
        server_url: str | None = None,
        *,
        idle_connections: int = 100,
        practice: Practice | None = AS_MISTRAL,
        timings: Timings = Timings(),
    ) -> None:
        """Without ``api_key`` the SDK looks for credentials itself; without ``server_url`` it calls Mistral's server.

        ``idle_connections``: how many stay open for the next request; the number of concurrent completions is a good
        value. ``practice``: how the server continues an assistant's message; None: unknown until ``learn`` is called.
        Raises ValueError for a malformed key or URL, without repeating it.
        """
        self._practice = practice
        self._usage = UsageOption(server_url, practice)
        self._timings = timings
        self._learned: dict[str, Practice] = {}
        self._to_measure: set[str] = set()
        self._measurement_requested = asyncio.Event()
        self._calls = SdkCalls(api_key, server_url, http_client(idle_connections))
        self._account = hashlib.sha256((api_key or "").encode()).hexdigest()[:ACCOUNT_CHARACTERS]

    def lane(self, model: str) -> str:
        """See ChatModel. A few digits of its digest identify the key without revealing it."""
        return f"{self._account}:{_VERSION.sub('', model)}"

    def learn(self, practices: Mapping[str, Practice]) -> None:
        """Set the measured practices, by model."""
        self._learned = dict(practices)

    def practice(self, model: str) -> Practice | None:
        """How a model is made to continue; None if that is not known."""
        found = self._learned.get(model)
        if self._practice is None or (found is not None and found.way == self._practice.way):
            return found
        return self._practice

    def continuing(self, model: str, form: str = "text") -> Continuing:
        """See ChatModel."""
        practice = self.practice(model)
        if practice is None:
            self.request_measurement(model)
            return Continuing.UNPROVEN
        if practice.way is Way.NONE:
            return Continuing.NEVER
        if form == "text":
            return Continuing.KNOWN
        if practice.formats is None:
            self.request_measurement(model)
        return Continuing.KNOWN if form in (practice.formats or ()) else Continuing.OTHER_FORMATS

    def unsent(self, request: ChatRequest, text: str) -> str:
        """See ChatModel."""
        _, dropped = (self.practice(request.model) or NEVER).divided(own_prefix(request) + text)
        return dropped[-len(text) :] if text else ""

    def request_measurement(self, model: str) -> None:
        """Request a measurement of how ``model`` continues."""
        if len(self._to_measure) < MOST_TO_MEASURE:
            self._to_measure.add(model)
        self._measurement_requested.set()

    async def models_to_measure(self, timeout: float) -> set[str]:
        """Wait for requested measurements and return their models; after ``timeout`` seconds none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._measurement_requested.wait()
        self._measurement_requested.clear()
        models, self._to_measure = self._to_measure, set()
        return models

    async def aclose(self) -> None:
        await self._calls.aclose()

    async def stream(
        self,
        request: ChatRequest,
        continue_from: str | None = None,
        *,
        raw: bool = False,
        practice: Practice | None = None,
    ) -> AsyncGenerator[ModelEvent, None]:
        """See ChatModel. There are no time limits on the answer here, except those after its end.

        ``raw``: with the echo, for measurements. ``practice``: overrides the known one.
        """
        practice = practice or self.practice(request.model) or NEVER
        asks = self._usage.asks(request)
        body = request_body(request, continue_from, practice, ask_for_usage=asks)
        echo = None if raw else expected_echo(request, continue_from, practice)
        private = Private(body)
        with mistral_errors(private):
            try:
                response = await self._open(body, private)
                if asks:
                    self._usage.taken(request)
            except ErrorAnswer as error:
                if not (asks and self._usage.may_be_refused(request, error)):
                    raise
                response = await self._open(request_body(request, continue_from, practice), private)
                self._usage.refused(request)
        try:
            with mistral_errors(private, streaming=True, headers=response.headers):
                if (allowance := _allowance(response)) is not None:
                    yield allowance
                async with aclosing(_events(response, self._timings, partial(self._usage.note, request))) as events:
                    if echo is not None:
                        async for event in events:
                            taken = echo.take(event)
                            if echo.decided and not isinstance(event, Finish):
                                yield Seam(echo.confirmed)
                            for own in taken:
                                yield own
                            if echo.decided:
                                break
                    async for event in events:  # most answers have no echo, and their tokens pass no further code
                        yield event
        finally:
            await response.aclose()

    async def _open(self, body: bytes, private: Private) -> httpx2.Response:
        """A response that may contain an answer, which the caller closes. Raises ErrorAnswer for any other response."""
        response = await self._calls.send(STREAM_CHAT, private, content=body)
        if _may_be_answer(response):
            return response
        raise await error_answer(response, self._timings.model_error_seconds)


# --------------------------------------------------------------------------------------------------- request


def request_body(
    request: ChatRequest,
    continue_from: str | None = None,
    practice: Practice = AS_MISTRAL,
    *,
    stream: bool = True,
    ask_for_usage: bool = False,
) -> bytes:
    """``request`` as JSON for the server: without our own fields and those that are None.

    ``stream``: the answer is to be streamed; else the field is left out, as in a batch. ``ask_for_usage``: with
    OpenAI's ``stream_options``.
    """
    messages = sent_messages(request, continue_from, practice)
    continues = isinstance(messages[-1], AssistantMessage)
    sent = request.model_copy(update={"messages": messages, "stream": True})
    left_out: dict[str, Any] = dict.fromkeys(OURS - {"stream"} if stream else OURS, True)
    if practice.way in (Way.CONTINUE_FINAL_MESSAGE, Way.ASSISTANT) and continues:
        left_out["messages"] = {len(messages) - 1: {"prefix"}}
    body = sent.model_dump_json(exclude=left_out, exclude_none=True).encode()
    further: dict[str, Any] = {**(INCLUDE_USAGE if ask_for_usage else {}), **request.extra}
    if practice.way is Way.CONTINUE_FINAL_MESSAGE and continues:
        further |= {"continue_final_message": True, "add_generation_prompt": False}
    return body[:-1] + b"," + json.dumps(further).encode()[1:] if further else body


def sent_messages(request: ChatRequest, text: str | None, practice: Practice = AS_MISTRAL) -> Sequence[Message]:
    """The messages with ``text`` as the beginning of the answer, after the caller's own prefix if there is one.

    Trailing whitespace that the server drops is not sent. The messages stay unchanged if there is nothing to continue,
    or if the server does not continue.
    """
    *before, last = request.messages
    own = isinstance(last, AssistantMessage)
    if practice.way is Way.NONE or not (text or own):
        return request.messages
    if not isinstance(last, AssistantMessage):
        before, last = list(request.messages), AssistantMessage(content="")
    _, dropped = practice.divided(message_text(last) + (text or ""))
    message = last.model_copy(
        update={
            "content": _truncated(_appended(last.content, text or ""), len(dropped)),
            "prefix": practice.way is Way.PREFIX,
        }
    )
    return (*before, message)


def _appended(content: Content | None, text: str) -> Content:
    if content is None or isinstance(content, str):
        return (content or "") + text
    return (*content, TextPart(text=text)) if text else content


def _truncated(content: Content, dropped: int) -> Content:
    """``content`` without its last ``dropped`` characters."""
    if isinstance(content, str):
        return content[: len(content) - dropped]
    kept = list[ContentPart]()
    for part in reversed(content):
        if dropped and isinstance(part, TextPart):
            rest = part.text[: max(0, len(part.text) - dropped)]
            dropped -= len(part.text) - len(rest)
            kept += [part.model_copy(update={"text": rest})] if rest else []
        else:
            kept.append(part)
    return tuple(reversed(kept))


def expected_echo(request: ChatRequest, continue_from: str | None, practice: Practice = AS_MISTRAL) -> Echo | None:
    """The Echo for the text that the server may repeat; None if the request continues no text."""
    text = own_prefix(request) + (continue_from or "")
    if not text or practice.way is Way.NONE:
        return None
    sent, dropped = practice.divided(text)
    return Echo(sent, dropped, shown=bool(continue_from), echoes=practice.echoes, usual=practice.way is Way.PREFIX)


# -------------------------------------------------------------------------------------------------- response


async def _events(
    response: httpx2.Response, timings: Timings, note: Callable[[Finish], None]
) -> AsyncGenerator[ModelEvent, None]:
    """The events of an answer, Finish last, which ``note`` gets, too. Once the answer is whole, later errors are
    ignored."""
    answer = Answer()
    async with _chunks(response) as chunks:
        if not _is_event_stream(response):
            for event in await _unlabelled_events(response, chunks, answer):
                yield event
        while not answer.done:
            if answer.whole:
                async with aclosing(_late_events(chunks, answer, timings)) as late:
                    async for event in late:
                        yield event
                if answer.whole:
                    break
            async for chunk in chunks:
                for event in answer.feed(chunk):
                    yield event
                if answer.done or answer.whole:
                    break
            else:
                # Without framing, the response ends with its connection, as it does when it is cut.
                framed = not response.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
                for event in answer.end(proper=framed):
                    yield event
                break
        finish = answer.finish()
        note(finish)
        try:
            yield finish
        finally:  # reached by aclose: callers usually stop at Finish
            exchange = response.extensions.get(EXCHANGE)
            if exchange is None or not exchange.ended:
                await _drain(chunks)


@asynccontextmanager
async def _chunks(response: httpx2.Response) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """The body as it arrives. It is not encoded (``_may_be_answer``), so httpx2's decoding layers can be left out.

    With tracing on, the SDK wraps the response in a class of its own, which traces in ``aiter_bytes``.
    """
    if type(response) is httpx2.Response and EXCHANGE in response.extensions:
        yield response.extensions[EXCHANGE]
    else:
        async with aclosing(response.aiter_bytes()) as chunks:
            yield chunks


async def _late_events(
    chunks: AsyncIterator[bytes], answer: Answer, timings: Timings
) -> AsyncGenerator[ModelEvent, None]:
    """The events after the end of the answer: usage, or more output, which makes the answer incomplete again.

    A timeout or an error here does not fail the answer. A read is not cancelled before LATE_SECONDS are over, because
    that would lose chunks.
    """
    loop, late = asyncio.get_running_loop(), timings.model_late_seconds
    until = loop.time() + late
    reading = asyncio.ensure_future(_next(chunks))
    try:
        while answer.whole and not answer.done and loop.time() < until:
            await asyncio.wait({reading}, timeout=min(timings.model_sign_of_life_seconds, until - loop.time()))
            if not reading.done():
                if loop.time() < until:
                    yield StillWorking()
                continue
            chunk = _chunk_of(reading)
            if chunk is None:
                for event in answer.end():
                    yield event
                return
            chunks_before = answer.meaningful_chunks
            for event in answer.feed(chunk):
                yield event
            if answer.meaningful_chunks != chunks_before:
                until = loop.time() + late
            if answer.whole and not answer.done:
                reading = asyncio.ensure_future(_next(chunks))
    finally:
        if not reading.done():
            reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


def _chunk_of(reading: asyncio.Future[bytes | None]) -> bytes | None:
    """The chunk of a finished read; None at the end of the response, and if the connection broke."""
    with suppress(UpstreamError), mistral_errors(Private(), streaming=True):
        return reading.result()
    return None


async def _unlabelled_events(
    response: httpx2.Response, chunks: AsyncIterator[bytes], answer: Answer
) -> Iterator[ModelEvent]:
    """The first events of a body that is not labelled as an event stream: it may be one, or a completion as JSON."""
    beginning = await _beginning(response, chunks)
    if beginning.startswith(b"{"):
        return answer.document(parsed(await _document(beginning, chunks)))
    return answer.feed(beginning)


async def _beginning(response: httpx2.Response, chunks: AsyncIterator[bytes]) -> bytes:
    """The body up to its first non-blank bytes, without the blanks.

    Raises ErrorAnswer, before reading the rest, if it can be neither JSON nor an event stream.
    """
    body, size = b"", 0
    async for chunk in chunks:
        size += len(chunk)
        body = (body + chunk).removeprefix(_BOM).lstrip()
        if len(body) >= _FIRST_BYTES or size > MAX_ERROR_BYTES:
            break
    if not body.startswith((b"{", b":", *_FIELDS)):
        raise ErrorAnswer(response.status_code, response.headers)
    return body


async def _document(beginning: bytes, chunks: AsyncIterator[bytes]) -> bytes:
    """The whole body. Raises UpstreamRefused (``upstream_too_large``)."""
    body = bytearray(beginning)
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise too_large("The answer")
    return bytes(body)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end of the response, so that its connection can be reused; usually the end has already arrived."""
    with suppress(TimeoutError, UpstreamError), mistral_errors(Private(), streaming=True):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in chunks:
                pass


def _allowance(response: httpx2.Response) -> Allowance | None:
    """The rate limit in the headers, as far as they are valid; None without any."""
    found = {name: _number(response.headers.get(header)) for name, header in _RATE_LIMIT_HEADERS.items()}
    return Allowance(**found) if any(value is not None for value in found.values()) else None


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) else None


def _may_be_answer(response: httpx2.Response) -> bool:
    """Whether the body may be an answer, by status and type: HTML or an image is not."""
    readable = _is_event_stream(response) or _media_type(response) in _PLAIN_TYPES or "json" in _media_type(response)
    return response.status_code == OK and readable and not is_encoded(response)


def _is_event_stream(response: httpx2.Response) -> bool:
    return _media_type(response) == "text/event-stream"


def _media_type(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()
