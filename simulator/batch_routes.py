"""The routes of files and batch jobs, as Mistral's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, request_response

from simulator import multipart, refusals
from simulator.access import authorized
from simulator.batch_scripts import BatchRule, CallName, CallRule
from simulator.batches import BatchJob, BatchJobs, JobStatus, NewBatchJob
from simulator.call_faults import CallFaults, Faulty
from simulator.files import MAX_FILE_BYTES, FileStore, Spool, StoredFile
from simulator.refusals import Refused
from simulator.state import Simulator

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


class _Shown(Protocol):
    def as_json(self) -> dict[str, Any]: ...


class _Paging(BaseModel):
    model_config = ConfigDict(extra="ignore")
    page: int = Field(0, ge=0)
    page_size: int = Field(100, ge=1, le=1000)

    def of(self, found: Sequence[_Shown]) -> Response:
        start = self.page * self.page_size
        shown = [one.as_json() for one in found[start : start + self.page_size]]
        return JSONResponse({"data": shown, "object": "list", "total": len(found)})


class _FileFilter(_Paging):
    sample_type: list[str] | None = None
    source: list[str] | None = None
    search: str | None = None
    purpose: str | None = None

    def matches(self, file: StoredFile) -> bool:
        return (
            (self.sample_type is None or file.sample_type in self.sample_type)
            and (self.source is None or file.source in self.source)
            and (self.search is None or self.search in file.name)
            and self.purpose in (None, "batch")
        )


class _JobFilter(_Paging):
    """Every parameter that has no name of Mistral's is a metadata entry that the job must have."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    agent_id: str | None = None
    created_after: datetime | None = None
    created_by_me: bool = False
    status: list[JobStatus] | None = None
    order_by: Literal["created", "-created"] = "-created"

    def matches(self, job: BatchJob) -> bool:
        metadata = job.new.metadata or {}
        return (
            self.model in (None, job.new.model)
            and self.agent_id in (None, job.new.agent_id)
            and (self.created_after is None or job.created >= self.created_after.timestamp())
            and (self.status is None or job.status in self.status)
            and all(str(metadata.get(name)) == value for name, value in (self.model_extra or {}).items())
        )


_LISTS: Final = {"sample_type", "source", "status"}


def _query(parameters: QueryParams) -> dict[str, Any]:
    return {name: parameters.getlist(name) if name in _LISTS else parameters[name] for name in parameters}


class Files:
    """``/v1/files``."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def upload(self, request: Request) -> Response:
        body = Spool()
        async for chunk in request.stream():
            body.write(chunk)
            if body.length > MAX_FILE_BYTES:
                raise Refused(refusals.error(413, "File too large", "invalid_request_error", "3000"))
        try:
            fields = multipart.parts(body, request.headers.get("content-type", ""))
            file, purpose = fields["file"], fields["purpose"].text
        except (multipart.NotMultipart, KeyError) as error:
            raise Refused(refusals.error(422, f"Not a form with file and purpose: {error}", "invalid", None)) from None
        if purpose != "batch" or file.file_name is None:
            raise Refused(refusals.error(400, "Only files for batches are simulated", "invalid_request_error", "3000"))
        lines = sum(1 for _ in file.content.lines())
        stored = self._files.add(StoredFile(file.file_name, file.content, "batch_request", lines))
        return JSONResponse(stored.as_json())

    async def files(self, request: Request) -> Response:
        wanted = _FileFilter.model_validate(_query(request.query_params))
        return wanted.of([file for file in self._files.newest_first() if wanted.matches(file)])

    async def file(self, request: Request) -> Response:
        return JSONResponse(self._found(request).as_json() | {"deleted": False})

    async def content(self, request: Request) -> Response:
        file = self._found(request)
        if not file.is_available:
            raise _no_file(file.id)
        headers = {"content-length": str(file.content.length)}
        return StreamingResponse(_async(file.content.blocks()), media_type="application/octet-stream", headers=headers)

    async def delete(self, request: Request) -> Response:
        file = self._found(request)
        self._files.remove(file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    def _found(self, request: Request) -> StoredFile:
        file_id = request.path_params["file_id"]
        file = self._files.get(file_id)
        if file is None:
            raise _no_file(file_id)
        return file


class Jobs:
    """``/v1/batch/jobs``."""

    def __init__(self, batches: BatchJobs) -> None:
        self._batches = batches

    async def create(self, request: Request) -> Response:
        return JSONResponse(self._batches.create(NewBatchJob.model_validate_json(await request.body())).as_json())

    async def jobs(self, request: Request) -> Response:
        wanted = _JobFilter.model_validate(_query(request.query_params))
        found = [job for job in self._batches.jobs.values() if wanted.matches(job)]
        return wanted.of(found if wanted.order_by == "created" else found[::-1])

    async def job(self, request: Request) -> Response:
        job = self._found(request)
        shown = job.as_json()
        if job.output is not None and (job.new.requests is not None or request.query_params.get("inline") == "true"):
            shown["outputs"] = job.outputs()
        return JSONResponse(shown)

    async def cancel(self, request: Request) -> Response:
        job = self._found(request)
        self._batches.cancel(job)
        return JSONResponse(job.as_json())

    def _found(self, request: Request) -> BatchJob:
        job_id = request.path_params["job_id"]
        job = self._batches.jobs.get(job_id)
        if job is None:
            raise Refused(refusals.error(404, f"No such batch job: {job_id}", "not_found", "1600"))
        return job


class Controls:
    """``/sim/batches`` and ``/sim/calls``, for tests."""

    def __init__(self, batches: BatchJobs, faults: CallFaults) -> None:
        self._batches, self._faults = batches, faults

    async def add_rule(self, request: Request) -> Response:
        """Add the BatchRule in the body. The newest that matches a job applies."""
        self._batches.rules.append(BatchRule.model_validate_json(await request.body()))
        return JSONResponse({})

    async def add_faults(self, request: Request) -> Response:
        """Add the CallRule in the body."""
        self._faults.add(CallRule.model_validate_json(await request.body()))
        return JSONResponse({})

    async def counts(self, request: Request) -> Response:
        """The number of calls by name."""
        return JSONResponse(self._faults.counts)

    async def clear(self, request: Request) -> Response:
        self._batches.rules.clear()
        self._faults.clear()
        return JSONResponse({})

    async def release(self, request: Request) -> Response:
        self._batches.release()
        return JSONResponse({})


def batch_routes(simulator: Simulator) -> list[Route]:
    store, faults = FileStore(), CallFaults()
    batches = BatchJobs(simulator, store)
    files, jobs, controls = Files(store), Jobs(batches), Controls(batches, faults)

    def route(path: str, method: str, name: CallName, handler: Handler) -> Route:
        return Route(path, Faulty(request_response(_guarded(handler)), faults, name), methods=[method])

    return [
        route("/v1/files", "POST", "upload", files.upload),
        route("/v1/files", "GET", "files", files.files),
        route("/v1/files/{file_id}", "GET", "file", files.file),
        route("/v1/files/{file_id}", "DELETE", "delete", files.delete),
        route("/v1/files/{file_id}/content", "GET", "content", files.content),
        route("/v1/batch/jobs", "POST", "create", jobs.create),
        route("/v1/batch/jobs", "GET", "jobs", jobs.jobs),
        route("/v1/batch/jobs/{job_id}", "GET", "job", jobs.job),
        route("/v1/batch/jobs/{job_id}/cancel", "POST", "cancel", jobs.cancel),
        Route("/sim/batches", _answering(controls.add_rule), methods=["POST"]),
        Route("/sim/batches", controls.clear, methods=["DELETE"]),
        Route("/sim/batches/release", controls.release, methods=["POST"]),
        Route("/sim/calls", _answering(controls.add_faults), methods=["POST"]),
        Route("/sim/calls", controls.counts, methods=["GET"]),
    ]


def _guarded(handler: Handler) -> Handler:
    """A handler for requests with a key."""

    async def guarded(request: Request) -> Response:
        if not authorized(request):
            refusal = refusals.unauthorized()
            return Response(refusal.body, refusal.status, refusal.headers)
        return await answering(request)

    answering = _answering(handler)
    return guarded


def _answering(handler: Handler) -> Handler:
    """A handler whose refusals are responses."""

    async def answering(request: Request) -> Response:
        try:
            return await handler(request)
        except ValidationError as error:
            refusal = refusals.invalid(error)
        except Refused as error:
            refusal = error.refusal
        except ClientDisconnect:
            return Response(status_code=499)
        return Response(refusal.body, refusal.status, refusal.headers)

    return answering


def _no_file(file_id: str) -> Refused:
    return Refused(refusals.error(404, f"No such file: {file_id}", "not_found", "1600"))


async def _async(blocks: Iterator[bytes]) -> Any:
    for block in blocks:
        yield block
