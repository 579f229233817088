"""A lenient parser of webhook receivers' responses: the status decides, whatever is wrong with the rest. Pure.

A strict parser fails a delivery for one illegal header line, and the receiver, which has accepted it, gets it again for
days. Only the status, Retry-After and the beginning of the body are used, and the connection never serves another
request, so lenient parsing allows no response smuggling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
"""The limit includes interim responses and blank lines before the status."""
MAX_CHUNK_LINE_BYTES = 4 * 1024

_STATUS = re.compile(rb"HTTP/[0-9](?:\.[0-9])? +([1-9][0-9]{2})(?=[ \t\r\n])")
_NO_STATUS = re.compile(rb"(?!H?\Z|HT\Z|HTT\Z|HTTP\Z|HTTP/)")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
SWITCHING_PROTOCOLS = 101


class NoStatus(Exception):
    """The response is not HTTP, or ended before its status."""


class Head(NamedTuple):
    """``fields``: the valid header fields, names in lower case. ``rest``: the body bytes received with the head."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    rest: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value.strip() for field, value in self.fields if field == name]


class HeadReader:
    """Parses a head from the bytes fed to it. ``status`` is set as soon as the status line can be parsed."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._seen = 0
        self.status: int | None = None

    def feed(self, piece: bytes) -> Head | None:
        """The head once it is complete, else None. Raises NoStatus."""
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
        """The head of a response that ended within it. Raises NoStatus."""
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
    """Decodes a body by its framing. ``ended``: it is complete, or its framing is invalid."""

    def __init__(self, head: Head) -> None:
        self._chunked = any(b"chunked" in value.lower() for value in head.values(b"transfer-encoding"))
        # The same length may be repeated, in a field or after a comma (RFC 9110 §8.6).
        lengths = {length.strip() for value in head.values(b"content-length") for length in value.split(b",")}
        self._left: int | None = None
        """The bytes left of the body or, if it is chunked, of the current chunk."""
        self._data = bytearray()
        self.ended = head.status in (204, 304) or head.status < 200
        if not self._chunked and lengths:
            length = lengths.pop()
            self._left = int(length) if not lengths and re.fullmatch(rb"[0-9]{1,15}", length) else 0
            self.ended = self.ended or not self._left

    def feed(self, piece: bytes) -> bytes:
        """The body bytes in ``piece``, without chunk framing."""
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
