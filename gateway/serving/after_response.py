"""Background tasks that run after the response: starting jobs, sending cancels.

Each one has a row in the database that the sweeper finds, so they need no queue on disk and may be dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from chatjobs.errors import ChatJobsError
from domain.errors import TemporalUnavailable

log = logging.getLogger(__name__)

ANSWER_SECONDS = 0.003
"""What an answer takes to be written after its errand was asked for."""
AT_ONCE = 8
MOST_WAITING = 10_000
"""Further errands are dropped; the sweeper finds their rows."""
AWAY_SECONDS = 1.0
"""How long nothing is tried after Temporal was away: each try costs a millisecond, and the sweeper tries anyway."""

Errand = Callable[[], Awaitable[object]]


class AfterResponse:
    """A bounded queue of errands and the tasks that run them."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Errand] = asyncio.Queue(MOST_WAITING)
        self._away_until = 0.0

    def __len__(self) -> int:
        return self._waiting.qsize()

    def soon(self, errand: Errand) -> None:
        """Queue ``errand`` to run once the response is written, so that it does not delay the response."""
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._enqueue, errand)

    def _enqueue(self, errand: Errand) -> None:
        if asyncio.get_running_loop().time() < self._away_until:
            return
        try:
            self._waiting.put_nowait(errand)
        except asyncio.QueueFull:
            log.warning("too many errands; the sweeper will see to it", extra={"action": "errands_full"})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AfterResponse]:
        runners = [asyncio.create_task(self._run(), name="errands") for _ in range(AT_ONCE)]
        try:
            yield self
        finally:
            for runner in runners:
                runner.cancel()
            await asyncio.wait(runners)

    async def _run(self) -> None:
        while True:
            errand = await self._waiting.get()
            try:
                await errand()
            except TemporalUnavailable as error:
                self._drop_all(error)
            except ChatJobsError as error:
                log.warning("an errand failed: %s", error, extra={"action": "errand_failed"})
            except Exception:
                log.exception("an errand failed", extra={"action": "errand_failed"})

    def _drop_all(self, error: TemporalUnavailable) -> None:
        """Empty the queue and pause: with Temporal unavailable all errands would wait, and the sweeper retries."""
        self._away_until = asyncio.get_running_loop().time() + AWAY_SECONDS
        dropped = 1
        while not self._waiting.empty():
            self._waiting.get_nowait()
            dropped += 1
        log.warning("Temporal is away, %d errands wait: %s", dropped, error, extra={"action": "errands_wait"})
