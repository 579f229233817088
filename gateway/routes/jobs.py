"""Jobs: accept, read, list, cancel, delete, replay, resume."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import (
    JOB_ID,
    ChatRequest,
    Job,
    JobAccepted,
    JobPage,
    JobStatus,
    MetadataKey,
    MetadataValue,
    ModelName,
    ScheduleId,
    WireModel,
)
from chatjobs.errors import ContentDeleted, Problem
from dispatch.schedules import delete_runs
from domain.conversations import ThreadPlace
from domain.names import status_path
from domain.values import Cursor, JobHandle, ResponseForm, RunRef
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies, identity, parts
from gateway.problems import HttpProblem
from gateway.serving.bodies import optional_json_body, sized_json_body
from storage.engine.schema import micros, now

LONGEST_WAIT_SECONDS = 60
MOST_LISTED = 1_000
MOST_FILTERS = 16
Id = Annotated[str, Field(pattern=f"^{JOB_ID}$")]
FILTERS = TypeAdapter(dict[MetadataKey, MetadataValue])

router = APIRouter(prefix="/api")

Here = Annotated[Dependencies, Depends(parts)]
Caller = Annotated[Identity, Depends(identity)]


def body_of(model: type[Any]) -> dict[str, Any]:
    """The request body of a route in the OpenAPI document, which FastAPI does not see: routes parse it themselves."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobAccepted,
    responses={200: {"model": Job, "description": "The job has ended within the seconds of `Prefer: wait`"}},
    openapi_extra=body_of(ChatRequest),
)
async def create(
    request: Request,
    here: Here,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header()] = None,
    prefer: Annotated[list[str] | None, Header()] = None,
) -> Response:
    """Start a job. After the response the job is durable, even while Temporal is unavailable."""
    seconds = wait_seconds(prefer)
    accepted = await accept(request, here, caller, idempotency_key)
    if seconds and await _ended(here, accepted.job_id, seconds):
        job = await here.details.one(await here.jobs.queries.get(accepted.job_id, caller.tenant))
        return json_answer(job, 200, {**_headers(accepted), "Preference-Applied": f"wait={seconds}"})
    if seconds:
        job = await here.jobs.queries.outline(accepted.job_id, caller.tenant)
        return json_answer(_links(here, replace(accepted, status=job.status)), 202, _headers(accepted))
    return json_answer(_links(here, accepted), 202, _headers(accepted))


async def accept(request: Request, here: Dependencies, caller: Identity, idempotency_key: str | None) -> JobHandle:
    """Commit the job in a request's body, and have it started."""
    key = checked_key(idempotency_key)
    body, size = await sized_json_body(request, here.settings.chatjobs_max_body_bytes)
    return await accept_body(request, here, caller, key, body, size)


async def accept_body(
    request: Request,
    here: Dependencies,
    caller: Identity,
    key: str | None,
    body: Any,
    size: int,
    *,
    response: ResponseForm | None = None,
    place: ThreadPlace | None = None,
) -> JobHandle:
    """Commit the job in decoded JSON of ``size`` bytes, and have it started. For the rest see ``new_job``."""
    accepted = await here.intake.accept(
        body, tenant=caller.tenant, idempotency_key=key, size=size, response=response, place=place
    )
    _have_started(request, here, accepted)
    return accepted


def _have_started(request: Request, here: Dependencies, accepted: JobHandle) -> None:
    if accepted.created:
        request.app.state.metrics.accepted()
        if accepted.is_due(now()):  # else a sweeper starts it; if this clock is wrong, the attempt waits
            here.after_response.soon(lambda: here.intake.start(accepted))


def checked_key(key: str | None) -> str | None:
    """Raises HttpProblem."""
    if key is not None and not re.fullmatch(r"[ -~]{1,255}", key):
        raise HttpProblem(400, "bad_idempotency_key", "Idempotency-Key must have 1 to 255 printable ASCII characters")
    return key


def wait_seconds(prefer: Sequence[str] | None) -> int:
    """The N of ``Prefer: wait=N`` (RFC 7240); other preferences are ignored, as the RFC says."""
    found = re.search(r"(?i)(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", ",".join(prefer or ()))
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0


async def _ended(here: Dependencies, job_id: str, seconds: int) -> bool:
    """Wait for the job's end; whether it ended within ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in here.reader.follow(Cursor(job_id)):
                pass
    except TimeoutError:
        return False
    except ContentDeleted:
        return True
    return True


def _links(here: Dependencies, accepted: JobHandle) -> JobAccepted:
    url = status_path(accepted.job_id)
    return JobAccepted(
        job_id=accepted.job_id,
        request_id=accepted.request_id,
        status=accepted.status,
        status_url=url,
        events_url=f"{url}/events",
        cancel_url=f"{url}/cancel",
        temporal_url=here.links.of(RunRef(accepted.job_id)),
        replay_of=accepted.replay_of,
    )


def _headers(accepted: JobHandle) -> dict[str, str]:
    location = {"Location": status_path(accepted.job_id)}
    return location if accepted.created else {**location, "Idempotency-Replayed": "true"}


def json_answer(value: WireModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(value.model_dump_json(), status, headers, "application/json")


@router.get("/jobs", response_model=JobPage, responses={501: {"description": "The database has no full-text index"}})
async def list_jobs(
    request: Request,
    here: Here,
    caller: Caller,
    status: JobStatus | None = None,
    model: ModelName | None = None,
    q: Annotated[str | None, Query(min_length=1)] = None,
    error_code: Annotated[str | None, Query(alias="errorCode", min_length=1, max_length=64)] = None,
    replay_of: Annotated[Id | None, Query(alias="replayOf")] = None,
    thread: Id | None = None,
    batch_id: Annotated[Id | None, Query(alias="batchId")] = None,
    schedule_id: Annotated[ScheduleId | None, Query(alias="scheduleId")] = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
    cursor: str | None = None,
) -> Response:
    """List jobs, newest first. ``metadata.KEY=VALUE`` filters by metadata.

    ``q`` finds words of prompts and answers, without case and accents, all of which have to be there; an unfinished
    last word finds those that begin with it. A job is found some seconds after it was accepted, and by its answer
    within seconds of its end.
    """
    found = await here.jobs.queries.list(
        tenant=caller.tenant,
        status=status,
        model=model,
        schedule_id=schedule_id,
        metadata=_filters(request),
        search=q,
        error_code=error_code,
        replay_of=replay_of,
        thread=thread,
        batch_id=batch_id,
        since=since,
        until=until,
        before=read_cursor(cursor) if cursor else None,
        limit=limit + 1,
    )
    page, more = tuple(await here.details.many(found[:limit])), len(found) > limit
    return json_answer(JobPage(jobs=page, next_cursor=cursor_of(page[-1]) if more else None))


def _filters(request: Request) -> dict[str, str]:
    """The ``metadata.KEY=VALUE`` parameters. Raises HttpProblem."""
    named = {k.removeprefix("metadata."): v for k, v in request.query_params.items() if k.startswith("metadata.")}
    return checked_filters(named)


def checked_filters(named: dict[str, str]) -> dict[str, str]:
    """Entries of metadata to search for. Raises HttpProblem."""
    try:
        filters = FILTERS.validate_python(named)
    except ValidationError:
        filters = None
    if filters is None or len(filters) > MOST_FILTERS:
        why = f"up to {MOST_FILTERS} keys of 1 to 64 characters, values of up to 512"
        raise HttpProblem(422, "validation_failed", "The filter is not valid", errors=[Problem("/metadata", why)])
    return filters


def cursor_of(job: Job) -> str:
    """The cursor of the page that begins after this job."""
    return cursor_text(micros(job.created_at), job.job_id)


def cursor_text(created_at: int, one_id: str) -> str:
    """The cursor of the page after the job or batch with this id."""
    return base64.urlsafe_b64encode(f"{created_at} {one_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[int, str]:
    """The creation time in microseconds and the id of a page's last job or batch. Raises HttpProblem."""
    with contextlib.suppress(ValueError):
        given = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        if found := re.fullmatch(rf"([0-9]{{1,18}}) ({JOB_ID})", given):
            return int(found[1]), found[2]
    raise HttpProblem(400, "bad_cursor", "The cursor is not one of this service; leave it out")


@router.get("/jobs/{job_id}", response_model=Job)
async def show(job_id: str, here: Here, caller: Caller) -> Response:
    """One job. ``content`` has the partial text while it runs, and after it failed."""
    return json_answer(await here.details.one(await here.jobs.queries.get(job_id, caller.tenant)))


@router.get("/jobs/{job_id}/request", response_model=ChatRequest, responses={410: {"description": "It was deleted"}})
async def asked(job_id: str, here: Here, caller: Caller) -> Response:
    """The stored request of a job, with only the fields that the caller gave."""
    found = await here.jobs.queries.request(job_id, caller.tenant)
    return Response(found.model_dump_json(exclude_unset=True), media_type="application/json")


@router.post("/jobs/{job_id}/cancel", status_code=202)
async def cancel(job_id: str, here: Here, caller: Caller) -> Response:
    """Cancel a job, durably. Repeating the call has no further effect."""
    status = await here.jobs.seals.request_cancel(job_id, caller.tenant)
    # Also if it has ended with this: a delayed job that was started directly in Temporal has a run.
    here.after_response.soon(lambda: here.intake.send_cancel(job_id))
    return json_answer(CancelAccepted(job_id=job_id, status=status), 202)


class CancelAccepted(WireModel):
    job_id: str
    status: JobStatus


@router.delete("/jobs/{job_id}", status_code=204, response_model=None)
async def delete(job_id: str, here: Here, caller: Caller) -> Response:
    """Delete a finished job's request, answer and deliveries; usage and final status stay. The call may be repeated.

    Temporal has no copy of them, except for a job that was started directly in Temporal: each of these calls requests
    the deletion of that job's history.
    """
    if run := await here.jobs.seals.delete(job_id, caller.tenant):
        here.after_response.soon(lambda: delete_runs(here.client, run))
    return Response(status_code=204)


@router.post("/jobs/{job_id}/replay", status_code=202, response_model=JobAccepted)
async def replay(
    job_id: str,
    request: Request,
    here: Here,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Start a new job with the request of this one; the body may have fields to change."""
    key = checked_key(idempotency_key)
    body = await optional_json_body(request, here.settings.chatjobs_max_body_bytes)
    accepted = await here.intake.replay(job_id, tenant=caller.tenant, overrides=body, idempotency_key=key)
    _have_started(request, here, accepted)
    return json_answer(_links(here, accepted), 202, _headers(accepted))


@router.post("/jobs/{job_id}/resume", status_code=202, response_model=JobAccepted)
async def resume(job_id: str, here: Here, caller: Caller) -> Response:
    """Let a job that failed or was cancelled go on from its text: the same job, with the same readers. Its next outcome
    has a webhook of its own. A job without text can only be replayed."""
    resumed = await here.jobs.seals.resume(job_id, caller.tenant)
    here.after_response.soon(lambda: here.intake.start(resumed))
    return json_answer(_links(here, resumed), 202, {"Location": status_path(job_id)})
