"""A request as a new job: the one place where it gets its ids, its hash and its stored form."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from chatjobs.contracts import ChatRequest, earlier_fingerprint, fingerprint, without_nulls
from domain.names import new_request_id
from domain.values import NewJob, RunRef


def new_job(
    body: Any,
    request: ChatRequest | None,
    *,
    job_id: str,
    tenant: str,
    idempotency_key: str | None = None,
    replay_of: str | None = None,
    started: bool = False,
    run: RunRef | None = None,
) -> NewJob:
    """The job that ``body`` (decoded JSON as received) asks for; ``request`` is None where it is not valid."""
    bare = without_nulls(ChatRequest, body)
    return NewJob(
        job_id=job_id,
        tenant=tenant,
        request_id=(request and request.request_id) or new_request_id(),
        request=request,
        request_json=request.model_dump_json(exclude_unset=True) if request else None,
        body_hash=_hash(bare, replay_of),
        earlier_hashes=partial(_earlier_hashes, bare, body, replay_of),
        started=started,
        idempotency_key=idempotency_key,
        replay_of=replay_of,
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
