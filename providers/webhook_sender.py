"""HTTP POST to a stranger: one request, bounded in time and memory, on a connection of its own.

The transport is used without an HTTP client around it. A client is what follows redirects, keeps cookies, reads
``~/.netrc`` and proxies from the environment and decompresses answers; a stranger may have none of these.
Whatever decides which addresses may be dialled belongs into the transport: only there is the address known
that is really used. It refuses by raising WebhookUrlRefused.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from socket import gaierror
from typing import Self

import httpx2

from activities.ports import WebhookResponse
from chatjobs.errors import WebhookUrlRefused, bounded
from providers.retry_after import retry_after

TOTAL_SECONDS = 15.0
"""Of one POST, from the name look-up to the end of the answer (the specification advises 15 to 30 s)."""
CONNECT_SECONDS = 3.0
"""Of the TCP connection with its name look-up, and again of the TLS handshake."""
MAX_READ_BYTES = 16 * 1024
"""Of an answer's body. More than is kept, so that usual answers are read to their end and not cut by a reset."""
MAX_KEPT_BYTES = 1024
MAX_ERROR_CHARACTERS = 200

OWN_HEADERS = {
    "user-agent": "chatjobs-webhooks",
    "accept-encoding": "identity",
    "connection": "close",
}

_FAILURES = (httpx2.HTTPError, httpx2.InvalidURL, WebhookUrlRefused, UnicodeError, OSError)
"""What a stranger's URL and server can bring about; TimeoutError and ssl.SSLError are OSErrors."""


def direct_transport(tls: ssl.SSLContext | None = None) -> httpx2.AsyncHTTPTransport:
    """HTTP/1.1 straight to the host that the URL names, a new connection for every request.

    ``tls`` is the operating system's trust store unless given. How many POSTs run at once is the worker's choice.
    """
    return httpx2.AsyncHTTPTransport(
        verify=tls or httpx2.create_ssl_context(trust_env=False),
        trust_env=False,
        http2=False,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
    )


class HttpWebhookSender:
    """``activities.ports.WebhookSender`` over HTTP. Close it with ``aclose`` or as a context manager."""

    def __init__(
        self, transport: httpx2.AsyncBaseTransport | None = None, *, total_seconds: float = TOTAL_SECONDS
    ) -> None:
        self.total_seconds = total_seconds
        self._transport = transport or direct_transport()

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        """POST once; never raises for what the URL or the receiver does.

        The status decides. Once it is there, ``error`` is None (but ``redirect`` for 3xx, which is not followed)
        whatever becomes of the rest of the answer: cut, reset, endless, or slower than the time allowed. Without
        one, ``error`` is ``timeout``, ``dns_error``, ``connect_error``, ``connection_lost``, ``protocol_error``,
        ``invalid_url``, or with a reason ``tls_error: …`` and ``address_denied: …``.
        """
        started = time.monotonic()
        answer = _Answer()
        error = None
        try:
            async with asyncio.timeout(self.total_seconds):
                await self._exchange(_request(url, headers, body), answer)
        except _FAILURES as failure:
            error = _reason(failure)
        return answer.response(round((time.monotonic() - started) * 1000), error)

    async def _exchange(self, request: httpx2.Request, answer: _Answer) -> None:
        """Send, and note what comes as it comes: the time may run out at any point."""
        response = await self._transport.handle_async_request(request)
        try:
            answer.status = response.status_code
            answer.retry_after = retry_after(response.headers, datetime.now(UTC))
            async with aclosing(response.aiter_raw()) as pieces:
                async for piece in pieces:
                    answer.body += piece[: MAX_READ_BYTES - len(answer.body)]
                    if len(answer.body) >= MAX_READ_BYTES:
                        break
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass
class _Answer:
    """As much of an answer as has arrived."""

    status: int | None = None
    retry_after: float | None = None
    body: bytearray = field(default_factory=bytearray)

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
    timeouts = {"connect": CONNECT_SECONDS, "read": None, "write": None, "pool": None}  # the total covers the rest
    request = httpx2.Request("POST", url, headers=merged, content=body, extensions={"timeout": timeouts})
    if not 0 < (request.url.port or 443) < 65_536:  # the socket's complaint would come in an ExceptionGroup
        raise httpx2.InvalidURL("the port is not in 1 to 65535")
    return request


# ------------------------------------------------------------------------------------------ what went wrong


def _reason(failure: Exception) -> str:
    """A short code for people and for the record of tries, with a bounded explanation where there is a choice."""
    match failure:
        case WebhookUrlRefused():
            return bounded(f"address_denied: {failure}", MAX_ERROR_CHARACTERS)
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
