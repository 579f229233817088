"""Jobs that a sweeper has to act on: not started, silent, to be cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from domain.values import JobHandle
from storage.engine.database import Database, retried
from storage.engine.schema import EPOCH, NOT_DELAYED, NOT_KEPT, jobs, micros, now, responses
from storage.jobs import mapping

OWN_WORKFLOW = jobs.c.batched.is_(False)
"""A condition that leaves the jobs of batches to their batches."""
_WAITS = (jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_(None))
UNSTARTED = select(*mapping.HANDLE).where(
    *_WAITS, jobs.c.start_at.is_(None), jobs.c.progressed_at <= bindparam("before")
)
DUE = select(*mapping.HANDLE).where(
    *_WAITS,
    jobs.c.start_at <= bindparam("time"),
    or_(jobs.c.progressed_at < jobs.c.start_at, jobs.c.progressed_at <= bindparam("before")),
)


class SweepStore:
    """Finds work for sweepers, of which several may run at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unstarted(self, *, older_than: timedelta, limit: int = 100) -> Sequence[JobHandle]:
        """Take accepted jobs whose workflow was not started, for the caller to start. For the time ``older_than`` no
        other caller, in any process, gets the same jobs."""
        values, time = {"before": micros(now() - older_than)}, micros(now())
        async with self._database.read() as connection:
            if (await connection.execute(UNSTARTED.limit(1), values)).first() is None:
                return []
        return await self._take(UNSTARTED.order_by(jobs.c.created_at).limit(limit), values, time)

    async def due(self, *, older_than: timedelta, limit: int = 100) -> Sequence[JobHandle]:
        """The same for delayed jobs whose ``startAt`` has come, by the database's clock; those that nobody has taken
        yet at once."""
        async with self._database.single() as connection:
            time = await self._database.time(connection)
            values = {"time": time, "before": time - micros(EPOCH + older_than)}
            if (await connection.execute(DUE.limit(1), values)).first() is None:
                return []
        return await self._take(DUE.order_by(jobs.c.start_at).limit(limit), values, time)

    @retried
    async def _take(self, query: Any, values: dict[str, int], time: int) -> Sequence[JobHandle]:
        async with self._database.write("fast") as connection:
            rows = (await connection.execute(query.with_for_update(skip_locked=True), values)).all()
            taken = jobs.c.id.in_([row.id for row in rows])
            await connection.execute(update(jobs).where(taken).values(progressed_at=time))
        return [mapping.handle(row) for row in rows]

    async def silent(self, *, since: timedelta, limit: int = 100) -> Sequence[JobHandle]:
        """Started jobs that have not ended and have made no progress for ``since``; none whose ``startAt`` is ahead."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_not(None), OWN_WORKFLOW)
        query = query.where(or_(jobs.c.start_at.is_(None), jobs.c.start_at <= micros(now())))
        return await self._found(query.where(jobs.c.progressed_at <= micros(now() - since)), limit)

    async def to_cancel(self, limit: int = 100) -> Sequence[JobHandle]:
        """Jobs that have not ended and whose cancellation was requested."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), NOT_DELAYED, OWN_WORKFLOW)
        query = query.where(jobs.c.cancel_requested_at.is_not(None))
        return await self._found(query, limit)

    async def unkept(self, *, ended: timedelta, limit: int = 100) -> Sequence[JobHandle]:
        """Jobs that ended so long ago and whose content is not to be kept, but is still there."""
        query = select(jobs).join(responses, responses.c.job_id == jobs.c.id).where(NOT_KEPT)
        return await self._found(query.where(jobs.c.completed_at <= micros(now() - ended)), limit)

    @retried
    async def touch(self, job_id: str) -> None:
        """Record that a job is alive, so that ``silent`` does not return it for a while."""
        async with self._database.write("fast") as connection:
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(progressed_at=micros(now())))

    async def _found(self, query: Any, limit: int) -> Sequence[JobHandle]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(jobs.c.created_at).limit(limit))).all()
        return [mapping.handle(row) for row in rows]
