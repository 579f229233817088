"""A TCP proxy that cuts connections: after some bytes of the answer, or with an answer of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx2

BAD_GATEWAY = -1
"""In place of a size: once the answer begins the proxy gives one of its own, as nginx does if its server dies."""
_OWN_ANSWER = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Cutter:
    """A TCP proxy that cuts each connection after some bytes of the answer. ``sizes`` says after how many."""

    def __init__(self, target: str, sizes: Iterator[int | None]) -> None:
        self.target = httpx2.URL(target)
        self.sizes = sizes
        self.cuts = 0
        self.url = ""
        self.connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self.serve(reader, writer))
        self.connections.add(connection)
        connection.add_done_callback(self.connections.discard)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection(self.target.host, self.target.port)
            sending = asyncio.create_task(pipe(reader, requests, None))
            try:
                size = next(self.sizes)
                if size == BAD_GATEWAY:
                    await refuse(answers, writer)
                    self.cuts += 1
                else:
                    self.cuts += await pipe(answers, writer, size)
            finally:
                sending.cancel()
                requests.transport.abort()
        finally:
            writer.transport.abort()


async def refuse(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Wait for the source's answer, and give another one."""
    with contextlib.suppress(OSError):
        await source.read(1)
        target.write(_OWN_ANSWER)
        await target.drain()
        target.close()
        await target.wait_closed()


async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter, size: int | None) -> bool:
    """Until the end of the source, or so many bytes; whether it was cut."""
    left = sys.maxsize if size is None else size
    with contextlib.suppress(OSError):
        while left and (data := await source.read(min(left, 65_536))):
            target.write(data)
            await target.drain()
            left -= len(data)
    return not left


@asynccontextmanager
async def cutter(target: str, sizes: Iterator[int | None]) -> AsyncIterator[Cutter]:
    proxy = Cutter(target, sizes)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        for connection in proxy.connections:
            connection.cancel()
        await asyncio.gather(*proxy.connections, return_exceptions=True)


def dice(seed: int, low: int, high: int) -> Iterator[int]:
    source = random.Random(seed)  # noqa: S311 -- the same cuts each time
    while True:
        yield source.randint(low, high)
