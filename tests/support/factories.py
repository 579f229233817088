"""Values for tests: only what matters to a test is written there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from chatjobs.contracts import Channel, JobError, JobStatus, QueuePlace
from domain.new_jobs import new_job
from domain.payloads import Ending
from domain.values import Claim, FinishRecord, NewJob, Slice
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.writer import JobWriter, TranscriptWriter

fences = itertools.count(1_000, 10)  # sealing adds one
EndStatus = Literal[JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED]


def make_body(prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A request as it stands on the wire."""
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def make_job(prompt: str = "Hello", *, job_id: str | None = None, tenant: str = "default", **fields: Any) -> NewJob:
    """A job to be accepted; ``fields`` are fields of the request, but for ``idempotency_key``."""
    key = fields.pop("idempotency_key", None)
    body = make_body(prompt, **fields)
    return new_job(body, job_id=job_id, tenant=tenant, idempotency_key=key)


def make_store(database: Database) -> JobStore:
    return JobStore(database)


async def accepted(store: JobStore, prompt: str = "Hello", **fields: Any) -> str:
    """The id of a job that has a row."""
    return (await store.acceptance.accept(make_job(prompt, **fields))).job_id


async def claimed(
    store: JobStore, job_id: str, *, fence: int | None = None, run_id: str = "run-1", tries: int = 1_000
) -> Claim:
    """A claim by the next attempt."""
    number = next(fences) if fence is None else fence
    return await store.attempts.claim(job_id, fence=number, claimant=f"claimant-{number}", run_id=run_id, tries=tries)


def ending(job_id: str, status: EndStatus = JobStatus.COMPLETED, **fields: Any) -> Ending:
    """How a workflow wants a job sealed."""
    return Ending(job_id=job_id, status=status, **fields)


def failing(job_id: str, code: str = "upstream_cut") -> Ending:
    return ending(job_id, JobStatus.FAILED, error=JobError(code=code, message="It failed", retryable=True))


async def wrote(writer: TranscriptWriter, claim: Claim, *deltas: str, channel: Channel = Channel.CONTENT) -> JobWriter:
    """The writer of an attempt, after these deltas are durable."""
    job_writer = writer.open(claim)
    for delta in deltas:
        job_writer.append(channel, delta)
    await job_writer.flush()
    return job_writer


async def answered(store: JobStore, writer: TranscriptWriter, *deltas: str, **fields: Any) -> str:
    """The id of a job whose answer is whole in storage and that is not yet sealed. ``fields`` are the request's."""
    job_id = await accepted(store, **fields)
    claim = await claimed(store, job_id)
    job_writer = await wrote(writer, claim, *(deltas or ("Hello", " you")))
    await job_writer.finish(finished(claim))
    return job_id


@dataclass
class Copy:
    """What a reader who took every slice has."""

    texts: dict[Channel, str] = field(default_factory=lambda: dict.fromkeys(Channel, ""))
    position: int = 0
    resets: int = 0

    def take(self, piece: Slice) -> None:
        if piece.reset:
            self.texts, self.position, self.resets = dict.fromkeys(Channel, ""), 0, self.resets + 1
        for run in piece.runs:
            self.texts[run.channel] += run.text
            self.position += len(run.text)
        assert self.position == piece.position


def expected_start(place: QueuePlace) -> datetime:
    """When a waiting job that is not paused is expected to start."""
    assert place.expected_start_at is not None
    return place.expected_start_at


def finished(claim: Claim, reason: str = "stop", **fields: Any) -> FinishRecord:
    return FinishRecord(reason=reason, attempt=claim.attempt, ended_at=datetime.now(UTC), **fields)
