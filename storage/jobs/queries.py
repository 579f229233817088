"""Reads of jobs, one by one and in lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypedDict, Unpack

from sqlalchemy import bindparam, func, select

from chatjobs.contracts import ChatRequest, JobStatus, Usage
from chatjobs.errors import ContentDeleted, JobNotFound
from domain.conversations import ConversationTurn
from domain.prices import Spend
from domain.text import clean
from domain.values import ResponseForm, RunRef, StoredJob
from storage.engine.database import Database
from storage.engine.schema import attempts, batches, jobs, results
from storage.jobs import mapping
from storage.jobs.listing import JobFilter, JobList, ListPosition
from storage.jobs.rows import REQUEST, RESPONSE, by_id
from storage.rate_limits.limiter import Limiter

IDS_AT_ONCE = 500
_CALLED = func.coalesce(attempts.c.model, jobs.c.model).label("model")  # attempts of earlier versions do not say
CALLS = (
    select(attempts.c.job_id, _CALLED, attempts.c.usage, attempts.c.lane, batches.c.lane.label("batch_lane"))
    .select_from(attempts.join(jobs, jobs.c.id == attempts.c.job_id))
    .outerjoin(batches, batches.c.id == jobs.c.batch_id)
    .where(attempts.c.job_id.in_(bindparam("ids", expanding=True)), attempts.c.usage.is_not(None))
)
"""Calls that are closed. A live call has a ``lane``; one without is the result of a batch job of the model's server."""


class Filters(TypedDict, total=False):
    """The fields of JobFilter."""

    status: JobStatus | None
    model: str | None
    metadata: Mapping[str, str]
    error_code: str | None
    replay_of: str | None
    thread: str | None
    batch_id: str | None
    schedule_id: str | None
    since: datetime | None
    until: datetime | None
    search: str | None


class JobQueries:
    """``limiter`` knows the place of a waiting job in the queue for its model; without it no place is shown.

    In all methods ``tenant`` is None for operators, who see all jobs.
    """

    def __init__(self, database: Database, limiter: Limiter | None = None) -> None:
        self._database = database
        self._limiter = limiter
        self._list = JobList(database)

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
        ending = (results.c.tool_calls, results.c.parts, results.c.extra)
        query = mapping.listed().add_columns(*ending).where(jobs.c.id == clean(job_id))
        async with self._database.single() as connection:
            row = (await connection.execute(query if tenant is None else query.where(jobs.c.tenant == tenant))).first()
            if row is None:
                raise JobNotFound
            (job,) = await mapping.summaries(connection, [row])
        return job.model_copy(update=mapping.without_text(row))

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

    async def response_form(self, job_id: str) -> ResponseForm | None:
        """What a job's request had as one for a response of OpenAI's; None if it was none, or was deleted."""
        async with self._database.single() as connection:
            row = (await connection.execute(RESPONSE, {"key": clean(job_id)})).first()
        return None if row is None else ResponseForm(row.settings, row.kept)

    async def conversation_turn(self, job_id: str, tenant: str | None = None) -> ConversationTurn:
        """A job as a part of a conversation, in one snapshot. Raises JobNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            if row is None:
                raise JobNotFound
            body = await connection.scalar(REQUEST, {"key": row.id})
            ended = (await connection.execute(select(results).where(results.c.job_id == row.id))).first()
        texts = mapping.outcome(ended) if ended is not None and row.completed_at is not None else {}
        return ConversationTurn(body, StoredJob(**mapping.head(row), **texts, run=mapping.run_of(row)))

    async def list(
        self,
        *,
        tenant: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
        **filters: Unpack[Filters],
    ) -> Sequence[StoredJob]:
        """Jobs, newest first, without their texts. ``before``: (created_at, id) of the last job of the page before;
        ``filters`` are the fields of JobFilter. Raises InvalidRequest, SearchUnavailable."""
        place = ListPosition(*before) if before else None
        return await self._list.page(JobFilter(**filters), tenant=tenant, before=place, limit=limit)

    async def spends(self, job_ids: Sequence[str]) -> Mapping[str, Sequence[Spend]]:
        """The tokens of each closed call of some jobs, by the job's id. Raises StorageUnavailable."""
        found: dict[str, list[Spend]] = {}
        async with self._database.read() as connection:
            for first in range(0, len(job_ids), IDS_AT_ONCE):
                ids = list(job_ids[first : first + IDS_AT_ONCE])
                for row in (await connection.execute(CALLS, {"ids": ids})).all():
                    usage = Usage.model_validate_json(row.usage)
                    batch = row.batch_lane == "batch" and row.lane is None
                    found.setdefault(row.job_id, []).append(Spend(row.model, usage, batch))
        return found

    async def empty(self) -> bool:
        """Whether there is no job at all."""
        async with self._database.read() as connection:
            return (await connection.execute(select(jobs.c.id).limit(1))).first() is None
