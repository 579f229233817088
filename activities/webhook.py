"""One signed delivery try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities import failures
from activities.heartbeats import heartbeating
from activities.ports import WebhookResponse, WebhookSender
from chatjobs.contracts import DeliveryTry
from chatjobs.errors import ChatJobsError, DeliveryNotFound, WebhookError
from chatjobs.steps import DeliveryOrder, DeliveryReport
from chatjobs.webhooks import sign
from storage.deliveries import DeliveryStore, Parcel

GONE = 410
LONGEST_RETRY_AFTER = 24 * 3600.0


class WebhookActivities:
    """``secrets_of`` gives a tenant's signing secrets, newest first."""

    def __init__(
        self,
        *,
        deliveries: DeliveryStore,
        sender: WebhookSender,
        secrets_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._secrets_of = secrets_of

    @activity.defn
    async def deliver_webhook(self, order: DeliveryOrder) -> DeliveryReport:
        """Send a delivery once and record the try. A receiver's failure is a report, not an error."""
        async with heartbeating():
            return await self._deliver(order)

    async def _deliver(self, order: DeliveryOrder) -> DeliveryReport:
        try:
            parcel = await self._deliveries.parcel(order.delivery_id)
            if parcel.status == "delivered":
                return DeliveryReport(delivered=True, tries=parcel.tries)
            began = datetime.now(UTC)
            response = await self._send(parcel, began)
            pause = retry_pause(order, response)
            tries = await self._deliveries.record(
                order.delivery_id,
                as_recorded(parcel.tries + 1, began, response),
                delivered=response.delivered,
                next_try_at=None if pause is None else datetime.now(UTC) + timedelta(seconds=pause),
            )
        except DeliveryNotFound as error:  # its job was deleted meanwhile
            return DeliveryReport(delivered=False, tries=0, reason=error.message)
        except ChatJobsError as error:
            raise failures.from_storage(error) from None
        reason = response.error or f"HTTP {response.status_code}"
        return DeliveryReport(delivered=response.delivered, tries=tries, retry_in=pause, reason=reason)

    async def _send(self, parcel: Parcel, now: datetime) -> WebhookResponse:
        try:
            headers = sign(
                parcel.body,
                webhook_id=parcel.id,
                timestamp=now,
                body_timestamp=parcel.body_timestamp,
                secrets=self._secrets_of(parcel.tenant),
            )
        except WebhookError as error:  # tried again by the schedule: the operator may set a secret until then
            return WebhookResponse(latency_ms=0, error=error.message)
        return await self._sender.post(parcel.url, headers=headers, body=parcel.body)


def as_recorded(number: int, began: datetime, response: WebhookResponse) -> DeliveryTry:
    return DeliveryTry(
        number=number,
        started_at=began,
        status_code=response.status_code,
        latency_ms=response.latency_ms,
        error=response.error,
        response=response.response,
    )


def retry_pause(order: DeliveryOrder, response: WebhookResponse) -> float | None:
    """Seconds until the next try; None where there is none: delivered, gone for good, or the schedule is over."""
    if response.delivered or response.status_code == GONE or order.retry_in is None:
        return None
    return max(order.retry_in, min(response.retry_after or 0.0, LONGEST_RETRY_AFTER))
