"""Reading the transcript from any position, live or finished.

A reader selects by (job, epoch, position), never by a global sequence: rows of several writers become visible out of
order. Text, state and result of a job come from one statement, which is one snapshot: a compaction in between would
show neither.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby, islice
from operator import attrgetter

from chatjobs.contracts import Channel, JobStatus
from chatjobs.errors import ContentDeleted, JobNotFound
from domain.errors import StorageUnavailable
from domain.tasks import cancel_and_wait
from domain.timings import Timings
from domain.values import Cursor, Slice, TextRun
from storage.engine.database import Database
from storage.engine.schema import CHANNELS
from storage.jobs.mapping import compacted_runs
from storage.transcript.changes import ChangeSource, TextChange, fetch, watch

PATIENCE = 4
"""Tries that fail before the readers are told: about what a restart of the database takes."""
MAX_ID_CHARACTERS = 128
READERS_PER_LOOK = 1_000
"""A bound on what one look holds in memory."""

log = logging.getLogger(__name__)


class TranscriptReader:
    """Reads for many readers at once; ``running`` must be entered for ``wait`` and ``follow``."""

    def __init__(self, database: Database, *, timings: Timings = Timings()) -> None:
        self._database = database
        self._retry_seconds = timings.reader_retry_seconds
        self._waiting: dict[asyncio.Future[Slice], Cursor] = {}
        self._newcomers = asyncio.Event()
        self._up_to_date: set[Cursor] = set()
        """Where the last look left its readers: whoever comes back from there has missed nothing."""
        self._failures = 0
        self._stopped: StorageUnavailable | None = None

    async def read(self, cursor: Cursor) -> Slice:
        """What a reader lacks now; its runs may be empty. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
        (news,) = await fetch(self._database, [_possible(cursor)], everything=True)
        return _slice(cursor, news)

    async def wait(self, cursor: Cursor) -> Slice:
        """The next slice with news: text, another epoch, or the end. Nothing is held for a reader in between.

        Raises JobNotFound, ContentDeleted, StorageUnavailable if the database stays away or the reader has stopped.
        """
        if self._stopped:
            raise StorageUnavailable(self._stopped.message)
        future: asyncio.Future[Slice] = asyncio.get_running_loop().create_future()
        self._waiting[future] = _possible(cursor)
        if cursor not in self._up_to_date:
            self._newcomers.set()
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def follow(self, cursor: Cursor) -> AsyncIterator[Slice]:
        """Every slice from a cursor to the end of the job. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
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
            await cancel_and_wait(task)
            self._stopped = StorageUnavailable("The transcript reader has stopped")
            self._fail_all(self._stopped)

    async def _look_for_ever(self) -> None:
        while True:
            try:
                async with watch(self._database, self._newcomers) as place:
                    while True:
                        await self._look(place)
                        self._failures = 0
            except StorageUnavailable as error:
                log.warning("transcript not readable, waiting: %s", error, extra={"action": "reader_waiting"})
                self._failed(error)
            except Exception as error:
                log.exception("transcript reader failed", extra={"action": "reader_failed"})
                self._failed(StorageUnavailable(f"The transcript cannot be read ({type(error).__name__})"))
            await asyncio.sleep(self._retry_seconds)

    async def _look(self, place: ChangeSource) -> None:
        """Wait until there may be news, and hand out what there is."""
        if not self._waiting:
            await self._newcomers.wait()
        await place.changed()
        # Who comes back while this look is under way is in none: what it was called for may be his news.
        self._up_to_date = set()
        up_to_date: set[Cursor] = set()
        places: dict[Cursor, list[asyncio.Future[Slice]]] = {}
        for future, cursor in self._waiting.items():
            if not future.done():
                places.setdefault(cursor, []).append(future)  # many may read one job: its text is fetched once
        readers = iter(places.items())
        while some := list(islice(readers, READERS_PER_LOOK)):
            for news in await place.fetch([cursor for cursor, _ in some]):
                self._hand_out(*some[news.place], news, up_to_date)
        self._up_to_date = up_to_date

    def _hand_out(
        self, cursor: Cursor, futures: Sequence[asyncio.Future[Slice]], news: TextChange, up_to_date: set[Cursor]
    ) -> None:
        waiting = [future for future in futures if not future.done()]
        try:
            piece = _slice(cursor, news)
        except (JobNotFound, ContentDeleted) as error:
            for future in waiting:
                future.set_exception(type(error)(error.message))
            return
        if not piece.status.terminal:  # whoever comes from this place may have read it before the job ended there
            up_to_date.add(piece.cursor)
        for future in waiting:
            future.set_result(piece)

    def _failed(self, error: StorageUnavailable) -> None:
        """Tell the readers, if it has lasted."""
        self._failures += 1
        if self._failures > PATIENCE:
            self._fail_all(error)

    def _fail_all(self, error: StorageUnavailable) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(StorageUnavailable(error.message))


def _possible(cursor: Cursor) -> Cursor:
    """A cursor that every database takes; one that it would refuse must not fail the others' look.

    Raises JobNotFound for an id that no job can have.
    """
    if len(cursor.job_id) > MAX_ID_CHARACTERS or not cursor.job_id.isascii() or "\0" in cursor.job_id:
        raise JobNotFound
    return cursor._replace(epoch=min(max(cursor.epoch, 0), 2**31 - 1), position=min(max(cursor.position, 0), 2**53))


STATUSES = {status.value: status for status in JobStatus}


def _slice(cursor: Cursor, news: TextChange) -> Slice:
    """Raises JobNotFound, ContentDeleted: a slice without its text would look like the end of the answer."""
    if news.epoch is None:
        raise JobNotFound
    if news.deleted_at is not None:
        raise ContentDeleted
    known = cursor.epoch == news.epoch and cursor.position <= news.position
    nothing_yet = cursor.epoch == 1 and cursor.position == 0
    start = cursor.position if known else 0
    return Slice(
        job_id=cursor.job_id,
        epoch=news.epoch,
        position=news.position,
        runs=_from(start, _runs(news)),
        reset=not known and not nothing_yet,
        status=STATUSES[news.status],
        attempt=news.attempt,
        reset_reason=news.reset_reason,
        started=news.started_at is not None,
    )


def _runs(change: TextChange) -> Sequence[TextRun]:
    """The text that the reader lacks, and perhaps some before it."""
    if change.runs is not None:
        return compacted_runs({Channel.CONTENT: change.content, Channel.REASONING: change.reasoning}, change.runs)
    return [
        *change.stored,
        TextRun(change.position, CHANNELS[change.tail_channel], change.tail, change.token_count),
    ]


def _from(start: int, runs: Sequence[TextRun]) -> tuple[TextRun, ...]:
    """The text from a position on, one run per change of channel. The position may lie within a run."""
    lacking: list[TextRun] = []
    for channel, group in groupby((run for run in runs if run.position > start and run.text), attrgetter("channel")):
        neighbours = list(group)
        text = "".join(run.text for run in neighbours)
        position = neighbours[-1].position
        lacking.append(TextRun(position, channel, text[-(position - start) :], neighbours[-1].token_count))
    return tuple(lacking)
