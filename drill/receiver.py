"""A webhook receiver that logs requests, and fails on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

HOST = "127.0.0.1"
Manner = Literal["good", "slow", "refusing", "dropping"]
"""The answer: 200; 200 after a second; 500; none, as the connection is closed once the request was read."""


@dataclass(frozen=True)
class Post:
    """One request. ``status`` is None if it got no answer."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None


@dataclass
class Receiver:
    """``manners`` are by path; the default is ``good``."""

    port: int = 0
    manners: dict[str, Manner] = field(default_factory=dict)
    log: list[Post] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.port}{path}"

    async def up(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve_connection, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Stop listening: connections are refused."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            self._server = None

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while await self._serve_request(reader, writer):
                    pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request. Returns whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        path = first.split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        status = await self._answer(path, writer)
        self.log.append(Post(path, headers, body, status))
        return status is not None and headers.get("connection") != "close"

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> int | None:
        match self.manners.get(path, "good"):
            case "dropping":
                return None
            case "slow":
                await asyncio.sleep(1)
            case "refusing":
                writer.write(b"HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n")
                return 500
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        return 200


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    this = Receiver()
    await this.up()
    try:
        yield this
    finally:
        await this.down()
