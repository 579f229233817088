"""First tries of webhooks that no workflow makes: of jobs of batches, of jobs whose time in the queue was over, and to
endpoints of all jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from chatjobs.errors import ChatJobsError
from dispatch.deliveries import go_on
from domain.payloads import DeliveryOrder, DeliveryReport, DeliveryStart, Sealed
from storage.webhooks.deliveries import DeliveryStore

log = logging.getLogger(__name__)

MOST_AT_ONCE = 50
"""Webhooks that this process sends at the same time; Temporal has the others sent."""
SECOND_TRY_SECONDS = 5.0
"""After the first try of a webhook (workflows/webhook_delivery.py has the whole schedule)."""

Wake = Callable[[str], Awaitable[None]]
"""Has a waiting job's activity run at once, as far as possible (activities/waker.py)."""
TryOnce = Callable[[DeliveryOrder], Awaitable[DeliveryReport]]
"""Makes one try of a delivery."""


class FirstTries:
    """Makes first tries beside other work. One that is not made here, or fails, is made by a run of its delivery.

    ``wake`` lets the workflow of a job end at once whose webhook was sent here.
    """

    def __init__(self, client: Client, deliveries: DeliveryStore, try_once: TryOnce, wake: Wake | None = None) -> None:
        self._client = client
        self._deliveries = deliveries
        self._try_once = try_once
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FirstTries]:
        """Cancel the tries that are under way at the end of the block."""
        try:
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def soon(self, sealed: Sealed) -> None:
        """Make the first tries of a sealed job's webhooks, if it has any."""
        self._begin(sealed.job_id, lambda: self._make(sealed))
        self.of_endpoints(sealed)

    def of_endpoints(self, sealed: Sealed) -> None:
        """Make the first tries to endpoints of all jobs; the job's workflow makes that of its own webhook."""
        for delivery_id in sealed.endpoint_deliveries:
            self._begin(sealed.job_id, partial(self._send, delivery_id, sealed.job_id))

    def _begin(self, job_id: str, work: Callable[[], Awaitable[None]]) -> None:
        if len(self._tasks) < MOST_AT_ONCE:
            task = asyncio.create_task(self._guarded(job_id, work), name="first webhook try")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _guarded(self, job_id: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (ChatJobsError, ApplicationError, RPCError, RuntimeError) as error:
            extra = {"action": "first_try_waits", "job_id": job_id}
            log.warning("a sweeper sends this webhook later: %s", error, extra=extra)
        except Exception:
            log.exception("webhook not sent", extra={"action": "first_try_waits", "job_id": job_id})

    async def _make(self, sealed: Sealed) -> None:
        if sealed.delivery_id is not None:
            await self._send(sealed.delivery_id, sealed.job_id)
        if self._wake is not None:
            await self._wake(sealed.job_id)

    async def _send(self, delivery_id: str, job_id: str) -> None:
        request = await self._deliveries.open_request(delivery_id)  # a redelivery that is requested from now on stays
        report = await self._try_once(DeliveryOrder(delivery_id=delivery_id, retry_in=SECOND_TRY_SECONDS))
        if report.retry_in is not None:
            tries = 1 if report.counted else 0
            rest = DeliveryStart(delivery_id=delivery_id, tries_made=tries, first_pause=report.retry_in)
            await go_on(self._client, rest, f"webhook of {job_id}")
        if request is not None:
            await self._deliveries.mark_notified(request)
