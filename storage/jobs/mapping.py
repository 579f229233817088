"""Maps rows to values: jobs, attempts, deliveries, texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row, Select, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import (
    Attempt,
    Channel,
    Delivery,
    DeliveryTry,
    JobError,
    JobStatus,
    Many,
    PlacedPart,
    TextOrigin,
    ToolCall,
    Usage,
    WebhookEventType,
)
from domain.values import FinishRecord, JobHandle, RunRef, StoredJob, TextRun
from domain.words import preview
from storage.engine.schema import (
    CHANNELS,
    attempts,
    deliveries,
    delivery_tries,
    jobs,
    moment,
    requests,
    results,
    search_entries,
    transcript,
)

LARGE_REQUEST = 65_536
"""Characters of JSON: larger ones have images."""
BODIES = select(requests.c.job_id, requests.c.body).where(
    requests.c.job_id.in_(bindparam("ids", expanding=True)), func.length(requests.c.body) <= LARGE_REQUEST
)
PREVIEW = select(search_entries.c.preview).where(search_entries.c.job_id == bindparam("key"))
ORIGINS = select(attempts).where(attempts.c.job_id == bindparam("key")).order_by(attempts.c.number)
TOOL_CALLS: TypeAdapter[tuple[ToolCall, ...]] = TypeAdapter(Many[ToolCall])
PARTS: TypeAdapter[tuple[PlacedPart, ...]] = TypeAdapter(Many[PlacedPart])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _moment(value: int | None) -> Any:
    return None if value is None else moment(value)


HANDLE = (
    *(jobs.c.id, jobs.c.request_id, jobs.c.tenant, jobs.c.model, jobs.c.status, jobs.c.priority),
    *(jobs.c.replay_of, jobs.c.start_at, jobs.c.revision, jobs.c.created_at),
)
"""The columns of a JobHandle."""


def handle(row: Any, *, created: bool = False) -> JobHandle:
    return JobHandle(
        job_id=row.id,
        request_id=row.request_id,
        tenant=row.tenant,
        model=row.model,
        status=JobStatus(row.status),
        priority=row.priority,
        replay_of=row.replay_of,
        start_at=_moment(row.start_at),
        revision=row.revision,
        created_at=moment(row.created_at),
        created=created,
    )


def run_of(row: Row[Any]) -> RunRef:
    """The workflow run of a job, whether it was started yet or not."""
    if row.workflow_id is None:
        return RunRef(row.id)
    return RunRef(row.workflow_id, row.workflow_run_id, shared=row.batched)


def inline_run(row: Row[Any]) -> RunRef | None:
    """The run whose history has the job's request: of a job that was started straight through Temporal."""
    if row.inline_workflow_id is not None:
        return RunRef(row.inline_workflow_id, row.inline_run_id)
    # The row of such a job has both times from its insertion. So has that of a batch's job, whose run is not its own;
    # that of others never.
    return run_of(row) if row.workflow_started_at == row.created_at and not row.batched else None


def head(row: Row[Any]) -> dict[str, Any]:
    """The fields of a ChatResult that stand in the job's row."""
    return {
        "job_id": row.id,
        "request_id": row.request_id,
        "status": JobStatus(row.status),
        "model": row.model,
        "created_at": moment(row.created_at),
        "start_at": _moment(row.start_at),
        "started_at": _moment(row.started_at),
        "completed_at": _moment(row.completed_at),
        "epoch": row.epoch,
        "position": row.position,
        "metadata": row.metadata,
        "replay_of": row.replay_of,
        "previous_job_id": row.previous_job_id,
        "thread": row.thread or row.id,
        "batch_id": row.batch_id,
        "schedule_id": row.schedule_id,
        "deleted_at": _moment(row.deleted_at),
    }


async def job(connection: AsyncConnection, row: Row[Any]) -> StoredJob:
    """The whole job of a row in ``jobs``."""
    ledger_rows = await ledger(connection, row.id)
    if row.completed_at is None:
        body = await _running(connection, row, ledger_rows)
    else:
        body = outcome((await connection.execute(select(results).where(results.c.job_id == row.id))).one())
        if row.deleted_at is not None:
            body["content"] = None
    entry = (await connection.execute(PREVIEW, {"key": row.id})).first()
    new = {} if entry or row.deleted_at is not None else await _previews(connection, [row.id])
    replays = select(jobs.c.id).where(jobs.c.replay_of == row.id).order_by(jobs.c.created_at)
    return StoredJob(
        **head(row),
        **body,
        attempts=tuple(ledger_rows),
        provenance=await provenance(connection, row),
        wasted_tokens=wasted_tokens(ledger_rows, row.epoch),
        deliveries=await _deliveries(connection, row.id),
        replays=tuple((await connection.execute(replays)).scalars()),
        preview=entry.preview if entry else new.get(row.id),
        run=run_of(row),
    )


def listed() -> Select[Any]:
    """The query whose rows ``summaries`` maps."""
    ended = (results.c.usage, results.c.usage_estimated, results.c.error, results.c.finish_reason, results.c.sha256)
    found = (search_entries.c.number.label("entry"), search_entries.c.preview)
    query = select(jobs, *ended, *found).outerjoin(results, results.c.job_id == jobs.c.id)
    return query.outerjoin(search_entries, search_entries.c.job_id == jobs.c.id)


async def summaries(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> list[StoredJob]:
    """Jobs without their texts and lists, for listings."""
    new = await _previews(connection, [row.id for row in rows if row.entry is None and row.deleted_at is None])
    return [
        StoredJob(
            **head(row),
            **({} if row.sha256 is None else _outcome_head(row)),
            preview=new.get(row.id, row.preview),
            run=run_of(row),
        )
        for row in rows
    ]


async def _previews(connection: AsyncConnection, job_ids: Sequence[str]) -> Mapping[str, str | None]:
    """The previews of jobs that are too new for the search to have them, from their requests; not of large ones."""
    if not job_ids:
        return {}
    found = (await connection.execute(BODIES, {"ids": list(job_ids)})).all()
    return {job_id: preview(json.loads(body)) for job_id, body in found}


def outcome(result: Row[Any]) -> dict[str, Any]:
    """The fields of a job that its seal fixed."""
    return {
        "content": result.content,
        "reasoning": result.reasoning or None,
        **without_text(result),
        **_outcome_head(result),
    }


def without_text(result: Row[Any]) -> dict[str, Any]:
    """The fields of an answer beside its text."""
    return {
        "tool_calls": TOOL_CALLS.validate_json(result.tool_calls) if result.tool_calls else None,
        "content_parts": PARTS.validate_json(result.parts) if result.parts else None,
        "extra": json.loads(result.extra) if result.extra else None,
    }


def _outcome_head(result: Any) -> dict[str, Any]:
    return {
        "finish_reason": result.finish_reason,
        "usage": Usage.model_validate_json(result.usage) if result.usage else None,
        "usage_estimated": result.usage_estimated,
        "error": JobError.model_validate_json(result.error) if result.error else None,
        "sha256": result.sha256,
    }


async def _running(connection: AsyncConnection, row: Row[Any], ledger_rows: Sequence[Attempt]) -> dict[str, Any]:
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    return answer(await transcript_runs(connection, row), finish, ledger_rows)


def answer(runs: Sequence[TextRun], finish: FinishRecord | None, ledger_rows: Sequence[Attempt]) -> dict[str, Any]:
    """The fields of a ChatResult that transcript, finish and ledger hold."""
    texts = channel_texts(runs)
    usage, estimated = total_usage(ledger_rows, finish)
    return {
        "content": texts[Channel.CONTENT],
        "reasoning": texts[Channel.REASONING] or None,
        "tool_calls": finish.tool_calls or None if finish else None,
        "finish_reason": finish.reason if finish else None,
        "content_parts": finish.parts or None if finish else None,
        "extra": finish.extra if finish else None,
        "usage": usage,
        "usage_estimated": estimated,
        "sha256": sha256(texts[Channel.CONTENT]),
    }


def channel_texts(runs: Sequence[TextRun]) -> dict[Channel, str]:
    """The text of each channel."""
    return {channel: "".join(run.text for run in runs if run.channel is channel) for channel in CHANNELS}


async def transcript_runs(connection: AsyncConnection, row: Row[Any]) -> Sequence[TextRun]:
    """The text of a transcript that is not yet compacted, in order; the tail in the job's row comes last."""
    runs: list[TextRun] = []
    if len(row.tail) < row.position:
        columns = (transcript.c.position, transcript.c.channel, transcript.c.text, transcript.c.token_count)
        query = select(*columns).where(transcript.c.job_id == row.id, transcript.c.epoch == row.epoch)
        found = (await connection.execute(query.order_by(transcript.c.position))).all()
        runs = [TextRun(position, CHANNELS[number], text, count) for position, number, text, count in found]
    return [*runs, *tail_of(row)]


def tail_of(row: Row[Any]) -> Sequence[TextRun]:
    """The newest text, which is in the job's row: one run or none."""
    return (TextRun(row.position, CHANNELS[row.tail_channel], row.tail, row.token_count),) if row.tail else ()


def compacted_runs(texts: Mapping[Channel, str], runs: str) -> list[TextRun]:
    """The runs of a compacted transcript, from the text of each channel and ``results.runs``."""
    found, taken, position = [], dict.fromkeys(CHANNELS, 0), 0
    for number, length, token_count in json.loads(runs):
        channel = CHANNELS[number]
        start, position = taken[channel], position + length
        taken[channel] += length
        found.append(TextRun(position, channel, texts[channel][start : taken[channel]], token_count))
    return found


def total_usage(ledger_rows: Sequence[Attempt], finish: FinishRecord | None) -> tuple[Usage | None, bool]:
    """The usage of all attempts together, and whether a part of it is estimated; None if there is none."""
    counted = [attempt.usage for attempt in ledger_rows if attempt.usage]
    if finish and finish.usage and not any(a.number == finish.attempt and a.usage for a in ledger_rows):
        counted.append(finish.usage)
    if not counted:
        return None, False
    sums: dict[str, Any] = {}
    for usage in counted:
        sums = _added(sums, usage.model_dump())
    estimated = finish is not None and finish.estimated
    return Usage(**sums), estimated or any(attempt.estimated for attempt in ledger_rows)


def _added(sums: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of counters, also of those within others (``prompt_tokens_details``); of any other value the last."""
    found = dict(sums)
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(name, {}), dict):
            found[name] = _added(found.get(name, {}), value)
        else:
            adds = isinstance(value, int | float) and isinstance(found.get(name, 0), int | float)
            found[name] = found.get(name, 0) + value if adds else value
    return found


async def ledger(connection: AsyncConnection, job_id: str) -> Sequence[Attempt]:
    query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [
        Attempt(
            number=row.number,
            started_at=moment(row.started_at),
            ended_at=_moment(row.ended_at),
            outcome=row.outcome,
            http_status=row.http_status,
            usage=Usage.model_validate_json(row.usage) if row.usage else None,
            estimated=row.estimated,
            first_token_ms=row.first_token_ms,
            tokens_per_second=row.tokens_per_second,
            model=row.model,
            epoch=row.epoch,
        )
        for row in (await connection.execute(query)).all()
    ]


async def provenance(connection: AsyncConnection, row: Row[Any]) -> tuple[TextOrigin, ...]:
    """The stretches of a job's text, each by the attempt that wrote it; one of them may still be growing."""
    if row.deleted_at is not None or not row.position:
        return ()
    found = (await connection.execute(ORIGINS, {"key": row.id})).all()
    first = max((place for place, one in enumerate(found) if not one.tokens_before), default=0)
    origins: list[TextOrigin] = []
    for place, one in enumerate(found[first:], start=first + 1):
        start = origins[-1].end if origins else 0
        end = row.position if place == len(found) or one.position is None else min(one.position, row.position)
        if end > start:
            origins.append(
                TextOrigin(
                    start=start,
                    end=end,
                    attempt=one.number,
                    model=one.model or row.model,
                    seam=None if not origins else "confirmed" if one.confirmed else "unconfirmed",
                )
            )
    return tuple(origins)


def wasted_tokens(ledger_rows: Sequence[Attempt], epoch: int) -> int:
    """Tokens of a job's calls beyond those of one uninterrupted call: without the first prompt of the present epoch,
    and the answers to it. Attempts of earlier versions, whose epoch is not known, count as of the present one."""
    usages = [(attempt.epoch in (None, epoch), attempt.usage) for attempt in ledger_rows if attempt.usage is not None]
    kept = [usage for present, usage in usages if present and usage.total_tokens]
    # A server may count tokens in the total alone, as those of a thought that it keeps to itself.
    needed = sum(usage.completion_tokens for usage in kept[1:]) + (kept[0].total_tokens if kept else 0)
    return max(0, sum(usage.total_tokens for _, usage in usages) - needed)


async def _deliveries(connection: AsyncConnection, job_id: str) -> tuple[Delivery, ...]:
    query = select(deliveries).where(deliveries.c.job_id == job_id).order_by(deliveries.c.created_at)
    rows = (await connection.execute(query)).all()
    return tuple([delivery(row, await tries(connection, row.id)) for row in rows])


def delivery(row: Row[Any], made: Sequence[DeliveryTry]) -> Delivery:
    return Delivery(
        id=row.id,
        event=WebhookEventType(row.event),
        url=row.url,
        status=row.status,
        created_at=moment(row.created_at),
        next_try_at=_moment(row.next_try_at),
        delivered_at=_moment(row.delivered_at),
        tries=tuple(made),
    )


async def tries(connection: AsyncConnection, delivery_id: str) -> Sequence[DeliveryTry]:
    query = select(delivery_tries).where(delivery_tries.c.delivery_id == delivery_id)
    return [
        DeliveryTry(
            number=row.number,
            started_at=moment(row.started_at),
            status_code=row.status_code,
            latency_ms=row.latency_ms,
            error=row.error,
            response=row.response,
        )
        for row in (await connection.execute(query.order_by(delivery_tries.c.number))).all()
    ]
