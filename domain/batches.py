"""Batches: the values that cross rooms, and an uploaded item as the job that it becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chatjobs.contracts import (
    BATCH_PRIORITY,
    BatchItem,
    BatchSettings,
    BatchStatus,
    BatchWebhook,
    ChatRequest,
    JobError,
    validated,
    without_nulls,
)
from chatjobs.errors import InvalidRequest, Problem
from domain.names import batch_job_id, new_request_id
from domain.schemas import check_schema
from domain.webhook_urls import WebhookPolicy, checked

OWN_START = "must be left out: the items of a batch begin in their order"
MOST_PROBLEMS = 20
"""Problems after which the rest of a batch is not looked at."""
NO_CONVERSATION = "must be left out: items are independent; start the next job of a conversation by itself"
OWN_ID = "must be left out: an item's job gets its id from the batch, and custom_id names the item"


@dataclass(frozen=True, slots=True)
class NewItem:
    """One item of a batch, as it is stored until the batch begins.

    ``webhook``: JSON of the target. ``queue_seconds``: set where the request limits its time in the queue.
    ``request_json`` is None, and ``problem`` the JSON of the error, where the item can only fail.
    """

    number: int
    custom_id: str
    job_id: str
    request_id: str
    request_json: str | None
    body_hash: str
    webhook: str | None
    model: str
    metadata: Mapping[str, str]
    priority: int
    max_lost: int
    queue_seconds: float | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch whose items are all stored. ``body_hash``: of settings and items, as received."""

    batch_id: str
    tenant: str
    settings: BatchSettings
    total: int
    body_hash: str
    idempotency_key: str | None = None
    schedule_id: str | None = None


@dataclass(frozen=True, slots=True)
class BatchHandle:
    """A batch that has a row. ``created``: this call made it; False where it was there already."""

    batch_id: str
    tenant: str
    status: BatchStatus
    created: bool = False


@dataclass(frozen=True, slots=True)
class OpenItem:
    """A job of a batch that has not ended. ``suspect``: workers died with it twice, and it brought nothing new.
    ``problem``: it can only fail, with this error."""

    job_id: str
    model: str
    suspect: bool = False
    problem: JobError | None = None


@dataclass(frozen=True, slots=True)
class BatchWishes:
    """What was asked of a batch, read from its row. ``bounded``: it is stopped where too many of its jobs fail."""

    paused: bool
    cancelled: bool
    ended: bool
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """What became of a replay's canary, the items before number ``end``. ``left``: jobs of it that have not ended, so
    that there is no verdict yet."""

    end: int
    left: int = 0


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch's workflow needs to know of it. ``canary``: so many items run before the others; 0: none does, or
    they have run."""

    batch_id: str
    tenant: str
    total: int
    concurrency: int | None
    lane: str
    deadline: datetime | None
    ended: bool
    canary: int = 0


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """A batch's outcome. ``delivery_id``: the webhook whose first try the workflow run makes.

    ``left``: jobs that have not ended, so that the batch has not either. ``first``: the number of the first of these
    items that is the batch's to run; None: they have workflows of their own. ``unprepared``: items have no job yet, or
    are to be reopened.
    """

    batch_id: str
    tenant: str
    status: BatchStatus
    delivery_id: str | None = None
    left: int = 0
    first: int | None = None
    unprepared: bool = False


class BatchHash:
    """The hash of a batch as received: the same settings and items in the same order have the same one.

    The order of an object's fields and blanks between them do not matter.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: Any) -> str:
        """Add decoded JSON; its own hash."""
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
        self._hash.update(text + b"\n")
        return hashlib.sha256(text).hexdigest()

    def digest(self, settings: BatchSettings) -> str:
        """The hash of all items added, with the settings."""
        whole = self._hash.copy()
        whole.update(settings.model_dump_json(exclude_unset=True).encode())
        return whole.hexdigest()


def new_item(
    value: Any, number: int, batch_id: str, settings: BatchSettings, body_hash: str, policy: WebhookPolicy | None
) -> NewItem:
    """The item in a decoded line, which is JSON (RFC 8259) and not nested deeper than it can be read again.

    ``body_hash``: of the line, by BatchHash. Raises InvalidRequest, whose pointers begin at the line, and
    WebhookUrlRefused.
    """
    item = validated(BatchItem, without_nulls(BatchItem, value))
    try:
        request = _request(item, settings, policy)
    except InvalidRequest as error:
        raise InvalidRequest([Problem(f"/body{one.pointer}", one.message) for one in error.problems]) from None
    webhook = request.target()
    return NewItem(
        number=number,
        custom_id=str(number) if item.custom_id is None else item.custom_id,
        job_id=batch_job_id(batch_id, number),
        request_id=request.request_id or new_request_id(),
        request_json=request.model_dump_json(exclude_unset=True),
        body_hash=body_hash,
        webhook=webhook.model_dump_json() if webhook else None,
        model=request.model,
        metadata=request.metadata,
        priority=request.priority if "priority" in request.model_fields_set else BATCH_PRIORITY,
        max_lost=request.limits.max_lost,
        queue_seconds=request.limits.queue_seconds if limits_queue(request) else None,
    )


def new_items(
    values: Sequence[Any], batch_id: str, settings: BatchSettings, hashes: BatchHash, policy: WebhookPolicy | None
) -> list[NewItem]:
    """The items of a batch whose decoded JSON is in memory as a whole; they are added to ``hashes``.

    Raises InvalidRequest, with up to MOST_PROBLEMS problems, and WebhookUrlRefused.
    """
    items: list[NewItem] = []
    problems: list[Problem] = [] if values else [Problem("/items", "must have at least one item")]
    names: dict[str, int] = {}
    for number, value in enumerate(values):
        try:
            item = new_item(value, number, batch_id, settings, hashes.add(value), policy)
        except InvalidRequest as error:
            problems += [Problem(f"/items/{number}{place}", why) for place, why in error.problems]
        else:
            items.append(item)
            if (first := names.setdefault(item.custom_id, number)) != number:
                why = f"is that of items/{first}, too; each item needs its own"
                problems.append(Problem(f"/items/{number}/custom_id", why))
        if len(problems) >= MOST_PROBLEMS:
            break
    if problems:
        raise InvalidRequest(problems[:MOST_PROBLEMS])
    return items


def limits_queue(request: ChatRequest) -> bool:
    """Whether a request itself limits its time in the queue. A job of a batch has no other limit of it."""
    return "limits" in request.model_fields_set and "queue_seconds" in request.limits.model_fields_set


def _request(item: BatchItem, settings: BatchSettings, policy: WebhookPolicy | None) -> ChatRequest:
    bare = without_nulls(ChatRequest, {**settings.defaults, **item.body} if settings.defaults else item.body)
    request = validated(ChatRequest, bare)
    if request.job_id is not None:
        raise InvalidRequest([Problem("/jobId", OWN_ID)])
    if request.start_at is not None:
        raise InvalidRequest([Problem("/startAt", OWN_START)])
    if request.previous_job_id is not None:
        raise InvalidRequest([Problem("/previousJobId", NO_CONVERSATION)])
    check_schema(request)
    return request if policy is None else checked(request, policy)


def check_settings(settings: BatchSettings, policy: WebhookPolicy | None) -> BatchSettings:
    """The settings, with the webhook's URL as the policy wants it. Raises InvalidRequest, WebhookUrlRefused."""
    if settings.deadline is not None and settings.lane != "batch":
        raise InvalidRequest([Problem("/deadline", 'goes with "lane": "batch"; live calls begin at once')])
    if settings.webhook is None or policy is None:
        return settings
    url = policy.check(settings.webhook.url)
    webhook = BatchWebhook(url=url, events=settings.webhook.events)
    return settings.model_copy(update={"webhook": webhook})
