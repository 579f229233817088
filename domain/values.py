"""Values that cross rooms, beside the contracts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import Field

from chatjobs.contracts import (
    Channel,
    ChatRequest,
    ErrorCause,
    Job,
    JobStatus,
    Many,
    PlacedPart,
    ScheduleTiming,
    Timestamp,
    ToolCall,
    Usage,
    WireModel,
)
from domain.names import SCHEDULED
from domain.tokens import RequestSize

OK = 200
"""The HTTP status of a call that brought a part of an answer."""


@dataclass(frozen=True, slots=True)
class RunRef:
    """A workflow run in Temporal. Without ``run_id``: the workflow's newest one, which is the job's only one."""

    workflow_id: str
    run_id: str | None = None
    shared: bool = False
    """It is a batch's, which runs many jobs: nothing that is meant for one of them may be done to it."""

    @property
    def is_cron(self) -> bool:
        """Other runs of the same workflow follow, and are other jobs."""
        return self.run_id is not None and SCHEDULED.fullmatch(self.workflow_id) is None


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A job that has a row: its identity, and what starting its workflow needs.

    ``revision``: 1, and one more for each time that the job went on after its end.
    """

    job_id: str
    request_id: str
    tenant: str
    model: str
    status: JobStatus
    priority: int
    created_at: datetime
    replay_of: str | None = None
    start_at: datetime | None = None
    """The job waits for this time in storage; a sweeper starts it."""
    revision: int = 1
    created: bool = False
    """This call inserted the row; False where it was there already."""

    def is_due(self, time: datetime) -> bool:
        """Whether it may start at ``time``."""
        return self.start_at is None or self.start_at <= time


class StoredJob(Job):
    """A job as storage returns it: without ``temporal_url``, which RunLinks makes from ``run``."""

    run: RunRef = Field(exclude=True)


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """A job's request as one for a response of OpenAI's, beside the parameters of the job.

    ``settings``: a JSON object. ``kept``: the content stays after the end, as that of any job.
    """

    settings: str
    kept: bool = True


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be accepted; see domain/new_jobs.py, which makes it.

    ``request`` is None where it was not valid: the job gets a row, so that it can be found, and can only fail.
    """

    job_id: str
    tenant: str
    request_id: str
    request: ChatRequest | None
    request_json: str | None
    """``request`` as it is stored: the fields that the caller gave."""
    body_hash: str
    """contracts.fingerprint of the body as received, without nulls in optional fields."""
    earlier_hashes: Callable[[], Collection[str]] = tuple
    """The hashes that earlier versions stored for the same body. Only a conflict asks for them: each costs as much as
    ``body_hash``."""
    started: bool = False
    """It comes from its own workflow, which need not be started."""
    idempotency_key: str | None = None
    replay_of: str | None = None
    previous_job_id: str | None = None
    thread: str | None = None
    """None for a job that begins a conversation, and for one that goes on with one until the messages of that are in
    its request (domain/conversations.py)."""
    schedule_id: str | None = None
    run: RunRef | None = None
    """Set where the workflow's id is not the job's: a run of a cron or Schedule."""
    response: ResponseForm | None = None
    """Set where the request came as one for a response of OpenAI's."""

    @property
    def lacks_history(self) -> bool:
        """Whether it goes on with a conversation whose messages its request does not have yet."""
        return self.previous_job_id is not None and self.thread is None

    def repeats(self, body_hash: str) -> bool:
        """Whether a stored job with this hash was accepted for the same body."""
        return body_hash == self.body_hash or body_hash in self.earlier_hashes()


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule as storage returns it. Times are microseconds since 1970.

    ``uid``: random, of this creation of the schedule. ``request`` and ``batch``: JSON, one of them. ``trigger_at``: the
    time of a requested run that Temporal was not told of; ``triggered_at``: of the last requested one. ``revision``
    grows with each change; ``applied`` is the one that Temporal has, 0 if none. ``seen_at``: when Temporal last had the
    schedule. ``next_runs``: as Temporal named them then.
    """

    uid: str
    tenant: str
    id: str
    timing: ScheduleTiming
    request: str | None
    batch: str | None
    created_at: int
    updated_at: int
    paused: bool
    note: str | None
    deleted: bool
    trigger_at: int | None
    triggered_at: int | None
    revision: int
    applied: int
    seen_at: int | None
    next_runs: tuple[int, ...]

    @property
    def pending(self) -> bool:
        """Whether Temporal is behind."""
        return self.applied < self.revision or self.trigger_at is not None

    @property
    def name(self) -> str:
        """Its id in Temporal, and the beginning of the ids of its runs and jobs."""
        return f"{self.id}-{self.uid}"


class FinishRecord(WireModel):
    """The end of an answer as data, committed with its last text."""

    reason: str
    usage: Usage | None = None
    tool_calls: Many[ToolCall] = ()
    parts: Many[PlacedPart] = ()
    attempt: int
    """Its number in the ledger; 0 where the end was known without a call of the model."""
    ended_at: Timestamp
    first_token_ms: int | None = None
    tokens_per_second: float | None = None
    estimated: bool = False
    """Mistral did not say what the call used."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one attempt wrote of its epoch: the text from position ``start`` to ``end``, in ``deltas`` deltas.

    ``deltas``: their number, or the server's count during the stream. ``tokens``: by the server's count; None without
    one. ``most``: the attempt's estimate; None where its worker died. ``closed``: it belongs to an earlier segment.
    """

    start: int
    end: int
    deltas: int
    tokens: int | None = None
    most: int | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended that did not finish its answer. ``outcome`` is an AttemptOutcome or an error's code.

    ``usage`` is exact; without it, usage is estimated: ``tokens`` for the answer, or one for each delta. ``called``:
    whether the model was called; if not, the attempt is removed from the ledger. ``message``: why it failed.
    """

    outcome: str
    http_status: int | None = None
    first_token_ms: int | None = None
    tokens_per_second: float | None = None
    usage: Usage | None = None
    called: bool = True
    message: str | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """The attempts at a job before this one, summed up from the ledger.

    ``furthest`` is the most characters that the transcript had after any of them. An attempt moves on if it goes on
    from the text so far and brings it further than that, and does not end with an error of this service. ``failures``
    are the real ones of all; ``here`` those at the present place: of the last attempt that moved on and of those after
    it. ``breaks``: of these, answers that were paid for and broke off. ``cause``: the last thing that went wrong.
    ``empties``: failures that brought nothing at all.
    ``segments``: parts of the answer of this epoch that ended at their own length limit; ``segment_tokens``: what came
    after the last of them and before it was interrupted, one delta for one token. ``stretches``: what each attempt
    wrote of this epoch. ``topped_up``: the present segment is already being brought up to its limit. ``total_tokens``:
    of all calls, as far as known or estimated; ``estimated``: how many of them are. The counts of failures, and
    ``stuck_since``, are of the present model alone: the beginning (microseconds) of its first attempt at the present
    place that failed or was refused for its rate. ``other_model``: another one has written text of this epoch.
    """

    failures: int = 0
    here: int = 0
    breaks: int = 0
    furthest: int = 0
    cause: ErrorCause | None = None
    empties: int = 0
    segments: int = 0
    segment_tokens: int = 0
    stretches: tuple[Stretch, ...] = ()
    topped_up: bool = False
    total_tokens: int = 0
    estimated: int = 0
    stuck_since: int | None = None
    other_model: bool = False


@dataclass(frozen=True, slots=True)
class Claimant:
    """A job that requests a turn to call the model. ``since`` (microseconds): when it was accepted.

    A smaller ``priority`` goes first; within one priority, tenants take turns. ``returns``: it had a turn before.
    ``stays``: it waits in its worker for however long, so that nobody has to wake it. ``size``: the tokens of its
    request, estimated when a lane with a budget of tokens asks.
    """

    job_id: str
    tenant: str
    priority: int
    since: int
    returns: bool = False
    stays: bool = False
    size: Callable[[], RequestSize] = field(default=RequestSize, compare=False)


@dataclass(frozen=True, slots=True)
class Reservation:
    """When a job may call the model, in a lane.

    ``granted``: the call may start in ``seconds``, at ``due`` by this process's monotonic clock. Otherwise the job
    requests a turn again in ``seconds``; a ``near`` turn is awaited in the worker. ``position`` (1 is next) is shown to
    people.
    """

    granted: bool
    seconds: float
    position: int = 0
    lane: str = ""
    near: bool = False
    due: float = 0.0
    shifted: int | None = None
    """The lane's sum of late starts when the turn was granted, for Limiter.report_late_start; None: not reported."""
    probe: bool = False
    """The call tests whether a model that was down answers again."""
    refused: bool = False
    """The lane's last call was refused: ``Limiter.record_success`` ends that."""
    seen: float | None = None
    """The limit that the lane has from the model's headers, in calls per second."""
    tokens: int = 0
    """Reserved in the lane's budget of tokens; 0 without a budget."""
    slot: int = 0
    """The part of a minute in which they were reserved (storage/rate_limits/budget.py)."""
    budget: int | None = None
    """The lane's tokens per minute."""
    used: int = 0
    """The tokens of the last minute, with these."""
    tokens_seen: int | None = None
    """The tokens per minute that the lane has from the model's headers."""
    counts: bool = False
    """The lane limits the calls that run at once: the attempt must be stored before the next turn is reserved."""
    worker: str = ""
    """The lease of the process that makes the call (storage/rate_limits/running.py)."""
    held: bool = False
    """Not granted because of a pause that somebody began."""
    down: bool = False
    """Not granted because the model is down."""
    refused_seconds: float = 0.0
    """Not granted, and for so long the model's server has asked not to be called."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of an attempt's claim on a job.

    ``taken``: the attempt may write, under ``fence``, from ``position`` on. With all other outcomes nothing was
    claimed. ``finished``: the answer is whole in storage. ``sealed``: the job has ended. ``cancel_requested``: its
    cancellation was requested. ``waiting``: its ``turn`` to call the model is later. ``worker_lost``: too many workers
    died with it. ``expired``: its time in the queue was over before the first call. ``early``: its ``startAt`` is in
    ``seconds``.
    """

    outcome: Literal["taken", "finished", "sealed", "cancel_requested", "waiting", "worker_lost", "expired", "early"]
    job_id: str
    fence: int
    epoch: int
    position: int
    token_count: int
    finish_reason: str | None = None
    attempt: int = 0
    past: AttemptHistory = AttemptHistory()
    request: ChatRequest | None = None
    started_at: int = 0
    asker: Claimant | None = None
    turn: Reservation | None = None
    seconds: float = 0.0
    model: str = ""
    """The model to call, if the claim was taken: ``request`` names it."""


class TextRun(NamedTuple):
    """Neighbouring text of one channel. ``position`` (characters) and ``token_count`` (of the epoch: the server's
    count, or else deltas) are those at its end."""

    position: int
    channel: Channel
    text: str
    token_count: int


class Cursor(NamedTuple):
    """The place of a reader: everything of ``epoch`` before ``position`` has been read.

    ``awaits_start``: the beginning of the job's first attempt is a change for this reader.
    """

    job_id: str
    epoch: int = 1
    position: int = 0
    awaits_start: bool = False


class Slice(NamedTuple):
    """The text that a reader at a cursor lacks.

    ``reset``: the reader's text is not a prefix of the transcript (another epoch, or a position beyond its end) and
    must be discarded; ``runs`` has the whole text. ``status`` is of the same snapshot: nothing follows a terminal one.
    """

    job_id: str
    epoch: int
    position: int
    runs: tuple[TextRun, ...]
    reset: bool
    status: JobStatus
    attempt: int
    reset_reason: str | None
    started: bool

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.job_id, self.epoch, self.position)
