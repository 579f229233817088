"""Server-sent events: encoding, parsing, and the events of a job or batch over several connections. No input or output.

Source of the format: the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, Self, TypeVar

from chatjobs.contracts import (
    BatchProgress,
    CancelledEvent,
    ChunkEvent,
    CompleteEvent,
    ErrorEvent,
    QueuedEvent,
    ResetEvent,
    StartEvent,
    StreamEvent,
    WireModel,
    read_json,
)
from chatjobs.errors import ResponseTooLarge, StreamBroken

BOM: Final = b"\xef\xbb\xbf"
"""The byte order mark, which is dropped at the beginning of a stream."""
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of one event. The service's frames have less than 1 MiB, except for the tool calls of a terminal one."""
EVENTS: Final[Mapping[str, type[StreamEvent]]] = {
    "start": StartEvent,
    "chunk": ChunkEvent,
    "reset": ResetEvent,
    "complete": CompleteEvent,
    "error": ErrorEvent,
    "cancelled": CancelledEvent,
}
QUEUED: Final = "queued"
BATCH_EVENTS: Final = frozenset({"progress", "complete", "cancelled", "error"})
Event = TypeVar("Event", bound=WireModel)
LINE_BREAK = re.compile("\r\n|\n|\r")


def encode(event: str, id: str | None, data: str) -> bytes:
    """One event on the wire, the fields in the order ``event, id, data``. Without ``id`` readers keep the one before.

    Raises ValueError if ``event`` or ``id`` has a line break or NUL, which the format cannot carry there.
    """
    if "\n" in data or "\r" in data:
        data = LINE_BREAK.sub("\ndata: ", data)
    head = f"event: {event}\n" if id is None else f"event: {event}\nid: {id}\n"
    if head.count("\n") != 1 + (id is not None) or "\r" in head or "\0" in head:
        raise ValueError("the name and the id of an event must not have line breaks or NUL")
    return f"{head}data: {data}\n\n".encode()


class ServerEvent(NamedTuple):
    """One event that was read.

    ``event`` is its name, ``message`` if it has none; ``id`` is the last one received, with this event or before.
    """

    event: str
    id: str
    data: str


class Parser:
    """A parser of a stream of bytes, which may be cut into pieces anywhere.

    ``last_event_id`` is the id that a reader sends when it connects again; ``retry`` is the time to wait before that,
    in milliseconds, None until the server sends it. Memory is bounded: an event, or a line, over ``limit`` bytes raises
    ResponseTooLarge.
    """

    def __init__(self, *, last_event_id: str = "", limit: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = last_event_id
        self.retry: int | None = None
        self._limit = limit
        self._line = bytearray()
        self._first = True
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []
        self._size = 0
        self._fields: Mapping[str, Callable[[str], None]] = {
            "event": self._take_event,
            "data": self._take_data,
            "id": self._take_id,
            "retry": self._take_retry,
        }

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that this piece completes. Iterate to the end before the next piece. Raises ResponseTooLarge."""
        for line in self._lines(chunk):
            if line:
                self._take(line)
            elif (event := self._dispatched()) is not None:
                yield event

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """The complete lines, without their ends. Line ends are ASCII, so they never lie inside a character."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        for piece in chunk.splitlines(keepends=True):
            self._line += piece.rstrip(b"\r\n")
            if self._size + len(self._line) > self._limit:
                raise ResponseTooLarge(f"an event of the stream has more than {self._limit} bytes")
            if piece.endswith((b"\n", b"\r")):
                line, self._line = bytes(self._line), bytearray()
                if self._first:
                    line, self._first = line.removeprefix(BOM), False
                yield line
        self._after_cr = self._after_cr or chunk.endswith(b"\r")

    def _take(self, line: bytes) -> None:
        name, _, value = line.decode(errors="replace").partition(":")
        if take := self._fields.get(name):
            take(value.removeprefix(" "))

    def _take_event(self, value: str) -> None:
        self._event = value

    def _take_data(self, value: str) -> None:
        self._data.append(value)
        self._size += len(value.encode()) + 1

    def _take_id(self, value: str) -> None:
        if "\0" not in value:
            self.last_event_id = value

    def _take_retry(self, value: str) -> None:
        if re.fullmatch("[0-9]{1,15}", value):
            self.retry = int(value)

    def _dispatched(self) -> ServerEvent | None:
        """The event that a blank line completes; None if there was no data."""
        event = ServerEvent(self._event or "message", self.last_event_id, "\n".join(self._data)) if self._data else None
        self._event, self._data, self._size = "", [], 0
        return event


EVENT_ID: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,15})(\.end)?")


class Place(NamedTuple):
    """A place in a job's text: ``position`` characters of the text of an ``epoch`` lie before it."""

    epoch: int
    position: int


class EventId(NamedTuple):
    """The id of an event of a job's stream: ``<epoch>.<position>``, with ``.end`` on a terminal event.

    The place is that after the event's text. Ids of one job sort in the order of its events.
    """

    place: Place
    terminal: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id in a text. Raises ValueError for any other text, and for epoch 0: epochs begin at 1."""
        found = EVENT_ID.fullmatch(text)
        if found is None or int(found[1]) == 0:
            raise ValueError("this is not the id of an event of a job's stream")
        return cls(Place(int(found[1]), int(found[2])), terminal=found[3] is not None)


class JobEvents:
    """The events of a job's stream, each once and without a gap, over any number of connections.

    Ids make this possible: a chunk's id is the place after its text, so the place before its text must be the reader's.
    ``last_event_id`` is the id of the last event that the reader has.
    """

    def __init__(self, *, last_event_id: str = "", limit: int = MAX_EVENT_BYTES) -> None:
        """Raises StreamBroken if ``last_event_id`` is not an id of a job's stream."""
        self.last_event_id = last_event_id
        self._place = _place(last_event_id) if last_event_id else None
        self._limit = limit
        self._parser = Parser(limit=limit)

    def connect(self) -> None:
        """Begin to read a new connection, which continues after ``last_event_id``. An incomplete event is dropped."""
        self._parser = Parser(limit=self._limit)

    def feed(self, chunk: bytes) -> Iterator[tuple[str, StreamEvent]]:
        """The ids and events that this piece of the connection completes; events of unknown names are skipped.

        A QueuedEvent has no id of its own: it comes with that of the event before.
        Raises StreamBroken, after which a new connection may help, and ResponseTooLarge.
        """
        for name, event_id, data in self._parser.feed(chunk):
            if name == QUEUED:  # it is at no place of the text
                yield self.last_event_id, read_event(QueuedEvent, data)
                continue
            if not event_id:  # it is no part of the job's text
                continue
            event = _event(name, data)
            if self._moved(_place(event_id), event):
                self.last_event_id = event_id
                if event is not None:
                    yield event_id, event

    def ends(self, event: StreamEvent) -> bool:
        """Whether an event is the terminal one."""
        return isinstance(event, (CompleteEvent, ErrorEvent, CancelledEvent))

    def _moved(self, to: Place, event: StreamEvent | None) -> bool:
        """Move to an event's place; False if the reader has the event already. Raises StreamBroken."""
        here = self._place
        match event:
            case StartEvent() if here is not None:
                return False
            case ChunkEvent() if here not in (None, (to.epoch, to.position - len(event.content))):
                raise StreamBroken("a piece of the text is missing or comes twice")
            case CompleteEvent() | CancelledEvent() | ErrorEvent() if here not in (None, to):
                raise StreamBroken("the end of the text is missing")
            case None if here not in (None, to):  # of an unknown name; if it had text, the next event shows the gap
                return False
            case _:
                self._place = to
                return True


class BatchEvents:
    """The states of a batch, over any number of connections; each connection begins with the state as it is then.

    ``last_event_id`` is the id of the last state that the reader has.
    """

    def __init__(self, *, last_event_id: str = "", limit: int = MAX_EVENT_BYTES) -> None:
        """Raises StreamBroken if ``last_event_id`` is not an id of a batch's stream."""
        if last_event_id:
            _place(last_event_id)
        self.last_event_id = last_event_id
        self._limit = limit
        self._parser = Parser(limit=limit)
        self._last: BatchProgress | None = None

    def connect(self) -> None:
        """Begin to read a new connection. An incomplete event is dropped."""
        self._parser = Parser(limit=self._limit)

    def feed(self, chunk: bytes) -> Iterator[tuple[str, BatchProgress]]:
        """The ids and states that this piece of the connection completes, without those that the reader has.

        Raises StreamBroken, after which a new connection may help, and ResponseTooLarge.
        """
        for name, event_id, data in self._parser.feed(chunk):
            if name not in BATCH_EVENTS:
                continue
            state = read_event(BatchProgress, data)
            if event_id:
                self.last_event_id = event_id
            if state != self._last:
                self._last = state
                yield self.last_event_id, state

    def ends(self, event: BatchProgress) -> bool:
        """Whether a state is the last one."""
        return event.status.terminal


def _event(name: str, data: str) -> StreamEvent | None:
    model = EVENTS.get(name)
    return None if model is None else read_event(model, data)


def read_event(model: type[Event], data: str) -> Event:
    """An event from the JSON of its data. Raises StreamBroken."""
    try:
        return read_json(model, data)
    except ValueError:
        raise StreamBroken(f"a {model.__name__} is not what it should be") from None


def _place(event_id: str) -> Place:
    """The place in an event's id. Raises StreamBroken."""
    try:
        return EventId.parse(event_id).place
    except ValueError:
        raise StreamBroken("an event's id is not one of a job's stream") from None
