"""Schedules: requests that become a job again and again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Schedule, ScheduleId, ScheduleNote, SchedulePage, ScheduleRequest, ScheduleRun, parse
from dispatch.job_schedules import shown
from domain.values import StoredSchedule
from gateway.dependencies import Dependencies
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.serving.bodies import optional_json_body, sized_json_body

MOST_BODY_BYTES = 16 * 1024
MOST_LISTED = 1_000

router = APIRouter(prefix="/api/schedules")


@router.post(
    "",
    status_code=201,
    response_model=Schedule,
    responses={200: {"model": Schedule, "description": "The schedule was there; it does this now"}},
    openapi_extra=body_of(ScheduleRequest),
)
async def put(request: Request, here: Here, caller: Caller) -> Response:
    """Make a schedule, or replace the one with this id. It is durable, even while Temporal is unavailable.

    The same body again changes nothing. Whether the schedule is paused stays.
    """
    body, size = await sized_json_body(request, here.settings.chatjobs_max_body_bytes)
    schedule, created = await here.schedules.put(body, tenant=caller.tenant, size=size)
    headers = {"Location": f"/api/schedules/{schedule.id}"}
    return await _told(here, schedule, 201 if created else 200, headers)


@router.get("", response_model=SchedulePage)
async def list_schedules(
    here: Here,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 100,
    cursor: ScheduleId | None = None,
) -> Response:
    """List schedules by their ids, with the times of their next runs and with their last jobs, without requests."""
    found = await here.jobs.schedules.list(caller.tenant, after=cursor or "", limit=limit + 1)
    page = found[:limit]
    runs = await here.jobs.schedules.last_runs(caller.tenant, [one.id for one in page])
    listed = tuple(_shown(here, one, runs[one.id], with_request=False) for one in page)
    return json_answer(SchedulePage(schedules=listed, next_cursor=page[-1].id if len(found) > limit else None))


@router.get("/{schedule_id}", response_model=Schedule)
async def show(schedule_id: str, here: Here, caller: Caller) -> Response:
    """One schedule, with what its runs ask. Its jobs: ``GET /api/jobs?scheduleId=``."""
    return await _answer(here, await here.jobs.schedules.get(caller.tenant, schedule_id))


@router.delete("/{schedule_id}", status_code=204, response_model=None)
async def delete(schedule_id: str, here: Here, caller: Caller) -> Response:
    """Delete a schedule. Its jobs stay, also one that runs."""
    deleted = await here.jobs.schedules.delete(caller.tenant, schedule_id)
    here.after_response.soon(lambda: here.schedules.apply(deleted))
    return Response(status_code=204)


@router.post("/{schedule_id}/pause", response_model=Schedule, openapi_extra=body_of(ScheduleNote))
async def pause(schedule_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """Start no more runs, from now on. A note says why, for people."""
    note = await _note(request)
    return await _told(here, await here.jobs.schedules.pause(caller.tenant, schedule_id, note))


@router.post("/{schedule_id}/resume", response_model=Schedule, openapi_extra=body_of(ScheduleNote))
async def resume(schedule_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """Start runs again. Those of the pause are not made up for."""
    note = await _note(request)
    return await _told(here, await here.jobs.schedules.resume(caller.tenant, schedule_id, note))


@router.post("/{schedule_id}/trigger", status_code=202, response_model=Schedule)
async def trigger(schedule_id: str, here: Here, caller: Caller) -> Response:
    """Start a run now, also while the schedule is paused; ``overlap`` decides if an earlier one still runs.

    The request is durable. Requests that come before Temporal was told of the first are one.
    """
    return await _told(here, await here.jobs.schedules.trigger(caller.tenant, schedule_id), 202)


async def _note(request: Request) -> str | None:
    body = await optional_json_body(request, MOST_BODY_BYTES)
    return parse(ScheduleNote, {} if body is None else body).note


async def _told(
    here: Dependencies, schedule: StoredSchedule, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """The schedule; Temporal is told of the change after the response."""
    here.after_response.soon(lambda: here.schedules.apply(schedule))
    return await _answer(here, schedule, status, headers)


async def _answer(
    here: Dependencies, schedule: StoredSchedule, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    runs = await here.jobs.schedules.last_runs(schedule.tenant, [schedule.id])
    return json_answer(_shown(here, schedule, runs[schedule.id], with_request=True), status, headers)


def _shown(
    here: Dependencies, schedule: StoredSchedule, runs: Sequence[ScheduleRun], *, with_request: bool
) -> Schedule:
    url = here.links.of_schedule(schedule.name)
    return shown(schedule, runs, url=url, with_request=with_request, now=datetime.now(UTC))
