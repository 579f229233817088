"""The client's calls for schedules: ``jobs.schedules`` of an AsyncChatJobs or a ChatJobs."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

from chatjobs.calls import Http
from chatjobs.contracts import (
    SCHEDULE_ID,
    Schedule,
    ScheduleOverlap,
    SchedulePage,
    ScheduleRequest,
    canonical_json,
    parse,
)
from chatjobs.errors import ApiError, ScheduleNotFound
from chatjobs.sync import Twin, call, items

PATH = "/api/schedules"


class Schedules:
    """Requests that become a job again and again. Methods raise what ChatJobs raises, and the errors that they name."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        cron: str | None = None,
        every: int | str | timedelta | None = None,
        timezone: str | None = None,
        overlap: ScheduleOverlap | None = None,
        catchup_seconds: int | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> Schedule:
        """Make a schedule, or replace the one with this ``id``; it is durable once this returns.

        ``request`` is the body of each job, ``batch`` that of each batch: one of them. ``cron`` (in ``timezone``) or
        ``every`` (seconds, ``"15m"``, ``"PT15M"``): one of them. Raises InvalidRequest, WebhookUrlRefused.
        """
        seconds = round(every.total_seconds()) if isinstance(every, timedelta) else every
        given = {
            "id": id or f"schedule_{uuid.uuid4().hex}",  # made here, so that a repeated call makes one schedule
            "cron": cron,
            "every": seconds,
            "timezone": timezone,
            "request": request,
            "batch": batch,
            "overlap": overlap,
            "catchupSeconds": catchup_seconds,
        }
        body = {name: value for name, value in given.items() if value is not None}
        parse(ScheduleRequest, body)
        return await self._http.read(Schedule, "POST", PATH, body=canonical_json(body))

    async def list(self, *, page_size: int = 100) -> AsyncIterator[Schedule]:
        """Schedules by their ids, without what they ask, with their next times and last jobs."""
        params = {"limit": str(page_size)}
        while True:
            page = await self._http.read(SchedulePage, "GET", PATH, params=params)
            for schedule in page.schedules:
                yield schedule
            if page.next_cursor is None:
                return
            if page.next_cursor <= params.get("cursor", ""):
                raise ApiError("the pages of the list go round in circles")
            params["cursor"] = page.next_cursor

    async def get(self, schedule_id: str) -> Schedule:
        """Raises ScheduleNotFound."""
        return await self._http.read(Schedule, "GET", _path(schedule_id))

    async def pause(self, schedule_id: str, note: str | None = None) -> Schedule:
        """Start no more runs. ``note`` says why, for people. Raises ScheduleNotFound."""
        return await self._noted(schedule_id, "pause", note)

    async def resume(self, schedule_id: str, note: str | None = None) -> Schedule:
        """Start runs again; those of the pause are not made up for. Raises ScheduleNotFound."""
        return await self._noted(schedule_id, "resume", note)

    async def trigger(self, schedule_id: str) -> Schedule:
        """Start a run now; its job is the first of ``last_runs`` soon. A call that is repeated because its answer was
        lost may start two. Raises ScheduleNotFound."""
        return await self._http.read(Schedule, "POST", f"{_path(schedule_id)}/trigger")

    async def delete(self, schedule_id: str) -> None:
        """Delete the schedule; its jobs stay. Raises ScheduleNotFound."""
        await self._http.call("DELETE", _path(schedule_id))

    async def _noted(self, schedule_id: str, change: str, note: str | None) -> Schedule:
        body = canonical_json({} if note is None else {"note": note})
        return await self._http.read(Schedule, "POST", f"{_path(schedule_id)}/{change}", body=body)


class SyncSchedules(Twin):
    """Schedules, synchronously."""

    create = call(Schedules.create)
    list = items(Schedules.list)
    get = call(Schedules.get)
    pause = call(Schedules.pause)
    resume = call(Schedules.resume)
    trigger = call(Schedules.trigger)
    delete = call(Schedules.delete)


def _path(schedule_id: str) -> str:
    """Raises ScheduleNotFound for a text that cannot be an id."""
    if not re.fullmatch(SCHEDULE_ID, schedule_id):
        raise ScheduleNotFound
    return f"{PATH}/{schedule_id}"
