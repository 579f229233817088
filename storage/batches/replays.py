"""Replays: batches whose items repeat the jobs that match a filter, made in steps; and the bound on their errors.

The jobs are those that had ended when the replay was requested. The place of the last one that was looked at is in the
replay's row, so that whoever was stopped in between goes on, and no job is repeated twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    Row,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import BatchStatus, JobError, JobStatus, ReplayEstimate, ReplayFilter
from domain.batches import BatchHandle, CanaryVerdict, NewItem
from domain.errors import StorageRefused
from domain.replays import ERROR_RATE, USUAL_ERROR_RATE, NewReplay, Original, replay_item
from domain.text import clean, clean_json
from domain.webhook_urls import WebhookPolicy
from storage.batches import runs
from storage.batches.drafts import ITEMS, REQUESTS, existing, item_row
from storage.batches.tally import BatchTally
from storage.engine.database import Database, retried
from storage.engine.schema import batch_items, batches, jobs, micros, now, requests, results

GATHERED_AT_ONCE = 500
"""Jobs that one step looks at."""
LARGEST_STEP = 16 * 1024 * 1024
"""Characters of requests in memory at once, about; one request may be longer."""
FIRST_IDS = 10
SAMPLES = 20
JUDGED = 100
"""The jobs that ended last, over which the error rate is taken: whole parts, so many jobs or somewhat more."""
FEWEST_JUDGED = 20
BEGINNING = [-1, ""]

OUTCOMES = (
    select(jobs.c.status, func.count())
    .select_from(batch_items.join(jobs, jobs.c.id == batch_items.c.job_id))
    .where(batch_items.c.batch_id == bindparam("key"))
    .where(batch_items.c.number >= bindparam("first"), batch_items.c.number < bindparam("end"))
    .group_by(jobs.c.status)
)
BODIES = select(requests).where(requests.c.job_id.in_(bindparam("keys", expanding=True)))
WITH_REQUESTS = jobs.outerjoin(requests, requests.c.job_id == jobs.c.id)
KEPT = requests.c.job_id.is_not(None)


class _Found(NamedTuple):
    """A job that matches a filter. ``size``: of its request, in characters; None: it was not kept."""

    id: str
    created_at: int
    model: str
    metadata: Mapping[str, str]
    size: int | None


class ReplayStore:
    """Makes replays and their items. A filter is applied to the jobs of one tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---------------------------------------------------------------------------------------- the request

    async def estimate(self, chosen: ReplayFilter, tenant: str) -> ReplayEstimate:
        """What a replay with this filter would do now."""
        conditions = self._conditions(chosen, tenant, micros(now()))
        used = self._total_tokens()
        figures = select(
            func.count(),
            func.count(requests.c.job_id),
            func.coalesce(func.sum(case((KEPT, used))), 0),
            func.sum(case((and_(KEPT, used > 0), 1), else_=0)),
        ).select_from(WITH_REQUESTS.outerjoin(results, results.c.job_id == jobs.c.id))
        first = select(jobs.c.id).select_from(WITH_REQUESTS).where(*conditions, KEPT)
        first = first.order_by(jobs.c.created_at, jobs.c.id).limit(FIRST_IDS)
        async with self._database.read() as connection:
            count, kept, tokens, known = (await connection.execute(figures.where(*conditions))).one()
            ids = (await connection.execute(first)).scalars().all()
        return ReplayEstimate(
            count=kept,
            skipped=count - kept,
            estimated_tokens=round(int(tokens) * kept / int(known)) if known else None,
            first_job_ids=tuple(ids),
        )

    def _total_tokens(self) -> Any:
        """The tokens that a job has used."""
        usage = type_coerce(results.c.usage, JSON) if self._database.is_sqlite else cast(results.c.usage, JSON)
        return func.coalesce(usage["total_tokens"].as_integer(), 0)

    async def samples(self, chosen: ReplayFilter, tenant: str) -> Sequence[str]:
        """The stored requests of the first jobs that match, for ``check_overrides``."""
        query = select(requests.c.body).select_from(WITH_REQUESTS)
        query = query.where(*self._conditions(chosen, tenant, micros(now())), KEPT)
        async with self._database.read() as connection:
            found = await connection.execute(query.order_by(jobs.c.created_at, jobs.c.id).limit(SAMPLES))
            return found.scalars().all()

    async def create(self, replay: NewReplay) -> BatchHandle:
        """Store a replay, durably; its items are made by ``gather``. If the tenant has a batch with the same
        idempotency key, that one is returned. Raises IdempotencyMismatch, StorageError."""
        try:
            return await self._create(replay)
        except StorageRefused:
            if (found := await self.by_key(replay)) is None:
                raise
            return found  # another call with the same key was there a moment earlier

    async def by_key(self, replay: NewReplay) -> BatchHandle | None:
        """The tenant's batch with the replay's idempotency key. Raises IdempotencyMismatch."""
        async with self._database.single() as connection:
            return await existing(connection, replay.tenant, replay.idempotency_key, replay.body_hash)

    @retried
    async def _create(self, replay: NewReplay) -> BatchHandle:
        async with self._database.write() as connection:
            found = await existing(connection, replay.tenant, replay.idempotency_key, replay.body_hash)
            if found is None:
                await connection.execute(insert(batches).values(_row_of(replay, micros(now()))))
        return found or BatchHandle(replay.batch_id, replay.tenant, BatchStatus.QUEUED, created=True)

    # ------------------------------------------------------------------------------------------ its items

    async def gather(self, batch_id: str, policy: WebhookPolicy | None) -> bool:
        """Make the items of the next jobs of a replay's filter. Returns whether others may be left.

        Raises BatchNotFound, StorageError.
        """
        async with self._database.read() as connection:
            row = await runs.batch_row(connection, batch_id)
            if row.gather_after is None or row.completed_at is not None or row.cancel_requested_at is not None:
                return False
            found = await self._matching(connection, row)
            part = _part(found)
            keys = [job.id for job in part if job.size is not None]
            bodies = {body.job_id: body.body for body in (await connection.execute(BODIES, {"keys": keys})).all()}
        originals = [Original(job.id, job.model, job.metadata, bodies[job.id]) for job in part if job.id in bodies]
        items = await asyncio.to_thread(_items, row, originals, policy)
        last = len(part) == len(found) and len(found) < GATHERED_AT_ONCE
        place = None if last else json.dumps([part[-1].created_at, part[-1].id])
        await self._store(row, items, place, len(part) - len(items))
        return not last

    async def _matching(self, connection: AsyncConnection, row: Row[Any]) -> Sequence[_Found]:
        created_at, job_id = json.loads(row.gather_after)
        chosen = ReplayFilter.model_validate_json(row.filter)
        later = or_(jobs.c.created_at > created_at, and_(jobs.c.created_at == created_at, jobs.c.id > job_id))
        conditions = (*self._conditions(chosen, row.tenant, row.created_at), jobs.c.created_at >= created_at, later)
        columns = (jobs.c.id, jobs.c.created_at, jobs.c.model, jobs.c.metadata, func.length(requests.c.body))
        query = select(*columns).select_from(WITH_REQUESTS).where(*conditions)
        query = query.order_by(jobs.c.created_at, jobs.c.id).limit(GATHERED_AT_ONCE)
        return [_Found(*one) for one in (await connection.execute(query)).all()]

    @retried
    async def _store(self, row: Row[Any], items: Sequence[NewItem], place: str | None, skipped: int) -> None:
        """Store a step, unless somebody else did, or the replay was cancelled."""
        async with self._database.write("fast") as connection:
            locked = await runs.batch_row(connection, row.id, lock=True)
            if locked.gather_after != row.gather_after or locked.completed_at or locked.cancel_requested_at:
                return
            bodies = [{"job_id": item.job_id, "body": item.request_json} for item in items if item.request_json]
            if bodies:
                await connection.execute(REQUESTS, bodies)
            if items:
                await connection.execute(ITEMS, [item_row(row.id, item) for item in items])
            changes = {
                "total": locked.total + len(items),
                "gather_after": place,
                "skipped": locked.skipped + skipped,
                "progressed_at": micros(now()),
            }
            await connection.execute(update(batches).where(batches.c.id == row.id).values(changes))

    def _conditions(self, chosen: ReplayFilter, tenant: str, time: int) -> list[Any]:
        """The conditions on jobs that had ended at ``time`` (microseconds) and match."""
        equal = {
            jobs.c.status: chosen.status and chosen.status.value,
            jobs.c.error_code: chosen.error_code,
            jobs.c.model: chosen.model,
            jobs.c.batch_id: chosen.batch_id,
        }
        found = [jobs.c.tenant == tenant, jobs.c.completed_at <= time]
        found += [column == clean(value) for column, value in equal.items() if value is not None]
        found += [self._has(key, value) for key, value in clean_json(dict(chosen.metadata)).items()]
        if chosen.since is not None:
            found.append(jobs.c.created_at >= micros(chosen.since))
        if chosen.until is not None:
            found.append(jobs.c.created_at < micros(chosen.until))
        return found

    def _has(self, key: str, value: str) -> Any:
        """A condition on metadata. SQLite's JSON paths cannot express every key."""
        if not self._database.is_sqlite:
            return jobs.c.metadata[key].as_string() == value
        pairs = func.json_each(jobs.c.metadata).table_valued("key", "value")
        return select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists()

    # ------------------------------------------------------------------------------------------- its bound

    @retried
    async def judge_canary(self, batch_id: str) -> CanaryVerdict:
        """Let the rest of a replay follow its canary, or stop the replay, once all jobs of the canary have ended.

        Raises BatchNotFound.
        """
        async with self._database.write() as connection:
            row = await runs.batch_row(connection, batch_id, lock=True)
            end = min(row.canary or 0, row.total)
            if row.phase != "canary" or row.completed_at is not None or row.cancel_requested_at is not None:
                return CanaryVerdict(end)
            failed, ended, still_open = await _outcomes(connection, batch_id, 0, end)
            if still_open:
                return CanaryVerdict(end, still_open)
            if ended and failed / ended > row.max_error_rate:
                await _stop(connection, row, f"{failed} of the {ended} jobs of the canary failed")
            else:
                changes = {"phase": "rest", "progressed_at": micros(now())}
                await connection.execute(update(batches).where(batches.c.id == batch_id).values(changes))
        return CanaryVerdict(end)

    @retried
    async def judge(self, batch_id: str, first: int, end: int) -> None:
        """Stop a replay if too many of the jobs that ended last have failed: those of this part, all of which have
        ended, and of the parts before it."""
        async with self._database.write("fast") as connection:
            row = await runs.batch_row(connection, batch_id, lock=True)
            if row.max_error_rate is None or row.phase == "canary" or row.cancel_requested_at is not None:
                return
            failed, ended, _ = await _outcomes(connection, batch_id, first, end)
            parts = [part for part in json.loads(row.judged or "[]") if part[0] != first]
            parts = _last([*parts, [first, failed, ended]])
            await connection.execute(update(batches).where(batches.c.id == batch_id).values(judged=json.dumps(parts)))
            failed, ended = sum(part[1] for part in parts), sum(part[2] for part in parts)
            if ended >= FEWEST_JUDGED and failed / ended > row.max_error_rate:
                await _stop(connection, row, f"{failed} of the last {ended} jobs failed")


def _row_of(replay: NewReplay, time: int) -> dict[str, Any]:
    asked = replay.request
    bound = asked.max_error_rate
    return {
        "id": replay.batch_id,
        "tenant": replay.tenant,
        "name": clean(asked.name) if asked.name else None,
        "idempotency_key": replay.idempotency_key,
        "body_hash": replay.body_hash,
        "status": BatchStatus.QUEUED.value,
        "webhook": asked.webhook.model_dump_json() if asked.webhook else None,
        "concurrency": asked.concurrency,
        "lane": "live",
        "total": 0,
        "prepared": 0,
        "tally": BatchTally().json(),
        "created_at": time,
        "progressed_at": time,
        "revision": 1,
        "kind": "replay",
        "filter": asked.filter.model_dump_json(exclude_defaults=True),
        "overrides": json.dumps(clean_json(asked.overrides)),
        "canary": asked.canary,
        "max_error_rate": USUAL_ERROR_RATE if bound is None and asked.canary is not None else bound,
        "phase": "rest" if asked.canary is None else "canary",
        "gather_after": json.dumps(BEGINNING),
        "skipped": 0,
    }


def _part(found: Sequence[_Found]) -> Sequence[_Found]:
    """The first of some jobs whose requests fit in memory together; one at least, if there are any."""
    characters = 0
    for number, job in enumerate(found):
        characters += job.size or 0
        if characters > LARGEST_STEP and number:
            return found[:number]
    return found


def _items(row: Row[Any], originals: Sequence[Original], policy: WebhookPolicy | None) -> list[NewItem]:
    """Runs in a thread: a request takes some hundred microseconds."""
    changes = json.loads(row.overrides)
    return [replay_item(one, number, row.id, changes, policy) for number, one in enumerate(originals, row.total)]


async def _outcomes(connection: AsyncConnection, batch_id: str, first: int, end: int) -> tuple[int, int, int]:
    """Of a part of the items: the jobs that failed, those that failed or have an answer, and those that are open."""
    rows = (await connection.execute(OUTCOMES, {"key": batch_id, "first": first, "end": end})).all()
    found = {JobStatus(status): count for status, count in rows}
    still_open = sum(count for status, count in found.items() if not status.terminal)
    ended = sum(found.values()) - still_open - found.get(JobStatus.CANCELLED, 0)
    return found.get(JobStatus.FAILED, 0), ended, still_open


def _last(parts: list[list[int]]) -> list[list[int]]:
    """The last parts, as many as have JUDGED jobs together."""
    while len(parts) > 1 and sum(part[2] for part in parts[1:]) >= JUDGED:
        parts = parts[1:]
    return parts


async def _stop(connection: AsyncConnection, row: Row[Any], what: str) -> None:
    message = f"{what}, more than maxErrorRate {row.max_error_rate:g} allows; resume it to go on all the same"
    await runs.request_cancel(connection, row, JobError(code=ERROR_RATE, message=message))
