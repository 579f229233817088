"""Attempts at a job: claimed, read, restarted, ended."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import ChatRequest, JobStatus, Usage
from chatjobs.errors import ChatJobsError, JobNotFound
from domain import fallback
from domain.batches import limits_queue
from domain.errors import FenceLost
from domain.outcomes import AttemptOutcome
from domain.text import clean
from domain.tokens import RequestSize, Sample, request_size
from domain.values import AttemptEnd, Claim, Claimant, FinishRecord, Reservation, TextRun
from storage.engine.database import Database, retried
from storage.engine.group_commit import Group
from storage.engine.schema import attempts, jobs, micros, now, requests, results, transcript
from storage.jobs import delays, mapping, repairs, sealing
from storage.jobs.ledger import close_open_attempts, excuse, history, lost_in_a_row
from storage.jobs.rows import CHANGED, LOCKED_ALL, REQUEST, by_id, locked, queue_end, store_tail
from storage.rate_limits import lane_queue
from storage.rate_limits.limiter import Reserve

SAMPLES_AMONG = 200
"""The most recently ended jobs, which are searched for samples of a model."""
MOST_SAMPLES = 8
LONGEST_SAMPLE = 16_384
"""Characters: a longer text tells no more about its tokens."""

REQUESTS = select(requests).where(requests.c.job_id.in_(bindparam("keys", expanding=True)))
ATTEMPTS = insert(attempts)
JOINED = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("key"), attempts.c.number == bindparam("its_number"))
    .values(confirmed=bindparam("how"))
)
CANCELS = select(jobs.c.id).where(
    jobs.c.id.in_(bindparam("keys", expanding=True)), jobs.c.cancel_requested_at.is_not(None)
)
_LATELY = (
    select(jobs.c.id)
    .where(jobs.c.completed_at.is_not(None))
    .order_by(jobs.c.completed_at.desc())
    .limit(SAMPLES_AMONG)
    .scalar_subquery()
)
SAMPLES = (
    select(jobs.c.token_count, attempts.c.usage, results.c.content, results.c.reasoning)
    .join(results, results.c.job_id == jobs.c.id)
    .join(attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt))
    .where(jobs.c.id.in_(_LATELY), jobs.c.model == bindparam("model"), jobs.c.token_count > 0)
    .where(
        attempts.c.outcome == AttemptOutcome.FINISHED.value,
        attempts.c.estimated.is_(False),
        attempts.c.tokens_before == 0,
        attempts.c.first_token_ms.is_not(None),  # an answer that came whole does not show its server's deltas
    )
    .where(results.c.tool_calls.is_(None), results.c.parts.is_(None))
    .where(func.length(results.c.content) + func.length(results.c.reasoning) <= LONGEST_SAMPLE)
    .order_by(jobs.c.completed_at.desc())
    .limit(MOST_SAMPLES)
)


class _ClaimOrder(NamedTuple):
    """The arguments of ``AttemptStore.claim``."""

    job_id: str
    fence: int
    claimant: str
    run_id: str
    reserve: Reserve | None
    tries: int
    reopens: bool


class _Begun:
    """The attempts that a transaction begins, stored with a statement for all of them at each step."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._jobs: dict[str, dict[str, Any]] = {}
        self._attempts: list[dict[str, Any]] = []
        self._ids: set[str] = set()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._ids

    async def add(
        self, row: Row[Any], order: _ClaimOrder, model: str, started: int, time: int, turn: Reservation | None
    ) -> None:
        number = row.attempt + 1
        self._ids.add(row.id)
        self._jobs[row.id] = {
            "key": row.id,
            "fence": order.fence,
            "claimant": order.claimant,
            "attempt": number,
            "model": model,
            "status": JobStatus.IN_PROGRESS.value,
            "workflow_started_at": row.workflow_started_at or time,
            "started_at": started,
            "begun": row.revision,
            "progressed_at": time,
            "queue_until": None,
            "tail": "",
        }
        await store_tail(self._connection, row)
        if row.attempt:
            await close_open_attempts(self._connection, row, AttemptEnd(AttemptOutcome.LOST))
        first = {"job_id": row.id, "number": number, "started_at": time, "tokens_before": row.token_count}
        call = turn if turn is not None and turn.granted else None
        places = {"lane": call.lane if call else None, "worker": call.worker if call else None}
        self._attempts.append(first | {"estimated": False, "model": model, "epoch": row.epoch} | places)
        if call is not None and call.counts:  # the next reservation in this transaction has to see it
            await self.store()

    async def store(self) -> None:
        if self._jobs:
            await self._connection.execute(CHANGED, list(self._jobs.values()))
            await self._connection.execute(ATTEMPTS, self._attempts)
        self._jobs, self._attempts = {}, []


class AttemptStore:
    """What attempts write and read, each under the fence that it claimed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claiming: Group[_ClaimOrder, tuple[Claim, str]] = Group(self._claim_all)

    async def claim(
        self,
        job_id: str,
        *,
        fence: int,
        claimant: str,
        run_id: str,
        reserve: Reserve | None = None,
        tries: int = sys.maxsize,
        reopens: bool = True,
    ) -> Claim:
        """Claim a job for an attempt, unless a later attempt has it. The claims of one moment share a transaction.

        ``fence`` grows over all attempts of a job, also across Resets. ``claimant`` is unique to the caller, so that
        it may repeat the call after a lost answer. ``reserve`` says when the job may call the model; where that is
        later, nothing is claimed. ``tries``: attempts before this one as Temporal counts them, so that workers that
        died before an operator's Reset do not count. ``reopens``: a failed job that another workflow run sealed is
        reopened. Raises JobNotFound (also where the request was not kept), FenceLost, StorageError.
        """
        self._database.not_writing()
        order = _ClaimOrder(clean(job_id), fence, claimant, run_id, reserve, tries, reopens)
        claim, body = await self._claiming.add(order)
        if claim.outcome != "taken":
            return claim
        # After the commit: if parsing this request kills the process, the ledger already has the attempt.
        request = ChatRequest.model_validate_json(body)
        if request.model != claim.model:
            request = request.model_copy(update={"model": claim.model})
        return replace(claim, request=request)

    @retried
    async def _claim_all(self, group: Sequence[_ClaimOrder]) -> Sequence[tuple[Claim, str] | ChatJobsError]:
        """Claim jobs, each returned with its request as JSON."""
        keys = {"keys": sorted({order.job_id for order in group})}
        async with self._database.write("fast") as connection:
            rows = {row.id: row for row in (await connection.execute(LOCKED_ALL, keys)).all()}
            bodies = {row.job_id: row.body for row in (await connection.execute(REQUESTS, keys)).all()}
            outcomes: list[tuple[Claim, str] | ChatJobsError] = []
            begun = _Begun(connection)
            for order in group:
                if order.job_id in begun:  # a second claim of the job, which has to see the first one
                    await begun.store()
                    rows[order.job_id] = await locked(connection, order.job_id)
                try:
                    row = rows.get(order.job_id)
                    outcomes.append(await self._claim(connection, row, bodies.get(order.job_id), order, begun))
                except (JobNotFound, FenceLost) as error:
                    outcomes.append(error)
            await begun.store()
        return outcomes

    async def _claim(
        self, connection: AsyncConnection, row: Row[Any] | None, body: str | None, order: _ClaimOrder, begun: _Begun
    ) -> tuple[Claim, str]:
        if row is None:
            raise JobNotFound
        await sealing.adopt(connection, row, order.run_id)
        if order.reopens and sealing.reopens(row, order.run_id):
            await sealing.reopen(connection, row)
            row = await locked(connection, order.job_id)
        found = _nothing_to_do(row)
        if found:
            return _without_attempt(row, found, order.fence)
        if row.fence > order.fence or (row.fence == order.fence and row.claimant != order.claimant):
            raise FenceLost
        if row.fence < order.fence and await _lost_too_often(connection, row, order.tries):
            return _without_attempt(row, "worker_lost", order.fence)
        if body is None:
            raise JobNotFound("The job's request was not kept")
        return await self._take(connection, row, body, order, begun)

    async def _take(
        self, connection: AsyncConnection, row: Row[Any], body: str, order: _ClaimOrder, begun: _Begun
    ) -> tuple[Claim, str]:
        """Claim an open job, unless its turn is later or its time in the queue is over."""
        if _queue_seconds_left(row, body, micros(now())) <= 0:
            return _without_attempt(row, "expired", order.fence)
        if (ahead := await delays.seconds_ahead(self._database, connection, row)) > 0:
            return _without_attempt(row, "early", order.fence, seconds=ahead)
        who = (row.id, row.tenant, row.priority, row.created_at)
        asker = Claimant(*who, returns=row.attempt > 0, stays=row.batched, size=partial(request_size, body))
        model, turn = await _turn(connection, row, body, order.reserve, asker)
        size = asker.size() if turn is not None and turn.budget is not None else RequestSize()
        asker = replace(asker, size=lambda: size)  # without the whole body, which it would keep in memory
        time = micros(now())
        if turn is not None and not turn.granted:
            left = _seconds_left(row, body, time)
            if left > 0:
                if model != row.model:
                    await connection.execute(CHANGED, {"key": row.id, "model": model})
                shorter = replace(turn, seconds=min(turn.seconds, left))
                return _without_attempt(row, "waiting", order.fence, asker=asker, turn=shorter)
        started, number = row.started_at or time, row.attempt
        if row.fence < order.fence:
            number += 1
            await begun.add(row, order, model, started, time, turn)
        before = await history(connection, row, number, model, since=started)
        known = {"attempt": number, "past": before, "started_at": started, "asker": asker, "turn": turn}
        repair = await repairs.latest(connection, row.id) if row.attempt else None
        return _claim(row, "taken", order.fence, model=model, repair=repair, **known), body

    async def written(self, job_id: str, *, fence: int, epoch: int) -> Sequence[TextRun]:
        """The text of an epoch, in order. Raises FenceLost."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, None))).first()
            if row is None or (row.fence, row.epoch) != (fence, epoch):
                raise FenceLost
            return await mapping.transcript_runs(connection, row)

    async def samples(self, model: str) -> Sequence[Sample]:
        """Recent calls of a model whose tokens were counted, each of which brought all the text of its job."""
        async with self._database.single() as connection:
            rows = (await connection.execute(SAMPLES, {"model": model})).all()
        return [
            Sample(Usage.model_validate_json(row.usage).completion_tokens, row.token_count, row.reasoning + row.content)
            for row in rows
        ]

    @retried
    async def restart(self, job_id: str, *, fence: int, reason: str) -> int:
        """Discard the text and begin a new epoch, whose number is returned. Raises FenceLost."""
        async with self._database.write("fast") as connection:
            epoch = await connection.scalar(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.completed_at.is_(None))
                .where(jobs.c.finish.is_(None))
                .values(epoch=jobs.c.epoch + 1, position=0, token_count=0, tail="", reset_reason=clean(reason)[:64])
                .returning(jobs.c.epoch)
            )
            if epoch is None:
                raise FenceLost
            await connection.execute(
                delete(transcript).where(transcript.c.job_id == job_id, transcript.c.epoch < epoch)
            )
            await connection.execute(
                update(attempts)
                .where(attempts.c.job_id == job_id, attempts.c.ended_at.is_(None))
                .values(tokens_before=0, epoch=epoch)
            )
            await self._database.hint(connection)
        return int(epoch)

    @retried
    async def end(self, job_id: str, number: int, fence: int, end: AttemptEnd) -> None:
        """Record in the ledger how attempt ``number``, which claimed ``fence``, ended without finishing its answer.

        If another attempt has claimed the job, the ledger has this one as lost; while the job runs, that is corrected,
        since its worker lives.
        """
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            if row.fence == fence:
                await close_open_attempts(connection, row, end)
                if end.repair is not None:
                    await repairs.keep(connection, row, number, end.repair)
                if not end.called and row.completed_at is None:
                    await _queue_again(connection, row)
            elif row.completed_at is None:
                closed = and_(
                    attempts.c.job_id == job_id,
                    attempts.c.number == number,
                    attempts.c.outcome == AttemptOutcome.LOST.value,
                )
                values = {"outcome": clean(end.outcome)[:64], "message": end.message} | excuse(end.outcome)
                await connection.execute(update(attempts).where(closed).values(values))

    @retried
    async def hand_over(self, job_id: str, fence: int, model: str) -> None:
        """Let another model take the job over: the next attempt calls it. Raises FenceLost."""
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            if row.fence != fence or row.completed_at is not None:
                raise FenceLost
            await connection.execute(CHANGED, {"key": job_id, "model": model})
            await lane_queue.leave_all(connection, [job_id])

    @retried
    async def joined(self, job_id: str, number: int, *, confirmed: bool) -> None:
        """Record how attempt ``number`` went on from the text before it: see contracts.TextOrigin."""
        async with self._database.write("fast") as connection:
            await connection.execute(JOINED, {"key": job_id, "its_number": number, "how": confirmed})

    async def cancels(self, job_ids: Collection[str]) -> Collection[str]:
        """The ids among ``job_ids`` whose cancellation was requested."""
        async with self._database.single() as connection:
            return (await connection.execute(CANCELS, {"keys": list(job_ids)})).scalars().all()


async def _turn(
    connection: AsyncConnection, row: Row[Any], body: str, reserve: Reserve | None, asker: Claimant
) -> tuple[str, Reservation | None]:
    """The model to call, and when: the job's present one, or, where that is down or refuses calls for too long, the
    first of those after it that can be called. ``body``: the request as JSON."""
    if reserve is None:
        return row.model, None
    turn = await reserve(connection, row.model, asker)
    following = fallback.NONE if turn.granted else fallback.after(row.model, body)
    if not _is_closed(turn, following.seconds):
        return row.model, turn
    soonest = turn.seconds
    for model in following.models:
        await lane_queue.leave_all(connection, [row.id])
        other = await reserve(connection, model, asker)
        if other.held:  # nobody knows until when
            continue
        if not _is_closed(other, following.seconds):
            return model, other
        soonest = min(soonest, other.seconds)
    if following.models:  # it waits for its present model, and looks again when any of them may be called
        turn = await reserve(connection, row.model, asker)
    return row.model, turn if turn.granted else replace(turn, seconds=min(turn.seconds, soonest))


def _is_closed(turn: Reservation, seconds: float) -> bool:
    """Whether no call of a model may start for too long, on its own account."""
    return turn.down or turn.refused_seconds > seconds


def _seconds_left(row: Row[Any], body: str, time: int) -> float:
    """Seconds left of the time limit that applies to a waiting job. ``body``: its request as JSON."""
    if row.started_at is None:
        return _queue_seconds_left(row, body, time)
    total = ChatRequest.model_validate_json(body).limits.total_seconds
    return float(total - (time - row.started_at) / 1e6)


async def _lost_too_often(connection: AsyncConnection, row: Row[Any], tries: int) -> bool:
    if min(row.attempt, tries) < row.max_lost:
        return False
    return min(await lost_in_a_row(connection, row), tries) >= int(row.max_lost)


def _queue_seconds_left(row: Row[Any], body: str, time: int) -> float:
    """Seconds left of limits.queueSeconds; infinite once the model was called."""
    if row.queue_until is not None:
        return float((row.queue_until - time) / 1e6)
    if row.attempt or row.batched:  # a batch's job waits for as long as its batch takes, unless its request says else
        return float("inf")
    return (queue_end(row.created_at, ChatRequest.model_validate_json(body)) - time) / 1e6  # a row of an older version


async def _queue_again(connection: AsyncConnection, row: Row[Any]) -> None:
    """Put a job back into the queue whose first attempt ended without a call; its time in the queue goes on."""
    if await connection.scalar(select(attempts.c.number).where(attempts.c.job_id == row.id).limit(1)) is not None:
        return
    body = await connection.scalar(REQUEST, {"key": row.id})
    if body is not None:
        request = ChatRequest.model_validate_json(body)
        until = None if row.batched and not limits_queue(request) else queue_end(row.created_at, request)
        await connection.execute(CHANGED, {"key": row.id, "queue_until": until, "started_at": None})


def _nothing_to_do(row: Row[Any]) -> Any:
    if row.completed_at is not None:
        return "sealed"
    if row.cancel_requested_at is not None:
        return "cancel_requested"
    return "finished" if row.finish is not None else None


def _without_attempt(row: Row[Any], outcome: Any, fence: int, **known: Any) -> tuple[Claim, str]:
    return _claim(row, outcome, fence, **known), ""


def _claim(row: Row[Any], outcome: Any, fence: int, **known: Any) -> Claim:
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    return Claim(
        outcome=outcome,
        job_id=row.id,
        fence=fence,
        epoch=row.epoch,
        position=row.position,
        token_count=row.token_count,
        finish_reason=finish.reason if finish else None,
        **known,
    )
