"""Bytes sent as they are to a server, and what comes back."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """The first answer on a connection, and whether the server closed it afterwards."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    closed: bool

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        return str(problem["code"])


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def exchange(url: str, sent: bytes, *, patience: float = 5) -> Reply:
    """Send, and read until the server closes or nothing more comes for ``patience`` seconds."""
    begin = time.monotonic()
    with connected(url) as connection:
        connection.settimeout(patience)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough; its answer is there all the same
            connection.sendall(sent)
        return received(connection, begin)


def received(connection: socket.socket, begin: float) -> Reply:
    data, closed = b"", False
    while not _complete(data):
        piece = connection.recv(65536)
        if not piece:
            closed = True
            break
        data += piece
    seconds = time.monotonic() - begin
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    status = int(lines[0].split(" ")[1]) if lines[0] else 0
    if headers.get("connection") == "close" and not closed:
        closed = connection.recv(65536) == b""
    return Reply(status, headers, body, seconds, closed)


def _complete(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    if head.split(b" ")[1:2] in ([b"204"], [b"304"]):
        return True
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return len(body) >= int(line.removeprefix(b"content-length: "))
    return False


def request(method: str, target: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """A request; a Content-Length is added where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
