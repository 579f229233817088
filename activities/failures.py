"""Turns errors into the ApplicationErrors of activities: retried or not, after a pause, with a code and a bounded text.

All are of the category BENIGN: expected, and logged here with the job's id, not by the SDK with a traceback.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from chatjobs.contracts import Backoff, ErrorCause, JobError, Retry
from chatjobs.errors import MAX_MESSAGE_CHARACTERS, ChatJobsError, bounded
from domain.errors import StorageUnavailable, UpstreamError, UpstreamRateLimited
from domain.outcomes import AttemptOutcome
from domain.timings import Timings
from storage.rate_limits.breaker import LONGEST_ASKED_SECONDS

FAILURE_BUDGET = Retry().attempts
"""Errors of this service that a job may have before an attempt begins; its own ``retry`` counts those of its calls."""
EMPTY_BUDGET = 3
"""Empty answers that a job may have, if its ``retry`` allows so many."""
BREAK_BUDGET = 3
"""Answers that may fall silent or be cut off at the same place, if ``retry`` allows so many: each is paid for."""
MOVING_BUDGET = 10
"""Failures that a job may have in all, for each retry that ``retry`` allows, while it moves on between them."""
STORAGE_PAUSE = 1.0
JITTER = 0.2
"""The largest part that is added to a pause, so that jobs that failed together do not come back together."""
AT_ONCE = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Tally:
    """A job's real failures so far: ``here``, at the present place of the answer, and ``in_all``.

    ``breaks``: of those here, answers that were paid for and broke off. ``empties``: calls that brought no text.
    """

    here: int
    in_all: int
    breaks: int = 0
    empties: int = 0

    def spent(self, retry: Retry, reason: str) -> bool:
        """Whether the job may have no further failure after this one, whose code is ``reason``."""
        most = retry.attempts
        if self.here >= most or self.in_all >= max(most, MOVING_BUDGET * (most - 1)):
            return True
        return self.breaks >= BREAK_BUDGET or (reason == AttemptOutcome.EMPTY and self.empties >= EMPTY_BUDGET)


def permanent(code: str, message: str, *, retryable: bool = False, cause: ErrorCause | None = None) -> ApplicationError:
    """An error that ends the job. ``retryable``: whether a replay may help; ``cause``: the error before it."""
    details: dict[str, object] = {"retryable": retryable}
    if cause is not None:
        message = bounded(f"{message.rstrip('.')}. Last cause: {cause.code}: {cause.message}")
        details["cause"] = cause.model_dump()
    return ApplicationError(message, details, type=code, non_retryable=True, category=ApplicationErrorCategory.BENIGN)


def again(code: str, message: str, pause: float | None) -> ApplicationError:
    """An error after which Temporal starts another attempt, in ``pause`` seconds; None: as the retry policy says."""
    delay = None if pause is None else max(timedelta(seconds=pause), AT_ONCE)  # zero would also mean the policy's delay
    return ApplicationError(
        message, {"retryable": True}, type=code, next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN
    )


def within(failure: BaseException, seconds: float) -> BaseException:
    """``failure``, with a pause of at most ``seconds``, after which a time limit ends the job."""
    if not isinstance(failure, ApplicationError) or failure.next_retry_delay is None or failure.type is None:
        return failure
    if failure.next_retry_delay <= timedelta(seconds=seconds):
        return failure
    return again(failure.type, failure.message, max(seconds, 0))


def from_storage(error: ChatJobsError, *, pause: float | None = STORAGE_PAUSE) -> ApplicationError:
    """An error of the database: retried if it may pass, otherwise the end of the job."""
    if isinstance(error, StorageUnavailable):
        return again(error.code, error.message, pause)
    return permanent(error.code, error.message)


def from_upstream(
    error: UpstreamError,
    tally: Tally,
    retry: Retry,
    *,
    throttles: int,
    cause: ErrorCause | None = None,
    timings: Timings = Timings(),
) -> ApplicationError:
    """An error of a model call. ``tally`` counts this one, if it is a failure; ``throttles``: the job's attempts."""
    if isinstance(error, UpstreamRateLimited):
        return again(error.reason, error.message, throttle_pause(error.retry_after, throttles))
    if not error.retryable:
        return permanent(error.reason, error.message)
    if tally.spent(retry, error.reason):
        return _given_up(error.reason, error.message, tally, cause)
    pause = failure_pause(tally.here, retry.backoff, timings)
    if error.retry_after is not None:
        pause = max(pause, throttle_pause(error.retry_after, 0))
    return again(error.reason, error.message, pause)


def internal(error: BaseException, tally: Tally, retry: Retry, timings: Timings = Timings()) -> ApplicationError:
    """An error of this service. Only its class name leaves the worker's log: its text may hold private data."""
    message = f"An error in this service ({type(error).__name__}); see the worker's log"
    if tally.spent(retry, AttemptOutcome.INTERNAL.value):
        return _given_up(AttemptOutcome.INTERNAL.value, message, tally)
    return again(AttemptOutcome.INTERNAL.value, message, failure_pause(tally.here, retry.backoff, timings))


def _given_up(code: str, message: str, tally: Tally, cause: ErrorCause | None = None) -> ApplicationError:
    suffix = f" (given up after {tally.in_all} failures)"
    said = bounded(message, MAX_MESSAGE_CHARACTERS - len(suffix)) + suffix
    return permanent(code, said, retryable=True, cause=cause)


def job_error(error: ApplicationError) -> JobError:
    """The job's error in an exception that ends it."""
    details = error.details[0] if error.details else {}
    known = details if isinstance(details, dict) else {}
    before = known.get("cause")
    return JobError(
        code=error.type or AttemptOutcome.INTERNAL.value,
        message=bounded(error.message),
        retryable=known.get("retryable") is True,
        cause=ErrorCause.model_validate(before) if before else None,
    )


def throttle_pause(retry_after: float | None, throttles: int) -> float:
    """Seconds: what the server asked for, clamped to 1 s to 5 min, or a growing default."""
    wanted = retry_after if retry_after is not None else 2.0 ** min(throttles, 6)
    return min(max(wanted, 1.0), LONGEST_ASKED_SECONDS)


def failure_pause(failures: int, backoff: Backoff, timings: Timings = Timings()) -> float:
    """Seconds until the next attempt after so many failures: not less than ``backoff`` says, unless ``timings`` has a
    pause of its own."""
    if timings.failure_pause_seconds is not None:
        return timings.failure_pause_seconds
    delay, longest = backoff.delay / 1000, timings.longest_failure_pause_seconds
    if backoff.type == "exponential":
        delay = min(delay * 2.0 ** min(max(failures - 1, 0), 16), max(longest, delay))
    return delay * random.uniform(1, 1 + JITTER)  # noqa: S311 - not a secret
