"""Reads the transcript from any position, live or finished.

A reader selects by (job, epoch, position), never by a global sequence: rows of several writers become visible out of
order. Text, status and result of a job come from one statement, which is one snapshot: between two statements, a
compaction could hide the text from both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice

from chatjobs.errors import ContentDeleted, JobNotFound
from domain.errors import StorageUnavailable
from domain.tasks import cancel_and_wait
from domain.timings import Timings
from domain.values import Cursor, Slice
from storage.engine.database import Database
from storage.transcript.changes import ChangeSource, fetch, watch

PATIENCE = 4
"""Failed queries before the readers get an error: about as long as a restart of the database takes."""
MAX_ID_CHARACTERS = 128
READERS_PER_LOOK = 1_000
"""Readers that one query serves: a bound on its memory."""

log = logging.getLogger(__name__)


class TranscriptReader:
    """Serves many readers with one query. ``wait`` and ``follow`` need ``running``."""

    def __init__(self, database: Database, *, timings: Timings = Timings()) -> None:
        self._database = database
        self._retry_seconds = timings.reader_retry_seconds
        self._waiting: dict[asyncio.Future[Slice], Cursor] = {}
        self._newcomers = asyncio.Event()
        self._up_to_date: set[Cursor] = set()
        """The cursors after the last query: a reader that waits at one of them has missed nothing."""
        self._failures = 0
        self._stopped: StorageUnavailable | None = None

    async def read(self, cursor: Cursor) -> Slice:
        """The slice after a cursor now; it may be empty. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
        (change,) = await fetch(self._database, [_possible(cursor)])
        if not isinstance(change.found, Slice):
            raise change.found
        return change.found

    async def wait(self, cursor: Cursor) -> Slice:
        """The next slice with a change: text, another epoch, or the end. No slices are kept for a reader in between.

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
        """Query for changes while the block runs, whenever readers wait."""
        task = asyncio.create_task(self._look_for_ever(), name="transcript reader")
        try:
            yield self
        finally:
            try:
                await cancel_and_wait(task)
            finally:
                self._stopped = StorageUnavailable("The transcript reader has stopped")
                self._fail_all(self._stopped)

    async def _look_for_ever(self) -> None:
        while True:
            try:
                async with watch(self._database, self._newcomers) as source:
                    while True:
                        await self._look(source)
                        self._failures = 0
            except StorageUnavailable as error:
                log.warning("transcript not readable, waiting: %s", error, extra={"action": "reader_waiting"})
                self._failed(error)
            except Exception as error:
                log.exception("transcript reader failed", extra={"action": "reader_failed"})
                self._failed(StorageUnavailable(f"The transcript cannot be read ({type(error).__name__})"))
            await asyncio.sleep(self._retry_seconds)

    async def _look(self, source: ChangeSource) -> None:
        """Wait until there may be changes, query them, and give them to the readers."""
        if not self._waiting:
            await self._newcomers.wait()
        await source.changed()
        # A reader that waits again during the query is not served from its result: its change may be newer.
        self._up_to_date = set()
        up_to_date: set[Cursor] = set()
        places: dict[Cursor, list[asyncio.Future[Slice]]] = {}
        for future, cursor in self._waiting.items():
            if not future.done():
                places.setdefault(cursor, []).append(future)  # readers with the same cursor share one result
        readers = iter(places.items())
        while some := list(islice(readers, READERS_PER_LOOK)):
            for change in await source.fetch([cursor for cursor, _ in some]):
                _, futures = some[change.place]
                self._hand_out(futures, change.found, up_to_date)
        self._up_to_date = up_to_date

    def _hand_out(
        self,
        futures: Sequence[asyncio.Future[Slice]],
        found: Slice | JobNotFound | ContentDeleted,
        up_to_date: set[Cursor],
    ) -> None:
        waiting = [future for future in futures if not future.done()]
        if not isinstance(found, Slice):
            for future in waiting:
                future.set_exception(type(found)(found.message))
            return
        if not found.status.terminal:  # a reader may have read up to here before the job ended here
            up_to_date.add(found.cursor)
        for future in waiting:
            future.set_result(found)

    def _failed(self, error: StorageUnavailable) -> None:
        """Fail the waiting readers, after several failures in a row."""
        self._failures += 1
        if self._failures > PATIENCE:
            self._fail_all(error)

    def _fail_all(self, error: StorageUnavailable) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(StorageUnavailable(error.message))


def _possible(cursor: Cursor) -> Cursor:
    """A cursor with values that every database accepts: one that is refused would fail the query of all readers.

    Raises JobNotFound for an id that no job can have.
    """
    if len(cursor.job_id) > MAX_ID_CHARACTERS or not cursor.job_id.isascii() or "\0" in cursor.job_id:
        raise JobNotFound
    return cursor._replace(epoch=min(max(cursor.epoch, 0), 2**31 - 1), position=min(max(cursor.position, 0), 2**53))
