"""Server-sent events: a job's answer as it appears, resumable at every character.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html. Ids, events and rules are those of
the wire: ``<epoch>.<position>`` after the frame, ``.end`` on the terminal one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatjobs.contracts import ChatRequest, Job
from chatjobs.errors import JobNotFound, StorageUnavailable
from framing import Frame, Framing, first_part, last_frame
from gateway.access import Identity
from gateway.jobs import accept, body_of
from gateway.parts import Parts, identity, parts
from gateway.problems import HttpProblem
from gateway.registry import HUNG_UP, REVOKED, OpenStream
from storage.values import Cursor, Slice

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
STUCK_SECONDS = 30.0
"""A reader that takes nothing for so long is cut off; it may come back and go on where it was."""
PIECE_BYTES = 64 * 1024
"""Written at once; then we wait until the reader has taken it."""
CHARACTERS_AT_ONCE = 128 * 1024
"""The longest merged frame. What comes after it is read again from storage, not kept for a slow reader."""
RETRY = b"retry: 1000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would collect 4 KB first
}
ROW_POLL_SECONDS = 0.25

router = APIRouter(prefix="/api")
Here = Annotated[Parts, Depends(parts)]
Caller = Annotated[Identity, Depends(identity)]
EVENTS_DOCUMENTED = {200: {"content": {"text/event-stream": {}}}, 204: {"description": "Nothing follows that id"}}


@router.get("/jobs/{job_id}/events", responses=EVENTS_DOCUMENTED, response_model=None)  # type: ignore[arg-type]
async def events(job_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """A job's events, from ``Last-Event-ID`` on (or ``?lastEventId=``; the header wins)."""
    _expects_events(request)
    given = request.headers.get("last-event-id", request.query_params.get("lastEventId"))
    cursor, ended = read_event_id(job_id, given) if given else (Cursor(job_id), False)
    try:
        job = await here.jobs.get(job_id, caller.tenant)
    except JobNotFound:
        return await _of_unknown(job_id, here, caller, cursor, resumed=bool(given))
    if job.deleted_at is not None:
        raise HttpProblem(410, "content_deleted", "The content of this job was deleted")
    if ended and job.status.terminal and (job.epoch, job.position) == (cursor.epoch, cursor.position):
        return Response(status_code=204)
    return EventStream(here, caller, cursor, resumed=bool(given))


@router.post("/chat/stream", responses=EVENTS_DOCUMENTED, response_model=None, openapi_extra=body_of(ChatRequest))  # type: ignore[arg-type]
async def chat(
    request: Request, here: Here, caller: Caller, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Start a job; the response is its stream. Hanging up does not stop the job."""
    _expects_events(request)
    given = request.headers.get("last-event-id")
    cursor = read_event_id("", given)[0] if given else Cursor("")
    accepted = await accept(request, here, caller, idempotency_key)
    headers = {"X-Job-Id": accepted.job_id, "Location": f"/api/jobs/{accepted.job_id}"}
    if not accepted.created:
        headers["Idempotency-Replayed"] = "true"
    cursor = cursor._replace(job_id=accepted.job_id)
    return EventStream(here, caller, cursor, resumed=bool(given), headers=headers)


def read_event_id(job_id: str, given: str) -> tuple[Cursor, bool]:
    """The place in an event id, and whether it is a terminal frame's. Raises HttpProblem."""
    found = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,15})(\.end)?", given)
    if not found or int(found[1]) < 1:
        raise HttpProblem(400, "bad_event_id", "Last-Event-ID is not an id of this stream; leave it out to start over")
    return Cursor(job_id, int(found[1]), int(found[2])), found[3] is not None


def _expects_events(request: Request) -> None:
    """Raises HttpProblem where the caller would not understand the answer."""
    wanted = request.headers.get("accept", "*/*").lower()
    if not any(kind in wanted for kind in ("text/event-stream", "text/*", "*/*")):
        raise HttpProblem(406, "not_acceptable", "This is a stream: send Accept: text/event-stream")


async def _of_unknown(job_id: str, here: Parts, caller: Identity, cursor: Cursor, *, resumed: bool) -> Response:
    """A job that only Temporal knows yet: its row is about to be made. Raises JobNotFound."""
    if caller.tenant != here.settings.chatjobs_direct_tenant or not await here.intake.runs(job_id):
        raise JobNotFound
    return EventStream(here, caller, cursor, resumed=resumed, has_row=False)


class EventStream(Response):
    """One reader's stream. Written as bare ASGI: Starlette's StreamingResponse costs a task group per reader.

    ``resumed``: the reader has the beginning already.
    """

    def __init__(
        self,
        here: Parts,
        caller: Identity,
        cursor: Cursor,
        *,
        resumed: bool,
        headers: Mapping[str, str] | None = None,
        has_row: bool = True,
    ) -> None:
        super().__init__(None, 200, {**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._here = here
        self._caller = caller
        self._cursor = cursor
        self._resumed = resumed
        self._has_row = has_row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._here.registry.entered(self._caller.key_id) as stream:
            listening = asyncio.create_task(_until_hung_up(receive, stream), name="hang-up")
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._told(send)
                await _sent(send, b"", more=False)
            except asyncio.CancelledError:
                if stream.ending is None:
                    raise
                stream.task.uncancel()
                if stream.ending != HUNG_UP:
                    await _leave(send, stream)
            finally:
                listening.cancel()

    async def _told(self, send: Send) -> None:
        """Everything up to the terminal frame; the database away for long ends the stream early."""
        await _sent(send, RETRY)
        try:
            if self._has_row or await self._row_came(send):
                await self._tell(send)
        except JobNotFound:  # its retention ended
            return
        except StorageUnavailable as error:
            log.warning("stream ended: %s", error, extra={"action": "stream_ended", "job_id": self._cursor.job_id})

    async def _tell(self, send: Send) -> None:
        job = await self._here.jobs.get(self._cursor.job_id, self._caller.tenant)
        framing, cursor = Framing(job, resumed=self._resumed), self._cursor
        while True:
            news = await self._next(cursor, send)
            piece = first_part(news, CHARACTERS_AT_ONCE)
            await _sent(send, _encoded(framing.frames(piece)))
            cursor = piece.cursor
            if piece is news and piece.status.terminal:
                job = await self._here.jobs.get(cursor.job_id, self._caller.tenant)
                if _ended_there(job, piece):
                    return await _sent(send, _encoded([last_frame(job)]))

    async def _next(self, cursor: Cursor, send: Send) -> Slice:
        """What the reader lacks, once there is something; a comment now and then keeps proxies from giving up."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    return await self._here.reader.wait(cursor)
            await _sent(send, KEEP_ALIVE)

    async def _row_came(self, send: Send) -> bool:
        """Wait for the row of a job that only Temporal knows; False if its run ended without one."""
        job_id, rounds = self._cursor.job_id, 0
        while not await self._here.jobs.exists(job_id, self._caller.tenant):
            await asyncio.sleep(ROW_POLL_SECONDS)
            rounds += 1
            if rounds % 20 == 0:
                await _sent(send, KEEP_ALIVE)
                if not await self._here.intake.runs(job_id):
                    return await self._here.jobs.exists(job_id, self._caller.tenant)
        return True


def _ended_there(job: Job, piece: Slice) -> bool:
    """A failed job may have been reopened since; then the stream goes on."""
    return job.status.terminal and (job.epoch, job.position) == (piece.epoch, piece.position)


def _encoded(frames: Iterable[Frame]) -> bytes:
    return b"".join(
        format_sse_event(event=frame.event.type, id=frame.id, data_str=frame.event.model_dump_json())
        for frame in frames
    )


async def _sent(send: Send, data: bytes, *, more: bool = True) -> None:
    """Write within the time that a reader has to take it. Raises TimeoutError, upon which the connection is cut."""
    async with asyncio.timeout(STUCK_SECONDS):
        for start in range(0, max(len(data), 1), PIECE_BYTES):
            await send({"type": "http.response.body", "body": data[start : start + PIECE_BYTES], "more_body": more})


async def _until_hung_up(receive: Receive, stream: OpenStream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.end(HUNG_UP)


async def _leave(send: Send, stream: OpenStream) -> None:
    """Take leave: the reader comes back to another gateway, or with another key."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await _sent(send, b"" if stream.ending == REVOKED else RETRY, more=False)
