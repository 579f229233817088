"""Decides when the next of a request's models takes a job over. Pure, but for the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from temporalio.exceptions import ApplicationError

from activities.attempt import RunningAttempt
from activities.rate_limits import CallEnd
from chatjobs.contracts import ChatRequest
from domain.errors import UpstreamError
from domain.outcomes import AttemptOutcome
from domain.ports import MODEL_NOT_FOUND, NO_ALLOWANCE
from storage.engine.schema import micros, now

NOT_FOR_THIS_KEY: Final = frozenset({MODEL_NOT_FOUND, NO_ALLOWANCE})
"""Errors of one model: another call of it would not help, one of another model may."""


def following(request: ChatRequest) -> Sequence[str]:
    """The models after the one that ``request`` names now."""
    models = request.fallback_models
    return models[models.index(request.model) + 1 :] if request.model in models else models


def successor(attempt: RunningAttempt, outcome: str, error: BaseException | None, end: CallEnd) -> str | None:
    """The model that takes over after an attempt ended with ``outcome`` and ``error``; None: the job stays, or there is
    no further model. ``end``: what Temporal is about to get."""
    models = following(attempt.request)
    if not models or not isinstance(error, UpstreamError) or outcome == AttemptOutcome.REFUSED_TO_CONTINUE:
        return None
    failure, pause = end.failure, end.refused_seconds
    if not isinstance(failure, ApplicationError):
        return None
    if error.reason in NOT_FOR_THIS_KEY:
        return models[0]
    if not error.retryable:
        return None
    if end.down or failure.non_retryable:
        return models[0]
    if pause is None:
        pause = failure.next_retry_delay.total_seconds() if failure.next_retry_delay else 0.0
    return models[0] if _stuck_seconds(attempt) + pause > attempt.request.limits.fallback_seconds else None


def _stuck_seconds(attempt: RunningAttempt) -> float:
    """Since when the model has failed or refused calls at the present place of the answer."""
    if attempt.moved_on:
        return 0.0
    since = attempt.past.stuck_since
    earlier = 0.0 if since is None else (micros(now()) - since) / 1e6
    return max(earlier, attempt.seconds)
