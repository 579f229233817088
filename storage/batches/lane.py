"""The items of a batch on their way through batch jobs of the model's server: which to send, which await a result."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import bindparam, exists, func, select

from chatjobs.contracts import ChatRequest
from domain.ports import BatchLine
from domain.text import clean
from storage.engine.database import Database
from storage.engine.schema import batch_items, batches, jobs, moment, repairs, requests
from storage.rate_limits import pauses

READ_AT_ONCE = 200
"""Requests that are in memory at once."""

_OPEN = (jobs.c.completed_at.is_(None), jobs.c.cancel_requested_at.is_(None), jobs.c.batched)
_UNSENT = (
    batch_items.c.batch_id == bindparam("key"),
    batch_items.c.number >= bindparam("first"),
    batch_items.c.number < bindparam("end"),
    jobs.c.attempt == 0,  # what a live call has begun goes on as one
    *_OPEN,
)
_ITEM_JOBS = batch_items.join(jobs, jobs.c.id == batch_items.c.job_id)
MODELS = select(jobs.c.model).select_from(_ITEM_JOBS).where(*_UNSENT).distinct().order_by(jobs.c.model)
LINES = (
    select(batch_items.c.number, jobs.c.id, requests.c.body)
    .select_from(_ITEM_JOBS.join(requests, requests.c.job_id == jobs.c.id))
    .where(*_UNSENT, jobs.c.model == bindparam("model"))
    .order_by(batch_items.c.number)
    .limit(READ_AT_ONCE)
)
PENDING = (
    select(jobs.c.id, jobs.c.model, requests.c.body)
    .select_from(jobs.join(requests, requests.c.job_id == jobs.c.id))
    .where(jobs.c.id.in_(bindparam("keys", expanding=True)), jobs.c.batch_id == bindparam("key"), *_OPEN)
    # The result of a job that is being repaired was taken: a second look at it would use up the repair.
    .where(~exists().where(repairs.c.job_id == jobs.c.id))
)
LEFT = select(jobs.c.model, func.count()).where(jobs.c.batch_id == bindparam("key"), *_OPEN).group_by(jobs.c.model)
CREATED = select(batches.c.created_at).where(batches.c.id == bindparam("key"))
TENANT = select(batches.c.tenant).where(batches.c.id == bindparam("key"))


class BatchLaneStore:
    """What is read for the lane of batch jobs; attempts and seals write."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def created_at(self, batch_id: str) -> datetime | None:
        """When a batch was created; None if it is gone."""
        async with self._database.single() as connection:
            found = await connection.scalar(CREATED, {"key": batch_id})
        return None if found is None else moment(found)

    async def models(self, batch_id: str, first: int, end: int) -> Collection[str]:
        """The models of a part of the items, of those whose model has not been called."""
        async with self._database.single() as connection:
            values = {"key": batch_id, "first": first, "end": end}
            return (await connection.execute(MODELS, values)).scalars().all()

    async def is_held(self, batch_id: str, lane: str) -> bool:
        """Whether a pause of a lane of live calls, of the batch's tenant or of everybody concerns the batch."""
        async with self._database.read() as connection:
            tenant = await connection.scalar(TENANT, {"key": batch_id})
            return tenant is not None and await pauses.holds(connection, lane, tenant)

    async def lines(self, batch_id: str, first: int, end: int, model: str) -> AsyncGenerator[BatchLine, None]:
        """The requests of these items, in order; of a request that this version does not know, nothing."""
        while True:
            async with self._database.single() as connection:
                values = {"key": batch_id, "first": first, "end": end, "model": model}
                rows = (await connection.execute(LINES, values)).all()
            for row in rows:
                if (request := _request(row.body)) is not None:
                    yield BatchLine(row.id, request)
            if len(rows) < READ_AT_ONCE:
                return
            first = rows[-1].number + 1

    async def pending(self, batch_id: str, job_ids: Collection[str]) -> Mapping[str, ChatRequest]:
        """The requests of those jobs of a batch that have no outcome yet."""
        async with self._database.single() as connection:
            values = {"key": batch_id, "keys": [clean(job_id) for job_id in job_ids]}
            rows = (await connection.execute(PENDING, values)).all()
        found = {row.id: (row.model, _request(row.body)) for row in rows}
        # The result of a job that another model has taken over was taken: it says nothing about that model.
        return {
            job_id: request
            for job_id, (model, request) in found.items()
            if request is not None and (request.model == model or not request.fallback_models)
        }

    async def left(self, batch_id: str) -> Mapping[str, int]:
        """The number of jobs that have no outcome yet, by model."""
        async with self._database.single() as connection:
            rows = (await connection.execute(LEFT, {"key": batch_id})).all()
        return {row[0]: row[1] for row in rows}


def _request(body: str) -> ChatRequest | None:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError:
        return None
