"""Lists of jobs: filtered, newest first, in pages.

A list goes along an index in its order until the page is full. Where several filters are given, or one without such an
index, that could pass millions of jobs that the others leave out. So each filter is first asked for its jobs, FEW at
most: if one has no more than that, the list is made of these. If all have more, the first page is not far.

The ids of a page come first, from the narrow rows of ``jobs``; only theirs are joined with what is shown of them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnClause, ColumnElement, Select, cast, column, func, or_, select, text
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import JobStatus
from chatjobs.errors import InvalidRequest, Problem
from domain.errors import SearchUnavailable
from domain.text import clean, clean_json
from domain.timings import Timings
from domain.values import StoredJob
from domain.words import Query, query
from storage.engine.database import Database
from storage.engine.schema import VALUE_CHARACTERS, job_metadata, jobs, micros, search_entries
from storage.jobs import mapping, search

FEW = 2_000
WORDS_AT_ONCE = 200
"""Jobs that other filters found and whose words are compared together."""
MATCHES_AT_ONCE = 1_000
"""Jobs with the words of a search that are looked through together."""
DISORDER = timedelta(minutes=1) // timedelta(microseconds=1)
"""The search's index has jobs in the order in which they were indexed: that of their acceptance but for this time."""
TOO_BROAD = "finds so many jobs that the other filters leave out; add words, or narrow the time with since and until"
MATCHES = """
    SELECT search_entries.number, search_entries.job_id
    FROM job_words CROSS JOIN search_entries ON search_entries.number = job_words.rowid
    WHERE job_words MATCH :query AND job_words.rowid < :before AND job_words.rowid >= :since
    AND search_entries.job_id IS NOT NULL
    ORDER BY job_words.rowid DESC LIMIT :most"""
"""CROSS JOIN: the index of words comes first, in its order (sqlite.org/optoverview.html, 7)."""
MATCH: tuple[ColumnClause[Any], ...] = (column("number"), column("job_id"))
NEWEST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are listed; None: all. ``search``: words of prompt or answer, all of which must be there."""

    status: JobStatus | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    error_code: str | None = None
    replay_of: str | None = None
    batch_id: str | None = None
    schedule_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None


class ListPosition(NamedTuple):
    """The place of a job in a list: when it was accepted (microseconds), and its id."""

    created_at: int
    job_id: str


class JobList:
    """Finds the jobs of one page. ``tenant`` None: of all tenants, one after the other."""

    def __init__(self, database: Database, timings: Timings = Timings()) -> None:
        self._database = database
        self._search_seconds = timings.search_seconds

    async def page(
        self, chosen: JobFilter, *, tenant: str | None, before: ListPosition | None, limit: int
    ) -> Sequence[StoredJob]:
        """Up to ``limit`` jobs after the one at ``before``. Raises InvalidRequest, SearchUnavailable,
        StorageUnavailable."""
        wanted = query(chosen.search or "")
        if chosen.search is not None and not wanted.words:
            return []
        until = time.monotonic() + self._search_seconds
        async with self._database.read() as connection:
            if wanted.words and self._database.is_sqlite and await connection.scalar(text(search.HAS_INDEX)) is None:
                raise SearchUnavailable
            tenants = [tenant] if tenant is not None else await _tenants(connection)
            pages = [
                await _ListPage(
                    connection, chosen, wanted, owner, before, limit, until, sqlite=self._database.is_sqlite
                ).jobs()
                for owner in tenants
            ]
        if len(pages) == 1:
            return pages[0]
        newest = heapq.merge(*pages, key=lambda job: (job.created_at, job.job_id), reverse=True)
        return [job for _, job in zip(range(limit), newest, strict=False)]


async def _tenants(connection: AsyncConnection) -> Sequence[str]:
    """All tenants that have jobs, each found with one step in the index."""
    found: list[str] = []
    while (after := await connection.scalar(_next_tenant(found[-1] if found else ""))) is not None:
        found.append(after)
    return found


def _next_tenant(after: str) -> Select[Any]:
    return select(jobs.c.tenant).where(jobs.c.tenant > after).order_by(jobs.c.tenant).limit(1)


class _ListPage:
    """One page of one tenant's jobs, read in the caller's snapshot. ``until``: when (monotonic) a long search ends."""

    def __init__(
        self,
        connection: AsyncConnection,
        chosen: JobFilter,
        wanted: Query,
        tenant: str,
        before: ListPosition | None,
        limit: int,
        until: float,
        *,
        sqlite: bool,
    ) -> None:
        self._connection = connection
        self._chosen = chosen
        self._wanted = wanted
        self._tenant = tenant
        self._before = before
        self._limit = limit
        self._until = until
        self._sqlite = sqlite
        self._pairs = clean_json(dict(chosen.metadata))

    async def jobs(self) -> list[StoredJob]:
        ids = await self._ids()
        if not ids:
            return []
        rows = (await self._connection.execute(mapping.listed().where(jobs.c.id.in_(ids)))).all()
        found = {job.job_id: job for job in await mapping.summaries(self._connection, rows)}
        return [found[job_id] for job_id in ids if job_id in found]

    async def _ids(self) -> Sequence[str]:
        await self._settle_words()
        sources = self._sources()
        if len(sources) > 1 or self._pairs or self._wanted.words or self._chosen.replay_of:
            for source in sources:
                found = (await self._connection.execute(source.limit(FEW + 1))).scalars().all()
                if len(found) <= FEW:
                    return await self._worded(await self._among(found, self._earlier()))
        if self._wanted.words and self._sqlite:
            return await self._matching()
        ids: Sequence[str] = (await self._connection.execute(self._in_order())).scalars().all()
        return ids

    async def _settle_words(self) -> None:
        """Take the last word of the search as it is, if any job has all words, or else as the beginning of one."""
        if not self._wanted.begins:
            return
        given, self._wanted = self._wanted, self._wanted._replace(begins=False)
        if (await self._connection.execute(self._found_words().limit(1))).first() is None:
            self._wanted = given

    # ------------------------------------------------------------------------------------------ conditions

    def _equal(self) -> dict[Any, str]:
        chosen = self._chosen
        given = {
            jobs.c.status: chosen.status and chosen.status.value,
            jobs.c.model: chosen.model,
            jobs.c.error_code: chosen.error_code,
            jobs.c.replay_of: chosen.replay_of,
            jobs.c.batch_id: chosen.batch_id,
            jobs.c.schedule_id: chosen.schedule_id,
        }
        return {column: clean(value) for column, value in given.items() if value is not None}

    def _times(self, column: Any) -> list[ColumnElement[bool]]:
        since, until = self._chosen.since, self._chosen.until
        found = [column >= micros(since)] if since else []
        return [*found, column < micros(until)] if until else found

    def _earlier(self) -> list[ColumnElement[bool]]:
        if self._before is None:
            return []
        created_at, job_id = self._before
        # The first condition is where SQLite begins in the index.
        return [jobs.c.created_at <= created_at, or_(jobs.c.created_at < created_at, jobs.c.id < job_id)]

    def _pair(self, key: str, value: str) -> list[ColumnElement[bool]]:
        columns = job_metadata.c
        return [columns.tenant == self._tenant, columns.key == key, columns.value_start == value[:VALUE_CHARACTERS]]

    def _has_pairs(self) -> list[ColumnElement[bool]]:
        """A job's own metadata has the pairs. SQLite's JSON paths cannot express every key."""
        if not self._sqlite:
            return [jobs.c.metadata[key].as_string() == value for key, value in self._pairs.items()]
        found: list[ColumnElement[bool]] = []
        for key, value in self._pairs.items():
            pairs = func.json_each(jobs.c.metadata).table_valued("key", "value")
            found.append(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists())
        return found

    def _sources(self) -> list[Select[Any]]:
        """For each filter that has an index, the query for the ids of its jobs."""
        own, times = jobs.c.tenant == self._tenant, self._times(jobs.c.created_at)
        found = [select(jobs.c.id).where(own, column == value, *times) for column, value in self._equal().items()]
        for key, value in self._pairs.items():
            query = select(job_metadata.c.job_id).where(*self._pair(key, value))
            found.append(query.where(*self._times(job_metadata.c.created_at)))
        return [*found, self._found_words()] if self._wanted.words else found

    def _found_words(self) -> Select[Any]:
        """The query for the ids of the jobs that the words find."""
        if not self._sqlite:
            return select(search_entries.c.job_id).where(self._matches())
        values = {"query": self._fts5(), "before": NEWEST, "since": 0, "most": FEW + 1}
        return select(text(MATCHES).bindparams(**values).columns(*MATCH).subquery().c.job_id)

    def _fts5(self) -> str:
        return search.fts5_query(self._wanted, self._tenant)

    def _matches(self) -> ColumnElement[bool]:
        found = cast(search.tsquery(self._wanted, self._tenant), TSQUERY)
        return search_entries.c.words.bool_op("@@")(found)

    # --------------------------------------------------------------------------------------------- queries

    async def _among(self, ids: Sequence[str], earlier: Sequence[ColumnElement[bool]]) -> Sequence[str]:
        """Those of some jobs that match all filters but the words."""
        if not ids:
            return []
        # coalesce: SQLite would otherwise go along an index of the tenant's jobs.
        equal = [func.coalesce(column, "") == value for column, value in self._equal().items()]
        mine = func.coalesce(jobs.c.tenant, "") == self._tenant
        times = self._times(func.coalesce(jobs.c.created_at, 0))
        query = select(jobs.c.id).where(jobs.c.id.in_(ids), mine, *equal, *times, *self._has_pairs(), *earlier)
        query = query.order_by(func.coalesce(jobs.c.created_at, 0).desc(), jobs.c.id.desc())
        return (await self._connection.execute(query)).scalars().all()

    async def _worded(self, ids: Sequence[str]) -> Sequence[str]:
        """The first of some jobs that have the words, as many as the page takes."""
        if not self._wanted.words:
            return ids[: self._limit]
        found: list[str] = []
        for start in range(0, len(ids), WORDS_AT_ONCE):
            some = ids[start : start + WORDS_AT_ONCE]
            having = await self._having_words(some)
            found += [job_id for job_id in some if job_id in having]
            if len(found) >= self._limit:
                break
        return found[: self._limit]

    async def _having_words(self, ids: Sequence[str]) -> Collection[str]:
        if not self._sqlite:
            query = select(search_entries.c.job_id).where(search_entries.c.job_id.in_(ids), self._matches())
            return set((await self._connection.execute(query)).scalars())
        # FTS5 would find all jobs with the words first.
        entries = select(search_entries.c.job_id, search_entries.c.words)
        entries = entries.where(search_entries.c.job_id.in_(ids), search_entries.c.words.is_not(None))
        rows = (await self._connection.execute(entries)).all()
        return {row.job_id for row in rows if self._wanted.matches(search.unpacked(row.words).split(" "))}

    def _in_order(self) -> Select[Any]:
        """The query along an index in the order of the list."""
        conditions = [jobs.c.tenant == self._tenant, *self._times(jobs.c.created_at), *self._earlier()]
        conditions += [column == value for column, value in self._equal().items()]
        query = select(jobs.c.id).where(*conditions, *self._has_pairs())
        order = (jobs.c.created_at, jobs.c.id)
        if self._pairs:
            key, value = next(iter(self._pairs.items()))
            query = query.join(job_metadata, job_metadata.c.job_id == jobs.c.id).where(*self._pair(key, value))
            query = query.where(*self._times(job_metadata.c.created_at))
            order = (job_metadata.c.created_at, job_metadata.c.job_id)
        if self._wanted.words:
            query = query.join(search_entries, search_entries.c.job_id == jobs.c.id).where(self._matches())
        return query.order_by(*(column.desc() for column in order)).limit(self._limit)

    async def _matching(self) -> Sequence[str]:
        """The jobs that the index of words finds, in its order, as far as they match the other filters.

        Raises InvalidRequest if that takes too long.
        """
        found: list[str] = []
        before = await self._newest_number()
        values = {"query": self._fts5(), "since": await self._oldest_number(), "most": MATCHES_AT_ONCE}
        while len(found) < self._limit:
            matches = (await self._connection.execute(text(MATCHES), values | {"before": before})).all()
            right = set(await self._among([row.job_id for row in matches], ()))
            found += [row.job_id for row in matches if row.job_id in right]
            if len(matches) < MATCHES_AT_ONCE:
                break
            if time.monotonic() > self._until:
                raise InvalidRequest([Problem("/q", TOO_BROAD)])
            before = matches[-1].number
        return found[: self._limit]

    async def _newest_number(self) -> int:
        """The number in the index before which the page begins."""
        if self._before is not None:
            own = select(search_entries.c.number).where(search_entries.c.job_id == self._before.job_id)
            number: int | None = await self._connection.scalar(own)
            if number is None:  # it was removed meanwhile
                number = await self._number(self._earlier(), newest=True)
                return 0 if number is None else number + 1
            return number
        if self._chosen.until is None:
            return NEWEST
        later = jobs.c.created_at >= micros(self._chosen.until) + DISORDER
        number = await self._number([later], newest=False)
        return NEWEST if number is None else number

    async def _oldest_number(self) -> int:
        if self._chosen.since is None:
            return 0
        return await self._number([jobs.c.created_at >= micros(self._chosen.since) - DISORDER], newest=False) or 0

    async def _number(self, conditions: Sequence[ColumnElement[bool]], *, newest: bool) -> int | None:
        """The number in the index of the newest or oldest of some jobs."""
        query = select(search_entries.c.number).join(jobs, jobs.c.id == search_entries.c.job_id)
        order = [jobs.c.created_at, jobs.c.id]
        query = query.where(jobs.c.tenant == self._tenant, *conditions)
        number: int | None = await self._connection.scalar(
            query.order_by(*(one.desc() if newest else one for one in order)).limit(1)
        )
        return number
