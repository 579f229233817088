"""Rows to contracts: a job as its readers see it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import (
    Attempt,
    Channel,
    Delivery,
    DeliveryTry,
    Job,
    JobError,
    JobStatus,
    Many,
    PlacedPart,
    ToolCall,
    Usage,
    WebhookEventType,
)
from domain.values import FinishRecord, TextPiece
from storage.engine.schema import CHANNELS, attempts, deliveries, delivery_tries, jobs, moment, results, transcript

TOOL_CALLS: TypeAdapter[tuple[ToolCall, ...]] = TypeAdapter(Many[ToolCall])
PARTS: TypeAdapter[tuple[PlacedPart, ...]] = TypeAdapter(Many[PlacedPart])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _moment(value: int | None) -> Any:
    return None if value is None else moment(value)


RunUrl = Callable[[str], str]
"""The address of a workflow in the Temporal UI, by its id."""


def run_link(row: Row[Any], run_url: RunUrl) -> str:
    """Where the Temporal UI shows a job's run."""
    if row.workflow_id is None:
        return run_url(row.id)
    return f"{run_url(row.workflow_id)}/{row.workflow_run_id}"


def _head(row: Row[Any], run_url: str) -> dict[str, Any]:
    return {
        "job_id": row.id,
        "request_id": row.request_id,
        "status": JobStatus(row.status),
        "model": row.model,
        "created_at": moment(row.created_at),
        "started_at": _moment(row.started_at),
        "completed_at": _moment(row.completed_at),
        "epoch": row.epoch,
        "position": row.position,
        "metadata": row.metadata,
        "replay_of": row.replay_of,
        "batch_id": row.batch_id,
        "temporal_url": run_url,
        "deleted_at": _moment(row.deleted_at),
    }


async def job(connection: AsyncConnection, row: Row[Any], run_url: str) -> Job:
    """The whole job of a row in ``jobs``."""
    ledger_rows = await ledger(connection, row.id)
    if row.completed_at is None:
        body = await _running(connection, row, ledger_rows)
    else:
        body = outcome((await connection.execute(select(results).where(results.c.job_id == row.id))).one())
        if row.deleted_at is not None:
            body["content"] = None
    return Job(
        **_head(row, run_url),
        **body,
        attempts=tuple(ledger_rows),
        deliveries=await _deliveries(connection, row.id),
        replays=await _replays(connection, row.id),
    )


def listed() -> Select[Any]:
    """What ``summary`` needs of jobs and their results."""
    head = (results.c.usage, results.c.usage_estimated, results.c.error, results.c.finish_reason, results.c.sha256)
    return select(jobs, *head).outerjoin(results, results.c.job_id == jobs.c.id)


def summary(row: Row[Any], run_url: str) -> Job:
    """A job without its texts and lists, for listings."""
    return Job(**_head(row, run_url), **({} if row.sha256 is None else _outcome_head(row)))


def outcome(result: Row[Any]) -> dict[str, Any]:
    """The part of a job that the seal fixed."""
    return {
        "content": result.content,
        "reasoning": result.reasoning or None,
        "tool_calls": TOOL_CALLS.validate_json(result.tool_calls) if result.tool_calls else None,
        "content_parts": PARTS.validate_json(result.parts) if result.parts else None,
        **_outcome_head(result),
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
    texts = await channel_texts(connection, row)
    finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
    usage, estimated = total_usage(ledger_rows, finish)
    return {
        "content": texts[Channel.CONTENT],
        "reasoning": texts[Channel.REASONING] or None,
        "tool_calls": finish.tool_calls or None if finish else None,
        "finish_reason": finish.reason if finish else None,
        "content_parts": finish.parts or None if finish else None,
        "usage": usage,
        "usage_estimated": estimated,
        "sha256": sha256(texts[Channel.CONTENT]),
    }


async def channel_texts(connection: AsyncConnection, row: Row[Any]) -> dict[Channel, str]:
    """The text so far per channel, of a transcript that is not yet compacted."""
    pieces: dict[Channel, list[str]] = {channel: [] for channel in CHANNELS}
    for piece in await transcript_pieces(connection, row):
        pieces[CHANNELS[piece.channel]].append(piece.text)
    return {channel: "".join(texts) for channel, texts in pieces.items()}


async def transcript_pieces(connection: AsyncConnection, row: Row[Any]) -> Sequence[TextPiece]:
    """The pieces of a transcript that is not yet compacted, in order, the row's tail last."""
    pieces: list[TextPiece] = []
    if len(row.tail) < row.position:
        columns = (transcript.c.position, transcript.c.channel, transcript.c.text, transcript.c.token_count)
        query = select(*columns).where(transcript.c.job_id == row.id, transcript.c.epoch == row.epoch)
        pieces = [TextPiece(*piece) for piece in await connection.execute(query.order_by(transcript.c.position))]
    tail = TextPiece(row.position, row.tail_channel, row.tail, row.token_count)
    return [*pieces, tail] if row.tail else pieces


def compacted_pieces(texts: Sequence[str], runs: str) -> list[TextPiece]:
    """The pieces of a compacted transcript, one per run, from a text per channel and ``results.runs``."""
    pieces, taken, position = [], [0] * len(texts), 0
    for channel, length, token_count in json.loads(runs):
        start, position = taken[channel], position + length
        taken[channel] += length
        pieces.append(TextPiece(position, channel, texts[channel][start : taken[channel]], token_count))
    return pieces


def total_usage(ledger_rows: Sequence[Attempt], finish: FinishRecord | None) -> tuple[Usage | None, bool]:
    """The sum over all attempts, and whether a part of it is estimated. None before there is anything to sum."""
    counted = [attempt.usage for attempt in ledger_rows if attempt.usage]
    if finish and finish.usage and not any(a.number == finish.attempt and a.usage for a in ledger_rows):
        counted.append(finish.usage)
    if not counted:
        return None, False
    sums: dict[str, Any] = {}
    for usage in counted:
        for name, value in usage.model_dump().items():
            adds = isinstance(value, int | float) and isinstance(sums.get(name, 0), int | float)
            sums[name] = sums.get(name, 0) + value if adds else value
    estimated = finish is not None and finish.estimated
    return Usage(**sums), estimated or any(attempt.estimated for attempt in ledger_rows)


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
        )
        for row in (await connection.execute(query)).all()
    ]


async def _replays(connection: AsyncConnection, job_id: str) -> tuple[str, ...]:
    query = select(jobs.c.id).where(jobs.c.replay_of == job_id).order_by(jobs.c.created_at)
    return tuple((await connection.execute(query)).scalars())


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
