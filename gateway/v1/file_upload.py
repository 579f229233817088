"""The upload of a file: its content is stored piece by piece as it arrives, and is a file with the last one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable
from contextlib import aclosing
from datetime import timedelta
from typing import Final

from starlette.requests import Request

from chatjobs.errors import ChatJobsError, InvalidRequest, Problem
from domain.files import BATCH, JSONL, UPLOADED, FileEnd, FileRecord, NewFile
from gateway.problems import HttpProblem
from gateway.v1.multipart import PartData, PartEnd, PartHead, form_events
from storage.engine.schema import now
from storage.files.uploads import FileUploads

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 512 * 1024
"""A piece of a file as it is stored: one row, one transaction."""
LONGEST_FIELD: Final = 1024
LONGEST_NAME: Final = 512
FORM_BYTES: Final = 64 * 1024
"""What a form may have beside its file."""
MOST_HOURS: Final = 24 * 365 * 10
MIMETYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,63}/[a-z0-9!#$&^_.+-]{1,63}")
UNTYPED: Final = "application/octet-stream"
VISIBILITY: Final = "workspace"
NOT_BATCH: Final = "must be batch: the files here are the inputs of batch jobs, and nothing reads others"


class ContentWriter:
    """Writes the content of one file; nothing of it stays unless it is finished."""

    def __init__(self, uploads: FileUploads, new: NewFile, limit: int) -> None:
        """``limit``: the most bytes that the file may have."""
        self._uploads = uploads
        self._new = new
        self._limit = limit
        self._id: str | None = None
        self._waiting = bytearray()
        self._hash = hashlib.sha256()
        self._chunks = self._size = self._lines = 0
        self._within_a_line = False

    async def write(self, data: bytes) -> None:
        """Raises HttpProblem (413), StorageError."""
        self._size += len(data)
        if self._size > self._limit:
            raise too_large(self._limit)
        self._lines += data.count(b"\n")
        if data:
            self._within_a_line = not data.endswith(b"\n")
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            await self._store(CHUNK_BYTES)

    async def finish(self, hours: int | None = None) -> FileRecord:
        """The file; ``hours``: how long it is kept at most. Raises InvalidRequest for an empty one, StorageError."""
        if not self._size:
            raise InvalidRequest([Problem("/file", "is empty; write a JSON object into each line")])
        if self._waiting:
            await self._store(len(self._waiting))
        end = FileEnd(
            size=self._size,
            num_lines=self._lines + self._within_a_line,
            sha256=self._hash.hexdigest(),
            expires_at=None if hours is None else now() + timedelta(hours=hours),
        )
        return await self._uploads.finish(self._id or "", end)

    async def discard(self) -> None:
        """Remove what is stored; if the database is away, a sweeper does it later."""
        if self._id is None:
            return
        try:
            await self._uploads.discard(self._id)
        except ChatJobsError as error:
            log.warning("upload not deleted: %s", error, extra={"action": "upload_left", "file_id": self._id})

    async def _store(self, length: int) -> None:
        data = bytes(self._waiting[:length])
        del self._waiting[:length]
        if self._id is None:
            self._id = await self._uploads.begin(self._new)
        await asyncio.to_thread(self._hash.update, data)
        await self._uploads.add(self._id, self._chunks, data)
        self._chunks += 1


def too_large(limit: int) -> HttpProblem:
    detail = f"A file may have {limit} bytes (CHATJOBS_MAX_FILE_BYTES); split it into several"
    return HttpProblem(413, "file_too_large", detail)


class FileUpload:
    """The form of one upload. The order of its fields does not matter; unknown ones are ignored."""

    def __init__(self, uploads: FileUploads, tenant: str, limit: int) -> None:
        self._uploads = uploads
        self._tenant = tenant
        self._limit = limit
        self._fields: dict[str, str] = {}
        self._head: PartHead | None = None
        self._value = bytearray()
        self._writer: ContentWriter | None = None

    async def take(self, request: Request) -> FileRecord:
        """The file in the form in a request's body. Raises HttpProblem, InvalidRequest, StorageError."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit + FORM_BYTES:
            raise too_large(self._limit)
        try:
            async with aclosing(form_events(request)) as events:
                async for event in events:
                    match event:
                        case PartHead():
                            self._begin(event)
                        case PartData():
                            await self._data(event.data)
                        case PartEnd():
                            self._end()
            return await self._finish()
        except BaseException:
            if self._writer is not None:
                await asyncio.shield(self._writer.discard())
            raise

    def _begin(self, head: PartHead) -> None:
        self._head = head
        self._value.clear()
        if head.name != "file":
            return
        if head.filename is None:
            raise InvalidRequest([Problem("/file", "must be a file: give it a filename")])
        if self._writer is not None:
            raise InvalidRequest([Problem("/file", "is there twice; upload one file at a time")])
        new = NewFile(self._tenant, head.filename[-LONGEST_NAME:] or "file.jsonl", _mimetype(head), UPLOADED)
        self._writer = ContentWriter(self._uploads, new, self._limit)

    @property
    def _in_file(self) -> bool:
        return self._head is not None and self._head.name == "file"

    async def _data(self, data: bytes) -> None:
        if self._in_file and self._writer is not None:
            await self._writer.write(data)
            return
        if len(self._value) + len(data) > LONGEST_FIELD:
            raise HttpProblem(413, "body_too_large", f"A field of the form may have {LONGEST_FIELD} bytes")
        self._value += data

    def _end(self) -> None:
        if self._head is None or self._in_file:
            return
        self._fields[self._head.name] = self._value.decode(errors="replace").strip()
        if self._head.name == "purpose":
            _check(self._purpose())

    async def _finish(self) -> FileRecord:
        writer = self._writer
        if writer is None:
            raise InvalidRequest([*self._purpose(), Problem("/file", "is missing")])
        _check([*self._purpose(), *self._others()])
        hours = self._fields.get("expiry")
        return await writer.finish(int(hours) if hours else None)

    def _purpose(self) -> Iterable[Problem]:
        purpose = self._fields.get("purpose")
        if purpose != BATCH:
            yield Problem("/purpose", "is missing; it must be batch" if purpose is None else NOT_BATCH)

    def _others(self) -> Iterable[Problem]:
        hours = self._fields.get("expiry")
        if hours and not (hours.isdecimal() and len(hours) < 9 and 1 <= int(hours) <= MOST_HOURS):
            yield Problem("/expiry", f"must be a number of hours from 1 to {MOST_HOURS}")
        if self._fields.get("visibility") not in (None, "", VISIBILITY):
            yield Problem("/visibility", f"must be {VISIBILITY}: a file is for all keys of its tenant")


def _check(problems: Iterable[Problem]) -> None:
    if found := list(problems):
        raise InvalidRequest(found)


def _mimetype(head: PartHead) -> str:
    """The type that the client gives; most give none, or the general one, for JSONL."""
    return head.content_type if MIMETYPE.fullmatch(head.content_type) and head.content_type != UNTYPED else JSONL
