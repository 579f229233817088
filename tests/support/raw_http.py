"""An HTTP server that sends exactly the bytes it is told: ``async with raw_server(reply) as server``."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Visit:
    """One request, and the means to answer it."""

    head: str
    body: bytes
    writer: asyncio.StreamWriter
    connection: int
    """Number of the connection, from 0."""
    gone: asyncio.Event
    """The client has closed the connection."""
    sent: int = 0
    """Bytes that the client or the kernel has taken."""

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a write of its own, and in a packet of its own if the loop is idle."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            self.sent += len(piece)
            await asyncio.sleep(0)

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}


Reply = bytes | Callable[[Visit], Awaitable[None]]


@dataclass
class RawServer:
    """``replies`` are used up one by one, the last one again and again."""

    replies: list[Reply]
    url: str = ""
    visits: list[Visit] = field(default_factory=list)
    connections: int = 0
    visited: asyncio.Event = field(default_factory=asyncio.Event)
    """There was a request."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    """Of all connections."""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        gone = asyncio.Event()
        self.writers.append(writer)
        if task := asyncio.current_task():
            self.serving.add(task)
            task.add_done_callback(self.serving.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    visit = Visit(head, b"", writer, number, gone)
                    visit.body = await _body(reader, visit.headers)
                    self.visits.append(visit)
                    self.visited.set()
                    await self._answer(visit, reader)
        finally:
            gone.set()
            writer.close()

    async def close(self) -> None:
        """Break off all connections, also those whose client has not taken everything, or that begin just now."""
        for _ in range(10):  # a connection that was just accepted takes some rounds of the loop to get to ``serve``
            await asyncio.sleep(0)
        for writer in self.writers:
            writer.transport.abort()
        closed = (writer.wait_closed() for writer in self.writers)
        await asyncio.gather(*self.serving, *closed, return_exceptions=True)

    async def _answer(self, visit: Visit, reader: asyncio.StreamReader) -> None:
        """A reply that is still running when the client leaves is cancelled."""
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, bytes):
            await visit.send(reply)
            if b"connection: close" in reply:
                visit.writer.close()
            return
        replying = asyncio.ensure_future(reply(visit))
        leaving = asyncio.ensure_future(reader.read(1))  # nothing comes before the reply is over, unless it is the end
        await asyncio.wait((replying, leaving), return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            visit.gone.set()
        for task in (replying, leaving):
            task.cancel()
        await asyncio.gather(replying, leaving, return_exceptions=True)


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The body of a request, of known length or chunked (RFC 9112, section 7.1)."""
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


@asynccontextmanager
async def raw_server(*replies: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    server = RawServer(list(replies))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        # asyncio loses a connection that it accepts while the listener is closed: so first it accepts no more.
        asyncio.get_running_loop().remove_reader(listener.sockets[0].fileno())
        await server.close()
        listener.close()


def head(status: str = "200 OK", **headers: str) -> bytes:
    """The head of a response: ``head("429 Too Many Requests", retry_after="7")``."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def plain(status: str, body: bytes | dict[str, Any] = b"", **headers: str) -> bytes:
    """A whole response with a body of known length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content_type": "application/json"} | headers
    return head(status, content_length=str(len(content)), **headers) + content


def part(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_PART = b"0\r\n\r\n"
STREAM_HEAD = head(content_type="text/event-stream; charset=utf-8", transfer_encoding="chunked")


def stream(*bodies: bytes) -> bytes:
    """A whole chunked event stream, one chunk for each body."""
    return STREAM_HEAD + b"".join(map(part, bodies)) + LAST_PART
