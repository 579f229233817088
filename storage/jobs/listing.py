"""Lists of jobs: filtered, newest first, in pages.

A list goes along an index in its order until the page is full. Where several filters are given, or one without such an
index, that could pass millions of jobs that the others leave out. So each filter is first asked for its newest jobs,
FEW at most: if one has no more than that, the list is made of these. If all have more, the list goes along the index of
the filter whose newest jobs reach furthest back, and compares the rest: its page is full before long.

The ids of a page come first, from the narrow rows of ``jobs``; only theirs are joined with what is shown of them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, String, and_, cast, column, func, or_, select, text, tuple_
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
FEW_FOUND = 5_000
"""The same for the words of a search, which are compared more slowly."""
WORDS_AT_ONCE = 200
"""Jobs that other filters found and whose words are compared together."""
THREAD = "thread"
PAIR, WORDS = "metadata.", "q"
"""The names of filters that are no column of ``jobs``."""
TOO_BROAD = "finds so many jobs that the other filters leave out; add words, or narrow the time with since and until"
MATCHES = """
    SELECT search_entries.job_id FROM job_words CROSS JOIN search_entries ON search_entries.number = job_words.rowid
    WHERE job_words MATCH :query AND search_entries.job_id IS NOT NULL"""
"""CROSS JOIN: the index of words comes first (sqlite.org/optoverview.html, 7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are listed; None: all. ``search``: words of prompt or answer, all of which must be there."""

    status: JobStatus | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    error_code: str | None = None
    replay_of: str | None = None
    thread: str | None = None
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


def _in_thread(thread: str) -> ColumnElement[bool]:
    """The jobs of a thread, along indexes: the first one has no mark of it."""
    return or_(jobs.c.thread == thread, and_(jobs.c.id == thread, jobs.c.thread.is_(None)))


def _unindexed(name: str) -> ColumnElement[str]:
    """The value of a column of ``_ListPage._equal``, in a form for which no index is chosen."""
    return func.coalesce(jobs.c[name], jobs.c.id if name == THREAD else "")


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
        first = next(iter(self._equal()), None)
        if len(sources) > 1 or self._pairs or self._wanted.words or self._chosen.replay_of or self._chosen.thread:
            oldest: dict[str, int] = {}
            for source, query in sources.items():
                few = FEW_FOUND if source == WORDS else FEW
                found = (await self._connection.execute(query.limit(few + 1))).all()
                if len(found) <= few:
                    return await self._worded(await self._among([row.id for row in found]))
                if source != WORDS:
                    oldest[source] = found[-1].created_at
            first = min(oldest, key=lambda source: oldest[source], default=None)
        if self._wanted.words and self._sqlite:
            return await self._walked(first)
        rows = (await self._connection.execute(self._in_order(first).limit(self._limit))).all()
        return [row.id for row in rows]

    async def _settle_words(self) -> None:
        """Take the last word of the search as it is, if any job has all words, or else as the beginning of one."""
        if not self._wanted.begins:
            return
        given, self._wanted = self._wanted, self._wanted._replace(begins=False)
        if (await self._connection.execute(self._found_words().limit(1))).first() is None:
            self._wanted = given

    # ------------------------------------------------------------------------------------------ conditions

    def _equal(self) -> dict[str, str]:
        """The columns of ``jobs`` that have to have a value."""
        chosen = self._chosen
        given = {
            "status": chosen.status and chosen.status.value,
            "model": chosen.model,
            "error_code": chosen.error_code,
            "replay_of": chosen.replay_of,
            THREAD: chosen.thread,
            "batch_id": chosen.batch_id,
            "schedule_id": chosen.schedule_id,
        }
        return {name: clean(value) for name, value in given.items() if value is not None}

    def _times(self, column: Any) -> list[ColumnElement[bool]]:
        since, until = self._chosen.since, self._chosen.until
        found = [column >= micros(since)] if since else []
        return [*found, column < micros(until)] if until else found

    def _earlier(self, created_at: Any, job_id: Any) -> list[ColumnElement[bool]]:
        return [] if self._before is None else [tuple_(created_at, job_id) < tuple_(*self._before)]

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

    def _sources(self) -> dict[str, Select[Any]]:
        """The query for the newest jobs of each filter that has an index, by its column, ``metadata.KEY`` or WORDS."""
        found = {name: self._along(name) for name in self._equal()}
        found |= {f"{PAIR}{key}": self._along_pair(key, job_metadata.c.job_id) for key in self._pairs}
        return found | {WORDS: self._found_words()} if self._wanted.words else found

    def _along(self, name: str | None) -> Select[Any]:
        """The query along the index of a column's value, or of all jobs, in the order of the list."""
        tenant: Any = jobs.c.tenant
        if name in ("replay_of", THREAD, "batch_id"):  # their indexes have no tenant: SQLite would prefer others
            tenant = func.coalesce(jobs.c.tenant, "")
        query = select(jobs.c.id, jobs.c.created_at).where(tenant == self._tenant)
        if name == THREAD:
            query = query.where(_in_thread(self._equal()[name]))
        elif name is not None:
            query = query.where(jobs.c[name] == self._equal()[name])
        return self._ordered(query, jobs.c.created_at, jobs.c.id)

    def _along_pair(self, key: str, job_id: Any) -> Select[Any]:
        """The same for a pair of metadata."""
        query = select(job_id.label("id"), job_metadata.c.created_at).where(*self._pair(key, self._pairs[key]))
        return self._ordered(query, job_metadata.c.created_at, job_metadata.c.job_id)

    def _ordered(self, query: Select[Any], created_at: Any, job_id: Any) -> Select[Any]:
        query = query.where(*self._times(created_at), *self._earlier(created_at, job_id))
        return query.order_by(created_at.desc(), job_id.desc())

    def _found_words(self) -> Select[Any]:
        """The query for the ids of the jobs that the words find."""
        if not self._sqlite:
            return select(search_entries.c.job_id.label("id")).where(self._matches())
        matches = text(MATCHES).bindparams(query=self._fts5()).columns(column("job_id", String))
        return select(matches.subquery().c.job_id.label("id"))

    def _fts5(self) -> str:
        return search.fts5_query(self._wanted, self._tenant)

    def _matches(self) -> ColumnElement[bool]:
        found = cast(search.tsquery(self._wanted, self._tenant), TSQUERY)
        return search_entries.c.words.bool_op("@@")(found)

    # --------------------------------------------------------------------------------------------- queries

    async def _among(self, ids: Sequence[str]) -> Sequence[str]:
        """Those of some jobs that match all filters but the words, in order."""
        if not ids:
            return []
        # coalesce: SQLite would otherwise go along an index of the tenant's jobs.
        equal = [_unindexed(name) == value for name, value in self._equal().items()]
        mine, created_at = func.coalesce(jobs.c.tenant, "") == self._tenant, func.coalesce(jobs.c.created_at, 0)
        query = select(jobs.c.id).where(jobs.c.id.in_(ids), mine, *equal, *self._times(created_at))
        query = query.where(*self._has_pairs(), *self._earlier(created_at, jobs.c.id))
        found = await self._connection.execute(query.order_by(created_at.desc(), jobs.c.id.desc()))
        return found.scalars().all()

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

    def _in_order(self, first: str | None) -> Select[Any]:
        """The query along the index of one filter (see ``_sources``; None: of the newest jobs) for those that match."""
        if first is not None and first.startswith(PAIR):
            query = self._along_pair(first.removeprefix(PAIR), jobs.c.id).join(jobs, jobs.c.id == job_metadata.c.job_id)
        else:
            query = self._along(first)
        # coalesce: SQLite would otherwise choose an index itself, without knowing how many jobs have the value.
        others = [_unindexed(name) == value for name, value in self._equal().items() if name != first]
        query = query.where(*others, *self._has_pairs())
        if self._wanted.words and not self._sqlite:
            query = query.join(search_entries, search_entries.c.job_id == jobs.c.id).where(self._matches())
        return query

    async def _walked(self, first: str | None) -> Sequence[str]:
        """The first jobs in order that have the words. Raises InvalidRequest if that takes too long."""
        found: list[str] = []
        while len(found) < self._limit:
            rows = (await self._connection.execute(self._in_order(first).limit(WORDS_AT_ONCE))).all()
            having = await self._having_words([row.id for row in rows])
            found += [row.id for row in rows if row.id in having]
            if len(rows) < WORDS_AT_ONCE:
                break
            if time.monotonic() > self._until:
                raise InvalidRequest([Problem("/q", TOO_BROAD)])
            self._before = ListPosition(rows[-1].created_at, rows[-1].id)
        return found[: self._limit]
