"""What the page shows of all jobs together, looked up once for everybody who looks at it.

What changed is found by time, so that it does not matter which gateway or worker changed it; the clocks of the machines
have to agree to within ``OVERLAP``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from chatjobs.contracts import Job, JobStatus
from chatjobs.sse import encode
from domain.errors import StorageUnavailable
from storage.engine.schema import micros, now
from storage.jobs.overview import Overview, Stats

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
OVERLAP = timedelta(seconds=10)
"""Looked at again each time: a row is visible only some time after the time it carries."""
MOST_CHANGED = 200
"""Jobs in one message. Where more have changed the reader is told so, and reads the list."""
MESSAGES_KEPT = 30
"""For readers who take long to take; whoever is further behind gets the first page anew."""
COUNTS_SECONDS = 30.0
"""Deleted jobs show in nothing but the counts."""
COUNTS_SHARE = 20
"""Counting millions of jobs takes its time; it may take a twentieth of all time."""

MINUTE = timedelta(minutes=1)
WINDOWS = {
    "15m": (MINUTE / 4, 60),
    "1h": (MINUTE, 60),
    "6h": (5 * MINUTE, 72),
    "24h": (20 * MINUTE, 72),
    "7d": (120 * MINUTE, 84),
}
"""The width of a bucket, and how many there are."""
FRESH = (2.0, 60.0)
"""For so many seconds figures are shown again, at least and at most; in between, for a tenth of a bucket."""
MOST_FIGURES = 1_000


class Feed:
    """The changes of one tenant's jobs as messages, numbered; it looks for them while it ``runs``."""

    def __init__(self, overview: Overview, tenant: str) -> None:
        self._overview = overview
        self._tenant = tenant
        self._since = now()
        self._seen: dict[str, Job] = {}
        self._counts: dict[JobStatus, int] = {}
        self._counted = -COUNTS_SECONDS
        self._stale = True
        self._cost = 0.0
        self._messages: deque[bytes] = deque(maxlen=MESSAGES_KEPT)
        self._arrived = asyncio.Event()
        self.number = 0
        """Of messages so far."""

    async def after(self, number: int) -> bytes | None:
        """The messages after the first ``number``, once there are any; None if they are not kept any more."""
        while self.number == number:
            await self._arrived.wait()
        missed = self.number - number
        return None if missed > len(self._messages) else b"".join(list(self._messages)[-missed:])

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except StorageUnavailable as error:
                log.warning("feed waits: %s", error, extra={"action": "feed_waits"})
            except Exception:
                log.exception("feed failed", extra={"action": "feed_failed"})
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        at = now()
        changed = await self._overview.changed(self._tenant, self._since - OVERLAP, limit=MOST_CHANGED)
        fresh = [job for job in changed.jobs if self._seen.get(job.job_id) != job]
        recounted = await self._recounted(changed=bool(fresh))
        self._since, self._seen = at, {job.job_id: job for job in changed.jobs}
        if fresh or recounted:
            self._publish(message("jobs", at, self._counts, fresh, more=changed.more))

    async def _recounted(self, *, changed: bool) -> bool:
        """Whether the counts are others than before."""
        clock = asyncio.get_running_loop().time
        self._stale = self._stale or changed
        begun = clock()
        if begun - self._counted < (self._cost * COUNTS_SHARE if self._stale else COUNTS_SECONDS):
            return False
        before, self._counts = self._counts, await self._overview.counts(self._tenant)
        self._counted, self._stale = clock(), False
        self._cost = self._counted - begun
        return self._counts != before

    def _publish(self, message: bytes) -> None:
        self._messages.append(message)
        self.number += 1
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()


def message(
    kind: Literal["hello", "jobs"], at: datetime, counts: Mapping[JobStatus, int], found: Sequence[Job], **more: Any
) -> bytes:
    """``counts`` per status, ``jobs`` without their texts and without what is not known of them."""
    listed = [job.model_dump(mode="json", by_alias=True, exclude_none=True) for job in found]
    data = json.dumps({"counts": counts, "jobs": listed, **more}, separators=(",", ":"))
    return encode(kind, str(micros(at)), data)


class _Read(NamedTuple):
    feed: Feed
    task: asyncio.Task[None]
    readers: set[object]


class Feeds:
    """The feeds that somebody reads, one per tenant."""

    def __init__(self, overview: Overview) -> None:
        self.overview = overview
        self._read: dict[str, _Read] = {}

    @contextmanager
    def joined(self, tenant: str) -> Iterator[Feed]:
        """The tenant's feed; it runs while somebody has joined it."""
        if tenant not in self._read:
            feed = Feed(self.overview, tenant)
            self._read[tenant] = _Read(feed, asyncio.create_task(feed.run(), name="feed"), set())
        read, reader = self._read[tenant], object()
        read.readers.add(reader)
        try:
            yield read.feed
        finally:
            read.readers.discard(reader)
            if not read.readers:
                del self._read[tenant]
                read.task.cancel()


class Figures:
    """Stats, computed once for all who ask for the same ones within moments."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._known: dict[tuple[str, str], tuple[float, asyncio.Task[Stats]]] = {}

    async def stats(self, tenant: str, window: str) -> Stats:
        """Raises StorageUnavailable."""
        time, (bucket, count) = asyncio.get_running_loop().time(), WINDOWS[window]
        until, task = self._known.get((tenant, window), (0.0, None))
        if task is None or (task.done() and (time > until or task.exception())):
            self._forget(time)
            task = asyncio.create_task(self._overview.stats(tenant, until=now(), bucket=bucket, count=count))
            seconds = min(max(bucket.total_seconds() / 10, FRESH[0]), FRESH[1])
            self._known[tenant, window] = (time + seconds, task)
        return await asyncio.shield(task)  # whoever hangs up must not end it for the others

    def _forget(self, time: float) -> None:
        if len(self._known) >= MOST_FIGURES:
            self._known = {key: one for key, one in self._known.items() if one[0] > time}
