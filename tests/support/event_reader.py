"""A reader of event streams over a raw socket: it can be cut anywhere, or stop reading; and one that is cut often."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from chatjobs.sse import Parser, ServerEvent

TERMINAL = ("complete", "error", "cancelled")
RECEIVE_BUFFER = 4096
SECONDS = 40.0


@dataclass
class EventReader:
    """One response. ``raw`` is everything of its body so far."""

    status: int
    headers: Mapping[str, str]
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _chunked: bool
    _parser: Parser
    _events: list[ServerEvent] = field(default_factory=list)
    raw: bytes = b""
    complete: bool = False
    """The body ended as HTTP wants it, not by a broken connection."""

    async def next(self) -> ServerEvent | None:
        """The next event; None at the end of the stream."""
        async with asyncio.timeout(SECONDS):
            while not self._events:
                piece = await self._piece()
                if not piece:
                    return None
                self.raw += piece
                self._events += self._parser.feed(piece)
        return self._events.pop(0)

    async def all(self) -> list[ServerEvent]:
        """Up to the end of the stream."""
        found = []
        while event := await self.next():
            found.append(event)
        return found

    async def until(self, seen: Callable[[bytes], bool]) -> bytes:
        """Read until the body so far is such, and return it."""
        async with asyncio.timeout(SECONDS):
            while not seen(self.raw):
                piece = await self._piece()
                assert piece, f"the stream ended before that: {self.raw!r}"
                self.raw += piece
                self._events += self._parser.feed(piece)
        return self.raw

    def cut(self) -> None:
        """Break the connection without a word."""
        self._writer.transport.abort()

    async def _piece(self) -> bytes:
        try:
            if not self._chunked:
                piece = await self._reader.read(65_536)
                self.complete = self.complete or not piece
                return piece
            size = int((await self._reader.readuntil(b"\r\n")).strip() or b"0", 16)
            piece = (await self._reader.readexactly(size + 2))[:-2]
            self.complete = not size
            return piece
        except (OSError, asyncio.IncompleteReadError):
            return b""


async def asked(
    url: str,
    *,
    last_event_id: str = "",
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> EventReader:
    """The answer to a request for events, its head read."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)
    lines = {"host": parts.netloc, "accept": "text/event-stream", **(headers or {})}
    if last_event_id:
        lines["last-event-id"] = last_event_id
    data = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        method = "POST"
        lines |= {"content-type": "application/json", "content-length": str(len(data))}
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + data)
    async with asyncio.timeout(SECONDS):
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in top[1:]) if name}
    chunked = found.get("transfer-encoding") == "chunked"
    parser = Parser(last_event_id=last_event_id)
    return EventReader(int(top[0].split()[1]), found, reader, writer, chunked, parser)


@asynccontextmanager
async def reading(url: str, **options: Any) -> AsyncIterator[EventReader]:
    """``asked``, and the connection is broken at the end of the block."""
    reader = await asked(url, **options)
    try:
        yield reader
    finally:
        reader.cut()


async def status_of(url: str, **options: Any) -> int:
    async with reading(url, **options) as reader:
        return reader.status


async def deaf(url: str) -> socket.socket:
    """A reader that asks for events and never takes any."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    deaf_one = socket.socket()
    deaf_one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    deaf_one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(deaf_one, (parts.hostname, parts.port))
    await loop.sock_sendall(deaf_one, f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode())
    return deaf_one


@dataclass
class Pieced:
    """What a reader has who was cut off again and again. ``ids`` in order of arrival."""

    texts: dict[str, str] = field(default_factory=lambda: {"content": "", "reasoning": ""})
    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    cuts: int = 0
    ending: dict[str, Any] = field(default_factory=dict)

    @property
    def last_id(self) -> str:
        return self.ids[-1] if self.ids else ""

    def take(self, event: ServerEvent) -> None:
        self.ids.append(event.id)
        self.names.append(event.event)
        data = json.loads(event.data)
        if event.event == "reset":
            self.texts = {"content": "", "reasoning": ""}
        elif event.event == "chunk":
            self.texts[data["channel"]] += data["content"]
        elif event.event in TERMINAL:
            self.ending = data

    def places(self) -> list[tuple[int, int, bool]]:
        """The ids as what they mean; they must grow strictly."""
        split = [(name.removesuffix(".end").split("."), name.endswith(".end")) for name in self.ids]
        return [(int(epoch), int(position), end) for (epoch, position), end in split]


async def read_in_pieces(urls: Sequence[str], *, on_chunk: Callable[[], None] = lambda: None) -> Pieced:
    """Read a stream to its end with a new connection, to each of the URLs in turn, for every event.

    Before each event one connection more is cut before it has read anything.
    """
    pieced, number = Pieced(), 0
    while not pieced.ending:
        number += 1
        async with reading(urls[number // 2 % len(urls)], last_event_id=pieced.last_id) as reader:
            assert reader.status == 200, reader.status
            if number % 2 == 0:
                event = await reader.next()
                assert event is not None, "the stream ended too early"
                pieced.take(event)
                if event.event == "chunk":
                    on_chunk()
        pieced.cuts += 1
    return pieced
