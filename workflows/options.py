"""Named activity options, each with the reason for its timeouts, heartbeat and retry policy."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from domain.names import BATCHES_QUEUE, COMPLETIONS_QUEUE, WEBHOOKS_QUEUE
from domain.timings import Timings

LONGEST_HISTORY = 1_000
"""Events after which a batch begins nothing further in a run; what is open adds a few dozen."""
_heartbeat = timedelta(seconds=10)
_timings = Timings()


def configure(*, heartbeat: timedelta, timings: Timings = Timings()) -> None:
    """Set the timeouts, once and before workers start. A replay does not compare timeouts."""
    global _heartbeat, _timings
    _heartbeat, _timings = heartbeat, timings


def completion() -> dict[str, Any]:
    """Options of a call of the model."""
    return {
        "task_queue": COMPLETIONS_QUEUE,
        # The job's own clocks (limits.*) end a generation; this only catches a worker that heartbeats for ever.
        "start_to_close_timeout": timedelta(days=8),
        # How long a killed worker goes unnoticed. Beats come every second, so this tolerates nine lost ones.
        "heartbeat_timeout": _heartbeat,
        # Unlimited, because the budget of real failures is counted in the job's ledger; a coefficient of 1, because a
        # growing interval would delay the takeover after the third kill. Our own errors bring their own delay.
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=0.5), backoff_coefficient=1.0),
        # The text received before a cancel is flushed before the job is sealed.
        "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    }


def local() -> dict[str, Any]:
    """Options of a short transaction on our database: accept, store."""
    return {
        # The database gives a statement up after 5 s (lock) or 30 s (statement).
        "start_to_close_timeout": timedelta(seconds=40),
        # Retried for ever: an outcome must be stored. Permanent errors are not retryable.
        "retry_policy": RetryPolicy(
            initial_interval=timedelta(seconds=0.2),
            backoff_coefficient=2.0,
            maximum_interval=timedelta(seconds=30),
        ),
        # Beyond this pause (after four tries) the wait becomes a timer in history. Until then it holds the workflow
        # task open, which costs three events every 4 s, and a stopping worker has to wait for its end.
        "local_retry_threshold": timedelta(seconds=2),
    }


def batch_step() -> dict[str, Any]:
    """Options of a step over all items of a batch: jobs made, jobs cancelled; thousands a second."""
    return {
        "task_queue": BATCHES_QUEUE,
        "start_to_close_timeout": timedelta(hours=6),
        "heartbeat_timeout": _heartbeat,
        # Retried for ever: each attempt goes on where the last one ended.
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=0.5), maximum_interval=timedelta(seconds=10)),
    }


def batch_slice() -> dict[str, Any]:
    """Options of a part of a batch."""
    return {
        "task_queue": BATCHES_QUEUE,
        # The clocks of its jobs (limits.*) end each generation; this only catches a worker that heartbeats for ever.
        "start_to_close_timeout": timedelta(days=30),
        # As for a single completion: how long a killed worker goes unnoticed, and a takeover that does not grow late.
        "heartbeat_timeout": _heartbeat,
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=0.5), backoff_coefficient=1.0),
        # The text received before a cancel is flushed before the jobs are sealed.
        "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    }


def batch_lane(*, attempts: int | None = None) -> dict[str, Any]:
    """Options of a call about a batch job at the model's server, with the upload or download of a file at most."""
    return {
        "task_queue": BATCHES_QUEUE,
        # A file's transfer has a limit of its own, and the answers of a part take minutes to store.
        "start_to_close_timeout": timedelta(hours=6),
        "heartbeat_timeout": _heartbeat,
        # Counted in attempts, not in time: while no worker runs nothing is given up, as it would be paid for twice.
        "retry_policy": RetryPolicy(
            initial_interval=timedelta(seconds=1),
            backoff_coefficient=2.0,
            maximum_interval=timedelta(seconds=60),
            maximum_attempts=attempts or 6 + round(_timings.batch_patience_seconds / 60),
        ),
    }


def timings() -> Timings:
    """The times between looks at batch jobs. A replay does not compare the lengths of timers."""
    return _timings


def retention() -> dict[str, Any]:
    """Options of one removal of all jobs that are too old: some hundred jobs a second."""
    return {
        "start_to_close_timeout": timedelta(hours=1),
        "heartbeat_timeout": _heartbeat,
        # A retry continues where the last attempt ended. The schedule starts no second run beside it.
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=5)),
    }


def delivery() -> dict[str, Any]:
    """Options of one try of a delivery, which is retried by its own schedule."""
    return {
        "task_queue": WEBHOOKS_QUEUE,
        # The sender takes 15 s at most; the rest is the database.
        "start_to_close_timeout": timedelta(seconds=60),
        # How long a killed worker's try goes unnoticed before it is made again.
        "heartbeat_timeout": _heartbeat,
        "schedule_to_start_timeout": timedelta(seconds=_timings.delivery_start_seconds),
        # Another attempt only if the receiver has no free place (BUSY_PAUSES in activities/webhook.py; the last one
        # reports) or the worker was killed. The activity leaves all other failures to the schedule.
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=1.0, maximum_attempts=3),
    }
