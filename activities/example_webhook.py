"""The event ``webhook.test``: an example, signed like every webhook and posted once, to test a receiver."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from chatjobs.contracts import JobStatus, WebhookData, WebhookEvent, WebhookTest, WebhookTestEvent, rfc3339
from chatjobs.errors import WebhookError
from chatjobs.webhooks import read_otherwise, sign
from domain.names import status_path
from domain.ports import WebhookResponse, WebhookSender

CONTENT = "This is a test."
EXAMPLE_JOB = "job_test"


async def post_example(sender: WebhookSender, url: str, secrets: Sequence[str]) -> WebhookTest:
    """Call a URL once; a failure is an answer, not an exception. ``secrets`` are the signing ones, newest first."""
    response = await _posted(sender, url, secrets, datetime.now(UTC))
    why = next(filter(None, map(read_otherwise, secrets)), None)
    return WebhookTest(
        delivered=response.delivered,
        status_code=response.status_code,
        latency_ms=response.latency_ms,
        error=response.error,
        advice=f"The secret {why}" if why else None,
    )


async def _posted(sender: WebhookSender, url: str, secrets: Sequence[str], now: datetime) -> WebhookResponse:
    body = example(now)
    try:
        headers = sign(
            body,
            webhook_id=f"whe_test_{uuid.uuid4().hex}",
            timestamp=now,
            body_timestamp=rfc3339(now),
            secrets=secrets,
        )
    except WebhookError as error:
        return WebhookResponse(latency_ms=0, error=error.message)
    return await sender.post(url, headers=headers, body=body)


def example(now: datetime) -> bytes:
    """The body: what a receiver would get of a job that is complete, under an event of its own."""
    data = WebhookData(
        job_id=EXAMPLE_JOB,
        request_id="test",
        status=JobStatus.COMPLETED,
        model="test",
        content=CONTENT,
        finish_reason="stop",
        completed_at=now,
        sha256=hashlib.sha256(CONTENT.encode()).hexdigest(),
        status_url=status_path(EXAMPLE_JOB),
    )
    return WebhookEvent(event=WebhookTestEvent.TEST, timestamp=now, data=data).model_dump_json().encode()
