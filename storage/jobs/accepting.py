"""Accepting jobs and noting that they were started, many in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, bindparam, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import USUAL_PRIORITY, ChatRequest, JobStatus, Limits
from chatjobs.errors import ChatJobsError, IdempotencyMismatch, JobIdConflict
from domain.text import clean_json
from domain.values import AcceptedJob, NewJob
from storage.engine.database import Database, RolledBack, reconnecting, retried
from storage.engine.group_commit import Group
from storage.engine.schema import jobs, micros, now, requests

INSERT_ON_SQLITE = sqlite.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
INSERT_ON_POSTGRES = postgresql.insert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
REQUESTS = insert(requests)
USUAL_LIMITS = Limits()
SAME_KEY = and_(jobs.c.tenant == bindparam("tenant_of"), jobs.c.idempotency_key == bindparam("key"))
EXISTING = select(jobs).where(or_(SAME_KEY, jobs.c.id == bindparam("id_of")))
STARTED = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("keys", expanding=True)), jobs.c.workflow_started_at.is_(None))
    .values(workflow_started_at=bindparam("time"))
)


class _New(NamedTuple):
    """``order`` is the same in every process: transactions that want the same keys take them in turn."""

    order: tuple[str, str]
    job: NewJob
    body: str | None
    time: int


class Acceptor:
    """The group commits of one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._new: Group[_New, AcceptedJob] = Group(self._insert_all)
        self._begun: Group[str, None] = Group(self._mark_all)

    async def accept(self, job: NewJob) -> AcceptedJob:
        """Commit a job, durably. See JobStore.accept."""
        self._database.not_writing()
        body = job.request.model_dump_json(exclude_unset=True) if job.request is not None else None
        new = _New((job.idempotency_key or "", job.job_id), job, body, micros(now()))
        return await self._new.add(new, weight=len(body or ""))

    async def started(self, job_id: str) -> None:
        """Its workflow runs: the sweeper need not start it."""
        self._database.not_writing()
        await self._begun.add(job_id)

    @reconnecting
    @retried
    async def _insert_all(self, group: Sequence[_New]) -> Sequence[AcceptedJob | ChatJobsError]:
        async with self._database.write() as connection:
            found = {id(new): await self._insert(connection, new) for new in sorted(group, key=attrgetter("order"))}
        return [found[id(new)] for new in group]

    async def _insert(self, connection: AsyncConnection, new: _New) -> AcceptedJob | ChatJobsError:
        """Insert first and look afterwards: of 100 parallel posts with one key exactly one inserts."""
        job, values = new.job, _row(new.job, new.time)
        row = await connection.execute(INSERT_ON_SQLITE if self._database.is_sqlite else INSERT_ON_POSTGRES, values)
        if row.first() is None:
            return await _existing(connection, new)
        if new.body is not None:
            await connection.execute(REQUESTS, {"job_id": job.job_id, "body": new.body})
        return AcceptedJob(
            job_id=job.job_id,
            request_id=job.request_id,
            status=JobStatus.QUEUED,
            created=True,
            tenant=job.tenant,
            model=values["model"],
            replay_of=job.replay_of,
            priority=values["priority"],
        )

    @retried
    async def _mark_all(self, group: Sequence[str]) -> Sequence[None]:
        async with self._database.write("fast") as connection:
            await connection.execute(STARTED, {"keys": sorted(set(group)), "time": micros(now())})
        return [None] * len(group)


async def _existing(connection: AsyncConnection, new: _New) -> AcceptedJob | ChatJobsError:
    job = new.job
    values = {"tenant_of": job.tenant, "key": job.idempotency_key, "id_of": job.job_id}
    found = (await connection.execute(EXISTING, values)).all()
    if not found:
        raise RolledBack("The job that was in the way has just been removed; try again")
    mine = [r for r in found if r.tenant == job.tenant]  # another tenant's keys are no concern of this one
    keyed = next((r for r in mine if job.idempotency_key and r.idempotency_key == job.idempotency_key), None)
    row = keyed or found[0]
    if row.tenant != job.tenant or not job.repeats(row.body_hash):
        return IdempotencyMismatch() if keyed else JobIdConflict()
    if (row.id, row.request_id, row.created_at) == (job.job_id, job.request_id, new.time):
        # Our own, committed over a connection that was cut before it could say so.
        return AcceptedJob(
            row.id, row.request_id, JobStatus(row.status), True, row.tenant, row.model, row.replay_of, row.priority
        )
    if keyed is None and not job.started:
        return JobIdConflict()
    return AcceptedJob(
        row.id, row.request_id, JobStatus(row.status), False, row.tenant, row.model, row.replay_of, row.priority
    )


def _found(row: Row[Any], *, created: bool) -> AcceptedJob:
    return AcceptedJob(
        job_id=row.id,
        request_id=row.request_id,
        status=JobStatus(row.status),
        created=created,
        tenant=row.tenant,
        model=row.model,
        replay_of=row.replay_of,
        priority=row.priority,
    )


def queue_end(created_at: int, request: ChatRequest) -> int:
    """Until when a job may wait for the first call of the model."""
    return created_at + round(request.limits.queue_seconds * 1_000_000)


def _row(job: NewJob, time: int) -> dict[str, Any]:
    webhook = job.request.target() if job.request else None
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
        "priority": job.request.priority if job.request else USUAL_PRIORITY,
        "max_lost": job.request.limits.max_lost if job.request else USUAL_LIMITS.max_lost,
        "batch_id": job.batch_id,
        "workflow_id": job.run.workflow_id if job.run else None,
        "workflow_run_id": job.run.run_id if job.run else None,
        "status": JobStatus.QUEUED.value,
        "created_at": time,
        "workflow_started_at": time if job.started else None,
        "progressed_at": time,
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
