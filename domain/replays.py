"""Replays: requests that are made again, with changes; one, or those of all jobs that match a filter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatjobs.contracts import BATCH_PRIORITY, ChatRequest, JobError, ReplayRequest
from chatjobs.errors import ChatJobsError, InvalidRequest, Problem, WebhookUrlRefused
from domain.batches import OWN_ID, OWN_START, NewItem, limits_queue
from domain.names import batch_job_id, new_request_id
from domain.new_jobs import KEEPS_PLACE, new_job
from domain.webhook_urls import WebhookPolicy

USUAL_ERROR_RATE = 0.5
"""The ``maxErrorRate`` of a replay that has a canary and names none."""
ERROR_RATE = "error_rate"
"""The code of the error of a replay that was stopped, as too many of its jobs failed."""
REFUSED = {"jobId": OWN_ID, "startAt": OWN_START, "previousJobId": KEEPS_PLACE}
PLAIN = {"messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True, slots=True)
class NewReplay:
    """A replay to be stored. ``body_hash``: of the request, as received."""

    batch_id: str
    tenant: str
    request: ReplayRequest
    body_hash: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Original:
    """A job that is replayed. ``request``: as it is stored."""

    job_id: str
    model: str
    metadata: Mapping[str, str]
    request: str


def replayed(original: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a job that repeats a stored request with changes; null unsets a field. The new job has an id of its
    own, and starts at once unless the changes say when."""
    kept = {name: value for name, value in original.items() if name not in ("jobId", "startAt")}
    if "webhook" in changes or "callback" in changes:  # either is the whole target
        kept = {name: value for name, value in kept.items() if name not in ("webhook", "callback")}
    return {name: value for name, value in (kept | dict(changes)).items() if value is not None}


def check_overrides(changes: Mapping[str, Any], samples: Sequence[str], policy: WebhookPolicy | None) -> None:
    """Refuse changes that make all of some requests invalid. ``samples``: stored requests; a plain one if there are
    none. Raises InvalidRequest, whose pointers begin at /overrides, and WebhookUrlRefused."""
    wrong = [Problem(f"/overrides/{name}", why) for name, why in REFUSED.items() if name in changes]
    if wrong:
        raise InvalidRequest(wrong)
    problems: Sequence[Problem] = ()
    for original in [json.loads(sample) for sample in samples] or [PLAIN]:
        try:
            new_job(replayed(original, changes), tenant="", policy=policy)
            return
        except InvalidRequest as error:
            problems = problems or error.problems
    raise InvalidRequest([Problem(f"/overrides{pointer}", message) for pointer, message in problems])


def replay_item(
    original: Original, number: int, batch_id: str, changes: Mapping[str, Any], policy: WebhookPolicy | None
) -> NewItem:
    """The item that repeats a job. One whose request is not valid with the changes can only fail."""
    job_id = batch_job_id(batch_id, number)
    try:
        body = replayed(json.loads(original.request), changes)
        job = new_job(body, tenant="", job_id=job_id, policy=policy, replay_of=original.job_id)
    except (InvalidRequest, WebhookUrlRefused) as error:
        return _failing(original, number, job_id, error)
    request = job.request or ChatRequest.parse(body)
    webhook = request.target()
    return NewItem(
        number=number,
        custom_id=original.job_id,
        job_id=job_id,
        request_id=job.request_id,
        request_json=job.request_json,
        body_hash=job.body_hash,
        webhook=webhook.model_dump_json() if webhook else None,
        model=request.model,
        metadata=request.metadata,
        priority=request.priority if "priority" in request.model_fields_set else BATCH_PRIORITY,
        max_lost=request.limits.max_lost,
        queue_seconds=request.limits.queue_seconds if limits_queue(request) else None,
    )


def _failing(original: Original, number: int, job_id: str, error: ChatJobsError) -> NewItem:
    problem = JobError(code=error.code, message=error.message)
    return NewItem(
        number=number,
        custom_id=original.job_id,
        job_id=job_id,
        request_id=new_request_id(),
        request_json=None,
        body_hash="",
        webhook=None,
        model=original.model,
        metadata=original.metadata,
        priority=BATCH_PRIORITY,
        max_lost=1,
        queue_seconds=None,
        problem=problem.model_dump_json(),
    )
