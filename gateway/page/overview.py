"""The data of all jobs together that the page shows, queried once per tenant and shared by all its readers.

Changes are found by their time, so it does not matter which gateway or worker made them; the clocks of the machines
have to agree to within ``OVERLAP``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from chatjobs.contracts import Job, JobStatus, Timestamp, WireModel
from chatjobs.sse import encode
from dispatch.job_details import JobDetails
from domain.errors import StorageUnavailable
from domain.values import StoredJob
from storage.engine.schema import micros, now
from storage.jobs.overview import Overview

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
OVERLAP = timedelta(seconds=10)
"""Each query covers this span again: a row becomes visible some time after the time it carries."""
MOST_CHANGED = 200
"""Jobs in one message. If more have changed, the message says so and the reader requests the list."""
MESSAGES_KEPT = 30
"""Kept for slow readers; one that is further behind gets the first page again."""
COUNTS_SECONDS = 30.0
"""Deleted jobs show in nothing but the counts."""
COUNTS_SHARE = 20
"""Counting millions of jobs is slow; it may take up a twentieth of the time."""

MINUTE = timedelta(minutes=1)
WINDOWS = {
    "15m": (MINUTE / 4, 60),
    "1h": (MINUTE, 60),
    "6h": (5 * MINUTE, 72),
    "24h": (20 * MINUTE, 72),
    "7d": (120 * MINUTE, 84),
}
"""The width of a bucket, and the number of buckets."""
FRESH = (2.0, 60.0)
"""Figures are cached for a tenth of a bucket, but for at least and at most this many seconds."""
MOST_FIGURES = 1_000


class Bucket(WireModel):
    """The jobs that ended within ``bucketSeconds`` from ``at``; times are in milliseconds, None where there is nothing.

    ``latency`` is from acceptance to the end, of jobs that have an answer; ``firstToken`` is one call's.
    """

    at: Timestamp
    completed: int = 0
    incomplete: int = 0
    failed: int = 0
    cancelled: int = 0
    tokens: int = 0
    latency_p50: int | None = None
    latency_p95: int | None = None
    first_token_p50: int | None = None


class Stats(WireModel):
    """Buckets without a gap, oldest first; the last one is still filling."""

    since: Timestamp
    until: Timestamp
    bucket_seconds: int
    buckets: tuple[Bucket, ...]


class Feed:
    """The changes of one tenant's jobs as numbered messages; ``run`` polls the database for them."""

    def __init__(self, overview: Overview, details: JobDetails, tenant: str) -> None:
        self._overview = overview
        self._details = details
        self._tenant = tenant
        self._since = now()
        self._seen: dict[str, StoredJob] = {}
        self._counts: dict[JobStatus, int] = {}
        self._counted = -COUNTS_SECONDS
        self._stale = True
        self._cost = 0.0
        self._messages: deque[bytes] = deque(maxlen=MESSAGES_KEPT)
        self._arrived = asyncio.Event()
        self.number = 0
        """The number of messages so far."""

    async def after(self, number: int) -> bytes | None:
        """Waits for messages after the first ``number`` and returns them; None if they are no longer kept."""
        while self.number == number:
            await self._arrived.wait()
        missed = self.number - number
        return None if missed > len(self._messages) else b"".join(list(self._messages)[-missed:])

    async def run(self) -> None:
        while True:
            try:
                await self._poll()
            except StorageUnavailable as error:
                log.warning("feed waits: %s", error, extra={"action": "feed_waits"})
            except Exception:
                log.exception("feed failed", extra={"action": "feed_failed"})
            await asyncio.sleep(LOOK_SECONDS)

    async def _poll(self) -> None:
        at = now()
        changed = await self._overview.changed(self._tenant, self._since - OVERLAP, limit=MOST_CHANGED)
        fresh = [job for job in changed.jobs if self._seen.get(job.job_id) != job]
        shown = await self._details.many(fresh)
        recounted = await self._recounted(changed=bool(fresh))
        self._since, self._seen = at, {job.job_id: job for job in changed.jobs}
        if fresh or recounted:
            self._publish(message("jobs", at, self._counts, shown, more=changed.more))

    async def _recounted(self, *, changed: bool) -> bool:
        """Count the jobs again if that is due; whether the counts have changed."""
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
    """One event of the feed: ``counts`` per status, and the jobs without their texts and without absent fields."""
    listed = [job.model_dump(mode="json", by_alias=True, exclude_none=True) for job in found]
    data = json.dumps({"counts": counts, "jobs": listed, **more}, separators=(",", ":"))
    return encode(kind, str(micros(at)), data)


class _RunningFeed(NamedTuple):
    feed: Feed
    task: asyncio.Task[None]
    readers: set[object]


class Feeds:
    """The feeds that have readers, one per tenant."""

    def __init__(self, overview: Overview, details: JobDetails) -> None:
        self.overview = overview
        self._details = details
        self._running: dict[str, _RunningFeed] = {}

    @contextmanager
    def joined(self, tenant: str) -> Iterator[Feed]:
        """The tenant's feed; it runs while it has at least one reader."""
        if tenant not in self._running:
            feed = Feed(self.overview, self._details, tenant)
            self._running[tenant] = _RunningFeed(feed, asyncio.create_task(feed.run(), name="feed"), set())
        running, reader = self._running[tenant], object()
        running.readers.add(reader)
        try:
            yield running.feed
        finally:
            running.readers.discard(reader)
            if not running.readers:
                del self._running[tenant]
                running.task.cancel()


class Figures:
    """Stats, computed once for concurrent and repeated requests for the same ones."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._known: dict[tuple[str, str], tuple[float, asyncio.Task[Stats]]] = {}

    async def stats(self, tenant: str, window: str) -> Stats:
        """The tenant's stats for one of WINDOWS. Raises StorageUnavailable."""
        time, (bucket, count) = asyncio.get_running_loop().time(), WINDOWS[window]
        until, task = self._known.get((tenant, window), (0.0, None))
        if task is None or (task.done() and (time > until or task.exception())):
            if len(self._known) >= MOST_FIGURES:
                self._known = {key: one for key, one in self._known.items() if one[0] > time}
            task = asyncio.create_task(self._stats(tenant, now(), bucket, count))
            seconds = min(max(bucket.total_seconds() / 10, FRESH[0]), FRESH[1])
            self._known[tenant, window] = (time + seconds, task)
        return await asyncio.shield(task)  # a client that disconnects must not cancel it for the others

    async def _stats(self, tenant: str, until: datetime, width: timedelta, count: int) -> Stats:
        buckets = await self._overview.stats(tenant, until=until, bucket=width, count=count)
        return Stats(
            since=buckets[0].at,
            until=until,
            bucket_seconds=width // timedelta(seconds=1),
            buckets=tuple(Bucket(**asdict(bucket)) for bucket in buckets),
        )
