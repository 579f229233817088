"""Queries the changes for many readers in one statement, on a connection that is notified of commits cheaply."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.errors import ContentDeleted, JobNotFound
from domain.values import Cursor, Slice
from storage.engine.database import HINT_CHANNEL, Database, translated
from storage.engine.sqlite_thread import SqliteThread
from storage.transcript.slices import COLUMNS, TEXT, slice_of

POLL_SECONDS = 0.005
"""Seconds between two checks whether anything was committed (SQLite: one pragma, no query)."""
UNHINTED_POLL_SECONDS = 0.1
"""Seconds between two queries on Postgres without a NOTIFY: how much a lost notification delays a reader."""


class TextChange(NamedTuple):
    """The change for one cursor; ``place`` is the cursor's index in the query."""

    place: int
    found: Slice | JobNotFound | ContentDeleted


class ChangeSource(Protocol):
    """A connection to the changes. Its methods raise StorageUnavailable, after which it is unusable."""

    async def changed(self) -> None:
        """Return when something may have been committed, or a reader has begun to wait."""
        ...

    async def fetch(self, cursors: Sequence[Cursor]) -> Sequence[TextChange]:
        """The changes for the cursors; cursors without one are left out."""
        ...


SQLITE_CURSORS = """(SELECT key AS place, json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS epoch,
  json_extract(value, '$[2]') AS position, json_extract(value, '$[3]') AS awaits_start FROM json_each(:cursors))"""
POSTGRES_CURSORS = """(SELECT place - 1 AS place, id, epoch, position, awaits_start FROM unnest(CAST(:ids AS text[]),
  CAST(:epochs AS int[]), CAST(:positions AS bigint[]), CAST(:awaiting AS bool[]))
  WITH ORDINALITY AS u(id, epoch, position, awaits_start, place))"""
NEWS = """LEFT JOIN jobs j ON j.id = w.id
LEFT JOIN results r ON r.job_id = j.id AND j.completed_at IS NOT NULL
LEFT JOIN transcript c ON c.job_id = j.id AND c.epoch = j.epoch
  AND c.position > CASE WHEN w.epoch = j.epoch AND w.position <= j.position THEN w.position ELSE 0 END
WHERE :all OR j.id IS NULL OR w.epoch <> j.epoch OR w.position <> j.position OR j.completed_at IS NOT NULL
  OR (w.awaits_start AND j.started_at IS NOT NULL)
"""
# All in one row: see sqlite_thread.py. (Only constants of this module go into these statements.)
NEWS_SQLITE = f"SELECT json_group_array(json_array(w.place, {COLUMNS})) FROM {SQLITE_CURSORS} AS w {NEWS}"  # noqa: S608
NEWS_POSTGRES = text(f"SELECT w.place, {COLUMNS} FROM {POSTGRES_CURSORS} AS w {NEWS} ORDER BY w.place, c.position")  # noqa: S608


async def fetch(database: Database, cursors: Sequence[Cursor]) -> Sequence[TextChange]:
    """A slice for each cursor, also without a change, in order of place. Raises StorageUnavailable."""
    async with database.single() as connection:
        if database.is_sqlite:
            values = {"cursors": _json(cursors), "all": True}
            return _from_json(cursors, await connection.scalar(text(NEWS_SQLITE), values))
        return await _fetch_postgres(connection, cursors, everything=True)


@asynccontextmanager
async def watch(database: Database, newcomers: asyncio.Event) -> AsyncIterator[ChangeSource]:
    """``newcomers`` is set when a reader begins to wait that no query has included yet."""
    if database.is_sqlite:
        async with database.sqlite_thread("transcript-reader").open() as thread:
            yield SqliteWatch(thread, newcomers)
        return
    async with database.single(own=True) as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.add_listener(HINT_CHANNEL, lambda *_: newcomers.set())
        try:
            yield PostgresWatch(connection, newcomers)
        finally:
            await connection.invalidate()  # it must not return to the pool with its LISTEN


# ------------------------------------------------------------------------------------------------------ SQLite


class SqliteWatch:
    def __init__(self, thread: SqliteThread, newcomers: asyncio.Event) -> None:
        self._thread = thread
        self._newcomers = newcomers
        self._version: int | None = None

    async def changed(self) -> None:
        """SQLite changes the ``data_version`` of a connection when another one has committed."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            before = self._version
            with translated():
                self._version = await self._thread.run(_data_version)
            if self._version != before or self._newcomers.is_set():
                self._newcomers.clear()
                return

    async def fetch(self, cursors: Sequence[Cursor]) -> Sequence[TextChange]:
        with translated():
            return _from_json(cursors, await self._thread.run(partial(_fetch_sqlite, _json(cursors))))


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _fetch_sqlite(cursors: str, connection: sqlite3.Connection) -> str:
    found: str = connection.execute(NEWS_SQLITE, {"cursors": cursors, "all": False}).fetchone()[0]
    return found


def _json(cursors: Sequence[Cursor]) -> str:
    return json.dumps([tuple(cursor) for cursor in cursors])


def _from_json(cursors: Sequence[Cursor], found: str | None) -> Sequence[TextChange]:
    return _changes(cursors, sorted(json.loads(found or "[]"), key=lambda row: (row[0], row[1 + TEXT] or 0)))


# ---------------------------------------------------------------------------------------------------- Postgres


class PostgresWatch:
    def __init__(self, connection: AsyncConnection, newcomers: asyncio.Event) -> None:
        self._connection = connection
        self._newcomers = newcomers

    async def changed(self) -> None:
        """Return on a notification (it sets ``newcomers``), or after a while in case one was lost."""
        await asyncio.sleep(POLL_SECONDS)
        with contextlib.suppress(TimeoutError):
            # Not wait_for, which until Python 3.12 loses a cancellation that arrives together with the event.
            async with asyncio.timeout(UNHINTED_POLL_SECONDS):
                await self._newcomers.wait()
        self._newcomers.clear()

    async def fetch(self, cursors: Sequence[Cursor]) -> Sequence[TextChange]:
        with translated():
            return await _fetch_postgres(self._connection, cursors, everything=False)


async def _fetch_postgres(
    connection: AsyncConnection, cursors: Sequence[Cursor], everything: bool
) -> Sequence[TextChange]:
    values = {
        "ids": [cursor.job_id for cursor in cursors],
        "epochs": [cursor.epoch for cursor in cursors],
        "positions": [cursor.position for cursor in cursors],
        "awaiting": [cursor.awaits_start for cursor in cursors],
        "all": everything,
    }
    return _changes(cursors, (await connection.execute(NEWS_POSTGRES, values)).all())


def _changes(cursors: Sequence[Cursor], rows: Iterable[Sequence[Any]]) -> Sequence[TextChange]:
    """``rows`` are in order of place and position of their text."""
    changes: list[TextChange] = []
    for place, group in groupby(rows, key=itemgetter(0)):
        found: Slice | JobNotFound | ContentDeleted
        try:
            found = slice_of(cursors[place], [row[1:] for row in group])
        except (JobNotFound, ContentDeleted) as error:
            found = error
        changes.append(TextChange(place, found))
    return changes
