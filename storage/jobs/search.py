"""The search for jobs by words of their prompts and answers, in the database's own full-text index.

Triggers put every job that is accepted, sealed or reopened into ``search_queue`` (migration 0010), and
``SearchIndex.refresh`` works through it, some time later and many jobs at once. A job that has not ended is due some
seconds after it was accepted, so that most jobs are indexed once, with their answer.

Which words a text has is the same on both databases (domain/words.py). Postgres has them as a ``tsvector`` with a GIN
index. SQLite has them in the FTS5 table ``job_words``, without the text itself: ``search_entries`` has the words that
were indexed, because FTS5 needs them again to remove them.

A job that is deleted is not found from that moment on (``forget``). On SQLite its words then leave the index in the
background: ``unindex`` has FTS5 remove them, which takes several times as long as removing the job. In the file they
are still there, in older segments of the index, until these are merged: ``wipe`` merges the whole index in small steps.
(FTS5's own ``secure-delete`` needs SQLite 3.42, and older versions could not read the index any more.)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ARRAY, Connection, Text, bindparam, delete, func, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from domain import words
from domain.words import Query
from storage.engine.database import Database, retried, translated
from storage.engine.schema import jobs, micros, now, requests, results, search_entries, search_queue
from storage.engine.sqlite_thread import SqliteThread

T = TypeVar("T")

JOBS_AT_ONCE = 100
"""Jobs that one transaction indexes: on SQLite it takes some milliseconds, in which nobody else writes."""
BYTES_AT_ONCE = 16 * 1024 * 1024
"""Of the requests that are read for it: one may have 8 MiB of images."""
MERGED_AT_ONCE = 100
"""Pages of the index that one step of a wipe writes at most."""
REMOVED_AT_ONCE = 40
"""Jobs whose words one transaction removes from FTS5: it takes some milliseconds."""

DUE = select(search_queue.c.id, search_queue.c.job_id).where(search_queue.c.due_at <= bindparam("until"))
# The newest first: after an upgrade all jobs are in the queue, and a new one must not wait for them.
DUE = DUE.order_by(search_queue.c.due_at.desc(), search_queue.c.id.desc()).limit(bindparam("most"))
STATES = (
    select(
        jobs.c.id,
        jobs.c.tenant,
        func.coalesce(jobs.c.completed_at, 0).label("ended_at"),
        search_entries.c.ended_at.label("indexed_at"),
        func.length(requests.c.body).label("size"),
    )
    .outerjoin(search_entries, search_entries.c.job_id == jobs.c.id)
    .outerjoin(requests, requests.c.job_id == jobs.c.id)
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.deleted_at.is_(None))
)
TEXTS = (
    select(requests.c.job_id, requests.c.body, func.substr(results.c.content, 1, words.MOST_CHARACTERS).label("answer"))
    .outerjoin(results, results.c.job_id == requests.c.job_id)
    .where(requests.c.job_id.in_(bindparam("ids", expanding=True)))
)
# Whoever seals or deletes a job locks its row FOR UPDATE; a batch of its text is not held up by this lock.
HELD = (
    select(jobs.c.id, func.coalesce(jobs.c.completed_at, 0).label("ended_at"))
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.deleted_at.is_(None))
    .order_by(jobs.c.id)
    .with_for_update(read=True, key_share=True, skip_locked=True)
)
ENTRY = postgresql.insert(search_entries).values(
    job_id=bindparam("job_id"),
    ended_at=bindparam("ended_at"),
    preview=bindparam("preview"),
    words=func.array_to_tsvector(bindparam("words", type_=ARRAY(Text))),
)
ENTRY = ENTRY.on_conflict_do_update(
    index_elements=[search_entries.c.job_id],
    set_={name: ENTRY.excluded[name] for name in ("ended_at", "preview", "words")},
)
HAS_FTS5 = "SELECT 1 FROM pragma_module_list WHERE name = 'fts5'"
HAS_INDEX = f"SELECT 1 FROM sqlite_master WHERE name = 'job_words' AND EXISTS ({HAS_FTS5})"  # noqa: S608 - constants
INDEX = "CREATE VIRTUAL TABLE job_words USING fts5(words, content='', columnsize=0, detail=none, tokenize='ascii')"
INDEX_LOCK = text("SELECT pg_try_advisory_xact_lock(7235)")
UNQUEUE = delete(search_queue).where(search_queue.c.id.in_(bindparam("ids", expanding=True)))
OF_JOBS = search_entries.c.job_id.in_(bindparam("ids", expanding=True))
FORGET_ON_SQLITE = update(search_entries).where(OF_JOBS).values(job_id=None, preview=None)
FORGET_ON_POSTGRES = delete(search_entries).where(OF_JOBS)
GONE = search_entries.c.job_id.is_(None)
REMOVED = select(search_entries.c.number).where(GONE, search_entries.c.words.is_not(None)).limit(1)
UNINDEXED = select(search_entries.c.number).where(GONE, search_entries.c.words.is_(None)).limit(1)
WIPING = -1
"""``ended_at`` of a removed job that was unindexed before the wipe began."""
WIPE = update(search_entries).where(GONE, search_entries.c.words.is_(None)).values(ended_at=WIPING)
WIPED = delete(search_entries).where(GONE, search_entries.c.ended_at == WIPING)
UNINDEX = "INSERT INTO job_words (job_words, rowid, words) VALUES ('delete', :number, :words)"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the search knows of a job. ``ended_at`` (microseconds): the end that its answer belongs to, 0 before it."""

    job_id: str
    ended_at: int
    preview: str | None
    words: list[str]


class Due(NamedTuple):
    """What is due: ``jobs`` to index, with their ``texts``, and the rows of the queue that are ``over`` then."""

    jobs: Sequence[Any]
    texts: Mapping[str, Any]
    over: Mapping[int, str]


class SearchIndex:
    """Keeps the index up to date, while ``running``. One per process; several processes may do it at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread: SqliteThread | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SearchIndex]:
        if not self._database.is_sqlite:
            yield self
            return
        async with self._database.sqlite_thread("search-index").open() as self._thread:
            yield self

    @retried
    async def refresh(self, *, older_than: timedelta = timedelta(0)) -> int:
        """Index jobs that are due, JOBS_AT_ONCE at most; the number of changes that are followed up.

        ``older_than``: only what was due before that. Raises StorageUnavailable.
        """
        until = micros(now() - older_than)
        async with self._database.single() as connection:
            if (await connection.execute(DUE, {"until": until, "most": 1})).first() is None:
                return 0
        if self._thread is None:
            async with self._database.write("fast") as connection:
                if not await connection.scalar(INDEX_LOCK):
                    return 0  # another process is at it
                found = await _due(connection, until)
                return await _store_on_postgres(connection, found, await asyncio.to_thread(_entries, found))
        async with self._database.read() as connection:
            found = await _due(connection, until)
        entries = await asyncio.to_thread(_entries, found)
        await self._on_thread(lambda connection: _store_on_sqlite(connection, entries, found.over))
        return len(found.over)

    async def _on_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a write to SQLite on the thread, when it is this process's turn."""
        if self._thread is None:
            raise RuntimeError("The index is not running")
        with translated():
            async with self._database.turn():
                return await self._thread.run(work)

    async def unindex(self) -> int:
        """Remove the words of removed jobs from FTS5, REMOVED_AT_ONCE jobs at most, whose number is returned.

        Raises StorageUnavailable.
        """
        if self._thread is None:
            return 0
        async with self._database.single() as connection:
            if (await connection.execute(REMOVED)).first() is None:
                return 0
        return await self._on_thread(_unindex)

    async def wipe(self) -> bool:
        """Have the words of removed jobs leave SQLite's file; whether there were any. Raises StorageUnavailable."""
        if self._thread is None:
            return False
        async with self._database.single() as connection:
            if (await connection.execute(UNINDEXED)).first() is None:
                return False
        async with self._database.write("fast") as writing:
            await writing.execute(WIPE)
        pages = -MERGED_AT_ONCE  # negative: the merge begins with all segments
        while await self._on_thread(partial(_merge, pages=pages)):
            pages = MERGED_AT_ONCE
            await asyncio.sleep(0.01)
        async with self._database.write("fast") as writing:
            await writing.execute(WIPED)
        return True


async def _due(connection: AsyncConnection, until: int) -> Due:
    """The jobs that are due."""
    queued = (await connection.execute(DUE, {"until": until, "most": JOBS_AT_ONCE})).all()
    states = (await connection.execute(STATES, {"ids": sorted({row.job_id for row in queued})})).all()
    stale = [state for state in states if state.indexed_at != state.ended_at]
    chosen = _within_bytes(stale)
    texts = (await connection.execute(TEXTS, {"ids": [state.id for state in chosen]})).all()
    wait = {state.id for state in stale[len(chosen) :]}
    over = {row.id: row.job_id for row in queued if row.job_id not in wait}
    return Due(chosen, {row.job_id: row for row in texts}, over)


async def _store_on_postgres(connection: AsyncConnection, found: Due, entries: Sequence[Entry]) -> int:
    """Store entries, unless their jobs have changed meanwhile; those that another transaction has locked wait."""
    ids = [entry.job_id for entry in entries]
    held = {row.id: row.ended_at for row in (await connection.execute(HELD, {"ids": ids})).all()}
    rows = [
        {"job_id": e.job_id, "ended_at": e.ended_at, "preview": e.preview, "words": e.words}
        for e in entries
        if held.get(e.job_id) == e.ended_at
    ]
    if rows:
        await connection.execute(ENTRY, rows)
    over = [number for number, job_id in found.over.items() if job_id in held or job_id not in ids]
    await connection.execute(UNQUEUE, {"ids": over})
    return len(over)


def _within_bytes(states: Sequence[Any]) -> Sequence[Any]:
    """The first of these jobs, whose requests are not too large together; one at least."""
    size = 0
    for number, state in enumerate(states):
        size += state.size or 0
        if number and size > BYTES_AT_ONCE:
            return states[:number]
    return states


def _entries(found: Due) -> list[Entry]:
    return [_entry(state, found.texts.get(state.id)) for state in found.jobs]


def _entry(state: Any, texts: Any) -> Entry:
    request = {"messages": []} if texts is None else json.loads(texts.body)
    spoken = words.words(words.prompt_text(request))
    if texts is not None and state.ended_at:
        spoken |= words.words(texts.answer or "")
    spoken.add(tenant_word(state.tenant))
    return Entry(state.id, state.ended_at, words.preview(request), sorted(spoken))


def tenant_word(tenant: str) -> str:
    """A word that all jobs of a tenant have, so that the index finds those of one tenant. It need not be a secret: the
    tenant of a job that was found is compared."""
    return f"tenant{hashlib.sha256(tenant.encode()).hexdigest()[:16]}"


def _store_on_sqlite(connection: sqlite3.Connection, entries: Sequence[Entry], over: Iterable[int]) -> None:
    indexed = _made(connection)
    connection.execute("BEGIN IMMEDIATE")
    for entry in entries:
        state = connection.execute(
            "SELECT coalesce(completed_at, 0) FROM jobs WHERE id = ? AND deleted_at IS NULL", (entry.job_id,)
        ).fetchone()
        if state == (entry.ended_at,):
            _store_entry(connection, entry, indexed=indexed)
    connection.executemany("DELETE FROM search_queue WHERE id = ?", [(number,) for number in over])
    connection.execute("COMMIT")


def _store_entry(connection: sqlite3.Connection, entry: Entry, *, indexed: bool) -> None:
    spoken = " ".join(entry.words)
    packed = zlib.compress(spoken.encode(), 1) if indexed else None
    query = "SELECT number, words FROM search_entries WHERE job_id = ?"
    known = connection.execute(query, (entry.job_id,)).fetchone()
    if known is None:
        values = (entry.job_id, entry.ended_at, entry.preview, packed)
        number = connection.execute(
            "INSERT INTO search_entries (job_id, ended_at, preview, words) VALUES (?, ?, ?, ?)", values
        ).lastrowid
    else:
        number, old = known
        if old is not None:
            connection.execute(UNINDEX, {"number": number, "words": unpacked(old)})
        update = "UPDATE search_entries SET ended_at = ?, preview = ?, words = ? WHERE number = ?"
        connection.execute(update, (entry.ended_at, entry.preview, packed, number))
    if indexed:
        connection.execute("INSERT INTO job_words (rowid, words) VALUES (?, ?)", (number, spoken))


def _unindex(connection: sqlite3.Connection) -> int:
    connection.execute("BEGIN IMMEDIATE")
    query = "SELECT number, words FROM search_entries WHERE job_id IS NULL AND words IS NOT NULL LIMIT ?"
    found = connection.execute(query, (REMOVED_AT_ONCE,)).fetchall()
    if has_index(connection):
        gone = [{"number": number, "words": unpacked(packed)} for number, packed in found]
        connection.executemany(UNINDEX, gone)
    marks = [(number,) for number, _ in found]
    connection.executemany("UPDATE search_entries SET words = NULL WHERE number = ?", marks)
    connection.execute("COMMIT")
    return len(found)


def unpacked(packed: bytes) -> str:
    return zlib.decompress(packed).decode()


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether the full-text index is there, and this Python's SQLite has FTS5."""
    return connection.execute(HAS_INDEX).fetchone() is not None


def _made(connection: sqlite3.Connection) -> bool:
    """Whether the index is there. Where the database was made without FTS5, which this process has, it is made, and all
    jobs are to be indexed."""
    if has_index(connection) or connection.execute(HAS_FTS5).fetchone() is None:
        return has_index(connection)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(INDEX)
    connection.execute("INSERT INTO search_queue (job_id, due_at) SELECT id, created_at FROM jobs ORDER BY created_at")
    connection.execute("UPDATE search_entries SET words = NULL, ended_at = -2")  # which is the end of no job
    connection.execute("COMMIT")
    return True


def _merge(connection: sqlite3.Connection, pages: int) -> bool:
    """One step of a merge; whether more is to be done (sqlite.org/fts5.html, "The 'merge' Command")."""
    if not has_index(connection):
        return False
    before = connection.total_changes
    connection.execute("INSERT INTO job_words (job_words, rank) VALUES ('merge', ?)", (pages,))
    return connection.total_changes - before >= 2


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


async def forget(connection: AsyncConnection, job_ids: Sequence[str]) -> None:
    """Have jobs not be found any more, within the caller's transaction."""
    sqlite = await connection.run_sync(_is_sqlite)
    await connection.execute(FORGET_ON_SQLITE if sqlite else FORGET_ON_POSTGRES, {"ids": job_ids})


# ------------------------------------------------------------------------------------------------- queries


def fts5_query(query: Query, tenant: str) -> str:
    """A query in FTS5's syntax. Words have letters and digits alone: nothing of a caller's text is syntax."""
    *others, last = [f'"{word}"' for word in query.words]
    return " AND ".join([f'"{tenant_word(tenant)}"', *others, f"{last}*" if query.begins else last])


def tsquery(query: Query, tenant: str) -> str:
    """A query in the syntax of Postgres's ``tsquery``."""
    *others, last = [f"'{word}'" for word in query.words]
    return " & ".join([f"'{tenant_word(tenant)}'", *others, f"{last}:*" if query.begins else last])
