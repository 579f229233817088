"""Stream one completion into the transcript, heartbeating."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, assert_never

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import continuation, failures
from activities.cancellation import Cancels
from activities.continuation import CallPlan
from activities.failures import Tally
from activities.freezes import Freezes, FreezeWatch
from activities.heartbeats import heartbeating
from activities.rate_limits import Postponed, RateLimitGate, not_yet_due
from activities.token_counts import Counter
from chatjobs.contracts import ChatRequest, ErrorCause, PlacedPart, Retry, Usage
from chatjobs.errors import ChatJobsError
from domain.errors import (
    FenceLost,
    StorageError,
    StorageUnavailable,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamRefused,
)
from domain.names import COMPLETE_CHAT
from domain.payloads import CompletionSummary, JobRef
from domain.ports import (
    CANNOT_CONTINUE,
    Allowance,
    ChatModel,
    Continuing,
    Finish,
    ModelEvent,
    PartDelta,
    StillWorking,
    TextDelta,
)
from domain.timings import Timings
from domain.tokens import Sample
from domain.values import (
    FROZEN,
    OK,
    POSTPONED,
    SEGMENT,
    TAKEN_OVER,
    TOPPED_UP,
    WORKER_LOST,
    AttemptEnd,
    Claim,
    FinishRecord,
    Stretch,
    TextPiece,
)
from storage.engine.schema import micros, moment
from storage.jobs.rows import INTERNAL, SILENCE, broke_off
from storage.jobs.sealing import QUEUE_TIMEOUT
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from storage.transcript.writer import JobWriter, TranscriptWriter

LENGTH = "length"
"""The finish reason of an answer that reached ``max_tokens``."""
NO_PREFIX = "prefix_not_continued"
"""The code of a job whose own beginning of the answer the model's server is known not to continue."""
REFUSED = "continuation_refused"
"""The outcome of an attempt in which the model did not go on from the text so far."""
WITHOUT_CALL = frozenset(
    {"queue_timeout", "total_timeout", "max_total_tokens", "interrupted", "nothing_left", "handed_over", "cancelled"}
    | {POSTPONED, NO_PREFIX, FROZEN}
)
"""Outcomes that an attempt may have before it calls; then it is not in the ledger, which is one of calls."""
NOT_WORTH_A_CALL = 0.02
"""The part of an answer that may be missing at its length limit: another call would pay for the prompt again."""
RUN_ON = 32
"""Tokens beyond the length limit after which a server is taken not to keep to it."""

log = logging.getLogger(__name__)


class CompletionActivities:
    """``limiter`` keeps the model's rate limits over all workers; without it calls start at once."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        transcript: TranscriptWriter,
        model: ChatModel,
        limiter: Limiter | None = None,
        timings: Timings = Timings(),
    ) -> None:
        self._timings = timings
        self._jobs = jobs
        self._transcript = transcript
        self._model = model
        self._lanes = RateLimitGate(model, limiter) if limiter else None
        self._cancels = Cancels(jobs)
        self._freezes = Freezes()
        self._recording: set[asyncio.Task[None]] = set()

    @activity.defn(name=COMPLETE_CHAT)
    async def complete_chat(self, ref: JobRef) -> CompletionSummary:
        """Call the model for a job, unless its answer is whole already; the text goes to the transcript.

        Fails with the error's code as type. Retried by Temporal; a retry takes the job over, and the answer goes on
        from its last durable character, or starts over in a new epoch where it cannot.
        """
        report = _Report()
        with self._freezes.watched(_heartbeat_timeout()) as watch:
            # To the end: claim and last flush may wait for the database.
            async with heartbeating(report.now, timings=self._timings) as beats:
                claim = await self._claim(ref.job_id)
                if summary := _without_attempt(claim):
                    return summary
                attempt = report.attempt = _Attempt(claim, self._transcript.open(claim, watch.frozen), watch)
                try:
                    with self._cancels.of(ref.job_id) as cancel:
                        return await _undisturbed(self._stream(attempt), beats, cancel, watch)
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - translated once, in _verdict
                    return await self._ended(attempt, error)

    async def _claim(self, job_id: str) -> Claim:
        info = activity.info()
        claim = partial(
            self._jobs.claim,
            job_id,
            # Grows across retries and Resets, by the server's clock; the attempt number restarts after a Reset.
            fence=micros(info.current_attempt_scheduled_time),
            claimant=uuid.uuid4().hex,
            run_id=info.workflow_run_id or "",
            tries=info.attempt - 1,
        )
        try:
            return await self._lanes.claim(lambda reserve: claim(reserve=reserve)) if self._lanes else await claim()
        except ChatJobsError as error:
            raise failures.from_storage(error) from None
        except Exception as error:
            # There is no claim, so the ledger cannot count this one. Nor do Temporal's attempts tell: those that
            # waited for their turn are among them. So it is the time that ends it.
            log.exception("claim failed", extra={"action": "claim_failed", "job_id": job_id})
            spent = _since_scheduled() > self._timings.claim_patience_seconds
            tries = failures.FAILURE_BUDGET if spent else min(info.attempt, failures.FAILURE_BUDGET - 1)
            retry = Retry(attempts=failures.FAILURE_BUDGET)
            raise failures.internal(error, Tally(tries, tries), retry, self._timings) from None

    async def _stream(self, attempt: _Attempt) -> CompletionSummary:
        attempt.planned(await self._plan(attempt))
        if self._lanes and not attempt.plan.nothing_left:
            attempt.turn = await self._lanes.wait_for_turn(attempt.claim)
        finish = await self._read(attempt) if not attempt.plan.nothing_left else None
        attempt.usage = finish.exact_usage if finish else Usage()
        if await self._goes_on(attempt, finish):
            raise _SegmentOver
        if finish is not None and await self._is_short(attempt, finish):
            raise _TooShort
        if finish is None:
            return await self._end_without_call(attempt, attempt.end("nothing_left", None, None))
        if attempt.reached_cap(finish):
            raise _over_cap(attempt)
        await attempt.keep(finish)
        return attempt.summary(finish)

    async def _plan(self, attempt: _Attempt) -> CallPlan:
        """What to ask of the model: the rest of the answer, or all of it if there is nothing yet or it has to start
        over. Looks at the clocks and the cap that other attempts have used up before this one."""
        claim, request = attempt.claim, attempt.request
        if attempt.clocks.over:
            raise attempt.total_timeout()
        if continuation.has_own_prefix(request) and self._model.continuing(request.model) is Continuing.NEVER:
            raise _no_prefix()
        pieces: Sequence[TextPiece] = ()
        if claim.position > 0:
            pieces = await self._jobs.written(claim.job_id, fence=claim.fence, epoch=claim.epoch)
        reason = _void(attempt, pieces, self._model.continuing(request.model)) if pieces else None
        if pieces and not reason:
            plan = await self._plan_to_continue(attempt, pieces)
        else:
            plan = continuation.plan(request, attempt.past)
        if plan.over_cap:
            raise _over_cap(attempt)
        if reason:
            await self._restart(attempt, reason)
        return plan

    async def _plan_to_continue(self, attempt: _Attempt, pieces: Sequence[TextPiece]) -> CallPlan:
        request, past = attempt.request, attempt.past
        if not continuation.counted(request, past):
            attempt.samples = await self._jobs.samples(request.model)
        unsent = self._model.unsent(request, continuation.content(pieces))
        return continuation.plan(request, past, pieces, attempt.samples, unsent)

    async def _is_short(self, attempt: _Attempt, finish: Finish) -> bool:
        """Whether the length limit of a continued answer was estimated too low, and another call is worth it.

        The call has shown how its server's deltas and tokens relate: an estimate that was high for want of that is put
        right by it. Once for a segment.
        """
        request, past, most = attempt.request, attempt.past, attempt.request.max_tokens
        usage = finish.exact_usage
        if most is None or usage is None or finish.reason != LENGTH or attempt.plan.continue_from is None:
            return False
        if past.topped_up or attempt.plan.ends_at_cap or attempt.parts or continuation.counted(request, past):
            return False
        await attempt.job_writer.flush()
        pieces = await self._jobs.written(
            attempt.job_writer.job_id, fence=attempt.job_writer.fence, epoch=attempt.job_writer.epoch
        )
        stretches = (*past.stretches, attempt.stretch(usage.completion_tokens))
        missing = most - continuation.said(stretches, pieces, attempt.samples).tokens
        return missing > most * NOT_WORTH_A_CALL

    async def _restart(self, attempt: _Attempt, reason: str) -> None:
        """Throw the text so far away, unless the cap allows no other."""
        if continuation.plan(attempt.request, attempt.past).over_cap:
            raise _over_cap(attempt)
        attempt.restarted(await self._jobs.restart(attempt.claim.job_id, fence=attempt.claim.fence, reason=reason))

    async def _goes_on(self, attempt: _Attempt, finish: Finish | None) -> bool:
        """Whether the answer, at its length limit now, shall have another segment. ``finish`` is None if it had
        reached the limit before this attempt."""
        request, job_writer = attempt.request, attempt.job_writer
        if attempt.past.segments + 1 >= request.max_segments or attempt.parts:
            return False
        if finish is not None and (finish.reason != LENGTH or finish.tool_calls or attempt.reached_cap(finish)):
            return False
        await job_writer.flush()
        pieces = await self._jobs.written(job_writer.job_id, fence=job_writer.fence, epoch=job_writer.epoch)
        return continuation.obstacle(request, pieces, self._model.continuing(request.model)) is None

    async def _end_without_call(self, attempt: _Attempt, end: AttemptEnd) -> CompletionSummary:
        """The text so far is the answer, at its length limit, and no call says so."""
        await self._jobs.end_attempt(attempt.claim.job_id, attempt.claim.attempt, attempt.claim.fence, end)
        attempt.number = 0
        finish = Finish(LENGTH)
        await attempt.keep(finish)
        return attempt.summary(finish)

    async def _read(self, attempt: _Attempt) -> Finish:
        """Take what the model says into the transcript, up to the end of its answer."""
        clocks, finish = attempt.clocks, None
        try:
            async with clocks.running(), contextlib.aclosing(attempt.called(self._model)) as events:
                async for event in events:
                    if isinstance(event, Allowance):
                        if self._lanes:
                            await self._lanes.record_allowance(attempt.claim, event)
                        continue
                    if self._lanes and not clocks.began:
                        self._lanes.record_answer(attempt.claim)
                    clocks.moved()
                    attempt.heard()
                    if isinstance(event, Finish):
                        finish = event
                        break
                    if attempt.is_beyond(event):
                        if attempt.runs_on:
                            finish = Finish(LENGTH)
                            break
                        continue
                    attempt.take(event)
                    if attempt.job_writer.full:
                        with clocks.paused():  # the database is slow, not the model
                            await attempt.job_writer.room()
        except (TimeoutError, UpstreamError) as error:
            if finish is None:  # else only hanging up went wrong
                raise (attempt.timeout() if isinstance(error, TimeoutError) else error) from None
        if finish is None:
            raise UpstreamInterrupted(code="upstream_cut")
        return finish._replace(reason=LENGTH) if attempt.trimmed else finish

    async def _ended(self, attempt: _Attempt, error: BaseException) -> CompletionSummary:
        """Keep what came and write down how the attempt ended. Raises the exception for Temporal.

        An answer that turns out to be whole in storage is not called for again: its summary is returned.
        """
        frozen = attempt.watch.frozen()
        if frozen and not isinstance(error, asyncio.CancelledError):
            error = _Frozen()  # whatever went wrong as well: clocks ran out meanwhile, connections were given up
        outcome, status, failure = _verdict(attempt, error, self._timings)
        claim, end = attempt.claim, attempt.end(outcome, status, _message(error, failure))
        try:
            if not frozen and not isinstance(error, StorageError):
                await attempt.job_writer.flush()
                if attempt.finish is not None:
                    return attempt.summary(attempt.finish)
            if _is_enough(attempt, outcome, failure):
                return await self._end_without_call(attempt, end)
            await self._jobs.end_attempt(claim.job_id, claim.attempt, claim.fence, end)
            if self._lanes:
                began = attempt.clocks.began
                failure = await self._lanes.record_end(claim, attempt.turn, error, failure, began=began)
            failure = failures.within(failure, attempt.clocks.left)
            if outcome == REFUSED or (attempt.parts and _comes_again(attempt, failure)):
                await self._restart(attempt, "refused" if outcome == REFUSED else "parts")
        except ApplicationError as known:  # there is no other way
            failure = known
        except asyncio.CancelledError:
            if not frozen:
                raise
            self._record_later(claim, end, at_once=True)  # Temporal has noticed as well
        except ChatJobsError as problem:
            # A claim that comes first closes this attempt as lost, until the true end is written.
            log.warning("attempt not recorded: %s", problem, extra=attempt.log("attempt_unrecorded"))
            self._record_later(claim, end)
        log.info("attempt ended: %s", outcome, extra=attempt.log("attempt_ended"))
        raise failure from None

    def _record_later(self, claim: Claim, end: AttemptEnd, *, at_once: bool = False) -> None:
        pauses = self._timings.recording_pauses_seconds
        pauses = (0.0, *pauses) if at_once else pauses
        task = asyncio.create_task(self._record(claim, end, pauses), name="attempt's end")
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _record(self, claim: Claim, end: AttemptEnd, pauses: Sequence[float]) -> None:
        """Write how an attempt ended once the database takes it: a job that has lost too many workers fails, and this
        one was not lost."""
        for pause in pauses:
            await asyncio.sleep(pause)
            try:
                await self._jobs.end_attempt(claim.job_id, claim.attempt, claim.fence, end)
            except StorageUnavailable:
                continue
            except ChatJobsError as error:
                log.warning("attempt not recorded: %s", error, extra={"action": "attempt_unrecorded"})
            return


def _without_attempt(claim: Claim) -> CompletionSummary | None:
    """The summary of a job of which nothing is left to be done; None where the claim was taken. Raises, where the job
    has to wait or to end, the exception for Temporal."""
    if claim.outcome == "waiting":
        raise not_yet_due(claim.turn)
    if claim.outcome == "worker_lost":
        raise _worker_lost()
    if claim.outcome == "expired":
        raise failures.permanent(QUEUE_TIMEOUT.code, QUEUE_TIMEOUT.message, retryable=True)
    if claim.outcome == "taken":
        return None
    return CompletionSummary(position=claim.position, finish_reason=claim.finish_reason, outcome=claim.outcome)


async def _undisturbed(
    stream: Coroutine[Any, Any, CompletionSummary],
    beats: asyncio.Task[None],
    cancel: asyncio.Future[None],
    watch: FreezeWatch,
) -> CompletionSummary:
    """The stream's summary. Ends it with _HandedOver once the worker is told to stop, or if the heartbeats stop; with
    _CancelWanted, where our database knows of a cancel before Temporal tells; with _Frozen, once this process is known
    to have stood still."""
    streaming = asyncio.create_task(stream)
    stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
    try:
        disturbances = (stopping, beats, cancel, watch.noticed)
        done, _ = await asyncio.wait((streaming, *disturbances), return_when=asyncio.FIRST_COMPLETED)
        if streaming in done:
            return streaming.result()
        if watch.noticed in done:
            raise _Frozen
        if cancel in done:
            raise _CancelWanted
        if beats in done:
            beats.result()  # raises: without heartbeats nobody could cancel this any more
        raise _HandedOver
    finally:
        for task in (streaming, stopping):
            task.cancel()
        await asyncio.gather(streaming, stopping, return_exceptions=True)


class _Report:
    """What the Temporal UI shows of an attempt under Pending Activities; nothing private."""

    def __init__(self) -> None:
        self.attempt: _Attempt | None = None

    def now(self) -> dict[str, Any]:
        if self.attempt is None:
            return {"phase": "claiming"}
        return {
            "attempt": self.attempt.claim.attempt,
            "phase": self.attempt.phase,
            "characters": self.attempt.job_writer.position,
            "tokensPerSecond": self.attempt.tokens_per_second(),
        }


class _HandedOver(Exception):
    """The worker stops; another one takes the job."""


class _Frozen(Exception):
    """This process stood still for so long that Temporal has taken it for dead."""


class _CancelWanted(Exception):
    """Somebody asked to cancel the job."""


class _TooShort(Exception):
    """The answer ended at a length limit that was estimated too low, and goes on up to the true one."""


class _SegmentOver(Exception):
    """The answer has reached the length limit of a segment, and goes on in another."""


class _Attempt:
    """One call's state: what has come, and when."""

    def __init__(self, claim: Claim, job_writer: JobWriter, watch: FreezeWatch) -> None:
        if claim.request is None:
            raise AssertionError("a claim that was taken has a request")
        self.claim = claim
        self.request: ChatRequest = claim.request
        self.past = claim.past
        self.plan = CallPlan(self.request)
        self.job_writer = job_writer
        self.watch = watch
        self.number = claim.attempt
        """Of the attempt whose call brought the end of the answer."""
        self.clocks = _Clocks(self.request, claim.started_at)
        self.finish: Finish | None = None
        """Once it is on its way to storage."""
        self.usage: Usage | None = None
        """Where it is known exactly, and no finish tells it."""
        self.parts: list[PlacedPart] = []
        self.turn = claim.turn
        self._began = time.monotonic()
        self._most_tokens = sys.maxsize
        self._called = False
        self._goes_on = claim.position > 0
        self._first_token: float | None = None
        self._last_event: float | None = None
        self._counter = Counter()
        self._beyond = 0
        self.samples: Sequence[Sample] = ()
        """Calls of the same model that were counted; looked up where the answer's length has to be estimated."""

    @property
    def moved_on(self) -> bool:
        """It has brought the answer further than any attempt before it (see values.Past)."""
        return self.job_writer.position > self.past.furthest and (self._goes_on or not self.past.furthest)

    def tally(self, reason: str) -> Tally:
        """The job's real failures, if this attempt is one, with the code ``reason``.

        After a Reset, Temporal counts from one again, and so do we.
        """
        past, most = self.past, activity.info().attempt
        here, breaks = (0, 0) if self.moved_on and reason != INTERNAL else (past.here, past.breaks)
        broke = broke_off(reason, began=self._first_token is not None)
        return Tally(
            here=min(here + 1, most),
            in_all=min(past.failures + 1, most),
            breaks=min(breaks + 1, most) if broke else 0,
            empties=min(past.empties + 1, most),
        )

    def timeout(self) -> BaseException:
        """What the clock that ran out means."""
        if self.clocks.over:
            return self.total_timeout()
        limits = self.request.limits
        if self.clocks.began:
            message = (
                f"Mistral fell silent in the middle of the answer (limits.stallSeconds: {limits.stall_seconds:g} s)"
            )
            return UpstreamInterrupted(message, code="stall_timeout")
        message = (
            f"Mistral did not begin to answer in time (limits.firstTokenSeconds: {limits.first_token_seconds:g} s)"
        )
        return UpstreamInterrupted(message, code="first_token_timeout")

    def total_timeout(self) -> ApplicationError:
        cause = self.past.cause
        if cause is None and self._called and not self.clocks.began:
            cause = self._silence()
        message = f"The whole generation took too long (limits.totalSeconds: {self.request.limits.total_seconds:g} s)"
        return failures.permanent("total_timeout", message, retryable=True, cause=cause)

    def cause(self, reason: str) -> ErrorCause | None:
        """What lies behind a failure with the code ``reason``, if that is a limit's: the failure before it, if it was
        another one, else what was seen of the model."""
        if reason not in SILENCE:
            return None
        before = self.past.cause
        return before if before is not None and before.code != reason else self._silence()

    def _silence(self) -> ErrorCause:
        seconds = time.monotonic() - (self._last_event or self._began)
        place = f"after {self.job_writer.position} characters" if self.clocks.began else "and no first token"
        message = f"Nothing came from the model for {seconds:.0f} s, {place}; comments and empty chunks do not count"
        return ErrorCause(code="silence", message=message)

    def planned(self, plan: CallPlan) -> None:
        self.plan = plan
        if plan.tokens_left is not None:
            self._most_tokens = plan.tokens_left

    def restarted(self, epoch: int) -> None:
        """The text so far was thrown away."""
        self.past = replace(self.past, segments=0, segment_tokens=0, stretches=(), topped_up=False)
        self.job_writer.restarted(epoch)
        self._goes_on = False

    def called(self, model: ChatModel) -> AsyncGenerator[ModelEvent, None]:
        self._began, self._called = time.monotonic(), True
        return model.stream(self.plan.sent, self.plan.continue_from)

    def reached_cap(self, finish: Finish) -> bool:
        """The answer ended where limits.maxTotalTokens made it end."""
        reported = finish.usage.completion_tokens if finish.usage else 0
        used = reported or max(self._counter.count, self._counter.most)
        return finish.reason == LENGTH and self.plan.ends_at_cap and used >= (self.plan.tokens_left or 0)

    def cannot_continue(self, error: UpstreamError) -> bool:
        """The model does not go on from the text so far, but may well answer from the beginning."""
        refused = (
            isinstance(error, UpstreamRefused) and error.reason == "upstream_rejected" and error.http_status != 404
        )
        asked = self.plan.continue_from is not None and not self._counter.deltas
        return asked and (refused or error.reason == CANNOT_CONTINUE)

    def heard(self) -> None:
        """The model has said something: text, or a piece of what is only whole at the end."""
        self._last_event = time.monotonic()
        self._first_token = self._first_token or self._last_event

    def take(self, event: ModelEvent) -> None:
        match event:
            case TextDelta(channel, text, told):
                self.job_writer.append(channel, text, self._counter.take(text, told))
                if self._counter.least > self._most_tokens:
                    raise _over_cap(self)
            case PartDelta(part):
                self.parts.append(PlacedPart(position=self.job_writer.position, part=part))
            case StillWorking(told):
                self._counter.skip(told)
            case Allowance() | Finish():
                pass
            case _:
                assert_never(event)

    def is_beyond(self, event: ModelEvent) -> bool:
        """Text that the answer may not have (see Plan.is_full)."""
        if not isinstance(event, TextDelta) or not self.plan.is_full(self._counter):
            return False
        self._beyond += 1
        return True

    @property
    def trimmed(self) -> bool:
        """Text came that the answer may not have."""
        return self._beyond > 0

    @property
    def runs_on(self) -> bool:
        """The server does not keep to the length limit."""
        return self._beyond > self.plan.room + RUN_ON

    def stretch(self, tokens: int) -> Stretch:
        """What this attempt wrote, of which the server has counted ``tokens``."""
        start = self.past.stretches[-1].end if self.past.stretches else 0
        return Stretch(start, self.job_writer.position, self._counter.count, tokens)

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
        if self.finish is not None:
            return "storing the end"
        return "waiting for the first token" if self._first_token is None else "streaming"

    async def keep(self, finish: Finish) -> None:
        """Make the end of the answer durable."""
        self.finish = finish
        await self.job_writer.finish(self._record(finish))

    def summary(self, finish: Finish) -> CompletionSummary:
        return CompletionSummary(position=self.job_writer.position, finish_reason=finish.reason)

    def _record(self, finish: Finish) -> FinishRecord:
        usage, estimated = finish.counted(self.plan.estimated(self._counter.most)) if self.number else (None, False)
        return FinishRecord(
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

    def end(self, outcome: str, http_status: int | None, message: str | None) -> AttemptEnd:
        status = http_status or (OK if self.clocks.began else None)
        called = self._called or outcome not in WITHOUT_CALL
        usage = self.usage or self._counter.usage
        return AttemptEnd(
            outcome=outcome,
            http_status=status,
            first_token_ms=self.first_token_ms,
            tokens_per_second=self.tokens_per_second(),
            usage=usage,
            called=called,
            message=message,
            tokens=self._counter.most if self._counter.deltas else None,
        )

    def log(self, action: str) -> dict[str, Any]:
        return {"action": action, "job_id": self.claim.job_id, "attempt": self.claim.attempt}


def _heartbeat_timeout() -> float:
    """Seconds without a heartbeat after which Temporal gives an attempt to another worker."""
    timeout = activity.info().heartbeat_timeout
    return timeout.total_seconds() if timeout else float("inf")


def _since_scheduled() -> float:
    """Seconds from Temporal's clock: between the job's turn in the queue and this attempt."""
    info = activity.info()
    return (info.started_time - info.scheduled_time).total_seconds()


class _Clocks:
    """First token, stall and total. Only what the model says moves them: comments and empty chunks do not."""

    def __init__(self, request: ChatRequest, started_at: int) -> None:
        self._limits = request.limits
        self._loop = asyncio.get_running_loop()
        # What earlier attempts took; a wall clock that was set ahead in between must not end the job.
        elapsed = min((datetime.now(UTC) - moment(started_at)).total_seconds(), _since_scheduled())
        self._end = self._loop.time() + max(self._limits.total_seconds - max(elapsed, 0), 0)
        self._timeout = asyncio.timeout(None)
        self._which = "first_token"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._timeout:
            self._set(self._limits.first_token_seconds)
            yield

    @property
    def began(self) -> bool:
        """The model has said something."""
        return self._which == "stall"

    def moved(self) -> None:
        self._which = "stall"
        self._set(self._limits.stall_seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Only the total clock runs."""
        self._set(float("inf"))
        yield
        self._set(self._limits.stall_seconds)

    @property
    def left(self) -> float:
        """Seconds for the whole generation."""
        return max(self._end - self._loop.time(), 0.0)

    @property
    def over(self) -> bool:
        """There is no time left for the whole generation."""
        return self._loop.time() >= self._end

    def _set(self, seconds: float) -> None:
        self._timeout.reschedule(min(self._loop.time() + seconds, self._end))


def _verdict(attempt: _Attempt, error: BaseException, timings: Timings) -> tuple[str, int | None, BaseException]:
    """An attempt's outcome for the ledger, its HTTP status, and the exception for Temporal."""
    match error:
        case asyncio.CancelledError() if _job_cancelled():
            return "cancelled", None, error
        case _Frozen() | asyncio.CancelledError() if attempt.watch.frozen():
            return FROZEN, None, failures.again(FROZEN, "This worker stood still; another attempt goes on", 0)
        case _HandedOver() | asyncio.CancelledError():
            return "handed_over", None, failures.again("handed_over", "This attempt had to stop; another goes on", 0)
        case _CancelWanted():  # the next attempt finds the wish, and says so
            return "cancelled", None, failures.again("cancelled", "Somebody asked to cancel the job", 0)
        case _SegmentOver():
            return SEGMENT, None, failures.again(SEGMENT, "The answer goes on in another segment", 0)
        case _TooShort():
            return TOPPED_UP, None, failures.again(TOPPED_UP, "The answer goes on up to its length limit", 0)
        case Postponed():
            return POSTPONED, None, not_yet_due(error.turn)
        case UpstreamError() if attempt.cannot_continue(error):
            return REFUSED, error.http_status, failures.again(REFUSED, error.message, 0)
        case UpstreamError():
            failure = failures.from_upstream(
                error,
                attempt.tally(error.reason),
                attempt.request.retry,
                throttles=attempt.claim.attempt,
                cause=attempt.cause(error.reason),
                timings=timings,
            )
            return error.reason, error.http_status, failure
        case ApplicationError():
            return error.type or "internal", None, error
        case FenceLost():
            return TAKEN_OVER, None, failures.from_storage(error)
        case ChatJobsError():
            return error.code, None, failures.from_storage(error)
        case _:
            log.error("attempt failed", exc_info=error, extra=attempt.log("attempt_failed"))
            failure = failures.internal(error, attempt.tally(INTERNAL), attempt.request.retry, timings)
            return INTERNAL, None, failure


def _message(error: BaseException, failure: BaseException) -> str | None:
    """Why an attempt failed, for the ledger; None where nothing went wrong."""
    if isinstance(error, UpstreamError):
        return error.message
    if isinstance(failure, ApplicationError) and failure.type == INTERNAL:
        return failure.message
    return None


def _void(attempt: _Attempt, pieces: Sequence[TextPiece], continuing: Continuing) -> str | None:
    """Why the text so far has to go; None where it stays. Raises, where the job ends with it."""
    past, policy = attempt.past, attempt.request.on_interrupt
    interrupted = past.segment_tokens > 0 or not past.segments
    if interrupted and policy == "fail":
        raise failures.permanent(
            "interrupted", "The answer was interrupted, and onInterrupt is fail", cause=attempt.past.cause
        )
    if interrupted and policy == "restart":
        return "restart"
    return continuation.obstacle(attempt.request, pieces, continuing)


def _is_enough(attempt: _Attempt, outcome: str, failure: BaseException) -> bool:
    """The text so far stands as the answer, at its length limit, although the attempt to make it longer went wrong:
    whole segments, and an answer that lacks a little, are worth more than what is missing."""
    ends = isinstance(failure, ApplicationError) and failure.non_retryable and outcome not in ("cancelled", TAKEN_OVER)
    return (outcome == REFUSED and attempt.past.segments > 0) or (
        attempt.past.topped_up and (ends or outcome == REFUSED)
    )


def _comes_again(attempt: _Attempt, failure: BaseException) -> bool:
    """There will be another attempt, which would go on from here."""
    again = isinstance(failure, ApplicationError) and not failure.non_retryable
    return again and attempt.request.on_interrupt == "continue"


def _worker_lost() -> ApplicationError:
    return failures.permanent(
        WORKER_LOST,
        "Workers died with this job again and again, and none of them brought a new character (limits.maxLost). The"
        " request may be what ends them: look at the workers' logs and memory before you replay it",
        retryable=True,
    )


def _no_prefix() -> ApplicationError:
    return failures.permanent(
        NO_PREFIX,
        "The last message is the assistant's, with prefix: true, and this model's server does not continue it: it would"
        " answer something else. Leave it out and ask for the beginning in the user's message, or choose another model",
    )


def _over_cap(attempt: _Attempt) -> ApplicationError:
    return failures.permanent(
        "max_total_tokens",
        f"The job has used the tokens that it may (limits.maxTotalTokens: {attempt.request.limits.max_total_tokens})",
        cause=attempt.past.cause,
    )


def _job_cancelled() -> bool:
    """Else only this attempt ends: the worker stops, an operator paused or reset the activity, the run is gone."""
    why = activity.cancellation_details()
    return why is None or why.cancel_requested
