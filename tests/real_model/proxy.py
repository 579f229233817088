"""A TCP proxy between the worker and the model's server that cuts answers where it is told to, and keeps what it saw.

A job is known by the ``random_seed`` of its requests, which means nothing at temperature 0.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one answer after so many deltas: the connection is cut; or ``hold``, nothing more comes, until
    the client is gone."""

    after: int
    hold: bool = False


@dataclass
class Exchange:
    """One request, and what of its answer was passed on. ``whole``: it came to its end; ``broken``: by a Fault."""

    request: dict[str, Any]
    deltas: list[str] = field(default_factory=list)
    """Without the first frame, which has the role and the echo."""
    echo: str = ""
    usage: dict[str, int] | None = None
    whole: bool = False
    broken: bool = False

    @property
    def prefix(self) -> str | None:
        """The text that was to be continued."""
        last = self.request["messages"][-1]
        return str(last["content"]) if last["role"] == "assistant" else None

    @property
    def text(self) -> str:
        return self.echo + "".join(self.deltas)


class Proxy:
    def __init__(self, port: int, model_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.model_port = model_port
        self._faults: dict[int, list[Fault]] = {}
        self._exchanges: defaultdict[int, list[Exchange]] = defaultdict(list)
        self._held: dict[int, threading.Event] = {}
        self._keys = 0

    def job(self, *faults: Fault) -> int:
        """The ``random_seed`` of a new job whose answers break like this, the next one once the one before it has."""
        self._keys += 1
        self._faults[self._keys] = list(faults)
        self._held[self._keys] = threading.Event()
        return self._keys

    def seen(self, key: int) -> list[Exchange]:
        """All exchanges of a job, in order."""
        return self._exchanges[key]

    def held(self, key: int) -> threading.Event:
        """Set once a Fault with ``hold`` has come to its place."""
        return self._held[key]

    def serve(self, client: socket.socket) -> None:
        """One connection, which carries one exchange: the model's server closes it then."""
        with client.makefile("rb") as reader, socket.create_connection(("127.0.0.1", self.model_port)) as upstream:
            head, body = _message(reader)
            upstream.sendall(head + body)
            with upstream.makefile("rb") as answer:
                if head.startswith(b"POST"):
                    self._pass_on(json.loads(body), answer, client)
                else:
                    client.sendall(answer.read())

    def _pass_on(self, request: dict[str, Any], answer: BinaryIO, client: socket.socket) -> None:
        key = int(request.get("random_seed") or 0)
        faults = self._faults.get(key, [])
        exchange = Exchange(request)
        self._exchanges[key].append(exchange)
        client.sendall(_lines(answer))
        first = True
        while size := int(line := answer.readline() or b"0", 16):
            chunk = line + answer.read(size + 2)
            client.sendall(chunk)
            _note(exchange, chunk[len(line) :], first=first)
            first = False
            if faults and len(exchange.deltas) >= faults[0].after:
                exchange.broken = True
                if faults.pop(0).hold:
                    self._held[key].set()
                    while client.recv(4096):
                        pass
                return
        if line.strip() == b"0" and answer.readline():
            client.sendall(b"0\r\n\r\n")


def _note(exchange: Exchange, chunk: bytes, *, first: bool) -> None:
    """One chunk of the transfer is one frame: the server writes them one by one."""
    data = chunk.removeprefix(b"data: ").strip()
    if data == b"[DONE]":
        exchange.whole = True
        return
    frame = json.loads(data)
    content = frame["choices"][0]["delta"]["content"]
    if first:
        exchange.echo = content
    elif content:
        exchange.deltas.append(content)
    exchange.usage = frame.get("usage") or exchange.usage


def _message(reader: BinaryIO) -> tuple[bytes, bytes]:
    """Head and body of a request. An empty head: the connection was closed."""
    head = _lines(reader)
    length = next((int(one[15:]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length:")), 0)
    return head, reader.read(length)


def _lines(reader: BinaryIO) -> bytes:
    """Up to the first empty line, with it."""
    lines = b""
    while line := reader.readline():
        lines += line
        if not line.strip():
            break
    return lines


@contextmanager
def proxy(model_port: int) -> Iterator[Proxy]:
    """A running proxy, until the end of the block."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # A client may be killed, and the model's server be told so by the end of its connection.
            with suppress(ConnectionError, ValueError):
                found.serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        found = Proxy(server.server_address[1], model_port)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
