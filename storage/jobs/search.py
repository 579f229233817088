"""The search for jobs by words of their prompts and answers, in the database's own full-text index.

Triggers put every job that is accepted, sealed or reopened into ``search_queue`` (migration 0010), and
``SearchIndex.refresh`` works through it, some time later and many jobs at once. A job that has not ended is due some
seconds after it was accepted, so that most jobs are indexed once, with their answer.

Which words a text has is the same on both databases (domain/words.py). Postgres has them as a ``tsvector`` with a GIN
index. SQLite has them in the FTS5 table ``job_words``, without the text itself: ``search_entries`` has the words that
were indexed, because FTS5 needs them again to remove them.

Deleting removes a job's words at once (``forget``), so that it is not found. In the file of FTS5 they are still there,
in older segments, until these are merged: ``wipe`` merges the whole index in small steps. (FTS5's own ``secure-delete``
needs SQLite 3.42, and older versions could not read the index any more.)
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

from sqlalchemy import ARRAY, Connection, Text, bindparam, delete, func, insert, select, text, update
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
FORGOTTEN_AFTER = timedelta(seconds=2)
"""Deletions of this time share a wipe."""

DUE = select(search_queue.c.id, search_queue.c.job_id).where(search_queue.c.due_at <= bindparam("until"))
DUE = DUE.order_by(search_queue.c.due_at, search_queue.c.id).limit(bindparam("most"))
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
INDEX_LOCK = text("SELECT pg_try_advisory_xact_lock(7235)")
UNQUEUE = delete(search_queue).where(search_queue.c.id.in_(bindparam("ids", expanding=True)))
INDEXED = select(search_entries.c.number, search_entries.c.words).where(
    search_entries.c.job_id.in_(bindparam("ids", expanding=True)), search_entries.c.words.is_not(None)
)
UNINDEX = "INSERT INTO job_words (job_words, rowid, words) VALUES ('delete', :number, :words)"
FORGET = delete(search_entries).where(search_entries.c.job_id.in_(bindparam("ids", expanding=True)))
QUEUE = insert(search_queue)
LATER = update(search_queue).where(search_queue.c.id == bindparam("id_of"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the search knows of a job. ``ended_at`` (microseconds): the end that its answer belongs to, 0 before it."""

    job_id: str
    ended_at: int
    preview: str | None
    words: list[str]


class Due(NamedTuple):
    """What is due: ``jobs`` to index, in the order of the queue, with their ``texts``; rows of the queue that are then
    ``over``, with their jobs; and rows whose jobs, or contents, were ``removed``."""

    jobs: Sequence[Any]
    texts: Mapping[str, Any]
    over: Mapping[int, str]
    removed: list[int]


class Refreshed(NamedTuple):
    """``taken``: rows of the queue that were worked through. ``removed``: on SQLite, those whose jobs or contents are
    gone; they stay in the queue until ``wipe`` or ``postpone``."""

    taken: int
    removed: list[int]


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
    async def refresh(self, *, older_than: timedelta = timedelta(0)) -> Refreshed:
        """Index jobs that are due, JOBS_AT_ONCE at most. ``older_than``: only what was due before that.

        Raises StorageUnavailable.
        """
        until = micros(now() - older_than)
        async with self._database.single() as connection:
            if (await connection.execute(DUE, {"until": until, "most": 1})).first() is None:
                return Refreshed(0, [])
        if self._thread is None:
            async with self._database.write("fast") as connection:
                if not await connection.scalar(INDEX_LOCK):
                    return Refreshed(0, [])  # another process is at it
                found = await _due(connection, until)
                return await _store_on_postgres(connection, found, await asyncio.to_thread(_entries, found))
        async with self._database.read() as connection:
            found = await _due(connection, until)
        entries = await asyncio.to_thread(_entries, found)
        await self._on_thread(lambda connection: _store_on_sqlite(connection, entries, found.over))
        return Refreshed(len(found.over), found.removed)

    async def _on_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a write to SQLite on the thread, when it is this process's turn."""
        if self._thread is None:
            raise RuntimeError("The index is not running")
        with translated():
            async with self._database.turn():
                return await self._thread.run(work)

    async def postpone(self, removed: Sequence[int], by: timedelta) -> None:
        """Have removed jobs, of which one row in the queue is enough, be due again later. Raises StorageUnavailable."""
        async with self._database.write("fast") as connection:
            await connection.execute(UNQUEUE, {"ids": list(removed[1:])})
            await connection.execute(LATER, {"id_of": removed[0], "due_at": micros(now() + by)})

    async def wipe(self, removed: Sequence[int]) -> None:
        """Have the words of removed jobs leave SQLite's file; ``removed`` are their rows in the queue.

        Raises StorageUnavailable.
        """
        pages = -MERGED_AT_ONCE  # negative: the merge begins with all segments
        while await self._on_thread(partial(_merge, pages=pages)):
            pages = MERGED_AT_ONCE
            await asyncio.sleep(0.01)
        async with self._database.write("fast") as connection:
            await connection.execute(UNQUEUE, {"ids": list(removed)})


async def _due(connection: AsyncConnection, until: int) -> Due:
    """The jobs that are due."""
    queued = (await connection.execute(DUE, {"until": until, "most": JOBS_AT_ONCE})).all()
    place = {row.job_id: number for number, row in reversed(list(enumerate(queued)))}
    states = list((await connection.execute(STATES, {"ids": sorted(place)})).all())
    states.sort(key=lambda state: place[state.id])
    stale = [state for state in states if state.indexed_at != state.ended_at]
    chosen = _within_bytes(stale)
    texts = (await connection.execute(TEXTS, {"ids": [state.id for state in chosen]})).all()
    known, wait = {state.id for state in states}, {state.id for state in stale[len(chosen) :]}
    return Due(
        chosen,
        {row.job_id: row for row in texts},
        {row.id: row.job_id for row in queued if row.job_id in known - wait},
        [row.id for row in queued if row.job_id not in known],
    )


async def _store_on_postgres(connection: AsyncConnection, found: Due, entries: Sequence[Entry]) -> Refreshed:
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
    await connection.execute(UNQUEUE, {"ids": [*over, *found.removed]})
    return Refreshed(len(over), [])


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
    indexed = has_index(connection)
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


def unpacked(packed: bytes) -> str:
    return zlib.decompress(packed).decode()


def has_index(connection: sqlite3.Connection) -> bool:
    """Whether the full-text index is there: this Python's SQLite had FTS5 when the database was made."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'job_words'").fetchone() is not None


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
    """Remove jobs from the index, within the caller's transaction."""
    if await connection.run_sync(_is_sqlite):
        found = (await connection.execute(INDEXED, {"ids": job_ids})).all()
        if found:
            gone = [{"number": number, "words": unpacked(packed)} for number, packed in found]
            await connection.execute(text(UNINDEX), gone)
            due = micros(now() + FORGOTTEN_AFTER)
            await connection.execute(QUEUE, {"job_id": job_ids[0], "due_at": due})
    await connection.execute(FORGET, {"ids": job_ids})


# ------------------------------------------------------------------------------------------------- queries


def fts5_query(query: Query, tenant: str) -> str:
    """A query in FTS5's syntax. Words have letters and digits alone: nothing of a caller's text is syntax."""
    *others, last = [f'"{word}"' for word in query.words]
    return " AND ".join([f'"{tenant_word(tenant)}"', *others, f"{last}*" if query.begins else last])


def tsquery(query: Query, tenant: str) -> str:
    """A query in the syntax of Postgres's ``tsquery``."""
    *others, last = [f"'{word}'" for word in query.words]
    return " & ".join([f"'{tenant_word(tenant)}'", *others, f"{last}:*" if query.begins else last])
