"""Starts the workflow of a webhook delivery, in the three situations in which a job does not."""

from __future__ import annotations

import logging
from typing import Any

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from dispatch.temporal import RPC_TIMEOUT
from domain.errors import TemporalUnavailable
from domain.names import JOBS_QUEUE, RETRY_NOW, WEBHOOK_DELIVERY, delivery_workflow_id
from domain.payloads import DeliveryStart
from storage.webhooks.deliveries import DeliveryStore, OutgoingWebhook, RedeliveryRequest

log = logging.getLogger(__name__)


async def try_now(client: Client, deliveries: DeliveryStore, request: RedeliveryRequest) -> None:
    """Signal the run of a delivery to make its next try now, or start a run, whose schedule begins anew.

    Raises TemporalUnavailable; a sweeper does it later.
    """
    start = DeliveryStart(delivery_id=request.id, earlier=request.tries)
    try:
        await _start(client, start, "made again", start_signal=RETRY_NOW)
    except (RPCError, RuntimeError) as error:
        name = error.status.name if isinstance(error, RPCError) else "not reachable"
        raise TemporalUnavailable(f"Temporal did not take the delivery ({name}); it will") from None
    await deliveries.mark_notified(request)
    log.info("delivery is made again", extra={"action": "delivery_wanted", "delivery_id": request.id})


async def go_on(client: Client, start: DeliveryStart, reason: str) -> None:
    """Start the run of a delivery that has none, at its place in the schedule. Raises RPCError, RuntimeError."""
    await _start(client, start, reason, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING)


async def adopt(client: Client, webhook: OutgoingWebhook) -> None:
    """Start the run of a delivery whose next try is overdue: its run is lost. Raises RPCError, RuntimeError."""
    start = DeliveryStart(delivery_id=webhook.id, tries_made=webhook.tries)
    await go_on(client, start, "adopted by the sweeper")
    log.info("delivery adopted", extra={"action": "delivery_adopted", "delivery_id": webhook.id})


async def _start(client: Client, start: DeliveryStart, reason: str, **options: Any) -> None:
    await client.start_workflow(
        WEBHOOK_DELIVERY,
        start,
        id=delivery_workflow_id(start.delivery_id),
        task_queue=JOBS_QUEUE,
        static_summary=reason,
        rpc_timeout=RPC_TIMEOUT,
        **options,
    )
