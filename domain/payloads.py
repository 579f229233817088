"""Arguments and results of activities and child workflows, which Temporal's history keeps: ids, positions, outcomes.

They hold no prompt and no answer, except the answer of a job that was started with its request inline.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatjobs.contracts import BatchStatus, ChatResult, JobError, JobStatus, Many, Timestamp, WireModel


class Accepted(WireModel):
    """A job that has a row."""

    job_id: str
    tenant: str
    model: str
    replay_of: str | None = None  # not used; recorded histories have it, and unknown fields are refused
    indexed: bool
    """The namespace has our search attributes; upserting one that is not registered would loop the workflow task."""
    error: JobError | None = None
    """Why the request can never run: the job is sealed as failed at once."""


class JobRef(WireModel):
    job_id: str
    reopens: bool = Field(True, exclude_if=lambda reopens: reopens)
    """Whether the run reopens the job if it has failed: an operator's Reset does, and a second start from outside."""


class ScheduledRef(WireModel):
    """The argument of a ``ChatJob`` or ``ScheduledBatch`` that one of our schedules starts: the schedule's ``name``.

    ``revision`` is that of the schedule's row, by which a sweeper sees whether Temporal has the newest.
    """

    schedule: str
    revision: int


class ScheduledAnswer(WireModel):
    """The job that a run of a schedule has made; None where it makes none, for ``reason``."""

    accepted: Accepted | None = None
    reason: str | None = None


class ScheduledBatchAnswer(WireModel):
    """The batch that a run of a schedule has made; None where it makes none, for ``reason``."""

    batch_id: str | None = None
    reason: str | None = None


class NoJob(WireModel):
    """The result of a schedule's run that made no job and no batch."""

    schedule: str
    reason: str


class CompletionSummary(WireModel):
    """The result of complete_chat: the answer is whole in storage, or there was nothing to do."""

    position: int
    finish_reason: str | None = None
    outcome: Literal["finished", "sealed", "cancel_requested"] = "finished"


class Ending(WireModel):
    """The outcome that a workflow or sweeper asks for. Storage decides: a request to cancel comes first."""

    job_id: str
    status: Literal[JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED]
    position: int | None = None
    """Where the answer ends, for completed jobs; sealing refuses any other place."""
    error: JobError | None = None


class Sealed(WireModel):
    """A job's outcome as it stands in storage."""

    job_id: str
    status: JobStatus
    model: str
    position: int
    sha256: str
    error: JobError | None = None
    delivery_id: str | None = None
    endpoint_deliveries: Many[str] = Field((), exclude_if=lambda ids: not ids)
    """For endpoints of all jobs: the process that seals the job sends them, not the job's workflow."""
    indexed: bool = False
    result: ChatResult | None = None
    """The answer, for a job whose request came inline."""


class DeliveryOrder(WireModel):
    """One try of a delivery. ``retry_in`` is the schedule's pause after it, in seconds; None after the last."""

    delivery_id: str
    retry_in: float | None


class DeliveryReport(WireModel):
    """The result of a try. ``retry_in``: seconds until the next one; None: there is none."""

    delivered: bool
    tries: int
    retry_in: float | None = None
    reason: str | None = None
    counted: bool = Field(True, exclude_if=lambda counted: counted)
    """False: nothing was sent, as too many tries to the receiver are under way. The schedule does not advance."""


class DeliveryStart(WireModel):
    """The argument of the workflow type ``WebhookDelivery``. ``tries_made`` places it in the schedule.

    ``earlier`` tries do not count for it: they were made before a redelivery was requested.
    """

    delivery_id: str
    tries_made: int = 0
    earlier: int = 0
    first_pause: float = 0.0
    """Seconds until the first try of this run."""


class RetentionOrder(WireModel):
    """The argument of the workflow type ``Retention``: how long a job is kept after its end."""

    days: float


class RetentionReport(WireModel):
    """The jobs that a run has removed, and its place: the end (microseconds since 1970) and id of the last job."""

    removed: int = 0
    completed_at: int = 0
    job_id: str = ""
    complete: bool = False


class SentPart(WireModel):
    """Items of a batch that the model's server has as a batch job. ``key``: see ports.BatchModel.

    ``ended_at``: when the job was first seen to have ended, while its files are awaited.
    """

    key: str
    model_batch_id: str
    ended_at: Timestamp | None = None


class LaneState(WireModel):
    """How far a batch is in the lane of batch jobs.

    ``position``: the items before it were sent, ``size`` at a time. ``parts``: the batch jobs whose results are
    awaited. ``looks``: how often they were looked at since anything was sent. ``done``: what has no result now goes on
    as live calls.
    """

    position: int = 0
    size: int = 10_000
    parts: Many[SentPart] = ()
    looks: int = 0
    done: bool = False


class BatchStart(WireModel):
    """The argument of the workflow type ``ChatBatch``. ``position``: the items before it have ended."""

    batch_id: str
    position: int = 0
    lane: LaneState = LaneState()


class BatchRef(WireModel):
    batch_id: str


class PreparedBatch(WireModel):
    """A batch whose items all have their jobs."""

    tenant: str
    total: int
    concurrency: int | None = None
    lane: Literal["live", "batch"] = "live"
    deadline: Timestamp | None = None
    ended: bool = False
    canary: int = 0
    """So many items run before the others; 0: none does, or they have run."""
    indexed: bool = False
    """See Accepted."""


class SliceOrder(WireModel):
    """A part of a batch to work through: the items from number ``first`` to before ``end``, ``at_once`` at a time."""

    batch_id: str
    first: int
    end: int
    at_once: int | None = None
    """None: as many as the worker has places for."""


class SliceReport(WireModel):
    """``stopped``: why items are left; None: all of the part have ended."""

    stopped: Literal["paused", "cancelled"] | None = None


class SendOrder(WireModel):
    """Items of a batch to send to the model's server: from number ``first`` to before ``end``, one job per model."""

    batch_id: str
    first: int
    end: int
    timeout_hours: int
    deadline: Timestamp | None = None


class SendReport(WireModel):
    """The batch jobs that were created.

    ``stopped``: why there are none; ``held``: by a pause of a lane or tenant; ``late``: the deadline is too near.
    """

    parts: Many[SentPart] = ()
    stopped: Literal["paused", "held", "cancelled", "late"] | None = None


class PartsOrder(WireModel):
    """Batch jobs to look at or to withdraw. ``deadline``: the batch's. ``keep``: their results are wanted.

    ``pause``: seconds until the next look, if nothing has happened.
    """

    batch_id: str
    parts: Many[SentPart]
    deadline: Timestamp | None = None
    keep: bool = True
    pause: float = 0.0


class PartsReport(WireModel):
    """Batch jobs as they are now, by key: those that have ``ended``, and of these those whose results are all there.

    ``answered``: requests with a result, so far. ``seconds_left``: until what has no result has to be withdrawn to meet
    the deadline; None: there is no deadline.
    """

    ended: Many[str] = ()
    complete: Many[str] = ()
    answered: int = 0
    seconds_left: float | None = None
    cancelled: bool = False


class PartOrder(WireModel):
    """A batch job whose results are to be taken."""

    batch_id: str
    part: SentPart
    deadline: Timestamp | None = None


class ResultsReport(WireModel):
    """``ended``: jobs that got their outcome. ``left``: those whose result was an error that live calls may mend."""

    ended: int = 0
    left: int = 0


class CanaryReport(WireModel):
    """The end of a replay's canary, the items before number ``end``. ``left``: jobs of it that have not ended."""

    end: int
    left: int = 0


class BatchSealed(WireModel):
    """A batch's outcome as it stands in storage. ``delivery_id``: the webhook that this run sends first.

    ``left``, ``first``, ``unprepared``: see domain.batches.SealedBatch.
    """

    batch_id: str
    status: BatchStatus
    left: int = 0
    first: int | None = None
    unprepared: bool = False
    delivery_id: str | None = None
    indexed: bool = False
