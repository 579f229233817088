"""Statements on a job's row that several modules of this room need."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import ChatRequest
from chatjobs.errors import JobNotFound
from domain.text import clean
from storage.engine.schema import jobs, micros, requests, responses, tenant_endpoints, transcript

HAS_ENDPOINTS = exists().where(tenant_endpoints.c.tenant == jobs.c.tenant).label("has_endpoints")
"""Whether the tenant of a locked row has endpoints of all jobs: a look into a small table, and no statement more."""
# Built once: building a statement takes as long as running it, and these run for every job.
LOCKED = select(jobs, HAS_ENDPOINTS).where(jobs.c.id == bindparam("key")).with_for_update(of=jobs)
LOCKED_ALL = (
    select(jobs, HAS_ENDPOINTS)
    .where(jobs.c.id.in_(bindparam("keys", expanding=True)))
    .order_by(jobs.c.id)
    .with_for_update(of=jobs)
)
CHANGED = update(jobs).where(jobs.c.id == bindparam("key"))
"""Executed with ``key`` and the columns to set."""
REQUEST = select(requests.c.body).where(requests.c.job_id == bindparam("key"))
RESPONSE = select(responses.c.settings, responses.c.kept).where(responses.c.job_id == bindparam("key"))


def by_id(job_id: str, tenant: str | None) -> Any:
    query = select(jobs).where(jobs.c.id == clean(job_id))  # an id that databases refuse finds no job
    return query.where(jobs.c.tenant == tenant) if tenant is not None else query


async def locked(connection: AsyncConnection, job_id: str, tenant: str | None = None) -> Row[Any]:
    row = (await connection.execute(LOCKED, {"key": clean(job_id)})).first()
    if row is None or tenant not in (None, row.tenant):
        raise JobNotFound
    return row


async def store_tail(connection: AsyncConnection, row: Row[Any]) -> None:
    """Move the tail of the row, which the caller clears, to the transcript: a new writer starts without a tail."""
    if row.tail:
        await connection.execute(
            insert(transcript).values(
                job_id=row.id,
                epoch=row.epoch,
                position=row.position,
                channel=row.tail_channel,
                text=row.tail,
                token_count=row.token_count,
            )
        )


def queue_end(created_at: int, request: ChatRequest) -> int:
    """Until when (microseconds) a job may wait for its first call of the model."""
    begin = created_at if request.start_at is None else max(created_at, micros(request.start_at))
    return begin + round(request.limits.queue_seconds * 1_000_000)
