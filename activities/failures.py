"""Our errors as Temporal needs them: retried or not, after which pause, with a code and a bounded text.

All are of the category BENIGN: expected, and logged by us with the job's id, not by the SDK with a traceback.
"""

from __future__ import annotations

import random
from datetime import timedelta

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from chatjobs.errors import (
    MAX_MESSAGE_CHARACTERS,
    ChatJobsError,
    StorageUnavailable,
    UpstreamError,
    UpstreamRateLimited,
    bounded,
)

EMPTY = "upstream_empty"
FAILURE_BUDGET = 5
"""Real failures of one job's calls before it fails; throttling, deploys and killed workers cost nothing."""
EMPTY_BUDGET = 3
"""Of these, empty answers: a model that says nothing twice more is not going to speak."""
LONGEST_PAUSE = 30.0
LONGEST_THROTTLE = 300.0
STORAGE_PAUSE = 1.0
AT_ONCE = timedelta(milliseconds=1)


def permanent(code: str, message: str, *, retryable: bool = False) -> ApplicationError:
    """Ends the job. ``retryable`` tells people whether a replay may help."""
    return ApplicationError(
        message, {"retryable": retryable}, type=code, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


def again(code: str, message: str, pause: float | None) -> ApplicationError:
    """Makes Temporal start another attempt after ``pause`` seconds; None: as the retry policy says."""
    delay = None if pause is None else max(timedelta(seconds=pause), AT_ONCE)  # zero would mean the policy's, too
    return ApplicationError(
        message, {"retryable": True}, type=code, next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN
    )


def from_storage(error: ChatJobsError, *, pause: float | None = STORAGE_PAUSE) -> ApplicationError:
    """An error of the database: waited for if it may pass, else the end."""
    if isinstance(error, StorageUnavailable):
        return again(error.code, error.message, pause)
    return permanent(error.code, error.message)


def from_upstream(error: UpstreamError, *, failures: int, empties: int, throttles: int) -> ApplicationError:
    """An error of a model call. ``failures``: real ones of this job, ``empties``: those of them that brought nothing at
    all, both with this one, if it is one; ``throttles``: its attempts."""
    if isinstance(error, UpstreamRateLimited):
        return again(error.reason, error.message, throttle_pause(error.retry_after, throttles))
    if not error.retryable:
        return permanent(error.reason, error.message)
    if failures >= FAILURE_BUDGET or (error.reason == EMPTY and empties >= EMPTY_BUDGET):
        return _given_up(error.reason, error.message, failures)
    return again(error.reason, error.message, failure_pause(failures))


def internal(error: BaseException, *, failures: int) -> ApplicationError:
    """An error of our own. Its text may hold anything, so that only its name leaves the worker's log."""
    message = f"An error in this service ({type(error).__name__}); see the worker's log"
    if failures >= FAILURE_BUDGET:
        return _given_up("internal", message, failures)
    return again("internal", message, failure_pause(failures))


def _given_up(code: str, message: str, failures: int) -> ApplicationError:
    suffix = f" (given up after {failures} failures)"
    return permanent(code, bounded(message, MAX_MESSAGE_CHARACTERS - len(suffix)) + suffix, retryable=True)


def throttle_pause(retry_after: float | None, throttles: int) -> float:
    """Seconds: what the server asked for, clamped to 1 s to 5 min, or a growing default."""
    wanted = retry_after if retry_after is not None else 2.0 ** min(throttles, 6)
    return min(max(wanted, 1.0), LONGEST_THROTTLE)


def failure_pause(failures: int) -> float:
    """Seconds, doubling from half a second, spread over ±50 % so that jobs cut off together do not return together."""
    spread = random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
    return min(0.5 * 2.0 ** min(failures - 1, 10) * spread, LONGEST_PAUSE)
