"""Seals a job in one transaction: final row, result, compacted transcript, stored delivery.

A reader that sees a terminal status can read the whole result, and a delivery exists from the same moment, so that
it can be late but not lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import (
    Channel,
    ChatRequest,
    ChatResult,
    JobError,
    JobStatus,
    Webhook,
    WebhookEventType,
    rfc3339,
)
from domain.errors import SealConflict
from domain.names import delivery_id
from domain.outcomes import WORKER_LOST, AttemptOutcome
from domain.payloads import Ending, Sealed
from domain.text import clean
from domain.values import OK, AttemptEnd, FinishRecord, TextRun
from storage.engine.schema import CHANNELS, attempts, deliveries, jobs, micros, moment, now, results, transcript
from storage.jobs import mapping
from storage.jobs.ledger import close_open_attempts
from storage.jobs.rows import CHANGED, REQUEST, queue_end
from storage.rate_limits import lane_queue

WebhookBody = Callable[[ChatResult], bytes]
"""Makes the body of the webhook that announces a job's outcome."""
LENGTH_LIMITS = ("length", "model_length")
"""Finish reasons that mean the model stopped at a limit (Mistral's API reference)."""
SEALED = CHANGED.returning(*jobs.c)
CANCELLED = Ending(job_id="-", status=JobStatus.CANCELLED)
EXPIRED = "sweeper"
"""``sealed_by`` of a job whose queue time ended, until a run claims it. "": no run sealed it, and none adopts it."""
FIRST_TRY_SECONDS = 20
"""The time that the sweeper that sealed a job has for the first try of its webhook; then any sweeper may make it."""
QUEUE_TIMEOUT = JobError(
    code=AttemptOutcome.QUEUE_TIMEOUT.value,
    message="The job waited longer than limits.queueSeconds for its first call of the model",
    retryable=True,
)


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


async def seal(
    connection: AsyncConnection, row: Row[Any], ending: Ending, run_id: str, webhook_body: WebhookBody
) -> Sealed:
    """Seal the locked, open row of ``jobs``. Raises SealConflict."""
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    status, error = _verdict(row, ending, finish)
    await _settle_attempts(connection, row, finish, status, error)
    answer = await _store_result(connection, row, finish if status is not JobStatus.FAILED else None, error)
    time = micros(now())
    closed = await connection.execute(
        SEALED,
        {
            "key": row.id,
            "status": status.value,
            "completed_at": time,
            "progressed_at": time,
            "fence": row.fence + 1,  # an attempt that still writes under the old fence changes nothing
            "finish": None,
            "tail": "",
            "sealed_by": run_id,
            "queue_until": None,
            "error_code": clean(error.code)[:64] if error else None,
        },
    )
    row = closed.one()
    await lane_queue.leave(connection, row.id)
    delivery = await _store_delivery(connection, row, answer, webhook_body)
    return _outcome(row, answer["sha256"], error, delivery)


async def _store_result(
    connection: AsyncConnection, row: Row[Any], finish: FinishRecord | None, error: JobError | None
) -> dict[str, Any]:
    """Store the result, with the transcript compacted to a text per channel and the list of its runs.

    Returns the fields of a ChatResult that it fixes.
    """
    only = finish is not None and row.attempt <= 1
    ledger_rows = [] if only else await mapping.ledger(connection, row.id)
    runs = await mapping.transcript_runs(connection, row)
    answer = mapping.answer(runs, finish, ledger_rows) | {"error": error}
    if finish is not None:
        answer["finish_reason"] = finish.reason[:64]
    await connection.execute(
        insert(results),
        {
            "job_id": row.id,
            "content": answer["content"],
            "reasoning": answer["reasoning"] or "",
            "runs": json.dumps(_channel_lengths(runs)),
            "sha256": answer["sha256"],
            "finish_reason": answer["finish_reason"],
            "tool_calls": _json(mapping.TOOL_CALLS, answer["tool_calls"]),
            "parts": _json(mapping.PARTS, answer["content_parts"]),
            "usage": answer["usage"].model_dump_json() if answer["usage"] else None,
            "usage_estimated": answer["usage_estimated"],
            "error": error.model_dump_json() if error else None,
        },
    )
    if len(row.tail) < row.position:
        await connection.execute(delete(transcript).where(transcript.c.job_id == row.id))
    return answer


def _json(adapter: Any, values: tuple[Any, ...] | None) -> str | None:
    return adapter.dump_json(values, by_alias=True).decode() if values else None


def _verdict(row: Row[Any], ending: Ending, finish: FinishRecord | None) -> tuple[JobStatus, JobError | None]:
    """The status: an accepted request to cancel comes first, then a whole answer, then the workflow's ending."""
    if ending.status is JobStatus.CANCELLED or row.cancel_requested_at is not None:
        return JobStatus.CANCELLED, None
    if finish is not None:
        if ending.position not in (None, row.position):
            raise SealConflict(f"The transcript is at {row.position}, not at {ending.position}; it was not sealed")
        return (JobStatus.INCOMPLETE if finish.reason in LENGTH_LIMITS else JobStatus.COMPLETED), None
    if ending.status is JobStatus.COMPLETED:
        raise SealConflict("The answer is not whole in storage; it was not sealed")
    return JobStatus.FAILED, ending.error or JobError(
        code=AttemptOutcome.INTERNAL.value, message="The job failed without a reason"
    )


def _channel_lengths(runs: Sequence[TextRun]) -> list[tuple[int, int, int]]:
    """[channel number, characters, token count after it], neighbours of one channel joined."""
    joined = []
    for channel, group in groupby(runs, key=lambda run: run.channel):
        neighbours = list(group)
        length = sum(len(run.text) for run in neighbours)
        joined.append((CHANNELS.index(channel), length, neighbours[-1].token_count))
    return joined


async def _settle_attempts(
    connection: AsyncConnection,
    row: Row[Any],
    finish: FinishRecord | None,
    status: JobStatus,
    error: JobError | None,
) -> None:
    """Close the ledger: the attempt that finished, from its record, and any other that is open."""
    if finish is not None:
        await connection.execute(
            update(attempts)
            .where(attempts.c.job_id == row.id, attempts.c.number == finish.attempt)
            .values(
                ended_at=micros(finish.ended_at),
                outcome=AttemptOutcome.FINISHED.value,
                http_status=OK,
                usage=finish.usage.model_dump_json() if finish.usage else None,
                estimated=finish.estimated,
                first_token_ms=finish.first_token_ms,
                tokens_per_second=finish.tokens_per_second,
            )
        )
    if row.attempt > (finish.attempt if finish else 0):
        known = error.code if error and error.code != WORKER_LOST else AttemptOutcome.LOST
        outcome = AttemptOutcome.CANCELLED if status is JobStatus.CANCELLED else known
        await close_open_attempts(connection, row, AttemptEnd(outcome))


async def _store_delivery(
    connection: AsyncConnection, row: Row[Any], answer: dict[str, Any], webhook_body: WebhookBody
) -> str | None:
    """Store the delivery with the webhook's id and its exact body, if the outcome's event is subscribed; its id."""
    webhook = Webhook.model_validate_json(row.webhook) if row.webhook else None
    event = WebhookEventType.of(JobStatus(row.status))
    if webhook is None or event not in webhook.events:
        return None
    delivery = delivery_id(row.id, event, row.revision)
    await connection.execute(
        insert(deliveries).values(
            id=delivery,
            job_id=row.id,
            tenant=row.tenant,
            event=event.value,
            url=webhook.url,
            body=webhook_body(ChatResult(**mapping.head(row), **answer)),
            body_timestamp=rfc3339(moment(row.completed_at)),
            status="pending",
            created_at=row.completed_at,
            next_try_at=row.completed_at,
            wanted_at=_wanted_at(row),
        )
    )
    return delivery


def _wanted_at(row: Row[Any]) -> int | None:
    """When a sweeper makes the first try; None where the run that sealed the job makes it."""
    if row.sealed_by == EXPIRED:
        return int(row.completed_at) + FIRST_TRY_SECONDS * 1_000_000
    return None if row.sealed_by else row.completed_at


# ------------------------------------------------------------------------------------------------- reopening


async def adopt(connection: AsyncConnection, row: Row[Any], run_id: str) -> None:
    """Give the seal of an expired job to the first run that claims it; a run after that (a Reset) reopens the job."""
    if row.sealed_by == EXPIRED:
        await connection.execute(CHANGED, {"key": row.id, "sealed_by": run_id})


def reopens(row: Row[Any], run_id: str) -> bool:
    """Whether a run reopens a sealed job: it failed, not by this run or by expiry, and its text was not deleted."""
    return (
        row.status == JobStatus.FAILED.value and row.sealed_by not in (None, run_id, EXPIRED) and row.deleted_at is None
    )


async def reopen(connection: AsyncConnection, row: Row[Any]) -> None:
    """Undo the seal of a failed job: its transcript continues, and its next outcome has a new revision."""
    result = (await connection.execute(select(results).where(results.c.job_id == row.id))).one()
    texts = {Channel.CONTENT: result.content, Channel.REASONING: result.reasoning}
    rows = [
        {"job_id": row.id, "epoch": row.epoch, **run._asdict(), "channel": CHANNELS.index(run.channel)}
        for run in mapping.compacted_runs(texts, result.runs)
    ]
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
            started_at=None,  # limits.totalSeconds starts again
            queue_until=await _queue_until(connection, row),
        )
    )


async def _queue_until(connection: AsyncConnection, row: Row[Any]) -> int | None:
    """The new end of the time in the queue, for a job whose model was never called."""
    body = None if row.attempt else await connection.scalar(REQUEST, {"key": row.id})
    if body is None:
        return None
    return queue_end(micros(now()), ChatRequest.model_validate_json(body))
