"""Turns slices of a transcript into the events of a stream, for one reader. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from json import JSONEncoder

from chatjobs import sse
from chatjobs.contracts import (
    CancelledEvent,
    ChunkEvent,
    CompleteEvent,
    ErrorEvent,
    Job,
    JobError,
    JobStatus,
    QueuedEvent,
    QueuePlace,
    ResetEvent,
    StartEvent,
    StreamEvent,
)
from domain.values import JobHandle, Slice, TextRun

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which keeps proxies from closing a connection."""

_json_string = JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Frame:
    """An event of a job's stream and its id, as on the wire; None for an event that no reader resumes from."""

    id: str | None
    event: StreamEvent


class Framing:
    """The frames for one reader. ``resumed``: the reader has the beginning already, of ``epoch``."""

    keep_alive = KEEP_ALIVE

    def __init__(self, job: Job | JobHandle, *, resumed: bool, epoch: int | None = None) -> None:
        self._epoch = epoch
        self._job_id, self._request_id, self._model = job.job_id, job.request_id, job.model
        self._started_at = job.started_at if isinstance(job, Job) else None
        self._introduced = resumed
        self._index = 0

    def frames(self, piece: Slice) -> Iterator[Frame]:
        """``start`` once an attempt has begun, ``reset`` where the reader's text is void, and the text."""
        yield from self._introduction(piece)
        for run in piece.runs:
            chunk = ChunkEvent(content=run.text, channel=run.channel, index=self._index, token_count=run.token_count)
            self._index += 1
            yield Frame(f"{piece.epoch}.{run.position}", chunk)

    def encoded(self, piece: Slice) -> bytes:
        """The frames of a slice as on the wire. A chunk is written without making its event first: every reader of a
        job needs its own."""
        blocks = [encoded(frame) for frame in self._introduction(piece)]
        for run in piece.runs:
            data = (
                f'{{"content":{_json_string(run.text)},"channel":"{run.channel.value}",'
                f'"index":{self._index},"tokenCount":{run.token_count}}}'
            )
            self._index += 1
            blocks.append(sse.encode("chunk", f"{piece.epoch}.{run.position}", data))
        return b"".join(blocks)

    def queued(self, place: QueuePlace) -> bytes:
        """The place of a job that waits for the model's rate limit, as on the wire."""
        return encoded(queued_frame(place))

    def ending(self, job: Job) -> bytes:
        """The terminal frame of a job that has ended, as on the wire."""
        return encoded(last_frame(job))

    def _introduction(self, piece: Slice) -> Iterator[Frame]:
        if piece.started and not self._introduced:
            self._introduced = True
            yield Frame(f"{piece.epoch}.0", self._start(piece))
        # A reader that has the beginning of an older epoch and no text lacks nothing, but its ids are of that epoch.
        if piece.reset or self._epoch not in (None, piece.epoch):
            reason = piece.reset_reason or "position"  # the reader came with a position that this job never had
            yield Frame(f"{piece.epoch}.0", ResetEvent(attempt=piece.attempt, reason=reason))
        self._epoch = piece.epoch

    def _start(self, piece: Slice) -> StartEvent:
        return StartEvent(
            job_id=self._job_id,
            request_id=self._request_id,
            model=self._model,
            attempt=piece.attempt,
            timestamp=self._started_at or datetime.now(UTC),
        )


def encoded(frame: Frame) -> bytes:
    """A frame as on the wire."""
    return sse.encode(frame.event.type, frame.id, frame.event.model_dump_json())


def queued_frame(place: QueuePlace) -> Frame:
    """The place of a job that waits for the model's rate limit."""
    return Frame(None, QueuedEvent(**dict(place)))


def first_part(piece: Slice, limit: int) -> Slice:
    """A slice with at most ``limit`` characters: itself, or its beginning."""
    if sum(len(run.text) for run in piece.runs) <= limit:
        return piece
    runs: list[TextRun] = []
    for run in piece.runs:
        text = run.text[:limit]
        runs.append(run._replace(text=text, position=run.position - len(run.text) + len(text)))
        limit -= len(text)
        if not limit:
            break
    return piece._replace(runs=tuple(runs), position=runs[-1].position)


def last_frame(job: Job) -> Frame:
    """The terminal frame of a job that has ended."""
    return Frame(f"{job.epoch}.{job.position}.end", _ending(job))


def _ending(job: Job) -> StreamEvent:
    sha256 = job.sha256 or ""
    match job.status:
        case JobStatus.COMPLETED | JobStatus.INCOMPLETE:
            return CompleteEvent(
                status=job.status,
                total_tokens=job.usage.total_tokens if job.usage else None,
                usage=job.usage,
                finish_reason=job.finish_reason,
                tool_calls=job.tool_calls,
                sha256=sha256,
            )
        case JobStatus.CANCELLED:
            return CancelledEvent(usage=job.usage, sha256=sha256)
        case _:
            error = job.error or JobError(code="internal", message="The job failed")
            return ErrorEvent(code=error.code, message=error.message, retryable=error.retryable, cause=error.cause)
