"""WebhookDelivery: tries a delivery for three days, by a schedule that the signal ``retry_now`` shortens."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from chatjobs.errors import bounded
from domain.names import RETRY_NOW, WEBHOOK_DELIVERY
from domain.payloads import DeliveryOrder, DeliveryReport, DeliveryStart
from workflows import options
from workflows.inputs import Input, lenient

with workflow.unsafe.imports_passed_through():
    from activities.webhook import WebhookActivities

MINUTE, HOUR = 60.0, 3600.0
PAUSES = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""Seconds after the first, second, … try: ten tries in 75.6 to 90.7 hours, with jitter (Standard Webhooks)."""
JITTER = 0.2


def pause_after(tries: int, random_source: random.Random) -> float | None:
    """The schedule's pause after a number of tries, with 0 to +20 % jitter; None after the last."""
    if tries > len(PAUSES):
        return None
    return PAUSES[max(tries, 1) - 1] * (1 + JITTER * random_source.random())


def tries_after(tries: int, report: DeliveryReport, earlier: int = 0) -> int:
    """The number of tries made. Storage may know of more; a try that could not be recorded counts as well."""
    return max(tries + report.counted, report.tries - earlier)


async def deliver(delivery_id: str, tries_made: int, *, summary: str) -> DeliveryReport:
    """Make one try, from any workflow. A try that failed before it was sent counts too, unless no place was free."""
    retry_in = pause_after(tries_made + 1, workflow.random())
    order = DeliveryOrder(delivery_id=delivery_id, retry_in=retry_in)
    try:
        return await workflow.execute_activity_method(
            WebhookActivities.deliver_webhook, order, summary=summary, **options.delivery()
        )
    except ActivityError as error:
        reason = bounded(str(error.cause or error))
        return DeliveryReport(delivered=False, tries=tries_made + 1, retry_in=retry_in, reason=reason)


@workflow.defn(name=WEBHOOK_DELIVERY)
class WebhookDelivery:
    def __init__(self) -> None:
        self._retry_now = False

    @workflow.run
    @lenient
    async def run(self, start: Input) -> DeliveryReport:
        """The argument is a DeliveryStart."""
        delivery = start.as_a(DeliveryStart)
        tries, pause = delivery.tries_made, delivery.first_pause
        while True:
            await self._wait(pause)
            report = await deliver(delivery.delivery_id, tries, summary=f"try {tries + 1}")
            tries = tries_after(tries, report, delivery.earlier)
            workflow.set_current_details(_details(report, tries))
            if report.retry_in is None:
                return report
            pause = report.retry_in

    @workflow.signal(name=RETRY_NOW)
    def retry_now(self) -> None:
        """Make the next try at once."""
        self._retry_now = True

    async def _wait(self, pause: float) -> None:
        if pause > 0:
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._retry_now, timeout=timedelta(seconds=pause), timeout_summary="until the next try"
                )
        self._retry_now = False


def _details(report: DeliveryReport, tries: int) -> str:
    if report.delivered:
        return f"delivered at try {tries}"
    if not report.counted:
        return f"try {tries + 1} waits for a place at the receiver, which has too many tries under way"
    after = "given up" if report.retry_in is None else f"next try in {timedelta(seconds=round(report.retry_in))}"
    return f"try {tries}: {report.reason}; {after}"
