"""Webhooks: the body that a receiver gets, the health of its URL, redelivery and the test call.

Source of the headers and signatures: Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, StringConstraints

from chatjobs.contracts.base import HttpUrl, Many, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.results import JobError, Usage
from chatjobs.contracts.statuses import BatchEventType, JobStatus, WebhookEventType, WebhookTestEvent

MAX_WEBHOOK_CONTENT_BYTES = 64 * 1024
"""Most bytes of ``content`` in a webhook, as UTF-8; a longer one is left out."""


class WebhookData(WireModel):
    """The job in a webhook's body. ``content`` is left out (``contentOmitted``) over 64 KiB."""

    job_id: str
    request_id: str
    status: JobStatus
    model: str
    content: str | None = Field(None, exclude_if=lambda content: content is None)
    """The answer; partial if the job failed or was cancelled."""
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    """Why the model stopped, in Mistral's words."""
    usage: Usage | None = None
    error: JobError | None = None
    completed_at: Timestamp
    """The time of the terminal status, whichever it is."""
    sha256: str
    """Of the UTF-8 bytes of the answer, in hexadecimal digits."""
    metadata: dict[str, str] = Field({})
    status_url: str
    """The URL of the whole job."""
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)


class WebhookEvent(WireModel):
    """The body of a webhook. ``webhook.test`` announces nothing: its data are an example."""

    event: WebhookEventType | WebhookTestEvent
    timestamp: Timestamp
    data: WebhookData


EndpointEvent = Annotated[WebhookEventType, Strict(False)] | Annotated[BatchEventType, Strict(False)]
"""An event that an endpoint of all jobs may subscribe to."""


class EndpointRequest(WireModel):
    """A URL that gets the webhooks of all jobs and batches, from now on, and the events that it gets (all, unless
    given).

    ``secret`` signs what is sent there, in place of the tenant's; without one, the URL keeps the one that it has. A new
    one replaces it: for 24 hours both sign.
    """

    url: HttpUrl
    events: Annotated[Many[EndpointEvent], Field(min_length=1)] = (*WebhookEventType, *BatchEventType)
    secret: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(None, repr=False)


EndpointStatus = Literal["ok", "failing", "disabled"]
"""The health of a URL: ``failing`` since a try failed, until one succeeds; ``disabled`` is not sent to."""


class Endpoint(WireModel):
    """The health of deliveries to one URL. ``failures`` and ``successes`` count tries.

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
    events: Many[EndpointEvent] | None = None
    """What it gets of all jobs and batches; None: it is the URL of single jobs only."""
    own_secret: bool = False
    """Whether it has a secret of its own, which is never shown."""


class EndpointList(WireModel):
    """Endpoints: the disabled ones first, then those that fail."""

    endpoints: Many[Endpoint]


class Redelivery(WireModel):
    """The deliveries to make again: those of events ``since`` a time and before another one."""

    since: Timestamp
    until: Timestamp | None = None
    """None is now."""
    status: Literal["pending", "delivered", "failed"] = "failed"
    url: Annotated[str, StringConstraints(max_length=2_048)] | None = None
    """Only deliveries to this URL; None is all."""


class Redelivering(WireModel):
    """The number of deliveries that are made again. ``more``: there are others; ask again."""

    count: int
    more: bool = False


class WebhookTest(WireModel):
    """The result of a test call: a status, or an error in its place.

    ``advice``: how to give the secret to libraries that read it in another way.
    """

    delivered: bool
    """Whether the receiver answered 2xx."""
    status_code: int | None = None
    """None if there was no response."""
    latency_ms: int
    """Milliseconds from the beginning of the call to the end of the response, or to the error."""
    error: str | None = None
    advice: str | None = Field(None, exclude_if=lambda advice: advice is None)
