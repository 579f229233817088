"""A lane's circuit breaker: when the model fails calls in a row, everybody waits and one job at a time tries it.

Closed: calls start, and failures in a row are counted. THRESHOLD of them open it. Open: nobody starts until the wait is
over, then one job probes. A probe that fails makes the wait longer, an answer closes the breaker.

The failures that opened it, and those while it was open, are excused: they do not count against a job's own attempts.
If all of them were of a single job, and another job's call is answered then, it was that job that failed and not the
model: its failures count after all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.text import clean
from storage.engine.schema import attempts, lanes

SECOND = 1_000_000
THRESHOLD = 3
"""Failures in a row. Two may be chance; the usual budget of a job is five, so that a job that is alone opens it before
its own attempts are used up."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
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
    """The breaker is open: nobody calls the model for so many ``seconds``. ``opened``: it was closed before."""

    seconds: float
    opened: bool


def is_open(lane: Row[Any]) -> bool:
    return bool(lane.openings > 0)


def next_probe_at(lane: Row[Any], time: int) -> int:
    """When the next job may probe. A time that no clock of today can have written is not believed."""
    until = max(lane.open_until, lane.probe_until)
    return int(until) if until <= time + int(LONGEST_ASKED_SECONDS * SECOND) else time


def expected_start(lane: Row[Any], time: int) -> int:
    """When calls may start again, if the next probe, or the one under way, succeeds."""
    until = next_probe_at(lane, time)
    return min(until, time + int(ANSWER_SECONDS * SECOND)) if lane.probe_until > time else until


def may_probe(lane: Row[Any], time: int, job_id: str, *, others: bool) -> bool:
    """Whether a job may try the model now. ``others``: there are jobs besides it that could."""
    if lane.probe == job_id and lane.probe_until:  # its worker died while it probed
        return True
    until = next_probe_at(lane, time)
    if time < until:
        return False
    return lane.probe != job_id or not others or time >= until + int(ALONE_SECONDS * SECOND)


def probe_changes(time: int, job_id: str) -> dict[str, Any]:
    """The lane's changes when a job begins to probe."""
    return {"probe": job_id, "probe_until": time + int(PROBE_SECONDS * SECOND)}


async def record_failure(
    connection: AsyncConnection,
    lane: Row[Any],
    time: int,
    call: tuple[str, int],
    message: str,
    retry_after: float = 0.0,
) -> Outage | None:
    """The model failed a job's call (job, number of the attempt). ``retry_after``: seconds, as the model asked.

    Returns None where the breaker stays closed.
    """
    suspects = [*_suspects(lane), list(call)][-MOST_SUSPECTS:]
    changes = {"suspects": json.dumps(suspects), "last_error": clean(message)[:256], "failures": lane.failures + 1}
    openings, open_until = lane.openings, lane.open_until
    probe_failed = openings and lane.probe == call[0] and lane.probe_until
    if probe_failed or (not openings and changes["failures"] >= THRESHOLD):
        openings += 1
        open_until = time + int(max(_wait(openings), retry_after) * SECOND)
        changes |= {"openings": openings, "open_until": open_until, "probe": call[0], "probe_until": 0}
    await _change(connection, lane, changes)
    if not openings:
        return None
    await _excuse(connection, [list(call)] if lane.openings else suspects, excused=True)
    return Outage(max(float(open_until - time) / SECOND, retry_after), opened=not lane.openings)


async def record_answer(connection: AsyncConnection, lane: Row[Any], job_id: str) -> None:
    """The model answered a job's call: close the breaker."""
    suspects = _suspects(lane)
    guilty = {job for job, _ in suspects}
    if is_open(lane) and len(guilty) == 1 and guilty != {job_id}:
        await _excuse(connection, suspects, excused=False)
    await _change(connection, lane, CLOSED)


async def release_probe(connection: AsyncConnection, lane: Row[Any], time: int, job_id: str) -> None:
    """A probe ended without telling anything of the model: another one may begin."""
    if lane.probe == job_id and lane.probe_until:
        await _change(connection, lane, {"probe_until": 0, "open_until": time})


def _wait(openings: int) -> float:
    return min(FIRST_WAIT_SECONDS * 2.0 ** min(openings - 1, 10), LONGEST_WAIT_SECONDS)


def _suspects(lane: Row[Any]) -> list[list[Any]]:
    return list(json.loads(lane.suspects)) if lane.suspects else []


async def _change(connection: AsyncConnection, lane: Row[Any], changes: dict[str, Any]) -> None:
    await connection.execute(update(lanes).where(lanes.c.name == lane.name).values(changes))


async def _excuse(connection: AsyncConnection, calls: list[list[Any]], *, excused: bool) -> None:
    those = tuple_(attempts.c.job_id, attempts.c.number).in_([tuple(call) for call in calls])
    await connection.execute(update(attempts).where(those).values(excused=excused))
