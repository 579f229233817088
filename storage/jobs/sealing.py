"""Seals jobs in one transaction: final rows, results, compacted transcripts, stored deliveries, tallies of batches.

A reader that sees a terminal status can read the whole result, and a delivery exists from the same moment, so that
it can be late but not lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chatjobs.contracts import (
    Channel,
    ChatRequest,
    ChatResult,
    JobError,
    JobStatus,
    Usage,
    Webhook,
    WebhookEventType,
    rfc3339,
)
from domain import fallback
from domain.errors import SealConflict
from domain.names import delivery_id
from domain.outcomes import LENGTH_LIMITS, WORKER_LOST, AttemptOutcome
from domain.payloads import Ending, Sealed
from domain.text import clean
from domain.values import OK, AttemptEnd, FinishRecord, TextRun
from storage.batches import tally
from storage.engine.schema import CHANNELS, attempts, deliveries, micros, moment, now, requests, results, transcript
from storage.jobs import mapping
from storage.jobs.ledger import close_open_attempts
from storage.jobs.rows import CHANGED, REQUEST, queue_end
from storage.rate_limits import lane_queue
from storage.webhooks.tenant_endpoints import subscribers, urls_for

WebhookBody = Callable[[ChatResult, str], bytes]
"""Makes the body of the webhook that announces a job's outcome, in the format of its Webhook."""
USUAL_FORMAT = "chatjobs"
"""The format of webhooks to endpoints of all jobs."""
RESULTS = insert(results)
DELIVERIES = insert(deliveries)
PIECES_AGAIN = insert(transcript)
WITH_FALLBACK = select(requests).where(
    requests.c.job_id.in_(bindparam("keys", expanding=True)), requests.c.body.contains(fallback.FIELD)
)
EXCUSED = update(attempts).where(attempts.c.job_id.in_(bindparam("keys", expanding=True))).values(excused=True)
FINISHED = update(attempts).where(attempts.c.job_id == bindparam("key"), attempts.c.number == bindparam("its_number"))
PIECES = (
    select(transcript)
    .where(transcript.c.job_id.in_(bindparam("keys", expanding=True)))
    .order_by(transcript.c.job_id, transcript.c.position)
)
DELETE_PIECES = delete(transcript).where(transcript.c.job_id.in_(bindparam("keys", expanding=True)))
RESULTS_OF = select(results).where(results.c.job_id.in_(bindparam("keys", expanding=True)))
DELETE_RESULTS = delete(results).where(results.c.job_id.in_(bindparam("keys", expanding=True)))
CANCELLED = Ending(job_id="-", status=JobStatus.CANCELLED)
EXPIRED = "sweeper"
"""``sealed_by`` of a job whose queue time ended, until a run claims it. "": no run sealed it, and none adopts it."""
FIRST_TRY_SECONDS = 20
"""The time that the process that sealed a job without its workflow has for the first try of its webhook; then any
sweeper may make it."""
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
    return _outcome(row, JobStatus(row.status), result.sha256, error, stored)


def _outcome(
    row: Row[Any],
    status: JobStatus,
    sha256: str,
    error: JobError | None,
    delivery: str | None,
    endpoints: Sequence[str] = (),
) -> Sealed:
    return Sealed(
        job_id=row.id,
        status=status,
        model=row.model,
        position=row.position,
        sha256=sha256,
        error=error,
        delivery_id=delivery,
        endpoint_deliveries=tuple(endpoints),
    )


class _Stored(NamedTuple):
    """The deliveries of a job: that of its own webhook, and those of endpoints of all jobs."""

    own: str | None
    endpoints: Sequence[str]


class JobEnding(NamedTuple):
    """An open row of ``jobs``, locked, and the ending that it shall have. ``run_id``: for the column ``sealed_by``."""

    row: Row[Any]
    ending: Ending
    run_id: str


@dataclass(slots=True)
class _Closing:
    """A job while it is sealed. ``answer``: the fields of a ChatResult that its result fixes."""

    row: Row[Any]
    run_id: str
    finish: FinishRecord | None
    status: JobStatus
    error: JobError | None
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> FinishRecord | None:
        """The end of the answer, unless the job failed all the same."""
        return None if self.status is JobStatus.FAILED else self.finish

    @property
    def only(self) -> bool:
        """One attempt brought all of the answer, or there was none at all: the ledger has nothing to add."""
        return self.row.attempt == 0 or (self.told is not None and self.row.attempt == 1)


async def seal_all(
    connection: AsyncConnection, orders: Sequence[JobEnding], webhook_body: WebhookBody
) -> list[Sealed | SealConflict]:
    """Seal jobs, with a statement for all of them at each step. An ending that does not fit is a SealConflict."""
    outcomes: list[Sealed | SealConflict | _Closing] = []
    for row, ending, run_id in orders:
        finish = FinishRecord.model_validate_json(row.finish) if row.finish else None
        try:
            outcomes.append(_Closing(row, run_id, finish, *_verdict(row, ending, finish)))
        except SealConflict as conflict:
            outcomes.append(conflict)
    closing = [one for one in outcomes if isinstance(one, _Closing)]
    if closing:
        await _settle_attempts(connection, closing)
        await _store_results(connection, closing)
        time = micros(now())
        await _close_rows(connection, closing, time)
        await lane_queue.leave_all(connection, [one.row.id for one in closing])
        stored = await _store_deliveries(connection, closing, time, webhook_body)
        await tally.count(connection, [_ended(one) for one in closing if one.row.batch_id is not None])
    return [
        _outcome(one.row, one.status, one.answer["sha256"], one.error, *stored[one.row.id])
        if isinstance(one, _Closing)
        else one
        for one in outcomes
    ]


def _ended(one: _Closing) -> tally.Ended:
    return tally.Ended(one.row.batch_id, one.status, one.answer["usage"], one.error.code if one.error else None)


async def _close_rows(connection: AsyncConnection, closing: Sequence[_Closing], time: int) -> None:
    await connection.execute(
        CHANGED,
        [
            {
                "key": one.row.id,
                "status": one.status.value,
                "completed_at": time,
                "progressed_at": time,
                "fence": one.row.fence + 1,  # an attempt that still writes under the old fence changes nothing
                "finish": None,
                "tail": "",
                "sealed_by": one.run_id,
                "queue_until": None,
                "error_code": clean(one.error.code)[:64] if one.error else None,
            }
            for one in closing
        ],
    )


async def _store_results(connection: AsyncConnection, closing: Sequence[_Closing]) -> None:
    """Store the results, with each transcript compacted to a text per channel and the list of its runs."""
    pieces = await _pieces(connection, [one.row for one in closing if len(one.row.tail) < one.row.position])
    rows = []
    for one in closing:
        runs = [*pieces.get(one.row.id, ()), *mapping.tail_of(one.row)]
        ledger_rows = [] if one.only else await mapping.ledger(connection, one.row.id)
        answer = mapping.answer(runs, one.told, ledger_rows) | {"error": one.error}
        if one.told is not None:
            answer["finish_reason"] = one.told.reason[:64]
        one.answer = answer
        rows.append(_result_row(one, runs))
    await connection.execute(RESULTS, rows)
    if pieces:
        await connection.execute(DELETE_PIECES, {"keys": list(pieces)})


async def _pieces(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> dict[str, list[TextRun]]:
    """The text of each job's epoch that is not in its row, in order."""
    epochs = {row.id: row.epoch for row in rows}
    found: dict[str, list[TextRun]] = {job_id: [] for job_id in epochs}
    if epochs:
        for row in (await connection.execute(PIECES, {"keys": list(epochs)})).all():
            if row.epoch == epochs[row.job_id]:
                found[row.job_id].append(TextRun(row.position, CHANNELS[row.channel], row.text, row.token_count))
    return found


def _result_row(one: _Closing, runs: Sequence[TextRun]) -> dict[str, Any]:
    answer = one.answer
    return {
        "job_id": one.row.id,
        "content": answer["content"],
        "reasoning": answer["reasoning"] or "",
        "runs": json.dumps(_channel_lengths(runs)),
        "sha256": answer["sha256"],
        "finish_reason": answer["finish_reason"],
        "tool_calls": _json(mapping.TOOL_CALLS, answer["tool_calls"]),
        "parts": _json(mapping.PARTS, answer["content_parts"]),
        "usage": answer["usage"].model_dump_json() if answer["usage"] else None,
        "usage_estimated": answer["usage_estimated"],
        "error": one.error.model_dump_json() if one.error else None,
        "extra": json.dumps(answer["extra"]) if answer["extra"] else None,
    }


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


async def _settle_attempts(connection: AsyncConnection, closing: Sequence[_Closing]) -> None:
    """Close the ledgers: the attempt that finished, from its record, and any other that is open."""
    finished = [
        {
            "key": one.row.id,
            "its_number": finish.attempt,
            "ended_at": micros(finish.ended_at),
            "outcome": AttemptOutcome.FINISHED.value,
            "http_status": OK,
            "usage": finish.usage.model_dump_json() if finish.usage else None,
            "estimated": finish.estimated,
            "first_token_ms": finish.first_token_ms,
            "tokens_per_second": finish.tokens_per_second,
        }
        for one in closing
        if (finish := one.finish) is not None
    ]
    if finished:
        await connection.execute(FINISHED, finished)
    for one in closing:
        if one.row.attempt > (one.finish.attempt if one.finish else 0):
            known = one.error.code if one.error and one.error.code != WORKER_LOST else AttemptOutcome.LOST
            outcome = AttemptOutcome.CANCELLED if one.status is JobStatus.CANCELLED else known
            await close_open_attempts(connection, one.row, AttemptEnd(outcome))


async def _store_deliveries(
    connection: AsyncConnection, closing: Sequence[_Closing], time: int, webhook_body: WebhookBody
) -> dict[str, _Stored]:
    """Store the deliveries, each with the webhook's id and its exact body, of outcomes whose event is subscribed.

    Returns them by the job's id.
    """
    listening = await subscribers(connection, {one.row.tenant for one in closing if one.row.has_endpoints})
    stored, rows = {}, []
    for one in closing:
        webhook = Webhook.model_validate_json(one.row.webhook) if one.row.webhook else None
        event = WebhookEventType.of(one.status)
        own = webhook if webhook is not None and event in webhook.events else None
        urls = urls_for(event, listening.get(one.row.tenant, ()), besides=own.url if own else None)
        made = _delivery_rows(one, event, own, urls, time, webhook_body) if own or urls else []
        rows += made
        stored[one.row.id] = _Stored(
            next((row["id"] for row in made if not row["of_endpoint"]), None),
            [row["id"] for row in made if row["of_endpoint"]],
        )
    if rows:
        await connection.execute(DELIVERIES, rows)
    return stored


def _delivery_rows(
    one: _Closing,
    event: WebhookEventType,
    own: Webhook | None,
    endpoints: Sequence[str],
    time: int,
    webhook_body: WebhookBody,
) -> list[dict[str, Any]]:
    closed = mapping.head(one.row) | {"status": one.status, "completed_at": moment(time)}
    result = ChatResult(**closed, **one.answer)
    places: list[tuple[str, str | None, bytes]] = []
    if own is not None:
        places.append((own.url, None, webhook_body(result, own.format)))
    if endpoints:
        body = webhook_body(result, USUAL_FORMAT)
        places += [(url, url, body) for url in endpoints]
    return [
        {
            "id": delivery_id(one.row.id, event, one.row.revision, endpoint),
            "job_id": one.row.id,
            "tenant": one.row.tenant,
            "event": event.value,
            "url": url,
            "body": body,
            "body_timestamp": rfc3339(moment(time)),
            "status": "pending",
            "created_at": time,
            "next_try_at": time,
            "wanted_at": _wanted_at(one, time, of_endpoint=endpoint is not None),
            "of_endpoint": endpoint is not None,
        }
        for url, endpoint, body in places
    ]


def _wanted_at(one: _Closing, time: int, *, of_endpoint: bool) -> int | None:
    """When a sweeper makes the first try; None where the workflow of the job makes it."""
    if one.run_id == EXPIRED or (one.run_id and (one.row.batched or of_endpoint)):
        return time + FIRST_TRY_SECONDS * 1_000_000
    return None if one.run_id else time


# ------------------------------------------------------------------------------------------------- reopening


async def adopt(connection: AsyncConnection, row: Row[Any], run_id: str) -> None:
    """Give the seal of an expired job to the first run that claims it; a run after that (a Reset) reopens the job."""
    if row.sealed_by == EXPIRED:
        await connection.execute(CHANGED, {"key": row.id, "sealed_by": run_id})


def reopens(row: Row[Any], run_id: str) -> bool:
    """Whether a run that may reopen its job does: it failed, not by this run or by expiry, and was not deleted."""
    return (
        row.status == JobStatus.FAILED.value and row.sealed_by not in (None, run_id, EXPIRED) and row.deleted_at is None
    )


async def reopen(connection: AsyncConnection, row: Row[Any]) -> None:
    """Undo the seal of a failed job, for the run that has claimed it."""
    until = {row.id: await _queue_until(connection, row)}
    await reopen_all(connection, [row], {"status": JobStatus.IN_PROGRESS.value}, until)


async def reopen_all(
    connection: AsyncConnection,
    rows: Sequence[Row[Any]],
    columns: Mapping[str, Any],
    queue_until: Mapping[str, int | None] = MappingProxyType({}),
) -> None:
    """Undo the seals of locked jobs: their transcripts and ledgers go on, their next outcomes have a new revision, and
    their batches count them as open.

    ``columns``: what is set in all of their rows, ``queue_until``: by the job's id, besides.
    """
    keys = {"keys": [row.id for row in rows]}
    ended = {result.job_id: result for result in (await connection.execute(RESULTS_OF, keys)).all()}
    pieces = [piece for row in rows for piece in _reopened_pieces(row, ended[row.id])]
    if pieces:
        await connection.execute(PIECES_AGAIN, pieces)
    await connection.execute(DELETE_RESULTS, keys)
    await connection.execute(EXCUSED, keys)  # failures are counted from the beginning
    reopened = {
        "completed_at": None,
        "cancel_requested_at": None,
        "sealed_by": None,
        "error_code": None,
        "started_at": None,  # limits.totalSeconds starts again
        "progressed_at": micros(now()),
        **columns,
    }
    found = (await connection.execute(WITH_FALLBACK, keys)).all()
    firsts = {one.job_id: ChatRequest.model_validate_json(one.body).model for one in found}
    changes = [
        {
            "key": row.id,
            "revision": row.revision + 1,
            "queue_until": queue_until.get(row.id),
            "model": firsts.get(row.id, row.model),  # of fallbackModels, the first one may be back
        }
        for row in rows
    ]
    await connection.execute(CHANGED, [one | reopened for one in changes])
    taken_back = [_ended_before(row, ended[row.id]) for row in rows if row.batch_id is not None]
    await tally.count(connection, taken_back, sign=-1)


def _reopened_pieces(row: Row[Any], result: Row[Any]) -> list[dict[str, Any]]:
    """The text of a sealed job, as it stands in the transcript of an open one."""
    texts = {Channel.CONTENT: result.content, Channel.REASONING: result.reasoning}
    return [
        {"job_id": row.id, "epoch": row.epoch, **run._asdict(), "channel": CHANNELS.index(run.channel)}
        for run in mapping.compacted_runs(texts, result.runs)
    ]


def _ended_before(row: Row[Any], result: Row[Any]) -> tally.Ended:
    usage = Usage.model_validate_json(result.usage) if result.usage else None
    error = JobError.model_validate_json(result.error).code if result.error else None
    return tally.Ended(row.batch_id, JobStatus(row.status), usage, error)


async def _queue_until(connection: AsyncConnection, row: Row[Any]) -> int | None:
    """The new end of the time in the queue, for a job whose model was never called."""
    body = None if row.attempt else await connection.scalar(REQUEST, {"key": row.id})
    if body is None:
        return None
    return queue_end(micros(now()), ChatRequest.model_validate_json(body))
