"""Detection of freezes: this process was stopped, suspended with its machine, or blocked by code that did not yield.

A frozen process sends no heartbeats. After a whole heartbeat timeout Temporal gives its attempts to other workers, and
what it still has for them, also in the buffers of its connections, must be discarded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS = 0.1
"""Between two looks at the clock: by as much a process may seem to have stood still for longer than it did."""
CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that runs while the machine is suspended and cannot be set; the monotonic clock on systems without one."""


class FreezeWatch:
    """Detects freezes of at least ``timeout`` seconds from an attempt's beginning on."""

    def __init__(self, timeout: float) -> None:
        self.noticed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has a result once a freeze was detected."""
        self._timeout = timeout
        self._seen = time.clock_gettime(CLOCK)

    def frozen(self) -> bool:
        """Read the clock. Returns whether the process was frozen now or before."""
        now = time.clock_gettime(CLOCK)
        if now - self._seen >= self._timeout and not self.noticed.done():
            self.noticed.set_result(None)
        self._seen = now
        return self.noticed.done()


class Freezes:
    """Reads the clock in one task for all attempts of this process, while there are any."""

    def __init__(self) -> None:
        self._watches: set[FreezeWatch] = set()
        self._polling: asyncio.Task[None] | None = None

    @contextmanager
    def watched(self, timeout: float) -> Iterator[FreezeWatch]:
        """A watch for one attempt, which is checked regularly while the block runs."""
        watch = FreezeWatch(timeout)
        self._watches.add(watch)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="freezes")
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if not self._watches and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for watch in self._watches:
                watch.frozen()
