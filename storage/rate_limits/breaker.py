"""A lane's circuit breaker: when the model fails calls in a row, all jobs wait and one at a time probes the model.

Closed: calls start, and failures in a row are counted. THRESHOLD of them open it. Open: no call starts until the wait
is over, then one job probes. A probe that fails makes the wait longer, an answer closes the breaker.

The failures that opened it, and those while it was open, are excused: they do not count against a job's own attempts.
If all of them were of a single job, and another job's call is answered then, the cause was that job and not the model:
its failures count after all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.text import clean
from domain.timings import Timings
from storage.engine.schema import attempts, lanes

SECOND = 1_000_000
"""In microseconds, the unit of all times in storage."""
THRESHOLD = 3
"""Failures in a row. Two may be chance; the usual budget of a job is five, so that a job that is alone opens it before
its own attempts are used up."""
PROBE_SECONDS = 90.0
"""A probe that says nothing for so long is given up, and another job may try."""
ANSWER_SECONDS = 2.0
"""A probe is expected to tell something within this time."""
ALONE_SECONDS = 10.0
"""The job whose probe failed lets others try; after this time, if none came, it may try again."""
LONGEST_ASKED_SECONDS = 300.0
"""The longest wait that a model can ask for."""
MOST_SUSPECTS = 50
CLOSED: dict[str, Any] = {
    "failures": 0,
    "openings": 0,
    "open_until": 0,
    "probe": None,
    "probe_until": 0,
    "suspects": None,
    "last_error": None,
}


@dataclass(frozen=True, slots=True)
class Outage:
    """An open breaker: no call starts for ``seconds``. ``opened``: it was closed before."""

    seconds: float
    opened: bool


def is_open(lane: Row[Any]) -> bool:
    return bool(lane.openings > 0)


def next_probe_at(lane: Row[Any], time: int) -> int:
    """When the next job may probe. A time further ahead than any that is ever written is ignored."""
    until = max(lane.open_until, lane.probe_until)
    return int(until) if until <= time + int(LONGEST_ASKED_SECONDS * SECOND) else time


def expected_start(lane: Row[Any], time: int) -> int:
    """When calls may start again if the next probe, or the current one, succeeds."""
    until = next_probe_at(lane, time)
    return min(until, time + int(ANSWER_SECONDS * SECOND)) if lane.probe_until > time else until


def may_probe(lane: Row[Any], time: int, job_id: str, *, others: bool) -> bool:
    """Whether a job may probe the model now. ``others``: other jobs wait that could."""
    if lane.probe == job_id and lane.probe_until:  # its worker died while it probed
        return True
    until = next_probe_at(lane, time)
    if time < until:
        return False
    return lane.probe != job_id or not others or time >= until + int(ALONE_SECONDS * SECOND)


def probe_changes(time: int, job_id: str) -> dict[str, Any]:
    """The changes of the lane's row when a job begins to probe."""
    return {"probe": job_id, "probe_until": time + int(PROBE_SECONDS * SECOND)}


async def record_failure(
    connection: AsyncConnection,
    lane: Row[Any],
    time: int,
    call: tuple[str, int],
    message: str,
    retry_after: float = 0.0,
    *,
    timings: Timings = Timings(),
) -> Outage | None:
    """Record a failed ``call`` (job, number of the attempt). ``retry_after``: the seconds that the model asked for.

    Returns None if the breaker stays closed.
    """
    suspects = [*_suspects(lane), list(call)][-MOST_SUSPECTS:]
    changes = {"suspects": json.dumps(suspects), "last_error": clean(message)[:256], "failures": lane.failures + 1}
    openings, open_until = lane.openings, lane.open_until
    probe_failed = openings and lane.probe == call[0] and lane.probe_until
    if probe_failed or (not openings and changes["failures"] >= THRESHOLD):
        openings += 1
        grown = timings.first_outage_wait_seconds * 2.0 ** min(openings - 1, 10)
        wait = min(grown, timings.longest_outage_wait_seconds)
        open_until = time + int(max(wait, retry_after) * SECOND)
        changes |= {"openings": openings, "open_until": open_until, "probe": call[0], "probe_until": 0}
    await _update(connection, lane, changes)
    if not openings:
        return None
    await _excuse(connection, [list(call)] if lane.openings else suspects, excused=True)
    return Outage(max(float(open_until - time) / SECOND, retry_after), opened=not lane.openings)


async def record_answer(connection: AsyncConnection, lane: Row[Any], job_id: str) -> None:
    """Record a job's answered call: the breaker closes."""
    suspects = _suspects(lane)
    failed_jobs = {job for job, _ in suspects}
    if is_open(lane) and len(failed_jobs) == 1 and failed_jobs != {job_id}:
        await _excuse(connection, suspects, excused=False)
    await _update(connection, lane, CLOSED)


async def release_probe(connection: AsyncConnection, lane: Row[Any], time: int, job_id: str) -> None:
    """Record a probe that ended without showing whether the model answers: another one may begin."""
    if lane.probe == job_id and lane.probe_until:
        await _update(connection, lane, {"probe_until": 0, "open_until": time})


def _suspects(lane: Row[Any]) -> list[list[Any]]:
    return list(json.loads(lane.suspects)) if lane.suspects else []


async def _update(connection: AsyncConnection, lane: Row[Any], changes: dict[str, Any]) -> None:
    await connection.execute(update(lanes).where(lanes.c.name == lane.name).values(changes))


async def _excuse(connection: AsyncConnection, calls: list[list[Any]], *, excused: bool) -> None:
    those = tuple_(attempts.c.job_id, attempts.c.number).in_([tuple(call) for call in calls])
    await connection.execute(update(attempts).where(those).values(excused=excused))
