"""Accepts replays of many jobs: what is asked is checked against the jobs that it concerns, and stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatjobs.contracts import BatchWebhook, ReplayEstimate, ReplayFilter, ReplayRequest, fingerprint, parse
from chatjobs.errors import InvalidRequest, Problem
from domain.batches import BatchHandle
from domain.names import new_batch_id
from domain.replays import NewReplay, check_overrides
from domain.webhook_urls import WebhookPolicy
from storage.batches.replays import ReplayStore

NOTHING_CHOSEN = "must have a field, so that not all jobs are replayed by mistake"
STILL_OPEN = "must be a terminal status: only jobs that have ended are replayed"


class ReplayIntake:
    """``policy`` gives the rules for webhook URLs; without it they are judged only when they are called."""

    def __init__(self, replays: ReplayStore, policy: Callable[[], WebhookPolicy] | None = None) -> None:
        self._replays = replays
        self._policy = policy

    async def accept(
        self, body: Any, *, tenant: str, idempotency_key: str | None = None
    ) -> BatchHandle | ReplayEstimate:
        """Commit the replay in a decoded JSON body, which is durable when this returns; or with ``dryRun`` what it
        would do.

        Raises InvalidRequest, WebhookUrlRefused, IdempotencyMismatch, StorageError.
        """
        request = parse(ReplayRequest, body)
        _check_filter(request.filter)
        replay = NewReplay(new_batch_id(), tenant, request, fingerprint(body), idempotency_key)
        if not request.dry_run and (found := await self._replays.by_key(replay)) is not None:
            return found
        policy = self._policy() if self._policy is not None else None
        if request.overrides:
            check_overrides(request.overrides, await self._replays.samples(request.filter, tenant), policy)
        if request.dry_run:
            return await self._replays.estimate(request.filter, tenant)
        if request.webhook is not None and policy is not None:
            webhook = BatchWebhook(url=policy.check(request.webhook.url), events=request.webhook.events)
            replay = NewReplay(
                *(replay.batch_id, tenant, request.model_copy(update={"webhook": webhook})),
                *(replay.body_hash, idempotency_key),
            )
        return await self._replays.create(replay)


def _check_filter(chosen: ReplayFilter) -> None:
    if not chosen.model_fields_set:
        raise InvalidRequest([Problem("/filter", NOTHING_CHOSEN)])
    if chosen.status is not None and not chosen.status.terminal:
        raise InvalidRequest([Problem("/filter/status", STILL_OPEN)])
