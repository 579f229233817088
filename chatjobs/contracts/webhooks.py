"""Webhooks: what a receiver is sent, how its URL fares, and what a caller may ask about that."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from chatjobs.contracts.base import Many, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.results import JobError, Usage
from chatjobs.contracts.statuses import JobStatus, WebhookEventType, WebhookTestEvent

MAX_WEBHOOK_CONTENT_BYTES = 64 * 1024


class WebhookData(WireModel):
    """What a receiver learns of a job. ``content`` is left out (``contentOmitted``) over 64 KiB."""

    job_id: str
    request_id: str
    status: JobStatus
    model: str
    content: str | None = Field(None, exclude_if=lambda content: content is None)
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    error: JobError | None = None
    completed_at: Timestamp
    sha256: str
    metadata: dict[str, str] = Field({})
    status_url: str
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)


class WebhookEvent(WireModel):
    """The body of a webhook. ``webhook.test`` announces nothing: its data are an example."""

    event: WebhookEventType | WebhookTestEvent
    timestamp: Timestamp
    data: WebhookData


EndpointStatus = Literal["ok", "failing", "disabled"]


class Endpoint(WireModel):
    """How deliveries to one URL fare. ``failures`` and ``successes`` count tries.

    A URL that fails for five days without one success, or answers 410, is disabled: ``disabledReason`` is ``failing``
    or ``gone``. Deliveries to it fail at once, with ``endpoint_disabled``, until it is enabled by hand.
    """

    url: str
    status: EndpointStatus
    failing_since: Timestamp | None = None
    failures: int
    successes: int
    last_success_at: Timestamp | None = None
    last_failure_at: Timestamp | None = None
    last_error: str | None = None
    disabled_at: Timestamp | None = None
    disabled_reason: str | None = None


class EndpointList(WireModel):
    """The disabled ones first, then those that fail."""

    endpoints: Many[Endpoint]


class Redelivery(WireModel):
    """Which deliveries to make again: those of events ``since`` a time and before another one."""

    since: Timestamp
    until: Timestamp | None = None
    """None is now."""
    status: Literal["pending", "delivered", "failed"] = "failed"
    url: Annotated[str, StringConstraints(max_length=2_048)] | None = None


class Redelivering(WireModel):
    """How many deliveries are made again. ``more``: there are others; ask again."""

    count: int
    more: bool = False


class WebhookTest(WireModel):
    """What came of a test call: a status, or an error in its place.

    ``advice`` tells what a receiver has to know of the secret, where libraries read it in another way.
    """

    delivered: bool
    status_code: int | None = None
    latency_ms: int
    error: str | None = None
    advice: str | None = Field(None, exclude_if=lambda advice: advice is None)
