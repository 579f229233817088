"""Writes the transcript: one group commit per process.

The writer takes everything that is pending from all its jobs, commits it in one transaction, and starts again at once.
Under light load the first token is visible within milliseconds; a busy worker writes larger batches.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from chatjobs.contracts import Channel
from chatjobs.errors import ChatJobsError
from domain.errors import FenceLost, StorageError, StorageRefused, StorageUnavailable
from domain.tasks import cancel_and_wait
from domain.text import Normaliser, clean_json
from domain.timings import Timings
from domain.values import Claim, FinishRecord, TextRun
from storage.engine.database import Database
from storage.engine.schema import CHANNELS
from storage.transcript.batches import BatchEntry, TextBatches, already_in, batches

log = logging.getLogger(__name__)

MAX_PENDING_PER_JOB = 256 * 1024
MAX_PENDING = 64 * 1024 * 1024
"""Bytes of text that may wait for the database, per job and per process; beyond them upstream reading stops."""
PAUSE = 0.002
"""Seconds between two commits at least, for SQLite's other writers."""
TAIL_CHARACTERS = 256
"""The most of the newest text that a job's row holds."""
JOIN_AFTER = 64


class TranscriptWriter:
    """The group commit of one process. Run it with ``async with writer.running():``."""

    def __init__(self, database: Database, *, max_pending: int = MAX_PENDING, timings: Timings = Timings()) -> None:
        self._database = database
        self._retry_pauses = timings.writer_retry_pauses_seconds
        self._max_pending = max_pending
        self._dirty: dict[JobWriter, None] = {}
        self._in_flight: set[JobWriter] = set()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self.pending_bytes = 0
        self.stopped: StorageUnavailable | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TranscriptWriter]:
        """Commit while the block runs. Callers that need their text to be durable await ``flush`` before its end."""
        async with batches(self._database) as target:
            task = asyncio.create_task(self._commit_for_ever(target), name="transcript writer")
            try:
                yield self
            finally:
                try:
                    await cancel_and_wait(task)
                finally:
                    self._stop()

    def open(self, claim: Claim, stale: Callable[[], bool] = lambda: False) -> JobWriter:
        """A writer for the attempt that holds ``claim``. ``stale``, called directly before each batch, says whether
        pending text must be dropped."""
        return JobWriter(self, claim, stale)

    @property
    def full(self) -> bool:
        return self.pending_bytes >= self._max_pending

    def mark_dirty(self, job: JobWriter) -> None:
        self._dirty[job] = None
        self._work.set()

    async def wait_for_room(self) -> None:
        while self.full and not self.stopped:
            self._room.clear()
            await self._room.wait()

    async def _commit_for_ever(self, target: TextBatches) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            taken, self._dirty = self._dirty, {}
            batch = {job: entry for job in sorted(taken, key=lambda job: job.job_id) if (entry := job.take())}
            self._in_flight = set(batch)
            await self._commit(target, batch)
            await asyncio.sleep(PAUSE)

    async def _commit(self, target: TextBatches, batch: dict[JobWriter, BatchEntry]) -> None:
        """Commit a batch. A batch that the database refuses is halved until the job that causes it is alone."""
        if not batch:
            return
        try:
            accepted = await self._append(target, list(batch.values()))
        except StorageRefused as error:
            await self._bisect(target, batch, error)
        except Exception as error:
            log.exception("transcript writer failed", extra={"action": "transcript_failed"})
            failure = StorageError(f"The transcript could not be written ({type(error).__name__})")
            for job in batch:
                self.settle(job, failure)
        else:
            for job, entry in batch.items():
                self.settle(job, None if entry in accepted else FenceLost())

    async def _bisect(self, target: TextBatches, batch: dict[JobWriter, BatchEntry], error: StorageRefused) -> None:
        if len(batch) == 1:
            (job,) = batch
            self.settle(job, error)
            return
        halves, middle = list(batch.items()), len(batch) // 2
        await self._commit(target, dict(halves[:middle]))
        await self._commit(target, dict(halves[middle:]))

    async def _append(self, target: TextBatches, entries: Sequence[BatchEntry]) -> set[BatchEntry]:
        """The entries that were committed, after waiting while the database is unavailable."""
        for attempt in range(10**9):
            try:
                accepted = await target.append(entries)
                missed = [entry for entry in entries if entry not in accepted]
                # An earlier try may have been committed and its answer lost: then the row is at the entry's end.
                return accepted | await already_in(self._database, missed) if missed else accepted
            except StorageUnavailable as error:
                log.warning("transcript not writable, waiting: %s", error, extra={"action": "transcript_waiting"})
                await asyncio.sleep(self._retry_pauses[min(attempt, len(self._retry_pauses) - 1)])
        raise AssertionError("unreachable")

    def settle(self, job: JobWriter, error: ChatJobsError | None) -> None:
        """Report to a job that its batch is committed, or, with an ``error``, that nothing more of it will be."""
        self._in_flight.discard(job)
        job.settled(error)
        self._room.set()

    def _stop(self) -> None:
        """Fail the jobs that still wait for the database; their text may or may not be committed."""
        self.stopped = StorageUnavailable("The transcript writer has stopped")
        for job in [*self._in_flight, *self._dirty]:
            self.settle(job, self.stopped)


@dataclass(slots=True)
class _Pending:
    """The text of one job that waits for its batch, from position ``start`` on; ``bytes`` is its size in UTF-8.

    The newest run is open: its deltas are in ``texts``, those before it in ``runs``.
    """

    start: int
    position: int
    token_count: int
    channel: Channel = Channel.CONTENT
    texts: list[str] = field(default_factory=list)
    runs: list[TextRun] = field(default_factory=list)
    bytes: int = 0
    finish: str | None = None

    def add(self, channel: Channel, text: str, position: int, token_count: int) -> None:
        if channel is not self.channel:
            self.close()
            self.channel = channel
        self.position, self.token_count = position, token_count
        self.texts.append(text)
        if len(self.texts) > JOIN_AFTER:  # a string object takes ten times the memory of a token's text
            self.texts[:] = ["".join(self.texts)]

    def close(self) -> None:
        """End the open run."""
        if self.texts:
            self.runs.append(TextRun(self.position, self.channel, "".join(self.texts), self.token_count))
            self.texts = []


class _Tail:
    """The newest text, which the job's row holds. A new claim starts without it (AttemptStore moves it away)."""

    def __init__(self) -> None:
        self._held: TextRun | None = None

    def add(self, runs: Sequence[TextRun]) -> tuple[Sequence[TextRun], str, Channel]:
        """The runs for the transcript (too long for the tail, or of another channel), then text and channel for the
        row: appended to its tail, or, if there are runs, in place of it."""
        rolled, held, kept = [], self._held, ""
        for new in runs:
            if held and held.channel is not new.channel:
                rolled.append(held)
                held, kept = None, ""
            kept += new.text
            held = new._replace(text=held.text + new.text) if held else new
            if len(held.text) > TAIL_CHARACTERS:
                rolled.append(held)
                held, kept = None, ""
        self._held = held
        return rolled, kept, held.channel if held else Channel.CONTENT


class JobWriter:
    """The writer of one attempt. Text gets its position when it is appended, and is durable a moment later."""

    def __init__(self, writer: TranscriptWriter, claim: Claim, stale: Callable[[], bool] = lambda: False) -> None:
        self.job_id = claim.job_id
        self.fence = claim.fence
        self.epoch = claim.epoch
        self.position = claim.position
        """The position after all appended text, durable or not."""
        self.token_count = claim.token_count
        self._writer = writer
        self._stale = stale
        self._normalisers = {channel: Normaliser() for channel in Channel}
        self._tail = _Tail()
        self._pending: _Pending | None = None
        self._in_flight: BatchEntry | None = None
        self._bytes_in_flight = 0
        self._changed = asyncio.Event()
        self._error: ChatJobsError | None = None

    def append(self, channel: Channel, text: str, tokens: int = 1) -> None:
        """Append one delta of ``tokens`` tokens. Raises the error that stopped the writer: FenceLost, StorageRefused,
        StorageUnavailable."""
        self._check()
        self.token_count += tokens
        self._add(channel, self._normalisers[channel].feed(text))

    @property
    def full(self) -> bool:
        """Too much text waits for the database: await ``room`` before reading more from upstream."""
        waiting = self._bytes_in_flight + (self._pending.bytes if self._pending else 0)
        return waiting >= MAX_PENDING_PER_JOB or self._writer.full

    async def room(self) -> None:
        """Wait until there is space again. Raises as ``append``."""
        while self.full:
            self._check()
            if self._writer.full:
                await self._writer.wait_for_room()
            else:
                await self._change()
        self._check()

    async def flush(self) -> None:
        """Wait until all appended text is durable. There is no time limit: the caller sets one where it matters.

        Raises as ``append``; StorageUnavailable only when the writer has stopped.
        """
        while self._pending or self._in_flight:
            self._check()
            await self._change()
        self._check()

    def end_text(self) -> None:
        """Append what was withheld until the text has ended: half of a surrogate pair. Raises as ``append``."""
        self._check()
        for channel, normaliser in self._normalisers.items():
            self._add(channel, normaliser.end())

    async def finish(self, record: FinishRecord) -> None:
        """Commit the end of the answer together with its last text. Raises as ``flush``."""
        self.end_text()
        self._collecting().finish = json.dumps(clean_json(record.model_dump(mode="json")), ensure_ascii=False)
        await self.flush()

    def restarted(self, epoch: int) -> None:
        """The text was discarded (AttemptStore.restart); nothing may be pending."""
        self.epoch, self.position, self.token_count = epoch, 0, 0
        self._normalisers = {channel: Normaliser() for channel in Channel}
        self._tail = _Tail()

    # ------------------------------------------------------------------------------- the writer's side

    def take(self) -> BatchEntry | None:
        """Take the pending text, unless the batch before is still being committed."""
        if self._in_flight or not self._pending:
            return None
        if self._stale():
            self._writer.settle(self, FenceLost("The process stood still, and Temporal took it for dead"))
            return None
        pending, self._pending = self._pending, None
        pending.close()
        runs, tail, channel = self._tail.add(pending.runs)
        rows = (
            (self.job_id, self.epoch, run.position, CHANNELS.index(run.channel), run.text, run.token_count)
            for run in runs
        )
        self._in_flight = BatchEntry(
            job_id=self.job_id,
            fence=self.fence,
            epoch=self.epoch,
            start=pending.start,
            end=self.position,
            token_count=self.token_count,
            tail=tail,
            tail_channel=CHANNELS.index(channel),
            rolled=bool(runs),
            finish=pending.finish,
            rows=tuple(rows),
        )
        self._bytes_in_flight = pending.bytes
        return self._in_flight

    def settled(self, error: ChatJobsError | None) -> None:
        """The batch that was taken is committed, or, with an ``error``, never will be."""
        if self._in_flight:
            self._writer.pending_bytes -= self._bytes_in_flight
            self._in_flight, self._bytes_in_flight = None, 0
        if error:
            self._error = error
            self._writer.pending_bytes -= self._pending.bytes if self._pending else 0
            self._pending = None
        elif self._pending:
            self._writer.mark_dirty(self)
        self._changed.set()

    def _check(self) -> None:
        error = self._error or self._writer.stopped
        if error:
            raise type(error)(error.message)  # a new one each time: a raised exception accumulates tracebacks

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _collecting(self) -> _Pending:
        if self._pending is None:
            self._pending = _Pending(self.position, self.position, self.token_count)
            self._writer.mark_dirty(self)
        return self._pending

    def _add(self, channel: Channel, text: str) -> None:
        if not text:
            return
        pending = self._collecting()
        self.position += len(text)
        size = len(text) if text.isascii() else len(text.encode())
        pending.bytes += size
        self._writer.pending_bytes += size
        pending.add(channel, text, self.position, self.token_count)
