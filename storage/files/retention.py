"""Removal of files, and of batch jobs without a batch, whose retention is over."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, or_, select, update

from storage.engine.database import Database, retried
from storage.engine.schema import batch_jobs, batches, files, micros, now
from storage.files.queries import COMPLETE
from storage.files.uploads import DELETED, FileUploads

AT_ONCE = 100
"""Rows that one transaction changes."""


class FileRetention:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._uploads = FileUploads(database)

    async def remove_some(self, before: datetime) -> int:
        """Remove some of the files and batch jobs that were made before a time, and of the files that have expired.
        Returns their number; 0: none is left. Raises StorageError."""
        gone = await self._hide_files(before)
        for file_id in gone:
            await self._uploads.discard(file_id)
        return len(gone) + await self._remove_jobs(before)

    @retried
    async def _hide_files(self, before: datetime) -> list[str]:
        over = or_(files.c.created_at < micros(before), files.c.expires_at < micros(now()))
        some = select(files.c.id).where(files.c.status == COMPLETE, over).limit(AT_ONCE)
        async with self._database.write("fast") as connection:
            ids = list((await connection.execute(some)).scalars())
            if ids:
                hidden = update(files).where(files.c.id.in_(ids))
                await connection.execute(hidden.values(status=DELETED, progressed_at=micros(now())))
        return ids

    @retried
    async def _remove_jobs(self, before: datetime) -> int:
        """Remove jobs that ended without a batch, and are known to have none, or whose batch was removed."""
        unread = batch_jobs.c.batch_id.is_(None) & batch_jobs.c.settled.is_not(None)
        known = select(batches.c.id).where(batches.c.id == batch_jobs.c.batch_id).exists()
        over = (batch_jobs.c.created_at < micros(before), unread | (batch_jobs.c.batch_id.is_not(None) & ~known))
        async with self._database.write("fast") as connection:
            ids = list((await connection.execute(select(batch_jobs.c.id).where(*over).limit(AT_ONCE))).scalars())
            if ids:
                results = update(files).where(files.c.batch_job.in_(ids), files.c.status == COMPLETE)
                await connection.execute(results.values(status=DELETED, progressed_at=micros(now())))
                await connection.execute(delete(batch_jobs).where(batch_jobs.c.id.in_(ids)))
        return len(ids)
