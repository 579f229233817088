"""Reads of files and of their contents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import FileNotFound
from domain.files import BATCH, FileFilter, FileRecord
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import file_chunks, files, micros, moment, now

COMPLETE = "complete"
SEEN = (
    files.c.status == COMPLETE,
    files.c.purpose == BATCH,
    or_(files.c.expires_at.is_(None), files.c.expires_at > bindparam("time")),
)
CHUNK = select(file_chunks.c.data).where(
    file_chunks.c.file_id == bindparam("key"), file_chunks.c.number == bindparam("place")
)


class FilePage(NamedTuple):
    """A page of files. ``total``: of all that match, if it was asked for."""

    files: Sequence[FileRecord]
    total: int | None


class FileQueries:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, file_id: str, tenant: str | None = None) -> FileRecord:
        """A file. Raises FileNotFound."""
        async with self._database.single() as connection:
            return record(await file_row(connection, file_id, tenant))

    async def list(self, tenant: str, wanted: FileFilter, *, page: int, page_size: int, count: bool = True) -> FilePage:
        """A page of the tenant's files, newest first; pages count from 0. ``count``: whether to count all."""
        query = _matching(select(files), tenant, wanted).order_by(files.c.created_at.desc(), files.c.id.desc())
        time = {"time": micros(now())}
        async with self._database.read() as connection:
            rows = (await connection.execute(query.offset(page * page_size).limit(page_size), time)).all()
            total = _matching(select(func.count()).select_from(files), tenant, wanted)
            number = await connection.scalar(total, time) if count else None
        return FilePage([record(row) for row in rows], number)

    async def content(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The pieces of an uploaded file. They end early if it is deleted meanwhile."""
        number = 0
        while True:
            async with self._database.single() as connection:
                data = await connection.scalar(CHUNK, {"key": file_id, "place": number})
            if data is None:
                return
            yield data
            number += 1

    @retried
    async def measured(self, file_id: str, size: int) -> None:
        """Record the size of results, in bytes. Raises StorageError."""
        async with self._database.write("fast") as connection:
            await connection.execute(update(files).where(files.c.id == file_id).values(size=size))


async def file_row(connection: AsyncConnection, file_id: str, tenant: str | None) -> Row[Any]:
    """The row of a file that is seen. Raises FileNotFound."""
    query = select(files).where(files.c.id == clean(file_id), *SEEN)
    row = (await connection.execute(query, {"time": micros(now())})).first()
    if row is None or tenant not in (None, row.tenant):
        raise FileNotFound
    return row


def record(row: Row[Any]) -> FileRecord:
    return FileRecord(
        file_id=row.id,
        tenant=row.tenant,
        filename=row.filename,
        sample_type=row.sample_type,
        source=row.source,
        mimetype=row.mimetype,
        visibility=row.visibility,
        size=row.size,
        num_lines=row.num_lines,
        batch_job=row.batch_job,
        created_at=moment(row.created_at),
        expires_at=None if row.expires_at is None else moment(row.expires_at),
    )


def _matching(query: Select[Any], tenant: str, wanted: FileFilter) -> Select[Any]:
    query = query.where(files.c.tenant == tenant, *SEEN)
    columns = {files.c.sample_type: wanted.sample_types, files.c.source: wanted.sources}
    for column, values in {**columns, files.c.mimetype: wanted.mimetypes}.items():
        if values is not None:
            query = query.where(column.in_([clean(value) for value in values]))
    if wanted.search is not None:
        query = query.where(files.c.filename.icontains(clean(wanted.search), autoescape=True))
    return query
