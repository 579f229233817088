"""Reading the transcript from any position, live or finished.

A reader selects by (job, epoch, position), never by a global sequence: rows of several writers become visible out of
order. Text and state of a job come from one statement, which is one snapshot: a compaction in between would show
neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import Row, select, text

from chatjobs.contracts import JobStatus
from chatjobs.errors import ChatJobsError, JobNotFound
from storage.database import Database, translated
from storage.schema import CHANNELS, jobs, results
from storage.transcript import HINT_CHANNEL
from storage.values import Cursor, Run, Slice

POLL_SECONDS = 0.005
"""Between two looks at whether anything was written (SQLite: one pragma, no query)."""
UNHINTED_POLL_SECONDS = 0.1
"""On Postgres, where NOTIFY hints: how late a lost hint may make a reader."""

RETRY_SECONDS = 0.5
"""Between tries while the database is away."""

log = logging.getLogger(__name__)

_CURSORS_SQLITE = """SELECT json_extract(value, '$[0]') AS place, json_extract(value, '$[1]') AS id,
json_extract(value, '$[2]') AS epoch, json_extract(value, '$[3]') AS position FROM json_each(:cursors)"""
_CURSORS_POSTGRES = """SELECT * FROM unnest(CAST(:places AS int[]), CAST(:ids AS text[]), CAST(:epochs AS int[]),
CAST(:positions AS bigint[])) AS u(place, id, epoch, position)"""
_NEWS = """
WITH w AS ({cursors})
SELECT w.place, j.id, j.epoch, j.position, j.status, j.completed_at, j.reset_reason, j.started_at, j.attempt,
  c.position AS piece_position, c.channel, c.text, c.token_count
FROM w JOIN jobs j ON j.id = w.id
LEFT JOIN transcript c ON c.job_id = j.id AND c.epoch = j.epoch
  AND c.position > CASE WHEN w.epoch = j.epoch AND w.position <= j.position THEN w.position ELSE 0 END
WHERE :all OR w.epoch <> j.epoch OR w.position <> j.position OR j.completed_at IS NOT NULL
ORDER BY w.place, c.position
"""
NEWS_SQLITE = text(_NEWS.format(cursors=_CURSORS_SQLITE))
NEWS_POSTGRES = text(_NEWS.format(cursors=_CURSORS_POSTGRES))


class TranscriptReader:
    """Reads for many readers at once; ``running`` must be entered for ``wait`` and ``follow``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[asyncio.Future[Slice], Cursor] = {}
        self._newcomers = asyncio.Event()

    async def read(self, cursor: Cursor) -> Slice:
        """What a reader lacks now; its runs may be empty. Raises JobNotFound."""
        found = await self.read_many([cursor], everything=True)
        if not found:
            raise JobNotFound
        return found[0]

    async def read_many(self, cursors: Sequence[Cursor], *, everything: bool = False) -> Mapping[int, Slice]:
        """Slices by the place of their cursor; jobs without news are left out unless ``everything``."""
        async with self._database.read() as connection:
            rows = (await connection.execute(*self._query(cursors, everything))).all()
        slices: dict[int, Slice] = {}
        for place, group in groupby(rows, key=lambda row: row.place):
            job_rows = list(group)
            if job_rows[0].completed_at is None:
                slices[place] = _live(cursors[place], job_rows)
            elif finished := await self._finished(cursors[place]):
                slices[place] = finished
        return slices

    async def wait(self, cursor: Cursor) -> Slice:
        """The next slice with news: text, another epoch, or the end. Nothing is held for a reader in between.

        Raises JobNotFound where the job is gone, StorageUnavailable.
        """
        future: asyncio.Future[Slice] = asyncio.get_running_loop().create_future()
        self._waiting[future] = cursor
        self._newcomers.set()
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def follow(self, cursor: Cursor) -> AsyncIterator[Slice]:
        """Every slice from a cursor to the end of the job. Raises JobNotFound."""
        await self.read(cursor)
        while True:
            piece = await self.wait(cursor)
            yield piece
            if piece.status.terminal:
                return
            cursor = piece.cursor

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TranscriptReader]:
        """Looks for news while the block runs and somebody waits."""
        task = asyncio.create_task(self._look_for_ever(), name="transcript reader")
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _look_for_ever(self) -> None:
        watch = self._watch_sqlite if self._database.is_sqlite else self._watch_postgres
        while True:
            try:
                with translated():
                    await watch()
            except ChatJobsError as error:
                log.warning("transcript not readable, waiting: %s", error, extra={"action": "reader_waiting"})
                self._fail_all(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch_sqlite(self) -> None:
        """Look when another connection has committed, or when there is a new reader."""
        async with self._database.reading.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            seen = None
            while True:
                if not self._waiting:
                    await self._newcomers.wait()
                version = (await connection.exec_driver_sql("PRAGMA data_version")).scalar()
                if version != seen or self._newcomers.is_set():
                    self._newcomers.clear()
                    await self._look()
                seen = version
                await asyncio.sleep(POLL_SECONDS)

    async def _watch_postgres(self) -> None:
        """Look on a hint, when there is a new reader, and now and then in case a hint was lost."""
        async with self._database.reading.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            hinted = self._newcomers
            await raw.add_listener(HINT_CHANNEL, lambda *_: hinted.set())
            while True:
                if not self._waiting:
                    await hinted.wait()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hinted.wait(), UNHINTED_POLL_SECONDS)
                hinted.clear()
                await self._look()
                await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        waiting = [(future, cursor) for future, cursor in self._waiting.items() if not future.done()]
        if not waiting:
            return
        for place, piece in (await self.read_many([cursor for _, cursor in waiting])).items():
            if not waiting[place][0].done():
                waiting[place][0].set_result(piece)

    def _fail_all(self, error: ChatJobsError) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    def _query(self, cursors: Sequence[Cursor], everything: bool) -> tuple[Any, dict[str, Any]]:
        if self._database.is_sqlite:
            places = [[n, c.job_id, c.epoch, c.position] for n, c in enumerate(cursors)]
            return NEWS_SQLITE, {"cursors": json.dumps(places), "all": everything}
        return NEWS_POSTGRES, {
            "places": list(range(len(cursors))),
            "ids": [c.job_id for c in cursors],
            "epochs": [c.epoch for c in cursors],
            "positions": [c.position for c in cursors],
            "all": everything,
        }

    async def _finished(self, cursor: Cursor) -> Slice | None:
        """The rest of a sealed job; None if it was reopened or deleted since."""
        async with self._database.read() as connection:
            query = select(jobs, results).join(results, results.c.job_id == jobs.c.id)
            row = (await connection.execute(query.where(jobs.c.id == cursor.job_id))).first()
            return None if row is None else _sealed(cursor, row)


def _live(cursor: Cursor, rows: Sequence[Row[Any]]) -> Slice:
    head = rows[0]
    reset, start = _place(cursor, head.epoch, head.position)
    runs = []
    at = start
    for row in rows:
        if row.piece_position is None:
            continue
        fresh = row.text[len(row.text) - (row.piece_position - at) :]  # a cursor may lie within a piece
        at = row.piece_position
        runs.append(Run(CHANNELS[row.channel], fresh, row.token_count))
    return Slice(
        job_id=head.id,
        epoch=head.epoch,
        position=at,
        runs=_merged(runs),
        reset=reset,
        status=JobStatus(head.status),
        attempt=head.attempt,
        reset_reason=head.reset_reason,
        started=head.started_at is not None,
    )


def _sealed(cursor: Cursor, row: Row[Any]) -> Slice:
    reset, start = _place(cursor, row.epoch, row.position)
    return Slice(
        job_id=row.id,
        epoch=row.epoch,
        position=row.position,
        runs=_merged(_compacted(row, start)),
        reset=reset,
        status=JobStatus(row.status),
        attempt=row.attempt,
        reset_reason=row.reset_reason,
        started=row.started_at is not None,
    )


def _compacted(row: Row[Any], start: int) -> Iterable[Run]:
    """The runs of a compacted transcript from a position on."""
    texts, taken, position = (row.content, row.reasoning), [0, 0], 0
    for channel, length, token_count in json.loads(row.runs):
        skip = min(max(start - position, 0), length)
        piece = texts[channel][taken[channel] + skip : taken[channel] + length]
        taken[channel] += length
        position += length
        if piece:
            yield Run(CHANNELS[channel], piece, token_count)


def _place(cursor: Cursor, epoch: int, position: int) -> tuple[bool, int]:
    """Whether the reader has to start over, and from where it reads."""
    known = cursor.epoch == epoch and cursor.position <= position
    nothing_yet = cursor.epoch == 1 and cursor.position == 0
    return not known and not nothing_yet, cursor.position if known else 0


def _merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """One run per change of channel."""
    merged = []
    for channel, group in groupby(runs, key=lambda run: run.channel):
        neighbours = list(group)
        merged.append(Run(channel, "".join(run.text for run in neighbours), neighbours[-1].token_count))
    return tuple(merged)
