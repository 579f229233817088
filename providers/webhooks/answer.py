"""Answers of webhook receivers as they come: the status decides, whatever is wrong with the rest.

A strict parser calls a delivery failed for one illegal header line, and the receiver, which has taken it, gets it again
for days. Nothing of an answer but its status, its Retry-After and the beginning of its body is used, and its
connection never serves another request; so nothing can be smuggled by reading it leniently. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
"""Interim responses and blank lines before the status count, too."""
MAX_CHUNK_LINE_BYTES = 4 * 1024

_STATUS = re.compile(rb"HTTP/[0-9](?:\.[0-9])? +([1-9][0-9]{2})(?=[ \t\r\n])")
_NO_STATUS = re.compile(rb"(?!H?\Z|HT\Z|HTT\Z|HTTP\Z|HTTP/)")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
SWITCHING_PROTOCOLS = 101


class NoStatus(Exception):
    """What came is not HTTP, or ended before it had a status."""


class Head(NamedTuple):
    """``fields`` are those lines that are header fields, names in lower case. ``rest`` has come of the body."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    rest: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value.strip() for field, value in self.fields if field == name]


class HeadReader:
    """Fed with bytes until it gives a head. ``status`` is known as soon as its line can be read."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._seen = 0
        self.status: int | None = None

    def feed(self, piece: bytes) -> Head | None:
        """Raises NoStatus."""
        self._data += piece
        self._seen += len(piece)
        while True:
            del self._data[: len(self._data) - len(self._data.lstrip(b"\r\n"))]
            found = _STATUS.match(self._data)
            if found is None:
                self._check_beginning()
                return None
            status, end = int(found[1]), _END_OF_HEAD.search(self._data)
            interim = status < 200 and status != SWITCHING_PROTOCOLS
            self.status = None if interim else status
            if end is None:
                return self.end() if self._seen > MAX_HEAD_BYTES else None
            head, rest = bytes(self._data[: end.start()]), bytes(self._data[end.end() :])
            if not interim:
                return Head(status, tuple(_fields(head)), rest)
            self._data[:] = rest

    def end(self) -> Head:
        """The head of an answer that ended within it. Raises NoStatus."""
        if self.status is None:
            raise NoStatus
        return Head(self.status, tuple(_fields(bytes(self._data))))

    def _check_beginning(self) -> None:
        line_is_whole = b"\n" in self._data or len(self._data) > MAX_HEAD_BYTES
        if line_is_whole or self._seen > MAX_HEAD_BYTES or _NO_STATUS.match(self._data):
            raise NoStatus


def _fields(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in head.split(b"\n")[1:]:
        if found := _FIELD.fullmatch(line.rstrip(b"\r")):
            yield found[1].lower(), found[2]


class BodyReader:
    """The body of an answer by whatever framing it has. ``ended`` also where the framing makes no sense."""

    def __init__(self, head: Head) -> None:
        self._chunked = any(b"chunked" in value.lower() for value in head.values(b"transfer-encoding"))
        # The same length may be said again, in a field or after a comma (RFC 9110 §8.6).
        lengths = {length.strip() for value in head.values(b"content-length") for length in value.split(b",")}
        self._left: int | None = None
        """Of the body or, in a chunked one, of the chunk and the line break after it."""
        self._data = bytearray()
        self.ended = head.status in (204, 304) or head.status < 200
        if not self._chunked and lengths:
            length = lengths.pop()
            self._left = int(length) if not lengths and re.fullmatch(rb"[0-9]{1,15}", length) else 0
            self.ended = self.ended or not self._left

    def feed(self, piece: bytes) -> bytes:
        """What a piece has of the body itself."""
        if self.ended:
            return b""
        if self._chunked:
            self._data += piece
            return b"".join(self._chunks())
        if self._left is not None:
            piece = piece[: self._left]
            self._left -= len(piece)
            self.ended = not self._left
        return piece

    def _chunks(self) -> Iterator[bytes]:
        while self._data and not self.ended:
            if not self._left:
                line, end, _ = self._data.partition(b"\n")
                if not end and len(line) <= MAX_CHUNK_LINE_BYTES:
                    return
                size = _CHUNK_SIZE.fullmatch(line.strip()) if end else None
                del self._data[: len(line) + 1]
                if line.strip() or not end:  # the line break after a chunk is a blank line
                    self._left = int(size[1], 16) if size else 0
                    self.ended = not self._left
                continue
            piece = bytes(self._data[: self._left])
            del self._data[: self._left]
            self._left -= len(piece)
            yield piece
