"""The feed of all jobs: one event for each job that is created, that starts, and that ends; it carries no text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, Strict

from chatjobs.contracts.base import Many, Timestamp, WireModel
from chatjobs.contracts.statuses import JobStatus


class FeedEventType(StrEnum):
    """The events of the feed. The terminal ones have the names of the webhooks."""

    CREATED = "chat.created"
    STARTED = "chat.started"
    """The job's first attempt has begun, or the first one since the job was resumed after its end."""
    COMPLETED = "chat.completed"
    FAILED = "chat.failed"
    CANCELLED = "chat.cancelled"
    INCOMPLETE = "chat.incomplete"

    @property
    def status(self) -> JobStatus:
        """The status of a job with this event."""
        early = {FeedEventType.CREATED: JobStatus.QUEUED, FeedEventType.STARTED: JobStatus.IN_PROGRESS}
        return early.get(self) or JobStatus(self.value.removeprefix("chat."))


class FeedEvent(WireModel):
    """Something that happened to a job. ``id`` is the place in the feed: give it to go on after this event.

    Fields other than ``status`` and ``errorCode`` are those of the job as it is when the event is read.
    """

    id: str
    event: Annotated[FeedEventType, Strict(False)]
    timestamp: Timestamp
    """When it happened, by the clock of the process that did it; events are in the order of their ids."""
    job_id: str
    request_id: str
    status: JobStatus
    """The status that the event gave the job."""
    model: str
    metadata: dict[str, str] = Field({})
    revision: int = 1
    """Counts the job's outcomes: one more each time that it goes on after its end."""
    batch_id: str | None = Field(None, exclude_if=lambda value: value is None)
    replay_of: str | None = Field(None, exclude_if=lambda value: value is None)
    schedule_id: str | None = Field(None, exclude_if=lambda value: value is None)
    thread: str | None = Field(None, exclude_if=lambda value: value is None)
    """Of a job that goes on with a conversation, or is a branch of one: the id of the conversation's first job."""
    error_code: str | None = Field(None, exclude_if=lambda value: value is None)
    """Of a failed job: the code of its error."""


class FeedEvents(WireModel):
    """A page of the feed, oldest first. ``next``: where to go on, as ``after``, also if there are no events."""

    events: Many[FeedEvent]
    next: str
