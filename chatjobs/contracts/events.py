"""The events of a job's stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatjobs.contracts.base import Many, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.results import ErrorCause, QueueReason, Usage
from chatjobs.contracts.statuses import Channel, JobStatus


class StartEvent(WireModel):
    type: Literal["start"] = Field("start", exclude=True)
    job_id: str
    request_id: str
    model: str
    attempt: int
    timestamp: Timestamp


class ChunkEvent(WireModel):
    """``index`` counts frames of this connection, ``tokenCount`` the deltas of the epoch so far, or its tokens where
    the model's server counts them as it goes."""

    type: Literal["chunk"] = Field("chunk", exclude=True)
    content: str
    channel: Channel
    index: int
    token_count: int


class ResetEvent(WireModel):
    """Drop the text so far: the answer starts over."""

    type: Literal["reset"] = Field("reset", exclude=True)
    attempt: int
    reason: str


class CompleteEvent(WireModel):
    """Terminal, also for incomplete jobs."""

    type: Literal["complete"] = Field("complete", exclude=True)
    status: Literal[JobStatus.COMPLETED, JobStatus.INCOMPLETE]
    total_tokens: int | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    tool_calls: Many[ToolCall] | None = None
    sha256: str


class QueuedEvent(WireModel):
    """The job waits to call the model. It has no id: it is news, not a part of the answer."""

    type: Literal["queued"] = Field("queued", exclude=True)
    position: int
    expected_start_at: Timestamp
    reason: QueueReason = "rate_limit"


class ErrorEvent(WireModel):
    type: Literal["error"] = Field("error", exclude=True)
    code: str
    message: str
    retryable: bool
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class CancelledEvent(WireModel):
    type: Literal["cancelled"] = Field("cancelled", exclude=True)
    status: Literal[JobStatus.CANCELLED] = JobStatus.CANCELLED
    usage: Usage | None = None
    sha256: str


StreamEvent = QueuedEvent | StartEvent | ChunkEvent | ResetEvent | CompleteEvent | ErrorEvent | CancelledEvent
