"""Accepting jobs, and recording that their workflows were started: many in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import USUAL_PRIORITY, JobStatus, Limits
from chatjobs.errors import ChatJobsError, IdempotencyMismatch, JobIdConflict
from domain.text import clean_json
from domain.values import JobHandle, NewJob
from storage.engine.database import Database, RolledBack, reconnecting, retried
from storage.engine.group_commit import Group
from storage.engine.schema import jobs, micros, now, requests, responses
from storage.jobs.mapping import HANDLE, handle
from storage.jobs.rows import queue_end

INSERT_ON_SQLITE = sqlite.insert(jobs).on_conflict_do_nothing().returning(*HANDLE)
INSERT_ON_POSTGRES = postgresql.insert(jobs).on_conflict_do_nothing().returning(*HANDLE)
REQUESTS = insert(requests)
RESPONSES = insert(responses)
USUAL_LIMITS = Limits()
NEVER = -1
"""The time of acceptance of a job that was not inserted."""
SAME_KEY = and_(jobs.c.tenant == bindparam("tenant_of"), jobs.c.idempotency_key == bindparam("key"))
EXISTING = select(jobs).where(or_(SAME_KEY, jobs.c.id == bindparam("id_of")))
STARTED = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("keys", expanding=True)), jobs.c.workflow_started_at.is_(None))
    .where(jobs.c.revision == bindparam("its_revision"))
    .values(workflow_started_at=bindparam("time"))
)


class AcceptStore:
    """Inserts jobs, and records that their workflows were started; the changes of one moment share a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._new: Group[tuple[NewJob, int], JobHandle] = Group(self._insert_all)
        self._begun: Group[tuple[str, int], None] = Group(self._mark_all)

    async def accept(self, job: NewJob) -> JobHandle:
        """Insert a job, durably. A job whose idempotency key is there already, or whose id is, where it comes from its
        own workflow again, is returned as it is.

        Raises IdempotencyMismatch, JobIdConflict, StorageError.
        """
        if job.lacks_history:
            raise ValueError("the messages of the conversation are missing (domain/conversations.py)")
        self._database.not_writing()
        return await self._new.add((job, micros(now())), weight=len(job.request_json or ""))

    async def known(self, job: NewJob) -> JobHandle | None:
        """The job that ``accept`` would return because it is there already; None if ``job`` is new.

        Raises IdempotencyMismatch, JobIdConflict, StorageError.
        """
        async with self._database.single() as connection:
            found = (await connection.execute(EXISTING, _identity(job))).all()
        if not found:
            return None
        known = _same(found, job, NEVER)
        if isinstance(known, ChatJobsError):
            raise known
        return known

    async def workflow_started(self, job_id: str, revision: int = 1) -> None:
        """Record that a job's workflow runs, so that no sweeper starts it. A job that has ended and goes on since is
        of another revision, and is left as it is. Raises StorageError."""
        self._database.not_writing()
        await self._begun.add((job_id, revision))

    @reconnecting
    @retried
    async def _insert_all(self, group: Sequence[tuple[NewJob, int]]) -> Sequence[JobHandle | ChatJobsError]:
        """Insert jobs, each given with the time of its acceptance (microseconds)."""
        # One order in every process: transactions that insert the same keys wait for each other in turn.
        in_order = sorted(group, key=lambda new: (new[0].idempotency_key or "", new[0].job_id))
        async with self._database.write() as connection:
            found = {id(job): await self._insert(connection, job, time) for job, time in in_order}
        return [found[id(job)] for job, _ in group]

    async def _insert(self, connection: AsyncConnection, job: NewJob, time: int) -> JobHandle | ChatJobsError:
        """Insert first and look afterwards: of 100 parallel posts with one key exactly one inserts."""
        statement = INSERT_ON_SQLITE if self._database.is_sqlite else INSERT_ON_POSTGRES
        row = (await connection.execute(statement, _row(job, time))).first()
        if row is None:
            return await _existing(connection, job, time)
        if job.request_json is not None:
            await connection.execute(REQUESTS, {"job_id": job.job_id, "body": job.request_json})
        if job.response is not None:
            form = {"settings": job.response.settings, "kept": job.response.kept}
            await connection.execute(RESPONSES, {"job_id": job.job_id, **form})
        return handle(row, created=True)

    @retried
    async def _mark_all(self, group: Sequence[tuple[str, int]]) -> Sequence[None]:
        async with self._database.write("fast") as connection:
            for revision in sorted({revision for _, revision in group}):
                keys = sorted({job_id for job_id, its in group if its == revision})
                values = {"keys": keys, "its_revision": revision, "time": micros(now())}
                await connection.execute(STARTED, values)
        return [None] * len(group)


async def _existing(connection: AsyncConnection, job: NewJob, time: int) -> JobHandle | ChatJobsError:
    """The job that is in the way of a new one, if it is the same job."""
    found = (await connection.execute(EXISTING, _identity(job))).all()
    if not found:
        raise RolledBack("The job that was in the way has just been removed; try again")
    return _same(found, job, time)


def _identity(job: NewJob) -> dict[str, str | None]:
    return {"tenant_of": job.tenant, "key": job.idempotency_key, "id_of": job.job_id}


def _same(found: Sequence[Row[Any]], job: NewJob, time: int) -> JobHandle | ChatJobsError:
    """The one of the jobs in the way of a new one that is the same job; without such a one the conflict."""
    mine = [r for r in found if r.tenant == job.tenant]  # another tenant's keys are no concern of this one
    keyed = next((r for r in mine if job.idempotency_key and r.idempotency_key == job.idempotency_key), None)
    row = keyed or found[0]
    if row.tenant != job.tenant or not job.repeats(row.body_hash):
        return IdempotencyMismatch() if keyed else JobIdConflict()
    # Inserted by this very call, over a connection that was cut before its answer: request ids of two calls differ.
    own = (row.id, row.request_id, row.created_at) == (job.job_id, job.request_id, time)
    if keyed is None and not own and not job.started:
        return JobIdConflict()
    return handle(row, created=own)


def _row(job: NewJob, time: int) -> dict[str, Any]:
    webhook = job.request.target() if job.request else None
    start_at = micros(job.request.start_at) if job.request and job.request.start_at else None
    return {
        "id": job.job_id,
        "tenant": job.tenant,
        "request_id": job.request_id,
        "idempotency_key": job.idempotency_key,
        "body_hash": job.body_hash,
        "webhook": webhook.model_dump_json() if webhook else None,
        "model": job.request.model if job.request else "",
        "metadata": clean_json(dict(job.request.metadata)) if job.request else {},
        "replay_of": job.replay_of,
        "previous_job_id": job.previous_job_id,
        "thread": job.thread,
        "schedule_id": job.schedule_id,
        "priority": job.request.priority if job.request else USUAL_PRIORITY,
        "max_lost": job.request.limits.max_lost if job.request else USUAL_LIMITS.max_lost,
        "workflow_id": job.run.workflow_id if job.run else None,
        "workflow_run_id": job.run.run_id if job.run else None,
        "status": JobStatus.QUEUED.value,
        "created_at": time,
        "workflow_started_at": time if job.started else None,
        # Before ``start_at`` whatever this machine's clock says: SweepStore.due sees by it that nobody has the job yet.
        "progressed_at": time if start_at is None else min(time, start_at - 1),
        "start_at": start_at,
        "queue_until": queue_end(time, job.request) if job.request else None,
        "fence": 0,
        "epoch": 1,
        "position": 0,
        "token_count": 0,
        "tail": "",
        "tail_channel": 0,
        "attempt": 0,
        "revision": 1,
    }
