"""The tally of a batch: how many of its jobs have ended, how, with what usage, and how fast.

It stands in the batch's row and changes in the transactions that seal jobs, so that it is exact, and one small read
whatever the batch's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import JobStatus, Usage
from storage.engine.schema import batches, micros, now

SPAN = 10_000_000
"""Microseconds of a span of time in which ended jobs are counted for the rate."""
SPANS = 6
"""Spans that are kept."""
COUNTED = {
    JobStatus.COMPLETED: "completed",
    JobStatus.INCOMPLETE: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}

LOCK = select(batches.c.tally).where(batches.c.id == bindparam("key")).with_for_update()
STORE = update(batches).where(batches.c.id == bindparam("key"))


@dataclass(frozen=True, slots=True)
class Ended:
    """A job of a batch that has ended. ``error``: the code of its error."""

    batch_id: str
    status: JobStatus
    usage: Usage | None
    error: str | None = None


@dataclass(slots=True)
class BatchTally:
    """``spans``: [number of the span, jobs that ended in it], the newest last. ``errors``: failed jobs by code."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    spans: list[list[int]] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> BatchTally:
        return cls(**json.loads(text))

    def json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, separators=(",", ":"))

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled

    def add(self, one: Ended, time: int, sign: int = 1) -> None:
        """Count a job; with ``sign`` -1, take it back: it goes on."""
        name = COUNTED[one.status]
        setattr(self, name, getattr(self, name) + sign)
        if one.error:
            self.errors[one.error] = self.errors.get(one.error, 0) + sign
            if not self.errors[one.error]:
                del self.errors[one.error]
        for counter in ("prompt_tokens", "completion_tokens", "total_tokens") if one.usage else ():
            self.usage[counter] = self.usage.get(counter, 0) + sign * getattr(one.usage, counter)
        if sign > 0:
            self._count(time)

    def _count(self, time: int) -> None:
        number = time // SPAN
        if self.spans and self.spans[-1][0] >= number:
            self.spans[-1][1] += 1
        else:
            self.spans = [*self.spans[-SPANS:], [number, 1]]

    def rate(self, time: int, since: int) -> float | None:
        """Jobs per second that ended lately; ``since``: when the batch began."""
        first = max(time - SPANS * SPAN, since)
        recent = sum(count for number, count in self.spans if (number + 1) * SPAN > first)
        oldest = min((number * SPAN for number, _ in self.spans if (number + 1) * SPAN > first), default=time)
        seconds = (time - max(oldest, since)) / 1e6
        return round(recent / seconds, 3) if recent and seconds >= 1 else None


async def count(connection: AsyncConnection, ended: Iterable[Ended], sign: int = 1) -> None:
    """Count jobs in the rows of their batches, in the transaction that ends them (``sign`` -1: reopens them).

    All writers lock jobs first and then batches, in the order of their ids.
    """
    by_batch: dict[str, list[Ended]] = {}
    for one in ended:
        by_batch.setdefault(one.batch_id, []).append(one)
    time = micros(now())
    for batch_id in sorted(by_batch):
        text = await connection.scalar(LOCK, {"key": batch_id})
        if text is None:  # the batch was removed by retention
            continue
        tally = BatchTally.read(text)
        for one in by_batch[batch_id]:
            tally.add(one, time, sign)
        changes: dict[str, Any] = {"tally": tally.json(), "progressed_at": time}
        await connection.execute(STORE, {"key": batch_id, **changes})
