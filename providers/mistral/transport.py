"""An HTTP/1.1 transport for httpx2 that reads streams cheaply (docs/decisions/0024).

httpx2's own transport costs 60 to 80 µs per network read, more than the whole budget of a token: it suspends and
resumes the socket, enters several context managers and parses with h11. Here bytes go from the socket into a parser in
C (llhttp, through httptools) and wait in a list. `bench/decoding.py` measures tokens with everything around them.

Deliberately small: one host in practice, no proxies (see ``sdk.http_client``), no redirects or decompression
(those are the client's), request bodies in one piece, responses to POST and GET.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, NamedTuple, Self, cast

import httptools
import httpx2

from domain.ports import SENT

READ_BYTES: Final = 64 * 1024
"""The size of one read of a socket, at most."""
HIGH_WATER: Final = 64 * 1024
"""Buffered bytes of a body above which reading from the socket is paused."""
MAX_SILENT_BYTES: Final = 64 * 1024
"""Consecutive bytes that are not body: bounds the head, chunk extensions and trailers."""
CLOSE_SECONDS: Final = 1.0

EXCHANGE: Final = "chatjobs.exchange"
"""The extension of a response that holds its body without the client's wrappers: an AsyncIterator[bytes]."""

_FORBIDDEN: Final = re.compile(rb"[\r\n\0]")


class _Stale(Exception):
    """A connection that was kept open had been closed by the server."""


class Origin(NamedTuple):
    """The server of a connection."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx2.URL) -> Self:
        if url.scheme not in ("http", "https"):
            raise httpx2.UnsupportedProtocol("the URL must begin with http:// or https://")
        return cls(url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))


class StreamTransport(httpx2.AsyncBaseTransport):
    """A connection pool with one request at a time per connection, and no limit on connections except idle ones."""

    def __init__(self, tls: ssl.SSLContext, *, idle_connections: int = 100, idle_seconds: float = 30.0) -> None:
        """``idle_connections`` stay open per host, each for ``idle_seconds``."""
        self._tls = tls
        self._tls.set_alpn_protocols(["http/1.1"])
        self._idle_connections = idle_connections
        self._idle_seconds = idle_seconds
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._idle: defaultdict[Origin, dict[_Connection, asyncio.TimerHandle]] = defaultdict(dict)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises httpx2.TransportError as httpx2's own transport does. Cancelling closes the socket.

        A server may close an idle connection just when it is used again (RFC 9112, section 9.3.1); llama.cpp closes
        each one after a stream, without saying so. So a request that a reused connection has not answered with a
        single byte is sent once more, on a new one.
        """
        timeouts = request.extensions.get("timeout", {})
        message = await _serialise(request)
        origin = Origin.of(request.url)
        reused = self._reuse(origin)
        if reused is not None:
            exchange = reused.begin(timeouts.get("read"))
            with suppress(_Stale):
                return await self._answer(reused, exchange, message, may_be_stale=True)
        connection = await self._connect(origin, timeouts.get("connect"))
        return await self._answer(connection, connection.begin(timeouts.get("read")), message)

    async def _answer(
        self, connection: _Connection, exchange: _Exchange, message: bytes, *, may_be_stale: bool = False
    ) -> httpx2.Response:
        """The response to a request. Raises _Stale if the connection was closed before its first byte."""
        try:
            connection.transport.write(message)
            if (sent := SENT.get()) is not None:
                sent()
            await exchange.head()
        except BaseException as error:
            connection.transport.abort()
            closed = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError) and exchange.untouched
            if closed and may_be_stale:
                raise _Stale from None
            raise
        return httpx2.Response(
            exchange.status, headers=exchange.headers, stream=exchange, extensions={EXCHANGE: exchange}
        )

    async def aclose(self) -> None:
        """Closes the idle connections; the others close with their responses."""
        idle = [connection for connections in self._idle.values() for connection in connections]
        for connection in idle:
            await connection.close()

    def release(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        idle = self._idle[connection.origin]
        if len(idle) >= self._idle_connections:
            connection.transport.abort()
            return
        loop = asyncio.get_running_loop()
        idle[connection] = loop.call_later(self._idle_seconds, connection.transport.abort)

    def forget(self, connection: _Connection) -> None:
        timer = self._idle[connection.origin].pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _reuse(self, origin: Origin) -> _Connection | None:
        """The idle connection used last, so that the others reach their idle timeout."""
        idle = self._idle[origin]
        while idle:
            connection, timer = idle.popitem()
            timer.cancel()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self, origin: Origin, timeout: float | None) -> _Connection:
        secure = origin.scheme == "https"
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self, origin, self._buffer),
                    origin.host,
                    origin.port,
                    ssl=self._tls if secure else None,
                    server_hostname=origin.host if secure else None,
                    happy_eyeballs_delay=0.25,  # RFC 8305, section 5
                )
        except TimeoutError:
            raise httpx2.ConnectTimeout("no connection in time") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot have
            raise httpx2.ConnectError(str(error)) from error
        return connection


class _Connection(asyncio.BufferedProtocol):
    """One socket. Whatever arrives belongs to the exchange that runs on it.

    A buffered protocol reads into memory that is there; for a plain one, asyncio allocates 256 KB for every read,
    which costs as much as all the rest of it. Between ``get_buffer`` and ``buffer_updated`` asyncio (selector loops,
    with and without TLS) does nothing else, so that all connections of a pool share one buffer.
    """

    transport: asyncio.Transport

    def __init__(self, pool: StreamTransport, origin: Origin, buffer: memoryview) -> None:
        self.pool = pool
        self.origin = origin
        self._buffer = buffer
        self._exchange: _Exchange | None = None
        self._lost = asyncio.get_running_loop().create_future()

    def begin(self, read_timeout: float | None) -> _Exchange:
        self._exchange = _Exchange(self, read_timeout)
        return self._exchange

    def end(self) -> None:
        """Return to the pool after a complete exchange, if the server keeps the connection alive."""
        self._exchange = None
        self.pool.release(self)

    async def close(self) -> None:
        """Closes the socket at once; returns when it is closed."""
        self.transport.abort()
        await asyncio.wait([self._lost], timeout=CLOSE_SECONDS)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._exchange is None:
            self.transport.abort()  # unsolicited data: the next response must not begin with it
        else:
            self._exchange.feed(self._buffer[:nbytes])

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._exchange.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        if self._exchange is not None:
            self._exchange.fail(httpx2.ReadError(str(exc or "the connection was closed")))
        if not self._lost.done():
            self._lost.set_result(None)


class _Exchange(httpx2.AsyncByteStream):
    """One response while it arrives: its head, then its body as a stream. Framing is RFC 9112, section 6."""

    def __init__(self, connection: _Connection, read_timeout: float | None) -> None:
        self._connection = connection
        self._read_timeout = read_timeout
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0  # of the parts
        self._silent = 0  # bytes since the last body byte
        self._paused = self._headed = self._complete = self._keep_alive = self._closed = False
        self.untouched = True
        """Not a single byte has arrived."""
        self._error: httpx2.TransportError | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    # Called by the connection.

    def feed(self, data: memoryview) -> None:
        self.untouched = False
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(httpx2.RemoteProtocolError(f"not HTTP/1.1: {error}"))
        if self._silent > MAX_SILENT_BYTES:
            self.fail(httpx2.RemoteProtocolError("the head of the response is too large"))
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def feed_eof(self) -> None:
        """The end of the connection ends the body only if the head has no other framing."""
        names = {name.lower() for name, _ in self.headers}
        if self._headed and names.isdisjoint((b"content-length", b"transfer-encoding")):
            self._complete = True
        self.fail(httpx2.RemoteProtocolError("the server closed the connection before the response was whole"))

    def fail(self, error: httpx2.TransportError) -> None:
        """Abort the connection. Data that has arrived can still be read."""
        self._error = self._error or error
        self._connection.transport.abort()
        self._wake()

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))  # also trailers, which are not used

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headed = self.status >= 200
        if not self._headed:  # an interim response (RFC 9110, section 15.2); the real one follows
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._silent = 0

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second response to one request")

    def on_message_complete(self) -> None:
        self._complete = self._headed
        self._keep_alive = self._parser.should_keep_alive()  # the parser forgets it after this callback

    # Called by the client.

    async def head(self) -> None:
        """Wait for status and headers."""
        while not self._headed:
            if self._error is not None:
                raise self._error
            await self._data_in_time()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Everything that has arrived since the last call; waits if there is nothing."""
        while not self._parts:
            if self._complete or self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            await (self._data() if self._read_timeout is None else self._data_in_time())
        return self._take()

    @property
    def ended(self) -> bool:
        """The response is complete, and all of it has been read."""
        return self._complete and not self._parts

    async def aclose(self) -> None:
        """Return the connection to the pool if it is exactly at the end of the response, else close it."""
        if self._closed:
            return
        self._closed = True
        if self._reusable():
            self._connection.end()
        else:
            await self._connection.close()

    def _reusable(self) -> bool:
        return (
            self._complete
            and self._error is None
            and not self._paused
            and self._connection.transport.get_write_buffer_size() == 0
            and self._keep_alive
        )

    def _take(self) -> bytes:
        parts, self._parts, self._size = self._parts, [], 0
        if self._paused:
            self._paused = False
            self._connection.transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _data(self) -> asyncio.Future[None]:
        """A future that is done when data has arrived, or no more will. There is one reader at a time."""
        self._waiter = self._loop.create_future()
        return self._waiter

    async def _data_in_time(self) -> None:
        try:
            async with asyncio.timeout(self._read_timeout):
                await self._data()
        except TimeoutError:
            raise httpx2.ReadTimeout("nothing arrived in time") from None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _serialise(request: httpx2.Request) -> bytes:
    """The request as bytes. Raises LocalProtocolError for a header with a line break (RFC 9110, section 5.5)."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    for name, value in request.headers.raw:
        if _FORBIDDEN.search(value) or name.lower() == b"transfer-encoding":
            raise httpx2.LocalProtocolError(f"the header {name.decode('latin-1')} cannot be sent")
        lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n" + await request.aread()
