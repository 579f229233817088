"""What is new for many readers at once: one statement per look, on a connection that learns cheaply when to look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.values import Cursor, TextRun
from storage.engine.database import HINT_CHANNEL, Database, translated
from storage.engine.schema import CHANNELS
from storage.engine.sqlite_thread import SqliteThread

POLL_SECONDS = 0.005
"""Between two looks at whether anything was written (SQLite: one pragma, no query)."""
UNHINTED_POLL_SECONDS = 0.1
"""On Postgres, where NOTIFY hints: how late a lost hint may make a reader."""


class TextChange(NamedTuple):
    """A job and what its reader lacks. Once it is sealed, ``runs`` (JSON) is set; ``tail`` and ``stored`` are empty.

    ``place`` is that of the reader's cursor; ``epoch`` is None where there is no such job, and nothing else holds.
    """

    place: int
    epoch: int | None
    position: int
    token_count: int
    tail: str
    tail_channel: int
    status: str
    attempt: int
    reset_reason: str | None
    started_at: int | None
    deleted_at: int | None
    content: str
    reasoning: str
    runs: str | None
    stored: list[TextRun]


class ChangeSource(Protocol):
    """Raises StorageUnavailable; it is of no more use then."""

    async def changed(self) -> None:
        """Return when something may have been written, or a reader has come."""
        ...

    async def fetch(self, cursors: Sequence[Cursor]) -> Sequence[TextChange]:
        """The news there is; jobs without any are left out."""
        ...


COLUMNS = """w.place, j.epoch, j.position, j.token_count, j.tail, j.tail_channel, j.status, j.attempt, j.reset_reason,
  j.started_at, j.deleted_at, r.content, r.reasoning, r.runs, c.position, c.channel, c.text, c.token_count"""
RUN_AT = 14
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
# One row with everything in it: see own_thread.py. (Only constants of this module go into these texts.)
NEWS_SQLITE = f"SELECT json_group_array(json_array({COLUMNS})) FROM {SQLITE_CURSORS} AS w {NEWS}"  # noqa: S608
NEWS_POSTGRES = text(f"SELECT {COLUMNS} FROM {POSTGRES_CURSORS} AS w {NEWS} ORDER BY w.place, c.position")  # noqa: S608


async def fetch(database: Database, cursors: Sequence[Cursor], *, everything: bool = False) -> Sequence[TextChange]:
    """In order of place; of those without news only if ``everything``. Raises StorageUnavailable."""
    async with database.single() as connection:
        if database.is_sqlite:
            values = {"cursors": _json(cursors), "all": everything}
            return _from_json(await connection.scalar(text(NEWS_SQLITE), values))
        return await _fetch_postgres(connection, cursors, everything)


@asynccontextmanager
async def watch(database: Database, newcomers: asyncio.Event) -> AsyncIterator[ChangeSource]:
    """``newcomers`` is set by whoever has a reader that was in no look yet."""
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
            await connection.invalidate()  # it must not come back to the pool listening


# ------------------------------------------------------------------------------------------------------ SQLite


class SqliteWatch:
    def __init__(self, thread: SqliteThread, newcomers: asyncio.Event) -> None:
        self._thread = thread
        self._newcomers = newcomers
        self._version: int | None = None

    async def changed(self) -> None:
        """A connection's ``data_version`` changes when another one has committed."""
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
            return _from_json(await self._thread.run(partial(_fetch_sqlite, _json(cursors))))


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _fetch_sqlite(cursors: str, connection: sqlite3.Connection) -> str:
    found: str = connection.execute(NEWS_SQLITE, {"cursors": cursors, "all": False}).fetchone()[0]
    return found


def _json(cursors: Sequence[Cursor]) -> str:
    return json.dumps([tuple(cursor) for cursor in cursors])


def _from_json(found: str | None) -> Sequence[TextChange]:
    return _news(sorted(json.loads(found or "[]"), key=lambda row: (row[0], row[RUN_AT] or 0)))


# ---------------------------------------------------------------------------------------------------- Postgres


class PostgresWatch:
    def __init__(self, connection: AsyncConnection, newcomers: asyncio.Event) -> None:
        self._connection = connection
        self._newcomers = newcomers

    async def changed(self) -> None:
        """On a hint, which comes as a newcomer, and now and then in case one was lost."""
        await asyncio.sleep(POLL_SECONDS)
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the event.
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
    return _news((await connection.execute(NEWS_POSTGRES, values)).all())


def _news(rows: Iterable[Sequence[Any]]) -> Sequence[TextChange]:
    """Rows in order of place and position; a job's own columns stand in each of its rows."""
    found: list[TextChange] = []
    for row in rows:
        if not found or found[-1].place != row[0]:
            found.append(TextChange._make((*row[:RUN_AT], [])))
        if row[RUN_AT] is not None:
            position, number, text, token_count = row[RUN_AT:]
            found[-1].stored.append(TextRun(position, CHANNELS[number], text, token_count))
    return found
