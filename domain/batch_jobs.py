"""Batch jobs of Mistral's batch API, each of which becomes a batch: the values that cross rooms."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from chatjobs.contracts import BatchWebhook

BATCH_PREFIX: Final = "batch_"
KEY_PREFIX: Final = "\x01batch-job:"
"""Of the idempotency key of a batch job's batch: callers' keys have no control characters."""


class BatchJobState(StrEnum):
    """The status of a batch job, as Mistral names it (``mistralai.client.models.BatchJobStatus``)."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    TIMEOUT_EXCEEDED = "TIMEOUT_EXCEEDED"
    CANCELLATION_REQUESTED = "CANCELLATION_REQUESTED"
    CANCELLED = "CANCELLED"


ENDED: Final = frozenset(
    {BatchJobState.SUCCESS, BatchJobState.FAILED, BatchJobState.TIMEOUT_EXCEEDED, BatchJobState.CANCELLED}
)


@dataclass(frozen=True, slots=True)
class BatchJobOrder:
    """What a caller asks for. ``inline``: its requests were in the body, and ``input_files`` is the file made of them.
    ``body_hash``: of the body as received."""

    job_id: str
    tenant: str
    input_files: Sequence[str]
    body_hash: str
    expires_at: datetime
    inline: bool = False
    model: str | None = None
    metadata: Mapping[str, str] | None = None
    lane: str = "live"
    webhook: BatchWebhook | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class BatchJobRecord:
    """A batch job. ``batch_id``: None until its files are read and checked. ``total``: requests in them, 0 until then.
    ``unanswered``: those that failed or were cancelled. ``settled``: its end is recorded, with the files of its
    results. ``revision``: that of the batch."""

    job_id: str
    tenant: str
    state: BatchJobState
    input_files: Sequence[str]
    inline: bool
    model: str | None
    metadata: Mapping[str, str] | None
    errors: Sequence[str]
    batch_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    total: int
    succeeded: int
    failed: int
    unanswered: int
    settled: bool
    revision: int
    output_file: str | None
    error_file: str | None
    created: bool = False


@dataclass(frozen=True, slots=True)
class BatchJobClaim:
    """The right to read the files of a batch job and to make its batch, called ``batch_id``. ``made``: the batch is
    there already, and is only to be recorded: the process that made it died."""

    job_id: str
    tenant: str
    batch_id: str
    input_files: Sequence[str]
    inline: bool
    model: str | None
    lane: str
    webhook: BatchWebhook | None
    expires_at: datetime
    made: bool = False

    @property
    def key(self) -> str:
        return batch_key(self.job_id)


@dataclass(frozen=True, slots=True)
class BatchJobFilter:
    """The batch jobs to list; None is any."""

    model: str | None = None
    created_after: datetime | None = None
    states: Collection[BatchJobState] | None = None
    metadata: Mapping[str, str] | None = None
    oldest_first: bool = False


def new_batch_job_id() -> str:
    """A UUID, as Mistral's documentation of its API has it; some clients parse it as one."""
    return str(uuid.uuid4())


def batch_key(job_id: str) -> str:
    """The idempotency key of a job's batch, so that no second try makes a second one."""
    return f"{KEY_PREFIX}{job_id}"


def first_batch_id(job_id: str) -> str:
    """The id of a job's batch, unless the process that was making it died: the next one makes another one, lest both
    write to the same."""
    return f"{BATCH_PREFIX}{uuid.UUID(job_id).hex}"
