"""Mistral's batch API, ``/v1/batch/jobs``: each job is a batch.

Sources: Mistral's API reference ("Batch"), its guide to batch processing, and the types of its Python client
(``mistralai.client.models``). A job is QUEUED at once; its files are read afterwards, and a line that is not valid
makes it FAILED, with ``errors`` that name the line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from chatjobs.contracts import (
    COMPLETIONS_URL,
    BatchWebhook,
    CustomId,
    JsonObject,
    Many,
    Metadata,
    ModelName,
    fingerprint,
    parse,
)
from chatjobs.contracts.base import StrictModel
from chatjobs.errors import InvalidRequest, Problem
from domain.batch_jobs import ENDED, BatchJobFilter, BatchJobOrder, BatchJobRecord, BatchJobState, new_batch_job_id
from domain.errors import BatchJobNotFound, FileNotFound
from domain.files import BATCH_REQUEST, MADE_HERE, NewFile
from gateway.auth.access import Identity
from gateway.batch_output import output_pages
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.batches import MOST_VALUES
from gateway.routes.jobs import Caller, Here, body_of, checked_filters, checked_key
from gateway.serving.bodies import check_type, decoded, read
from gateway.v1.file_upload import ContentWriter
from gateway.v1.files import UUID, Page, PageSize, answer
from storage.engine.schema import now

MOST_INLINE: Final = 10_000
"""Requests in a body (Mistral's guide: larger batches are uploaded as files)."""
WRITTEN_AT_ONCE: Final = 500
"""Requests that are serialised in one step, in a thread: 10,000 of them take a while."""
MOST_FILES: Final = 100
MOST_HOURS: Final = 168
"""A week, as at Mistral."""
LANE: Final = "X-Chatjobs-Lane"
CALLBACK: Final = "X-Chatjobs-Callback"
LISTED: Final = frozenset(
    {"page", "page_size", "model", "agent_id", "created_after", "created_by_me", "status", "order_by"}
)
"""Parameters of the list that are not entries of metadata."""

router = APIRouter(prefix="/v1")


class InlineRequest(StrictModel):
    """A request in the body (``BatchRequest``)."""

    custom_id: CustomId | None = None
    body: JsonObject


class BatchJobRequest(StrictModel):
    """The body of ``POST /v1/batch/jobs`` (``CreateBatchJobRequest``)."""

    endpoint: str
    input_files: Many[str] | None = None
    requests: Many[InlineRequest] | None = None
    model: ModelName | None = None
    agent_id: str | None = None
    metadata: Metadata | None = None
    timeout_hours: Annotated[int, Field(ge=1, le=MOST_HOURS)] = 24

    def problems(self) -> list[Problem]:
        """What is wrong beside the types."""
        found = []
        if self.endpoint != COMPLETIONS_URL:
            found.append(Problem("/endpoint", f"must be {COMPLETIONS_URL}: the service has no other"))
        if self.agent_id is not None:
            found.append(Problem("/agent_id", "is not supported; give a model"))
        if (self.input_files is None) == (self.requests is None):
            found.append(Problem("/input_files", "must be there, or else requests, and not both"))
        for name, values, most in (
            ("input_files", self.input_files, MOST_FILES),
            ("requests", self.requests, MOST_INLINE),
        ):
            if values is not None and not 1 <= len(values) <= most:
                found.append(Problem(f"/{name}", f"must have from 1 to {most} elements"))
        return found


class BatchJobError(StrictModel):
    """Something that is wrong with a job (``BatchError``)."""

    message: str
    count: int = 1


class BatchJobObject(StrictModel):
    """A batch job, as Mistral shows it (``BatchJob``). Times are unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    input_files: tuple[str, ...]
    metadata: dict[str, str] | None
    endpoint: str = COMPLETIONS_URL
    model: str | None
    agent_id: str | None = None
    output_file: str | None
    error_file: str | None
    errors: tuple[BatchJobError, ...]
    outputs: tuple[JsonObject, ...] | None = None
    status: BatchJobState
    created_at: int
    started_at: int | None
    completed_at: int | None
    total_requests: int
    completed_requests: int
    succeeded_requests: int
    failed_requests: int


class BatchJobList(StrictModel):
    """A page of batch jobs (``ListBatchJobsResponse``)."""

    data: tuple[BatchJobObject, ...]
    object: Literal["list"] = "list"
    total: int


class BatchJobDeleted(StrictModel):
    """The answer to a deletion (``DeleteBatchJobResponse``)."""

    id: str
    object: Literal["batch"] = "batch"
    deleted: Literal[True] = True


# --------------------------------------------------------------------------------------------------- create


@router.post("/batch/jobs", response_model=BatchJobObject, openapi_extra=body_of(BatchJobRequest))
async def create(
    request: Request, here: Here, caller: Caller, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Create a batch job from uploaded files, or from up to 10,000 requests in the body. Its calls of the model are
    live ones; with the header ``X-Chatjobs-Lane: batch`` they go through Mistral's batch API, at half the price. The
    URL in ``X-Chatjobs-Callback`` gets the end as a webhook."""
    key = checked_key(idempotency_key)
    check_type(request)
    body = await read(request, here.settings.chatjobs_max_body_bytes)
    value = await asyncio.to_thread(decoded, body, MOST_VALUES)
    new = await asyncio.to_thread(parse, BatchJobRequest, value)
    if problems := new.problems():
        raise InvalidRequest(problems)
    order = _order(request, here, caller, new, await asyncio.to_thread(_body_hash, request.headers, value), key)
    job = await here.files.jobs.existing(order) or await _created(here, caller, new, order)
    here.files.work.look()
    return _answer(job, {} if job.created else {"Idempotency-Replayed": "true"})


def _body_hash(headers: Mapping[str, str], value: object) -> str:
    """The fingerprint of a request: of its body, and of the headers that change what it asks for, if it has them."""
    given = {name: headers[name] for name in (LANE, CALLBACK) if name in headers}
    return fingerprint({"body": value, "headers": given} if given else value)


def _order(
    request: Request, here: Dependencies, caller: Identity, new: BatchJobRequest, body_hash: str, key: str | None
) -> BatchJobOrder:
    """Raises InvalidRequest, WebhookUrlRefused."""
    lane = request.headers.get(LANE, "live").strip().lower()
    if lane not in ("live", "batch"):
        raise InvalidRequest([Problem("/lane", f"must be live or batch in the header {LANE}")])
    callback = request.headers.get(CALLBACK)
    webhook = None if callback is None else BatchWebhook(url=here.batches.rules().check(callback))
    return BatchJobOrder(
        job_id=new_batch_job_id(),
        tenant=caller.tenant,
        input_files=new.input_files or (),
        inline=new.requests is not None,
        model=new.model,
        metadata=new.metadata,
        lane=lane,
        webhook=webhook,
        body_hash=body_hash,
        expires_at=now() + timedelta(hours=new.timeout_hours),
        idempotency_key=key,
    )


async def _created(here: Dependencies, caller: Identity, new: BatchJobRequest, order: BatchJobOrder) -> BatchJobRecord:
    """Raises FileNotFound, InvalidRequest, IdempotencyMismatch, StorageError."""
    if new.requests is None:
        await _check_files(here, caller, order.input_files)
        return await here.files.jobs.create(order)
    file_id = await _written(here, order, new.requests)
    job = None
    try:
        job = await here.files.jobs.create(replace(order, input_files=(file_id,)))
    finally:
        if job is None or not job.created:
            await asyncio.shield(here.files.uploads.delete(file_id, caller.tenant))
    return job


async def _check_files(here: Dependencies, caller: Identity, file_ids: Sequence[str]) -> None:
    """Raises FileNotFound for a file that the caller does not have, InvalidRequest for one that is no input."""
    for number, file_id in enumerate(file_ids):
        if not UUID.fullmatch(file_id):
            raise FileNotFound
        if (await here.files.queries.get(file_id, caller.tenant)).sample_type != BATCH_REQUEST:
            why = "is a file of results; give the file of requests"
            raise InvalidRequest([Problem(f"/input_files/{number}", why)])


async def _written(here: Dependencies, order: BatchJobOrder, requests: Sequence[InlineRequest]) -> str:
    """The id of the file that is made of the requests in a body, as at Mistral. Raises StorageError."""
    new = NewFile(order.tenant, f"{order.job_id}_requests.jsonl", source=MADE_HERE)
    writer = ContentWriter(here.files.uploads, new, here.settings.chatjobs_max_file_bytes)
    try:
        for first in range(0, len(requests), WRITTEN_AT_ONCE):
            await writer.write(await asyncio.to_thread(_lines, requests[first : first + WRITTEN_AT_ONCE]))
        return (await writer.finish()).file_id
    except BaseException:
        await asyncio.shield(writer.discard())
        raise


def _lines(requests: Sequence[InlineRequest]) -> bytes:
    return b"".join(one.model_dump_json(exclude_none=True).encode() + b"\n" for one in requests)


# -------------------------------------------------------------------------------------------- read and change


@router.get("/batch/jobs", response_model=BatchJobList)
async def list_jobs(
    request: Request,
    here: Here,
    caller: Caller,
    page: Page = 0,
    page_size: PageSize = 100,
    model: str | None = None,
    agent_id: str | None = None,
    created_after: datetime | None = None,
    created_by_me: bool = False,
    status: Annotated[list[BatchJobState] | None, Query()] = None,
    order_by: Literal["created", "-created"] = "-created",
) -> Response:
    """List batch jobs; pages count from 0. Any other parameter is an entry of metadata that the job must have."""
    if created_after is not None and created_after.tzinfo is None:
        created_after = created_after.replace(tzinfo=UTC)
    wanted = BatchJobFilter(
        model=model,
        created_after=created_after,
        states=status,
        metadata=_metadata(request),
        oldest_first=order_by == "created",
    )
    if agent_id is not None:
        return answer(BatchJobList(data=(), total=0))
    found = await here.files.jobs.list(caller.tenant, wanted, page=page, page_size=page_size)
    if unsettled := [job.job_id for job in found.jobs if job.state in ENDED and not job.settled]:
        for job_id in unsettled:
            await here.files.jobs.settle(job_id)
        found = await here.files.jobs.list(caller.tenant, wanted, page=page, page_size=page_size)
    return answer(BatchJobList(data=tuple(map(_object, found.jobs)), total=found.total))


@router.get("/batch/jobs/{batch_job_id}", response_model=BatchJobObject)
async def show(batch_job_id: str, here: Here, caller: Caller, inline: bool | None = None) -> Response:
    """One batch job. With ``inline``, and unless that is false if its requests were in the body, ``outputs`` has its
    results once it has ended."""
    job = await _job(here, caller, batch_job_id)
    if job.output_file is None or job.batch_id is None or not (job.inline if inline is None else inline):
        return _answer(job)
    return StreamingResponse(
        _with_outputs(here, job, job.batch_id), headers=_headers(job), media_type="application/json"
    )


@router.post("/batch/jobs/{batch_job_id}/cancel", response_model=BatchJobObject)
async def cancel(batch_job_id: str, here: Here, caller: Caller) -> Response:
    """Cancel a batch job, durably: what is not done is not done any more, and the results so far are kept. One that has
    ended stays as it is."""
    await _job(here, caller, batch_job_id)
    await here.files.work.cancel(batch_job_id, caller.tenant)
    job = await _job(here, caller, batch_job_id)
    if (batch_id := job.batch_id) is not None and job.state not in ENDED:
        here.after_response.soon(lambda: here.batches.dispatch.cancel(batch_id))
    return _answer(job)


@router.delete("/batch/jobs/{batch_job_id}", response_model=BatchJobDeleted)
async def delete(batch_job_id: str, here: Here, caller: Caller) -> Response:
    """Delete a batch job that has ended, with its requests and its results. Its input files stay."""
    job = await _job(here, caller, batch_job_id)
    if job.state not in ENDED:
        raise HttpProblem(409, "batch_job_running", "The batch job is still running; cancel it first")
    await here.files.jobs.delete(job.job_id, caller.tenant)
    here.files.work.look()
    return answer(BatchJobDeleted(id=job.job_id))


async def _job(here: Dependencies, caller: Identity, job_id: str) -> BatchJobRecord:
    """The job, its end recorded. Raises BatchJobNotFound, also for an id that is none."""
    if not UUID.fullmatch(job_id):
        raise BatchJobNotFound
    job = await here.files.jobs.get(job_id, caller.tenant)
    if job.state in ENDED and not job.settled:
        await here.files.jobs.settle(job_id)
        job = await here.files.jobs.get(job_id, caller.tenant)
    return job


def _metadata(request: Request) -> dict[str, str]:
    """The parameters that are entries of metadata, as Mistral's client sends them. Raises HttpProblem."""
    return checked_filters({name: value for name, value in request.query_params.items() if name not in LISTED})


async def _with_outputs(here: Dependencies, job: BatchJobRecord, batch_id: str) -> AsyncIterator[bytes]:
    """The JSON of a job with its results, of which a page at a time is in memory."""
    document = json.loads(_object(job).model_dump_json())
    del document["outputs"]
    yield json.dumps(document).encode().removesuffix(b"}") + b', "outputs": ['
    comma = b""
    async for lines in output_pages(here.batches.queries, batch_id, errors=False):
        yield comma + lines.strip().replace(b"\n", b",")
        comma = b","
    yield b"]}"


def _answer(job: BatchJobRecord, headers: dict[str, str] | None = None) -> Response:
    return answer(_object(job), _headers(job) | (headers or {}))


def _headers(job: BatchJobRecord) -> dict[str, str]:
    """The batch that the job is, under ``/api/batches``."""
    return {} if job.batch_id is None else {"X-Batch-Id": job.batch_id}


def _object(job: BatchJobRecord) -> BatchJobObject:
    return BatchJobObject(
        id=job.job_id,
        input_files=tuple(job.input_files),
        metadata=None if job.metadata is None else dict(job.metadata),
        model=job.model,
        output_file=job.output_file,
        error_file=job.error_file,
        errors=tuple(BatchJobError(message=one) for one in job.errors),
        status=job.state,
        created_at=int(job.created_at.timestamp()),
        started_at=_seconds(job.started_at),
        completed_at=_seconds(job.completed_at),
        total_requests=job.total,
        completed_requests=job.succeeded + job.failed,
        succeeded_requests=job.succeeded,
        failed_requests=job.failed,
    )


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
