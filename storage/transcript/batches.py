"""Writes a batch of text to the database: a compare-and-set of every job's head, and the text of those that moved.

Each batch is one transaction in which a job's head moves only if fence, epoch and position are as its writer believes,
so that an attempt that has lost the job changes nothing. The statements are raw SQL: they run a hundred times a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

from sqlalchemy import select, text

from domain.errors import StorageError
from domain.tasks import in_background
from storage.engine.database import HINT_CHANNEL, Database, translated
from storage.engine.schema import jobs, micros, now
from storage.engine.sqlite_thread import SqliteThread

log = logging.getLogger(__name__)


class BatchEntry(NamedTuple):
    """What one attempt adds in one batch, from position ``start`` on, as the values of the statements: those of the
    job's head (COLUMNS), then the rows of the transcript. A batch may hold two entries of one job: of an attempt that
    has lost it, and of its successor.

    ``tail`` is appended to the tail in the job's row, or, if ``rolled``, replaces it: then the ``rows`` include the old
    tail.
    """

    job_id: str
    fence: int
    epoch: int
    start: int
    end: int
    token_count: int
    tail: str
    tail_channel: int
    rolled: bool
    finish: str | None
    rows: tuple[tuple[str, int, int, int, str, int], ...]

    @property
    def head(self) -> tuple[Any, ...]:
        return self[:-1]


class TextBatches(Protocol):
    """A database that batches are written to."""

    async def append(self, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
        """Commit a batch; the entries whose jobs were at their start, which are committed.

        Raises StorageUnavailable, StorageRefused.
        """
        ...


@asynccontextmanager
async def batches(database: Database) -> AsyncIterator[TextBatches]:
    if not database.is_sqlite:
        yield PostgresBatches(database)
        return
    async with AsyncExitStack() as stack:
        thread = await stack.enter_async_context(database.sqlite_thread("transcript-writer").open())
        spare = await stack.enter_async_context(database.sqlite_thread("checkpoints").open())
        place = SqliteBatches(database, thread, spare)
        await stack.enter_async_context(in_background(place.checkpoint_for_ever(), "checkpoints"))
        yield place


async def already_in(database: Database, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
    """The entries at whose end their jobs are: they were committed, and the answer was lost."""
    query = select(jobs.c.id, jobs.c.fence, jobs.c.epoch, jobs.c.position, jobs.c.finish)
    async with database.read() as connection:
        rows = (await connection.execute(query.where(jobs.c.id.in_([e.job_id for e in entries])))).all()
    heads = {(row.id, row.fence, row.epoch, row.position, row.finish is not None) for row in rows}
    return {e for e in entries if (e.job_id, e.fence, e.epoch, e.end, e.finish is not None) in heads}


COLUMNS = "id, fence, epoch, start, ending, token_count, tail, tail_channel, rolled, finish"
MOVE = """UPDATE jobs SET position = v.ending, token_count = v.token_count, finish = v.finish,
  tail = CASE WHEN v.rolled THEN v.tail ELSE jobs.tail || v.tail END, tail_channel = v.tail_channel, progressed_at ="""
STANDS = """jobs.id = v.id AND jobs.fence = v.fence AND jobs.epoch = v.epoch AND jobs.position = v.start
  AND jobs.finish IS NULL AND jobs.completed_at IS NULL"""


# ------------------------------------------------------------------------------------------------------ SQLite

CHECKPOINT_PAGES = 4_000
"""Pages that are written to the log between two checkpoints, roughly."""
HEAD_PAGES = 64
"""The most pages that a batch changes, roughly: about six heads share a page."""
WIDTHS = (64, 8)
"""Heads per statement. Each statement passes the interpreter lock once (sqlite_thread.py), each row costs time."""
NOBODY = (None,) * len(COLUMNS.split(", "))


def _heads_table(width: int) -> str:
    row = f"({', '.join('?' * len(NOBODY))})"
    names = ", ".join(f"column{n} AS {name}" for n, name in enumerate(COLUMNS.split(", "), 1))
    return f"(SELECT {names} FROM (VALUES {', '.join([row] * width)})) AS v"  # noqa: S608 - constants


SQLITE_MOVES = {width: f"{MOVE} ? FROM {_heads_table(width)} WHERE {STANDS}" for width in WIDTHS}
SQLITE_STANDS = f"SELECT 1 FROM {_heads_table(1)} JOIN jobs ON {STANDS}"  # noqa: S608 - constants
SQLITE_RUNS = """INSERT INTO transcript (job_id, epoch, position, channel, text, token_count)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
  json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?)"""


class SqliteBatches:
    def __init__(self, database: Database, thread: SqliteThread, spare: SqliteThread) -> None:
        self._database = database
        self._thread = thread
        self._spare = spare
        self._pages = 0
        self._much = asyncio.Event()

    async def append(self, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
        with translated():
            async with self._database.turn():
                accepted = await self._thread.run(partial(_append, entries))
        self._pages += min(len(accepted), HEAD_PAGES) + 2
        if self._pages >= CHECKPOINT_PAGES:
            self._much.set()
        return accepted

    async def checkpoint_for_ever(self) -> None:
        """Copy the write-ahead log into the database file while writing goes on.

        The long part, up to the present end of the log, blocks nothing; the rest is short and done under the write
        lock, so that the log starts from its beginning again.
        """
        while True:
            await self._much.wait()
            self._much.clear()
            self._pages = 0
            try:
                with translated():
                    await self._spare.run(_checkpoint_most)
                    async with self._database.turn():
                        await self._spare.run(_checkpoint_rest)
            except StorageError as error:
                log.warning("no checkpoint: %s", error, extra={"action": "checkpoint_failed"})


def _checkpoint_most(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _checkpoint_rest(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA busy_timeout=20")  # readers are short; after a long one, the next checkpoint does it
    connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()


def _append(entries: Sequence[BatchEntry], connection: sqlite3.Connection) -> set[BatchEntry]:
    """One transaction. In the usual case, where every job is where its writer believes, it reads nothing first."""
    connection.execute("BEGIN IMMEDIATE")
    if _move(connection, entries) < len(entries):
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        entries = [entry for entry in entries if connection.execute(SQLITE_STANDS, entry.head).fetchone()]
        _move(connection, entries)
    rows = [row for entry in entries for row in entry.rows]
    if rows:
        connection.execute(SQLITE_RUNS, (json.dumps(rows, ensure_ascii=False),))
    connection.execute("COMMIT")
    return set(entries)


def _move(connection: sqlite3.Connection, entries: Sequence[BatchEntry]) -> int:
    """The number of heads that moved."""
    heads, time = [entry.head for entry in entries], micros(now())
    return sum(
        connection.execute(SQLITE_MOVES[len(rows)], (time, *chain.from_iterable(rows))).rowcount
        for rows in _in_widths(heads)
    )


def _in_widths(heads: list[tuple[Any, ...]]) -> Iterable[list[tuple[Any, ...]]]:
    """The rows in groups of the sizes that statements exist for, the last filled up with rows that match no job."""
    while heads:
        width = WIDTHS[0] if len(heads) > WIDTHS[-1] * 3 else WIDTHS[-1]
        rows, heads = heads[:width], heads[width:]
        yield rows + [NOBODY] * (width - len(rows))


# ---------------------------------------------------------------------------------------------------- Postgres

# One statement is one round trip. Under READ COMMITTED the UPDATE waits for a row's lock and then checks its conditions
# again on the row as it is now (PostgreSQL documentation, 13.2.1), and only what it returns is inserted.
POSTGRES_BATCH = text(
    f"""
WITH moved AS (
  {MOVE} :now
  FROM (SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:epochs AS int[]),
    CAST(:starts AS bigint[]), CAST(:endings AS bigint[]), CAST(:token_counts AS bigint[]), CAST(:tails AS text[]),
    CAST(:tail_channels AS smallint[]), CAST(:rolled AS bool[]), CAST(:finishes AS text[]))
    WITH ORDINALITY AS b({COLUMNS}, place) ORDER BY id) AS v
  WHERE {STANDS}
  RETURNING v.place),
added AS (
  INSERT INTO transcript (job_id, epoch, position, channel, text, token_count)
  SELECT p.job_id, p.epoch, p.position, p.channel, p.text, p.token_count
  FROM unnest(CAST(:run_places AS int[]), CAST(:run_ids AS text[]), CAST(:run_epochs AS int[]),
    CAST(:run_positions AS bigint[]), CAST(:run_channels AS smallint[]), CAST(:run_texts AS text[]),
    CAST(:run_token_counts AS bigint[])) AS p(place, job_id, epoch, position, channel, text, token_count)
  JOIN moved ON moved.place = p.place
)
SELECT moved.place, pg_notify('{HINT_CHANNEL}', '') FROM moved
"""  # noqa: S608 - only constants of this module go into the text
)
HEADS = ("ids", "fences", "epochs", "starts", "endings", "token_counts", "tails", "tail_channels", "rolled", "finishes")
RUNS = ("places", "ids", "epochs", "positions", "channels", "texts", "token_counts")


class PostgresBatches:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
        rows = [(place, *row) for place, entry in enumerate(entries, 1) for row in entry.rows]
        values = {"now": micros(now())}
        values |= _columns(HEADS, [entry.head for entry in entries])
        values |= _columns([f"run_{name}" for name in RUNS], rows)
        async with self._database.single(own=True) as connection:
            return {entries[place - 1] for place in (await connection.execute(POSTGRES_BATCH, values)).scalars()}


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return dict(zip(names, map(list, columns), strict=True))
