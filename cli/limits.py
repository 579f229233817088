"""The commands `limits`: calls per second that may start with one key and one family of models, over all workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from chatjobs.contracts import rfc3339
from chatjobs.errors import InvalidRequest, Problem
from cli.output import Records, complain, console, local_time, one_line, safe, write
from cli.pauses import check_lane
from cli.place import ServiceLocation
from storage.engine.database import Database
from storage.rate_limits.limiter import Limiter, RateLimit

OK = 0
SLOWEST, FASTEST = 0.001, 10_000


class LimitCommands:
    """Each command is a method that prints and returns the exit code. Workers apply changes to their next call."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._limiter = Limiter(database, per_second=place.settings.mistral_requests_per_second)
        self._as_json = as_json

    async def list(self) -> int:
        lanes = await self._limiter.lanes()
        if self._as_json:
            write(f"{one_line({'lanes': [_fields(lane) for lane in lanes]})}\n")
        elif lanes:
            console().print(_table(lanes))
        else:
            complain("there are no lanes yet; the first call of a model makes its own")
        return OK

    async def set(self, name: str, per_second: float) -> int:
        """Raises InvalidRequest."""
        check_lane(name)
        if not SLOWEST <= per_second <= FASTEST:
            raise InvalidRequest([Problem("/perSecond", f"must be a number from {SLOWEST:g} to {FASTEST}")])
        if await self._lane(name) is None:
            complain("no call has been made in this lane yet")
        return await self._changed(name, per_second)

    async def reset(self, name: str) -> int:
        """Raises InvalidRequest."""
        if await self._lane(name) is None:
            raise InvalidRequest([Problem("/lane", "there is no such lane; look at `starter.py limits list`")])
        return await self._changed(name, None)

    async def _changed(self, name: str, per_second: float | None) -> int:
        await self._limiter.set_limit(name, per_second)
        lane = await self._lane(name)
        if lane is None:
            raise AssertionError("a lane that was changed is there")
        if self._as_json:
            write(f"{one_line(_fields(lane))}\n")
        else:
            write(f"{safe(name)}: {_rate(lane)}\n")
        return OK

    async def _lane(self, name: str) -> RateLimit | None:
        return next((lane for lane in await self._limiter.lanes() if lane.name == name), None)


def _fields(lane: RateLimit) -> dict[str, Any]:
    return {
        "lane": lane.name,
        "perSecond": lane.per_second,
        "setTo": lane.set_to,
        "seen": lane.seen,
        "pausedUntil": rfc3339(lane.paused_until) if lane.paused_until else None,
        "waiting": lane.waiting,
        "down": lane.down,
        "probesAt": rfc3339(lane.probes_at) if lane.probes_at else None,
        "lastError": lane.last_error,
    }


def _table(lanes: Sequence[RateLimit]) -> RenderableType:
    table = Records("lane", "limit", "waiting", "paused until", "model")
    for lane in lanes:
        table.add_row(safe(lane.name), _rate(lane), str(lane.waiting), local_time(lane.paused_until), _model(lane))
    return table


def _model(lane: RateLimit) -> str:
    """Whether the model answers; if not, its last error."""
    if not lane.down:
        return "answers"
    return f"down ({safe(lane.last_error or 'no answer')}), tried next at {local_time(lane.probes_at)}"


def _rate(lane: RateLimit) -> str:
    """The limit in force and its source. The setting shown is that of this process."""
    rate = f"{lane.per_second:.4g}/s"
    if lane.seen is not None and lane.per_second == lane.seen:
        return f"{rate}, as the model's headers say"
    return f"{rate}, by MISTRAL_REQUESTS_PER_SECOND" if lane.set_to is None else f"{rate}, set here"
