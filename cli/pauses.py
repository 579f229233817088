"""The commands `pause` and `resume`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatjobs.contracts import Pause
from chatjobs.errors import InvalidRequest, PauseNotFound, Problem
from cli.output import local_time, one_line, safe, write
from cli.place import ServiceLocation
from storage.engine.database import Database
from storage.rate_limits.pauses import PauseStore

OK = 0
LANE = re.compile(r"[0-9a-f]{8}:[!-~]{1,128}")
"""The form of providers' lane names: some digits of the key's digest, and the family of models."""


class PauseCommands:
    """Each command is a method that prints and returns the exit code. Workers apply changes to their next call."""

    def __init__(self, _place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._pauses = PauseStore(database)
        self._as_json = as_json

    async def pause(self, lane: str | None, tenant: str | None, reason: str) -> int:
        """Raises InvalidRequest."""
        check_lane(lane)
        begun = await self._pauses.pause(lane=lane, tenant=tenant, reason=reason)
        self._print(begun, "paused")
        return OK

    async def resume(self, lane: str | None, tenant: str | None) -> int:
        """Raises InvalidRequest, PauseNotFound."""
        check_lane(lane)
        try:
            ended = await self._pauses.find(lane=lane, tenant=tenant)
        except PauseNotFound:
            others = "; ".join(pause_words(one) for one in await self._pauses.list())
            rest = f"paused: {others}" if others else "nothing is paused"
            raise PauseNotFound(f"There is no such pause; {rest}") from None
        await self._pauses.resume(ended.pause_id)
        self._print(ended, "resumed")
        return OK

    def _print(self, pause: Pause, done: str) -> None:
        if self._as_json:
            write(f"{one_line(pause.model_dump(mode='json'))}\n")
        else:
            write(f"{done}: {scope_words(pause)}\n")


def check_lane(lane: str | None) -> None:
    """Raises InvalidRequest."""
    if lane is not None and not LANE.fullmatch(lane):
        why = "must be a name as in `starter.py limits list`, such as 0a1b2c3d:mistral-small"
        raise InvalidRequest([Problem("/lane", why)])


def scope_words(pause: Pause) -> str:
    """What is paused, in words."""
    tenant = f"tenant {safe(pause.tenant)}" if pause.tenant else ""
    lane = f"lane {safe(pause.lane)}" if pause.lane else ""
    return " in ".join(filter(None, (tenant, lane))) or "everything"


def pause_words(pause: Pause) -> str:
    """What is paused since when, by whom and why, in words."""
    why = f": {safe(pause.reason)}" if pause.reason else ""
    return f"{scope_words(pause)} since {local_time(pause.paused_at)} by {safe(pause.paused_by)}{why}"


def pause_lines(pauses: Sequence[Pause]) -> str:
    return "".join(f"paused: {pause_words(one)}\n" for one in pauses)
