"""Noticing that this process stood still: stopped, suspended with its machine, or held up by code that did not yield.

Meanwhile it sent no heartbeat. After a whole heartbeat timeout Temporal gives its attempts to others, and whatever it
still has for them, from before and from the buffers of its connections, is not wanted any more.
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
"""It goes on while the machine is suspended, and nobody can set it. Where the system has none: the monotonic clock."""


class FreezeWatch:
    """One attempt's view of the clock, from the attempt's beginning on. ``timeout``: seconds."""

    def __init__(self, timeout: float) -> None:
        self.noticed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has a result once the process is known to have stood still for so long."""
        self._timeout = timeout
        self._seen = time.clock_gettime(CLOCK)

    def frozen(self) -> bool:
        """Look at the clock: whether the process has stood still for so long, now or before."""
        now = time.clock_gettime(CLOCK)
        if now - self._seen >= self._timeout and not self.noticed.done():
            self.noticed.set_result(None)
        self._seen = now
        return self.noticed.done()


class Freezes:
    """One task that looks at the clock for all attempts of this process, while there are any."""

    def __init__(self) -> None:
        self._watches: set[FreezeWatch] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watched(self, timeout: float) -> Iterator[FreezeWatch]:
        """A watch for one attempt, which looks by itself while the block runs."""
        watch = FreezeWatch(timeout)
        self._watches.add(watch)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="freezes")
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if not self._watches and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for watch in self._watches:
                watch.frozen()
