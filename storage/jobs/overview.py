"""What the page shows of all jobs of a tenant: their numbers, which have changed, and how they ended over time.

None of it reads a text. The statements stay on the indexes: a tenant's newest jobs, its jobs by status, the open ones,
and the ended ones by time. The number of ended jobs, and the figures of long times, were added up before (rollups.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Select, and_, bindparam, case, cast, func, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import JobStatus
from domain.values import StoredJob
from storage.engine.database import Database
from storage.engine.schema import attempts, jobs, micros, moment
from storage.jobs import mapping
from storage.jobs.rollups import SPAN, Rollups, SpanFigures, ended_counts_of, percentile

MILLISECOND = 1_000
OPEN = [status.value for status in JobStatus if not status.terminal]
OPEN_COUNTS = (
    select(jobs.c.status, func.count())
    .where(jobs.c.tenant == bindparam("of"), jobs.c.status.in_(OPEN))
    .group_by(jobs.c.status)
)


class Changed(NamedTuple):
    """Jobs without their texts, newest first. ``more``: further jobs exceeded the limit."""

    jobs: Sequence[StoredJob]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeBucket:
    """The jobs that ended within one span of time from ``at``; times are in milliseconds, None where there is nothing.

    ``latency`` is from acceptance to the end, of jobs that have an answer; ``first_token`` is one call's.
    """

    at: datetime
    completed: int = 0
    incomplete: int = 0
    failed: int = 0
    cancelled: int = 0
    tokens: int = 0
    latency_p50: int | None = None
    latency_p95: int | None = None
    first_token_p50: int | None = None


class Overview:
    """Reads of all jobs of a tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rollups = Rollups(database)

    async def counts(self, tenant: str) -> dict[JobStatus, int]:
        """Number of jobs per status. Raises StorageUnavailable."""
        async with self._database.read() as connection:
            waiting = (await connection.execute(OPEN_COUNTS, {"of": tenant})).all()
            ended = await ended_counts_of(connection, tenant)
        found = {**dict(waiting), **ended}
        return {status: found.get(status.value, 0) for status in JobStatus}

    async def changed(self, tenant: str, since: datetime, *, limit: int) -> Changed:
        """Jobs that were accepted, progressed or ended at or after ``since``. Raises StorageUnavailable."""
        ids = _changed_ids(tenant, micros(since)).subquery()
        query = mapping.listed().where(jobs.c.id.in_(select(ids.c.id)))
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            found = await mapping.summaries(connection, rows[:limit])
        return Changed(found, more=len(rows) > limit)

    async def stats(self, tenant: str, *, until: datetime, bucket: timedelta, count: int) -> Sequence[OutcomeBucket]:
        """``count`` buckets without a gap, oldest first; the last one holds ``until``. Raises StorageUnavailable.

        Buckets that are a multiple of rollups.SPAN are made of rollups: their percentiles are off by up to 4 %.
        """
        width = bucket // timedelta(microseconds=1)
        begin = (micros(until) // width - count + 1) * width
        if not bucket % SPAN:
            return await self._rolled(tenant, begin, width, count)
        buckets: dict[int, dict[str, Any]] = {number: {} for number in range(begin // width, begin // width + count)}
        async with self._database.read() as connection:
            for query in (_outcomes(tenant, begin, width), _latencies(tenant, begin, width)):
                await _fill(connection, query, buckets)
            await _fill(connection, _first_tokens(tenant, begin, width), buckets)
        return [OutcomeBucket(at=moment(number * width), **values) for number, values in buckets.items()]

    async def _rolled(self, tenant: str, begin: int, width: int, count: int) -> Sequence[OutcomeBucket]:
        found = [SpanFigures() for _ in range(count)]
        for at, stored in await self._rollups.read(tenant, begin):
            if at < begin + count * width:  # the machine that ended the job has its clock ahead
                found[(at - begin) // width].join(stored)
        return [_bucket(begin + number * width, figures) for number, figures in enumerate(found)]


def _bucket(at: int, figures: SpanFigures) -> OutcomeBucket:
    return OutcomeBucket(
        at=moment(at),
        **figures.numbers,
        latency_p50=percentile(figures.latencies, 50),
        latency_p95=percentile(figures.latencies, 95),
        first_token_p50=percentile(figures.first_tokens, 50),
    )


def _changed_ids(tenant: str, since: int) -> Any:
    """A union of three queries in place of one with OR, so that each uses its index."""
    found, mine = select(jobs.c.id), jobs.c.tenant == tenant
    return union(
        found.where(mine, jobs.c.created_at >= since),
        found.where(_ended(tenant, since)),
        found.where(mine, jobs.c.status.in_(OPEN), jobs.c.progressed_at >= since),
    )


async def _fill(connection: AsyncConnection, query: Select[Any], buckets: dict[int, dict[str, Any]]) -> None:
    """Add the columns of each row to the bucket whose number the row begins with."""
    for row in (await connection.execute(query)).mappings():
        values = dict(row)
        found = buckets.get(values.pop("number"))
        if found is not None:  # the machine that ended the job has its clock ahead
            found |= values


def _ended(tenant: str, begin: int) -> Any:
    """A condition that has SQLite begin at the time in the index, not read all jobs of the tenant."""
    mine = func.coalesce(jobs.c.tenant, "") == tenant
    return and_(mine, jobs.c.completed_at.is_not(None), jobs.c.completed_at >= begin)


def _number(width: int) -> Any:
    """The number of the bucket in which a job ended. The remainder goes first: ``/`` differs between the databases."""
    return ((jobs.c.completed_at - jobs.c.completed_at % width) // width).label("number")


def _outcomes(tenant: str, begin: int, width: int) -> Select[Any]:
    number = _number(width)
    counts = [
        _sum(case((jobs.c.status == status.value, 1), else_=0)).label(status.value)
        for status in JobStatus
        if status.terminal
    ]
    tokens = _sum(jobs.c.token_count).label("tokens")
    return select(number, *counts, tokens).where(_ended(tenant, begin)).group_by(number)


def _sum(value: Any) -> Any:
    return cast(func.sum(value), BigInteger)  # Postgres adds integers up to a numeric


def _latencies(tenant: str, begin: int, width: int) -> Select[Any]:
    answered = jobs.c.status.in_([JobStatus.COMPLETED.value, JobStatus.INCOMPLETE.value])
    took = ((jobs.c.completed_at - jobs.c.created_at) / float(MILLISECOND)).label("value")
    values = select(_number(width), took).where(_ended(tenant, begin), answered)
    return _percentiles(values, latency_p50=50, latency_p95=95)


def _first_tokens(tenant: str, begin: int, width: int) -> Select[Any]:
    calls = jobs.join(attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.first_token_ms.is_not(None)))
    values = select(_number(width), attempts.c.first_token_ms.label("value")).select_from(calls)
    return _percentiles(values.where(_ended(tenant, begin)), first_token_p50=50)


def _percentiles(values: Select[Any], **wanted: int) -> Select[Any]:
    """Nearest-rank percentiles of ``value`` per ``number``: SQLite has no function for them."""
    found = values.subquery()
    ranked = select(
        found.c.number,
        found.c.value,
        func.row_number().over(partition_by=found.c.number, order_by=found.c.value).label("rank"),
        func.count().over(partition_by=found.c.number).label("size"),
    ).subquery()
    columns = [
        # The smallest value whose rank is at least that part of all.
        cast(func.min(case((ranked.c.rank * 100 >= ranked.c.size * percent, ranked.c.value))), BigInteger).label(name)
        for name, percent in wanted.items()
    ]
    return select(ranked.c.number, *columns).group_by(ranked.c.number)
