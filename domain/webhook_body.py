"""The webhooks of the outcomes of jobs and batches."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

from chatjobs.contracts import (
    MAX_WEBHOOK_CONTENT_BYTES,
    BatchEventType,
    BatchOutcome,
    BatchProgress,
    BatchWebhookEvent,
    ChatResult,
    WebhookData,
    WebhookEvent,
    WebhookEventType,
    rfc3339,
)
from domain.names import batch_path, status_path

RESPONSE_ID_PREFIX = "resp_"
"""Precedes a job's id in the id of the response that the job is."""


def webhook_body(result: ChatResult, format: str = "chatjobs", public_url: str = "") -> bytes:
    """The body of the webhook that announces a sealed job: a WebhookEvent as JSON, or OpenAI's event of a response.

    ``format``: that of the job's Webhook. ``public_url``: where receivers reach this service; without it ``statusUrl``
    is a path. Raises ValueError for a job that has not ended.
    """
    if result.completed_at is None or result.sha256 is None:
        raise ValueError("Only a sealed job can be announced")
    if format == "openai":
        return _response_event(result, result.completed_at)
    omitted = len((result.content or "").encode()) > MAX_WEBHOOK_CONTENT_BYTES
    data = WebhookData(
        job_id=result.job_id,
        request_id=result.request_id,
        status=result.status,
        model=result.model,
        content=None if omitted else result.content,
        tool_calls=result.tool_calls,
        finish_reason=result.finish_reason,
        usage=result.usage,
        error=result.error,
        completed_at=result.completed_at,
        sha256=result.sha256,
        metadata=result.metadata,
        status_url=public_url.rstrip("/") + status_path(result.job_id),
        content_omitted=omitted,
    )
    event = WebhookEvent(event=WebhookEventType.of(result.status), timestamp=result.completed_at, data=data)
    return event.model_dump_json().encode()


def _response_event(result: ChatResult, completed_at: datetime) -> bytes:
    """Source of the form: OpenAI's API reference, "Webhook events"."""
    kind = f"response.{result.status.value}"
    digest = hashlib.sha256(f"{result.job_id}\n{kind}\n{rfc3339(completed_at)}".encode()).hexdigest()[:32]
    event = {
        "id": f"evt_{digest}",
        "object": "event",
        "created_at": int(completed_at.timestamp()),
        "type": kind,
        "data": {"id": f"{RESPONSE_ID_PREFIX}{result.job_id}"},
    }
    return json.dumps(event).encode()


def batch_webhook_body(progress: BatchProgress, public_url: str = "") -> bytes:
    """The body of the webhook that announces a batch's end: a BatchWebhookEvent as JSON.

    ``public_url``: as for ``webhook_body``. Raises ValueError for a batch that has not ended.
    """
    if progress.completed_at is None:
        raise ValueError("Only a batch that has ended can be announced")
    url = public_url.rstrip("/") + batch_path(progress.batch_id)
    fields = {name: getattr(progress, name) for name in BatchProgress.model_fields}
    data = BatchOutcome(**fields, status_url=url, output_url=f"{url}/output", errors_url=f"{url}/errors")
    event = BatchWebhookEvent(event=BatchEventType.of(progress.status), timestamp=progress.completed_at, data=data)
    return event.model_dump_json().encode()
