"""Makes attempts at jobs: calls of the model whose answers are streamed into the transcript.

An attempt claims the job, plans the call (all of the answer, or what is missing of it), reads the stream, and records
how it ended. completion.py and batch.py are the activities that run attempts; attempt.py has the state of one,
deadlines.py its time limits, continuation.py what is asked of the model, failures.py what becomes of an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from temporalio.exceptions import ApplicationError

from activities import continuation, failures, handover, schema_checks
from activities.attempt import (
    LENGTH,
    Answered,
    AttemptContext,
    AttemptResult,
    Continues,
    Failed,
    RunningAttempt,
    Turns,
)
from activities.cancellation import Cancels
from activities.continuation import CallPlan
from activities.failures import Tally
from activities.freezes import Freezes, FreezeWatch
from activities.rate_limits import WAITING, CallEnd, Postponed, RateLimitGate, not_yet_due, too_early
from activities.repairs import AnswerCheck
from chatjobs.contracts import Retry, Usage
from chatjobs.errors import ChatJobsError
from domain.errors import FenceLost, StorageError, StorageUnavailable, UpstreamError, UpstreamInterrupted
from domain.outcomes import WORKER_LOST, AttemptOutcome
from domain.payloads import CompletionSummary
from domain.ports import Allowance, ChatModel, Continuing, Finish, Seam
from domain.repairs import reset_reason
from domain.timings import Timings
from domain.values import AttemptEnd, Claim, TextRun
from storage.jobs.attempts import AttemptStore
from storage.jobs.sealing import QUEUE_TIMEOUT
from storage.rate_limits.limiter import Limiter, Reserve
from storage.transcript.writer import TranscriptWriter

NOT_WORTH_A_CALL = 0.02
"""The part of an answer that may be missing at its length limit: another call would pay for the prompt again."""

WRONG_JSON = (AttemptOutcome.SCHEMA_MISMATCH, AttemptOutcome.SCHEMA_CHECK_FAILED)

log = logging.getLogger(__name__)


class Completer:
    """Makes attempts, under the context of whatever runs them.

    ``limiter`` keeps the model's rate limits over all workers; without it calls start at once.
    """

    def __init__(
        self,
        *,
        attempts: AttemptStore,
        transcript: TranscriptWriter,
        model: ChatModel,
        limiter: Limiter | None = None,
        timings: Timings = Timings(),
    ) -> None:
        self._timings = timings
        self._attempts = attempts
        self._transcript = transcript
        self._model = model
        self._gate = RateLimitGate(model, limiter) if limiter else None
        self._check = AnswerCheck(attempts, schema_checks.shared())
        self._cancels = Cancels(attempts)
        self._freezes = Freezes()
        self._recording: set[asyncio.Task[None]] = set()

    async def attempt(
        self, job_id: str, context: AttemptContext, report: AttemptReport | None = None
    ) -> CompletionSummary:
        """Call the model for a job, unless its answer is whole already; the text goes to the transcript.

        Raises ApplicationError with the error's code as type; if that is retried, the next attempt continues the answer
        from its last durable character, or starts over in a new epoch where it cannot. ``report`` shows how far it is.
        """
        with self._freezes.watched(context.heartbeat_seconds) as watch:
            claim = await self._claim(job_id, context)
            if summary := _without_attempt(claim):
                return summary
            attempt = RunningAttempt(claim, self._transcript.open(claim, watch.frozen), watch, context)
            if report is not None:
                report.attempt = attempt
            result: AttemptResult
            try:
                with self._cancels.of(job_id) as cancel:
                    result = await _unless_stopped(self._stream(attempt), context, cancel, watch)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told apart in _verdict
                result = Failed(error)
            if self._gate:
                self._gate.settle(attempt.turn, attempt.spent, whole=isinstance(result, Answered))
            match result:
                case Answered(summary):
                    return summary
                case Continues() | Postponed() | Failed():
                    return await self._ended(attempt, result)
                case _:
                    assert_never(result)

    def cancel_of(self, job_id: str) -> AbstractContextManager[asyncio.Future[None]]:
        """A future that has a result once the job's cancel was requested, for a job between two attempts."""
        return self._cancels.of(job_id)

    async def _claim(self, job_id: str, context: AttemptContext) -> Claim:
        claim = partial(
            self._attempts.claim,
            job_id,
            fence=context.fence,
            claimant=uuid.uuid4().hex,
            run_id=context.run_id,
            tries=context.number - 1,
            reopens=context.reopens,
        )
        try:
            if self._gate is None:
                return await claim()
            if context.turns is None:
                return await self._gate.claim(lambda reserve: claim(reserve=reserve))
            return await _in_turn(self._gate, lambda reserve: claim(reserve=reserve), context.turns)
        except ApplicationError:
            raise
        except ChatJobsError as error:
            raise failures.from_storage(error) from None
        except Exception as error:
            # Without a claim the ledger cannot count this failure. The runner's attempts do not count it either: those
            # that waited for their turn are among them. So the time since the start is the limit.
            log.exception("claim failed", extra={"action": "claim_failed", "job_id": job_id})
            spent = context.seconds_since_scheduled > self._timings.claim_patience_seconds
            tries = failures.FAILURE_BUDGET if spent else min(context.number, failures.FAILURE_BUDGET - 1)
            retry = Retry(attempts=failures.FAILURE_BUDGET)
            raise failures.internal(error, Tally(tries, tries), retry, self._timings) from None

    # ------------------------------------------------------------------------------------------- the call

    async def _stream(self, attempt: RunningAttempt) -> Answered | Continues | Postponed:
        """Make the call, and write its answer. Raises UpstreamError, StorageError, ApplicationError."""
        attempt.planned(await self._plan(attempt))
        finish: Finish | None = None
        if not attempt.plan.nothing_left:
            if self._gate:
                turn = await self._gate.wait_for_turn(attempt.claim)
                if isinstance(turn, Postponed):
                    return turn
                attempt.turn = turn
            finish = await self._read(attempt)
        attempt.usage = finish.exact_usage if finish else Usage()
        if await self._has_another_segment(attempt, finish):
            return Continues(AttemptOutcome.SEGMENT, "The answer goes on in another segment")
        if finish is None:
            return Answered(await self._end_without_call(attempt, attempt.end(AttemptOutcome.NOTHING_LEFT)))
        if await self._is_short(attempt, finish):
            return Continues(AttemptOutcome.TOPPED_UP, "The answer goes on up to its length limit")
        if attempt.reached_cap(finish):
            raise attempt.over_cap()
        if (repaired := await self._check.ended(attempt, finish)) is not None:
            return repaired
        await attempt.keep(finish)
        return Answered(attempt.summary(finish))

    async def _plan(self, attempt: RunningAttempt) -> CallPlan:
        """What to ask of the model: the rest of the answer; or all of it, if there is nothing yet or it has to start
        over. Checks the limits that earlier attempts may have used up."""
        claim, request = attempt.claim, attempt.request
        if attempt.deadlines.over:
            raise attempt.total_timeout()
        # A model is asked whether it continues only where that matters: the first question makes it be measured.
        continuing = self._model.continuing
        if continuation.form(request) == "text":  # other forms start over with another model
            for model in handover.following(request):  # so that it is measured before it has to take over
                continuing(model)
        if continuation.has_own_prefix(request) and continuing(request.model) is Continuing.NEVER:
            raise _no_prefix()
        runs: Sequence[TextRun] = ()
        if claim.position > 0:
            runs = await self._attempts.written(claim.job_id, fence=claim.fence, epoch=claim.epoch)
        obstacle = reset_reason(claim) if runs else None
        if runs and obstacle is None:
            whole = attempt.context.outcome is not None  # the text is of a worker that died while it stored the answer
            found = continuing(request.model, continuation.form(request))
            obstacle = "restart" if whole else _obstacle(attempt, runs, found)
        if runs and not obstacle:
            if not continuation.counted(request, attempt.past):
                attempt.samples = await self._attempts.samples(request.model)
            unsent = self._model.unsent(request, continuation.content(runs))
            plan = continuation.plan(request, attempt.past, runs, attempt.samples, unsent)
        else:
            plan = continuation.plan(request, attempt.past)
        if plan.over_cap:
            raise attempt.over_cap()
        if obstacle:
            await self._restart(attempt, obstacle)
        return plan

    async def _restart(self, attempt: RunningAttempt, reason: str) -> None:
        """Discard the text so far, unless the cap on tokens allows no other."""
        if continuation.plan(attempt.request, attempt.past).over_cap:
            raise attempt.over_cap()
        attempt.restarted(await self._attempts.restart(attempt.claim.job_id, fence=attempt.claim.fence, reason=reason))

    async def _read(self, attempt: RunningAttempt) -> Finish:
        """Write the model's events to the transcript, up to the end of its answer."""
        deadlines, finish = attempt.deadlines, None
        try:
            async with deadlines.running(), contextlib.aclosing(attempt.call(self._model)) as events:
                async for event in events:
                    if isinstance(event, Allowance):
                        if self._gate:
                            await self._gate.record_allowance(attempt.claim, event)
                        continue
                    if isinstance(event, Seam):
                        self._keep_seam(attempt, event)
                        continue
                    if self._gate and not deadlines.began:
                        self._gate.record_answer(attempt.claim)
                    attempt.event_arrived()
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
                        with deadlines.paused():
                            await attempt.job_writer.room()
        except (TimeoutError, UpstreamError) as error:
            if finish is None:  # else only closing the connection went wrong
                raise (attempt.timeout() if isinstance(error, TimeoutError) else error) from None
        if finish is None:
            raise UpstreamInterrupted(code=AttemptOutcome.CUT.value)
        return finish._replace(reason=LENGTH) if attempt.trimmed else finish

    async def _has_another_segment(self, attempt: RunningAttempt, finish: Finish | None) -> bool:
        """Whether the answer, which is at its length limit, gets another segment. ``finish`` is None if it had reached
        the limit before this attempt."""
        request, job_writer = attempt.request, attempt.job_writer
        if attempt.past.segments + 1 >= request.max_segments or attempt.parts:
            return False
        if finish is not None and (finish.reason != LENGTH or finish.tool_calls or attempt.reached_cap(finish)):
            return False
        await job_writer.flush()
        runs = await self._attempts.written(job_writer.job_id, fence=job_writer.fence, epoch=job_writer.epoch)
        continuing = self._model.continuing(request.model, continuation.form(request))
        return continuation.obstacle(request, runs, continuing) is None

    async def _is_short(self, attempt: RunningAttempt, finish: Finish) -> bool:
        """Whether a continued answer ended early, its length being estimated too high, and another call is worth it.

        The call has shown how many tokens its server's deltas have, which corrects the estimate. At most once per
        segment.
        """
        request, past, most = attempt.request, attempt.past, attempt.request.max_tokens
        usage, job_writer = finish.exact_usage, attempt.job_writer
        if most is None or usage is None or finish.reason != LENGTH or attempt.plan.continue_from is None:
            return False
        if past.topped_up or attempt.plan.ends_at_cap or attempt.parts or continuation.counted(request, past):
            return False
        await job_writer.flush()
        runs = await self._attempts.written(job_writer.job_id, fence=job_writer.fence, epoch=job_writer.epoch)
        stretches = (*past.stretches, attempt.stretch(usage.completion_tokens))
        missing = most - continuation.said(stretches, runs, attempt.samples).tokens
        return missing > most * NOT_WORTH_A_CALL

    async def _end_without_call(self, attempt: RunningAttempt, end: AttemptEnd) -> CompletionSummary:
        """Store the text so far as the whole answer, with the finish reason ``length``."""
        await self._attempts.end(attempt.claim.job_id, attempt.claim.attempt, attempt.claim.fence, end)
        attempt.number = 0
        finish = Finish(LENGTH)
        await attempt.keep(finish)
        return attempt.summary(finish)

    # -------------------------------------------------------------------------------------------- its end

    async def _ended(self, attempt: RunningAttempt, result: Continues | Postponed | Failed) -> CompletionSummary:
        """Make the text durable and record how the attempt ended. Raises the exception for Temporal.

        An answer that turns out to be whole in storage is not asked for again: its summary is returned.
        """
        error = result.error if isinstance(result, Failed) else None
        frozen = attempt.watch.frozen()
        if frozen and not isinstance(error, asyncio.CancelledError):
            # Whatever else went wrong follows from the freeze: limits were reached, connections were given up.
            result, error = FROZEN, None
        verdict = _verdict(attempt, result, self._timings)
        failure, claim = verdict.failure, attempt.claim
        end = attempt.end(verdict.outcome, verdict.http_status, verdict.message)
        try:
            if not frozen and not isinstance(error, StorageError):
                await attempt.job_writer.flush()
                if attempt.finish is not None:
                    return attempt.summary(attempt.finish)
            if _is_enough(attempt, verdict):
                return await self._end_without_call(attempt, end)
            await self._attempts.end(claim.job_id, claim.attempt, claim.fence, end)
            call_end = CallEnd(failure)
            if self._gate:
                began = attempt.deadlines.began
                call_end = await self._gate.record_end(claim, attempt.turn, error, failure, began=began)
            failure = failures.within(call_end.failure, attempt.deadlines.left)
            if model := handover.successor(attempt, verdict.outcome, error, call_end._replace(failure=failure)):
                await self._attempts.hand_over(claim.job_id, claim.fence, model)
                log.info("%s takes over", model, extra=attempt.log("handed_over"))
                failure = failures.again(verdict.outcome, verdict.message or "", 0)
            if verdict.outcome == AttemptOutcome.REFUSED_TO_CONTINUE:
                await self._restart(attempt, "refused")
            elif attempt.parts and attempt.request.on_interrupt == "continue" and _is_retried(failure):
                await self._restart(attempt, "parts")  # the parts are not stored, and the next attempt lacks them
        except ApplicationError as permanent:  # the text cannot be discarded: see _restart
            failure = permanent
        except asyncio.CancelledError:
            if not frozen:
                raise
            self._record_later(claim, end, at_once=True)  # Temporal has noticed the freeze as well
        except ChatJobsError as problem:
            # A claim that comes first closes this attempt as lost, until its true end is recorded.
            log.warning("attempt not recorded: %s", problem, extra=attempt.log("attempt_unrecorded"))
            self._record_later(claim, end)
            if isinstance(problem, StorageUnavailable):
                failure = _unless_others_may(attempt, verdict, error, failure, problem)
        log.info("attempt ended: %s", verdict.outcome, extra=attempt.log("attempt_ended"))
        raise failure from None

    def _keep_seam(self, attempt: RunningAttempt, seam: Seam) -> None:
        """Record how the answer goes on, beside its stream, which does not wait for that."""
        claim = attempt.claim
        self._in_background(self._record_seam(claim, seam), name="seam")

    async def _record_seam(self, claim: Claim, seam: Seam) -> None:
        try:
            await self._attempts.joined(claim.job_id, claim.attempt, confirmed=seam.confirmed)
        except ChatJobsError as error:  # the seam is then shown as not confirmed
            log.warning("seam not recorded: %s", error, extra={"action": "seam_unrecorded", "job_id": claim.job_id})

    def _record_later(self, claim: Claim, end: AttemptEnd, *, at_once: bool = False) -> None:
        pauses = self._timings.recording_pauses_seconds
        pauses = (0.0, *pauses) if at_once else pauses
        self._in_background(self._record(claim, end, pauses), name="attempt's end")

    def _in_background(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _record(self, claim: Claim, end: AttemptEnd, pauses: Sequence[float]) -> None:
        """Record how an attempt ended once the database is available: lost workers count against the job, and this one
        was not lost."""
        for pause in pauses:
            await asyncio.sleep(pause)
            try:
                await self._attempts.end(claim.job_id, claim.attempt, claim.fence, end)
            except StorageUnavailable:
                continue
            except ChatJobsError as error:
                log.warning("attempt not recorded: %s", error, extra={"action": "attempt_unrecorded"})
            return


FROZEN = Continues(AttemptOutcome.FROZEN, "This worker stood still; another attempt goes on")
HANDED_OVER = Continues(AttemptOutcome.HANDED_OVER, "This attempt had to stop; another goes on")
CANCEL_REQUESTED = Continues(AttemptOutcome.CANCELLED, "Somebody asked to cancel the job")
"""The next attempt finds the request to cancel in the row, and ends the job."""


async def _in_turn(gate: RateLimitGate, claim: Callable[[Reserve], Awaitable[Claim]], turns: Turns) -> Claim:
    """Claim a job at once where its lane is free, else after those that wait already, without a place meanwhile.

    Raises ApplicationError if the waiting is over.
    """
    if not turns.lock.locked():
        found = await gate.claim_now(claim)
        if found.outcome != "waiting":
            return found
    turns.leave()
    async with turns.lock:
        if not await turns.take():
            raise failures.again(WAITING, "The job has no place in this worker any more", 0)
        return await gate.claim(claim, turns.rest)


def _without_attempt(claim: Claim) -> CompletionSummary | None:
    """The summary of a job that needs no attempt; None where the claim was taken. Raises the exception for Temporal
    where the job has to wait or to end."""
    match claim.outcome:
        case "taken":
            return None
        case "waiting":
            raise not_yet_due(claim.turn)
        case "worker_lost":
            raise _worker_lost()
        case "early":
            raise too_early(claim.seconds)
        case "expired":
            raise failures.permanent(QUEUE_TIMEOUT.code, QUEUE_TIMEOUT.message, retryable=True)
        case "finished" | "sealed" | "cancel_requested":
            return CompletionSummary(position=claim.position, finish_reason=claim.finish_reason, outcome=claim.outcome)
        case _:
            assert_never(claim.outcome)


async def _unless_stopped(
    stream: Coroutine[Any, Any, Answered | Continues | Postponed],
    context: AttemptContext,
    cancel: asyncio.Future[None],
    watch: FreezeWatch,
) -> Answered | Continues | Postponed:
    """The stream's result, or why it was stopped: the worker shuts down or the heartbeats end (HANDED_OVER), the
    database has a request to cancel before Temporal delivers it (CANCEL_REQUESTED), or the process was suspended
    (FROZEN)."""
    streaming = asyncio.create_task(stream)
    try:
        events = (context.stopping, context.beats, cancel, watch.noticed)
        done, _ = await asyncio.wait((streaming, *events), return_when=asyncio.FIRST_COMPLETED)
        if streaming in done:
            return streaming.result()
        if watch.noticed in done:
            return FROZEN
        if cancel in done:
            return CANCEL_REQUESTED
        if context.beats in done:
            context.beats.result()  # raises: without heartbeats nothing could cancel this attempt any more
        return HANDED_OVER
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)


class AttemptReport:
    """What the Temporal UI shows of an attempt under Pending Activities; nothing private."""

    def __init__(self) -> None:
        self.attempt: RunningAttempt | None = None

    def now(self) -> dict[str, Any]:
        if self.attempt is None:
            return {"phase": "claiming"}
        return {
            "attempt": self.attempt.claim.attempt,
            "phase": self.attempt.phase,
            "characters": self.attempt.job_writer.position,
            "tokensPerSecond": self.attempt.tokens_per_second(),
        }


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What an attempt's end means: its outcome for the ledger and the exception for Temporal. ``message`` says why it
    failed, for people."""

    outcome: str
    failure: BaseException
    http_status: int | None = None
    message: str | None = None


def _unless_others_may(
    attempt: RunningAttempt,
    verdict: _Verdict,
    error: BaseException | None,
    failure: BaseException,
    problem: StorageUnavailable,
) -> BaseException:
    """``failure``; or another attempt, if it would end the job although another model takes over, which could not be
    stored."""
    if _is_retried(failure) or handover.successor(attempt, verdict.outcome, error, CallEnd(failure)) is None:
        return failure
    return failures.from_storage(problem)


def _is_retried(failure: BaseException) -> bool:
    """Whether Temporal starts another attempt after an exception."""
    return isinstance(failure, ApplicationError) and not failure.non_retryable


def _verdict(attempt: RunningAttempt, result: Continues | Postponed | Failed, timings: Timings) -> _Verdict:
    match result:
        case Continues(outcome, message):
            return _Verdict(outcome, failures.again(outcome, message, 0))
        case Postponed(turn):
            return _Verdict(AttemptOutcome.POSTPONED, not_yet_due(turn))
        case Failed(error):
            return _verdict_of_error(attempt, error, timings)
        case _:
            assert_never(result)


def _verdict_of_error(attempt: RunningAttempt, error: BaseException, timings: Timings) -> _Verdict:
    match error:
        case asyncio.CancelledError() if attempt.context.job_cancelled():
            return _Verdict(AttemptOutcome.CANCELLED, error)
        case asyncio.CancelledError():
            return _verdict(attempt, FROZEN if attempt.watch.frozen() else HANDED_OVER, timings)
        case UpstreamError() if attempt.cannot_continue(error):
            outcome = AttemptOutcome.REFUSED_TO_CONTINUE
            return _Verdict(outcome, failures.again(outcome, error.message, 0), error.http_status, error.message)
        case UpstreamError():
            failure = failures.from_upstream(
                error,
                attempt.tally(error.reason),
                attempt.request.retry,
                throttles=attempt.claim.attempt,
                cause=attempt.cause(error.reason),
                timings=timings,
            )
            return _Verdict(error.reason, failure, error.http_status, error.message)
        case ApplicationError():
            message = error.message if error.type == AttemptOutcome.INTERNAL else None
            return _Verdict(error.type or AttemptOutcome.INTERNAL, error, message=message)
        case FenceLost():
            return _Verdict(AttemptOutcome.TAKEN_OVER, failures.from_storage(error))
        case ChatJobsError():
            return _Verdict(error.code, failures.from_storage(error))
        case _:
            log.error("attempt failed", exc_info=error, extra=attempt.log("attempt_failed"))
            internal = failures.internal(error, attempt.tally(AttemptOutcome.INTERNAL), attempt.request.retry, timings)
            return _Verdict(AttemptOutcome.INTERNAL, internal, message=internal.message)


def _obstacle(attempt: RunningAttempt, runs: Sequence[TextRun], continuing: Continuing) -> str | None:
    """Why the text so far has to be discarded; None where it stays. Raises ApplicationError where it ends the job."""
    past, policy = attempt.past, attempt.request.on_interrupt
    interrupted = past.segment_tokens > 0 or not past.segments
    if interrupted and policy == "fail":
        message = "The answer was interrupted, and onInterrupt is fail"
        raise failures.permanent(AttemptOutcome.INTERRUPTED.value, message, cause=attempt.past.cause)
    if interrupted and policy == "restart":
        return "restart"
    if past.other_model and continuation.form(attempt.request) != "text":
        return "response_format"  # two models seldom agree on a form in its middle
    return continuation.obstacle(attempt.request, runs, continuing)


def _is_enough(attempt: RunningAttempt, verdict: _Verdict) -> bool:
    """Whether the text so far is the answer, at its length limit, although the attempt to make it longer failed: whole
    segments, and an answer that lacks a little, are worth more than what is missing."""
    refused = verdict.outcome == AttemptOutcome.REFUSED_TO_CONTINUE
    ends = isinstance(verdict.failure, ApplicationError) and verdict.failure.non_retryable
    ends = ends and verdict.outcome not in (*WRONG_JSON, AttemptOutcome.CANCELLED, AttemptOutcome.TAKEN_OVER)
    return (refused and attempt.past.segments > 0) or (attempt.past.topped_up and (ends or refused))


def _worker_lost() -> ApplicationError:
    return failures.permanent(
        WORKER_LOST,
        "Workers died with this job again and again, and none of them brought a new character (limits.maxLost). The"
        " request may be what ends them: look at the workers' logs and memory before you replay it",
        retryable=True,
    )


def _no_prefix() -> ApplicationError:
    return failures.permanent(
        AttemptOutcome.PREFIX_NOT_CONTINUED.value,
        "The last message is the assistant's, with prefix: true, and this model's server does not continue it: it would"
        " answer something else. Leave it out and ask for the beginning in the user's message, or choose another model",
    )
