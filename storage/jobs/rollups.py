"""Numbers of ended jobs that are kept up to date, so that nobody has to count a million rows.

Triggers write a row of ``ended_changes`` for each job that is sealed, reopened or removed (migration 0010), and nothing
that another transaction also writes. ``Rollups.fold`` adds these rows to the number of jobs per status and to the
rollups that the charts of long windows are made of. Whatever is not folded yet is counted from the changes themselves,
so that the numbers are exact at any time; charts lack it until it is folded.

A job that is removed, or whose content is deleted, stays in the charts: they show what happened. The numbers per status
are those of the jobs that are there.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, func, select, text, union_all
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import JobStatus
from storage.engine.database import Database, retried
from storage.engine.schema import attempts, ended_changes, ended_counts, ended_rollups, micros, now

SPAN = timedelta(minutes=5)
"""The time that one rollup covers. Windows of the charts whose buckets are shorter are computed from the jobs."""
SPAN_MICROS = SPAN // timedelta(microseconds=1)
KEPT = timedelta(days=8)
"""Rollups are kept for somewhat longer than the longest window."""
MOST_AT_ONCE = 500
"""Changes that one transaction folds: on SQLite it takes some milliseconds, in which nobody else writes."""
GROWTH = 1.08
"""The bins of a histogram grow by this factor. A percentile is given as the geometric mean of its bin's ends, which is
at most 4 % away from the true one."""
LOG_GROWTH = math.log(GROWTH)
ANSWERED = (JobStatus.COMPLETED.value, JobStatus.INCOMPLETE.value)
ENDED = [status.value for status in JobStatus if status.terminal]
FOLD_LOCK = text("SELECT pg_try_advisory_xact_lock(7234)")

CHANGES = select(ended_changes).where(ended_changes.c.completed_at <= bindparam("until"))
CHANGES = CHANGES.order_by(ended_changes.c.id).limit(MOST_AT_ONCE)
DONE = delete(ended_changes).where(ended_changes.c.id.in_(bindparam("ids", expanding=True)))
FIRST_TOKENS = select(attempts.c.job_id, attempts.c.started_at, attempts.c.first_token_ms).where(
    attempts.c.job_id.in_(bindparam("ids", expanding=True)), attempts.c.first_token_ms.is_not(None)
)
ROLLUP = select(ended_rollups.c.figures).where(
    ended_rollups.c.tenant == bindparam("of"), ended_rollups.c.at == bindparam("time")
)
COUNTS = (
    select(ended_counts.c.status, ended_counts.c.jobs).where(ended_counts.c.tenant == bindparam("of")),
    select(ended_changes.c.status, ended_changes.c.counted).where(ended_changes.c.tenant == bindparam("of")),
)
_ALL = union_all(*COUNTS).subquery()
ENDED_COUNTS = select(_ALL.c.status, func.sum(_ALL.c.jobs)).group_by(_ALL.c.status)


def bin_of(value: float) -> int:
    """The number of the bin of a positive value; 0 for values up to 1."""
    return math.ceil(math.log(value) / LOG_GROWTH) if value > 1 else 0


def value_of(number: int) -> int:
    """The value that stands for all of a bin."""
    return round(GROWTH ** (number - 0.5)) if number else 1


class SpanFigures:
    """The figures of the jobs that ended within some time: how many with which status, tokens, and histograms of
    latency and time to the first token in milliseconds, as the number of values per bin."""

    def __init__(self, stored: str | None = None) -> None:
        self.numbers: dict[str, int] = {}
        self.latencies: dict[str, int] = {}
        self.first_tokens: dict[str, int] = {}
        if stored:
            self.join(stored)

    def stored(self) -> str:
        """As JSON."""
        parts = (self.numbers, self.latencies, self.first_tokens)
        return json.dumps([{name: count for name, count in part.items() if count > 0} for part in parts])

    def join(self, stored: str) -> None:
        """Add what ``stored`` returned."""
        for part, more in zip((self.numbers, self.latencies, self.first_tokens), json.loads(stored), strict=True):
            for name, count in more.items():
                part[name] = part.get(name, 0) + count

    def add(self, change: Row[Any], first_tokens: Iterable[int]) -> None:
        _add(self.numbers, change.status, change.charted)
        _add(self.numbers, "tokens", change.charted * change.tokens)
        if change.status in ANSWERED:
            _add(self.latencies, str(bin_of((change.completed_at - change.created_at) / 1_000)), change.charted)
        for value in first_tokens:
            _add(self.first_tokens, str(bin_of(value)), change.charted)


def _add(part: dict[str, int], name: str, count: int) -> None:
    part[name] = part.get(name, 0) + count


def percentile(histogram: Mapping[str, int], percent: int) -> int | None:
    """The nearest-rank percentile, up to the width of its bin; None for an empty histogram."""
    size, seen = sum(histogram.values()), 0
    for number in sorted(map(int, histogram)):
        seen += histogram[str(number)]
        if seen * 100 >= size * percent:
            return value_of(number)
    return None


class _Key(NamedTuple):
    tenant: str
    at: int


class Rollups:
    """Folds changes, and reads what was folded."""

    def __init__(self, database: Database) -> None:
        self._database = database
        insert = sqlite.insert if database.is_sqlite else postgresql.insert
        counted = insert(ended_counts)
        self._count = counted.on_conflict_do_update(
            index_elements=[ended_counts.c.tenant, ended_counts.c.status],
            set_={"jobs": ended_counts.c.jobs + counted.excluded.jobs},
        )
        rolled = insert(ended_rollups)
        self._roll = rolled.on_conflict_do_update(
            index_elements=[ended_rollups.c.tenant, ended_rollups.c.at], set_={"figures": rolled.excluded.figures}
        )

    @retried
    async def fold(self, *, older_than: timedelta = timedelta(0)) -> int:
        """Fold up to MOST_AT_ONCE changes, and return their number. Several processes may do it at once.

        ``older_than``: only changes from before that. Raises StorageUnavailable.
        """
        until = {"until": micros(now() - older_than)}
        async with self._database.single() as connection:
            if (await connection.execute(CHANGES.limit(1), until)).first() is None:
                return 0
        async with self._database.write("fast") as connection:
            if not self._database.is_sqlite and not await connection.scalar(FOLD_LOCK):
                return 0  # another process is folding
            changes = (await connection.execute(CHANGES, until)).all()
            if changes:
                await self._add_counts(connection, changes)
                await self._add_figures(connection, [change for change in changes if change.charted])
                await connection.execute(DONE, {"ids": [change.id for change in changes]})
        return len(changes)

    async def _add_counts(self, connection: AsyncConnection, changes: Sequence[Row[Any]]) -> None:
        sums: Counter[tuple[str, str]] = Counter()
        for change in changes:
            sums[change.tenant, change.status] += change.counted
        rows = [{"tenant": t, "status": status, "jobs": n} for (t, status), n in sorted(sums.items()) if n]
        if rows:
            await connection.execute(self._count, rows)

    async def _add_figures(self, connection: AsyncConnection, changes: Sequence[Row[Any]]) -> None:
        spans: dict[_Key, list[Row[Any]]] = defaultdict(list)
        oldest = micros(now() - KEPT)
        for change in changes:
            if change.completed_at >= oldest:
                spans[_Key(change.tenant, change.completed_at // SPAN_MICROS * SPAN_MICROS)].append(change)
        tokens = await _first_tokens(connection, changes)
        for key in sorted(spans):
            figures = SpanFigures(await connection.scalar(ROLLUP, {"of": key.tenant, "time": key.at}))
            for change in spans[key]:
                # Of a job that was reopened, the calls that belonged to this end.
                calls = (value for started, value in tokens[change.job_id] if started <= change.completed_at)
                figures.add(change, calls)
            await connection.execute(self._roll, {**key._asdict(), "figures": figures.stored()})

    async def prune(self) -> None:
        """Delete the rollups that no window shows any more. Raises StorageUnavailable."""
        async with self._database.write("fast") as connection:
            await connection.execute(delete(ended_rollups).where(ended_rollups.c.at < micros(now() - KEPT)))

    async def read(self, tenant: str, begin: int) -> Sequence[tuple[int, str]]:
        """The rollups of a tenant from a time on (microseconds), each with the time at which it begins, for
        ``SpanFigures.join``. Raises StorageUnavailable."""
        query = select(ended_rollups.c.at, ended_rollups.c.figures)
        query = query.where(ended_rollups.c.tenant == tenant, ended_rollups.c.at >= begin)
        async with self._database.read() as connection:
            return [(at, figures) for at, figures in (await connection.execute(query)).all()]


async def _first_tokens(connection: AsyncConnection, changes: Sequence[Row[Any]]) -> dict[str, list[tuple[int, int]]]:
    """For each job, when its calls began (microseconds) and after how many milliseconds their first token came."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    ids = sorted({change.job_id for change in changes})
    for job_id, started, value in (await connection.execute(FIRST_TOKENS, {"ids": ids})).all():
        found[job_id].append((started, value))
    return found


async def ended_counts_of(connection: AsyncConnection, tenant: str) -> Mapping[str, int]:
    """The number of ended jobs per status."""
    return {status: int(jobs) for status, jobs in (await connection.execute(ENDED_COUNTS, {"of": tenant})).all()}
