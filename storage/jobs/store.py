"""Jobs: accepted, claimed by attempts, cancelled, listed. (Sealing has its own page: sealing.py.)"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import Attempt, ChatRequest, Job, JobStatus, Usage
from chatjobs.errors import ContentDeleted, JobFinished, JobNotFound, JobRunning
from domain.errors import FenceLost
from domain.payloads import Ending, Sealed
from domain.text import clean, clean_json
from domain.tokens import Sample
from domain.values import (
    FROZEN,
    LOST,
    POSTPONED,
    SEGMENT,
    TAKEN_OVER,
    TOPPED_UP,
    AcceptedJob,
    AttemptEnd,
    AttemptHistory,
    Claim,
    Claimant,
    FinishRecord,
    NewJob,
    RunRef,
    TextPiece,
    Waiting,
)
from storage.engine.database import Database, retried
from storage.engine.schema import attempts, jobs, micros, now, results, transcript
from storage.jobs import mapping as presenting
from storage.jobs import retention, sealing
from storage.jobs.accepting import Acceptor, queue_end
from storage.jobs.rows import (
    CHANGED,
    REQUEST,
    by_id,
    close_open_attempts,
    excuse,
    locked,
    lost_in_a_row,
    past,
    store_tail,
)
from storage.rate_limits.limiter import Limiter, Reserve

SAMPLES_AMONG = 200
"""Jobs that ended last, among which those of a model are looked for."""
MOST_SAMPLES = 8
LONGEST_SAMPLE = 16_384
"""Characters: more text tells no more about its tokens."""
TERMINAL = [status.value for status in JobStatus if status.terminal]
NOT_FAILURES = (
    *("finished", SEGMENT, TOPPED_UP, POSTPONED, "nothing_left"),
    *(LOST, FROZEN, TAKEN_OVER, "handed_over", "cancelled", "upstream_rate_limited"),
    "continuation_refused",  # it follows an interruption, and the next attempt starts over
)
"""Outcomes that do not use up the budget of real failures."""


UNSTARTED = select(jobs.c.id, jobs.c.tenant, jobs.c.model, jobs.c.replay_of, jobs.c.priority).where(
    jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_(None), jobs.c.progressed_at <= bindparam("before")
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
    .where(attempts.c.outcome == "finished", attempts.c.estimated.is_(False), attempts.c.tokens_before == 0)
    .where(results.c.tool_calls.is_(None), results.c.parts.is_(None))
    .where(func.length(results.c.content) + func.length(results.c.reasoning) <= LONGEST_SAMPLE)
    .order_by(jobs.c.completed_at.desc())
    .limit(MOST_SAMPLES)
)


class JobStore:
    """``run_url`` makes the link to a job's run in the Temporal UI; ``limiter`` knows where a waiting job stands.

    ``public_url``: where receivers of webhooks reach this service; without it, links in webhooks are paths.
    """

    def __init__(
        self,
        database: Database,
        run_url: Callable[[str], str],
        limiter: Limiter | None = None,
        public_url: str | None = None,
    ) -> None:
        self._database = database
        self._public_url = public_url or ""
        self._limiter = limiter
        self._acceptor = Acceptor(database)
        self.run_url = run_url

    # ---------------------------------------------------------------------------------------------- accept

    async def accept(self, job: NewJob) -> AcceptedJob:
        """Commit a job, durably. The same job again, by its idempotency key, is answered as it stands; so is one that
        comes from its own workflow again, by its id.

        Raises IdempotencyMismatch, JobIdConflict, StorageError.
        """
        return await self._acceptor.accept(job)

    async def workflow_started(self, job_id: str) -> None:
        """The sweeper need not start it."""
        await self._acceptor.started(job_id)

    # ----------------------------------------------------------------------------------------------- claim

    @retried
    async def claim(
        self,
        job_id: str,
        *,
        fence: int,
        claimant: str,
        run_id: str,
        reserve: Reserve | None = None,
        tries: int = sys.maxsize,
    ) -> Claim:
        """Take a job over for an attempt, if no later attempt has it.

        ``fence`` grows over all attempts of a job, also across Resets. ``claimant`` is unique to the caller, so that
        it may ask again after a lost answer. A failed job that another workflow run sealed is reopened. ``reserve``
        says when the job may call the model; where that is later, nothing is taken. ``tries``: attempts before this
        one, as Temporal counts them: workers that died before an operator's Reset are not held against the job.
        Raises JobNotFound (also where the request was not kept), FenceLost.
        """
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            await sealing.adopt(connection, row, run_id)
            if sealing.reopens(row, run_id):
                await sealing.reopen(connection, row)
                row = await locked(connection, job_id)
            found = _nothing_to_do(row)
            if found:
                return _claim(row, found, fence)
            if row.fence > fence or (row.fence == fence and row.claimant != claimant):
                raise FenceLost
            if row.fence < fence and await _lost_too_often(connection, row, tries):
                return _claim(row, "worker_lost", fence)
            claim, body = await self._take(connection, row, fence, claimant, reserve)
        if claim.outcome != "taken":
            return claim
        # After the commit: a request that ends the process that reads it is in the ledger by now.
        return replace(claim, request=ChatRequest.model_validate_json(body))

    async def _take(
        self, connection: AsyncConnection, row: Row[Any], fence: int, claimant: str, reserve: Reserve | None
    ) -> tuple[Claim, str]:
        """The claim, without its request, whose JSON it gives beside it."""
        body = await connection.scalar(REQUEST, {"key": row.id})
        if body is None:
            raise JobNotFound("The job's request was not kept")
        if _queue_seconds_left(row, body, micros(now())) <= 0:
            return _claim(row, "expired", fence), body
        asker = Claimant(row.id, row.tenant, row.priority, row.created_at, returns=row.attempt > 0)
        turn = await reserve(connection, row.model, asker) if reserve else None
        time = micros(now())
        if turn is not None and not turn.granted:
            left = _seconds_left(row, body, time)
            if left > 0:
                shorter = replace(turn, seconds=min(turn.seconds, left))
                return replace(_claim(row, "waiting", fence), asker=asker, turn=shorter), body
        started, number = row.started_at or time, row.attempt
        if row.fence < fence:
            number += 1
            await self._begin_attempt(connection, row, fence, claimant, started, time)
        before = await past(connection, row, number, lambda outcome: outcome not in NOT_FAILURES)
        return replace(_claim(row, "taken", fence, number, before, started), asker=asker, turn=turn), body

    async def _begin_attempt(
        self, connection: AsyncConnection, row: Row[Any], fence: int, claimant: str, started: int, time: int
    ) -> None:
        await connection.execute(
            CHANGED,
            {
                "key": row.id,
                "fence": fence,
                "claimant": claimant,
                "attempt": row.attempt + 1,
                "status": JobStatus.IN_PROGRESS.value,
                "workflow_started_at": row.workflow_started_at or time,
                "started_at": started,
                "progressed_at": time,
                "queue_until": None,
                "tail": "",
            },
        )
        await store_tail(connection, row)
        if row.attempt:
            await close_open_attempts(connection, row, AttemptEnd(LOST))
        first = {"job_id": row.id, "number": row.attempt + 1, "started_at": time, "tokens_before": row.token_count}
        await connection.execute(insert(attempts), first | {"estimated": False})

    async def written(self, job_id: str, *, fence: int, epoch: int) -> Sequence[TextPiece]:
        """The text of an epoch so far, in order. Raises FenceLost."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, None))).first()
            if row is None or (row.fence, row.epoch) != (fence, epoch):
                raise FenceLost
            return await presenting.transcript_pieces(connection, row)

    async def samples(self, model: str) -> Sequence[Sample]:
        """Calls of a model that ended lately and were counted, each of which brought all the text of its job."""
        async with self._database.single() as connection:
            rows = (await connection.execute(SAMPLES, {"model": model})).all()
        return [
            Sample(Usage.model_validate_json(row.usage).completion_tokens, row.token_count, row.reasoning + row.content)
            for row in rows
        ]

    @retried
    async def restart(self, job_id: str, *, fence: int, reason: str) -> int:
        """Throw the text so far away: a new epoch, whose number is returned. Raises FenceLost."""
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
                .values(tokens_before=0)
            )
            await self._database.hint(connection)
        return int(epoch)

    @retried
    async def end_attempt(self, job_id: str, number: int, fence: int, end: AttemptEnd) -> None:
        """Write into the ledger how attempt ``number``, which claimed ``fence``, ended without finishing its answer.

        Where another attempt has the job by now, the ledger says that this one was lost; while the job runs, that is
        put right: its worker lives.
        """
        async with self._database.write("fast") as connection:
            row = await locked(connection, job_id)
            if row.fence == fence:
                await close_open_attempts(connection, row, end)
                if not end.called and row.completed_at is None:
                    await _queue_again(connection, row)
            elif row.completed_at is None:
                closed = and_(attempts.c.job_id == job_id, attempts.c.number == number, attempts.c.outcome == LOST)
                values = {"outcome": clean(end.outcome)[:64], "message": end.message} | excuse(end.outcome)
                await connection.execute(update(attempts).where(closed).values(values))

    # ---------------------------------------------------------------------------------------------- cancel

    @retried
    async def request_cancel(self, job_id: str, tenant: str | None = None) -> JobStatus:
        """Commit the wish to cancel, durably; a job that was never started is sealed at once.

        Asking again is the same. Raises JobNotFound, JobFinished.
        """
        async with self._database.write() as connection:
            row = await locked(connection, job_id, tenant)
            status = JobStatus(row.status)
            if status is JobStatus.CANCELLED:
                return status
            if status.terminal:
                raise JobFinished(f"The job has ended ({status.value}) and can no longer be cancelled")
            time = row.cancel_requested_at or micros(now())
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=time))
            if row.workflow_started_at is None:
                await sealing.seal(
                    connection, await locked(connection, job_id), sealing.CANCELLED, "", self._public_url
                )
                await self._database.hint(connection)
                return JobStatus.CANCELLED
            return status

    # ------------------------------------------------------------------------------------------------ seal

    @retried
    async def seal(self, ending: Ending, *, run_id: str) -> Sealed:
        """Give a job its outcome. Sealed already: that outcome is returned, whatever was asked for.

        Raises JobNotFound, SealConflict.
        """
        async with self._database.write() as connection:
            row = await locked(connection, ending.job_id)
            if row.completed_at is None:
                sealed = await sealing.seal(connection, row, ending, run_id, self._public_url)
                await self._database.hint(connection)
                return sealed
            return await sealing.sealed(connection, row)

    async def expire(self, limit: int = 100) -> Sequence[Sealed]:
        """Seal jobs whose time in the queue is over and of which the model was never called, without their workflows:
        there may be no worker to run them. Several processes may do it at once.

        Their webhooks are the caller's to send for FIRST_TRY_SECONDS; then a sweeper has Temporal send them.
        """
        due = select(jobs.c.id).where(jobs.c.queue_until <= micros(now())).order_by(jobs.c.queue_until).limit(limit)
        async with self._database.single() as connection:
            found = (await connection.execute(due)).scalars().all()
        sealed = [await self._expire(job_id) for job_id in found]
        return [one for one in sealed if one is not None]

    @retried
    async def _expire(self, job_id: str) -> Sealed | None:
        async with self._database.write() as connection:
            row = await locked(connection, job_id)
            if row.completed_at is not None or row.queue_until is None or row.queue_until > micros(now()):
                return None
            sealed = await sealing.seal(
                connection, row, sealing.queue_timeout(job_id), sealing.SWEEPER, self._public_url
            )
            await self._database.hint(connection)
            return sealed

    # ---------------------------------------------------------------------------------------------- delete

    @retried
    async def delete(self, job_id: str, tenant: str | None = None) -> RunRef | None:
        """Delete a finished job's request, texts, metadata, webhook and deliveries, durably; its row stays.

        Again is the same. Returns the run of a job that was started straight through Temporal, whose history has its
        request, too. Raises JobNotFound, JobRunning.
        """
        async with self._database.write() as connection:
            row = await locked(connection, job_id, tenant)
            if row.completed_at is None:
                raise JobRunning
            if row.deleted_at is None:
                await retention.empty(connection, row)
                await self._database.hint(connection)
        # A stored job's workflow is started after its row is made; an inline job's row says from the start that it was.
        return _run(row) if row.workflow_started_at == row.created_at else None

    # ------------------------------------------------------------------------------------------------ read

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """A job with its attempts and deliveries, in one snapshot. Raises JobNotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            if row is None:
                raise JobNotFound
            job = await presenting.job(connection, row, presenting.run_link(row, self.run_url))
            if job.status.terminal or self._limiter is None:
                return job
            places = await self._limiter.places(connection, [job.job_id])
        return job.model_copy(update={"queue": places.get(job.job_id)})

    async def outline(self, job_id: str, tenant: str | None = None) -> Job:
        """A job without its texts, attempts and deliveries, whatever their size: one small read. Raises JobNotFound."""
        async with self._database.single() as connection:
            row = (await connection.execute(_outlined(job_id, tenant))).first()
        if row is None:
            raise JobNotFound
        job = presenting.summary(row, presenting.run_link(row, self.run_url))
        calls = presenting.TOOL_CALLS.validate_json(row.tool_calls) if row.tool_calls else None
        return job.model_copy(update={"tool_calls": calls}) if calls else job

    async def run_of(self, job_id: str) -> RunRef:
        """The workflow run of a job, whether it was started yet or not."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, None))).first()
        return RunRef(job_id) if row is None else _run(row)

    async def exists(self, job_id: str, tenant: str | None = None) -> bool:
        async with self._database.read() as connection:
            return (await connection.execute(by_id(job_id, tenant))).first() is not None

    async def request(self, job_id: str, tenant: str | None = None) -> ChatRequest:
        """What was asked. Raises JobNotFound (also where the request was not kept), ContentDeleted."""
        async with self._database.read() as connection:
            row = (await connection.execute(by_id(job_id, tenant))).first()
            body = await connection.scalar(REQUEST, {"key": clean(job_id)})
        if row is not None and row.deleted_at is not None:
            raise ContentDeleted
        if row is None or body is None:
            raise JobNotFound
        return ChatRequest.model_validate_json(body)

    async def list(
        self,
        *,
        tenant: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> Sequence[Job]:
        """Jobs, newest first, without their texts. ``before`` is the place of the last one seen: (created_at, id)."""
        query = presenting.listed().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        conditions = {jobs.c.tenant: tenant, jobs.c.status: status and status.value, jobs.c.model: model}
        for column, value in conditions.items():
            query = query.where(column == value) if value is not None else query
        for key, value in clean_json(dict(metadata or {})).items():
            query = query.where(self._has(key, value))
        if since:
            query = query.where(jobs.c.created_at >= micros(since))
        if until:
            query = query.where(jobs.c.created_at < micros(until))
        if before:
            earlier = and_(jobs.c.created_at == before[0], jobs.c.id < before[1])
            query = query.where(or_(jobs.c.created_at < before[0], earlier))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [presenting.summary(row, presenting.run_link(row, self.run_url)) for row in rows]

    def _has(self, key: str, value: str) -> Any:
        """A condition on metadata. SQLite's paths have no way to write every key that JSON may have."""
        if not self._database.is_sqlite:
            return jobs.c.metadata[key].as_string() == value
        pairs = func.json_each(jobs.c.metadata).table_valued("key", "value")
        return select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists()

    async def ledger(self, job_id: str) -> Sequence[Attempt]:
        async with self._database.read() as connection:
            return await presenting.ledger(connection, job_id)

    async def empty(self) -> bool:
        """No job was ever accepted."""
        async with self._database.read() as connection:
            return (await connection.execute(select(jobs.c.id).limit(1))).first() is None

    # ------------------------------------------------------------------------------------------- the sweep

    async def unstarted(self, *, older_than: timedelta, limit: int = 100) -> Sequence[Waiting]:
        """Accepted jobs whose workflow was not started, for the caller to start: for ``older_than`` nobody else, in
        whatever process, is given the same ones."""
        before = micros(now() - older_than)
        async with self._database.read() as connection:
            if (await connection.execute(UNSTARTED.limit(1), {"before": before})).first() is None:
                return []
        return await self._take_unstarted(before, limit)

    @retried
    async def _take_unstarted(self, before: int, limit: int) -> Sequence[Waiting]:
        async with self._database.write("fast") as connection:
            oldest = UNSTARTED.order_by(jobs.c.created_at).limit(limit).with_for_update(skip_locked=True)
            rows = (await connection.execute(oldest, {"before": before})).all()
            taken = jobs.c.id.in_([row.id for row in rows])
            await connection.execute(update(jobs).where(taken).values(progressed_at=micros(now())))
        return [Waiting(row.id, row.tenant, row.model, row.replay_of, row.priority) for row in rows]

    async def silent(self, *, since: timedelta, limit: int = 100) -> Sequence[Waiting]:
        """Started jobs that have not ended and have not moved for a while."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.workflow_started_at.is_not(None))
        return await self._waiting(query.where(jobs.c.progressed_at <= micros(now() - since)), limit)

    async def to_cancel(self, limit: int = 100) -> Sequence[Waiting]:
        """Jobs that somebody asked to cancel and that have not ended."""
        query = select(jobs).where(jobs.c.completed_at.is_(None), jobs.c.cancel_requested_at.is_not(None))
        return await self._waiting(query, limit)

    async def cancels(self, job_ids: Collection[str]) -> Collection[str]:
        """Those of some jobs that somebody asked to cancel."""
        async with self._database.single() as connection:
            return (await connection.execute(CANCELS, {"keys": list(job_ids)})).scalars().all()

    @retried
    async def touch(self, job_id: str) -> None:
        """The job is known to be alive: look again later."""
        async with self._database.write("fast") as connection:
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(progressed_at=micros(now())))

    async def _waiting(self, query: Any, limit: int) -> Sequence[Waiting]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(jobs.c.created_at).limit(limit))).all()
        return [Waiting(row.id, row.tenant, row.model, row.replay_of, row.priority) for row in rows]


def _run(row: Row[Any]) -> RunRef:
    return RunRef(row.id) if row.workflow_id is None else RunRef(row.workflow_id, row.workflow_run_id)


def _outlined(job_id: str, tenant: str | None) -> Any:
    query = presenting.listed().add_columns(results.c.tool_calls).where(jobs.c.id == clean(job_id))
    return query if tenant is None else query.where(jobs.c.tenant == tenant)


def _seconds_left(row: Row[Any], body: str, time: int) -> float:
    """Until the clock runs out that runs while a job waits; ``body`` is its request as JSON."""
    if row.started_at is None:
        return _queue_seconds_left(row, body, time)
    total = ChatRequest.model_validate_json(body).limits.total_seconds
    return float(total - (time - row.started_at) / 1e6)


async def _lost_too_often(connection: AsyncConnection, row: Row[Any], tries: int) -> bool:
    if min(row.attempt, tries) < row.max_lost:
        return False
    return min(await lost_in_a_row(connection, row), tries) >= int(row.max_lost)


def _queue_seconds_left(row: Row[Any], body: str, time: int) -> float:
    """Of limits.queueSeconds; without end once the model was called."""
    if row.queue_until is not None:
        return float((row.queue_until - time) / 1e6)
    if row.attempt:
        return float("inf")
    return (queue_end(row.created_at, ChatRequest.model_validate_json(body)) - time) / 1e6  # of an older version


async def _queue_again(connection: AsyncConnection, row: Row[Any]) -> None:
    """The first attempt ended without a call: the job is as it was before it, and its time in the queue goes on."""
    if await connection.scalar(select(attempts.c.number).where(attempts.c.job_id == row.id).limit(1)) is not None:
        return
    body = await connection.scalar(REQUEST, {"key": row.id})
    if body is not None:
        until = queue_end(row.created_at, ChatRequest.model_validate_json(body))
        await connection.execute(CHANGED, {"key": row.id, "queue_until": until, "started_at": None})


def _nothing_to_do(row: Row[Any]) -> Any:
    if row.completed_at is not None:
        return "sealed"
    if row.cancel_requested_at is not None:
        return "cancel_requested"
    return "finished" if row.finish is not None else None


def _claim(
    row: Row[Any],
    outcome: Any,
    fence: int,
    attempt: int = 0,
    before: AttemptHistory = AttemptHistory(),  # noqa: B008 - frozen
    started_at: int = 0,
) -> Claim:
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    return Claim(
        outcome=outcome,
        job_id=row.id,
        fence=fence,
        epoch=row.epoch,
        position=row.position,
        token_count=row.token_count,
        finish_reason=finish.reason if finish else None,
        attempt=attempt,
        past=before,
        created_at=row.created_at,
        started_at=started_at,
    )
