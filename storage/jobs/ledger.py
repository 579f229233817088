"""The ledger of a job's attempts: closes the open one, and sums up those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, and_, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import ChatRequest, ErrorCause, Usage
from domain.estimates import prompt_tokens
from domain.outcomes import UNNOTICED, AttemptOutcome, broke_off, is_failure
from domain.text import clean
from domain.values import OK, AttemptEnd, AttemptHistory, Stretch
from storage.engine.schema import attempts, micros, now
from storage.jobs.rows import REQUEST


async def close_open_attempts(connection: AsyncConnection, row: Row[Any], end: AttemptEnd) -> None:
    """Close the attempts that are still open, normally one. Their usage is estimated where ``end`` does not have it."""
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
    """Columns that keep earlier versions, which do not know the outcome, from counting the attempt as a failure."""
    return {"excused": True} if outcome in (AttemptOutcome.FROZEN, AttemptOutcome.TOPPED_UP) else {}


async def _estimated(connection: AsyncConnection, job_id: str, before: int, tokens: int, *, answered: bool) -> Usage:
    """An estimate of a call's usage, with one token for each delta of the text that it continued. A call that was not
    ``answered`` counts as none."""
    body = await connection.scalar(REQUEST, {"key": job_id}) if answered else None
    prompt = prompt_tokens(ChatRequest.model_validate_json(body)) + before if body else 0
    return Usage(prompt_tokens=prompt, completion_tokens=tokens, total_tokens=prompt + tokens)


async def history(
    connection: AsyncConnection, row: Row[Any], number: int, model: str, *, since: int = 0
) -> AttemptHistory:
    """The attempts before ``number``, which calls ``model``, summed up. ``since`` (microseconds): when the job began,
    or was resumed."""
    if number == 1:
        return AttemptHistory()
    query = select(attempts).where(attempts.c.job_id == row.id, attempts.c.number < number)
    before = (await connection.execute(query.order_by(attempts.c.number))).all()
    found = [str(attempt.outcome) for attempt in before]
    starts = [*(attempt.tokens_before for attempt in before), row.token_count]
    epoch = max(place for place, start in enumerate(starts) if start == 0 or place == 0)
    ends = [place for place in range(epoch, len(found)) if found[place] == AttemptOutcome.SEGMENT]
    present = ends[-1] + 1 if ends else epoch
    moved, furthest = _moved([(str(one.outcome), one.tokens_before, one.position or 0) for one in before])
    first = _first_call(before, model)
    own = before[first:]
    here = [one for one in before[max(moved or 0, first) :] if not one.excused]
    messages = [(attempt.outcome, attempt.message) for attempt in before if attempt.message]
    return AttemptHistory(
        failures=sum(is_failure(str(one.outcome)) for one in own if not one.excused),
        here=sum(is_failure(str(attempt.outcome)) for attempt in here),
        breaks=sum(broke_off(str(one.outcome), began=one.first_token_ms is not None) for one in here),
        furthest=furthest,
        cause=ErrorCause(code=messages[-1][0], message=messages[-1][1]) if messages else None,
        empties=sum(one.outcome == AttemptOutcome.EMPTY for one in own if not one.excused),
        segments=len(ends),
        segment_tokens=row.token_count - (starts[ends[-1] + 1] if ends else 0),
        stretches=tuple(_stretches(before[epoch:], starts[epoch:], present - epoch)),
        topped_up=AttemptOutcome.TOPPED_UP in found[present:],
        total_tokens=sum(Usage.model_validate_json(one.usage).total_tokens for one in before if one.usage),
        estimated=sum(one.estimated for one in before),
        stuck_since=_stuck_since(before, moved, first, since),
        other_model=any(one.model not in (None, model) for one in before[epoch:]),
        mismatches=sum(one.outcome == AttemptOutcome.SCHEMA_MISMATCH for one in before if not one.excused),
    )


def _first_call(before: Sequence[Row[Any]], model: str) -> int:
    """The place of the first of the last attempts in a row that called ``model``. Those of earlier versions do not say
    what they called: all of a job called the same."""
    return next((place for place in range(len(before), 0, -1) if before[place - 1].model not in (None, model)), 0)


def _stuck_since(before: Sequence[Row[Any]], moved: int | None, first: int, since: int) -> int | None:
    """See AttemptHistory. ``moved``: the place of the last attempt that moved on, ``first``: of the model's first;
    those that began before ``since`` are of the job before it was resumed."""
    for place in range(max(moved or 0, first), len(before)):
        one = before[place]
        if one.started_at < since:
            continue
        if is_failure(str(one.outcome)) or one.outcome == AttemptOutcome.RATE_LIMITED:
            return int(one.ended_at if place == moved else one.started_at)
    return None


def _stretches(attempts: Sequence[Row[Any]], starts: Sequence[int], present: int) -> Iterator[Stretch]:
    """The stretches that the attempts of an epoch wrote. ``starts``: the token count before each, and that after the
    last. ``present``: the place of the first attempt of the present segment."""
    position = 0
    for place, one in enumerate(attempts):
        end, deltas = max(one.position or 0, position), starts[place + 1] - starts[place]
        counted = Usage.model_validate_json(one.usage).completion_tokens if one.usage else 0
        exact, whole = (
            counted > 0 and not one.estimated,
            one.outcome in (AttemptOutcome.SEGMENT, AttemptOutcome.TOPPED_UP),
        )
        yield Stretch(
            start=position,
            end=end,
            deltas=deltas,
            # A count during the stream is in the deltas already; tokens beyond it are not part of the text.
            tokens=(counted if whole else deltas) if exact else None,
            most=counted if counted and not exact and one.outcome not in UNNOTICED else None,
            closed=place < present,
        )
        position = end


def _moved(before: Sequence[tuple[str, int, int]]) -> tuple[int | None, int]:
    """The place of the last attempt that moved on (see AttemptHistory), and the furthest position of all. Each attempt
    is given by its outcome, its token count at the start and its position at the end."""
    moved, furthest = None, 0
    for place, (outcome, start, end) in enumerate(before):
        if end > furthest:
            if outcome != AttemptOutcome.INTERNAL and (start or not furthest):
                moved = place
            furthest = end
    return moved, furthest


async def is_called(connection: AsyncConnection, row: Row[Any]) -> bool:
    """Whether an attempt at the job is open."""
    is_open = and_(attempts.c.job_id == row.id, attempts.c.ended_at.is_(None))
    return row.attempt > 0 and await connection.scalar(select(attempts.c.number).where(is_open).limit(1)) is not None


async def lost_in_a_row(connection: AsyncConnection, row: Row[Any]) -> int:
    """Number of attempts since the last that moved on whose worker died, including one that is still open."""
    query = select(attempts).where(attempts.c.job_id == row.id).order_by(attempts.c.number)
    before = (await connection.execute(query)).all()
    ends = [row.position if one.ended_at is None else one.position or 0 for one in before]
    moved, _ = _moved([(str(one.outcome), one.tokens_before, end) for one, end in zip(before, ends, strict=True)])
    after = before if moved is None else before[moved + 1 :]
    return sum((one.outcome == AttemptOutcome.LOST or one.ended_at is None) and not one.excused for one in after)
