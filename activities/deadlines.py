"""The time limits of one attempt: first token, stall and total."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

from chatjobs.contracts import Limits
from storage.engine.schema import moment

LATE_SECONDS = 1.0
"""How much later than its time a limit may be noticed: after so long without a new timer, the next event sets one."""
LATE = 0.1
"""And as a part of the limit."""


class Deadlines:
    """Three time limits on a stream of events. Only events of the model move the stall limit: comments and empty
    chunks yield none."""

    def __init__(self, limits: Limits, started_at: int, seconds_since_scheduled: float) -> None:
        """``started_at`` (microseconds since 1970): when the job's first attempt began. ``seconds_since_scheduled``:
        the time since then, and more, by a clock that nobody sets (AttemptContext)."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        # The time that earlier attempts took. A wall clock that was set ahead in between must not end the job.
        elapsed = min((datetime.now(UTC) - moment(started_at)).total_seconds(), seconds_since_scheduled)
        self._end = self._loop.time() + max(limits.total_seconds - max(elapsed, 0), 0)
        self._timeout = asyncio.timeout(None)
        self.began = False
        """The model has sent an event."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises TimeoutError in the block when a limit is reached."""
        async with self._timeout:
            self._set(self._limits.first_token_seconds)
            yield

    def event_arrived(self) -> None:
        self.began = True
        self._set(self._limits.stall_seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Only the total limit applies in the block: the database is slow, not the model."""
        self._set(float("inf"))
        yield
        self._set(self._limits.stall_seconds)

    @property
    def left(self) -> float:
        """Seconds left of the total limit."""
        return max(self._end - self._loop.time(), 0.0)

    @property
    def over(self) -> bool:
        """The total limit is reached."""
        return self._loop.time() >= self._end

    def _set(self, seconds: float) -> None:
        """Move the limit. A timer is set as rarely as possible: a stream has thousands of events."""
        due = min(self._loop.time() + seconds, self._end)
        timer = self._timeout.when()
        if timer is None or not due <= timer <= due + LATE_SECONDS:
            self._timeout.reschedule(min(due + min(LATE_SECONDS, seconds * LATE), self._end))
