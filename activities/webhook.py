"""The activity that makes one signed try of a delivery."""

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
from domain.outcomes import AttemptOutcome
from domain.payloads import DeliveryOrder, DeliveryReport
from domain.ports import BUSY, WebhookResponse, WebhookSender
from domain.timings import Timings
from storage.webhooks.deliveries import DeliveryStore, OutgoingWebhook
from storage.webhooks.endpoints import ENDPOINT_DELETED, ENDPOINT_DISABLED, GONE

log = logging.getLogger(__name__)

LONGEST_RETRY_AFTER = 24 * 3600.0
BUSY_PAUSES = (4.0, 12.0)
"""Seconds before this activity asks again for a place at a receiver, as Temporal's retries, which add no history."""
LAST_ATTEMPT = len(BUSY_PAUSES) + 1
BUSY_REST = 60.0
"""Seconds after which a delivery that got no place asks again; until then no activity is spent on it."""


class Unsigned(WebhookResponse):
    """A try that was not sent, as there is no usable secret: it says nothing about the receiver."""


class WebhookActivities:
    """Makes tries of deliveries. ``secrets_of`` gives a tenant's signing secrets, newest first."""

    def __init__(
        self,
        *,
        deliveries: DeliveryStore,
        sender: WebhookSender,
        secrets_of: Callable[[str], Awaitable[Sequence[str]]],
        timings: Timings = Timings(),
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._secrets_of = secrets_of
        self._timings = timings

    @activity.defn
    async def deliver_webhook(self, order: DeliveryOrder) -> DeliveryReport:
        """Send a delivery once and record the try. A receiver's failure is a report, not an error."""
        async with heartbeating(timings=self._timings):
            return await self._deliver(order, activity.info().attempt)

    async def try_once(self, order: DeliveryOrder) -> DeliveryReport:
        """``deliver_webhook`` outside of Temporal, for a job that was sealed without its workflow. Raises
        ApplicationError."""
        return await self._deliver(order, LAST_ATTEMPT)

    async def _deliver(self, order: DeliveryOrder, attempt: int) -> DeliveryReport:
        """Only a receiver without a free place is retried by Temporal; all else is for the delivery's own schedule."""
        try:
            webhook = await self._deliveries.outgoing(order.delivery_id)
            if webhook.status != "pending":
                return DeliveryReport(delivered=webhook.status == "delivered", tries=webhook.tries, reason="given up")
            if webhook.deleted:
                tries = await self._deliveries.refuse(webhook.id, ENDPOINT_DELETED)
                return DeliveryReport(delivered=False, tries=tries, reason=ENDPOINT_DELETED)
            if webhook.disabled:
                tries = await self._deliveries.refuse(webhook.id)
                return DeliveryReport(delivered=False, tries=tries, reason=ENDPOINT_DISABLED)
            began = datetime.now(UTC)
            response = await self._send(webhook, began)
            if response.error == BUSY:
                return await self._postpone(webhook, attempt)
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
            raise failures.permanent(AttemptOutcome.INTERNAL.value, message, retryable=True) from None

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
            request=webhook.request,
        )
        if recorded.endpoint == "just_disabled":
            await self._wake_others(webhook)
        reason = response.error or f"HTTP {response.status_code}"
        retry_in = pause if recorded.endpoint == "enabled" else None
        return DeliveryReport(delivered=response.delivered, tries=recorded.tries, retry_in=retry_in, reason=reason)

    async def _wake_others(self, webhook: OutgoingWebhook) -> None:
        """Log that an endpoint was disabled, and wake its other deliveries, which then fail. One that is not reached
        fails when its next try is due."""
        extra = {"action": "endpoint_disabled", "tenant": webhook.tenant, "delivery_id": webhook.id}
        log.error("a webhook endpoint is disabled; `starter.py endpoints` shows which", extra=extra)
        try:
            await self._deliveries.wake(webhook.tenant, webhook.url)
        except ChatJobsError as error:
            log.warning("its deliveries wait: %s", error, extra={"action": "endpoint_deliveries_wait"})

    async def _postpone(self, webhook: OutgoingWebhook, attempt: int) -> DeliveryReport:
        """Retry a delivery that got no place, which is no try: first by Temporal, then with a report, so that no job's
        end waits for it."""
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
                secrets=await all_secrets(webhook.secrets, webhook.tenant, self._secrets_of),
            )
        except WebhookError as error:  # retried by the schedule: the operator may have set a secret by then
            return Unsigned(latency_ms=0, error=error.message)
        return await self._sender.post(webhook.url, headers=headers, body=webhook.body)


async def all_secrets(
    of_url: Sequence[str | None], tenant: str, secrets_of: Callable[[str], Awaitable[Sequence[str]]]
) -> Sequence[str]:
    """The secrets that sign what is sent to a URL, newest first: its own, with the tenant's in the place of None."""
    found: list[str] = []
    for secret in of_url:
        found += [secret] if secret is not None else await secrets_of(tenant)
    return found


def spread(seconds: float) -> float:
    """The pause ±50 %, so that deliveries that were turned away together do not return together."""
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
    """Seconds until the next try; None if there is none: delivered, gone for good, or at the end of the schedule."""
    if response.delivered or response.status_code == GONE or order.retry_in is None:
        return None
    return max(order.retry_in, min(response.retry_after or 0.0, LONGEST_RETRY_AFTER))
