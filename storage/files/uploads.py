"""Uploads of files: pieces are stored as they arrive, and the file begins to exist with the last one.

The row of an upload is seen by nobody. If the upload breaks off, the process that took it deletes it or, if that died,
any other one later.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import bindparam, delete, exists, insert, select, update

from domain.errors import FileNotFound, StorageUnavailable
from domain.files import BATCH, BATCH_REQUEST, FileEnd, FileRecord, NewFile, new_file_id
from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import file_chunks, files, micros, now
from storage.files.queries import COMPLETE, file_row, record

UPLOADING = "uploading"
DELETED = "deleted"
ABANDONED_AFTER = timedelta(hours=1)
"""An upload to which nothing was added for so long is deleted: it is over."""
CHUNKS_AT_ONCE = 8
"""Pieces that one transaction deletes: some megabytes, which SQLite overwrites in the file."""
TOUCH = update(files).where(files.c.id == bindparam("key"), files.c.status == UPLOADING)
GIVEN_UP = "The upload was given up; send it again"


class FileUploads:
    """Stores the contents of uploads, makes files of them, and deletes files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def begin(self, new: NewFile) -> str:
        """Make the row of an upload. Returns its id. Raises StorageError."""
        file_id, time = new_file_id(), micros(now())
        async with self._database.write("fast") as connection:
            await connection.execute(
                insert(files).values(
                    id=file_id,
                    tenant=new.tenant,
                    status=UPLOADING,
                    filename=clean(new.filename),
                    purpose=BATCH,
                    sample_type=BATCH_REQUEST,
                    source=new.source,
                    mimetype=new.mimetype,
                    visibility="workspace",
                    created_at=time,
                    progressed_at=time,
                )
            )
        return file_id

    @retried
    async def add(self, file_id: str, number: int, data: bytes) -> None:
        """Store a piece, the next in order. Raises StorageUnavailable, also if the upload was deleted meanwhile."""
        async with self._database.write("fast") as connection:
            touched = await connection.execute(TOUCH, {"key": file_id, "progressed_at": micros(now())})
            if not touched.rowcount:
                raise StorageUnavailable(GIVEN_UP)
            await connection.execute(insert(file_chunks).values(file_id=file_id, number=number, data=data))

    @retried
    async def finish(self, file_id: str, end: FileEnd) -> FileRecord:
        """Make an upload a file, durably; from now on it is seen. Raises StorageError."""
        time = micros(now())
        values = {
            "status": COMPLETE,
            "size": end.size,
            "num_lines": end.num_lines,
            "sha256": end.sha256,
            "created_at": time,
            "progressed_at": time,
            "expires_at": micros(end.expires_at) if end.expires_at else None,
        }
        async with self._database.write() as connection:
            changed = await connection.execute(TOUCH, {"key": file_id, **values})
            if not changed.rowcount:
                raise StorageUnavailable(GIVEN_UP)
            return record(await file_row(connection, file_id, None))

    @retried
    async def delete(self, file_id: str, tenant: str | None) -> None:
        """Delete a file, durably; ``discard`` then removes its content. Raises FileNotFound, StorageError."""
        async with self._database.write() as connection:
            row = await file_row(connection, file_id, tenant)
            gone = update(files).where(files.c.id == row.id, files.c.status == COMPLETE)
            changed = await connection.execute(gone.values(status=DELETED, progressed_at=micros(now())))
            if not changed.rowcount:
                raise FileNotFound

    async def discard(self, file_id: str) -> None:
        """Remove an upload, or what is left of a deleted file, in steps; a complete file stays. Raises StorageError."""
        while await self._discard_some(file_id):
            pass

    @retried
    async def _discard_some(self, file_id: str) -> bool:
        unseen = (files.c.id == file_id, files.c.status != COMPLETE)
        some = select(file_chunks.c.number).where(file_chunks.c.file_id == file_id, exists().where(*unseen))
        async with self._database.write("fast") as connection:
            numbers = list((await connection.execute(some.limit(CHUNKS_AT_ONCE))).scalars())
            if numbers:
                mine = (file_chunks.c.file_id == file_id, file_chunks.c.number.in_(numbers))
                await connection.execute(delete(file_chunks).where(*mine))
                return True
            await connection.execute(delete(files).where(*unseen))
            return False

    async def discard_abandoned(self, idle: timedelta = ABANDONED_AFTER) -> int:
        """Remove the uploads to which nothing was added for so long, and what is left of deleted files. Returns their
        number. Raises StorageError."""
        query = select(files.c.id).where(files.c.status != COMPLETE, files.c.progressed_at < micros(now() - idle))
        async with self._database.single() as connection:
            found = list((await connection.execute(query)).scalars())
        for file_id in found:
            await self.discard(file_id)
        return len(found)
