"""The state of one attempt: what has arrived, when, and how the attempt ended."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, assert_never

from temporalio.exceptions import ApplicationError

from activities import failures
from activities.continuation import CallPlan
from activities.deadlines import Deadlines
from activities.failures import Tally
from activities.freezes import FreezeWatch
from activities.rate_limits import Postponed
from activities.token_counts import Counter
from chatjobs.contracts import ChatRequest, ErrorCause, PlacedPart, Usage
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRefused
from domain.outcomes import SILENT, WITHOUT_CALL, AttemptOutcome, broke_off
from domain.payloads import CompletionSummary
from domain.ports import (
    CANNOT_CONTINUE,
    Allowance,
    ChatModel,
    Finish,
    LineOutcome,
    ModelEvent,
    PartDelta,
    Seam,
    StillWorking,
    TextDelta,
)
from domain.tokens import Sample
from domain.values import OK, AttemptEnd, Claim, FinishRecord, Stretch
from storage.transcript.writer import JobWriter

LENGTH = "length"
"""The finish reason of an answer that reached ``max_tokens``."""
RUN_ON = 32
"""Tokens beyond the length limit after which a server is taken not to keep to it."""


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """What runs an attempt: an activity of its own, or one that works through a part of a batch.

    ``fence`` is greater than that of any earlier attempt at the job. ``run_id`` names what seals the job: a workflow
    run, or a batch. ``number`` counts the attempts of the runner, from 1; it may start again after an operator's Reset.
    It is sys.maxsize where the ledger alone counts them.
    ``seconds_since_scheduled``: from the scheduling of the runner's first attempt, by Temporal's clock.
    ``heartbeat_seconds``: after so long without a heartbeat, others take the job over. ``beats``: once it is done, the
    attempt could no longer be cancelled; ``stopping``: once it is done, the worker shuts down. ``job_cancelled``:
    whether a cancellation of the attempt's task is one of the job. ``turns``: the attempt waits in the worker for its
    turn to call the model; None: it goes back to Temporal meanwhile. ``outcome``: what the model has said already, in a
    batch job: there is no call. ``reopens``: whether the attempt reopens a job that another run has sealed as failed.
    """

    fence: int
    run_id: str
    number: int
    seconds_since_scheduled: float
    heartbeat_seconds: float
    beats: asyncio.Future[None]
    stopping: asyncio.Future[None]
    job_cancelled: Callable[[], bool]
    turns: Turns | None = None
    outcome: LineOutcome | None = None
    reopens: bool = True


class Turns(Protocol):
    """How a job waits in its worker for its turn to call the model."""

    lock: asyncio.Lock
    """Of the jobs that share it, only the first requests a turn; the others come after it."""

    def leave(self) -> None:
        """Let others have the job's place in the worker."""

    async def take(self) -> bool:
        """Wait for a place. Returns False if the waiting is over, without a place."""

    async def rest(self, seconds: float) -> bool:
        """Wait without a place, then for one. Returns False if the waiting is over, without a place."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of the answer is durable."""

    summary: CompletionSummary


@dataclass(frozen=True, slots=True)
class Continues:
    """The attempt ended in good order, and another one goes on at once."""

    outcome: AttemptOutcome
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """``error``: of the model (UpstreamError), of the database (StorageError), for Temporal (ApplicationError), a
    cancellation of the activity (CancelledError), or of this service (any other)."""

    error: BaseException


AttemptResult = Answered | Continues | Postponed | Failed


class RunningAttempt:
    """One attempt at a job, which makes at most one call of the model."""

    def __init__(self, claim: Claim, job_writer: JobWriter, watch: FreezeWatch, context: AttemptContext) -> None:
        if claim.request is None:
            raise AssertionError("a claim that was taken has a request")
        self.claim = claim
        self.request: ChatRequest = claim.request
        self.past = claim.past
        self.plan = CallPlan(self.request)
        self.job_writer = job_writer
        self.watch = watch
        self.context = context
        self.number = claim.attempt
        """The ledger's number of the attempt whose call brought the end of the answer; 0: no call did."""
        self.deadlines = Deadlines(self.request.limits, claim.started_at, context.seconds_since_scheduled)
        self.finish: Finish | None = None
        """Set once the end of the answer is on its way to storage."""
        self.usage: Usage | None = None
        """The exact usage, for ``end``: of an attempt that stores no FinishRecord."""
        self.parts: list[PlacedPart] = []
        self.turn = claim.turn
        self.samples: Sequence[Sample] = ()
        """Counted calls of the same model; read where the length of the answer has to be estimated."""
        self._began = time.monotonic()
        self._most_tokens = sys.maxsize
        self._called = False
        self._goes_on = claim.position > 0
        self._first_token: float | None = None
        self._last_event: float | None = None
        self._counter = Counter()
        self._beyond = 0

    # -------------------------------------------------------------------------------------------- the call

    def planned(self, plan: CallPlan) -> None:
        self.plan = plan
        if plan.tokens_left is not None:
            self._most_tokens = plan.tokens_left

    def restarted(self, epoch: int) -> None:
        """The text so far was discarded."""
        self.past = replace(self.past, segments=0, segment_tokens=0, stretches=(), topped_up=False)
        self.job_writer.restarted(epoch)
        self._goes_on = False

    def call(self, model: ChatModel) -> AsyncGenerator[ModelEvent, None]:
        self._began, self._called = time.monotonic(), True
        if self.context.outcome is not None:
            return _said(self.context.outcome)
        return model.stream(self.plan.sent, self.plan.continue_from)

    def event_arrived(self) -> None:
        """The model has sent text, or a piece of what is only whole at the end."""
        self.deadlines.event_arrived()
        self._last_event = time.monotonic()
        if self.context.outcome is None:  # an answer that came whole has no first token
            self._first_token = self._first_token or self._last_event

    def take(self, event: ModelEvent) -> None:
        """Append an event to the transcript. Raises ApplicationError at the cap on all tokens."""
        match event:
            case TextDelta(channel, text, told):
                self.job_writer.append(channel, text, self._counter.take(text, told))
                if self._counter.least > self._most_tokens:
                    raise self.over_cap()
            case PartDelta(part):
                self.parts.append(PlacedPart(position=self.job_writer.position, part=part))
            case StillWorking(told):
                self._counter.skip(told)
            case Allowance() | Seam() | Finish():
                pass
            case _:
                assert_never(event)

    def is_beyond(self, event: ModelEvent) -> bool:
        """Whether an event is text beyond the length limit (see CallPlan.is_full)."""
        if not isinstance(event, TextDelta) or not self.plan.is_full(self._counter):
            return False
        self._beyond += 1
        return True

    @property
    def trimmed(self) -> bool:
        """Text beyond the length limit was dropped."""
        return self._beyond > 0

    @property
    def runs_on(self) -> bool:
        """The server does not keep to the length limit."""
        return self._beyond > self.plan.room + RUN_ON

    # --------------------------------------------------------------------------------------- its measures

    @property
    def moved_on(self) -> bool:
        """It has brought the answer further than any attempt before it (see AttemptHistory)."""
        return self.job_writer.position > self.past.furthest and (self._goes_on or not self.past.furthest)

    @property
    def spent(self) -> Usage | None:
        """The usage of its call, estimated where the model did not tell; None if it brought nothing."""
        if not self.deadlines.began:
            return None
        return self.usage or self._counter.usage or self.plan.estimated(self._counter.most)

    @property
    def first_token_ms(self) -> int | None:
        return None if self._first_token is None else round((self._first_token - self._began) * 1000)

    def tokens_per_second(self, tokens: int | None = None) -> float | None:
        """Over the time since the first token; a single token has no rate."""
        count = self._counter.count if tokens is None else tokens
        if self._first_token is None or count < 2:
            return None
        return round((count - 1) / max(time.monotonic() - self._first_token, 1e-3), 1)

    @property
    def phase(self) -> str:
        """For people, in the Temporal UI."""
        if self.finish is not None:
            return "storing the end"
        return "waiting for the first token" if self._first_token is None else "streaming"

    @property
    def seconds(self) -> float:
        """Since its call, or its claim if there was none."""
        return time.monotonic() - self._began

    def stretch(self, tokens: int) -> Stretch:
        """The text that this attempt wrote, which has ``tokens`` by the server's count."""
        start = self.past.stretches[-1].end if self.past.stretches else 0
        return Stretch(start, self.job_writer.position, self._counter.count, tokens)

    def reached_cap(self, finish: Finish) -> bool:
        """Whether the answer ended where limits.maxTotalTokens made it end."""
        reported = finish.usage.completion_tokens if finish.usage else 0
        used = reported or max(self._counter.count, self._counter.most)
        return finish.reason == LENGTH and self.plan.ends_at_cap and used >= (self.plan.tokens_left or 0)

    # ---------------------------------------------------------------------------------------- its failure

    def tally(self, reason: str) -> Tally:
        """The job's real failures, with this attempt's, whose code is ``reason``.

        After a Reset, Temporal counts attempts from one again, and so does this.
        """
        past, most = self.past, self.context.number
        moved = self.moved_on and reason != AttemptOutcome.INTERNAL
        here, breaks = (0, 0) if moved else (past.here, past.breaks)
        broke = broke_off(reason, began=self._first_token is not None)
        return Tally(
            here=min(here + 1, most),
            in_all=min(past.failures + 1, most),
            breaks=min(breaks + 1, most) if broke else 0,
            empties=min(past.empties + 1, most),
        )

    def cannot_continue(self, error: UpstreamError) -> bool:
        """Whether the model refused to go on from the text so far; it may well answer from the beginning."""
        refused = (
            isinstance(error, UpstreamRefused) and error.reason == "upstream_rejected" and error.http_status != 404
        )
        asked = self.plan.continue_from is not None and not self._counter.deltas
        return asked and (refused or error.reason == CANNOT_CONTINUE)

    def timeout(self) -> Exception:
        """The error of the time limit that was reached."""
        if self.deadlines.over:
            return self.total_timeout()
        limits = self.request.limits
        if self.deadlines.began:
            message = (
                f"Mistral fell silent in the middle of the answer (limits.stallSeconds: {limits.stall_seconds:g} s)"
            )
            return UpstreamInterrupted(message, code=AttemptOutcome.STALL_TIMEOUT.value)
        message = (
            f"Mistral did not begin to answer in time (limits.firstTokenSeconds: {limits.first_token_seconds:g} s)"
        )
        return UpstreamInterrupted(message, code=AttemptOutcome.FIRST_TOKEN_TIMEOUT.value)

    def total_timeout(self) -> ApplicationError:
        cause = self.past.cause
        if cause is None and self._called and not self.deadlines.began:
            cause = self._silence()
        message = f"The whole generation took too long (limits.totalSeconds: {self.request.limits.total_seconds:g} s)"
        return failures.permanent(AttemptOutcome.TOTAL_TIMEOUT.value, message, retryable=True, cause=cause)

    def over_cap(self) -> ApplicationError:
        most = self.request.limits.max_total_tokens
        message = f"The job has used the tokens that it may (limits.maxTotalTokens: {most})"
        return failures.permanent(AttemptOutcome.MAX_TOTAL_TOKENS.value, message, cause=self.past.cause)

    def cause(self, reason: str) -> ErrorCause | None:
        """What led to a failure with the code ``reason``, if that is the code of a time limit: the failure before it,
        if it was another one, else what was seen of the model."""
        if reason not in SILENT:
            return None
        before = self.past.cause
        return before if before is not None and before.code != reason else self._silence()

    def _silence(self) -> ErrorCause:
        seconds = time.monotonic() - (self._last_event or self._began)
        place = f"after {self.job_writer.position} characters" if self.deadlines.began else "and no first token"
        message = f"Nothing came from the model for {seconds:.0f} s, {place}; comments and empty chunks do not count"
        return ErrorCause(code="silence", message=message)

    # -------------------------------------------------------------------------------------------- its end

    async def keep(self, finish: Finish) -> None:
        """Make the end of the answer durable."""
        self.finish = finish
        estimate = self.plan.estimated(self._counter.most)
        usage, estimated = finish.counted(estimate) if self.number else (None, False)
        record = FinishRecord(
            reason=finish.reason,
            usage=usage,
            estimated=estimated,
            tool_calls=finish.tool_calls,
            parts=tuple(self.parts),
            attempt=self.number,
            ended_at=datetime.now(UTC),
            first_token_ms=self.first_token_ms,
            tokens_per_second=self.tokens_per_second(finish.usage.completion_tokens if finish.usage else None),
        )
        await self.job_writer.finish(record)

    def summary(self, finish: Finish) -> CompletionSummary:
        return CompletionSummary(position=self.job_writer.position, finish_reason=finish.reason)

    def end(self, outcome: str, http_status: int | None = None, message: str | None = None) -> AttemptEnd:
        """The ledger's record of an attempt that did not finish its answer."""
        return AttemptEnd(
            outcome=outcome,
            http_status=http_status or (OK if self.deadlines.began else None),
            first_token_ms=self.first_token_ms,
            tokens_per_second=self.tokens_per_second(),
            usage=self.usage or self._counter.usage,
            called=self._called or outcome not in WITHOUT_CALL,
            message=message,
            tokens=self._counter.most if self._counter.deltas else None,
        )

    def log(self, action: str) -> dict[str, Any]:
        return {"action": action, "job_id": self.claim.job_id, "attempt": self.claim.attempt}


async def _said(outcome: LineOutcome) -> AsyncGenerator[ModelEvent, None]:
    """The events of an answer that came whole. Raises UpstreamError for an error in its place."""
    if isinstance(outcome, UpstreamError):
        raise outcome
    for piece in outcome.pieces:
        yield piece
    yield outcome.finish
