"""Writing the transcript: one group commit per process.

The writer takes everything that is pending from all its jobs, commits it in one transaction, and starts again at once.
Under light load the first token is visible within milliseconds; a busy worker writes larger batches. Every batch is a
compare-and-set under each job's row lock, on fence, epoch and position, so that a zombie changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Channel
from chatjobs.errors import ChatJobsError, FenceLost, StorageError, StorageRefused, StorageUnavailable
from storage.database import Database
from storage.schema import CHANNELS, jobs, micros, now, transcript
from storage.text import Normaliser
from storage.values import Claim, FinishRecord

log = logging.getLogger(__name__)

MAX_PENDING_PER_JOB = 256 * 1024
MAX_PENDING = 64 * 1024 * 1024
"""Bytes of text that wait for the database, per job and per process; beyond them upstream reading has to stop."""
PAUSE = 0.001
"""Seconds between two commits at least: SQLite's other writers get their turn."""
RETRY_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries while the database is away; the last repeats."""
HINT_CHANNEL = "chatjobs_transcript"
"""Postgres NOTIFY channel: a hint that somebody may look, never the data."""


@dataclass(slots=True)
class Piece:
    """Neighbouring deltas of one channel. ``position`` and ``token_count`` are those after it."""

    channel: int
    texts: list[str]
    position: int
    token_count: int


@dataclass(slots=True)
class Entry:
    """What one job adds in one batch, from ``start`` on; ``bytes`` is what it holds in memory."""

    job_id: str
    fence: int
    epoch: int
    start: int
    end: int
    token_count: int
    pieces: list[Piece] = field(default_factory=list)
    bytes: int = 0
    finish: str | None = None


class TranscriptWriter:
    """The group commit of one process. Run it with ``async with writer.running():``."""

    def __init__(self, database: Database, *, max_pending: int = MAX_PENDING) -> None:
        self._batches: Batches = _SqliteBatches(database) if database.is_sqlite else _PostgresBatches(database)
        self._max_pending = max_pending
        self._dirty: dict[JobWriter, None] = {}
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self.pending_bytes = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TranscriptWriter]:
        """Commits while the block runs. Whoever needs text to be durable awaits ``flush`` before leaving."""
        task = asyncio.create_task(self._commit_for_ever(), name="transcript writer")
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def open(self, claim: Claim) -> JobWriter:
        """A writer for the attempt that holds ``claim``."""
        return JobWriter(self, claim)

    @property
    def full(self) -> bool:
        return self.pending_bytes >= self._max_pending

    def mark_dirty(self, job: JobWriter) -> None:
        self._dirty[job] = None
        self._work.set()

    async def wait_for_room(self) -> None:
        while self.full:
            self._room.clear()
            await self._room.wait()

    async def _commit_for_ever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            taken, self._dirty = self._dirty, {}
            batch = {job: entry for job in sorted(taken, key=lambda job: job.job_id) if (entry := job.take())}
            await self._commit(batch)
            await asyncio.sleep(PAUSE)

    async def _commit(self, batch: dict[JobWriter, Entry]) -> None:
        """Commit a batch; a part that the database refuses is cut in halves until the guilty job is alone."""
        if not batch:
            return
        try:
            accepted = await self._append(list(batch.values()))
        except StorageRefused as error:
            halves = list(batch.items())
            if len(halves) == 1:
                self._settle(*halves[0], error)
                return
            middle = len(halves) // 2
            await self._commit(dict(halves[:middle]))
            await self._commit(dict(halves[middle:]))
            return
        except Exception as error:
            log.exception("transcript writer failed", extra={"action": "transcript_failed"})
            for job, entry in batch.items():
                self._settle(job, entry, StorageError(f"The transcript could not be written ({type(error).__name__})"))
            return
        for job, entry in batch.items():
            self._settle(job, entry, None if entry.job_id in accepted else FenceLost())

    async def _append(self, entries: list[Entry]) -> set[str]:
        """The ids of the jobs whose text is in, waiting as long as the database is away."""
        for attempt in range(10**9):
            try:
                accepted = await self._batches.append(entries)
                missed = [entry for entry in entries if entry.job_id not in accepted]
                # After a failure the commit may have happened all the same: then the row already stands at the end.
                return accepted | (await self._batches.already_in(missed) if missed and attempt else set())
            except StorageUnavailable as error:
                log.warning("transcript not writable, waiting: %s", error, extra={"action": "transcript_waiting"})
                await asyncio.sleep(RETRY_PAUSES[min(attempt, len(RETRY_PAUSES) - 1)])
        raise AssertionError("unreachable")

    def _settle(self, job: JobWriter, entry: Entry, error: ChatJobsError | None) -> None:
        self.pending_bytes -= entry.bytes
        self._room.set()
        job.settled(entry, error)


class JobWriter:
    """The pen of one attempt. Text gets its position when it is appended and is durable a moment later."""

    def __init__(self, writer: TranscriptWriter, claim: Claim) -> None:
        self.job_id = claim.job_id
        self.fence = claim.fence
        self.epoch = claim.epoch
        self.position = claim.position
        """After everything appended, durable or not."""
        self.token_count = claim.token_count
        self.committed = claim.position
        self._writer = writer
        self._normalisers = [Normaliser() for _ in CHANNELS]
        self._pending: Entry | None = None
        self._in_flight: Entry | None = None
        self._changed = asyncio.Event()
        self._error: ChatJobsError | None = None

    def append(self, channel: Channel, text: str) -> None:
        """Add one delta. Raises what made the writer stop: FenceLost, StorageRefused."""
        self._check()
        number = CHANNELS.index(channel)
        self._add(number, self._normalisers[number].feed(text), deltas=1)

    @property
    def full(self) -> bool:
        """Too much waits for the database: await ``room`` before reading more from upstream."""
        waiting = sum(entry.bytes for entry in (self._pending, self._in_flight) if entry)
        return waiting >= MAX_PENDING_PER_JOB or self._writer.full

    async def room(self) -> None:
        """Wait until there is space again. Raises FenceLost, StorageRefused."""
        while self.full:
            self._check()
            if self._writer.full:
                await self._writer.wait_for_room()
            else:
                await self._change()

    async def flush(self) -> None:
        """Wait until everything appended is durable. Raises FenceLost, StorageRefused."""
        while self._pending or self._in_flight:
            self._check()
            await self._change()
        self._check()

    async def finish(self, record: FinishRecord) -> None:
        """Commit the end of the answer together with its last text. Raises FenceLost, StorageRefused."""
        self._check()
        for number, normaliser in enumerate(self._normalisers):
            self._add(number, normaliser.end(), deltas=0)
        entry = self._open_entry()
        entry.finish = record.model_dump_json()
        self._writer.mark_dirty(self)
        await self.flush()

    def restarted(self, epoch: int) -> None:
        """The text so far was thrown away (JobStore.restart); nothing may be pending."""
        self.epoch, self.position, self.committed, self.token_count = epoch, 0, 0, 0

    # ------------------------------------------------------------------------------- the writer's side

    def take(self) -> Entry | None:
        """What is pending, once what was taken before is settled."""
        if self._in_flight is None:
            self._in_flight, self._pending = self._pending, None
            return self._in_flight
        return None

    def settled(self, entry: Entry, error: ChatJobsError | None) -> None:
        self._in_flight = None
        if error:
            self._error = error
            self._drop_pending()
        else:
            self.committed = entry.end
            if self._pending:
                self._writer.mark_dirty(self)
        self._changed.set()

    def _drop_pending(self) -> None:
        if self._pending:
            self._writer.pending_bytes -= self._pending.bytes
            self._pending = None

    def _check(self) -> None:
        if self._error:
            raise self._error

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _open_entry(self) -> Entry:
        if self._pending is None:
            at = self.position
            self._pending = Entry(self.job_id, self.fence, self.epoch, at, at, self.token_count)
        return self._pending

    def _add(self, channel: int, text: str, deltas: int) -> None:
        self.token_count += deltas
        if not text:
            return
        entry = self._open_entry()
        self.position += len(text)
        last = entry.pieces[-1] if entry.pieces else None
        if last and last.channel == channel:
            last.texts.append(text)
            last.position, last.token_count = self.position, self.token_count
        else:
            entry.pieces.append(Piece(channel, [text], self.position, self.token_count))
        size = len(text) if text.isascii() else len(text.encode())
        entry.end, entry.token_count, entry.bytes = self.position, self.token_count, entry.bytes + size
        self._writer.pending_bytes += size
        self._writer.mark_dirty(self)


class Batches(Protocol):
    """The two statements of the group commit, in a database's own words."""

    async def append(self, entries: Sequence[Entry]) -> set[str]:
        """Commit a batch; the ids of the jobs that still stood where the batch starts."""
        ...

    async def already_in(self, entries: Sequence[Entry]) -> set[str]:
        """The ids of the jobs that stand where the batch ends: it was committed before."""
        ...


MOVE = """
UPDATE jobs SET position = v.ending, token_count = v.token_count, progressed_at = :now, finish = v.finish
FROM {batch} AS v
WHERE jobs.id = v.id AND jobs.fence = v.fence AND jobs.epoch = v.epoch AND jobs.position = v.start
  AND jobs.finish IS NULL AND jobs.completed_at IS NULL
RETURNING jobs.id
"""

SQLITE_MOVE = text(
    MOVE.format(
        batch="""(SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS fence,
        json_extract(value, '$[2]') AS epoch, json_extract(value, '$[3]') AS start,
        json_extract(value, '$[4]') AS ending, json_extract(value, '$[5]') AS token_count,
        json_extract(value, '$[6]') AS finish FROM json_each(:batch))"""
    )
)

# One statement is one round trip. Under READ COMMITTED the UPDATE waits for a row's lock and then checks its conditions
# again on the row as it is now (PostgreSQL documentation, 13.2.1), and only what it returns is inserted.
POSTGRES_BATCH = text(
    f"""
WITH moved AS ({
        MOVE.format(
            batch='''(SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:epochs AS int[]),
            CAST(:starts AS bigint[]), CAST(:endings AS bigint[]), CAST(:token_counts AS bigint[]),
            CAST(:finishes AS text[])) AS b(id, fence, epoch, start, ending, token_count, finish) ORDER BY id)'''
        )
    }),
added AS (
  INSERT INTO transcript (job_id, epoch, position, channel, text, token_count)
  SELECT p.job_id, p.epoch, p.position, p.channel, p.text, p.token_count
  FROM unnest(CAST(:piece_ids AS text[]), CAST(:piece_epochs AS int[]), CAST(:piece_positions AS bigint[]),
    CAST(:piece_channels AS smallint[]), CAST(:piece_texts AS text[]), CAST(:piece_token_counts AS bigint[]))
    AS p(job_id, epoch, position, channel, text, token_count)
  JOIN moved ON moved.id = p.job_id
)
SELECT moved.id, pg_notify('{HINT_CHANNEL}', '') FROM moved
"""  # noqa: S608 - only constants of this module go into the text
)


class _SqliteBatches:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, entries: Sequence[Entry]) -> set[str]:
        batch = [[e.job_id, e.fence, e.epoch, e.start, e.end, e.token_count, e.finish] for e in entries]
        async with self._database.write("fast") as connection:
            moved = await connection.execute(SQLITE_MOVE, {"batch": json.dumps(batch), "now": micros(now())})
            accepted = set(moved.scalars())
            rows = [
                {
                    "job_id": entry.job_id,
                    "epoch": entry.epoch,
                    "position": piece.position,
                    "channel": piece.channel,
                    "text": "".join(piece.texts),
                    "token_count": piece.token_count,
                }
                for entry in entries
                if entry.job_id in accepted
                for piece in entry.pieces
            ]
            if rows:
                await connection.execute(insert(transcript), rows)
        return accepted

    async def already_in(self, entries: Sequence[Entry]) -> set[str]:
        async with self._database.read() as connection:
            return await _standing_at_the_end(connection, entries)


class _PostgresBatches:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, entries: Sequence[Entry]) -> set[str]:
        pieces = [(entry, piece) for entry in entries for piece in entry.pieces]
        async with self._database.single() as connection:
            moved = await connection.execute(
                POSTGRES_BATCH,
                {
                    "now": micros(now()),
                    "ids": [e.job_id for e in entries],
                    "fences": [e.fence for e in entries],
                    "epochs": [e.epoch for e in entries],
                    "starts": [e.start for e in entries],
                    "endings": [e.end for e in entries],
                    "token_counts": [e.token_count for e in entries],
                    "finishes": [e.finish for e in entries],
                    "piece_ids": [e.job_id for e, _ in pieces],
                    "piece_epochs": [e.epoch for e, _ in pieces],
                    "piece_positions": [p.position for _, p in pieces],
                    "piece_channels": [p.channel for _, p in pieces],
                    "piece_texts": ["".join(p.texts) for _, p in pieces],
                    "piece_token_counts": [p.token_count for _, p in pieces],
                },
            )
            return set(moved.scalars())

    async def already_in(self, entries: Sequence[Entry]) -> set[str]:
        async with self._database.read() as connection:
            return await _standing_at_the_end(connection, entries)


async def _standing_at_the_end(connection: AsyncConnection, entries: Sequence[Entry]) -> set[str]:
    expected = {e.job_id: (e.fence, e.epoch, e.end, e.finish is not None) for e in entries}
    query = select(jobs.c.id, jobs.c.fence, jobs.c.epoch, jobs.c.position, jobs.c.finish)
    rows = (await connection.execute(query.where(jobs.c.id.in_(expected)))).all()
    return {r.id for r in rows if (r.fence, r.epoch, r.position, r.finish is not None) == expected[r.id]}
