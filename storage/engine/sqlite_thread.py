"""A SQLite connection on a thread of its own.

Every call of a statement through an asynchronous driver is a hop to a thread and back, and every step of one that
returns to Python gives the interpreter lock away and waits up to 5 ms to have it again if the event loop is busy. What
has to be fast therefore runs as a whole over there, in few statements that each do much.
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
    """``open`` it for a block. Raises sqlite3.Error as it comes: see database.translated."""

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
            # What runs there ends within SQLite's busy timeout; waiting for it must not hold up the event loop.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns. Cancelled: it goes on to its end over there."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connected()
        try:
            return work(connection)
        except BaseException:
            # The next one starts from nothing: the file may have been replaced, or the disk been full.
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
        """Closing rolls an open transaction back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
