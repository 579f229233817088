"""``POST /v1/chat/completions``: each completion is a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from chatjobs.contracts import ChatRequest, Job, JobError
from chatjobs.errors import ContentDeleted, JobFinished, JobNotFound
from domain.errors import StorageUnavailable
from domain.values import Cursor, JobHandle
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import STATUSES
from gateway.routes.jobs import Caller, Here, accept_body, body_of, checked_key
from gateway.routes.streams import LEAVE_SECONDS, StreamFraming
from gateway.serving.bodies import sized_json_body
from gateway.v1.completions import AnswerRestarted, ChunkFraming, NoAnswer, WholeFraming, completion_request
from gateway.v1.errors import RETRY_SOON, error_document, failure, stream_error
from gateway.v1.late_head import LateHeadResponse

ON_DISCONNECT = "X-On-Disconnect"
RESTARTED = JobError(
    code="answer_restarted",
    message="The answer was interrupted and started over. Repeat the request with the same Idempotency-Key to read the"
    " new one, or read the job that X-Job-Id names",
    retryable=True,
)
BROKEN_OFF = JobError(
    code="response_broken_off",
    message="The connection ends early; the job goes on. Repeat the request with the same Idempotency-Key to read its"
    " answer from the beginning",
    retryable=True,
)

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", response_model=None, openapi_extra=body_of(ChatRequest))
async def complete(
    request: Request, here: Here, caller: Caller, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Create a chat completion, as Mistral does. It is a job, which the header X-Job-Id names; the same request with
    the same Idempotency-Key gets the same answer from its beginning. Disconnecting does not stop it, unless the request
    has ``X-On-Disconnect: cancel``."""
    key = checked_key(idempotency_key)
    given, size = await sized_json_body(request, here.settings.chatjobs_max_body_bytes)
    wanted = completion_request(given, request.headers)
    job = await accept_body(request, here, caller, key, wanted.body, size)
    headers = {"X-Job-Id": job.job_id} | ({} if job.created else {"Idempotency-Replayed": "true"})
    cancels = request.headers.get(ON_DISCONNECT, "").strip().lower() == "cancel"
    framing = ChunkFraming(job) if wanted.stream else WholeFraming()
    return CompletionResponse(here, caller, job, framing, cancels=cancels, headers=headers)


class CompletionResponse(LateHeadResponse):
    """The answer of a job, in chunks or whole.

    The head is sent with the first text, so that a job that fails before it is answered with the status of its error.
    A response that is not complete is not ended regularly but broken off: some clients take every regular end of a
    stream for the end of the answer.
    """

    def __init__(
        self,
        here: Dependencies,
        caller: Identity,
        job: JobHandle,
        framing: ChunkFraming | WholeFraming,
        *,
        cancels: bool,
        headers: dict[str, str],
    ) -> None:
        """``cancels``: the job is cancelled if the caller disconnects."""
        super().__init__(here, caller, Cursor(job.job_id), resumed=False, job=job, headers=headers)
        self.headers["Content-Type"] = framing.media_type
        self._framed, self._cancels = framing, cancels
        self._retry_field = b""  # it would be for an EventSource, which cannot post

    def framing_of(self, job: Job | JobHandle) -> StreamFraming:
        return self._framed

    async def send_events(self, send: Send) -> None:
        try:
            await self.send_frames(send, self._framed)
            self._complete = True
        except NoAnswer as end:
            await self._fail(send, *failure(end.job))
        except AnswerRestarted:
            await self._fail(send, 503, RESTARTED)
        except (JobNotFound, ContentDeleted, StorageUnavailable) as error:
            await self._fail(send, STATUSES[error.code], JobError(code=error.code, message=error.message))

    async def ended(self) -> Job | None:
        job = await super().ended()
        if job is None or (job.error is None and not self._framed.needs_text):
            return job
        return await self._here.jobs.queries.get(job.job_id, self._caller.tenant)

    async def _fail(
        self, send: Send, status: int, error: JobError, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send an error: as the response, or as the last frame of one that has begun, which is then broken off."""
        if self._head_sent:
            await self.write(send, stream_error(status, error))
            return
        self.status_code, self._complete = status, True
        self.headers.update({"Content-Type": "application/json", **headers})
        await self.write(send, json.dumps(error_document(status, error.code, error.message)).encode())

    async def end_body(self, send: Send) -> None:
        """End the response early: the gateway stops, or the key was revoked."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._fail(send, 503, BROKEN_OFF, RETRY_SOON)
                await self.write(send, b"", more=False)

    async def disconnected(self) -> None:
        if not self._cancels:
            return
        job_id = self._cursor.job_id
        with suppress(JobFinished, JobNotFound):
            await self._here.jobs.seals.request_cancel(job_id, self._caller.tenant)
            self._here.after_response.soon(lambda: self._here.intake.send_cancel(job_id))
