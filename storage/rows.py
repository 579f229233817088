"""Statements on a job's row and on its ledger that more than one page of this room needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import ChatRequest, Usage
from chatjobs.errors import JobNotFound
from storage.estimates import prompt_tokens
from storage.schema import attempts, jobs, micros, now, requests, transcript
from storage.text import clean
from storage.values import OK, SEGMENT, AttemptEnd, Past

# Built once: making a statement costs as much as running it, and these run for every job.
LOCKED = select(jobs).where(jobs.c.id == bindparam("key")).with_for_update()
CHANGED = update(jobs).where(jobs.c.id == bindparam("key"))
"""Executed with ``key`` and the columns to set."""
REQUEST = select(requests.c.body).where(requests.c.job_id == bindparam("key"))

EMPTY = "upstream_empty"
"""The outcome of an attempt that brought nothing at all."""


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
    """End the attempt that is still open; normally there is one. What it used is estimated, unless ``end`` knows."""
    is_open = and_(attempts.c.job_id == row.id, attempts.c.ended_at.is_(None))
    if not end.called:
        await connection.execute(delete(attempts).where(is_open))
        return
    for number, before in (
        await connection.execute(select(attempts.c.number, attempts.c.tokens_before).where(is_open))
    ).all():
        written = max(0, row.token_count - before)
        status = end.http_status or (OK if written else None)
        answered = written > 0 or status == OK
        usage = end.usage or await _estimated(connection, row.id, before, written, answered=answered)
        await connection.execute(
            update(attempts)
            .where(is_open, attempts.c.number == number)
            .values(
                ended_at=micros(now()),
                outcome=clean(end.outcome)[:64],
                http_status=status,
                first_token_ms=end.first_token_ms,
                tokens_per_second=end.tokens_per_second,
                estimated=end.usage is None and (answered or status is None),
                usage=usage.model_dump_json(),
            )
        )


async def _estimated(connection: AsyncConnection, job_id: str, before: int, written: int, *, answered: bool) -> Usage:
    """One delta is one token, and so is one of the text that the call went on from. A call that was refused, or of
    which nothing is known, used nothing that we can tell."""
    body = await connection.scalar(REQUEST, {"key": job_id}) if answered else None
    prompt = prompt_tokens(ChatRequest.model_validate_json(body)) + before if body else 0
    return Usage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


async def past(connection: AsyncConnection, row: Row[Any], number: int, failed: Callable[[str], bool]) -> Past:
    """What the ledger says of the attempts before ``number``; ``failed`` tells which outcomes are real failures."""
    if number == 1:
        return Past()
    columns = (attempts.c.outcome, attempts.c.usage, attempts.c.tokens_before)
    query = select(*columns).where(attempts.c.job_id == row.id, attempts.c.number < number)
    before = (await connection.execute(query.order_by(attempts.c.number))).all()
    found = [str(attempt.outcome) for attempt in before]
    starts = [*(attempt.tokens_before for attempt in before), row.token_count]
    epoch = max(place for place, start in enumerate(starts) if start == 0 or place == 0)
    ends = [place for place in range(epoch, len(found)) if found[place] == SEGMENT]
    return Past(
        failures=sum(map(failed, found)),
        empties=found.count(EMPTY),
        segments=len(ends),
        segment_tokens=row.token_count - (starts[ends[-1] + 1] if ends else 0),
        total_tokens=sum(Usage.model_validate_json(one.usage).total_tokens for one in before if one.usage),
    )
