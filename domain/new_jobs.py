"""A request as a new job: the one place where it is validated, hashed, and given its ids and its stored form."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from chatjobs.contracts import (
    ChatRequest,
    checked_fingerprint,
    earlier_fingerprint,
    fingerprint,
    validated,
    without_nulls,
)
from chatjobs.errors import InvalidRequest, Problem
from domain.conversations import ThreadPlace, stored_form
from domain.names import new_job_id, new_request_id
from domain.schemas import check_schema
from domain.values import NewJob, ResponseForm, RunRef
from domain.webhook_urls import WebhookPolicy, checked

FURTHEST_START = timedelta(days=90)
KEEPS_PLACE = "must be left out: a replay has the messages and the place in the conversation of the job that it repeats"


def new_job(
    body: Any,
    *,
    tenant: str,
    job_id: str | None = None,
    policy: WebhookPolicy | None = None,
    idempotency_key: str | None = None,
    replay_of: str | None = None,
    place: ThreadPlace | None = None,
    schedule_id: str | None = None,
    started: bool = False,
    run: RunRef | None = None,
    response: ResponseForm | None = None,
) -> NewJob:
    """The job that ``body`` (decoded JSON as received) asks for.

    ``job_id``: None for the id in the request, or a new one. ``policy``: the rules for webhook URLs; without it they
    are judged only when they are called. ``place``: that of the job that is replayed. ``response``: ``body`` is a
    translation, and this is the rest of the request. A request that names a previous job still lacks the messages of
    its conversation. Raises InvalidRequest, WebhookUrlRefused.
    """
    bare = without_nulls(ChatRequest, body)
    body_hash = checked_fingerprint(_hashed(bare, replay_of, response))
    request = validated(ChatRequest, bare)
    if request.start_at is not None and request.start_at > datetime.now(UTC) + FURTHEST_START:
        raise InvalidRequest([Problem("/startAt", f"must be at most {FURTHEST_START.days} days ahead")])
    if request.previous_job_id is not None and replay_of is not None:
        raise InvalidRequest([Problem("/previousJobId", KEEPS_PLACE)])
    check_schema(request)
    if policy is not None:
        request = checked(request, policy)
    return NewJob(
        job_id=job_id or request.job_id or new_job_id(),
        tenant=tenant,
        request_id=request.request_id or new_request_id(),
        request=request,
        request_json=stored_form(request),
        body_hash=body_hash,
        earlier_hashes=lambda: {earlier_fingerprint(_hashed(one, replay_of, response)) for one in (bare, body)},
        started=started,
        idempotency_key=idempotency_key,
        replay_of=replay_of,
        previous_job_id=place.previous_job_id if place else request.previous_job_id,
        thread=place.thread if place else None,
        schedule_id=schedule_id,
        run=run,
        response=response,
    )


def invalid_job(
    body: Any, *, job_id: str, tenant: str, run: RunRef | None = None, schedule_id: str | None = None
) -> NewJob:
    """The job of a workflow whose request ``new_job`` refused: it can be found, and can only fail."""
    bare = without_nulls(ChatRequest, body)
    return NewJob(
        job_id=job_id,
        tenant=tenant,
        request_id=new_request_id(),
        request=None,
        request_json=None,
        body_hash=_of_anything(fingerprint, bare),
        earlier_hashes=lambda: {_of_anything(earlier_fingerprint, one) for one in (bare, body)},
        started=True,
        schedule_id=schedule_id,
        run=run,
    )


def _hashed(body: Any, replay_of: str | None, response: ResponseForm | None = None) -> Any:
    """The hashed part of a request. A replay differs from the request that it repeats, also under the same key."""
    if response is not None:
        return {"response": json.loads(response.settings), "request": body}
    return body if replay_of is None else {"replayOf": replay_of, "request": body}


def _of_anything(fingerprint: Callable[[Any], str], body: Any) -> str:
    """The hash of a body that may not be JSON (NaN, lone surrogates), which is never compared with one that is."""
    try:
        return fingerprint(body)
    except ValueError:
        return fingerprint(repr(body))
