"""The events of a response's stream, for one reader. Pure.

Source of the events: OpenAI's API reference, "Streaming events". An event's ``sequence_number`` is not a count but a
place: it follows from the transcript alone, so that every gateway gives an event the same number at any time, whether
the text is still written, or was compacted into one piece since (docs/decisions/0032-responses.md):

    number = (epoch - 1) * EPOCH_ROOM + (position + 1) * ROOM + one of the OFFSETS

``position`` counts the characters of the answer before the event. Numbers below ROOM are those of the events before
the answer. All are even; an ``error`` that ends a stream early has the odd number after the last event, so that a
reader that goes on from there misses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from chatjobs.contracts import Channel, Job, JobStatus, QueuePlace, ToolCall
from dispatch.stream_events import KEEP_ALIVE
from domain.values import Slice, TextRun
from gateway.v1.responses_input import JsonDict, arguments_text
from gateway.v1.responses_object import (
    CALLED,
    COMPLETED,
    IN_PROGRESS,
    ResponseParts,
    call_item,
    item_id,
    last_status,
    response_object,
    text_item,
    text_part,
)

ROOM: Final = 16
"""Numbers for each character of an answer."""
EPOCH_ROOM: Final = 2**42
"""Numbers for each epoch. JavaScript's numbers are exact up to 2**53, which is the room of 2,048 epochs."""
LAST_NUMBER: Final = 2**62 - 1
"""No event has a greater number; what a caller names beyond it is this one."""
NOTHING_SENT: Final = -1


class Before(IntEnum):
    """The numbers of the events before the answer."""

    CREATED = 0
    QUEUED = 2
    IN_PROGRESS = 4


class Offset(IntEnum):
    """The order of the events at one position. The text that ends there comes before everything else."""

    DELTA = 0
    TEXT_DONE = 2
    PART_DONE = 4
    ITEM_DONE = 6
    ITEM_ADDED = 8
    PART_ADDED = 10
    ENDED = 14


class EventPlace(NamedTuple):
    """What a sequence number stands for: everything up to there has been read."""

    epoch: int
    position: int
    number: int

    @classmethod
    def of(cls, number: int) -> EventPlace:
        number = min(max(number, 0), LAST_NUMBER)
        epoch, rest = divmod(number, EPOCH_ROOM)
        return cls(epoch + 1, max(rest // ROOM - 1, 0), number)

    def within(self, epoch: int, position: int) -> EventPlace:
        """This place in an answer that ends with ``position`` of ``epoch``; behind its last event, if it is beyond."""
        number = self.number if self.epoch <= epoch else epoch * EPOCH_ROOM - 1
        return EventPlace(min(self.epoch, epoch), min(self.position, position), number)

    @property
    def has_text(self) -> bool:
        """Whether text of the epoch has been read, or the beginning of an item for it."""
        return self.number % EPOCH_ROOM >= ROOM


def number_of(epoch: int, position: int, offset: int) -> int:
    return (epoch - 1) * EPOCH_ROOM + (position + 1) * ROOM + offset


class ResponseRestarted(Exception):
    """The text that the reader has is void: the answer started over."""


class ResponseFraming:
    """The events after ``place``. ``read`` is the text before it, as runs: it tells which item is open there.

    The text of the open item is kept, since the event that ends it repeats it.
    """

    keep_alive = KEEP_ALIVE

    def __init__(self, parts: ResponseParts, place: EventPlace | None, read: Sequence[TextRun] = ()) -> None:
        self._job_id = parts.job.job_id
        self._parts: ResponseParts | None = parts._replace(runs=())
        self._settings = parts.settings
        self._epoch = place.epoch if place and place.has_text else 0
        self._index = len(read) - 1
        self._channel = read[-1].channel if read else None
        self._texts = [read[-1].text] if read else []
        self._position = read[-1].position if read else 0
        self.last = place.number if place else NOTHING_SENT
        """The number of the last event."""
        self.whole: Sequence[TextRun] = ()
        """The whole text, one run for each change of channel: to be set before the ending."""

    @property
    def read_up_to(self) -> tuple[int, int]:
        """Epoch and position up to which the reader has the text."""
        return max(self._epoch, 1), self._position

    # -------------------------------------------------------------------------------------- stream's side

    def opening(self) -> bytes:
        """The events before the first slice."""
        if self._parts is None:
            return b""
        events = [*self._lifecycle(Before.CREATED, "created", self._parts)]
        if self._settings.background:
            events += self._lifecycle(Before.QUEUED, "queued", self._parts)
        return b"".join(events)

    def encoded(self, piece: Slice) -> bytes:
        """The events of a slice. Raises ResponseRestarted."""
        if self._epoch not in (0, piece.epoch) or (piece.reset and self._epoch):
            raise ResponseRestarted
        events = [*self._begun()] if piece.started else []
        for run in piece.runs:
            self._epoch = piece.epoch
            events += self._text(run)
        return b"".join(events)

    def queued(self, place: QueuePlace) -> bytes:
        """A comment: OpenAI has no event for a place in the queue."""
        return KEEP_ALIVE

    def ending(self, job: Job) -> bytes:
        """The events after the last text."""
        parts = ResponseParts(job, self._settings, self.whole)
        self._epoch, events = job.epoch, list[bytes]()
        calls: Sequence[ToolCall] = ()
        if job.status in CALLED:
            calls = job.tool_calls or ()
            events += self._done(COMPLETED if calls else last_status(job.status))
            for count, call in enumerate(calls, 1):
                events += self._call(job.position + count, call)
        number = number_of(job.epoch, job.position + len(calls), Offset.ENDED)
        # OpenAI's streams have no event for a cancelled response; its object says that it was.
        kind = "failed" if job.status is JobStatus.CANCELLED else job.status.value
        events += self._event(number, f"response.{kind}", {"response": response_object(parts)})
        return b"".join(events)

    def broken_off(self, code: str, message: str) -> bytes:
        """An error that ends the stream before the response has ended.

        ``error`` repeats it: OpenAI's clients raise an exception for an event that has that, as OpenAI sends it.
        """
        number = self.last + 1 if self.last % 2 == 0 else self.last
        error = {"code": code, "message": message, "param": None}
        return _encoded("error", {**error, "error": {"type": "server_error", **error}}, number)

    # ---------------------------------------------------------------------------------------------- events

    def _begun(self) -> Iterator[bytes]:
        parts, self._parts = self._parts, None
        return self._lifecycle(Before.IN_PROGRESS, "in_progress", parts) if parts else iter(())

    def _lifecycle(self, number: Before, kind: str, parts: ResponseParts) -> Iterator[bytes]:
        if number > self.last:
            queued = number < Before.IN_PROGRESS and self._settings.background
            status = JobStatus.QUEUED if queued else JobStatus.IN_PROGRESS
            yield from self._event(number, f"response.{kind}", {"response": response_object(parts, status)})

    def _text(self, run: TextRun) -> Iterator[bytes]:
        if run.channel is not self._channel:
            yield from self._done(COMPLETED)
            yield from self._added(run.channel)
        self._texts.append(run.text)
        self._position = run.position
        kind = "output_text" if run.channel is Channel.CONTENT else "reasoning_summary_text"
        data = self._in_part({"delta": run.text}) | ({"logprobs": []} if run.channel is Channel.CONTENT else {})
        yield from self._at(Offset.DELTA, f"response.{kind}.delta", data)

    def _added(self, channel: Channel) -> Iterator[bytes]:
        self._index += 1
        self._channel, self._texts = channel, []
        item = text_item(self._job_id, self._index, channel, None, IN_PROGRESS)
        data = {"output_index": self._index, "item": item}
        yield from self._at(Offset.ITEM_ADDED, "response.output_item.added", data)
        part = self._in_part({"part": text_part(channel, "")})
        yield from self._at(Offset.PART_ADDED, f"response.{_part_name(channel)}.added", part)

    def _done(self, status: str) -> Iterator[bytes]:
        """The end of the open item, if there is one."""
        if self._channel is None:
            return
        channel, text = self._channel, "".join(self._texts)
        kind = "output_text" if channel is Channel.CONTENT else "reasoning_summary_text"
        data = self._in_part({"text": text}) | ({"logprobs": []} if channel is Channel.CONTENT else {})
        yield from self._at(Offset.TEXT_DONE, f"response.{kind}.done", data)
        part = self._in_part({"part": text_part(channel, text)})
        yield from self._at(Offset.PART_DONE, f"response.{_part_name(channel)}.done", part)
        item = text_item(self._job_id, self._index, channel, text, status)
        yield from self._at(Offset.ITEM_DONE, "response.output_item.done", {"output_index": self._index, "item": item})
        self._channel, self._texts = None, []

    def _call(self, room: int, call: ToolCall) -> Iterator[bytes]:
        """A call of a function, in the room that one more character would have."""
        self._index += 1
        announced = call_item(self._job_id, self._index, call, self._settings, announced=True)
        item = call_item(self._job_id, self._index, call, self._settings)
        arguments = arguments_text(call.function.arguments)
        place = {"item_id": item["id"], "output_index": self._index}
        steps: tuple[tuple[str, JsonDict], ...] = (
            ("output_item.added", {"output_index": self._index, "item": announced}),
            ("function_call_arguments.delta", {**place, "delta": arguments}),
            ("function_call_arguments.done", {**place, "name": item["name"], "arguments": arguments}),
            ("output_item.done", {"output_index": self._index, "item": item}),
        )
        for step, (kind, data) in enumerate(steps):
            yield from self._event(number_of(self._epoch, room, 2 * step), f"response.{kind}", data)

    def _in_part(self, data: JsonDict) -> JsonDict:
        """An event's data, with the place of the open item's one part."""
        channel = self._channel or Channel.CONTENT
        number = "content_index" if channel is Channel.CONTENT else "summary_index"
        place = {"item_id": item_id(self._job_id, self._index, channel), "output_index": self._index, number: 0}
        return place | data

    def _at(self, offset: Offset, kind: str, data: JsonDict) -> Iterator[bytes]:
        return self._event(number_of(self._epoch, self._position, offset), kind, data)

    def _event(self, number: int, kind: str, data: JsonDict) -> Iterator[bytes]:
        """The event, unless the reader has it."""
        if number > self.last:
            self.last = number
            yield _encoded(kind, data, number)


def _part_name(channel: Channel) -> str:
    return "content_part" if channel is Channel.CONTENT else "reasoning_summary_part"


_LINE_ENDS: Final = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Characters that some clients' SSE parsers (those on Python's ``splitlines``) take for the end of a line."""


def _encoded(kind: str, data: dict[str, Any], number: int) -> bytes:
    document = json.dumps({"type": kind, "sequence_number": number, **data}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {document.translate(_LINE_ENDS)}\n\n".encode()
