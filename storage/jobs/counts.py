"""Numbers of jobs in the whole service, read from indexes: open, ended lately, and how long the oldest waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import and_, bindparam, case, func, select

from chatjobs.contracts import JobStatus
from storage.engine.database import Database
from storage.engine.schema import jobs, lanes, micros, now

LATELY = timedelta(minutes=5)

ALONE = and_(jobs.c.batch_id.is_(None), func.coalesce(jobs.c.start_at, 0) <= bindparam("time"))
"""An item of a batch waits for those before it, a delayed job for its time: neither is a sign that workers lack."""
WAITS_SINCE = case((ALONE, func.coalesce(jobs.c.start_at, jobs.c.created_at)))
OPEN = (
    select(jobs.c.status, func.count(), func.min(WAITS_SINCE))
    .where(jobs.c.completed_at.is_(None))
    .group_by(jobs.c.status)
)
ENDED = select(jobs.c.status, func.count()).where(jobs.c.completed_at.is_not(None)).group_by(jobs.c.status)
DOWN = select(func.count()).select_from(lanes).where(lanes.c.openings > 0)


@dataclass(frozen=True, slots=True)
class JobCounts:
    """``ended`` within LATELY."""

    open: Mapping[JobStatus, int]
    ended: Mapping[JobStatus, int]
    oldest_queued_seconds: float
    lanes_down: int
    """Lanes whose model fails all calls."""


async def counts(database: Database) -> JobCounts:
    """Count the jobs. Raises StorageUnavailable."""
    time = micros(now())
    begin = time - LATELY // timedelta(microseconds=1)
    async with database.read() as connection:
        waiting = {JobStatus(row[0]): row for row in (await connection.execute(OPEN, {"time": time})).all()}
        down = await connection.scalar(DOWN)
        lately = (await connection.execute(ENDED.where(jobs.c.completed_at >= begin))).all()
    ended = {JobStatus(status): count for status, count in lately}
    queued = waiting.get(JobStatus.QUEUED)
    return JobCounts(
        open={s: waiting[s][1] if s in waiting else 0 for s in JobStatus if not s.terminal},
        ended={s: ended.get(s, 0) for s in JobStatus if s.terminal},
        oldest_queued_seconds=max(0, time - queued[2]) / 1_000_000 if queued and queued[2] else 0.0,
        lanes_down=down or 0,
    )
