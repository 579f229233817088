"""The commands `limits`: what the lanes' limits are, and who uses the lanes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from chatjobs.contracts import USUAL_PRIORITY, Lane, LaneWaiting
from chatjobs.errors import InvalidRequest, Problem
from cli.output import Records, complain, console, local_time, one_line, safe, write
from cli.pauses import check_lane, pause_lines
from cli.place import ServiceLocation
from storage.engine.database import Database
from storage.rate_limits.limiter import FASTEST, MOST_AT_ONCE, MOST_TOKENS, SLOWEST, Limiter
from storage.rate_limits.pauses import PauseStore

OK = 0
NONE = "none"
"""The value of an option that removes a limit."""


class LimitCommands:
    """Each command is a method that prints and returns the exit code. Workers apply changes to their next call."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._limiter = Limiter(database, per_second=place.settings.mistral_requests_per_second)
        self._pauses = PauseStore(database)
        self._as_json = as_json

    async def list(self) -> int:
        lanes, pauses = await self._limiter.lanes(), await self._pauses.list()
        if self._as_json:
            listed = {"lanes": lanes, "pauses": pauses}
            write(
                f"{one_line({name: [one.model_dump(mode='json') for one in all_] for name, all_ in listed.items()})}\n"
            )
            return OK
        write(pause_lines(pauses))
        if lanes:
            console().print(_table(lanes))
        else:
            complain("there are no lanes yet; the first call of a model makes its own")
        return OK

    async def set(self, name: str, changes: Mapping[str, Any]) -> int:
        """``changes``: ``per_second`` (a number); ``at_once`` and ``tokens_per_minute`` (a number as text, or "none").
        Raises InvalidRequest."""
        check_lane(name)
        checked = dict(_checked(changes))
        if await self._lane(name) is None:
            complain("no call has been made in this lane yet")
        return await self._changed(name, checked)

    async def reset(self, name: str) -> int:
        """Raises InvalidRequest."""
        if await self._lane(name) is None:
            raise InvalidRequest([Problem("/lane", "there is no such lane; look at `starter.py limits list`")])
        return await self._changed(name, {"per_second": None, "at_once": None, "tokens_per_minute": None})

    async def _changed(self, name: str, changes: Mapping[str, Any]) -> int:
        await self._limiter.set_limits(name, changes)
        lane = await self._lane(name)
        if lane is None:
            raise AssertionError("a lane that was changed is there")
        if self._as_json:
            write(f"{one_line(lane.model_dump(mode='json'))}\n")
        else:
            write(f"{safe(name)}: {', '.join(filter(None, (_rate(lane), _at_once(lane), _token_limit(lane))))}\n")
        return OK

    async def _lane(self, name: str) -> Lane | None:
        return next((lane for lane in await self._limiter.lanes() if lane.name == name), None)


def _checked(changes: Mapping[str, Any]) -> Iterator[tuple[str, float | int | None]]:
    """The new limits; None removes one. Raises InvalidRequest."""
    for name, value in changes.items():
        match name:
            case "per_second" if not SLOWEST <= value <= FASTEST:
                raise InvalidRequest([Problem("/perSecond", f"must be a number from {SLOWEST:g} to {FASTEST}")])
            case "per_second":
                yield name, value
            case "at_once":
                yield name, _count(value, "/atOnce", MOST_AT_ONCE)
            case "tokens_per_minute":
                yield name, _count(value, "/tokensPerMinute", MOST_TOKENS)


def _count(given: str, pointer: str, most: int) -> int | None:
    if given == NONE:
        return None
    if not given.isdecimal() or not 1 <= int(given) <= most:
        why = f"must be a whole number from 1 to {most}, or {NONE}; `starter.py pause` lets no call start"
        raise InvalidRequest([Problem(pointer, why)])
    return int(given)


def _table(lanes: Sequence[Lane]) -> RenderableType:
    table = Records("lane", "limit", "running", "tokens this minute", "waiting", "paused", "model")
    for lane in lanes:
        use = (_running(lane), _tokens(lane), _waiting(lane))
        table.add_row(safe(lane.name), _rate(lane), *use, _paused(lane), _model(lane))
    return table


def _running(lane: Lane) -> str:
    return str(lane.running) if lane.at_once is None else f"{lane.running} of {lane.at_once}"


def _tokens(lane: Lane) -> str:
    return "" if lane.tokens_per_minute is None else f"{lane.tokens_used:,} of {lane.tokens_per_minute:,}"


def _waiting(lane: Lane) -> str:
    """How many jobs wait, and whose."""
    return f"{lane.waiting}: {', '.join(map(_whose, lane.waiting_by))}" if lane.waiting else "0"


def _whose(waiting: LaneWaiting) -> str:
    priority = "" if waiting.priority == USUAL_PRIORITY else f" of priority {waiting.priority}"
    return f"{waiting.count} {safe(waiting.tenant)}{priority}"


def _paused(lane: Lane) -> str:
    if any(pause.tenant is None for pause in lane.pauses):
        return "paused"
    return f"until {local_time(lane.paused_until)}, as the model asked" if lane.paused_until else ""


def _model(lane: Lane) -> str:
    """Whether the model answers; if not, its last error."""
    if not lane.down:
        return "answers"
    return f"down ({safe(lane.last_error or 'no answer')}), tried next at {local_time(lane.probes_at)}"


def _rate(lane: Lane) -> str:
    """The limit in force and its source. The setting shown is that of this process."""
    rate = f"{lane.per_second:.4g}/s"
    if lane.seen is not None and lane.per_second == lane.seen:
        return f"{rate}, as the model's headers say"
    return f"{rate}, by MISTRAL_REQUESTS_PER_SECOND" if lane.set_to is None else f"{rate}, set here"


def _at_once(lane: Lane) -> str:
    return f"{lane.at_once} at once" if lane.at_once is not None else ""


def _token_limit(lane: Lane) -> str:
    return f"{lane.tokens_set_to:,} tokens a minute" if lane.tokens_set_to is not None else ""
