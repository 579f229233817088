"""Values for tests: only what matters to a test is written there."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

from chatjobs.contracts import ChatRequest, fingerprint
from chatjobs.names import new_job_id, new_request_id
from storage.database import Database
from storage.jobs import JobStore
from storage.values import Claim, FinishRecord, NewJob

fences = itertools.count(1_000)


def make_body(prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A request as it stands on the wire."""
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def make_job(prompt: str = "Hello", *, job_id: str | None = None, tenant: str = "default", **fields: Any) -> NewJob:
    """A job to be accepted; ``fields`` are fields of the request, but for ``idempotency_key``."""
    key = fields.pop("idempotency_key", None)
    body = make_body(prompt, **fields)
    return NewJob(
        job_id=job_id or new_job_id(),
        tenant=tenant,
        request_id=new_request_id(),
        body_hash=fingerprint(body),
        request=ChatRequest.parse(body),
        idempotency_key=key,
    )


def make_store(database: Database) -> JobStore:
    return JobStore(database, run_url=lambda job_id: f"http://ui.example/{job_id}")


async def accepted(store: JobStore, prompt: str = "Hello", **fields: Any) -> str:
    """The id of a job that has a row."""
    return (await store.accept(make_job(prompt, **fields))).job_id


async def claimed(store: JobStore, job_id: str, *, fence: int | None = None, run_id: str = "run-1") -> Claim:
    """A claim by the next attempt."""
    number = next(fences) if fence is None else fence
    return await store.claim(job_id, fence=number, claimant=f"claimant-{number}", run_id=run_id)


def finished(claim: Claim, reason: str = "stop", **fields: Any) -> FinishRecord:
    return FinishRecord(reason=reason, attempt=claim.attempt, ended_at=datetime.now(UTC), **fields)
