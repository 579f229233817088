"""HTTP POST to a stranger: one request, bounded in time and memory, on a connection of its own.

The transport is used without an HTTP client around it. A client is what follows redirects, keeps cookies, reads
``~/.netrc`` and proxies from the environment and decompresses answers; a stranger may have none of these.
Which URLs and addresses may be called is a WebhookPolicy; network_guard.py holds to it where it connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from socket import gaierror
from typing import Any, Self

import anyio
import httpcore2
import httpx2

from chatjobs.errors import WebhookUrlRefused, bounded
from chatjobs.retry_after import retry_after
from domain.errors import WebhookAddressDenied
from domain.ports import BUSY, WebhookResponse
from providers.webhooks.answer import BodyReader, Head, HeadReader, NoStatus
from providers.webhooks.network_guard import GuardedNetwork, NetworkBusy, Policy, Resolve, in_force

TOTAL_SECONDS = 15.0
"""Of one POST, from the name look-up to the end of the answer (the specification advises 15 to 30 s)."""
HEADERS_SECONDS = 10.0
"""From the request to the end of the answer's headers. Look-up, connection and TLS have theirs in guard.py."""
MAX_READ_BYTES = 16 * 1024
"""Of an answer's body. More than is kept, so that usual answers are read to their end and not cut by a reset."""
MAX_KEPT_BYTES = 1024
MAX_ERROR_CHARACTERS = 200
PER_RECEIVER = 8
"""POSTs at once to one host and port, so that one that does not answer leaves the worker's slots to the others."""
PATIENCE_SECONDS = 1.0
"""How long a POST waits for one of these places."""

OWN_HEADERS = {
    "user-agent": "chatjobs-webhooks",
    "accept-encoding": "identity",
    "connection": "close",
}

_FAILURES = (httpx2.HTTPError, httpx2.InvalidURL, WebhookUrlRefused, UnicodeError, OSError)
"""What a stranger's URL and server can bring about; TimeoutError, gaierror and ssl.SSLError are OSErrors."""


class DirectTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 straight to the host that the URL names, a new connection for every request.

    ``tls`` is the operating system's trust store unless given. The request target is the extension ``target``; the
    extension ``status`` is called with the status as soon as it is known, perhaps long before the head is complete.
    """

    def __init__(self, network: GuardedNetwork | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._network = network or GuardedNetwork()
        self._tls = tls or httpx2.create_ssl_context(trust_env=False)
        self._tls.set_alpn_protocols(["http/1.1"])

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises httpx2.TransportError and what the network refuses."""
        message = _serialised(request)
        with _transport_errors():
            stream = await self._connect(request.url)
            try:
                await request.extensions["trace"]("http11.send_request_headers.started", {})
                with contextlib.suppress(httpcore2.WriteError):  # it has answered early; that may still be read
                    await stream.write(message)
                head = await _head(stream, request.extensions["status"])
            except BaseException:
                await _close(stream)
                raise
        fields = [(name, value) for name, value in head.fields if name in (b"retry-after", b"date")]
        return httpx2.Response(head.status, headers=fields, stream=_Body(stream, head))

    async def _connect(self, url: httpx2.URL) -> httpcore2.AsyncNetworkStream:
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        stream = await self._network.connect_tcp(host, url.port or (443 if secure else 80))
        return await stream.start_tls(self._tls, host) if secure else stream


def _serialised(request: httpx2.Request) -> bytes:
    """Raises httpx2.LocalProtocolError for what would make two headers of one."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.extensions["target"])]
    for name, value in request.headers.raw:
        if re.search(rb"[\r\n\0]", name + value):
            raise httpx2.LocalProtocolError("a header has a line break")
        lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""]) + request.content


async def _head(stream: httpcore2.AsyncNetworkStream, known: Callable[[int], None]) -> Head:
    """Raises httpx2.RemoteProtocolError where there is no status."""
    reader = HeadReader()
    try:
        while True:
            try:
                piece = await stream.read(MAX_READ_BYTES)
            except httpcore2.ReadError:
                if reader.status is None:
                    raise
                piece = b""
            head = reader.feed(piece) if piece else reader.end()
            if reader.status is not None:
                known(reader.status)
            if head is not None:
                return head
    except NoStatus:
        raise httpx2.RemoteProtocolError("the answer has no status") from None


class _Body(httpx2.AsyncByteStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, head: Head) -> None:
        self._stream = stream
        self._reader = BodyReader(head)
        self._first = head.rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _transport_errors():
            piece, self._first = self._first, b""
            if piece:
                yield self._reader.feed(piece)
            while not self._reader.ended and (piece := await self._stream.read(MAX_READ_BYTES)):
                yield self._reader.feed(piece)

    async def aclose(self) -> None:
        await _close(self._stream)


async def _close(stream: httpcore2.AsyncNetworkStream) -> None:
    with anyio.CancelScope(shield=True), contextlib.suppress(httpcore2.NetworkError, OSError):
        await stream.aclose()


@contextlib.contextmanager
def _transport_errors() -> Iterator[None]:
    """The network's errors as httpx2's of the same names."""
    try:
        yield
    except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise getattr(httpx2, type(error).__name__)(str(error)) from error


class HttpWebhookSender:
    """``activities.ports.WebhookSender`` over HTTP. Close it with ``aclose`` or as a context manager."""

    def __init__(
        self,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        policy: Policy | None = None,
        resolver: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        total_seconds: float = TOTAL_SECONDS,
        per_receiver: int = PER_RECEIVER,
    ) -> None:
        """Without a policy every URL and address is called. ``transport`` takes the place of resolver and TLS."""
        self.total_seconds = total_seconds
        self._policy = in_force(policy)
        self._transport = transport or DirectTransport(GuardedNetwork(policy, resolver), tls=tls)
        self._places = _Places(per_receiver)

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        """POST once; never raises for what the URL or the receiver does.

        The status decides. Once it is there, ``error`` is None (but ``redirect`` for 3xx, which is not followed)
        whatever becomes of the rest of the answer: cut, reset, endless, or slower than the time allowed. Without
        one, ``error`` is ``timeout``, ``dns_error``, ``connect_error``, ``connection_lost``, ``protocol_error``,
        ``invalid_url``, or with a reason ``tls_error: …``, ``invalid_url: …`` and ``address_denied: …``; or BUSY.
        """
        started = time.monotonic()
        answer = _Answer()
        error = None
        try:
            policy = self._policy()
            request = _request(policy.check(url) if policy else url, headers, body)
            request.extensions["status"] = answer.note
            async with self._places.of(request.url.netloc), asyncio.timeout(self.total_seconds):
                started = time.monotonic()
                await self._exchange(request, answer)
        except _FAILURES as failure:
            error = _reason(failure)
        return answer.response(round((time.monotonic() - started) * 1000), error)

    async def _exchange(self, request: httpx2.Request, answer: _Answer) -> None:
        """Send, and note what comes as it comes: the time may run out at any point."""
        response = await self._until_headers(request)
        try:
            answer.note(response.status_code)
            answer.retry_after = retry_after(response.headers, datetime.now(UTC))
            async with aclosing(response.aiter_raw()) as pieces:
                async for piece in pieces:
                    answer.body += piece[: MAX_READ_BYTES - len(answer.body)]
                    if len(answer.body) >= MAX_READ_BYTES:
                        break
        finally:
            await response.aclose()

    async def _until_headers(self, request: httpx2.Request) -> httpx2.Response:
        """The clock of the headers starts when the connection stands."""
        async with asyncio.timeout(None) as clock:

            async def trace(event: str, _: Mapping[str, Any]) -> None:
                if event == "http11.send_request_headers.started":
                    clock.reschedule(asyncio.get_running_loop().time() + HEADERS_SECONDS)

            request.extensions["trace"] = trace
            return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Places:
    """So many POSTs at once per receiver. Raises _NoPlace, a failure like others, after PATIENCE_SECONDS."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._receivers: dict[bytes, _Receiver] = {}

    @asynccontextmanager
    async def of(self, receiver: bytes) -> AsyncIterator[None]:
        places = self._receivers.setdefault(receiver, _Receiver(asyncio.Semaphore(self._each)))
        places.users += 1
        try:
            await places.enter()
            try:
                yield
            finally:
                places.leave()
        finally:
            places.users -= 1
            if not places.users:
                del self._receivers[receiver]


@dataclass
class _Receiver:
    free: asyncio.Semaphore
    users: int = 0
    moved: float = field(default_factory=time.monotonic)
    """When a place was last taken or given back."""

    async def enter(self) -> None:
        """Where nothing moved for a while, waiting is pointless: it would only hold one of the worker's slots."""
        patience = self.moved + PATIENCE_SECONDS - time.monotonic() if self.free.locked() else PATIENCE_SECONDS
        try:
            async with asyncio.timeout(max(patience, 0)):
                await self.free.acquire()
        except TimeoutError:
            raise _NoPlace from None
        self.moved = time.monotonic()

    def leave(self) -> None:
        self.moved = time.monotonic()
        self.free.release()


class _NoPlace(OSError):
    """Too many POSTs to one receiver are under way."""


@dataclass
class _Answer:
    """As much of an answer as has arrived."""

    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)

    def note(self, status: int) -> None:
        self.status = status

    def response(self, latency_ms: int, error: str | None) -> WebhookResponse:
        if self.status is None:
            return WebhookResponse(latency_ms, error=error)
        return WebhookResponse(
            latency_ms,
            status_code=self.status,
            error="redirect" if 300 <= self.status < 400 else None,
            response=bounded(self.body[:MAX_KEPT_BYTES].decode(errors="replace"), MAX_KEPT_BYTES),
            retry_after=self.retry_after,
        )


def _request(url: str, headers: Mapping[str, str], body: bytes) -> httpx2.Request:
    """Our own headers win. Raises InvalidURL, and UnicodeError for names and headers that cannot be encoded."""
    merged = httpx2.Headers(dict(headers))
    merged.update(OWN_HEADERS)
    request = httpx2.Request("POST", url, headers=merged, content=body, extensions={"target": _target(url)})
    if not 0 < (request.url.port or 443) < 65_536:  # the socket's complaint would come in an ExceptionGroup
        raise httpx2.InvalidURL("the port is not in 1 to 65535")
    return request


def _target(url: str) -> bytes:
    """Path and query to the byte as given: a receiver may have signed them. Raises UnicodeError, InvalidURL."""
    found = re.fullmatch(r"[^:/?#]+://[^/?#]*([^#]*)(?:#.*)?", url, re.DOTALL)
    target = (found[1] if found else "").encode("ascii")
    if not re.fullmatch(rb"[!-~]*", target):
        raise httpx2.InvalidURL("the URL has blanks or control characters")
    return target if target.startswith(b"/") else b"/" + target


# ------------------------------------------------------------------------------------------ what went wrong


def _reason(failure: Exception) -> str:
    """A short code for people and for the record of tries, with a bounded explanation where there is a choice."""
    match failure:
        case _NoPlace() | NetworkBusy():
            return BUSY
        case WebhookAddressDenied():
            return bounded(f"address_denied: {failure}", MAX_ERROR_CHARACTERS)
        case WebhookUrlRefused():
            return bounded(f"invalid_url: {failure}", MAX_ERROR_CHARACTERS)
        case TimeoutError() | httpx2.TimeoutException():
            return "timeout"
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol() | UnicodeError():
            return "invalid_url"
        case httpx2.ProtocolError():
            return "protocol_error"
        case _:
            return _network_reason(failure)


def _network_reason(failure: Exception) -> str:
    connecting = isinstance(failure, httpx2.ConnectError)
    for cause in _chain(failure):
        match cause:
            case gaierror():
                return "dns_error"
            case ssl.SSLEOFError() | ConnectionError() if connecting and not isinstance(cause, ConnectionRefusedError):
                return "tls_error: the connection was closed during the handshake"
            case ssl.SSLError():
                return bounded(f"tls_error: {_tls_reason(cause)}", MAX_ERROR_CHARACTERS)
    return "connect_error" if connecting else "connection_lost"


def _chain(failure: BaseException | None) -> Iterator[BaseException]:
    """The failure and what led to it; httpcore2 raises ``from None`` on its way, so ``__context__`` counts too."""
    while failure is not None:
        yield failure
        failure = failure.__cause__ or failure.__context__


def _tls_reason(error: ssl.SSLError) -> str:
    """``certificate has expired`` for a refused certificate, else OpenSSL's own word: ``wrong version number``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or "handshake failed").replace("_", " ").lower()
