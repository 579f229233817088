"""A job with all its details, and the list of jobs, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chatjobs.contracts import Attempt, Delivery, Job, JobStatus
from cli.output import COLOURS, Records, local_time, safe, seconds
from cli.views import advice, money
from cli.waiting import queue_position

OPTIONS = {"batch_id": "batch", "schedule_id": "schedule"}
"""The options of `starter.py list` that have other names than their fields of JobFilter."""


def job_page(job: Job) -> RenderableType:
    """All details of a job."""
    head = Text(job.job_id, style="bold").append(f"  {job.status}", COLOURS.get(job.status, "cyan"))
    page: list[RenderableType] = [head, _facts(job)]
    if job.attempts:
        page += [_heading("attempts"), _attempts(job.attempts)]
    if job.deliveries:
        page += [_heading("deliveries"), _deliveries(job.deliveries)]
    for name, text in (("reasoning", job.reasoning), ("answer", job.content)):
        if text:
            page += [_heading(name), Text(safe(text))]
    if job.tool_calls:
        calls = [call.model_dump(mode="json") for call in job.tool_calls]
        page += [_heading("tool calls"), Text(safe(json.dumps(calls, ensure_ascii=False, indent=2)))]
    return Group(*page)


def _facts(job: Job) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _named_facts(job):
        if value:
            table.add_row(name, safe(value))
    return table


def _named_facts(job: Job) -> Iterator[tuple[str, str | None]]:
    yield "prompt", job.preview
    yield "model", job.model
    yield "request", job.request_id
    yield "created", local_time(job.created_at)
    yield "starts", f"not before {local_time(job.start_at)}" if job.start_at and not job.started_at else None
    yield "queue", queue_position(job.queue) if job.queue else None
    yield "started", local_time(job.started_at)
    yield (
        "ended",
        local_time(job.completed_at) and f"{local_time(job.completed_at)} ({_took(job.created_at, job.completed_at)})",
    )
    if usage := job.usage:
        estimated = ", partly estimated" if job.usage_estimated else ""
        yield (
            "tokens",
            f"{usage.prompt_tokens} in, {usage.completion_tokens} out, {usage.total_tokens} in all{estimated}",
        )
    yield "cost", money(job.cost)
    yield "finish", job.finish_reason
    yield "text", f"{job.position} characters, epoch {job.epoch}"
    yield "sha256", job.sha256
    yield "metadata", _pairs(job.metadata)
    yield "replay of", job.replay_of
    yield "replies to", job.previous_job_id
    yield "thread", job.thread if job.thread != job.job_id else None
    yield "batch", job.batch_id
    if job.error:
        yield "error", f"{job.error.message} ({job.error.code})"
        yield "to do", advice(job)
    yield "run", job.temporal_url


def _attempts(attempts: Sequence[Attempt]) -> RenderableType:
    table = Records("#", "started", "took", "outcome", "http", "tokens", "first token", "tokens/s")
    for one in attempts:
        tokens = f"{'~' if one.estimated else ''}{one.usage.completion_tokens}" if one.usage else ""
        table.add_row(
            str(one.number),
            local_time(one.started_at),
            _took(one.started_at, one.ended_at),
            safe(one.outcome or "running"),
            str(one.http_status or ""),
            tokens,
            f"{one.first_token_ms / 1000:.2f} s" if one.first_token_ms is not None else "",
            f"{one.tokens_per_second:.1f}" if one.tokens_per_second else "",
        )
    return table


def _deliveries(deliveries: Sequence[Delivery]) -> RenderableType:
    table = Records("event", "to", "status", "try", "at", "answer", "took")
    for delivery in deliveries:
        waits = f", next {local_time(delivery.next_try_at)}" if delivery.next_try_at else ""
        status = Text(delivery.status + waits, style=COLOURS.get(delivery.status, ""))
        table.add_row(delivery.event.value, safe(delivery.url), status)
        for one in delivery.tries:
            answer = " ".join(filter(None, (str(one.status_code or ""), one.error)))
            table.add_row("", "", "", str(one.number), local_time(one.started_at), safe(answer), f"{one.latency_ms} ms")
    return table


def job_list(jobs: Sequence[Job]) -> RenderableType:
    """One line per job; on a narrow screen the last columns are cut, on a very narrow one a job has several lines."""
    priced = any(job.cost for job in jobs)
    names = (
        "job",
        "status",
        "created",
        "tokens",
        *(("cost",) if priced else ()),
        "model",
        "note",
        "prompt",
        "metadata",
    )
    whole = (max((len(job.job_id) for job in jobs), default=0), len("in_progress"), len("01-31 00:00:00"))
    list_ = Records(*names, overflow="ellipsis", least=sum(whole) + 2 * len(whole))
    for column in list_.table.columns:
        column.no_wrap = True
    for column, width in zip(list_.table.columns, whole, strict=False):
        column.min_width = width
    for job in jobs:
        note = _note(job)
        status = Text(job.status.value, style=COLOURS.get(job.status, "cyan"))
        tokens = str(job.usage.completion_tokens) if job.usage else ""
        created = f"{job.created_at.astimezone():%m-%d %H:%M:%S}"
        prompt = safe(" ".join((job.preview or "").split()))
        costs = (money(job.cost),) if priced else ()
        facts = (job.model, safe(note), prompt, safe(_pairs(job.metadata)))
        list_.add_row(job.job_id, status, created, tokens, *costs, *facts)
    return list_


def nothing_listed(filters: Mapping[str, object]) -> str:
    """What to do about an empty list. ``filters``: those that were given, by the names of JobFilter."""
    if not filters:
        return "there are no jobs yet; start one: starter.py start PROMPT"
    options = ", ".join(f"--{OPTIONS.get(name, name).replace('_', '-')}" for name in filters)
    hint = "; each of the words must be there, and only the last may be unfinished" if "search" in filters else ""
    return f"no job matches{hint}. Leave out or change {options}; `starter.py list` shows all"


def _note(job: Job) -> str:
    """The error, when a delayed job starts, or whether the job is a replay or a reply."""
    if job.error:
        return job.error.code
    if job.start_at and job.status is JobStatus.QUEUED:
        return f"at {job.start_at.astimezone():%m-%d %H:%M:%S}"
    if job.replay_of:
        return "replay"
    return "reply" if job.previous_job_id else ""


def _heading(name: str) -> Text:
    return Text(f"\n{name}", style="bold")


def _pairs(metadata: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in metadata.items())


def _took(begin: datetime, end: datetime | None) -> str:
    return seconds(end - begin) if end else ""
