"""Jobs as they are shown: result, error, usage, attempts and deliveries."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from chatjobs.contracts.base import JsonObject, Many, StrictModel, Timestamp, WireModel
from chatjobs.contracts.messages import ToolCall
from chatjobs.contracts.statuses import JobStatus, WebhookEventType

MAX_INLINE_RESULT_BYTES = 1024 * 1024
"""Most bytes of a result that crosses Temporal, as JSON; a larger one is left in storage."""


class Usage(StrictModel):
    """Tokens as Mistral counts them; further counters are kept as they came."""

    model_config = ConfigDict(extra="allow", strict=False)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ErrorCause(WireModel):
    """The last failure before a limit ended the job. ``code`` and ``message`` are as in ``JobError``."""

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
    """Whether a replay of the job may succeed."""
    cause: ErrorCause | None = Field(None, exclude_if=lambda cause: cause is None)


class PlacedPart(WireModel):
    """A part of an answer that is not text (a reference, an image), and its position in the text."""

    position: int
    """Characters of the answer, over both channels, before the part."""
    part: JsonObject


class Attempt(WireModel):
    """One HTTP call to Mistral on behalf of a job."""

    number: int
    """From 1."""
    started_at: Timestamp
    ended_at: Timestamp | None = None
    """None while the attempt runs."""
    outcome: str | None = None
    """The code of the error that ended the attempt, or a word for another end; None while it runs."""
    http_status: int | None = None
    """The status of Mistral's response; None if there was none."""
    usage: Usage | None = None
    estimated: bool = False
    """Whether ``usage`` is an estimate, because Mistral did not report it."""
    first_token_ms: int | None = None
    """Milliseconds from the call to the first token."""
    tokens_per_second: float | None = None
    """Tokens per second since the first token; None for fewer than two."""
    model: str | None = None
    """The model that was called; None in attempts of earlier versions."""
    epoch: int | None = None
    """The epoch of the text that it wrote; None in attempts of earlier versions."""


class TextOrigin(WireModel):
    """A stretch of an answer's text that one attempt wrote.

    ``seam`` says how surely it goes on from the text before it. ``confirmed``: the server repeated the text that it was
    given before it went on, so that it has continued exactly this text. ``unconfirmed``: it went on without repeating.
    None: the stretch begins the answer.
    """

    start: int
    """Characters of the answer, over both channels, before the stretch."""
    end: int
    """Characters of the answer up to its end."""
    attempt: int
    """The attempt's number."""
    model: str
    seam: Literal["confirmed", "unconfirmed"] | None = None


class DeliveryTry(WireModel):
    """One POST of a delivery. ``response`` holds the first kilobyte of the answer."""

    number: int
    """From 1; 0 stands for a delivery that failed without a POST, because its endpoint is disabled."""
    started_at: Timestamp
    status_code: int | None = None
    """None if there was no response."""
    latency_ms: int
    """Milliseconds from the beginning of the POST to the end of the response, or to the error."""
    error: str | None = None
    """Why there is no usable response."""
    response: str | None = None


class Delivery(WireModel):
    """The promise to hand one event to one URL. ``id`` is the ``webhook-id`` header of every try."""

    id: str
    event: WebhookEventType
    url: str
    status: Literal["pending", "delivered", "failed"]
    created_at: Timestamp
    next_try_at: Timestamp | None = None
    """None if no try is planned."""
    delivered_at: Timestamp | None = None
    tries: Many[DeliveryTry] = ()
    """Oldest first."""


QueueReason = Literal["rate_limit", "at_once", "paused", "model_down"]
"""Why a job waits: the model's rate limit, the limit of calls at once, a pause (that the model asked for or somebody
began), or a model that fails every call."""


class QueuePlace(WireModel):
    """The place of a job that waits to call the model; ``position`` 1 is next."""

    position: int
    expected_start_at: Timestamp | None = None
    """None where nobody can say: somebody has paused it, or it waits for the end of other calls (``at_once``)."""
    reason: QueueReason = "rate_limit"


class ChatResult(WireModel):
    """A job as GET shows it, without attempts and deliveries: the result of a job started with its request inline.

    ``content`` is partial while the job runs and after it failed or was cancelled. ``sha256`` is over the UTF-8
    bytes of ``content``. ``contentParts`` and ``contentOmitted`` are left out where they say nothing.
    """

    job_id: str
    request_id: str
    """The caller's own id of the request, or a UUID."""
    status: JobStatus
    model: str
    created_at: Timestamp
    start_at: Timestamp | None = Field(None, exclude_if=lambda time: time is None)
    """``startAt`` of the request: the model is not called before."""
    started_at: Timestamp | None = None
    """The beginning of the first attempt."""
    completed_at: Timestamp | None = None
    """The time of the terminal status, whichever it is."""
    content: str | None = None
    reasoning: str | None = None
    """The model's thinking."""
    tool_calls: Many[ToolCall] | None = None
    finish_reason: str | None = None
    """Why the model stopped, in Mistral's words, such as ``stop``, ``length`` or ``tool_calls``."""
    usage: Usage | None = None
    """The sum over all attempts."""
    usage_estimated: bool = False
    """Whether a part of ``usage`` is an estimate."""
    error: JobError | None = None
    """There if ``status`` is ``failed``."""
    epoch: int = 1
    """1, and one more for each time the text so far was dropped and the answer started over."""
    position: int = 0
    """Characters of the answer so far, over both channels."""
    sha256: str | None = None
    """In hexadecimal digits; None while the job runs."""
    metadata: dict[str, str] = Field({})
    replay_of: str | None = None
    """The id of the job that this one replays."""
    previous_job_id: str | None = None
    """The id of the job whose answer this one's conversation goes on from."""
    thread: str | None = None
    """The id of the first job of the conversation, this one's own if it is the first. A replay is in the thread of the
    job that it replays. From GET it is always there."""
    batch_id: str | None = None
    schedule_id: str | None = None
    """The id of the schedule that made the job."""
    temporal_url: str | None = None
    """The URL of the job's workflow in the Temporal UI."""
    deleted_at: Timestamp | None = Field(None, exclude_if=lambda time: time is None)
    """When the job's request, texts and deliveries were deleted."""
    content_parts: Many[PlacedPart] | None = Field(None, exclude_if=lambda parts: parts is None)
    """The parts of the answer that are not text."""
    content_omitted: bool = Field(False, exclude_if=lambda omitted: not omitted)
    """Whether the result is over 1 MiB and was left out of Temporal: read ``statusUrl``."""
    status_url: str | None = Field(None, exclude_if=lambda url: url is None)
    """The URL of the whole job, where ``contentOmitted`` is true."""


class Job(ChatResult):
    """A job as ``GET /api/jobs/{jobId}`` shows it."""

    attempts: Many[Attempt] = ()
    """Oldest first."""
    deliveries: Many[Delivery] = ()
    provenance: Many[TextOrigin] = Field((), exclude_if=lambda origins: not origins)
    """Which attempt and which model wrote which part of the text, in order and without gaps. Not in lists."""
    wasted_tokens: int | None = Field(None, exclude_if=lambda tokens: tokens is None)
    """Tokens of calls beyond those of one uninterrupted call: of text that was dropped, and of prompts that were sent
    again. A part is an estimate where ``usageEstimated``. Not in lists."""
    replays: Many[str] = ()
    """The ids of the jobs that replay this one, oldest first."""
    preview: str | None = Field(None, exclude_if=lambda text: text is None)
    """The first 120 characters of the last user message. That of a new job with images comes after some seconds."""
    queue: QueuePlace | None = Field(None, exclude_if=lambda place: place is None)
    """The job's place in the queue, while it waits to call the model."""


class JobAccepted(WireModel):
    """The answer to the request for a new job: its id, and the URLs of everything about it."""

    job_id: str
    request_id: str
    status: JobStatus
    status_url: str
    """GET shows the job."""
    events_url: str
    """GET streams its events."""
    cancel_url: str
    """POST cancels it."""
    temporal_url: str
    """The job's workflow in the Temporal UI."""
    replay_of: str | None = None
    """The id of the job that this one replays."""


class JobPage(WireModel):
    """Jobs without their texts, newest first; ``nextCursor`` is None on the last page."""

    jobs: Many[Job]
    next_cursor: str | None = None
    """Opaque; the query parameter ``cursor`` of the next page."""
