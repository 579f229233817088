"""uvicorn's HTTP/1.1 protocol with limits of time and size, and problem responses for requests that it refuses.

Limited in time: the head of a request, its body, the idle time between two requests. Limited in size or number: the
head, the URI, the pipelined requests of a connection, the connections. Requests that two parties may interpret
differently (request smuggling, RFC 9112, section 11.2) are refused: two lengths, two hosts.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from asyncio import TimerHandle
from collections.abc import Callable, Sequence
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.problems import PROBLEM_TYPE, PROTECTION, HttpProblem, problem_body
from gateway.serving.cors import Cors

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a later request, to the end of its head."""
BODY_SECONDS = 10.0
"""For the body, and more by what arrives of it at SLOWEST_BYTES_PER_SECOND."""
SLOWEST_BYTES_PER_SECOND = 64 * 1024
KEEP_ALIVE_SECONDS = 75
"""Longer than a proxy keeps its connections to us (nginx: 60 s), which would otherwise send into a closing one."""
LINGER_SECONDS = 2.0
"""How long we go on reading after an early answer: a connection closed with unread bytes is reset, answer and all.

It is the time without a byte: many clients read the answer only when they have sent their whole body."""
LONGEST_LINGER_SECONDS = 30.0
"""How long we read after an early answer in all, as nginx does (``lingering_time``)."""
MOST_URI_BYTES = 8 * 1024
MOST_HEAD_BYTES = 16 * 1024
MOST_HEADERS = 100
MOST_PIPELINED = 100
HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

ONCE = (b"authorization", b"content-length", b"content-type", b"idempotency-key", b"last-event-id")
NOT_HTTP = "This is not HTTP/1.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes close send a reset: on, for 0 s."""

Refused = Callable[[int], None]
"""Called with the status of each request that was refused before it reached the application."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. ``most``: the connections the process accepts; ``refused``: called for each refusal made here."""

    def __init__(self, *args: Any, most: int, refused: Refused, cors: Cors, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cors = cors
        self._most = most
        self._refused = refused
        self._timer: TimerHandle | None = None
        self._running: Cycle | None = None
        """The request that the application is processing; ``cycle`` is the one that was read last."""
        self._connected_at = 0.0
        """When the connection was made, on the event loop's clock."""
        self._discarding = False
        """Incoming data is discarded."""
        self._discarded = False
        """Some has been discarded since the timer was set."""
        self._in_head = False
        self._head_bytes = 0
        """The size of the complete headers."""
        self._arrived = 0
        """Bytes since the start of the chunk in which the head began."""
        self._chunk = 0
        self._resuming = False
        """A new parser is fed a substitute for the head that the previous one has parsed; callbacks ignore it."""
        self._body_began = 0.0
        self._body_bytes = 0

    # ------------------------------------------------------------------------------------------- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connected_at = self.loop.time()
        if len(self.connections) > self._most and not self._close_oldest_idle():
            self._discarding = True
            self._answer(HttpProblem(503, "too_many_connections", "Too many connections; try again in a moment"))
            transport.close()
            return
        self._set_timer(HEAD_SECONDS, self._head_is_late)

    def _close_oldest_idle(self) -> bool:
        """Close the connection that has been idle for the longest, to make room for this one."""
        idle = [one for one in cast(set[HttpProtocol], self.connections) if one is not self and one.idle]
        if not idle:
            return False
        oldest = min(idle, key=lambda one: one._connected_at)
        oldest._discarding = True
        oldest.transport.close()
        return True

    @property
    def idle(self) -> bool:
        """No request is being read or answered."""
        busy = self._running is not None and not self._running.response_complete
        return not (busy or self._in_head or self._discarding or self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self._running is not None:
            self._running.mark_disconnected()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded = True
            return
        self._unset_keepalive_if_required()
        self._chunk = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, HttpProblem) else HttpProblem(400, "bad_request", NOT_HTTP))
            return
        self._arrived += len(data)
        if self._in_head and self._arrived > MOST_HEAD_BYTES + MOST_URI_BYTES:  # one endless header
            self._refuse(head_too_large())

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Ignore an Upgrade header (RFC 9110, section 7.8); Java's client requests HTTP/2 in its first request.

        The parser treats everything after it, even the body, as the other protocol, so a new parser continues there.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        length = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        if length:
            self.cycle.more_body = True
            if self.cycle is self._running:
                self._time_the_body()
            self._resuming = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\nHost: again\r\n%s: %s\r\n\r\n" % length[0])
            self._resuming = False
        if rest:
            self.data_received(rest)

    # ------------------------------------------------------------------------------------ the parser's calls

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        super().on_message_begin()
        self._in_head, self._head_bytes, self._arrived = True, 0, -self._chunk
        self._set_timer(HEAD_SECONDS, self._head_is_late)

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        super().on_url(url)
        if len(self.url) > MOST_URI_BYTES:
            raise HttpProblem(414, "uri_too_long", f"The URI may have {MOST_URI_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._resuming:
            return
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + 4
        if len(self.headers) > MOST_HEADERS or self._head_bytes > MOST_HEAD_BYTES:
            raise head_too_large()

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        self._in_head = False
        self._unset_timer()
        check_head(self.headers, self.url, self.parser.get_http_version(), self.parser.get_method())
        if len(self.pipeline) >= MOST_PIPELINED:
            raise HttpProblem(400, "bad_request", "Too many requests at once on this connection")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # uvicorn creates the cycle and has no setting for its class; here it passes each one on to be run.
        cycle.__class__ = Cycle
        self._running = cast(Cycle, cycle)
        self._running.adapt_to_version()
        super()._start_asgi_task(cycle, app)
        if cycle is self.cycle and cycle.more_body:
            self._time_the_body()

    def _time_the_body(self) -> None:
        self._body_began, self._body_bytes = self.loop.time(), 0
        self._set_timer(BODY_SECONDS, self._body_is_late)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is self._running:
            self._unset_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._running is not None and self._running.early:
            self._linger()
        else:
            super().on_response_complete()

    # --------------------------------------------------------------------------------------------- refusals

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(HttpProblem(408, "request_timeout", f"The head did not arrive in {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        left = self._body_began + BODY_SECONDS + self._body_bytes / SLOWEST_BYTES_PER_SECOND - self.loop.time()
        if self.flow.read_paused:  # the application is slow, not the client
            self._set_timer(BODY_SECONDS, self._body_is_late)
        elif left > 0:
            self._set_timer(left, self._body_is_late)
        else:
            self._refuse(HttpProblem(408, "request_timeout", "The body arrived too slowly"))

    def _refuse(self, refusal: HttpProblem) -> None:
        """Answer, unless another response is being sent on this connection, and close it."""
        self._unset_timer()
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete:
            running.mark_disconnected()
            if running.response_started or running is not self.cycle:
                self._discarding = True
                self.transport.close()
                return
        self._answer(refusal)
        self._linger()

    def _answer(self, refusal: HttpProblem) -> None:
        self._refused(refusal.status)
        extra = {"action": "request_refused", "status": refusal.status, "code": refusal.code}
        log.info("request refused", extra=extra)
        body = problem_body(refusal.status, refusal.code, refusal.detail)
        headers = [
            *self.server_state.default_headers,
            *PROTECTION,
            *self._cors.headers(self.headers or ()),
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[refusal.status], lines, body))

    def _linger(self) -> None:
        """Lingering close: shut down the sending side, then read and discard for a moment."""
        self._discarding = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_until(self.loop.time() + LONGEST_LINGER_SECONDS)

    def _linger_until(self, end: float) -> None:
        """Close the connection LINGER_SECONDS after the last byte, and at ``end`` at the latest."""

        def close_if_silent() -> None:
            if self._discarded and self.loop.time() < end:
                self._linger_until(end)
            else:
                self.transport.close()

        self._discarded = False
        self._set_timer(LINGER_SECONDS, close_if_silent)

    def _set_timer(self, seconds: float, late: Callable[[], None]) -> None:
        self._unset_timer()
        self._timer = self.loop.call_later(seconds, late)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Cycle(RequestResponseCycle):
    """One request and its response; the application turns its exceptions into responses itself."""

    early = False
    """The response began before the whole body had arrived: the connection cannot be used again."""
    until_close = False
    """The body has neither a length nor chunks: it ends with the connection."""

    def adapt_to_version(self) -> None:
        """HTTP/1.0 has no interim responses (RFC 9110, section 15.2)."""
        if self._is_1_0:
            self.waiting_for_100_continue = False

    @property
    def _is_1_0(self) -> bool:
        return self.scope["http_version"] == "1.0"

    def mark_disconnected(self) -> None:
        self.disconnected = True
        self.message_event.set()

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application. An exception from it comes after the response has started, so the connection is aborted:
        the client must not take the response for complete. A TimeoutError means a reader that took nothing for too
        long; a graceful close would wait for it."""
        try:
            await app(self.scope, self.receive, self.send)
        except TimeoutError:
            self._abort_with_warning("a reader took nothing for too long")
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception:
            log.exception("an answer broke off", extra={"action": "answer_broken_off"})
            self._abort()
        else:
            if not self.response_complete and not self.disconnected:
                self._abort_with_warning("an answer was not finished")
        finally:
            self.on_response = lambda: None

    def _abort_with_warning(self, why: str) -> None:
        log.warning("%s", why, extra={"action": "answer_broken_off"})
        self._abort()

    def _abort(self) -> None:
        """Abort the connection; with a reset where a plain close would mark the end of the body."""
        connection = self.transport.get_extra_info("socket")
        if self.until_close and connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()

    async def send(self, message: ASGISendEvent) -> None:
        if self.until_close and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        elif self._is_1_0 and message["type"] == "http.response.start":
            self._frame_by_close(message)
        if message["type"] == "http.response.start" and self.more_body:
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await super().send(message)
            self.early = self.keep_alive = True  # the protocol closes, after a lingering read of the rest of the body
        else:
            await super().send(message)

    def _frame_by_close(self, message: HTTPResponseStartEvent) -> None:
        """End the body with the connection: an HTTP/1.0 client does not decode chunks (RFC 9112, section 6.3)."""
        names = {name.lower() for name, _ in message.get("headers", ())}
        if b"content-length" not in names and self.scope["method"] != "HEAD" and message["status"] not in (204, 304):
            self.until_close = True
            self.chunked_encoding = False  # keeps uvicorn from choosing chunks


def head_too_large() -> HttpProblem:
    most = f"{MOST_HEADERS} headers and {MOST_HEAD_BYTES} bytes"
    return HttpProblem(431, "headers_too_large", f"The head of a request may have {most}")


def check_head(headers: Sequence[tuple[bytes, bytes]], url: bytes, version: str, method: bytes) -> None:
    """The checks of a request's head that the parser does not make. Raises HttpProblem."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version != "1.0" and not hosts):
        raise HttpProblem(400, "bad_request", "A request needs one Host header")
    host = hosts[0] if hosts else b""
    if not HOST.fullmatch(host):
        raise HttpProblem(400, "bad_request", "The Host header is not a host")
    _check_target(url, host, method)
    names = [name for name, _ in headers if name in ONCE]
    if len(names) != len(set(names)):
        raise HttpProblem(400, "bad_request", "A header is there twice that may be there once")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if codings != [b"chunked"] or version == "1.0":
            raise HttpProblem(400, "bad_request", "The only Transfer-Encoding understood is chunked")
        if any(name == b"content-length" for name, _ in headers):
            raise HttpProblem(400, "bad_request", "Give Content-Length or Transfer-Encoding, not both")


def _check_target(url: bytes, host: bytes, method: bytes) -> None:
    """The target must be a path, or a URL of the same host (RFC 9112, section 3.2). Raises HttpProblem."""
    if url.startswith(b"/"):
        return
    scheme, _, rest = url.partition(b"://")
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    if method == b"CONNECT" or scheme.lower() not in (b"http", b"https") or authority.lower() != host.lower():
        raise HttpProblem(400, "bad_request", "The request is for another host than its Host header says")
