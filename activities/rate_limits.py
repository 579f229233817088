"""Rate limits for calls of the model: when a call may start, and what its outcome means for its lane."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from temporalio.exceptions import ApplicationError

from activities import failures
from chatjobs.contracts import Usage
from chatjobs.errors import ChatJobsError
from domain.errors import StorageError, UpstreamError, UpstreamRateLimited, UpstreamRefused
from domain.outcomes import AttemptOutcome
from domain.ports import CANNOT_CONTINUE, SENT, Allowance, ChatModel
from domain.values import Claim, Claimant, Reservation
from storage.rate_limits.budget import SETTLED_FROM
from storage.rate_limits.limiter import (
    HORIZON_SECONDS,
    LATE_SECONDS,
    MOST_LATE_SECONDS,
    Limiter,
    Reserve,
)

LONGEST_WAIT_SECONDS = 5.0
"""A job waits in a worker for a near turn no longer than this; then its place there is for another one."""
CHECK_SECONDS = 0.01
"""How long before the call its lane is looked at again: the look takes some milliseconds, and would make it late."""
FRESH_SECONDS = 0.05
"""A turn that was granted so shortly before the call need not be looked at again."""
LONGEST_DELAY_SECONDS = 3_600.0
OTHERS_PART = 0.05
"""The part of a budget of tokens that others must have used for the lane to be told of it."""
WAITING = "waiting_for_turn"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Postponed:
    """The lane was paused after the job had been claimed: it may call at ``turn``."""

    turn: Reservation


def not_yet_due(turn: Reservation | None) -> ApplicationError:
    """The error that gives the worker's slot back until the turn is near. It costs no attempt."""
    if turn is None:
        raise AssertionError("a waiting claim has a turn")
    return failures.again(WAITING, f"Number {turn.position} in the queue for the model's rate limit", turn.seconds)


def too_early(seconds: float) -> ApplicationError:
    """The error that gives the worker's slot back until the job's ``startAt``, or for an hour: its row may be sealed
    while Temporal is away, and then its run has to end as well."""
    return failures.again(WAITING, "The job's startAt has not come yet", min(seconds, LONGEST_DELAY_SECONDS))


class CallEnd(NamedTuple):
    """What a call's end means: ``failure``, the exception for Temporal; ``down``: the model fails every call;
    ``refused_seconds``: for how long its server takes no call of the lane, where it has refused this one for its rate.
    The pause in ``failure`` may be longer: others wait as well, and somebody may have paused the lane."""

    failure: BaseException
    down: bool = False
    refused_seconds: float | None = None


class RateLimitGate:
    """Lets calls of one model start in turn, and reports their outcomes to the limiter."""

    def __init__(self, model: ChatModel, limiter: Limiter) -> None:
        self._model = model
        self._limiter = limiter
        self._reports: set[asyncio.Task[None]] = set()

    async def claim(
        self, claim_job: Callable[[Reserve], Awaitable[Claim]], rest: Callable[[float], Awaitable[bool]] | None = None
    ) -> Claim:
        """Claim a job with a reservation, in one transaction. A job whose turn is near waits here for it.

        With ``rest`` it waits here for however long: it rests, a second at most, and then requests its turn again
        while ``rest`` returns true.
        """
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        reserve = self._limiter.reserver(self._model.lane)
        while True:
            found = await claim_job(reserve)
            if found.outcome != "waiting" or found.turn is None:
                return found
            seconds = min(found.turn.seconds, HORIZON_SECONDS)
            if rest is None:
                if not (found.turn.near and time.monotonic() < end):
                    return found
                await asyncio.sleep(seconds)
            elif not await rest(seconds):
                return found

    async def claim_now(self, claim_job: Callable[[Reserve], Awaitable[Claim]]) -> Claim:
        """Claim a job if the call may start at once; else the claim is ``waiting``, and has no place in the queue."""
        return await claim_job(self._limiter.reserver(self._model.lane, queueing=False))

    async def _wait_while_near(self, turn: Reservation, claimant: Claimant) -> Reservation:
        """Wait for a near turn, and request it until it is granted or no longer near."""
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        while turn.near and time.monotonic() < end:
            await asyncio.sleep(turn.seconds)
            turn = await self._limiter.reserve(turn.lane, claimant)
        return turn

    async def wait_for_turn(self, claim: Claim) -> Reservation | Postponed | None:
        """Wait until the call may start, and return its turn; Postponed where that is later.

        The turn is checked again just before: the lane may have been paused since it was granted.
        """
        turn, claimant = claim.turn, claim.asker
        if turn is None or claimant is None:
            return None
        granted = time.monotonic()
        while True:
            if not turn.granted:
                return Postponed(turn)
            await asyncio.sleep(max(0.0, turn.due - CHECK_SECONDS - time.monotonic()))
            fresh = time.monotonic() - granted < FRESH_SECONDS
            if fresh or await self._limiter.still_holds(turn, claimant):
                await asyncio.sleep(max(0.0, turn.due - time.monotonic()))
                if time.monotonic() - turn.due <= MOST_LATE_SECONDS:
                    SENT.set(partial(self._sent, turn))
                    return turn
            turn = await self._wait_while_near(await self._limiter.reserve(turn.lane, claimant), claimant)
            granted = time.monotonic()

    def _sent(self, turn: Reservation) -> None:
        """Report a request that was sent late: later calls keep their distance to this moment, not to the turn."""
        late = time.monotonic() - turn.due
        if late > LATE_SECONDS and turn.shifted is not None:
            self._report(self._limiter.report_late_start(turn, late))

    def _report(self, report: Coroutine[Any, Any, None]) -> None:
        """Write a report to the lane without making the call wait for it."""
        task = asyncio.create_task(_logged(report))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    def settle(self, turn: Reservation | None, usage: Usage | None, *, whole: bool = False) -> None:
        """Settle a call with the lane's budget of tokens. ``usage``: None where the model was not called, or refused;
        ``whole``: the answer came to its end. Not worth a transaction while little of the budget is used: the estimate
        stands then."""
        if turn is None or not turn.granted or turn.budget is None or turn.used < turn.budget * SETTLED_FROM:
            return
        prompt, answer = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        self._report(self._limiter.settle(turn, prompt, answer, whole=whole))

    def record_answer(self, claim: Claim) -> None:
        """Record that the model has begun to answer."""
        if claim.turn is not None:
            self._report(self._limiter.record_answer(claim.turn.lane, claim.job_id))

    async def record_allowance(self, claim: Claim, allowance: Allowance) -> None:
        """Record the rate limit in an answer's headers if it differs from the lane's."""
        turn = claim.turn
        if turn is None:
            return
        limit, tokens = allowance.requests_per_minute, allowance.tokens_per_minute
        other_limit = limit is not None and limit / 60 != turn.seen
        if turn.refused or allowance.pause is not None or other_limit or _is_news(turn, allowance):
            try:
                await self._limiter.record_success(
                    turn.lane,
                    per_minute=limit,
                    pause=allowance.pause,
                    tokens_per_minute=tokens,
                    tokens_left=allowance.tokens_left,
                )
            except StorageError as error:  # the next answer has it again
                log.warning("rate limit not kept: %s", error, extra={"action": "limit_unkept", "job_id": claim.job_id})

    async def record_end(
        self,
        claim: Claim,
        turn: Reservation | None,
        error: BaseException | None,
        failure: BaseException,
        *,
        began: bool,
    ) -> CallEnd:
        """Record how a call ended; ``began``: the model had begun to answer. The exception for Temporal is ``failure``,
        or another one if all jobs of the lane have to wait."""
        if turn is None or not turn.granted:
            return CallEnd(failure)
        match error:
            case UpstreamRateLimited():
                return await self._throttled(claim, turn.lane, error)
            case UpstreamRefused():
                await self._limiter.record_answer(turn.lane, claim.job_id)
            case UpstreamError() if error.reason in (AttemptOutcome.EMPTY, CANNOT_CONTINUE):
                await self._limiter.record_answer(turn.lane, claim.job_id)
            case UpstreamError() if not began:
                return await self._failed(claim, turn.lane, error, failure)
            case _ if turn.probe and not began:
                await self._limiter.release_probe(turn.lane, claim.job_id)
        return CallEnd(failure)

    async def _failed(self, claim: Claim, lane: str, error: UpstreamError, failure: BaseException) -> CallEnd:
        """Record a call that the model failed. While the model is down, this costs the job no attempt, and it waits
        with the others. The failure that opens the breaker does count for a job whose request sets ``retry``.
        """
        requested = 0.0 if error.retry_after is None else failures.throttle_pause(error.retry_after, 0)
        outage = await self._limiter.record_failure(lane, claim.job_id, claim.attempt, error.message, requested)
        has_own_budget = claim.request is not None and "retry" in claim.request.model_fields_set
        if outage is None or (outage.opened and has_own_budget):
            return CallEnd(failure, down=outage is not None)
        pause = max(outage.seconds, requested, HORIZON_SECONDS)
        return CallEnd(failures.again(error.reason, error.message, pause), down=True)

    async def _throttled(self, claim: Claim, lane: str, error: UpstreamRateLimited) -> CallEnd:
        """Pause the whole lane, and return the job to its place in the queue."""
        if claim.asker is None:
            raise AssertionError("a claim that was taken has an asker")
        requested = None if error.retry_after is None else failures.throttle_pause(error.retry_after, 0)
        pause = refused = await self._limiter.throttle(lane, requested, claim.job_id)
        if pause > HORIZON_SECONDS:
            turn = await self._limiter.reserve(lane, claim.asker)
            pause = turn.seconds
            self.settle(turn, None)
        return CallEnd(failures.again(error.reason, error.message, pause), refused_seconds=refused)


def _is_news(turn: Reservation, allowance: Allowance) -> bool:
    """Whether the budget of tokens in an answer's headers is another one than the lane's, or others have used a part of
    it that is worth a transaction."""
    limit, left = allowance.tokens_per_minute, allowance.tokens_left
    if not limit:
        return False
    if turn.budget is None or int(limit) != turn.tokens_seen:
        return True
    return left is not None and limit - left - turn.used > limit * OTHERS_PART


async def _logged(report: Coroutine[Any, Any, None]) -> None:
    try:
        await report
    except ChatJobsError as error:
        log.warning("report to the lane failed: %s", error, extra={"action": "lane_untold"})
