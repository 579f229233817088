"""The HTTP responses that follow a job until its end: as OpenAI's events, or as one object."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from starlette.types import Send

from chatjobs.contracts import Job, QueuePlace
from chatjobs.errors import ContentDeleted, JobNotFound, JobRunning
from domain.errors import StorageError, StorageUnavailable
from domain.values import Cursor, JobHandle, Slice, TextRun
from domain.webhook_body import RESPONSE_ID_PREFIX
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.routes.streams import LEAVE_SECONDS, JobEventsResponse, StreamFraming
from gateway.v1.errors import RESPONSES_PATH, error_response
from gateway.v1.late_head import LateHeadResponse
from gateway.v1.responses_events import Before, ResponseFraming, ResponseRestarted
from gateway.v1.responses_object import ResponseParts, response_object
from gateway.v1.responses_request import ResponseSettings

log = logging.getLogger(__name__)

RESTARTED: Final = (
    "answer_restarted",
    "The answer was interrupted and started over, so that the text so far is void. Stream the response again without"
    " starting_after",
)
INTERRUPTED: Final = "stream_interrupted"


class ResponseStream(JobEventsResponse):
    """The events of a response for one reader. ``kept`` False: the content is deleted once it is delivered.

    A stream that ends before the response does ends with an ``error`` event, since clients take any other end for the
    end of the answer.
    """

    def __init__(
        self,
        here: Dependencies,
        caller: Identity,
        cursor: Cursor,
        framing: ResponseFraming,
        *,
        job: Job,
        kept: bool,
        headers: Mapping[str, str],
    ) -> None:
        started = cursor._replace(awaits_start=framing.last < Before.IN_PROGRESS)
        super().__init__(here, caller, started, resumed=False, job=job, headers=headers)
        self._framed, self._kept = framing, kept
        self._between_events, self._whole = True, False
        self._retry_field = b""  # it would be for an EventSource, which knows nothing of starting_after

    def framing_of(self, job: Job | JobHandle) -> StreamFraming:
        return self._framed

    async def write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        self._between_events = False
        await super().write(send, data, more=more)
        self._between_events = True

    async def send_events(self, send: Send) -> None:
        try:
            if opening := self._framed.opening():
                await self.write(send, opening)
            await self.send_frames(send, self._framed)
        except ResponseRestarted:
            await self.write(send, self._framed.broken_off(*RESTARTED))
        except (JobNotFound, ContentDeleted):
            await self.write(send, self._framed.broken_off("response_not_found", "The response was deleted"))
        except StorageUnavailable as error:
            log.warning("stream ended: %s", error, extra={"action": "stream_ended", "job_id": self._cursor.job_id})
            await self._interrupt(send)
        else:
            self._whole = True

    async def delivered(self) -> None:
        if self._whole and not self._kept:
            await delete_unkept(self._here, self._cursor.job_id)

    async def ended(self) -> Job | None:
        job = await super().ended()
        if job is not None:
            self._framed.whole = await whole_text(self._here, job)
        return job

    async def end_body(self, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                if self._between_events:
                    await self._interrupt(send)
                await self.write(send, b"", more=False)

    async def _interrupt(self, send: Send) -> None:
        last = f"starting_after={self._framed.last}" if self._framed.last >= 0 else "no starting_after"
        message = f"The stream ends early; the response goes on. Stream it again with {last}"
        await self.write(send, self._framed.broken_off(INTERRUPTED, message))


class ObjectFraming:
    """Nothing until the response has ended, then the object."""

    keep_alive = b"\n"
    """White space may precede JSON (RFC 8259, section 2): it keeps proxies and clients from giving up."""

    def __init__(self, settings: ResponseSettings) -> None:
        self._settings = settings
        self.whole: Sequence[TextRun] = ()

    def encoded(self, piece: Slice) -> bytes:
        return b""

    def queued(self, place: QueuePlace) -> bytes:
        return self.keep_alive

    def ending(self, job: Job) -> bytes:
        parts = ResponseParts(job, self._settings, self.whole)
        return json.dumps(response_object(parts), ensure_ascii=False).encode()


class HeldResponse(LateHeadResponse):
    """The object of a response, once it has ended; the job goes on if the caller hangs up.

    The head is sent with the first byte. Where there will be no object, the connection is broken off: a regular end
    would be an object without content.
    """

    def __init__(
        self,
        here: Dependencies,
        caller: Identity,
        job: Job,
        settings: ResponseSettings,
        *,
        kept: bool,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(here, caller, Cursor(job.job_id), resumed=False, job=job, headers=headers)
        self.headers["Content-Type"] = "application/json"
        self._framed, self._kept = ObjectFraming(settings), kept
        self._whole = False
        self._retry_field = b""

    def framing_of(self, job: Job | JobHandle) -> StreamFraming:
        return self._framed

    async def send_events(self, send: Send) -> None:
        try:
            with self._here.queue.watched(self._cursor.job_id, self._on_queue_place):
                await self.send_frames(send, self._framed)
        except (JobNotFound, ContentDeleted):
            await self._fail(send, 404, "response_not_found", "The response was deleted")
        except StorageUnavailable as error:
            await self._fail(send, 503, error.code, error.message)
        else:
            self._complete = self._whole = True

    async def delivered(self) -> None:
        if self._whole and not self._kept:
            await delete_unkept(self._here, self._cursor.job_id)

    async def ended(self) -> Job | None:
        job = await super().ended()
        if job is not None:
            self._framed.whole = await whole_text(self._here, job)
        return job

    async def end_body(self, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                name = f"{RESPONSE_ID_PREFIX}{self._cursor.job_id}"
                message = f"The connection ends early; the response goes on. Read it as {name}"
                await self._fail(send, 503, INTERRUPTED, message)
                await self.write(send, b"", more=False)

    async def _fail(self, send: Send, status: int, code: str, message: str) -> None:
        """Answer with an error, unless the head has been sent. Clients must not repeat the request by themselves: the
        job goes on, and another one would be paid for, too."""
        if self._head_sent:
            return
        failed = error_response(RESPONSES_PATH, status, code, message)
        self.status_code, self._complete = status, True
        self.headers["X-Should-Retry"] = "false"
        await self.write(send, bytes(failed.body))


async def whole_text(here: Dependencies, job: Job) -> Sequence[TextRun]:
    """The text of a job, one run for each change of channel. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
    return (await here.reader.read(Cursor(job.job_id, job.epoch, 0))).runs


async def delete_unkept(here: Dependencies, job_id: str) -> None:
    """Delete the content of a response that was delivered and is not to be kept. If the database cannot do it now, a
    sweeper does it later, as for a response that nobody reads."""
    try:
        await here.jobs.seals.delete(job_id)
    except (JobNotFound, JobRunning):  # its retention ended, or it, a failed one, goes on
        return
    except StorageError as error:
        log.warning("content is deleted later: %s", error, extra={"action": "deleted_later", "job_id": job_id})
