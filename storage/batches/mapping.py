"""Maps rows to values: batches and the lines of their output."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Row

from chatjobs.contracts import Batch, BatchCounts, BatchProgress, BatchStatus, JobError, ReplayFilter, Usage
from domain.replays import ERROR_RATE
from storage.batches.tally import BatchTally
from storage.engine.schema import micros, moment, now

BatchBodies = Callable[[BatchProgress], bytes]
"""Makes the body of the webhook that announces a batch's end."""


def _moment(value: int | None) -> Any:
    return None if value is None else moment(value)


def progress(row: Row[Any], running: int) -> BatchProgress:
    """The state of a batch; ``running``: the number of its jobs that have begun and not ended."""
    return BatchProgress(**_state(row, BatchTally.read(row.tally), running))


def batch(row: Row[Any], running: int) -> Batch:
    tally = BatchTally.read(row.tally)
    return Batch(
        **_state(row, tally, running),
        created_at=moment(row.created_at),
        started_at=_moment(row.started_at),
        schedule_id=row.schedule_id,
        concurrency=row.concurrency,
        lane=row.lane,
        deadline=_moment(row.deadline),
        errors_by_code=dict(sorted(tally.errors.items(), key=lambda item: (-item[1], item[0]))),
        **(_replay(row) if row.kind == "replay" else {}),
    )


def _replay(row: Row[Any]) -> dict[str, Any]:
    """The fields that only a replay has."""
    error = JobError.model_validate_json(row.error) if row.error else None
    return {
        "kind": row.kind,
        "filter": ReplayFilter.model_validate_json(row.filter),
        "overrides": json.loads(row.overrides),
        "canary": row.canary,
        "max_error_rate": row.max_error_rate,
        "phase": row.phase,
        "stopped": error.message if error is not None and error.code == ERROR_RATE else None,
        "skipped": row.skipped,
    }


def _state(row: Row[Any], tally: BatchTally, running: int) -> dict[str, Any]:
    status = BatchStatus(row.status)
    left = max(row.total - tally.ended, 0)
    counts = BatchCounts(
        total=row.total,
        queued=max(left - running, 0),
        running=min(running, left),
        completed=tally.completed,
        failed=tally.failed,
        cancelled=tally.cancelled,
    )
    time = micros(now())
    rate = None if status.terminal or row.started_at is None else tally.rate(time, row.started_at)
    end = moment(time) + timedelta(seconds=left / rate) if rate and status is BatchStatus.IN_PROGRESS else None
    if status.terminal and row.started_at is not None and tally.ended:
        rate = round(tally.ended / max((row.completed_at - row.started_at) / 1e6, 0.001), 3)
    return {
        "batch_id": row.id,
        "name": row.name,
        "status": status,
        "revision": row.revision,
        "counts": counts,
        "usage": Usage(**tally.usage) if tally.usage else None,
        "rate_per_second": rate,
        "expected_end_at": end,
        "error": JobError.model_validate_json(row.error) if row.error else None,
        "completed_at": _moment(row.completed_at),
    }
