"""The words for where a job stands, and for what is announced of it."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands, the same word on every interface."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"
    """The model stopped at a length limit: the text is kept and the job is not a failure."""

    @property
    def terminal(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)


class Channel(StrEnum):
    """Which of the two texts of an answer a piece belongs to."""

    CONTENT = "content"
    REASONING = "reasoning"


class WebhookEventType(StrEnum):
    COMPLETED = "chat.completed"
    FAILED = "chat.failed"
    CANCELLED = "chat.cancelled"
    INCOMPLETE = "chat.incomplete"

    @classmethod
    def of(cls, status: JobStatus) -> WebhookEventType:
        """The event that announces a terminal status."""
        return cls(f"chat.{status.value}")


class WebhookTestEvent(StrEnum):
    """What is sent to see whether a receiver hears it. Nobody subscribes to it."""

    TEST = "webhook.test"
