"""A SQLite connection on a thread of its own.

Every statement through an asynchronous driver is a hop to a thread and back, and every step that returns to Python
releases the interpreter lock and waits up to 5 ms to get it back if the event loop is busy. Work that has to be fast
therefore runs as a whole on that thread, in few statements that each do much.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class SqliteThread:
    """A connection that is opened with ``open`` for a block. Raises sqlite3.Error untranslated: see
    database.translated."""

    def __init__(self, path: str, *, name: str, configure: Callable[[sqlite3.Connection], None]) -> None:
        self._path = path
        self._configure = configure
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SqliteThread]:
        try:
            yield self
        finally:
            self._executor.submit(self._disconnect)
            # The thread's work ends within SQLite's busy timeout; waiting for it must not block the event loop.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on the thread and return its result. It runs to its end even if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connected()
        try:
            return work(connection)
        except BaseException:
            # The next call opens a new connection: the file may have been replaced, or the disk been full.
            self._disconnect()
            raise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._configure(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        """Close the connection, which rolls an open transaction back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
