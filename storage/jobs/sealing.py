"""The end of a job, in one transaction: final row, result, compacted transcript, stored delivery.

Whoever sees a terminal status can read the whole result at once, and a delivery exists from the same moment, so that
it can be late but not lost.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import (
    MAX_WEBHOOK_CONTENT_BYTES,
    ChatRequest,
    ChatResult,
    JobError,
    JobStatus,
    Webhook,
    WebhookData,
    WebhookEvent,
    WebhookEventType,
    rfc3339,
)
from domain.errors import SealConflict
from domain.names import delivery_id, status_path
from domain.payloads import Ending, Sealed
from domain.text import clean
from domain.values import LOST, WORKER_LOST, AttemptEnd, FinishRecord
from storage.engine.schema import CHANNELS, attempts, deliveries, jobs, micros, moment, now, results, transcript
from storage.jobs import mapping as presenting
from storage.jobs.rows import CHANGED, REQUEST, close_open_attempts
from storage.rate_limits import lane_queue

LENGTH_LIMITS = ("length", "model_length")
"""Finish reasons that mean the model stopped at a limit (Mistral's API reference)."""
SEALED = CHANGED.returning(*jobs.c)
CANCELLED = Ending(job_id="-", status=JobStatus.CANCELLED)
SWEEPER = "sweeper"
"""In the place of the run that sealed a job: it was sealed without its workflow. The first run that comes adopts it."""
FIRST_TRY_SECONDS = 20
"""So long a sweeper that sealed a job may take for the first try of its webhook; then it is another's."""
QUEUE_TIMEOUT = JobError(
    code="queue_timeout",
    message="The job waited longer than limits.queueSeconds for its first call of the model",
    retryable=True,
)


def queue_timeout(job_id: str) -> Ending:
    return Ending(job_id=job_id, status=JobStatus.FAILED, error=QUEUE_TIMEOUT)


async def sealed(connection: AsyncConnection, row: Row[Any]) -> Sealed:
    """The outcome of a sealed row."""
    query = select(results.c.sha256, results.c.error).where(results.c.job_id == row.id)
    result = (await connection.execute(query)).one()
    delivery = delivery_id(row.id, WebhookEventType.of(JobStatus(row.status)), row.revision)
    stored = await connection.scalar(select(deliveries.c.id).where(deliveries.c.id == delivery))
    error = JobError.model_validate_json(result.error) if result.error else None
    return _outcome(row, result.sha256, error, stored)


def _outcome(row: Row[Any], sha256: str, error: JobError | None, delivery: str | None) -> Sealed:
    return Sealed(
        job_id=row.id,
        status=JobStatus(row.status),
        model=row.model,
        position=row.position,
        sha256=sha256,
        error=error,
        delivery_id=delivery,
    )


async def seal(connection: AsyncConnection, row: Row[Any], ending: Ending, run_id: str, public_url: str = "") -> Sealed:
    """Seal the locked, open row of ``jobs``. ``public_url``: what receivers reach us at. Raises SealConflict."""
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    status, error = _verdict(row, ending, finish)
    await _settle_attempts(connection, row, finish, status, error)
    sha256 = await _store_result(connection, row, finish if status is not JobStatus.FAILED else None, error)
    time = micros(now())
    closed = await connection.execute(
        SEALED,
        {
            "key": row.id,
            "status": status.value,
            "completed_at": time,
            "progressed_at": time,
            "fence": row.fence + 1,  # whoever still writes under the old one changes nothing
            "finish": None,
            "tail": "",
            "sealed_by": run_id,
            "queue_until": None,
            "error_code": clean(error.code)[:64] if error else None,
        },
    )
    row = closed.one()
    await lane_queue.leave(connection, row.id)
    return _outcome(row, sha256, error, await _store_delivery(connection, row, public_url))


async def _store_result(
    connection: AsyncConnection, row: Row[Any], finish: FinishRecord | None, error: JobError | None
) -> str:
    """The result, with the transcript compacted to a text per channel and the list of its runs; its sha256."""
    only = finish is not None and row.attempt <= 1
    ledger = [] if only else await presenting.ledger(connection, row.id)
    usage, estimated = presenting.total_usage(ledger, finish)
    pieces = await presenting.transcript_pieces(connection, row)
    texts = ["".join(p.text for p in pieces if p.channel == number) for number in range(len(CHANNELS))]
    sha256 = presenting.sha256(texts[0])
    await connection.execute(
        insert(results),
        {
            "job_id": row.id,
            "content": texts[0],
            "reasoning": texts[1],
            "runs": json.dumps(_runs(pieces)),
            "sha256": sha256,
            "finish_reason": finish.reason[:64] if finish else None,
            "tool_calls": _json(presenting.TOOL_CALLS, finish.tool_calls) if finish else None,
            "parts": _json(presenting.PARTS, finish.parts) if finish else None,
            "usage": usage.model_dump_json() if usage else None,
            "usage_estimated": estimated,
            "error": error.model_dump_json() if error else None,
        },
    )
    if len(row.tail) < row.position:
        await connection.execute(delete(transcript).where(transcript.c.job_id == row.id))
    return sha256


def _json(adapter: Any, values: tuple[Any, ...]) -> str | None:
    return adapter.dump_json(values, by_alias=True).decode() if values else None


def _verdict(row: Row[Any], ending: Ending, finish: FinishRecord | None) -> tuple[JobStatus, JobError | None]:
    """A cancel that was accepted wins; then an answer that is whole; then what the workflow says."""
    if ending.status is JobStatus.CANCELLED or row.cancel_requested_at is not None:
        return JobStatus.CANCELLED, None
    if finish is not None:
        if ending.position not in (None, row.position):
            raise SealConflict(f"The transcript is at {row.position}, not at {ending.position}; it was not sealed")
        return (JobStatus.INCOMPLETE if finish.reason in LENGTH_LIMITS else JobStatus.COMPLETED), None
    if ending.status is JobStatus.COMPLETED:
        raise SealConflict("The answer is not whole in storage; it was not sealed")
    return JobStatus.FAILED, ending.error or JobError(code="internal", message="The job failed without a reason")


def _runs(pieces: Any) -> list[tuple[int, int, int]]:
    """[channel, characters, token count after], neighbours of one channel joined."""
    runs = []
    for channel, group in groupby(pieces, key=lambda piece: piece.channel):
        joined = list(group)
        runs.append((channel, sum(len(piece.text) for piece in joined), joined[-1].token_count))
    return runs


async def _settle_attempts(
    connection: AsyncConnection,
    row: Row[Any],
    finish: FinishRecord | None,
    status: JobStatus,
    error: JobError | None,
) -> None:
    """Close the ledger: the attempt that finished from its record, any other that is open as the job ends."""
    if finish is not None:
        await connection.execute(
            update(attempts)
            .where(attempts.c.job_id == row.id, attempts.c.number == finish.attempt)
            .values(
                ended_at=micros(finish.ended_at),
                outcome="finished",
                http_status=200,
                usage=finish.usage.model_dump_json() if finish.usage else None,
                estimated=finish.estimated,
                first_token_ms=finish.first_token_ms,
                tokens_per_second=finish.tokens_per_second,
            )
        )
    if row.attempt > (finish.attempt if finish else 0):
        known = error.code if error and error.code != WORKER_LOST else LOST
        outcome = "cancelled" if status is JobStatus.CANCELLED else known
        await close_open_attempts(connection, row, AttemptEnd(outcome))


async def _store_delivery(connection: AsyncConnection, row: Row[Any], public_url: str) -> str | None:
    """The delivery row with the webhook's id and its exact body, if the outcome's event is subscribed; its id."""
    webhook = Webhook.model_validate_json(row.webhook) if row.webhook else None
    event = WebhookEventType.of(JobStatus(row.status))
    if webhook is None or event not in webhook.events:
        return None
    delivery = delivery_id(row.id, event, row.revision)
    result = await presenting.job(connection, row, "")
    await connection.execute(
        insert(deliveries).values(
            id=delivery,
            job_id=row.id,
            tenant=row.tenant,
            event=event.value,
            url=webhook.url,
            body=announcement(result, public_url).model_dump_json().encode(),
            body_timestamp=rfc3339(moment(row.completed_at)),
            status="pending",
            created_at=row.completed_at,
            next_try_at=row.completed_at,
            wanted_at=_wanted_at(row),
        )
    )
    return delivery


def _wanted_at(row: Row[Any]) -> int | None:
    """When a sweeper has the first try made; None where the run that sealed the job makes it."""
    if row.sealed_by == SWEEPER:
        return int(row.completed_at) + FIRST_TRY_SECONDS * 1_000_000
    return None if row.sealed_by else row.completed_at


def announcement(result: ChatResult, public_url: str = "") -> WebhookEvent:
    """The webhook of a job's outcome."""
    omitted = len((result.content or "").encode()) > MAX_WEBHOOK_CONTENT_BYTES
    if result.completed_at is None or result.sha256 is None:
        raise SealConflict("Only a sealed job can be announced")
    data = WebhookData(
        job_id=result.job_id,
        request_id=result.request_id,
        status=result.status,
        model=result.model,
        content=None if omitted else result.content,
        tool_calls=result.tool_calls,
        finish_reason=result.finish_reason,
        usage=result.usage,
        error=result.error,
        completed_at=result.completed_at,
        sha256=result.sha256,
        metadata=result.metadata,
        status_url=public_url.rstrip("/") + status_path(result.job_id),
        content_omitted=omitted,
    )
    return WebhookEvent(event=WebhookEventType.of(result.status), timestamp=result.completed_at, data=data)


# ------------------------------------------------------------------------------------------------- reopening


async def adopt(connection: AsyncConnection, row: Row[Any], run_id: str) -> None:
    """The first run of a job that was sealed without it takes the seal as its own; another run after it (a Reset)
    reopens the job."""
    if row.sealed_by == SWEEPER:
        await connection.execute(CHANGED, {"key": row.id, "sealed_by": run_id})


def reopens(row: Row[Any], run_id: str) -> bool:
    """A failed job that another run sealed: an operator reset its workflow, and it may go on, if it has its text."""
    return (
        row.status == JobStatus.FAILED.value and row.sealed_by not in (None, run_id, SWEEPER) and row.deleted_at is None
    )


async def reopen(connection: AsyncConnection, row: Row[Any]) -> None:
    """Undo the seal of a failed job: the transcript goes on where it stopped, the next outcome has a new revision."""
    result = (await connection.execute(select(results).where(results.c.job_id == row.id))).one()
    pieces = presenting.compacted_pieces((result.content, result.reasoning), result.runs)
    rows = [{"job_id": row.id, "epoch": row.epoch, **piece._asdict()} for piece in pieces]
    if rows:
        await connection.execute(insert(transcript), rows)
    await connection.execute(delete(results).where(results.c.job_id == row.id))
    await connection.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(
            status=JobStatus.IN_PROGRESS.value,
            completed_at=None,
            sealed_by=None,
            error_code=None,
            revision=row.revision + 1,
            started_at=None,  # the clock of the whole generation starts again
            queue_until=await _queue_until(connection, row),
        )
    )


async def _queue_until(connection: AsyncConnection, row: Row[Any]) -> int | None:
    """The time in the queue starts again, too, for a job whose model was never called."""
    body = None if row.attempt else await connection.scalar(REQUEST, {"key": row.id})
    if body is None:
        return None
    return micros(now()) + round(ChatRequest.model_validate_json(body).limits.queue_seconds * 1_000_000)
