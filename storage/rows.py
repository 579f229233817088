"""Statements on a job's row and on its ledger that more than one page of this room needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Usage
from chatjobs.errors import JobNotFound
from storage.schema import attempts, jobs, micros, now, transcript
from storage.text import clean
from storage.values import AttemptEnd

# Built once: making a statement costs as much as running it, and these run for every job.
LOCKED = select(jobs).where(jobs.c.id == bindparam("key")).with_for_update()
CHANGED = update(jobs).where(jobs.c.id == bindparam("key"))
"""Executed with ``key`` and the columns to set."""


def by_id(job_id: str, tenant: str | None) -> Any:
    query = select(jobs).where(jobs.c.id == clean(job_id))  # an id that no database takes is nobody's
    return query.where(jobs.c.tenant == tenant) if tenant is not None else query


async def locked(connection: AsyncConnection, job_id: str, tenant: str | None = None) -> Row[Any]:
    row = (await connection.execute(LOCKED, {"key": clean(job_id)})).first()
    if row is None or tenant not in (None, row.tenant):
        raise JobNotFound
    return row


async def store_tail(connection: AsyncConnection, row: Row[Any]) -> None:
    """Put the row's tail, which its caller takes out of it, where the older text is: a new writer starts without."""
    if row.tail:
        await connection.execute(
            insert(transcript).values(
                job_id=row.id,
                epoch=row.epoch,
                position=row.position,
                channel=row.tail_channel,
                text=row.tail,
                token_count=row.token_count,
            )
        )


async def close_open_attempts(connection: AsyncConnection, row: Row[Any], end: AttemptEnd) -> None:
    """End the attempt that is still open; normally there is one. What it used is estimated, one delta for one token."""
    is_open = and_(attempts.c.job_id == row.id, attempts.c.ended_at.is_(None))
    for number, before in (
        await connection.execute(select(attempts.c.number, attempts.c.tokens_before).where(is_open))
    ).all():
        usage = Usage(completion_tokens=max(0, row.token_count - before), total_tokens=max(0, row.token_count - before))
        await connection.execute(
            update(attempts)
            .where(is_open, attempts.c.number == number)
            .values(
                ended_at=micros(now()),
                outcome=clean(end.outcome)[:64],
                http_status=end.http_status,
                first_token_ms=end.first_token_ms,
                tokens_per_second=end.tokens_per_second,
                estimated=True,
                usage=usage.model_dump_json(),
            )
        )


async def outcomes(connection: AsyncConnection, job_id: str) -> Sequence[str]:
    """The outcomes of all attempts so far, in order."""
    query = select(attempts.c.outcome).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [str(outcome) for outcome in (await connection.execute(query)).scalars()]
