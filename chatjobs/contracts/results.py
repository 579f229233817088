"""A job as it is shown: its result, its attempts, its deliveries."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from chatjobs.contracts.base import JsonObject, Many, StrictModel, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.statuses import JobStatus, WebhookEventType

MAX_INLINE_RESULT_BYTES = 1024 * 1024


class Usage(StrictModel):
    """Tokens as Mistral counts them; further counters are kept as they came."""

    model_config = ConfigDict(extra="allow", strict=False)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ErrorCause(WireModel):
    """What went wrong last before a limit ended the job. ``code`` and ``message`` are as in ``JobError``."""

    code: str
    message: str


class JobError(WireModel):
    """Why a job failed. ``code`` is stable; ``message`` is for people, at most 500 characters, without secrets.

    ``cause`` is there where a limit of the job ended it: ``code`` names the limit, ``cause`` what had kept the job from
    ending in time. It is left out where ``code`` says it all.
    """

    code: str
    message: str
    retryable: bool = False
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class PlacedPart(WireModel):
    """A piece of an answer that is not text (a reference, an image) and the position where it stood."""

    position: int
    part: JsonObject


class Attempt(WireModel):
    """One HTTP call to Mistral on behalf of a job."""

    number: int
    started_at: Timestamp
    ended_at: Timestamp | None = None
    outcome: str | None = None
    http_status: int | None = None
    usage: Usage | None = None
    estimated: bool = False
    first_token_ms: int | None = None
    tokens_per_second: float | None = None


class DeliveryTry(WireModel):
    """One POST of a delivery. ``response`` holds the first kilobyte of the answer."""

    number: int
    started_at: Timestamp
    status_code: int | None = None
    latency_ms: int
    error: str | None = None
    response: str | None = None


class Delivery(WireModel):
    """The promise to hand one event to one URL. ``id`` is the ``webhook-id`` header of every try."""

    id: str
    event: WebhookEventType
    url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: Timestamp
    next_try_at: Timestamp | None = None
    delivered_at: Timestamp | None = None
    tries: Many[DeliveryTry] = ()


QueueReason = Literal["rate_limit", "paused", "model_down"]


class QueuePlace(WireModel):
    """Where a job stands that waits to call the model; ``position`` 1 is next.

    ``reason``: the model's rate limit, a pause that the model asked for, or a model that fails every call.
    """

    position: int
    expected_start_at: Timestamp
    reason: QueueReason = "rate_limit"


class ChatResult(WireModel):
    """A job as GET shows it, without attempts and deliveries: the result of a job started with its request inline.

    ``content`` is partial while the job runs and after it failed or was cancelled. ``sha256`` is over the UTF-8
    bytes of ``content``. ``contentParts`` and ``contentOmitted`` are left out where they say nothing.
    """

    job_id: str
    request_id: str
    status: JobStatus
    model: str
    created_at: Timestamp
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_estimated: bool = False
    error: JobError | None = None
    epoch: int = 1
    position: int = 0
    sha256: str | None = None
    metadata: dict[str, str] = Field({})
    replay_of: str | None = None
    batch_id: str | None = None
    temporal_url: str | None = None
    deleted_at: Timestamp | None = Field(None, exclude_if=lambda time: time is None)
    """Its request, its texts and its deliveries were deleted then."""
    content_parts: Many[PlacedPart] | None = Field(None, exclude_if=lambda parts: parts is None)
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)
    """The result is over 1 MiB and was left out of Temporal: read ``statusUrl``."""
    status_url: str | None = Field(None, exclude_if=lambda url: url is None)


class Job(ChatResult):
    """A job as ``GET /api/jobs/{jobId}`` shows it."""

    attempts: Many[Attempt] = ()
    deliveries: Many[Delivery] = ()
    replays: Many[str] = ()
    """The jobs that replay this one, oldest first."""
    queue: QueuePlace | None = Field(None, exclude_if=lambda place: place is None)
    """While the job waits for the model's rate limit."""


class JobAccepted(WireModel):
    """What the caller of a new job gets: where everything about it is."""

    job_id: str
    request_id: str
    status: JobStatus
    status_url: str
    events_url: str
    cancel_url: str
    temporal_url: str
    replay_of: str | None = None


class JobPage(WireModel):
    """Jobs without their texts, newest first; ``nextCursor`` is None on the last page."""

    jobs: Many[Job]
    next_cursor: str | None = None
