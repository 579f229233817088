"""One function per parser that faces strangers. Each takes any bytes and raises only where the parser is wrong.

The first bytes of an input say where the rest is cut into pieces, so that every input is also tried in pieces.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx2
from httpx_sse import SSEError
from httpx_sse._decoders import SSEDecoder

from chatjobs.contracts import (
    CancelledEvent,
    ChunkEvent,
    CompleteEvent,
    ErrorEvent,
    QueuedEvent,
    StartEvent,
    StreamEvent,
)
from chatjobs.errors import (
    ChatJobsError,
    InvalidSignature,
    ResponseTooLarge,
    StreamBroken,
    WebhookUrlRefused,
    bounded,
)
from chatjobs.sse import JobEvents, Parser, ServerEvent
from chatjobs.webhooks import sign, verify
from domain.ports import PartDelta, TextDelta, WebhookResponse
from domain.webhook_urls import WebhookPolicy
from providers.mistral.answer import Answer, ErrorObject
from providers.mistral.stream import EventStream
from providers.mistral.transport import _Exchange
from providers.webhooks.sender import MAX_KEPT_BYTES, DirectTransport, HttpWebhookSender, _target

CUTS = 4
CUT = "cut"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICIES = (
    WebhookPolicy(),
    WebhookPolicy(allow_http=True, ip_literals=True, ports=(80, 8080)),
    WebhookPolicy(allow=("10.0.0.0/8", "receiver", "127.0.0.0/8"), loopback=True),
)


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The input without its first bytes, and the same cut where they say."""
    places, body = data[:CUTS], data[CUTS:]
    if not body:
        return b"", []
    marks = sorted({place * len(body) // 256 for place in places} | {0, len(body)})
    return body, [body[start:end] for start, end in pairwise(marks)]


# ------------------------------------------------------------------------------------------------ a model's answer


def answer(data: bytes) -> None:
    """The same text, calls and end, however the stream is cut; else an interruption or a refusal with a code."""
    body, cut = pieces(data)
    whole = _answered([body])
    assert whole == _answered(cut), (whole, _answered(cut))
    assert whole == _answered([body[at : at + 1] for at in range(len(body))]) or len(body) > 4_000


def _answered(chunks: list[bytes]) -> tuple[Any, ...]:
    """What an attempt makes of it: texts by channel, other parts, and the finish or the failure."""
    stream, texts, parts = Answer(), dict[Any, str](), list[Any]()

    def take(events: Iterator[Any]) -> None:
        for event in events:
            match event:
                case TextDelta(channel, text):
                    assert text, "an empty piece of text"
                    texts[channel] = texts.get(channel, "") + text
                case PartDelta():
                    parts.append(event)

    try:
        for chunk in chunks:
            take(stream.feed(chunk))
            if stream.done:
                break
        else:
            take(stream.end())
        return texts, parts, stream.finish()
    except ErrorObject as error:
        return texts, parts, "error", error.document
    except ChatJobsError as error:
        assert getattr(error, "code", None), error
        return texts, parts, type(error).__name__, getattr(error, "code", None)


def event_stream(data: bytes) -> None:
    """Events are the same however the bytes are cut, and bounded in size."""
    body, cut = pieces(data)
    assert _events([body]) == _events(cut)


def _events(chunks: list[bytes], limit: int = 1_000) -> Any:
    stream, found = EventStream(max_response=100_000, max_event=limit), list[bytes]()
    try:
        for chunk in chunks:
            found += stream.feed(chunk)
        found += stream.tail()
    except ChatJobsError as error:
        return getattr(error, "code", None)
    assert all(len(event) <= limit for event in found)
    return found


# ------------------------------------------------------------------------------------------------- HTTP responses


class _Transport:
    """A connection that takes everything and sends nothing."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class _Connection:
    def __init__(self) -> None:
        self.transport = _Transport()

    def end(self) -> None: ...

    async def close(self) -> None: ...


def http1(data: bytes) -> None:
    """The same response however it is cut, and the one that h11 reads where that one reads any."""
    body, cut = pieces(data)
    loop = asyncio.new_event_loop()
    try:
        whole = loop.run_until_complete(_response([body]))
        assert whole == loop.run_until_complete(_response(cut)), "cut differently, read differently"
    finally:
        loop.close()
    other = _by_h11(body)
    if other == CUT:
        assert isinstance(whole, str), f"a response that was cut passes for whole: {whole}"
    elif other is not None and isinstance(whole, tuple):
        assert whole == other, (whole, other)


async def _response(chunks: list[bytes]) -> tuple[int, bytes] | str:
    exchange = _Exchange(_Connection(), read_timeout=1)  # type: ignore[arg-type]  # what it uses of one
    for chunk in chunks:
        exchange.feed(memoryview(chunk))
        if exchange._connection.transport.aborted:  # type: ignore[attr-defined]
            break
    exchange.feed_eof()
    try:
        async with asyncio.timeout(1):
            await exchange.head()
            found = b"".join([part async for part in exchange])
            await exchange.aclose()
    except httpx2.TransportError as error:
        assert not isinstance(error, httpx2.TimeoutException), "it waits for what cannot come"
        return type(error).__name__
    return exchange.status, found


def _by_h11(body: bytes) -> tuple[int, bytes] | str | None:
    """Status and body of the one response there; CUT where its body is not whole; None where h11 does not take it."""
    reader = h11.Connection(our_role=h11.CLIENT)
    reader.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    reader.send(h11.EndOfMessage())
    status, found = 0, b""
    try:
        reader.receive_data(body)
        reader.receive_data(b"")
        while True:
            match reader.next_event():
                case h11.Response() as head:
                    status = head.status_code
                case h11.Data() as part:
                    found += bytes(part.data)
                case h11.EndOfMessage():
                    return status, found
                case h11.InformationalResponse():
                    pass
                case _:
                    return None
    except (h11.RemoteProtocolError, ValueError) as error:
        return CUT if status and "without sending complete message body" in str(error) else None


# ----------------------------------------------------------------------------------------------------------- SSE


def sse(data: bytes) -> None:
    """The same events however the bytes are cut, and those that httpx-sse finds."""
    body, cut = pieces(data)
    whole = _parsed([body])
    assert whole == _parsed(cut)
    expected = _by_httpx_sse(body)
    assert [event for event in whole if event.data] == expected, (whole, expected)


def _parsed(chunks: list[bytes]) -> list[ServerEvent]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def _by_httpx_sse(body: bytes) -> list[ServerEvent]:
    decoder = SSEDecoder()
    text = body.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    lines = re.split("\r\n|\n|\r", text)
    try:
        found = [event for line in lines[:-1] if (event := decoder.decode(line))]
    except SSEError:
        return []
    # It makes an event of an id or a name alone, which the standard does not.
    return [ServerEvent(event.event or "message", event.id, event.data) for event in found if event.data]


def job_events(data: bytes) -> None:
    """The same events however the bytes are cut, each where the one before has ended; else the stream is broken."""
    body, cut = pieces(data)
    whole, why = _job_events([body])
    assert (whole, why) == _job_events(cut)
    here: tuple[int, int] | None = None
    for event_id, event in whole:
        if isinstance(event, QueuedEvent):
            continue
        epoch, position = (int(number) for number in event_id.split(".")[:2])
        if isinstance(event, ChunkEvent) and here is not None:
            assert (epoch, position) == (here[0], here[1] + len(event.content)), "a gap, or text that comes twice"
        if isinstance(event, (CompleteEvent, ErrorEvent, CancelledEvent)) and here is not None:
            assert (epoch, position) == here, "an end before the text's"
        here = epoch, position
    if whole:  # a reader who goes on from there is not told the same again
        later, _ = _job_events([body], whole[-1][0])
        assert not [event for _, event in later if isinstance(event, StartEvent)]


def _job_events(chunks: list[bytes], last_event_id: str = "") -> tuple[list[tuple[str, StreamEvent]], str | None]:
    """What was told, and why no more."""
    found = list[tuple[str, StreamEvent]]()
    try:
        events = JobEvents(last_event_id=last_event_id, limit=1_000)
        for chunk in chunks:
            for one in events.feed(chunk):
                found.append(one)  # what came before the error is kept
    except (StreamBroken, ResponseTooLarge) as error:
        return found, type(error).__name__
    return found, None


# ------------------------------------------------------------------------------------------------------ webhooks


class _Receiver:
    """A network with one receiver, which answers whatever it is asked with these pieces, and hangs up."""

    def __init__(self) -> None:
        self.answer: list[bytes] = []

    async def connect_tcp(self, *_: Any) -> _Receiver:
        return self

    async def write(self, *_: Any) -> None: ...

    async def read(self, *_: Any) -> bytes:
        return self.answer.pop(0) if self.answer else b""

    async def aclose(self) -> None: ...


_RECEIVER = _Receiver()
_TRANSPORT = DirectTransport(_RECEIVER)  # type: ignore[arg-type]  # what it uses of a network


def webhook_answer(data: bytes) -> None:
    """The status decides, however the answer is cut; and it is the one that h11 reads, where that reads any."""
    body, cut = pieces(data)
    loop = asyncio.new_event_loop()
    try:
        whole = loop.run_until_complete(_heard([body]))
        assert whole == loop.run_until_complete(_heard(cut)), "cut differently, read differently"
        assert whole == loop.run_until_complete(_heard([body[at : at + 1] for at in range(len(body))]))
    finally:
        loop.close()
    if whole.status_code is None:
        assert whole.error == "protocol_error"
    else:
        assert 200 <= whole.status_code <= 999 or whole.status_code == 101
        assert whole.error == ("redirect" if 300 <= whole.status_code < 400 else None)
        assert len(whole.response or "") <= MAX_KEPT_BYTES
    other = _by_h11(body)
    if isinstance(other, tuple):
        kept = bounded(other[1][:MAX_KEPT_BYTES].decode(errors="replace"), MAX_KEPT_BYTES)
        assert (whole.status_code, whole.response) == (other[0], kept), (whole, other)


async def _heard(answer: list[bytes]) -> WebhookResponse:
    _RECEIVER.answer = [piece for piece in answer if piece]
    sender = HttpWebhookSender(_TRANSPORT)
    heard = await sender.post("http://receiver.example/", headers={}, body=b"{}")
    assert heard.retry_after is None or 0 <= heard.retry_after < float("inf")
    there = None if heard.retry_after is None else 1.0  # a date counts from now, which is later each time
    return heard._replace(latency_ms=0, retry_after=there)


def webhooks(data: bytes) -> None:
    """Nothing that is not signed passes, whatever headers and body; what is signed and changed does not either."""
    body, cut = pieces(data)
    parts = (*cut, b"", b"", b"", b"")
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    headers = {name: part.decode("latin-1") for name, part in zip(names, parts, strict=False)}
    for given in (headers, headers | {"webhook-timestamp": str(int(NOW.timestamp()))}):
        try:
            verify(body, given, secrets=SECRET, now=NOW)
        except InvalidSignature:
            continue
        raise AssertionError("a signature was invented")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    signed = sign(body, webhook_id="whe_1", timestamp=NOW, secrets=SECRET, body_timestamp="2026-01-02T03:04:05Z")
    try:
        verify(body, signed, secrets=SECRET, now=NOW)
    except InvalidSignature as error:
        assert "not an event" in str(error), error
    for name in names:
        try:
            verify(body, signed | {name: headers[name]}, secrets=SECRET, now=NOW)
        except InvalidSignature:
            continue
        assert headers[name].strip() == signed[name], name


def webhook_urls(data: bytes) -> None:
    """What is accepted is in its normal form, and leads where the client that dials it and another parser say."""
    text = data.decode(errors="surrogateescape" if data[:1] == b"\xff" else "replace")
    for policy in POLICIES:
        try:
            url = policy.check(text)
        except WebhookUrlRefused:
            continue
        assert policy.check(url) == url, "not a normal form"
        assert url.isascii()
        dialled, split = httpx2.URL(url), urlsplit(url)
        assert (dialled.scheme, split.scheme) == (url.partition(":")[0],) * 2
        assert dialled.raw_host.decode().strip("[]") == (split.hostname or ""), (url, dialled.raw_host, split.hostname)
        assert dialled.port == split.port
        assert not dialled.userinfo
        assert not (split.username or split.password)
        target = _target(url).decode()
        assert url.endswith(target), (url, target)
        given = re.sub(r"(?i)^https?://[^/?]*", "", text)
        assert target == (given if given.startswith("/") else f"/{given}"), (text, target)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (answer, event_stream, http1, sse, job_events, webhooks, webhook_answer, webhook_urls)
}


def frame(value: Any) -> bytes:
    """One event of a stream, for the corpus and for tests."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"
