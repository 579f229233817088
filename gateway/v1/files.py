"""Mistral's files API, ``/v1/files``: the inputs of batch jobs, and their results.

Sources: Mistral's API reference ("Files") and the types of its Python client (``mistralai.client.models``).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from chatjobs.contracts.base import StrictModel
from chatjobs.errors import InvalidRequest, Problem
from domain.errors import BatchJobNotFound, FileNotFound
from domain.files import BATCH, BATCH_ERROR, FileFilter, FileRecord
from gateway.auth.access import Identity
from gateway.batch_output import output_pages
from gateway.dependencies import Dependencies
from gateway.routes.jobs import Caller, Here
from gateway.v1.file_upload import FileUpload

MOST_LISTED: Final = 1_000
MOST_URL_HOURS: Final = 168
"""A week, as at Mistral."""
MOST_PAGES: Final = 1_000_000
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Page = Annotated[int, Query(ge=0, le=MOST_PAGES)]
PageSize = Annotated[int, Query(ge=1, le=MOST_LISTED)]

router = APIRouter(prefix="/v1")


class FileObject(StrictModel):
    """A file, as Mistral shows it (``mistralai.client.models.FileSchema``). Times are unix seconds."""

    id: str
    object: Literal["file"] = "file"
    size: int = Field(alias="bytes")
    created_at: int
    filename: str
    purpose: Literal["batch"] = "batch"
    sample_type: str
    source: str
    num_lines: int | None
    mimetype: str
    signature: str | None = None
    expires_at: int
    visibility: str
    deleted: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """Only in the description of a single file."""


class FileList(StrictModel):
    """A page of files (``ListFilesResponse``)."""

    data: tuple[FileObject, ...]
    object: Literal["list"] = "list"
    total: int | None


class FileDeleted(StrictModel):
    """The answer to a deletion (``DeleteFileResponse``)."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [BATCH]},
                        "expiry": {"type": "integer", "description": "Hours after which the file is removed"},
                        "visibility": {"type": "string", "enum": ["workspace"]},
                    },
                }
            }
        },
    }
}


@router.post("/files", response_model=FileObject, openapi_extra=FORM)
async def upload(request: Request, here: Here, caller: Caller) -> Response:
    """Upload a file of requests for batch jobs, one JSON object in each line. It is stored as it arrives; its lines
    are checked when a batch job is made of it."""
    record = await FileUpload(here.files.uploads, caller.tenant, here.settings.chatjobs_max_file_bytes).take(request)
    return answer(_object(here, record, record.size or 0))


@router.get("/files", response_model=FileList)
async def list_files(
    here: Here,
    caller: Caller,
    page: Page = 0,
    page_size: PageSize = 100,
    include_total: bool = True,
    sample_type: Annotated[list[str] | None, Query()] = None,
    source: Annotated[list[str] | None, Query()] = None,
    search: str | None = None,
    purpose: str | None = None,
    mimetypes: Annotated[list[str] | None, Query()] = None,
    after: str | None = None,
) -> Response:
    """List files, newest first: uploads, and the results of batch jobs. Pages count from 0. The size of a file
    of results is 0 here until the file itself is asked for, which measures it."""
    if after is not None:  # OpenAI's client would read the first page for ever
        raise InvalidRequest([Problem("/after", "is not supported: pages are numbered (page, page_size)")])
    wanted = FileFilter(sample_types=sample_type, sources=source, mimetypes=mimetypes, search=search)
    if purpose not in (None, BATCH):
        return answer(FileList(data=(), total=0 if include_total else None))
    found = await here.files.queries.list(caller.tenant, wanted, page=page, page_size=page_size, count=include_total)
    data = tuple(_object(here, one, one.size or 0) for one in found.files)
    return answer(FileList(data=data, total=found.total))


@router.get("/files/{file_id}", response_model=FileObject)
async def show(file_id: str, here: Here, caller: Caller) -> Response:
    """One file."""
    shown = await _shown(here, await _file(here, caller, file_id))
    return answer(shown.model_copy(update={"deleted": False}))


@router.delete("/files/{file_id}", response_model=FileDeleted)
async def delete(file_id: str, here: Here, caller: Caller) -> Response:
    """Delete a file. A batch job that was made of it goes on; one that has not read it yet fails."""
    file = await _file(here, caller, file_id)
    await here.files.uploads.delete(file.file_id, caller.tenant)
    here.after_response.soon(lambda: here.files.uploads.discard(file.file_id))
    return answer(FileDeleted(id=file.file_id))


CONTENT = {200: {"content": {"application/octet-stream": {}}, "description": "The bytes of the file"}}


@router.get("/files/{file_id}/content", response_model=None, responses=CONTENT)  # type: ignore[arg-type]
async def content(file_id: str, here: Here, caller: Caller) -> Response:
    """The content of a file, streamed."""
    file = await _file(here, caller, file_id)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"}
    if file.batch_job is None:
        headers["Content-Length"] = str(file.size or 0)
        pieces: AsyncIterator[bytes] = here.files.queries.content(file.file_id)
    else:
        pieces = await _results(here, file)
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


class FileUrl(StrictModel):
    """The answer with a URL (``GetSignedURLResponse``)."""

    url: str


@router.get("/files/{file_id}/url", response_model=FileUrl)
async def signed_url(
    file_id: str,
    request: Request,
    here: Here,
    caller: Caller,
    expiry: Annotated[int, Query(ge=1, le=MOST_URL_HOURS)] = 24,
) -> Response:
    """A URL of a file's content that needs no key, valid for so many hours and no longer than the caller's key."""
    file = await _file(here, caller, file_id)
    token = here.access.file_token(caller, file.file_id, timedelta(hours=expiry))
    base = (here.settings.chatjobs_public_url or str(request.base_url)).rstrip("/")
    return answer(FileUrl(url=f"{base}/v1/files/{file.file_id}/content?token={token}"), {"Cache-Control": "no-store"})


def answer(value: StrictModel, headers: dict[str, str] | None = None) -> Response:
    return Response(value.model_dump_json(), headers=headers, media_type="application/json")


async def _file(here: Dependencies, caller: Identity, file_id: str) -> FileRecord:
    """Raises FileNotFound, also for an id that is none."""
    if not UUID.fullmatch(file_id):
        raise FileNotFound
    return await here.files.queries.get(file_id, caller.tenant)


async def _results(here: Dependencies, file: FileRecord) -> AsyncGenerator[bytes, None]:
    """The lines of a batch job's results. Raises FileNotFound if the job is gone."""
    try:
        job = await here.files.jobs.get(file.batch_job or "", file.tenant)
    except BatchJobNotFound:
        raise FileNotFound from None
    if job.batch_id is None:
        raise FileNotFound
    return output_pages(here.batches.queries, job.batch_id, errors=file.sample_type == BATCH_ERROR)


async def _shown(here: Dependencies, file: FileRecord) -> FileObject:
    """The file, with the size of results, which are read for it if they were not measured before."""
    size = file.size
    if size is None:
        size = 0
        async with aclosing(await _results(here, file)) as pieces:
            async for piece in pieces:
                size += len(piece)
        await here.files.queries.measured(file.file_id, size)
    return _object(here, file, size)


def _object(here: Dependencies, file: FileRecord, size: int) -> FileObject:
    kept = file.created_at + timedelta(days=here.settings.chatjobs_retention_days)
    expires_at = kept if file.expires_at is None else min(file.expires_at, kept)
    return FileObject(
        id=file.file_id,
        size=size,
        created_at=int(file.created_at.timestamp()),
        filename=file.filename,
        sample_type=file.sample_type,
        source=file.source,
        num_lines=file.num_lines,
        mimetype=file.mimetype,
        expires_at=int(expires_at.timestamp()),
        visibility=file.visibility,
    )
