"""The lane of batch jobs: the first part of a batch's work with ``lane: batch``, before live calls do what is left.

Items are sent to the model's server as batch jobs, which are looked at with growing pauses. Results are taken as each
job ends. Before the deadline, in time for live calls, unfinished jobs are withdrawn. Items whose batch job fails here
for good are left to live calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from domain.payloads import (
    BatchRef,
    LaneState,
    PartOrder,
    PartsOrder,
    PartsReport,
    PreparedBatch,
    SendOrder,
    SendReport,
    SentPart,
)
from workflows import options
from workflows.steps import has_room

with workflow.unsafe.imports_passed_through():
    from activities.batch import BatchActivities
    from activities.batch_lane import BatchLaneActivities

GROWTH = 1.5
MOST_GROWN = 32
"""Looks after which the pause has long been the longest."""
SHORTEST_PAUSE = 0.1
USUAL_HOURS, MOST_HOURS = 24, 168
"""Of a batch job without and with a later deadline; Mistral takes no more than a week."""
TOO_LARGE = "upstream_too_large"
LAST_ATTEMPTS = 5
"""At a call whose failure only costs money: the cancellation of jobs whose results nobody wants."""
PAUSED_AGAIN = timedelta(hours=1)


class BatchLane:
    """``looks`` counts the signals that something was asked of the batch."""

    def __init__(self, ref: BatchRef, batch: PreparedBatch, state: LaneState, looks: Callable[[], int]) -> None:
        self._ref = ref
        self._batch = batch
        self._state = state
        self._looks = looks
        self._seconds_left: float | None = None

    async def run(self) -> LaneState:
        """Work until all items have a result or are left to live calls (``done``), or the history is long."""
        if not await self._send():
            return self._state
        while self._state.parts:
            if not has_room():
                return self._state
            await self._pause()
            report = await self._report()
            if report is None:
                await self._abandon()
            elif report.cancelled:
                await self._drop()
            elif report.seconds_left is not None and report.seconds_left <= 0:
                await self._withdraw()
            else:
                self._seconds_left = report.seconds_left
                await self._take_what_ended(report)
        workflow.set_current_details("what has no result goes on as live calls")
        return LaneState(done=True)

    async def _send(self) -> bool:
        """Send all items; False if the history is long before that."""
        state, total = self._state, self._batch.total
        while state.position < total:
            if not has_room():
                return False
            end = min(state.position + state.size, total)
            looks = self._looks()
            workflow.set_current_details(f"items sent: {state.position} of {total}")
            try:
                report = await self._sent(state.position, end)
            except ActivityError as error:
                if _code(error) == TOO_LARGE and end - state.position > 1:
                    self._changed(size=max((end - state.position) // 2, 1))
                else:
                    workflow.logger.warning("items %d and later go on as live calls: %s", state.position, _code(error))
                    self._changed(position=total)
            else:
                match report.stopped:
                    case "cancelled":
                        self._changed(position=total)
                        await self._drop()
                    case "paused":
                        await self._signal(looks, PAUSED_AGAIN)
                    case "held":
                        await self._signal(looks, timedelta(seconds=options.timings().batch_longest_look_seconds))
                    case "late":
                        self._changed(position=total)
                    case None:
                        self._changed(position=end, parts=(*state.parts, *report.parts))
            state = self._state
        return True

    async def _sent(self, first: int, end: int) -> SendReport:
        order = SendOrder(
            batch_id=self._ref.batch_id,
            first=first,
            end=end,
            timeout_hours=self._hours(),
            deadline=self._batch.deadline,
        )
        report: SendReport = await workflow.execute_activity_method(
            BatchLaneActivities.send_items, order, summary=f"items {first} to {end - 1}", **options.batch_lane()
        )
        return report

    def _hours(self) -> int:
        """The time that a batch job gets."""
        if self._batch.deadline is None:
            return USUAL_HOURS
        left = (self._batch.deadline - workflow.now()) / timedelta(hours=1)
        return min(max(-int(-left // 1), 1), MOST_HOURS)

    async def _pause(self) -> None:
        """Wait until it is time to look at the batch jobs, or something was asked of the batch."""
        seconds = self._seconds_to_look()
        if self._seconds_left is not None:
            seconds = min(seconds, max(self._seconds_left, SHORTEST_PAUSE))
        await self._signal(self._looks(), timedelta(seconds=seconds))
        self._changed(looks=self._state.looks + 1)

    def _seconds_to_look(self) -> float:
        """The pause before the next look, which grows unless files are awaited."""
        times = options.timings()
        seconds = times.batch_first_look_seconds
        if any(part.ended_at for part in self._state.parts):
            return seconds
        return float(min(seconds * GROWTH ** min(self._state.looks, MOST_GROWN), times.batch_longest_look_seconds))

    async def _signal(self, looks: int, timeout: timedelta) -> None:
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._looks() > looks, timeout=timeout, timeout_summary="look again")

    async def _report(self) -> PartsReport | None:
        """How far the batch jobs are; None if they cannot be looked at, so that nobody waits for them."""
        try:
            report: PartsReport = await workflow.execute_activity_method(
                BatchLaneActivities.look_at_parts, self._order(), summary="look", **options.batch_lane()
            )
        except ActivityError as error:
            workflow.logger.warning("batch jobs are not awaited any more: %s", _code(error))
            return None
        parts = len(self._state.parts)
        workflow.set_current_details(f"batch jobs: {parts}; requests answered: {report.answered}")
        return report

    async def _take_what_ended(self, report: PartsReport) -> None:
        now, late = workflow.now(), timedelta(seconds=options.timings().batch_late_files_seconds)
        for part in self._state.parts:
            waited = part.ended_at is not None and now - part.ended_at >= late
            if part.key in report.complete or (part.key in report.ended and waited):
                await self._take(part)
            elif part.key in report.ended and part.ended_at is None:
                self._replace(part, part.model_copy(update={"ended_at": now}))

    async def _take(self, part: SentPart) -> None:
        """Take the results of a batch job. Those that cannot be had are left to live calls."""
        order = PartOrder(batch_id=self._ref.batch_id, part=part, deadline=self._batch.deadline)
        try:
            await workflow.execute_activity_method(
                BatchLaneActivities.take_results, order, summary=f"results of {part.key}", **options.batch_lane()
            )
        except ActivityError as error:
            workflow.logger.warning("no results of %s: %s", part.key, _code(error))
        self._replace(part)

    async def _withdraw(self) -> None:
        """Take back what is not finished, with the results that there are."""
        with contextlib.suppress(ActivityError):
            await self._withdrawn(keep=True)
        for part in self._state.parts:
            await self._take(part)

    async def _drop(self) -> None:
        """The batch is cancelled: end its jobs and the batch at once, then the batch jobs."""
        await workflow.execute_activity_method(
            BatchActivities.cancel_rest, self._ref, summary="cancel what is left", **options.batch_step()
        )
        await workflow.execute_local_activity_method(
            BatchActivities.seal_batch, self._ref, summary="end the batch", **options.local()
        )
        await self._abandon()

    async def _abandon(self) -> None:
        """End the batch jobs, whose results nobody waits for, as far as their server can be reached."""
        if self._state.parts:
            with contextlib.suppress(ActivityError):
                await self._withdrawn(keep=False)
        self._changed(parts=())

    async def _withdrawn(self, *, keep: bool) -> None:
        await workflow.execute_activity_method(
            BatchLaneActivities.withdraw_parts,
            self._order(keep=keep),
            summary="withdraw",
            **options.batch_lane(attempts=LAST_ATTEMPTS),
        )

    def _order(self, *, keep: bool = True) -> PartsOrder:
        return PartsOrder(
            batch_id=self._ref.batch_id,
            parts=self._state.parts,
            deadline=self._batch.deadline,
            keep=keep,
            pause=self._seconds_to_look(),
        )

    def _replace(self, part: SentPart, *by: SentPart) -> None:
        """Put other parts, or none, in the place of one."""
        found: list[SentPart] = []
        for one in self._state.parts:
            found += by if one.key == part.key else (one,)
        self._changed(parts=tuple(found))

    def _changed(self, **changes: Any) -> None:
        self._state = self._state.model_copy(update=changes)


def _code(error: ActivityError) -> str | None:
    """The code of the error that an activity failed with."""
    return error.cause.type if isinstance(error.cause, ApplicationError) else None
