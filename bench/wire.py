"""An HTTP client with very little overhead, so that it does not distort the measurements."""

from __future__ import annotations

import asyncio
import json
import re
from array import array
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.model import STAMP, ages


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A keep-alive connection for requests whose responses have a content-length."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: Any) -> HttpResponse:
        if self._reader is None or self._writer is None:
            name, port = self._host.rsplit(":", 1)
            self._reader, self._writer = await asyncio.open_connection(name, int(port))
        self._writer.write(request("POST", self._host, path, json.dumps(body).encode()))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        return HttpResponse(int(head[9:12]), await self._reader.readexactly(int(length[1]) if length else 0))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def request(method: str, host: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """``headers`` are whole lines."""
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}{headers}\r\n".encode() + body


END = re.compile(rb"event: complete|data: \[DONE\]")


class BenchReader(asyncio.Protocol):
    """One event stream: ``first`` is done at its first token, ``ended`` at its end.

    ``lags``: the age in milliseconds of the tokens received while ``measuring``.
    """

    def __init__(self, head: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._request = head
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = loop.create_future()
        self.first: asyncio.Future[float] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self.lags = array("d")
        self.measuring = False
        self.tokens = 0

    @classmethod
    async def open(cls, url: str, path: str, body: Any = None) -> BenchReader:
        host = urlsplit(url).netloc
        data = b"" if body is None else json.dumps(body).encode()
        head = request("GET" if body is None else "POST", host, path, data, "accept: text/event-stream\r\n")
        name, port = host.rsplit(":", 1)
        reader = cls(head)
        await asyncio.get_running_loop().create_connection(lambda: reader, name, int(port))
        return reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            assert data.startswith(b"HTTP/1.1 200"), data
            self.opened.set_result(None)
        data = self._rest + data
        whole = data.rfind(b"\n") + 1
        data, self._rest = data[:whole], data[whole:]
        self._count(data)
        if not self.ended.done() and END.search(data):
            self.ended.set_result(self.tokens)
            self.close()

    def _count(self, data: bytes) -> None:
        if self.measuring:
            before = len(self.lags)
            ages(data, self.lags)
            self.tokens += len(self.lags) - before
        else:
            self.tokens += len(STAMP.findall(data))
        if self.tokens and not self.first.done():
            self.first.set_result(asyncio.get_running_loop().time())

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.opened, self.first, self.ended):
            if not future.done():
                future.set_exception(error or ConnectionError("the stream was cut"))
                future.exception()  # marks it as retrieved, as not every future is awaited

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def percentile(values: list[float] | array[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
