"""Reads of batches and of their output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import bindparam, func, select, tuple_

from chatjobs.contracts import Batch, BatchProgress, BatchStatus, ChatResult, JobStatus, Usage
from chatjobs.errors import BatchNotFound
from domain.prices import Spend
from domain.text import clean
from storage.batches import mapping
from storage.batches.drafts import DRAFT
from storage.batches.runs import BY_ID
from storage.batches.tally import BatchTally
from storage.engine.database import Database
from storage.engine.schema import attempts, batch_items, batches, jobs, micros, results
from storage.jobs import mapping as job_mapping

OUTPUT_AT_ONCE = 200
"""Items that are read at once for an output."""
LARGEST_PAGE = 4 * 1024 * 1024
"""Characters of answers that are read at once, about: an item's answer may be long."""
RUNNING = (
    select(jobs.c.batch_id, func.count())
    .where(jobs.c.batch_id.in_(bindparam("keys", expanding=True)), jobs.c.status == JobStatus.IN_PROGRESS.value)
    .group_by(jobs.c.batch_id)
)
ENDED = batch_items.join(jobs, jobs.c.id == batch_items.c.job_id).join(results, results.c.job_id == jobs.c.id)
ANSWERED = (JobStatus.COMPLETED.value, JobStatus.INCOMPLETE.value)
FAILED = (JobStatus.FAILED.value, JobStatus.CANCELLED.value)
SIZES = (
    select(batch_items.c.number, func.coalesce(func.length(results.c.content), 0).label("size"))
    .select_from(ENDED)
    .where(batch_items.c.batch_id == bindparam("key"), batch_items.c.number >= bindparam("first"))
    .where(jobs.c.status.in_(bindparam("statuses", expanding=True)))
    .order_by(batch_items.c.number)
    .limit(OUTPUT_AT_ONCE)
)
ITEMS = (
    select(
        *(batch_items.c.number, batch_items.c.custom_id),
        jobs,
        *(results.c.content, results.c.reasoning, results.c.tool_calls, results.c.parts, results.c.finish_reason),
        *(results.c.usage, results.c.usage_estimated, results.c.error, results.c.sha256, results.c.extra),
    )
    .select_from(ENDED)
    .where(batch_items.c.batch_id == bindparam("key"))
    .where(batch_items.c.number.between(bindparam("first"), bindparam("last")))
    .where(jobs.c.status.in_(bindparam("statuses", expanding=True)))
    .order_by(batch_items.c.number)
)

SPENT = (
    select(
        func.coalesce(attempts.c.model, jobs.c.model).label("model"),
        *(attempts.c.usage, attempts.c.lane, attempts.c.estimated),
    )
    .select_from(attempts.join(jobs, jobs.c.id == attempts.c.job_id))
    .where(jobs.c.batch_id == bindparam("key"), jobs.c.completed_at.is_not(None), attempts.c.usage.is_not(None))
)
"""A live call has a ``lane``; one without is the result of a batch job of the model's server."""


class OutputItem(NamedTuple):
    """An item that has ended, with its job's outcome."""

    custom_id: str
    result: ChatResult


class BatchCursor(NamedTuple):
    """The last batch of a page."""

    created_at: int
    batch_id: str


class BatchQueries:
    """In all methods ``tenant`` is None for operators, who see all batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, batch_id: str, tenant: str | None = None, *, kind: Literal["replay"] | None = None) -> Batch:
        """A batch, or only one of a kind. Raises BatchNotFound."""
        row, running = await self._read(batch_id, tenant)
        if kind not in (None, row.kind):
            raise BatchNotFound
        return mapping.batch(row, running)

    async def progress(self, batch_id: str) -> BatchProgress:
        """The state of a batch. Raises BatchNotFound."""
        row, running = await self._read(batch_id, None)
        return mapping.progress(row, running)

    async def _read(self, batch_id: str, tenant: str | None) -> tuple[Any, int]:
        async with self._database.read() as connection:
            row = (await connection.execute(BY_ID, {"key": clean(batch_id)})).first()
            if row is None or tenant not in (None, row.tenant):
                raise BatchNotFound
            running = 0
            if _has_open(row):
                found = (await connection.execute(RUNNING, {"keys": [row.id]})).first()
                running = found[1] if found else 0
        return row, running

    async def list(
        self,
        *,
        tenant: str | None = None,
        kind: Literal["replay"] | None = None,
        status: BatchStatus | None = None,
        since: datetime | None = None,
        before: BatchCursor | None = None,
        limit: int = 50,
    ) -> Sequence[Batch]:
        """Batches, newest first."""
        query = select(batches).where(batches.c.status != DRAFT)
        query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(batches.c.tenant == tenant)
        if kind is not None:
            query = query.where(batches.c.kind == kind)
        if status is not None:
            query = query.where(batches.c.status == status.value)
        if since is not None:
            query = query.where(batches.c.created_at >= micros(since))
        if before is not None:
            query = query.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(*before))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            still_open = [row.id for row in rows if _has_open(row)]
            found = (await connection.execute(RUNNING, {"keys": still_open})).all() if still_open else []
        running: dict[str, int] = dict(tuple(row) for row in found)
        return [mapping.batch(row, running.get(row.id, 0)) for row in rows]

    async def spends(self, batch: Batch) -> Sequence[Spend]:
        """The tokens of each call of a batch's jobs that have ended. Raises StorageUnavailable."""
        async with self._database.read() as connection:
            rows = (await connection.execute(SPENT, {"key": batch.batch_id})).all()
        sent = batch.lane == "batch"
        return [
            Spend(row.model, Usage.model_validate_json(row.usage), sent and row.lane is None, row.estimated)
            for row in rows
        ]

    async def output(self, batch_id: str, *, errors: bool = False) -> AsyncIterator[Sequence[OutputItem]]:
        """The items of a batch that have an answer, or with ``errors`` those that ended without one, in their order, in
        pages whose size does not depend on the batch's. Each item is there at most once."""
        statuses, first = list(FAILED if errors else ANSWERED), 0
        while True:
            values = {"key": batch_id, "first": first, "statuses": statuses}
            async with self._database.read() as connection:
                sizes = (await connection.execute(SIZES, values)).all()
                if not sizes:
                    return
                last = _last_of_page(sizes)
                rows = (await connection.execute(ITEMS, {**values, "last": last})).all()
            yield [OutputItem(row.custom_id, _result(row)) for row in rows]
            first = last + 1


def _has_open(row: Any) -> bool:
    """Whether jobs of a batch have not ended: also after the batch's end, if one of them was resumed."""
    return row.completed_at is None or BatchTally.read(row.tally).ended < row.total


def _result(row: Any) -> ChatResult:
    return ChatResult(**job_mapping.head(row), **job_mapping.outcome(row))


def _last_of_page(sizes: Sequence[Any]) -> int:
    """The number of the last item whose answer fits the page."""
    characters = 0
    last = int(sizes[0].number)
    for number, size in sizes:
        characters += size
        if characters > LARGEST_PAGE and number > sizes[0].number:
            break
        last = number
    return last
