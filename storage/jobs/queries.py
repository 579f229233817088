"""Reads of jobs, one by one and in lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, select

from chatjobs.contracts import ChatRequest, JobStatus
from chatjobs.errors import ContentDeleted, JobNotFound
from domain.text import clean, clean_json
from domain.values import RunRef, StoredJob
from storage.engine.database import Database
from storage.engine.schema import jobs, micros, results
from storage.jobs import mapping
from storage.jobs.rows import REQUEST, by_id
from storage.rate_limits.limiter import Limiter


class JobQueries:
    """``limiter`` knows the place of a waiting job in the queue for its model; without it no place is shown.

    In all methods ``tenant`` is None for operators, who see all jobs.
    """

    def __init__(self, database: Database, limiter: Limiter | None = None) -> None:
        self._database = database
        self._limiter = limiter

    async def get(self, job_id: str, tenant: str | None = None) -> StoredJob:
        """A job with its attempts and deliveries, in one snapshot. Raises JobNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            if row is None:
                raise JobNotFound
            job = await mapping.job(connection, row)
            if job.status.terminal or self._limiter is None:
                return job
            places = await self._limiter.places(connection, [job.job_id])
        return job.model_copy(update={"queue": places.get(job.job_id)})

    async def outline(self, job_id: str, tenant: str | None = None) -> StoredJob:
        """A job without its texts, attempts and deliveries, whatever their size: one small read. Raises JobNotFound."""
        query = mapping.listed().add_columns(results.c.tool_calls).where(jobs.c.id == clean(job_id))
        async with self._database.single() as connection:
            row = (await connection.execute(query if tenant is None else query.where(jobs.c.tenant == tenant))).first()
        if row is None:
            raise JobNotFound
        job = mapping.summary(row)
        calls = mapping.TOOL_CALLS.validate_json(row.tool_calls) if row.tool_calls else None
        return job.model_copy(update={"tool_calls": calls}) if calls else job

    async def run_of(self, job_id: str) -> RunRef:
        """The workflow run of a job, whether it was started yet or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, None))).first()
        return RunRef(job_id) if row is None else mapping.run_of(row)

    async def exists(self, job_id: str, tenant: str | None = None) -> bool:
        async with self._database.read() as connection:
            return (await connection.execute(by_id(job_id, tenant))).first() is not None

    async def request(self, job_id: str, tenant: str | None = None) -> ChatRequest:
        """The request of a job. Raises JobNotFound (also where the request was not kept), ContentDeleted."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            body = await connection.scalar(REQUEST, {"key": clean(job_id)})
        if row is not None and row.deleted_at is not None:
            raise ContentDeleted
        if row is None or body is None:
            raise JobNotFound
        return ChatRequest.model_validate_json(body)

    async def list(
        self,
        *,
        tenant: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> Sequence[StoredJob]:
        """Jobs, newest first, without their texts. ``before``: (created_at, id) of the last job of the page before."""
        query = mapping.listed().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        conditions = {jobs.c.tenant: tenant, jobs.c.status: status and status.value, jobs.c.model: model}
        for column, value in conditions.items():
            query = query.where(column == value) if value is not None else query
        for key, value in clean_json(dict(metadata or {})).items():
            query = query.where(self._has(key, value))
        if since:
            query = query.where(jobs.c.created_at >= micros(since))
        if until:
            query = query.where(jobs.c.created_at < micros(until))
        if before:
            earlier = and_(jobs.c.created_at == before[0], jobs.c.id < before[1])
            query = query.where(or_(jobs.c.created_at < before[0], earlier))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [mapping.summary(row) for row in rows]

    def _has(self, key: str, value: str) -> Any:
        """A condition on metadata. SQLite's JSON paths cannot express every key."""
        if not self._database.is_sqlite:
            return jobs.c.metadata[key].as_string() == value
        pairs = func.json_each(jobs.c.metadata).table_valued("key", "value")
        return select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists()

    async def empty(self) -> bool:
        """Whether there is no job at all."""
        async with self._database.read() as connection:
            return (await connection.execute(select(jobs.c.id).limit(1))).first() is None
