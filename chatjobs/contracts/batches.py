"""Batches: many jobs submitted together, their progress and their output; replays, whose jobs are those of a filter.

The lines of items and of output are those of Mistral's and OpenAI's batch files (Mistral's documentation, "Batch
inference"; OpenAI's API reference, "Batch").
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, StringConstraints

from chatjobs.contracts.base import (
    HttpUrl,
    JobId,
    JsonObject,
    Many,
    Metadata,
    ModelName,
    StrictModel,
    Timestamp,
    WireModel,
)
from chatjobs.contracts.results import Cost, JobError, Usage
from chatjobs.contracts.statuses import BatchEventType, BatchStatus, JobStatus

BATCH_PRIORITY = 4
"""The priority of a batch's jobs that give none: single jobs go first."""
MAX_CONCURRENCY = 10_000
COMPLETIONS_URL = "/v1/chat/completions"

CustomId = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""The caller's name of an item, unique in its batch; without control characters."""


class BatchItem(StrictModel):
    """One item of a batch, as a line of Mistral's or OpenAI's batch files has it.

    Without ``custom_id``, the item's number from 0 is its name, as at Mistral.
    """

    custom_id: CustomId | None = None
    body: JsonObject
    """A request as ``POST /api/jobs`` takes it; fields that it lacks are taken from the batch's ``defaults``."""
    method: Literal["POST"] | None = None
    url: Literal["/v1/chat/completions"] | None = None


def _address(value: Any) -> Any:
    """A URL alone is short for a webhook with it, as in the query of an upload."""
    return {"url": value} if isinstance(value, str) else value


class BatchWebhook(WireModel):
    """The URL that a batch's end is delivered to, and the outcomes that are delivered (all, unless given)."""

    url: HttpUrl
    events: Many[Annotated[BatchEventType, Strict(False)]] = tuple(BatchEventType)


BatchName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Concurrency = Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]


class BatchSettings(WireModel):
    """What is said of a whole batch: the fields beside ``items``, or the query parameters of an NDJSON upload."""

    name: BatchName | None = None
    webhook: Annotated[BatchWebhook, BeforeValidator(_address)] | None = None
    concurrency: Concurrency | None = None
    """Most items that run at once, over all workers; None is as many as the workers have places for."""
    lane: Literal["live", "batch"] = "live"
    """``live``: calls of the model as for every job. ``batch``: Mistral's batch API, at half the price."""
    deadline: Timestamp | None = None
    """Only with the lane ``batch``: what is not done shortly before is called live."""
    defaults: JsonObject = Field({})
    """Fields of a request for items that do not have them."""


class BatchRequest(BatchSettings):
    """The body of ``POST /api/batches`` as ``application/json``."""

    items: Many[BatchItem]
    """At least one."""


class ReplayFilter(WireModel):
    """The jobs that a replay asks for again: those that have ended, and match all that is given."""

    status: Annotated[JobStatus, Strict(False)] | None = None
    """A terminal one."""
    error_code: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    model: ModelName | None = None
    metadata: Metadata = Field({})
    """All of these pairs."""
    since: Timestamp | None = None
    """Accepted at this time or later."""
    until: Timestamp | None = None
    """Accepted before this time."""
    batch_id: JobId | None = None


class ReplayRequest(WireModel):
    """The body of ``POST /api/replays``."""

    filter: ReplayFilter
    """At least one field."""
    dry_run: bool = False
    """Only say what would be replayed."""
    canary: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """So many jobs run first, and the others only if few enough of these fail."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """The part of the canary, and then of the jobs that ended last, that may fail; above it the replay is stopped.
    With a canary 0.5, unless given."""
    overrides: JsonObject = Field({})
    """Fields of a request that change, as in ``POST /api/jobs/{jobId}/replay``; null unsets one."""
    name: BatchName | None = None
    webhook: Annotated[BatchWebhook, BeforeValidator(_address)] | None = None
    concurrency: Concurrency | None = None


class ReplayEstimate(WireModel):
    """The answer to a dry run: what a replay with this filter would do now."""

    count: int
    """Jobs that would be replayed."""
    skipped: int
    """Jobs of the filter that cannot be: they were deleted, or their request was not kept."""
    estimated_tokens: int | None = None
    """The tokens of their first runs; one that used none counts as the mean of the others. None: all used none."""
    first_job_ids: Many[str]
    """The first ones, in the order of the replay: the oldest first."""


class BatchCounts(WireModel):
    """The number of jobs by status. ``completed`` includes incomplete answers, which reached a length limit."""

    total: int
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class BatchAccepted(WireModel):
    """The answer to the request for a new batch."""

    batch_id: str
    status: BatchStatus
    status_url: str
    events_url: str
    output_url: str
    errors_url: str


def _absent(value: Any) -> bool:
    return value is None


class Batch(WireModel):
    """A batch as ``GET /api/batches/{batchId}`` shows it."""

    batch_id: str
    name: str | None = None
    status: BatchStatus
    revision: int = 1
    """1, and one more for each time that the batch went on after its end."""
    created_at: Timestamp
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    """The time of the terminal status, whichever it is."""
    counts: BatchCounts
    usage: Usage | None = None
    """The sum over the jobs that have ended."""
    rate_per_second: float | None = None
    """Jobs that ended per second, over the last minute; None before the first."""
    expected_end_at: Timestamp | None = None
    """At this rate; None while nothing is known, and after the end."""
    schedule_id: str | None = None
    """The id of the schedule that made the batch."""
    concurrency: int | None = None
    lane: Literal["live", "batch"] = "live"
    deadline: Timestamp | None = None
    error: JobError | None = None
    """There if ``status`` is ``failed``."""
    errors_by_code: dict[str, int] = Field({})
    """The number of failed jobs by the code of their error."""
    temporal_url: str | None = None
    """The batch's workflow in the Temporal UI."""
    kind: Literal["batch", "replay"] = "batch"
    """The items of a ``replay`` come from a filter. The fields after this one are a replay's alone."""
    filter: ReplayFilter | None = Field(None, exclude_if=_absent)
    overrides: JsonObject | None = Field(None, exclude_if=_absent)
    canary: int | None = Field(None, exclude_if=_absent)
    max_error_rate: float | None = Field(None, exclude_if=_absent)
    phase: Literal["canary", "rest"] | None = Field(None, exclude_if=_absent)
    stopped: str | None = Field(None, exclude_if=_absent)
    """Why the replay was stopped: too many of its jobs failed."""
    skipped: int | None = Field(None, exclude_if=_absent)
    """Jobs of the filter that were left out: they were deleted, or their request was not kept."""
    cost: Cost | None = Field(None, exclude_if=_absent)
    """What ``usage`` cost. Left out in lists, where a model has no price, and of more than 20,000 items."""


class BatchPage(WireModel):
    """Batches, newest first; ``nextCursor`` is None on the last page."""

    batches: Many[Batch]
    next_cursor: str | None = None


class OutputResponse(StrictModel):
    """The answer of an item, as a server's response to its request."""

    status_code: int
    body: Any
    """A chat completion object (Mistral's API reference, ``ChatCompletionResponse``)."""


class OutputError(StrictModel):
    """Why an item has no answer."""

    code: str
    message: str


class OutputLine(StrictModel):
    """A line of a batch's output or errors. ``id`` is the id of the item's job."""

    id: str
    custom_id: str
    response: OutputResponse | None = None
    error: OutputError | None = None


class BatchProgress(WireModel):
    """The state of a batch: the data of its stream's events, and of its webhooks."""

    batch_id: str
    name: str | None = None
    status: BatchStatus
    revision: int = 1
    """1, and one more for each time that the batch went on after its end."""
    counts: BatchCounts
    usage: Usage | None = None
    rate_per_second: float | None = None
    expected_end_at: Timestamp | None = None
    error: JobError | None = None
    completed_at: Timestamp | None = None


class BatchOutcome(BatchProgress):
    """The end of a batch, in its webhook."""

    status_url: str
    output_url: str
    errors_url: str


class BatchWebhookEvent(WireModel):
    """The body of a batch's webhook."""

    event: BatchEventType
    timestamp: Timestamp
    data: BatchOutcome
