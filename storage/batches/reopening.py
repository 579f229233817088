"""Batches that go on after their end: the items that have no answer are open again.

The wish is in the batch's row. The items follow in steps, whose place is there, too: who was stopped in between goes
on, and no item is reopened twice.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchStatus, JobStatus
from storage.engine.database import RolledBack
from storage.engine.schema import batch_items, batches, jobs, micros, now, requests
from storage.jobs import sealing
from storage.jobs.rows import LOCKED_ALL

REOPENED_AT_ONCE = 500
"""Items that one transaction looks at."""
UNANSWERED = (JobStatus.FAILED.value, JobStatus.CANCELLED.value)

_UNANSWERED = (jobs.c.status.in_(UNANSWERED), jobs.c.deleted_at.is_(None))
_HAS_REQUEST = select(requests.c.job_id).where(requests.c.job_id == jobs.c.id).exists()
ANY_LEFT = select(jobs.c.id).where(jobs.c.batch_id == bindparam("key"), *_UNANSWERED, _HAS_REQUEST).limit(1)
STEP = (
    select(batch_items.c.job_id, batch_items.c.queue_time)
    .select_from(batch_items.join(jobs, jobs.c.id == batch_items.c.job_id))
    .where(batch_items.c.batch_id == bindparam("key"))
    .where(batch_items.c.number >= bindparam("first"), batch_items.c.number < bindparam("end"))
    .where(*_UNANSWERED, _HAS_REQUEST)
)
MOVE_ON = update(batches).where(
    batches.c.id == bindparam("key"), batches.c.reopened == bindparam("here"), batches.c.cancel_requested_at.is_(None)
)


async def anything_left(connection: AsyncConnection, batch_id: str) -> bool:
    """Whether a batch that has ended has items that may get an answer yet."""
    return await connection.scalar(ANY_LEFT, {"key": batch_id}) is not None


def open_again(row: Row[Any]) -> dict[str, Any]:
    """The columns of a batch that has ended and goes on."""
    return {
        "status": BatchStatus.IN_PROGRESS.value,
        "revision": row.revision + 1,
        "reopened": 0,
        "completed_at": None,
        "cancel_requested_at": None,
        "workflow_started_at": None,
        "sealed_by": None,
        "error": None,
        "judged": None,
    }


async def reopen_some(connection: AsyncConnection, row: Row[Any]) -> bool:
    """Reopen the next items of a batch. Returns whether others are left.

    Raises RolledBack if somebody else did it, or the batch was cancelled, at the same moment.
    """
    if row.reopened is None or row.cancel_requested_at is not None:
        return False
    end = min(row.reopened + REOPENED_AT_ONCE, row.total)
    items = (await connection.execute(STEP, {"key": row.id, "first": row.reopened, "end": end})).all()
    locked = (await connection.execute(LOCKED_ALL, {"keys": [item.job_id for item in items]})).all() if items else []
    found = [job for job in locked if job.status in UNANSWERED and job.deleted_at is None]
    if found:
        time = micros(now())
        until = {item.job_id: time + item.queue_time for item in items if item.queue_time is not None}
        await sealing.reopen_all(connection, found, _as_of_batch(row.id, time), until)
    done = end >= row.total
    values = {"reopened": None if done else end, "progressed_at": micros(now())}
    moved = await connection.execute(MOVE_ON, {"key": row.id, "here": row.reopened, **values})
    if not moved.rowcount:
        raise RolledBack
    return not done


def _as_of_batch(batch_id: str, time: int) -> dict[str, Any]:
    """The columns of a job that its batch runs, also if it had a workflow of its own meanwhile."""
    return {
        "status": JobStatus.QUEUED.value,
        "batched": True,
        "workflow_id": batch_id,
        "workflow_run_id": None,
        "workflow_started_at": time,
    }
