"""A request as a new job: the one place where it is validated, hashed, and given its ids and its stored form."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from chatjobs.contracts import ChatRequest, earlier_fingerprint, fingerprint, validated, without_nulls
from domain.names import new_job_id, new_request_id
from domain.values import NewJob, RunRef
from domain.webhook_urls import WebhookPolicy, checked


def new_job(
    body: Any,
    *,
    tenant: str,
    job_id: str | None = None,
    policy: WebhookPolicy | None = None,
    idempotency_key: str | None = None,
    replay_of: str | None = None,
    started: bool = False,
    run: RunRef | None = None,
) -> NewJob:
    """The job that ``body`` (decoded JSON as received) asks for.

    ``job_id``: None for the id in the request, or a new one. ``policy``: the rules for webhook URLs; without it they
    are judged only when they are called. Raises InvalidRequest, WebhookUrlRefused.
    """
    bare = without_nulls(ChatRequest, body)
    request = validated(ChatRequest, bare)
    if policy is not None:
        request = checked(request, policy)
    return NewJob(
        job_id=job_id or request.job_id or new_job_id(),
        tenant=tenant,
        request_id=request.request_id or new_request_id(),
        request=request,
        request_json=request.model_dump_json(exclude_unset=True),
        body_hash=_hash(bare, replay_of),
        earlier_hashes=partial(_earlier_hashes, bare, body, replay_of),
        started=started,
        idempotency_key=idempotency_key,
        replay_of=replay_of,
        run=run,
    )


def invalid_job(body: Any, *, job_id: str, tenant: str, run: RunRef | None = None) -> NewJob:
    """The job of a workflow whose request ``new_job`` refused: it can be found, and can only fail."""
    bare = without_nulls(ChatRequest, body)
    return NewJob(
        job_id=job_id,
        tenant=tenant,
        request_id=new_request_id(),
        request=None,
        request_json=None,
        body_hash=_hash(bare, None),
        earlier_hashes=partial(_earlier_hashes, bare, body, None),
        started=True,
        run=run,
    )


def _hash(body: Any, replay_of: str | None, *, earlier: bool = False) -> str:
    """A replay is another request than the one that it repeats, also under one idempotency key."""
    hashed = body if replay_of is None else {"replayOf": replay_of, "request": body}
    by = earlier_fingerprint if earlier else fingerprint
    try:
        return by(hashed)
    except ValueError:  # not JSON at all (NaN, lone surrogates): such a job fails and is never compared
        return by(repr(hashed))


def _earlier_hashes(bare: Any, body: Any, replay_of: str | None) -> Collection[str]:
    return {_hash(one, replay_of, earlier=True) for one in (bare, body)}
