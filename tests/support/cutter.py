"""A TCP proxy that cuts connections: ``async with cutter(url, dice(1, 1, 1_500)) as proxy``."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx2


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
                self.cuts += await pipe(answers, writer, next(self.sizes))
            finally:
                sending.cancel()
                requests.transport.abort()
        finally:
            writer.transport.abort()


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
