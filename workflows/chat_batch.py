"""ChatBatch: make the jobs of a batch, work through them in parts, end the batch, notify its webhook.

Items and results stay in storage; the history has numbers only. Parts are activities, so many at a time (a sliding
window), and the run continues as new before its history grows long: history and memory are the same for any size.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Coroutine
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from chatjobs.contracts import BatchStatus
from domain.names import CHAT_BATCH, LOOK
from domain.payloads import BatchRef, BatchSealed, BatchStart, CanaryReport, PreparedBatch, SliceOrder, SliceReport
from workflows import options
from workflows.batch_lane import BatchLane
from workflows.inputs import Input, lenient
from workflows.steps import first_try, has_room, shielded

with workflow.unsafe.imports_passed_through():
    from activities.batch import BatchActivities

T = TypeVar("T")
WINDOW = 8
"""Parts that run at once."""
LARGEST_PART = 200
"""Items of a part: of ordinary answers, a few seconds to a few minutes of work."""
SMALLEST_PART = 10
PARTS = 16
"""A small batch has so many parts, so that several workers share it."""
LOOK_AGAIN = timedelta(hours=1)
"""How long a paused batch waits for the signal; after that it looks at its row."""
LEFT_AGAIN = timedelta(seconds=5)
"""Between two looks at jobs that somebody else still runs: a worker that was taken for dead, for example."""
STATUS, TENANT = (SearchAttributeKey.for_keyword(name) for name in ("ChatStatus", "ChatTenant"))


class Part(NamedTuple):
    """The items from number ``first`` to before ``end``."""

    first: int
    end: int


@workflow.defn(name=CHAT_BATCH)
class ChatBatch:
    """One batch. The argument is a BatchStart; the workflow's id is the batch's."""

    def __init__(self) -> None:
        self._looks = 0

    @workflow.signal(name=LOOK)
    def look(self) -> None:
        """Look at what was asked of the batch: it was resumed or cancelled."""
        self._looks += 1

    @workflow.run
    @lenient
    async def run(self, start: Input) -> BatchSealed:
        order = start.as_a(BatchStart)
        ref = BatchRef(batch_id=order.batch_id)
        batch = await self._unless_cancelled(ref, self._prepare(ref))
        lane, answered = order.lane, False
        if batch.lane == "batch" and not (batch.ended or lane.done):
            work = BatchLane(ref, batch, lane, lambda: self._looks).run()
            lane = await self._unless_cancelled(ref, work)
            if not lane.done:
                workflow.continue_as_new(BatchStart(batch_id=order.batch_id, lane=lane))
            answered = not (await shielded(self._seal(ref))).left
        first: int | None = order.position
        while True:
            if first is not None and not (batch.ended or answered):
                position = await self._unless_cancelled(ref, self._work(ref, batch, first))
                if position is not None:
                    workflow.continue_as_new(BatchStart(batch_id=order.batch_id, position=position, lane=lane))
            if batch.canary and not batch.ended:
                first = await self._unless_cancelled(ref, self._judge(ref))
                batch = batch.model_copy(update={"canary": 0}) if first else batch
                continue
            looks = self._looks
            sealed = await shielded(self._seal(ref))
            if not sealed.left:
                break
            await self._unless_cancelled(ref, workflow.sleep(LEFT_AGAIN))
            if sealed.unprepared:
                workflow.continue_as_new(BatchStart(batch_id=order.batch_id))
            first, answered = sealed.first, False
            if not has_room():  # a job that was resumed alone runs for long
                place = batch.total if first is None else first
                workflow.continue_as_new(BatchStart(batch_id=order.batch_id, position=place, lane=lane))
        if sealed.delivery_id is not None:
            report = await shielded(first_try(sealed.delivery_id, of=order.batch_id))
            outcome = "delivered" if report.delivered else f"not delivered ({report.reason})"
            workflow.set_current_details(f"{sealed.status.value}; webhook: {outcome}")
        # Who resumes the batch now cannot start another run of its workflow; this one does.
        if self._looks > looks and not (await shielded(self._prepare(ref))).ended:
            workflow.continue_as_new(BatchStart(batch_id=order.batch_id))
        if sealed.status is BatchStatus.CANCELLED and workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError
        return sealed

    async def _prepare(self, ref: BatchRef) -> PreparedBatch:
        batch: PreparedBatch = await workflow.execute_activity_method(
            BatchActivities.prepare_batch, ref, summary="make the jobs", **options.batch_step()
        )
        if batch.indexed and not batch.ended:
            workflow.upsert_search_attributes([STATUS.value_set("open"), TENANT.value_set(batch.tenant)])
        return batch

    async def _judge(self, ref: BatchRef) -> int:
        """The number of the first item after the canary; 0 if somebody else still runs a part of it."""
        report: CanaryReport = await workflow.execute_activity_method(
            BatchActivities.judge_canary, ref, summary="judge the canary", **options.batch_step()
        )
        if report.left:
            await workflow.sleep(LEFT_AGAIN)
            return 0
        return report.end

    async def _seal(self, ref: BatchRef) -> BatchSealed:
        sealed: BatchSealed = await workflow.execute_local_activity_method(
            BatchActivities.seal_batch, ref, summary="end the batch", **options.local()
        )
        if sealed.indexed and not sealed.left:
            workflow.upsert_search_attributes([STATUS.value_set(sealed.status.value)])
        workflow.set_current_details(f"{sealed.status.value}, {sealed.left} jobs are still open")
        return sealed

    async def _work(self, ref: BatchRef, batch: PreparedBatch, position: int) -> int | None:
        """Work through the items from ``position`` on, or through those of the canary. Returns where the next run goes
        on; None at the end."""
        end = batch.canary or batch.total
        size = min(max(-(-batch.total // PARTS), SMALLEST_PART), LARGEST_PART)
        left: deque[Part] = deque()
        running: dict[asyncio.Task[SliceReport], tuple[Part, int | None, int]] = {}
        places = deque(_shares(batch.concurrency, -(-(batch.total - position) // size)))
        cancelled = paused = False
        while True:
            room = has_room()
            while places and room and not (cancelled or paused) and (left or position < end):
                if not left:
                    left.append(Part(position, min(position + size, end)))
                    position = left[0].end
                part, share = left.popleft(), places.popleft()
                running[asyncio.create_task(_run(ref, part, share))] = (part, share, self._looks)
            workflow.set_current_details(f"items begun: {position} of {batch.total}")
            if not running:
                break
            looks = self._looks
            await self._wait_for_part(running, or_signal=paused)
            paused = paused and self._looks == looks
            for task in [task for task in running if task.done()]:
                part, share, looks = running.pop(task)
                places.append(share)
                match task.result().stopped:
                    case "cancelled":
                        cancelled = True
                    case "paused":
                        left.append(part)
                        paused = paused or looks == self._looks
            if paused and not running:
                await self._wait_for_signal()
                paused = False
        if cancelled:
            await workflow.execute_activity_method(
                BatchActivities.cancel_rest, ref, summary="cancel what is left", **options.batch_step()
            )
            return None
        if left or position < end:
            return min([position, *(part.first for part in left)])
        return None

    async def _wait_for_part(self, running: Collection[asyncio.Task[SliceReport]], *, or_signal: bool) -> None:
        """Wait until a part ends. While the batch is paused (``or_signal``), an answer may go on in one part for long:
        then also until it may have been resumed."""
        looks = self._looks
        await workflow.wait_condition(
            lambda: any(task.done() for task in running) or (or_signal and self._looks > looks)
        )

    async def _wait_for_signal(self) -> None:
        """Wait until the batch may have been resumed."""
        looks = self._looks
        workflow.set_current_details("paused")
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._looks > looks, timeout=LOOK_AGAIN, timeout_summary="paused; look again"
            )

    async def _unless_cancelled(self, ref: BatchRef, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. A cancellation through Temporal is written to the batch's row, where ``work`` finds
        it: the items that run end in good order."""
        task = asyncio.create_task(work)
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                await shielded(
                    workflow.execute_local_activity_method(
                        BatchActivities.request_cancel, ref, summary="store the cancellation", **options.local()
                    )
                )
                self._looks += 1


async def _run(ref: BatchRef, part: Part, at_once: int | None) -> SliceReport:
    report: SliceReport = await workflow.execute_activity_method(
        BatchActivities.run_slice,
        SliceOrder(batch_id=ref.batch_id, first=part.first, end=part.end, at_once=at_once),
        summary=f"items {part.first} to {part.end - 1}",
        **options.batch_slice(),
    )
    return report


def _shares(concurrency: int | None, parts: int) -> list[int | None]:
    """The items that each part of the window may run at once, so that all together run ``concurrency``. ``parts``: the
    number of parts that are left."""
    if concurrency is None:
        return [None] * WINDOW
    at_once = max(min(WINDOW, concurrency, parts), 1)
    return [concurrency // at_once + (number < concurrency % at_once) for number in range(at_once)]
