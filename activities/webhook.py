"""One signed delivery try."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import failures
from activities.heartbeats import heartbeating
from chatjobs.contracts import DeliveryTry
from chatjobs.errors import ChatJobsError, DeliveryNotFound, WebhookError
from chatjobs.webhooks import sign
from domain.payloads import DeliveryOrder, DeliveryReport
from domain.ports import BUSY, WebhookResponse, WebhookSender
from storage.webhooks.deliveries import DeliveryStore, OutgoingWebhook
from storage.webhooks.endpoints import ENDPOINT_DISABLED, GONE

log = logging.getLogger(__name__)

LONGEST_RETRY_AFTER = 24 * 3600.0
BUSY_PAUSES = (4.0, 12.0)
"""Seconds before this activity asks again for a place at a receiver, as Temporal's retries, which add no history."""
LAST_ATTEMPT = len(BUSY_PAUSES) + 1
BUSY_REST = 60.0
"""Seconds after which a delivery that got no place asks again; until then no activity is spent on it."""


class Unsigned(WebhookResponse):
    """Nothing was sent, as there is no usable secret: the receiver has no part in it."""


class WebhookActivities:
    """``secrets_of`` gives a tenant's signing secrets, newest first."""

    def __init__(
        self,
        *,
        deliveries: DeliveryStore,
        sender: WebhookSender,
        secrets_of: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._secrets_of = secrets_of

    @activity.defn
    async def deliver_webhook(self, order: DeliveryOrder) -> DeliveryReport:
        """Send a delivery once and record the try. A receiver's failure is a report, not an error."""
        async with heartbeating():
            return await self._deliver(order, activity.info().attempt)

    async def try_once(self, order: DeliveryOrder) -> DeliveryReport:
        """The same outside of Temporal, for a job that was sealed without its workflow. Raises ApplicationError."""
        return await self._deliver(order, LAST_ATTEMPT)

    async def _deliver(self, order: DeliveryOrder, attempt: int) -> DeliveryReport:
        """Only a lack of places is retried by Temporal; everything else is for the delivery's own schedule."""
        try:
            webhook = await self._deliveries.outgoing(order.delivery_id)
            if webhook.status != "pending":
                return DeliveryReport(delivered=webhook.status == "delivered", tries=webhook.tries, reason="given up")
            if webhook.disabled:
                return await self._refuse(webhook)
            began = datetime.now(UTC)
            response = await self._send(webhook, began)
            if response.error == BUSY:
                return await self._put_off(webhook, attempt)
            return await self._record(order, webhook, began, response)
        except DeliveryNotFound as error:  # its job was deleted meanwhile
            return DeliveryReport(delivered=False, tries=0, reason=error.message)
        except ChatJobsError as error:
            raise failures.permanent(error.code, error.message, retryable=True) from None
        except ApplicationError:
            raise
        except Exception as error:
            log.exception("try failed", extra={"action": "webhook_try_failed", "delivery_id": order.delivery_id})
            message = f"An error in this service ({type(error).__name__}); see the worker's log"
            raise failures.permanent("internal", message, retryable=True) from None

    async def _record(
        self, order: DeliveryOrder, webhook: OutgoingWebhook, began: datetime, response: WebhookResponse
    ) -> DeliveryReport:
        pause = retry_pause(order, response)
        recorded = await self._deliveries.record_try(
            order.delivery_id,
            as_recorded(webhook.tries + 1, began, response),
            delivered=response.delivered,
            next_try_at=None if pause is None else datetime.now(UTC) + timedelta(seconds=pause),
            sent=not isinstance(response, Unsigned),
        )
        if recorded.endpoint == "just_disabled":
            await self._disabled(webhook)
        reason = response.error or f"HTTP {response.status_code}"
        open_still = recorded.endpoint == "enabled"
        return DeliveryReport(
            delivered=response.delivered, tries=recorded.tries, retry_in=pause if open_still else None, reason=reason
        )

    async def _refuse(self, webhook: OutgoingWebhook) -> DeliveryReport:
        """Nothing is sent to a disabled endpoint, and the delivery says so."""
        tries = await self._deliveries.refuse(webhook.id)
        return DeliveryReport(delivered=False, tries=tries, reason=ENDPOINT_DISABLED)

    async def _disabled(self, webhook: OutgoingWebhook) -> None:
        """Say so, and end what else is on its way there; what this does not reach ends when its next try is due."""
        words = "a webhook endpoint is disabled; `starter.py endpoints` shows which"
        told = {"action": "endpoint_disabled", "tenant": webhook.tenant, "delivery_id": webhook.id}
        log.error(words, extra=told)
        try:
            await self._deliveries.wake(webhook.tenant, webhook.url)
        except ChatJobsError as error:
            log.warning("its deliveries wait: %s", error, extra={"action": "endpoint_deliveries_wait"})

    async def _put_off(self, webhook: OutgoingWebhook, attempt: int) -> DeliveryReport:
        """Nothing was sent, so it is no try: again in a moment, then as a report, so that no job waits for its end."""
        if attempt <= len(BUSY_PAUSES):
            raise failures.again(BUSY, "the receiver has all its places taken", spread(BUSY_PAUSES[attempt - 1]))
        pause = spread(BUSY_REST)
        await self._deliveries.postpone(webhook.id, datetime.now(UTC) + timedelta(seconds=pause))
        return DeliveryReport(delivered=False, tries=webhook.tries, retry_in=pause, reason=BUSY, counted=False)

    async def _send(self, webhook: OutgoingWebhook, now: datetime) -> WebhookResponse:
        try:
            headers = sign(
                webhook.body,
                webhook_id=webhook.id,
                timestamp=now,
                body_timestamp=webhook.body_timestamp,
                secrets=await self._secrets_of(webhook.tenant),
            )
        except WebhookError as error:  # tried again by the schedule: the operator may set a secret until then
            return Unsigned(latency_ms=0, error=error.message)
        return await self._sender.post(webhook.url, headers=headers, body=webhook.body)


def spread(seconds: float) -> float:
    """±50 %, so that those that were turned away together do not return together."""
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


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
