"""HTTP POST to a webhook receiver: one request, bounded in time and memory, on a connection of its own.

The transport is used without an HTTP client around it: a client follows redirects, keeps cookies, reads ``~/.netrc``
and proxies from the environment and decompresses responses, none of which is safe with untrusted receivers.
A WebhookPolicy says which URLs and addresses may be called; network_guard.py applies it when it connects.
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
from domain.timings import Timings
from providers.webhooks.answer import BodyReader, Head, HeadReader, NoStatus
from providers.webhooks.network_guard import GuardedNetwork, NetworkBusy, Policy, Resolve, current_policy

MAX_READ_BYTES = 16 * 1024
"""Bytes read of a response's body: more than are kept, so that usual responses are read to their end, without reset."""
MAX_KEPT_BYTES = 1024
MAX_ERROR_CHARACTERS = 200
PER_RECEIVER = 8
"""POSTs at once to one host and port, so that one that does not answer leaves the worker's slots to the others."""
PATIENCE_SECONDS = 1.0
"""How long a POST waits for one of these slots."""

OWN_HEADERS = {
    "user-agent": "chatjobs-webhooks",
    "accept-encoding": "identity",
    "connection": "close",
}

_FAILURES = (httpx2.HTTPError, httpx2.InvalidURL, WebhookUrlRefused, UnicodeError, OSError)
"""The exceptions that a receiver's URL or server can cause; TimeoutError, gaierror and ssl.SSLError are OSErrors."""


class DirectTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 directly to the URL's host, with a new connection for every request.

    ``tls`` defaults to the operating system's trust store. The request target is the extension ``target``; the
    extension ``status`` is called with the status as soon as it is known, perhaps long before the head is complete.
    """

    def __init__(self, network: GuardedNetwork | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._network = network or GuardedNetwork()
        self._tls = tls or httpx2.create_ssl_context(trust_env=False)
        self._tls.set_alpn_protocols(["http/1.1"])

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request. Raises httpx2.TransportError, and what GuardedNetwork.connect_tcp raises."""
        message = _serialised(request)
        with _transport_errors():
            stream = await self._connect(request.url)
            try:
                await request.extensions["trace"]("http11.send_request_headers.started", {})
                with contextlib.suppress(httpcore2.WriteError):  # an early response may still be read
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
    """The request as bytes. Raises httpx2.LocalProtocolError for a header with a line break."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.extensions["target"])]
    for name, value in request.headers.raw:
        if re.search(rb"[\r\n\0]", name + value):
            raise httpx2.LocalProtocolError("a header has a line break")
        lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""]) + request.content


async def _head(stream: httpcore2.AsyncNetworkStream, known: Callable[[int], None]) -> Head:
    """The head of the response. Raises httpx2.RemoteProtocolError if it has no status."""
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
    """Raises httpcore2's errors as the httpx2 errors of the same names."""
    try:
        yield
    except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
        raise getattr(httpx2, type(error).__name__)(str(error)) from error


class HttpWebhookSender:
    """``domain.ports.WebhookSender`` over HTTP. Close it with ``aclose`` or as a context manager."""

    def __init__(
        self,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        policy: Policy | None = None,
        resolver: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        per_receiver: int = PER_RECEIVER,
        timings: Timings = Timings(),
    ) -> None:
        """Without a policy every URL and address is called. ``transport`` takes the place of resolver and TLS."""
        self._timings = timings
        self._policy = current_policy(policy)
        self._transport = transport or DirectTransport(GuardedNetwork(policy, resolver, timings=timings), tls=tls)
        self._slots = _ReceiverSlots(per_receiver)

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        """POST once; no URL and no receiver makes it raise.

        The status decides. With a status, ``error`` is None (but ``redirect`` for 3xx, which is not followed), whatever
        is wrong with the rest of the response: cut, reset, endless, or slower than the time allowed. Without one,
        ``error`` is ``timeout``, ``dns_error``, ``connect_error``, ``connection_lost``, ``protocol_error``,
        ``invalid_url``, or with a reason ``tls_error: …``, ``invalid_url: …`` and ``address_denied: …``; or BUSY.
        """
        started = time.monotonic()
        answer = _Answer()
        error = None
        try:
            policy = self._policy()
            request = _request(policy.check(url) if policy else url, headers, body)
            request.extensions["status"] = answer.set_status
            total = self._timings.webhook_total_seconds
            async with self._slots.of(request.url.netloc), asyncio.timeout(total):
                started = time.monotonic()
                await self._exchange(request, answer)
        except _FAILURES as failure:
            error = _reason(failure)
        return answer.response(round((time.monotonic() - started) * 1000), error)

    async def _exchange(self, request: httpx2.Request, answer: _Answer) -> None:
        """Send the request and record the response as it arrives: the timeout may end this at any point."""
        response = await self._until_headers(request)
        try:
            answer.set_status(response.status_code)
            answer.retry_after = retry_after(response.headers, datetime.now(UTC))
            async with aclosing(response.aiter_raw()) as pieces:
                async for piece in pieces:
                    answer.body += piece[: MAX_READ_BYTES - len(answer.body)]
                    if len(answer.body) >= MAX_READ_BYTES:
                        break
        finally:
            await response.aclose()

    async def _until_headers(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and wait for the response's head; its timeout starts once the connection is established."""
        async with asyncio.timeout(None) as clock:

            async def trace(event: str, _: Mapping[str, Any]) -> None:
                if event == "http11.send_request_headers.started":
                    seconds = self._timings.webhook_headers_seconds
                    clock.reschedule(asyncio.get_running_loop().time() + seconds)

            request.extensions["trace"] = trace
            return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _ReceiverSlots:
    """A semaphore per receiver. Raises _NoSlot, which ``post`` reports as BUSY, after PATIENCE_SECONDS."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._receivers: dict[bytes, _Receiver] = {}

    @asynccontextmanager
    async def of(self, receiver: bytes) -> AsyncIterator[None]:
        slots = self._receivers.setdefault(receiver, _Receiver(asyncio.Semaphore(self._each)))
        slots.users += 1
        try:
            await slots.enter()
            try:
                yield
            finally:
                slots.leave()
        finally:
            slots.users -= 1
            if not slots.users:
                del self._receivers[receiver]


@dataclass
class _Receiver:
    free: asyncio.Semaphore
    users: int = 0
    moved: float = field(default_factory=time.monotonic)
    """When a slot was last acquired or released."""

    async def enter(self) -> None:
        """Acquire a slot. If none has moved for a while, do not wait: that would only hold up a slot of the worker."""
        patience = self.moved + PATIENCE_SECONDS - time.monotonic() if self.free.locked() else PATIENCE_SECONDS
        try:
            async with asyncio.timeout(max(patience, 0)):
                await self.free.acquire()
        except TimeoutError:
            raise _NoSlot from None
        self.moved = time.monotonic()

    def leave(self) -> None:
        self.moved = time.monotonic()
        self.free.release()


class _NoSlot(OSError):
    """Too many POSTs to one receiver are running."""


@dataclass
class _Answer:
    """The part of a response that has arrived."""

    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)

    def set_status(self, status: int) -> None:
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
    """The request; OWN_HEADERS take precedence. Raises InvalidURL, and UnicodeError for what cannot be encoded."""
    merged = httpx2.Headers(dict(headers))
    merged.update(OWN_HEADERS)
    request = httpx2.Request("POST", url, headers=merged, content=body, extensions={"target": _target(url)})
    if not 0 < (request.url.port or 443) < 65_536:  # the socket's error would come in an ExceptionGroup
        raise httpx2.InvalidURL("the port is not in 1 to 65535")
    return request


def _target(url: str) -> bytes:
    """Path and query, byte for byte as given: they may be signed. Raises UnicodeError, InvalidURL."""
    found = re.fullmatch(r"[^:/?#]+://[^/?#]*([^#]*)(?:#.*)?", url, re.DOTALL)
    target = (found[1] if found else "").encode("ascii")
    if not re.fullmatch(rb"[!-~]*", target):
        raise httpx2.InvalidURL("the URL has blanks or control characters")
    return target if target.startswith(b"/") else b"/" + target


# --------------------------------------------------------------------------------------------------- errors


def _reason(failure: Exception) -> str:
    """The error code of a failure for the record of tries, some with a bounded explanation."""
    match failure:
        case _NoSlot() | NetworkBusy():
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
    """The failure and its causes; httpcore2 raises ``from None``, so ``__context__`` is followed too."""
    while failure is not None:
        yield failure
        failure = failure.__cause__ or failure.__context__


def _tls_reason(error: ssl.SSLError) -> str:
    """Why TLS failed: ``certificate has expired``; else OpenSSL's text, such as ``wrong version number``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or "handshake failed").replace("_", " ").lower()
