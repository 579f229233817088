"""The events of a job's stream, as server-sent events carry them: ``type`` is the event's name, the rest its data.

Source of the format: the HTML standard, server-sent events
(https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatjobs.contracts.base import Many, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.results import ErrorCause, QueueReason, Usage
from chatjobs.contracts.statuses import Channel, JobStatus


class StartEvent(WireModel):
    """The job's first attempt has begun. It comes once, also over several connections."""

    type: Literal["start"] = Field("start", exclude=True)
    job_id: str
    request_id: str
    model: str
    attempt: int
    """The number of the attempt that runs, from 1."""
    timestamp: Timestamp
    """The beginning of the job's first attempt."""


class ChunkEvent(WireModel):
    """A piece of the answer.

    ``index`` counts frames of this connection, ``tokenCount`` the deltas of the epoch so far, or its tokens where the
    model's server counts them as it goes.
    """

    type: Literal["chunk"] = Field("chunk", exclude=True)
    content: str
    channel: Channel
    index: int
    """From 0."""
    token_count: int


class ResetEvent(WireModel):
    """The text so far is void: the answer starts over."""

    type: Literal["reset"] = Field("reset", exclude=True)
    attempt: int
    """The number of the attempt that starts over, from 1."""
    reason: str
    """A stable word for why."""


class CompleteEvent(WireModel):
    """The answer is complete, or as long as a limit allows. Terminal."""

    type: Literal["complete"] = Field("complete", exclude=True)
    status: Literal[JobStatus.COMPLETED, JobStatus.INCOMPLETE]
    total_tokens: int | None = None
    """Of prompts and answers, over all attempts."""
    usage: Usage | None = None
    finish_reason: str | None = None
    """Why the model stopped, in Mistral's words."""
    tool_calls: Many[ToolCall] | None = None
    sha256: str
    """Of the UTF-8 bytes of the text on the channel ``content``, in hexadecimal digits."""


class QueuedEvent(WireModel):
    """The job waits to call the model. It has no id, since it is no part of the answer."""

    type: Literal["queued"] = Field("queued", exclude=True)
    position: int
    """The job's place in the queue; 1 is next."""
    expected_start_at: Timestamp | None = None
    """None where nobody can say: somebody has paused it, or it waits for the end of other calls (``at_once``)."""
    reason: QueueReason = "rate_limit"


class ErrorEvent(WireModel):
    """The job has failed. Terminal; the fields are those of ``JobError``."""

    type: Literal["error"] = Field("error", exclude=True)
    code: str
    message: str
    retryable: bool
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class CancelledEvent(WireModel):
    """The job was cancelled. Terminal."""

    type: Literal["cancelled"] = Field("cancelled", exclude=True)
    status: Literal[JobStatus.CANCELLED] = JobStatus.CANCELLED
    usage: Usage | None = None
    sha256: str
    """Of the UTF-8 bytes of the text so far on the channel ``content``, in hexadecimal digits."""


StreamEvent = QueuedEvent | StartEvent | ChunkEvent | ResetEvent | CompleteEvent | ErrorEvent | CancelledEvent
"""Any event of a job's stream."""
