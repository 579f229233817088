"""Calling the model in turn: when a call may start, and what its answer tells of the rate limit."""

from __future__ import annotations

import asyncio
import logging
import time

from temporalio.exceptions import ApplicationError

from activities import failures
from activities.ports import Allowance, ChatModel
from chatjobs.errors import StorageError, UpstreamRateLimited
from storage.limiter import HORIZON_SECONDS, LATENESS_SECONDS, Limiter
from storage.values import Claim, Turn

LONGEST_SLEEP_SECONDS = 5.0
"""Who has claimed his job and lost his turn waits so long for another one; then his slot is for somebody else."""
WAITING = "waiting_for_turn"

log = logging.getLogger(__name__)


class Postponed(Exception):
    """The lane was paused after the job had been claimed."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(WAITING)
        self.turn = turn


def waits_for_turn(turn: Turn | None) -> ApplicationError:
    """Gives the worker's slot back until then. It is no attempt, and costs none."""
    if turn is None:
        raise AssertionError("who waits has a turn")
    return failures.again(WAITING, f"Number {turn.position} in the queue for the model's rate limit", turn.seconds)


class Lanes:
    """The limiter, for calls of one model."""

    def __init__(self, model: ChatModel, limiter: Limiter) -> None:
        self._model = model
        self._limiter = limiter
        self.gate = limiter.gate(model.lane)
        """For JobStore.claim."""

    async def turn_of(self, claim: Claim, claimed: float) -> None:
        """Return when the call may start. ``claimed`` is when the turn was given (monotonic). Raises Postponed."""
        turn = claim.turn
        if turn is None or claim.asker is None or claim.request is None:
            return
        given, lateness = claimed, LATENESS_SECONDS
        while True:
            due = given + turn.seconds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if turn.granted and time.monotonic() - due <= lateness:
                return
            lateness *= 2  # on a machine that is always late, nobody would ever start
            given = time.monotonic()
            turn = await self._limiter.ask(self._model.lane(claim.request.model), claim.asker)
            if turn.seconds > LONGEST_SLEEP_SECONDS:
                raise Postponed(turn)

    async def told(self, claim: Claim, allowance: Allowance) -> None:
        """Keep what an answer's headers say, where it is news."""
        turn, request = claim.turn, claim.request
        if turn is None or request is None:
            return
        limit = allowance.requests_per_minute
        if turn.refused or allowance.pause is not None or (limit is not None and limit / 60 != turn.seen):
            lane = self._model.lane(request.model)
            try:
                await self._limiter.served(lane, per_minute=limit, pause=allowance.pause)
            except StorageError as error:  # the next answer says it again
                log.warning("rate limit not kept: %s", error, extra={"action": "limit_unkept", "job_id": claim.job_id})

    async def throttled(self, claim: Claim, error: UpstreamRateLimited) -> ApplicationError:
        """Pause the whole lane, and put the job back to its place in it."""
        if claim.asker is None or claim.request is None:
            raise AssertionError("a claim that was taken has a request")
        lane = self._model.lane(claim.request.model)
        wanted = error.retry_after
        pause = await self._limiter.throttled(lane, None if wanted is None else failures.throttle_pause(wanted, 0))
        if pause > HORIZON_SECONDS:
            turn = await self._limiter.ask(lane, claim.asker)
            pause = turn.seconds
        return failures.again(error.reason, error.message, pause)
