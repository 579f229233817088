"""Server-sent events: a job's answer while it is generated, resumable at every character.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html. An event's id is
``<epoch>.<position>`` after the event; that of the terminal event ends in ``.end``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, NamedTuple, Protocol

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatjobs import sse
from chatjobs.contracts import ChatRequest, Job, QueuePlace
from chatjobs.errors import ContentDeleted, JobNotFound
from dispatch.stream_events import KEEP_ALIVE, Framing, first_part
from domain.errors import StorageUnavailable
from domain.names import status_path
from domain.values import Cursor, JobHandle, Slice
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, accept, body_of
from gateway.serving.middleware import defer_stream
from gateway.serving.open_streams import DISCONNECTED, OpenStream

log = logging.getLogger(__name__)

LEAVE_SECONDS = 1.0
PIECE_BYTES = 64 * 1024
"""The size of one write; the next one waits until the reader has taken it."""
CHARACTERS_AT_ONCE = 64 * 1024
"""The longest merged frame. The text after it is read from storage again, not kept in memory for a slow reader."""
RETRY = b"retry: 1000\n"
"""Sent in the block of the first event: some parsers dispatch an empty event for a block without data."""
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would buffer 4 KB first
}
ROW_POLL_SECONDS = 0.25
RUN_POLL_ROUNDS = 20
"""Polls of the database for each query to Temporal."""

router = APIRouter(prefix="/api")
EVENTS_DOCUMENTED = {200: {"content": {"text/event-stream": {}}}, 204: {"description": "Nothing follows that id"}}


class StreamStart(NamedTuple):
    """Where a reader starts. ``resumed``: it sent an event id; ``ended``: that of a terminal event."""

    epoch: int = 1
    position: int = 0
    ended: bool = False
    resumed: bool = False

    def of(self, job_id: str) -> Cursor:
        return Cursor(job_id, self.epoch, self.position, awaits_start=not self.resumed)


@router.get("/jobs/{job_id}/events", responses=EVENTS_DOCUMENTED, response_model=None)  # type: ignore[arg-type]
async def events(job_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """A job's events, from ``Last-Event-ID`` on (or ``?lastEventId=``; the header wins)."""
    check_accept(request)
    place = read_event_id(request.headers.get("last-event-id", request.query_params.get("lastEventId")))
    try:
        return await _stream_of(job_id, here, caller, place)
    except JobNotFound:
        # A job started directly in Temporal may not have its row yet.
        if not await here.may_be_new(job_id, caller) or not await here.intake.runs(job_id):
            raise
        return JobEventsResponse(here, caller, place.of(job_id), resumed=place.resumed)


@router.post("/chat/stream", responses=EVENTS_DOCUMENTED, response_model=None, openapi_extra=body_of(ChatRequest))  # type: ignore[arg-type]
async def chat(
    request: Request, here: Here, caller: Caller, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Start a job; the response is its event stream. Disconnecting does not stop the job."""
    check_accept(request)
    place = read_event_id(request.headers.get("last-event-id"))
    accepted = await accept(request, here, caller, idempotency_key)
    headers = {"X-Job-Id": accepted.job_id, "Location": status_path(accepted.job_id)}
    if not accepted.created:
        headers["Idempotency-Replayed"] = "true"
        return await _stream_of(accepted.job_id, here, caller, place, headers)
    # A new job has no events yet, so Last-Event-ID is ignored.
    return JobEventsResponse(
        here, caller, StreamStart().of(accepted.job_id), job=accepted, resumed=False, headers=headers
    )


async def _stream_of(
    job_id: str, here: Dependencies, caller: Identity, place: StreamStart, headers: Mapping[str, str] | None = None
) -> Response:
    """The stream of a job that has a row. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
    job = await here.jobs.queries.outline(job_id, caller.tenant)
    if job.deleted_at is not None:
        raise ContentDeleted
    if place.ended and job.status.terminal and (job.epoch, job.position) == (place.epoch, place.position):
        return Response(status_code=204, headers=headers)
    return JobEventsResponse(here, caller, place.of(job_id), job=job, resumed=place.resumed, headers=headers)


def read_event_id(given: str | None) -> StreamStart:
    """The position in an event id; without one, the beginning. Raises HttpProblem."""
    if not given:
        return StreamStart()
    try:
        place, terminal = sse.EventId.parse(given)
    except ValueError:
        why = "Last-Event-ID is not an id of this stream; leave it out to start over"
        raise HttpProblem(400, "bad_event_id", why) from None
    return StreamStart(*place, ended=terminal, resumed=True)


def check_accept(request: Request) -> None:
    """Raises HttpProblem (406) if Accept excludes event streams."""
    wanted = request.headers.get("accept", "*/*").lower()
    if not any(kind in wanted for kind in ("text/event-stream", "text/*", "*/*")):
        raise HttpProblem(406, "not_acceptable", "This is a stream: send Accept: text/event-stream")


class StreamFraming(Protocol):
    """What one reader of a job gets, as on the wire; empty where there is nothing to send."""

    @property
    def keep_alive(self) -> bytes:
        """What is sent while there is nothing else."""

    def encoded(self, piece: Slice) -> bytes: ...
    def queued(self, place: QueuePlace) -> bytes: ...
    def ending(self, job: Job) -> bytes: ...


class EventStreamResponse(Response, ABC):
    """One reader's stream, in plain ASGI: Starlette's StreamingResponse costs a task group per reader."""

    def __init__(self, here: Dependencies, caller: Identity, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(None, 200, {**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._here = here
        self._caller = caller
        self._stuck_seconds = here.timings.stream_stuck_seconds
        self._keep_alive_seconds = here.timings.stream_keep_alive_seconds
        self._retry_field = RETRY
        """RETRY until the first event is sent, then empty."""

    @abstractmethod
    async def send_events(self, send: Send) -> None:
        """Send all events with ``write_events``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        defer_stream(scope, self._run)

    async def _run(self, receive: Receive, send: Send) -> None:
        whole = False
        with self._here.open_streams.registered(self._caller.key_id) as stream:
            watching = asyncio.create_task(_watch_disconnect(receive, stream), name="hang-up")
            try:
                await self.begin(send)
                await self.send_events(send)
                await self.write(send, b"", more=False)
                whole = True
            except asyncio.CancelledError:
                if stream.end_reason is None:
                    raise
                stream.task.uncancel()
                if stream.end_reason == DISCONNECTED:
                    await self.disconnected()
                else:
                    await self.end_body(send)
            finally:
                watching.cancel()
        if whole:  # a reader that hangs up now does not end this task any more
            await self.delivered()

    async def begin(self, send: Send) -> None:
        """Send the head of the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Write to the reader. Raises TimeoutError if it takes nothing for too long; the connection is then aborted."""
        async with asyncio.timeout(self._stuck_seconds):
            for start in range(0, max(len(data), 1), PIECE_BYTES):
                await send({"type": "http.response.body", "body": data[start : start + PIECE_BYTES], "more_body": more})

    async def write_events(self, send: Send, blocks: bytes) -> None:
        """Write complete blocks, the first of which is an event."""
        retry, self._retry_field = self._retry_field, b""
        await self.write(send, retry + blocks)

    async def delivered(self) -> None:
        """Called when the end of the body was sent."""

    async def disconnected(self) -> None:
        """Called when the reader has hung up."""

    async def end_body(self, send: Send) -> None:
        """End the body regularly; the reader reconnects to another gateway, or with another key."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.write(send, b"", more=False)


class JobEventsResponse(EventStreamResponse):
    """The events of a job from a cursor on.

    ``job`` is None for a job that so far exists only in Temporal. ``resumed``: the reader has the beginning already.
    """

    def __init__(
        self,
        here: Dependencies,
        caller: Identity,
        cursor: Cursor,
        *,
        resumed: bool,
        job: Job | JobHandle | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(here, caller, headers)
        self._cursor = cursor
        self._job = job
        self._resumed = resumed
        self._place: QueuePlace | None = None
        """The job's place in the queue, if it is yet to be sent to the reader."""
        self._pause: asyncio.Timeout | None = None

    async def send_events(self, send: Send) -> None:
        """Send all events up to the terminal one; a long database outage ends the stream early."""
        try:
            if framing := await self._framing(send):
                with self._here.queue.watched(self._cursor.job_id, self._on_queue_place):
                    await self.send_frames(send, framing)
        except (JobNotFound, ContentDeleted):  # its retention ended, or it was deleted
            return
        except StorageUnavailable as error:
            log.warning("stream ended: %s", error, extra={"action": "stream_ended", "job_id": self._cursor.job_id})

    async def _framing(self, send: Send) -> StreamFraming | None:
        """None if the job will never have events. Drops the reference to the job: a stream may last for an hour."""
        job, self._job = self._job or await self._wait_for_row(send), None
        return None if job is None else self.framing_of(job)

    def framing_of(self, job: Job | JobHandle) -> StreamFraming:
        """The framing of this stream's events."""
        return Framing(job, resumed=self._resumed, epoch=self._cursor.epoch if self._resumed else None)

    async def send_frames(self, send: Send, framing: StreamFraming) -> None:
        while True:
            piece = await self._next_slice(send, framing)
            status = piece.status
            part = first_part(piece, CHARACTERS_AT_ONCE)
            whole = part is piece
            self._cursor = part.cursor
            data = framing.encoded(part)
            del piece, part  # while a slow reader takes ``data``, the rest of the text is not kept in memory
            if data:
                await self.write_events(send, data)
            if whole and status.terminal and (job := await self.ended()):
                return await self.write_events(send, framing.ending(job))

    async def ended(self) -> Job | None:
        """The job that has ended; None if it, a failed one, was reopened in the meantime."""
        job = await self._here.jobs.queries.outline(self._cursor.job_id, self._caller.tenant)
        if job.deleted_at is not None:
            raise ContentDeleted
        there = job.status.terminal and (job.epoch, job.position) == (self._cursor.epoch, self._cursor.position)
        return job if there else None

    async def _next_slice(self, send: Send, framing: StreamFraming) -> Slice:
        """Waits for text or a status that the reader does not have; meanwhile sends the job's place in the queue.

        A comment in regular intervals keeps proxies from closing the connection.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if self._place else self._keep_alive_seconds) as self._pause:
                    try:
                        return await self._here.reader.wait(self._cursor)
                    finally:
                        self._pause = None
            place, self._place = self._place, None
            if place:
                await self.write_events(send, framing.queued(place))
            elif framing.keep_alive:
                await self.write(send, framing.keep_alive)

    def _on_queue_place(self, place: QueuePlace) -> None:
        """Callback for a new place in the queue. The stream's own task sends it, because it may be writing just now."""
        self._place = place
        if self._pause is not None and not self._pause.expired():
            self._pause.reschedule(0)

    async def _wait_for_row(self, send: Send) -> Job | None:
        """Wait for the row of a job that so far exists only in Temporal; None if its run ended without one."""
        job_id, rounds = self._cursor.job_id, 0
        while True:
            runs = rounds % RUN_POLL_ROUNDS or await self._here.intake.runs(job_id)
            with contextlib.suppress(JobNotFound):
                return await self._here.jobs.queries.outline(job_id, self._caller.tenant)
            if not runs:
                return None
            await asyncio.sleep(ROW_POLL_SECONDS)
            rounds += 1
            if rounds % RUN_POLL_ROUNDS == 0:
                await self.write(send, KEEP_ALIVE)


async def _watch_disconnect(receive: Receive, stream: OpenStream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.end(DISCONNECTED)
