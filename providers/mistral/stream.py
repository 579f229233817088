"""A parser of server-sent events: bytes in, the data of each event out. Pure, and bounded.

The rules are those of WHATWG HTML, "Server-sent events", section "Parsing an event stream". Where this differs, because
servers of models differ:

- the last event counts without its blank line (``tail``): a server that omits it has still sent the data;
- data stays bytes: the decoder refuses invalid UTF-8 instead of storing replacement characters;
- an event whose type ends in ``error``, and a field ``error`` (llama.cpp), are an ``ErrorData``;
- JSON objects on ``data`` lines without a blank line between them are separate events: two objects in a row are not
  JSON, so such lines cannot be parts of one value. ``[DONE]`` does not wait for a blank line;
- an event without ``data`` that as a whole is a JSON object is data: gateways write errors into a stream that way.

Lines of other fields (``id``, ``retry``, other event types) and comments are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from domain.errors import UpstreamRefused

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""The limit of one response's decoded body, comments and framing included."""
MAX_EVENT_BYTES: Final = 1024 * 1024
"""The limit of one event, all its lines together."""

_BOM: Final = b"\xef\xbb\xbf"
_BOUNDARY: Final = re.compile(rb"(?<=\})\n(?=data: ?(?:\{|\[DONE\]))|(?:(?<=data: \[DONE\])|(?<=data:\[DONE\]))\n")
"""Where an event ends without a blank line."""
_LONGEST_BOUNDARY: Final = len(b"}\ndata: [DONE]")
_DONE_LINES: Final = (b"data: [DONE]\n", b"data:[DONE]\n")


class ErrorData(bytes):
    """The data of an event that is an error by its type or its field."""


class EventStream:
    """One response's stream of events. Feed it bytes, cut anywhere; it keeps at most one unfinished event."""

    def __init__(self, max_response: int = MAX_RESPONSE_BYTES, max_event: int = MAX_EVENT_BYTES) -> None:
        self._left = max_response
        self._max_event = max_event
        self._start: bytes | None = b""  # of the stream, while it may still turn out to be a byte order mark
        self._after_cr = False
        self._pending = bytearray()  # the unfinished event, its lines ending in LF

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that ``chunk`` completes. Raises UpstreamRefused (``upstream_too_large``)."""
        self._left -= len(chunk)
        if self._left < 0:
            raise too_large("The answer")
        if self._start is not None:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_lf(chunk)
        if self._pending or not chunk.endswith(b"\n\n"):
            chunk = self._whole_events(chunk)
        elif chunk.startswith(b"data: ") and 6 < chunk.find(b"\n") == len(chunk) - 2 <= self._max_event:
            return [chunk[6:-2]]  # the common case: one whole event of one line
        found: list[bytes] = []
        for event in chunk.split(b"\n\n"):
            if event.startswith(b"data: ") and b"\n" not in event and 6 < len(event) <= self._max_event:
                found.append(event[6:])
            elif event:
                found += self._data(event)
        return found

    def tail(self) -> list[bytes]:
        """The data of the last event at the end of the response, without its blank line. It may be cut short."""
        event = bytes(self._pending)
        self._pending.clear()
        return list(self._data(event))

    def _without_bom(self, chunk: bytes) -> bytes:
        """``chunk`` without the byte order mark that may precede the stream, perhaps in pieces."""
        start = (self._start or b"") + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _with_lf(self, chunk: bytes) -> bytes:
        """``chunk`` with LF for CRLF, CR and LF. A CR counts at once; an LF after it in the next chunk is dropped."""
        if not chunk:
            return chunk
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _whole_events(self, chunk: bytes) -> bytes:
        """Everything up to the last end of an event so far; the rest stays pending."""
        seen = len(self._pending)
        self._pending += chunk
        end, after = self._last_end(seen)
        whole = bytes(self._pending[:end])
        if after:
            del self._pending[:after]
        if len(self._pending) > self._max_event:
            raise too_large("One event of the answer")
        return whole

    def _last_end(self, seen: int) -> tuple[int, int]:
        """The end of the last whole event, and the beginning of the bytes after its separator; zeros if none is whole.

        Searches only the new bytes after ``seen``, and a separator that lies across two chunks.
        """
        if self._pending.endswith(_DONE_LINES):
            return len(self._pending), len(self._pending)
        blank = self._pending.rfind(b"\n\n", max(0, seen - 1))
        end, after = (blank, blank + 2) if blank >= 0 else (0, 0)
        for found in _BOUNDARY.finditer(self._pending, max(after, seen - _LONGEST_BOUNDARY, 0)):
            end, after = found.span()
        return end, after

    def _data(self, event: bytes) -> Iterator[bytes]:
        """The data of one event, or of several without a blank line between them; empty data is skipped."""
        if len(event) > self._max_event:
            raise too_large("One event of the answer")
        for part in _BOUNDARY.split(event):
            yield from _fields(part)


def _fields(event: bytes) -> Iterator[bytes]:
    lines = [_field(line) for line in event.split(b"\n")]
    value = b"\n".join(value for name, value in lines if name == b"data")
    if not value and event.lstrip().startswith(b"{"):
        value = event.strip()
    if value:
        failed = any(name == b"event" and kind.strip().lower().endswith(b"error") for name, kind in lines)
        yield ErrorData(value) if failed else value
    yield from (ErrorData(value) for name, value in lines if name == b"error" and value)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


def too_large(what: str) -> UpstreamRefused:
    return UpstreamRefused(
        f"{what} from Mistral is larger than this service reads; ask for less, for example with max_tokens.",
        code="upstream_too_large",
        http_status=200,
    )
