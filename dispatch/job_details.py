"""What is shown of a job or a batch beside what storage has: the link to its run, and what it cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chatjobs.contracts import Batch, Cost, Job
from dispatch.temporal import RunLinks
from domain.prices import Prices, Spend, rest
from domain.values import RunRef, StoredJob
from storage.batches.queries import BatchQueries
from storage.jobs.queries import JobQueries

MOST_ITEMS = 20_000
"""Items of the largest batch whose cost is shown: each of its calls is read for it."""
COSTS_KEPT = 200


class JobDetails:
    """``prices`` None: no costs are shown, and nothing is read for them."""

    def __init__(self, links: RunLinks, prices: Prices | None, queries: JobQueries) -> None:
        self._links = links
        self._prices = prices
        self._queries = queries

    async def one(self, job: StoredJob) -> Job:
        """The job with its ``temporal_url`` and ``cost``. Raises StorageUnavailable."""
        return (await self.many([job]))[0]

    async def many(self, jobs: Sequence[StoredJob]) -> Sequence[Job]:
        """The jobs with their ``temporal_url`` and ``cost``. Raises StorageUnavailable."""
        linked = [self._links.with_url(job) for job in jobs]
        if self._prices is None or not (ids := [job.job_id for job in jobs if job.usage is not None]):
            return linked
        spends = await self._queries.spends(ids)
        return [_priced(job, self._prices, spends.get(job.job_id, ())) for job in linked]


def _priced(job: StoredJob, prices: Prices, calls: Sequence[Spend]) -> StoredJob:
    if job.usage is None:
        return job
    left = rest(job.usage, calls)
    spends = [*calls, Spend(job.model, left)] if left.prompt_tokens or left.completion_tokens else calls
    return job.model_copy(update={"cost": prices.cost(spends, estimated=job.usage_estimated)})


class BatchDetails:
    """As JobDetails, of one batch. What a batch cost is computed again only once more of its jobs have ended."""

    def __init__(self, links: RunLinks, prices: Prices | None, queries: BatchQueries) -> None:
        self._links = links
        self._prices = prices
        self._queries = queries
        self._known: OrderedDict[str, tuple[tuple[int, int], Cost | None]] = OrderedDict()

    async def of(self, batch: Batch) -> Batch:
        """The batch with its ``temporal_url`` and ``cost``. Raises StorageUnavailable."""
        linked = self.linked(batch)
        if self._prices is None or batch.usage is None or batch.counts.total > MOST_ITEMS:
            return linked
        counts = batch.counts
        state = (batch.revision, counts.completed + counts.failed + counts.cancelled)
        before, cost = self._known.get(batch.batch_id, (None, None))
        if before != state:
            cost = self._prices.cost(await self._queries.spends(batch))
            self._known[batch.batch_id] = (state, cost)
            if len(self._known) > COSTS_KEPT:
                self._known.popitem(last=False)
        return linked.model_copy(update={"cost": cost})

    def linked(self, batch: Batch) -> Batch:
        """The batch with its ``temporal_url`` alone, for lists."""
        return batch.model_copy(update={"temporal_url": self._links.of(RunRef(batch.batch_id))})
