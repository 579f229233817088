"""How an attempt ended, as the ledger of a job's attempts says it, and which ends count as failures."""

from __future__ import annotations

from enum import StrEnum


class AttemptOutcome(StrEnum):
    """The outcomes that the service itself acts on.

    The column ``outcome`` of the ledger holds one of these or the code of any other error (``upstream_unauthorized``,
    ``storage_refused``, …; see docs/faults.md). Functions that read it take a ``str``.
    """

    FINISHED = "finished"
    """The answer is whole."""
    SEGMENT = "segment"
    """The answer reached the length limit of a segment; the next attempt writes the next segment."""
    TOPPED_UP = "topped_up"
    """The answer ended at a length limit that was estimated too low; the next attempt brings the rest."""
    NOTHING_LEFT = "nothing_left"
    """The text so far had reached its length limit already: there was no call."""

    POSTPONED = "postponed"
    """The lane was paused before the call could start: it costs nothing."""
    LOST = "lost"
    """The worker died without recording an end."""
    FROZEN = "frozen"
    """The worker's process was suspended for so long that Temporal took it for dead, and then went on."""
    TAKEN_OVER = "taken_over"
    """Another attempt claimed the job while this one's worker lived."""
    HANDED_OVER = "handed_over"
    """The worker was stopped (a deploy), or the attempt's heartbeats stopped."""
    CANCELLED = "cancelled"
    """Cancellation of the job was requested."""
    RATE_LIMITED = "upstream_rate_limited"
    """The model's server answered 429 or its equivalent."""
    REFUSED_TO_CONTINUE = "continuation_refused"
    """The model did not go on from the text so far; the next attempt starts over."""

    SCHEMA_MISMATCH = "schema_mismatch"
    """The whole answer is not the JSON that it was to be; the next attempt repairs it, if the request allows one."""

    EMPTY = "upstream_empty"
    """The call brought no text at all."""
    CUT = "upstream_cut"
    """The stream ended before the answer did."""
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - no secret
    STALL_TIMEOUT = "stall_timeout"
    INTERNAL = "internal"
    """An error of this service."""

    QUEUE_TIMEOUT = "queue_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    MAX_TOTAL_TOKENS = "max_total_tokens"
    INTERRUPTED = "interrupted"
    """The request says ``onInterrupt: fail``, and an attempt before this one was interrupted."""
    SCHEMA_CHECK_FAILED = "schema_check_failed"
    """It could not be found out whether the whole answer is the JSON that it was to be."""
    PREFIX_NOT_CONTINUED = "prefix_not_continued"
    """The model's server is known not to continue the caller's own beginning of the answer."""


LENGTH_LIMITS = ("length", "model_length")
"""Finish reasons that mean the model stopped at a limit (Mistral's API reference)."""
WORKER_LOST = "worker_lost"
"""The error code of a job that has lost ``limits.maxLost`` workers in a row. Its attempts are LOST."""

NOT_FAILURES = frozenset(
    {
        AttemptOutcome.FINISHED,
        AttemptOutcome.SEGMENT,
        AttemptOutcome.TOPPED_UP,
        AttemptOutcome.NOTHING_LEFT,
        AttemptOutcome.POSTPONED,
        AttemptOutcome.LOST,
        AttemptOutcome.FROZEN,
        AttemptOutcome.TAKEN_OVER,
        AttemptOutcome.HANDED_OVER,
        AttemptOutcome.CANCELLED,
        AttemptOutcome.RATE_LIMITED,
        AttemptOutcome.REFUSED_TO_CONTINUE,  # it follows an interruption, which has been counted
        AttemptOutcome.SCHEMA_MISMATCH,  # ``maxRepairs`` counts them
    }
)
WITHOUT_CALL = frozenset(
    {
        AttemptOutcome.QUEUE_TIMEOUT,
        AttemptOutcome.TOTAL_TIMEOUT,
        AttemptOutcome.MAX_TOTAL_TOKENS,
        AttemptOutcome.INTERRUPTED,
        AttemptOutcome.NOTHING_LEFT,
        AttemptOutcome.HANDED_OVER,
        AttemptOutcome.CANCELLED,
        AttemptOutcome.POSTPONED,
        AttemptOutcome.PREFIX_NOT_CONTINUED,
        AttemptOutcome.FROZEN,
    }
)
"""Outcomes that an attempt may have before it calls the model; then it is removed from the ledger."""
SILENT = frozenset({AttemptOutcome.FIRST_TOKEN_TIMEOUT, AttemptOutcome.STALL_TIMEOUT})
"""Nothing came from the model for too long."""
UNNOTICED = frozenset({AttemptOutcome.LOST, AttemptOutcome.FROZEN, AttemptOutcome.TAKEN_OVER})
"""The attempt itself could not report what it had used."""


def is_failure(outcome: str) -> bool:
    """Whether an outcome uses up the job's ``retry``: errors of the model and of this service do."""
    return outcome not in NOT_FAILURES


def broke_off(outcome: str, *, began: bool) -> bool:
    """Whether an attempt was an answer that is paid for and ended early. ``began``: text had arrived."""
    return outcome in SILENT or (outcome == AttemptOutcome.CUT and began)
