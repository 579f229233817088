"""Removal: a job whose retention is over is removed whole; a deleted job keeps its row, without its texts.

On SQLite what is removed is overwritten in the file (``secure_delete``; its write-ahead log may hold older pages until
they are reused). On Postgres it goes with the next vacuum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, BindParameter, Row, bindparam, delete, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.engine.database import Database, retried
from storage.engine.schema import (
    attempts,
    deliveries,
    delivery_tries,
    jobs,
    micros,
    now,
    repairs,
    requests,
    responses,
    results,
    transcript,
)
from storage.jobs import search

JOBS_AT_ONCE = 200
"""Jobs that one call removes at most."""
CHUNK = 4
"""Jobs that the first statements remove; the next chunk is twice or half as large, by the time that it took."""
LARGEST_CHUNK = 64
CHUNK_SECONDS = 0.004
TRANSACTION_SECONDS = 0.008
"""A transaction ends after the chunk in which it has taken so long: on SQLite it blocks all other writers. (Measured
on a busy machine, beside a removal of 1 MB jobs: accepts took 28 ms at the 99th percentile and 42 ms at most.)"""
OLDEST = (
    select(jobs.c.id, jobs.c.completed_at)
    .where(jobs.c.completed_at.is_not(None), jobs.c.completed_at < bindparam("before"))
    .where(tuple_(jobs.c.completed_at, jobs.c.id) > tuple_(bindparam("time", type_=BigInteger), bindparam("job")))
    .order_by(jobs.c.completed_at, jobs.c.id)
    .limit(bindparam("most"))
)
IN_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
PENDING = select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id, deliveries.c.status == "pending")
REMOVABLE = (
    select(jobs.c.id)
    .where(jobs.c.id.in_(IN_IDS), jobs.c.completed_at.is_not(None), jobs.c.completed_at < bindparam("before"))
    .where(or_(jobs.c.completed_at < bindparam("overdue"), ~PENDING.exists()))
    .with_for_update(of=jobs, skip_locked=True)
)
BELONGINGS = (requests, responses, transcript, results, attempts, repairs)
TEXTS = [delete(table).where(table.c.job_id.in_(IN_IDS)) for table in BELONGINGS]
JOBS = delete(jobs).where(jobs.c.id.in_(IN_IDS))
DELIVERIES = delete(deliveries).where(deliveries.c.job_id.in_(IN_IDS)).returning(deliveries.c.id)
TRIES = delete(delivery_tries).where(delivery_tries.c.delivery_id.in_(IN_IDS))
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
        self._chunk = CHUNK

    @retried
    async def remove(
        self, ended_before: datetime, *, after: RemovalPosition = BEGINNING, limit: int = JOBS_AT_ONCE
    ) -> Removed:
        """Remove up to ``limit`` jobs that ended before a time, with everything that belongs to them.

        A job with a pending delivery stays PENDING_DELIVERIES_KEEP longer.
        """
        values = {"before": micros(ended_before), "time": after.completed_at, "job": after.job_id, "most": limit}
        async with self._database.single() as connection:
            found = (await connection.execute(OLDEST, values)).all()
        removed, full = 0, len(found) == limit
        async with self._database.write("fast") as connection:
            began = time.monotonic()
            while found and time.monotonic() < began + TRANSACTION_SECONDS:
                chunk, found = found[: self._chunk], found[self._chunk :]
                removed += await self._timed(connection, [row.id for row in chunk], ended_before)
                after = RemovalPosition(chunk[-1].completed_at, chunk[-1].id)
        return Removed(removed, after if found or full else None)

    async def _timed(self, connection: AsyncConnection, job_ids: Sequence[str], ended_before: datetime) -> int:
        """Remove a chunk, and choose the size of the next one."""
        began = time.monotonic()
        removed = await _remove(connection, job_ids, ended_before)
        faster = time.monotonic() - began < CHUNK_SECONDS
        self._chunk = min(self._chunk * 2, LARGEST_CHUNK) if faster else max(self._chunk // 2, CHUNK)
        return removed


async def _remove(connection: AsyncConnection, job_ids: Sequence[str], ended_before: datetime) -> int:
    """Remove jobs, and return how many. A job stays that waits for a delivery, was reopened meanwhile, or is locked."""
    times = {"before": micros(ended_before), "overdue": micros(ended_before - PENDING_DELIVERIES_KEEP)}
    ids = list((await connection.execute(REMOVABLE, {"ids": job_ids, **times})).scalars())
    if ids:
        await _delete_deliveries(connection, ids)
        await search.forget(connection, ids)
        for statement in (*TEXTS, JOBS):
            await connection.execute(statement, {"ids": ids})
    return len(ids)


async def _delete_deliveries(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """Delete deliveries, then their tries: recording a try locks its delivery, so that no try is left over."""
    ids = list((await connection.execute(DELIVERIES, {"ids": job_ids})).scalars())
    if ids:
        await connection.execute(TRIES, {"ids": ids})


async def delete_contents(connection: AsyncConnection, row: Row[Any]) -> None:
    """Delete the request, texts, metadata, webhook and deliveries of a finished job, whose row is locked.

    Its usage, its outcome and its idempotency key stay.
    """
    await _delete_deliveries(connection, [row.id])
    await search.forget(connection, [row.id])
    for table in (requests, responses, transcript, repairs):
        await connection.execute(delete(table).where(table.c.job_id == row.id))
    nothing = {"content": "", "reasoning": "", "runs": "[]", "tool_calls": None, "parts": None, "extra": None}
    await connection.execute(update(results).where(results.c.job_id == row.id).values(nothing))
    gone: dict[str, Any] = {"deleted_at": micros(now()), "webhook": None, "metadata": {}}
    await connection.execute(update(jobs).where(jobs.c.id == row.id).values(gone))
