"""The words for the status of a job or a batch, the channels of an answer and the events of webhooks."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The status of a job, the same word on every interface."""

    QUEUED = "queued"
    """Accepted and durable; no attempt has begun, or none since the job was resumed."""
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    """The model ended its answer, or called tools."""
    FAILED = "failed"
    """The job ended without a whole answer; ``error`` says why, and the text so far is kept."""
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"
    """The model stopped at a length limit: the text is kept and the job is not a failure."""

    @property
    def terminal(self) -> bool:
        """Whether a job with this status has ended."""
        return self not in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)


class Channel(StrEnum):
    """Which of the two texts of an answer a piece belongs to."""

    CONTENT = "content"
    """The answer."""
    REASONING = "reasoning"
    """The model's thinking."""


class WebhookEventType(StrEnum):
    """The events that a webhook may subscribe to: one for each terminal status of a job."""

    COMPLETED = "chat.completed"
    FAILED = "chat.failed"
    CANCELLED = "chat.cancelled"
    INCOMPLETE = "chat.incomplete"

    @classmethod
    def of(cls, status: JobStatus) -> WebhookEventType:
        """The event that announces a terminal status. Raises ValueError for another status."""
        return cls(f"chat.{status.value}")


class WebhookTestEvent(StrEnum):
    """The event of a test call, which checks that a receiver works. It cannot be subscribed to."""

    TEST = "webhook.test"


class BatchStatus(StrEnum):
    """The status of a batch."""

    QUEUED = "queued"
    """Accepted and durable; no item has begun."""
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    """No further item begins until the batch is resumed; those that run finish."""
    COMPLETED = "completed"
    """Every item has ended, some of them perhaps as failed."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """The batch ended before its items had; ``error`` says why."""

    @property
    def terminal(self) -> bool:
        """Whether a batch with this status has ended."""
        return self in (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.FAILED)


class BatchEventType(StrEnum):
    """The events that a batch's webhook may subscribe to."""

    COMPLETED = "batch.completed"
    CANCELLED = "batch.cancelled"
    FAILED = "batch.failed"

    @classmethod
    def of(cls, status: BatchStatus) -> BatchEventType:
        """The event that announces a terminal status. Raises ValueError for another status."""
        return cls(f"batch.{status.value}")
