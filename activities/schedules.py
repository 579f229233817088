"""The runs of schedules: what a run is allowed to make, and the batch that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable

from temporalio import activity

from activities import failures
from activities.heartbeats import heartbeating
from chatjobs.contracts import BatchSettings, validated
from chatjobs.errors import BatchNotFound, ChatJobsError
from domain.batches import BatchHash, NewBatch, check_settings, new_items
from domain.names import batch_id_of_scheduled, scheduled_second
from domain.payloads import ScheduledBatchAnswer, ScheduledRef
from domain.timings import Timings
from domain.values import StoredSchedule
from domain.webhook_urls import WebhookPolicy
from storage.batches.drafts import DraftStore
from storage.batches.runs import BatchRunStore
from storage.jobs.schedules import ScheduleStore

ITEMS_AT_ONCE = 200
"""Items that one transaction stores."""


async def schedule_of(store: ScheduleStore, order: ScheduledRef, workflow_id: str) -> StoredSchedule | str:
    """The schedule of a run, or why the run makes nothing."""
    time = scheduled_second(workflow_id)
    if time is None or not workflow_id.startswith(f"{order.schedule}-"):
        return "the workflow's id is not that of a run of the schedule"
    schedule = await store.of_run(order.schedule)
    if schedule is None:
        return "the schedule was deleted"
    # While Temporal was not told of a pause, only a requested run may make something; once it was, only such runs come.
    told = schedule.applied == schedule.revision
    requested = (schedule.triggered_at or 0) // 1_000_000 == int(time.timestamp())
    return schedule if requested or told or not schedule.paused else "the schedule was paused"


class ScheduledBatchActivities:
    """``policy`` gives the rules for webhook URLs; without it they are judged only when they are called."""

    def __init__(
        self,
        schedules: ScheduleStore,
        drafts: DraftStore,
        runs: BatchRunStore,
        *,
        policy: Callable[[], WebhookPolicy] | None = None,
        timings: Timings = Timings(),
    ) -> None:
        self._schedules = schedules
        self._drafts = drafts
        self._runs = runs
        self._policy = policy
        self._timings = timings

    @activity.defn
    async def make_batch(self, order: ScheduledRef) -> ScheduledBatchAnswer:
        """Make the batch of this run of a schedule, if it is absent. Fails with `validation_failed` or
        `webhook_url_refused` if the rules have changed since the schedule was made."""
        workflow_id = activity.info().workflow_id or ""
        async with heartbeating(timings=self._timings):
            try:
                schedule = await schedule_of(self._schedules, order, workflow_id)
                if isinstance(schedule, str):
                    return ScheduledBatchAnswer(reason=schedule)
                batch_id = batch_id_of_scheduled(workflow_id)
                await self._make(schedule, batch_id)
            except ChatJobsError as error:
                raise failures.from_storage(error) from None
        return ScheduledBatchAnswer(batch_id=batch_id)

    async def _make(self, schedule: StoredSchedule, batch_id: str) -> None:
        try:
            await self._runs.plan(batch_id)  # also where the schedule has changed since
        except BatchNotFound:
            pass
        else:
            return
        body = json.loads(schedule.batch or "{}")
        policy = self._policy() if self._policy is not None else None
        values = body.pop("items")
        given = validated(BatchSettings, body)
        settings, hashes = check_settings(given, policy), BatchHash()
        items = new_items(values, batch_id, settings, hashes, policy)
        await self._drafts.discard(batch_id)  # of an attempt that broke off
        await self._drafts.begin(batch_id, schedule.tenant)
        for first in range(0, len(items), ITEMS_AT_ONCE):
            await self._drafts.add(batch_id, items[first : first + ITEMS_AT_ONCE])
        batch = NewBatch(
            batch_id=batch_id,
            tenant=schedule.tenant,
            settings=settings,
            total=len(items),
            body_hash=hashes.digest(given),
            schedule_id=schedule.id,
        )
        await self._drafts.publish(batch)
        await self._runs.workflow_started(batch_id)  # by this run's workflow, in a moment
