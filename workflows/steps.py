"""Steps that several workflows have: one that no cancellation interrupts, and the notification of a webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from domain.names import delivery_workflow_id
from domain.payloads import DeliveryReport, DeliveryStart
from workflows import options
from workflows.webhook_delivery import WebhookDelivery, deliver, tries_after

T = TypeVar("T")


def has_room() -> bool:
    """Whether the run's history is short enough for something further to begin."""
    return workflow.info().get_current_history_length() < options.LONGEST_HISTORY


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, even if the run is cancelled meanwhile (see workflow.cancellation_reason)."""
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    return task.result()


async def first_try(delivery_id: str, *, of: str) -> DeliveryReport:
    """Make the first try of a webhook; if it fails, a child workflow continues, and this one need not wait."""
    report = await deliver(delivery_id, 0, summary="first webhook try")
    if report.retry_in is not None:
        await _hand_over(delivery_id, tries_after(0, report), report.retry_in, of)
    return report


async def _hand_over(delivery_id: str, tries: int, pause: float, of: str) -> None:
    try:
        await workflow.start_child_workflow(
            WebhookDelivery.run,
            DeliveryStart(delivery_id=delivery_id, tries_made=tries, first_pause=pause),
            id=delivery_workflow_id(delivery_id),
            parent_close_policy=ParentClosePolicy.ABANDON,
            static_summary=f"webhook of {of}",
        )
    except WorkflowAlreadyStartedError:
        workflow.logger.info("the delivery is in other hands already")
