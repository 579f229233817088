"""Server-sent events, the reading side: bytes in, the data of each event out. Pure, and bounded.

The rules are those of WHATWG HTML, "Server-sent events", section "Parsing an event stream". Where we differ:

- lines of other fields (``event``, ``id``, ``retry``) and comments are skipped: Mistral says everything in ``data``;
- the last event counts without its blank line too (``tail``): a server that forgets it has still sent the data;
- data stays bytes: whoever decodes it refuses invalid UTF-8, rather than storing replacement characters.
"""

from __future__ import annotations

from typing import Final

from chatjobs.errors import UpstreamRefused

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Of one response's decoded body, comments and framing included."""
MAX_EVENT_BYTES: Final = 1024 * 1024
"""Of one event, all its lines together."""

_BOM: Final = b"\xef\xbb\xbf"


class EventStream:
    """One response's stream of events. Feed it bytes, cut anywhere; it keeps at most one unfinished event."""

    def __init__(self, max_response: int = MAX_RESPONSE_BYTES, max_event: int = MAX_EVENT_BYTES) -> None:
        self._left = max_response
        self._max_event = max_event
        self._start: bytes | None = b""  # of the stream, while it may still turn out to be a byte order mark
        self._after_cr = False
        self._pending = bytearray()  # the event that is not finished, its lines ending in LF

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that ``chunk`` completes. Raises UpstreamRefused (``upstream_too_large``)."""
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_large("The answer")
        if self._start is not None:
            chunk = self._without_bom(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_lf(chunk)
        if self._pending or not chunk.endswith(b"\n\n"):
            chunk = self._whole_events(chunk)
        elif chunk.startswith(b"data: ") and 6 < chunk.find(b"\n") == len(chunk) - 2 <= self._max_event:
            return [chunk[6:-2]]  # the common read: one whole event of one line
        return [data for event in chunk.split(b"\n\n") if event and (data := self._data(event))]

    def tail(self) -> list[bytes]:
        """At the end of the response: the data of an event whose blank line never came. It may be cut short."""
        data = self._data(bytes(self._pending))
        self._pending.clear()
        return [data] if data else []

    def _without_bom(self, chunk: bytes) -> bytes:
        """One byte order mark may precede the stream; it may come in pieces."""
        start = (self._start or b"") + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _with_lf(self, chunk: bytes) -> bytes:
        """CRLF, CR and LF all end a line. A CR counts at once; an LF that follows it in the next chunk is dropped."""
        if not chunk:
            return chunk
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _whole_events(self, chunk: bytes) -> bytes:
        """Everything up to the last blank line so far; the rest waits for its own."""
        seen = max(0, len(self._pending) - 1)  # the blank line may lie across two chunks
        self._pending += chunk
        end = self._pending.rfind(b"\n\n", seen)
        whole = bytes(self._pending[:end]) if end >= 0 else b""
        if end >= 0:
            del self._pending[: end + 2]
        if len(self._pending) > self._max_event:
            raise _too_large("One event of the answer")
        return whole

    def _data(self, event: bytes) -> bytes:
        """The ``data`` lines of one event joined by LF; empty where there are none: such an event is not dispatched."""
        if len(event) > self._max_event:
            raise _too_large("One event of the answer")
        if event.startswith(b"data: ") and b"\n" not in event:
            return event[6:]
        lines = (line.partition(b":") for line in event.split(b"\n"))
        return b"\n".join(value.removeprefix(b" ") for field, _, value in lines if field == b"data")


def _too_large(what: str) -> UpstreamRefused:
    return UpstreamRefused(
        f"{what} from Mistral is larger than this service reads; ask for less, for example with max_tokens.",
        code="upstream_too_large",
        http_status=200,
    )
