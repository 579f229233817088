"""A webhook receiver for tests: a real HTTP/1.1 server on loopback, in a thread of its own.

    with receiver() as hooks:
        hooks.answer("/hook", [Answer(500), Answer(200)])  # one per request, the last repeats
        ...                                                # something posts to hooks.url("/hook")
        first, second = hooks.wait_for(2, path="/hook")

It records every request and answers from a script per path (200 where there is none). ``wait_for`` is for plain
tests, ``arrived`` for async ones. It speaks HTTP by itself, since most of what it does no server would agree to.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CERTIFICATES = Path(__file__).parent / "certs"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """What to do with one request. Times in seconds."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    delay: float = 0
    """Before the first byte."""
    drip: float = 0
    """Between the bytes of the body (of ``raw`` too); 0 sends it at once."""
    endless: bool = False
    """Send the body over and over, until the client is gone."""
    reset: bool = False
    """Announce more than is sent, then reset the connection (TCP RST)."""
    silent: bool = False
    """Close the connection without an answer."""
    raw: bytes | None = None
    """Exactly these bytes in place of status line, headers and body."""

    @property
    def ordinary(self) -> bool:
        """A whole answer, after which the connection can serve another request."""
        return self.raw is None and not (self.endless or self.reset or self.silent)


@dataclass(frozen=True)
class Received:
    """One request as it came. Header names are in lower case; ``connection`` counts TCP connections from 1."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: datetime
    connection: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Made by ``receiver()``. Its methods may be called from any thread."""

    def __init__(self, tls: ssl.SSLContext | None, address: str) -> None:
        self._tls = tls
        self._address = address
        self._scripts: dict[str, list[Answer]] = {}
        self._received: list[Received] = []
        self._news = threading.Condition()
        self._connections = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def url(self, path: str = "/", host: str | None = None) -> str:
        return f"{'https' if self._tls else 'http'}://{host or self._address}:{self.port}{path}"

    def answer(self, path: str, answers: Answer | Sequence[Answer]) -> None:
        """The script of one path (without query): one answer per request from now on, the last repeats."""
        with self._news:
            self._scripts[path] = [answers] if isinstance(answers, Answer) else list(answers)

    def requests(self, path: str | None = None) -> list[Received]:
        """Every request so far, oldest first."""
        with self._news:
            return [one for one in self._received if path in (None, one.path)]

    def wait_for(self, n: int = 1, *, path: str | None = None, timeout: float = 30) -> list[Received]:
        """Block until there are ``n`` requests; return all. Raises TimeoutError, which says what did arrive."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.requests(path)) >= n, timeout):
                seen = [f"{one.method} {one.target}" for one in self._received]
                raise TimeoutError(f"waited {timeout} s for {n} requests to {path or 'any path'}; seen: {seen}")
            return self.requests(path)

    async def arrived(self, n: int = 1, *, path: str | None = None, timeout: float = 30) -> list[Received]:
        """``wait_for`` that leaves the event loop free."""
        return await asyncio.to_thread(self.wait_for, n, path=path, timeout=timeout)

    # ------------------------------------------------------------------------- inside the receiver's thread

    async def serve(self, port: int, ready: Future[Callable[[], object]]) -> None:
        """Run until the function that is handed to ``ready`` is called; leave no task and no socket behind.

        It accepts by itself: asyncio's own server cannot end connections that are still in their TLS handshake.
        """
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        try:
            listener = socket.create_server((self._address, port))
        except OSError as failure:
            ready.set_exception(failure)
            return
        with listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            ready.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
            loop.add_reader(listener, self._accept, listener)
            await stopped.wait()
            loop.remove_reader(listener)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        """Not ``loop.sock_accept``, which loses a connection when it is cancelled in the same turn."""
        with suppress(BlockingIOError):  # the client has gone already
            connection, _ = listener.accept()
            connection.setblocking(False)
            task = asyncio.create_task(self._connected(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: connection.close())

    async def _connected(self, connection: socket.socket) -> None:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with suppress(OSError, asyncio.IncompleteReadError):  # no handshake, or the client went away
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await self._talk(reader, writer)
                await _close(writer)
            finally:
                transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until one side wants it closed."""
        connection = next(self._connections)
        while True:
            request = await _read(reader, connection)
            answer = self._take(request)
            await asyncio.sleep(answer.delay)
            await _send(answer, writer)
            if answer.reset:
                return _reset(writer)
            if not answer.ordinary or request.headers.get("connection") == "close":
                return None

    def _take(self, request: Received) -> Answer:
        """Record the request and take the next answer of its path."""
        with self._news:
            self._received.append(request)
            self._news.notify_all()
            script = self._scripts.get(request.path, [])
            if not script:
                return Answer()
            return script.pop(0) if len(script) > 1 else script[0]


@contextmanager
def receiver(*, port: int = 0, tls: ssl.SSLContext | None = None, address: str = LOOPBACK) -> Iterator[Receiver]:
    """A running receiver, on a free port unless told; https with ``tls=server_tls("valid")``."""
    this = Receiver(tls, address)
    ready: Future[Callable[[], object]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(this.serve(port, ready)), name="receiver", daemon=True)
    thread.start()
    stop = ready.result(10)
    try:
        yield this
    finally:
        stop()
        thread.join(10)


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body, datetime.now(UTC), connection)


async def _send(answer: Answer, writer: asyncio.StreamWriter) -> None:
    for piece in _pieces(answer):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(answer.drip)


def _pieces(answer: Answer) -> Iterator[bytes]:
    if answer.silent:
        return
    if answer.raw is None:
        yield _head(answer)
    body = answer.body if answer.raw is None else answer.raw
    if answer.endless:
        yield from itertools.repeat(body * (1 + 65_536 // len(body)))
    elif answer.drip:
        yield from (bytes([byte]) for byte in body)
    else:
        yield body


def _head(answer: Answer) -> bytes:
    """Status line and headers. A reset answer announces more than will come, an endless one does not say."""
    missing = 1_000 if answer.reset else 0
    length = {} if answer.endless else {"content-length": str(len(answer.body) + missing)}
    headers = {"content-type": "text/plain"} | length | dict(answer.headers)
    lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _close(writer: asyncio.StreamWriter) -> None:
    """Send what is still to be sent, then close; a client that does not read it has a second."""
    writer.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), 1)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST in place of FIN: what SO_LINGER with zero seconds is for."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def gzip_bomb(size: int = 300_000) -> bytes:
    """About ``size`` bytes of gzip that are a thousand times as many letters z when decompressed."""
    member = gzip.compress(b"z" * 20_000_000)
    return member * (size // len(member))


def server_tls(name: str) -> ssl.SSLContext:
    """A server's side of TLS with a certificate of tests/support/certs: valid, expired, wrong-host, self-signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem")
    return context


def client_tls() -> ssl.SSLContext:
    """A client's side of TLS that trusts the authority of tests/support/certs and no other."""
    return ssl.create_default_context(cafile=CERTIFICATES / "ca.pem")
