"""Statements on a job's row and on its ledger that more than one page of this room needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import ChatRequest, ErrorCause, Usage
from chatjobs.errors import JobNotFound
from domain.estimates import prompt_tokens
from domain.text import clean
from domain.values import FROZEN, LOST, OK, SEGMENT, TAKEN_OVER, TOPPED_UP, AttemptEnd, AttemptHistory, Stretch
from storage.engine.schema import attempts, jobs, micros, now, requests, transcript

# Built once: making a statement costs as much as running it, and these run for every job.
LOCKED = select(jobs).where(jobs.c.id == bindparam("key")).with_for_update()
CHANGED = update(jobs).where(jobs.c.id == bindparam("key"))
"""Executed with ``key`` and the columns to set."""
REQUEST = select(requests.c.body).where(requests.c.job_id == bindparam("key"))

EMPTY = "upstream_empty"
"""The outcome of an attempt that brought nothing at all."""
INTERNAL = "internal"
"""The outcome of an attempt in which this service itself went wrong."""
SILENCE = frozenset({"first_token_timeout", "stall_timeout"})
CUT = "upstream_cut"


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
        tokens = written if end.tokens is None else end.tokens
        usage = end.usage or await _estimated(connection, row.id, before, tokens, answered=answered)
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
                position=row.position,
                message=end.message,
                **excuse(end.outcome),
            )
        )


def excuse(outcome: str) -> dict[str, bool]:
    """Columns of an attempt that keep earlier versions, which do not know its outcome, from taking it for a failure."""
    return {"excused": True} if outcome in (FROZEN, TOPPED_UP) else {}


async def _estimated(connection: AsyncConnection, job_id: str, before: int, tokens: int, *, answered: bool) -> Usage:
    """One delta of the text that the call went on from is one token. A call that was refused, or of which nothing is
    known, used nothing that we can tell."""
    body = await connection.scalar(REQUEST, {"key": job_id}) if answered else None
    prompt = prompt_tokens(ChatRequest.model_validate_json(body)) + before if body else 0
    return Usage(prompt_tokens=prompt, completion_tokens=tokens, total_tokens=prompt + tokens)


def broke_off(outcome: str, *, began: bool) -> bool:
    """Whether an attempt with this outcome is an answer that was paid for. ``began``: the model had said something."""
    return outcome in SILENCE or (outcome == CUT and began)


async def past(
    connection: AsyncConnection, row: Row[Any], number: int, failed: Callable[[str], bool]
) -> AttemptHistory:
    """What the ledger says of the attempts before ``number``; ``failed`` tells which outcomes are real failures."""
    if number == 1:
        return AttemptHistory()
    query = select(attempts).where(attempts.c.job_id == row.id, attempts.c.number < number)
    before = (await connection.execute(query.order_by(attempts.c.number))).all()
    found = [str(attempt.outcome) for attempt in before]
    starts = [*(attempt.tokens_before for attempt in before), row.token_count]
    epoch = max(place for place, start in enumerate(starts) if start == 0 or place == 0)
    ends = [place for place in range(epoch, len(found)) if found[place] == SEGMENT]
    present = ends[-1] + 1 if ends else epoch
    moved, furthest = _moved([(str(one.outcome), one.tokens_before, one.position or 0) for one in before])
    here = [one for one in (before[moved:] if moved is not None else before) if not one.excused]
    messages = [(attempt.outcome, attempt.message) for attempt in before if attempt.message]
    return AttemptHistory(
        failures=sum(failed(str(one.outcome)) for one in before if not one.excused),
        here=sum(failed(str(attempt.outcome)) for attempt in here),
        breaks=sum(broke_off(str(one.outcome), began=one.first_token_ms is not None) for one in here),
        lost=sum(attempt.outcome == LOST for attempt in (before if moved is None else before[moved + 1 :])),
        furthest=furthest,
        cause=ErrorCause(code=messages[-1][0], message=messages[-1][1]) if messages else None,
        empties=found.count(EMPTY),
        segments=len(ends),
        segment_tokens=row.token_count - (starts[ends[-1] + 1] if ends else 0),
        stretches=tuple(_stretches(before[epoch:], starts[epoch:], present - epoch)),
        topped_up=TOPPED_UP in found[present:],
        total_tokens=sum(Usage.model_validate_json(one.usage).total_tokens for one in before if one.usage),
        estimated=sum(one.estimated for one in before),
    )


def _stretches(attempts: Sequence[Row[Any]], starts: Sequence[int], present: int) -> Iterator[Stretch]:
    """What the attempts of an epoch wrote; ``starts`` are their token counts before it, and the last one's after.
    ``present``: the first of those in the segment that is not over."""
    position = 0
    for place, one in enumerate(attempts):
        end, deltas = max(one.position or 0, position), starts[place + 1] - starts[place]
        counted = Usage.model_validate_json(one.usage).completion_tokens if one.usage else 0
        exact, whole = counted > 0 and not one.estimated, one.outcome in (SEGMENT, TOPPED_UP)
        yield Stretch(
            start=position,
            end=end,
            deltas=deltas,
            # Counted while it came, the count is in the text's own; what else the call used is no part of it.
            tokens=(counted if whole else deltas) if exact else None,
            most=counted if counted and not exact and one.outcome not in (LOST, FROZEN, TAKEN_OVER) else None,
            closed=place < present,
        )
        position = end


def _moved(before: Sequence[tuple[str, int, int]]) -> tuple[int | None, int]:
    """Which attempt was the last that moved on, and the furthest position of all (see values.Past), from the outcome,
    the token count at the start and the position at the end of each."""
    moved, furthest = None, 0
    for place, (outcome, start, end) in enumerate(before):
        if end > furthest:
            if outcome != INTERNAL and (start or not furthest):
                moved = place
            furthest = end
    return moved, furthest


async def lost_in_a_row(connection: AsyncConnection, row: Row[Any]) -> int:
    """How many attempts since the last that moved on have ended with their worker, an open one among them."""
    query = select(attempts).where(attempts.c.job_id == row.id).order_by(attempts.c.number)
    before = (await connection.execute(query)).all()
    ends = [row.position if one.ended_at is None else one.position or 0 for one in before]
    moved, _ = _moved([(str(one.outcome), one.tokens_before, end) for one, end in zip(before, ends, strict=True)])
    after = before if moved is None else before[moved + 1 :]
    return sum(one.outcome == LOST or one.ended_at is None for one in after)
