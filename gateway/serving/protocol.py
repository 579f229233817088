"""HTTP/1.1 as strangers speak it: uvicorn's protocol with limits of time and size, and answers that say what was wrong.

What may not take for ever: the head of a request, its body, the silence between two requests. What may not grow: the
head, the line with the URI, the requests that wait on one connection, the connections. What two parties may understand
differently, and so smuggle past one of them, is refused: two lengths, two hosts (RFC 9112, section 11.2).
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
"""How long we go on reading after an early answer: a connection closed with unread bytes is reset, answer and all."""
MOST_URI_BYTES = 8 * 1024
MOST_HEAD_BYTES = 16 * 1024
MOST_HEADERS = 100
MOST_PIPELINED = 100
HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

ONCE = (b"authorization", b"content-length", b"content-type", b"idempotency-key", b"last-event-id")
NOT_HTTP = "This is not HTTP/1.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 s."""

Refused = Callable[[int], None]
"""Called with the status of a request that never reached the application."""


class HttpProtocol(HttpToolsProtocol):
    """One connection. ``most``: of how many the process takes; ``refused`` hears of what was answered here."""

    def __init__(self, *args: Any, most: int, refused: Refused, cors: Cors, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cors = cors
        self._most = most
        self._refused = refused
        self._timer: TimerHandle | None = None
        self._running: Cycle | None = None
        """The request that the application works on; ``cycle`` is the one that was read last."""
        self._made = 0.0
        """When the connection was made, on the event loop's clock."""
        self._deaf = False
        """Nothing that arrives is looked at any more."""
        self._in_head = False
        self._head_bytes = 0
        """Of the headers that are complete."""
        self._arrived = 0
        """Bytes since the chunk in which the head began."""
        self._chunk = 0
        self._reading_on = False
        """A new parser is told the head that another one has read."""
        self._body_began = 0.0
        self._body_bytes = 0

    # ------------------------------------------------------------------------------------------- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made = self.loop.time()
        if len(self.connections) > self._most and not self._displace():
            self._deaf = True
            self._answer(HttpProblem(503, "too_many_connections", "Too many connections; try again in a moment"))
            transport.close()
            return
        self._set_timer(HEAD_SECONDS, self._head_is_late)

    def _displace(self) -> bool:
        """Close the connection that has been idle for the longest, to make room for this one."""
        idle = [one for one in cast(set[HttpProtocol], self.connections) if one is not self and one.idle]
        if not idle:
            return False
        oldest = min(idle, key=lambda one: one._made)
        oldest._deaf = True
        oldest.transport.close()
        return True

    @property
    def idle(self) -> bool:
        """Nothing is being asked or answered."""
        busy = self._running is not None and not self._running.response_complete
        return not (busy or self._in_head or self._deaf or self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self._running is not None:
            self._running.hang_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
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
        """As a server may (RFC 9110, section 7.8); Java's client asks for HTTP/2 in its first request.

        The parser takes what follows for another protocol, even the body. So a new one goes on where it stopped.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        length = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        if length:
            self.cycle.more_body = True
            if self.cycle is self._running:
                self._time_the_body()
            self._reading_on = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\nHost: again\r\n%s: %s\r\n\r\n" % length[0])
            self._reading_on = False
        if rest:
            self.data_received(rest)

    # ------------------------------------------------------------------------------------ the parser's calls

    def on_message_begin(self) -> None:
        if self._reading_on:
            return
        super().on_message_begin()
        self._in_head, self._head_bytes, self._arrived = True, 0, -self._chunk
        self._set_timer(HEAD_SECONDS, self._head_is_late)

    def on_url(self, url: bytes) -> None:
        if self._reading_on:
            return
        super().on_url(url)
        if len(self.url) > MOST_URI_BYTES:
            raise HttpProblem(414, "uri_too_long", f"The URI may have {MOST_URI_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading_on:
            return
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + 4
        if len(self.headers) > MOST_HEADERS or self._head_bytes > MOST_HEAD_BYTES:
            raise head_too_large()

    def on_headers_complete(self) -> None:
        if self._reading_on:
            return
        self._in_head = False
        self._unset_timer()
        check_head(self.headers, self.url, self.parser.get_http_version(), self.parser.get_method())
        if len(self.pipeline) >= MOST_PIPELINED:
            raise HttpProblem(400, "bad_request", "Too many requests at once on this connection")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # The one place where uvicorn hands a request over; it has no setting for the class.
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
        if self.flow.read_paused:  # it is us who are slow
            self._set_timer(BODY_SECONDS, self._body_is_late)
        elif left > 0:
            self._set_timer(left, self._body_is_late)
        else:
            self._refuse(HttpProblem(408, "request_timeout", "The body arrived too slowly"))

    def _refuse(self, refusal: HttpProblem) -> None:
        """Answer, if nothing else is being answered on this connection, and end it."""
        self._unset_timer()
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete:
            running.hang_up()
            if running.response_started or running is not self.cycle:
                self._deaf = True
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
        """Say that there will be no more from us, and read on for a moment without looking."""
        self._deaf = True
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_timer(LINGER_SECONDS, self.transport.close)

    def _set_timer(self, seconds: float, late: Callable[[], None]) -> None:
        self._unset_timer()
        self._timer = self.loop.call_later(seconds, late)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Cycle(RequestResponseCycle):
    """One request on its way through the application, which answers for its own errors."""

    early = False
    """The answer began before the whole body was here: the connection cannot be used again."""
    until_close = False
    """The body has neither a length nor chunks: it ends with the connection."""

    def adapt_to_version(self) -> None:
        """HTTP/1.0 knows no interim responses (RFC 9110, section 15.2) and no chunks."""
        if self._is_1_0:
            self.waiting_for_100_continue = False

    @property
    def _is_1_0(self) -> bool:
        return self.scope["http_version"] == "1.0"

    def hang_up(self) -> None:
        self.disconnected = True
        self.message_event.set()

    async def run_asgi(self, app: ASGI3Application) -> None:
        """What comes out of the application comes after its answer began: all we can do is break off, so that nobody
        takes it for complete. A TimeoutError is a reader that took nothing for too long; closing would wait for it."""
        try:
            await app(self.scope, self.receive, self.send)
        except TimeoutError:
            self._break_off("a reader took nothing for too long")
        except asyncio.CancelledError:
            self._cut()
            raise
        except Exception:
            log.exception("an answer broke off", extra={"action": "answer_broken_off"})
            self._cut()
        else:
            if not self.response_complete and not self.disconnected:
                self._break_off("an answer was not finished")
        finally:
            self.on_response = lambda: None

    def _break_off(self, why: str) -> None:
        log.warning("%s", why, extra={"action": "answer_broken_off"})
        self._cut()

    def _cut(self) -> None:
        """End the connection at once; by a reset where its end would otherwise mean the end of the body."""
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
            self.early = self.keep_alive = True  # closing is up to the protocol, which waits for the rest of the body
        else:
            await super().send(message)

    def _frame_by_close(self, message: HTTPResponseStartEvent) -> None:
        """RFC 9112, section 6.3: an HTTP/1.0 client takes chunks for a part of the body."""
        names = {name.lower() for name, _ in message.get("headers", ())}
        if b"content-length" not in names and self.scope["method"] != "HEAD" and message["status"] not in (204, 304):
            self.until_close = True
            self.chunked_encoding = False  # keeps uvicorn from choosing chunks


def head_too_large() -> HttpProblem:
    most = f"{MOST_HEADERS} headers and {MOST_HEAD_BYTES} bytes"
    return HttpProblem(431, "headers_too_large", f"The head of a request may have {most}")


def check_head(headers: Sequence[tuple[bytes, bytes]], url: bytes, version: str, method: bytes) -> None:
    """What the parser leaves to us. Raises HttpProblem."""
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
    """A path, or a whole URL of the same host (RFC 9112, section 3.2). Raises HttpProblem."""
    if url.startswith(b"/"):
        return
    scheme, _, rest = url.partition(b"://")
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    if method == b"CONNECT" or scheme.lower() not in (b"http", b"https") or authority.lower() != host.lower():
        raise HttpProblem(400, "bad_request", "The request is for another host than its Host header says")
