"""Removal: a job whose retention is over is removed whole; a deleted job keeps its row, without its texts.

On SQLite what is removed is overwritten in the file (``secure_delete``; its write-ahead log may hold older pages until
they are reused). On Postgres it goes with the next vacuum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, delete, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.engine.database import Database, retried
from storage.engine.schema import attempts, deliveries, delivery_tries, jobs, micros, now, requests, results, transcript

JOBS_AT_ONCE = 200
"""Jobs that one call removes at most."""
CHUNK = 4
TRANSACTION_SECONDS = 0.008
"""A transaction ends after the chunk in which it has taken so long: on SQLite it blocks all other writers. (Measured
on a busy machine, beside a removal of 1 MB jobs: accepts took 28 ms at the 99th percentile and 42 ms at most.)"""
PENDING_DELIVERIES_KEEP = timedelta(days=7)
"""How much longer a job stays whose webhook is still to be delivered; its tries take 76 to 91 hours."""


class RemovalPosition(NamedTuple):
    """The place in the order of the jobs' ends where a removal stopped."""

    completed_at: int
    job_id: str


class Removed(NamedTuple):
    """``jobs``: how many were removed. ``place``: where to go on; None if nothing is left."""

    jobs: int
    place: RemovalPosition | None


BEGINNING = RemovalPosition(0, "")


class RetentionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    async def remove(
        self, ended_before: datetime, *, after: RemovalPosition = BEGINNING, limit: int = JOBS_AT_ONCE
    ) -> Removed:
        """Remove up to ``limit`` jobs that ended before a time, with everything that belongs to them.

        A job with a pending delivery stays PENDING_DELIVERIES_KEEP longer.
        """
        query = _ended(ended_before).where(tuple_(jobs.c.completed_at, jobs.c.id) > tuple_(*after))
        async with self._database.read() as connection:
            found = (await connection.execute(query.order_by(jobs.c.completed_at, jobs.c.id).limit(limit))).all()
        removed = 0
        async with self._database.write("fast") as connection:
            until = time.monotonic() + TRANSACTION_SECONDS
            for start in range(0, len(found), CHUNK):
                chunk = found[start : start + CHUNK]
                removed += await _remove(connection, [row.id for row in chunk], ended_before)
                after = RemovalPosition(chunk[-1].completed_at, chunk[-1].id)
                if time.monotonic() > until and start + CHUNK < len(found):
                    return Removed(removed, after)
        return Removed(removed, after if len(found) == limit else None)


def _ended(before: datetime) -> Select[Any]:
    """The query for jobs that ended before a time and have no delivery to wait for."""
    pending = select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id, deliveries.c.status == "pending")
    waited_for = jobs.c.completed_at >= micros(before - PENDING_DELIVERIES_KEEP)
    return select(jobs.c.id, jobs.c.completed_at).where(
        jobs.c.completed_at.is_not(None),
        jobs.c.completed_at < micros(before),
        or_(~waited_for, ~pending.exists()),
    )


async def _remove(connection: AsyncConnection, job_ids: Sequence[str], ended_before: datetime) -> int:
    """Remove jobs, and return how many. A job that was reopened meanwhile, or is locked, stays."""
    locked = _ended(ended_before).where(jobs.c.id.in_(job_ids)).with_for_update(of=jobs, skip_locked=True)
    ids = [row.id for row in (await connection.execute(locked)).all()]
    if ids:
        await _delete_deliveries(connection, ids)
        for table in (requests, transcript, results, attempts):
            await connection.execute(delete(table).where(table.c.job_id.in_(ids)))
        await connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


async def _delete_deliveries(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """Delete deliveries, then their tries: recording a try locks its delivery, so that no try is left over."""
    gone = delete(deliveries).where(deliveries.c.job_id.in_(job_ids)).returning(deliveries.c.id)
    ids = list((await connection.execute(gone)).scalars())
    if ids:
        await connection.execute(delete(delivery_tries).where(delivery_tries.c.delivery_id.in_(ids)))


async def delete_contents(connection: AsyncConnection, row: Row[Any]) -> None:
    """Delete the request, texts, metadata, webhook and deliveries of a finished job, whose row is locked.

    Its usage, its outcome and its idempotency key stay.
    """
    await _delete_deliveries(connection, [row.id])
    for table in (requests, transcript):
        await connection.execute(delete(table).where(table.c.job_id == row.id))
    nothing = {"content": "", "reasoning": "", "runs": "[]", "tool_calls": None, "parts": None}
    await connection.execute(update(results).where(results.c.job_id == row.id).values(nothing))
    gone: dict[str, Any] = {"deleted_at": micros(now()), "webhook": None, "metadata": {}}
    await connection.execute(update(jobs).where(jobs.c.id == row.id).values(gone))
