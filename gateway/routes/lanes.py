"""Lanes: who uses them, and pauses, during which no call starts in a lane, for a tenant, or at all."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import LaneList, Pause, PauseList, PauseRequest, parse
from chatjobs.errors import PauseNotFound
from gateway.auth.access import Identity
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.serving.bodies import json_body
from storage.rate_limits.pauses import OPERATOR

MOST_BODY_BYTES = 16 * 1024

router = APIRouter(prefix="/api")


@router.get("/lanes", response_model=LaneList)
async def list_lanes(here: Here, caller: Caller) -> Response:
    """The lanes with their limits, running calls, waiting jobs and pauses; with a key, as far as its tenant uses them.

    `starter.py limits` changes the limits.
    """
    found = await here.limiter.lanes(None if caller.key_id is None else caller.tenant)
    lanes = [lane.model_copy(update={"pauses": tuple(_for(caller, pause) for pause in lane.pauses)}) for lane in found]
    return json_answer(LaneList(lanes=tuple(lanes)))


@router.post("/pauses", status_code=201, response_model=Pause, openapi_extra=body_of(PauseRequest))
async def pause(request: Request, here: Here, caller: Caller) -> Response:
    """Pause a lane, a tenant, a tenant in a lane, or everything, durably: within two seconds no worker starts a call.

    Answers that are being generated go on, waiting jobs keep their place, and ``limits.queueSeconds`` goes on: a job
    whose time is over while it is paused fails with ``queue_timeout``. Repeating the call changes the reason only.
    """
    wanted = parse(PauseRequest, await json_body(request, MOST_BODY_BYTES))
    if caller.key_id is not None and wanted.tenant != caller.tenant:
        why = f'A key may pause its own tenant only: give "tenant": "{caller.tenant}"; operators use `starter.py pause`'
        raise HttpProblem(403, "operators_only", why)
    by = caller.key_id or OPERATOR
    begun = await here.pauses.pause(lane=wanted.lane, tenant=wanted.tenant, reason=wanted.reason, by=by)
    return json_answer(_for(caller, begun), 201)


@router.get("/pauses", response_model=PauseList)
async def list_pauses(here: Here, caller: Caller) -> Response:
    """The pauses that concern the caller's jobs, oldest first."""
    found = await here.pauses.list(None if caller.key_id is None else caller.tenant)
    return json_answer(PauseList(pauses=tuple(_for(caller, one) for one in found)))


@router.delete("/pauses/{pause_id}", status_code=204, response_model=None)
async def resume(pause_id: str, here: Here, caller: Caller) -> Response:
    """End a pause, durably. The waiting jobs that no other pause holds start at once, at their lane's pace."""
    found = await here.pauses.get(pause_id)
    if caller.key_id is not None and found.tenant not in (None, caller.tenant):
        raise PauseNotFound
    if not _may_resume(caller, found):
        raise HttpProblem(403, "operators_only", "An operator began this pause, and ends it: `starter.py resume`")
    await here.pauses.resume(pause_id)
    return Response(status_code=204)


def _may_resume(caller: Identity, pause: Pause) -> bool:
    return caller.key_id is None or (pause.tenant == caller.tenant and pause.paused_by != OPERATOR)


def _for(caller: Identity, pause: Pause) -> Pause:
    return pause.model_copy(update={"may_resume": _may_resume(caller, pause)})
