"""The places of a process for calls of batches, and the jobs that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Places:
    """``count`` places, which batches get in turns: a large one does not keep a small one waiting."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By batch; the first batch is next."""

    async def take(self, batch_id: str) -> None:
        """Wait for a place. Each call needs a ``give_back``, unless it is cancelled."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(batch_id, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # both in one moment
                self.give_back()
            raise

    def give_back(self) -> None:
        self._free += 1
        while self._free and self._waiting:
            batch_id = next(iter(self._waiting))
            queue = self._waiting.pop(batch_id)
            granted = queue.popleft()
            if queue:
                self._waiting[batch_id] = queue
            if not granted.done():  # else its task was cancelled
                granted.set_result(None)
                self._free -= 1


class JobPlace:
    """The place of one job, which it leaves while it waits. ``given_up``: whether the job is to wait no longer;
    ``left``: is called when it leaves its place to wait.

    ``lock`` is for the jobs of one part of a batch whose calls are of one model (see attempt.Turns).
    """

    def __init__(
        self,
        places: Places,
        batch_id: str,
        lock: asyncio.Lock,
        *,
        given_up: Callable[[], bool],
        left: Callable[[], None],
    ) -> None:
        self.lock = lock
        self.held = False
        self._places = places
        self._batch_id = batch_id
        self._given_up = given_up
        self._left = left

    async def take(self) -> bool:
        """Wait for a place. Returns False if the waiting is over, without a place."""
        if not self.held and not self._given_up():
            await self._places.take(self._batch_id)
            self.held = True
        if self._given_up():
            self.give_back()
        return self.held

    async def rest(self, seconds: float) -> bool:
        """Wait without a place, then for one. Returns False if the waiting is over, without a place."""
        self.leave()
        await asyncio.sleep(seconds)
        return await self.take()

    def leave(self) -> None:
        """Let others have the place while this job waits."""
        if self.held:
            self.give_back()
            self._left()

    def give_back(self) -> None:
        """The job has ended, or is left."""
        if self.held:
            self.held = False
            self._places.give_back()
