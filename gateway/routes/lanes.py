"""Lanes: who uses them, and pauses, during which no call starts in a lane, for a tenant, or at all."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Lane, LaneList, Pause, PauseList, PauseRequest, WireModel, parse
from chatjobs.errors import PauseNotFound
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.routes.settings import LaneLimits, is_operator, limits_of
from gateway.serving.bodies import json_body
from storage.rate_limits.limiter import FASTEST, MOST_AT_ONCE, MOST_TOKENS, SLOWEST
from storage.rate_limits.pauses import OPERATOR

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 16 * 1024

router = APIRouter(prefix="/api")


class WantedLimits(WireModel):
    """The limits that a lane shall have; without one, the setting's rate, any number of calls at once or of tokens."""

    per_second: Annotated[float, Field(ge=SLOWEST, le=FASTEST)] | None = None
    """Calls that may start in a second."""
    at_once: Annotated[int, Field(ge=1, le=MOST_AT_ONCE)] | None = None
    """Calls that may run at once."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None


@router.get("/lanes", response_model=LaneList)
async def list_lanes(here: Here, caller: Caller) -> Response:
    """The lanes with their limits, running calls, waiting jobs and pauses; with a key, as far as its tenant uses them.

    `starter.py limits` changes the limits, and so do admins of the operator's tenant (``PUT``).
    """
    found = await here.limiter.lanes(None if caller.key_id is None else caller.tenant)
    lanes = [lane.model_copy(update={"pauses": tuple(_for(caller, pause) for pause in lane.pauses)}) for lane in found]
    return json_answer(LaneList(lanes=tuple(lanes)))


@router.put("/lanes/{lane:path}/limits", response_model=LaneLimits, openapi_extra=body_of(WantedLimits))
async def set_limits(lane: str, request: Request, here: Here, caller: Caller) -> Response:
    """Set all limits of a lane, for all workers and tenants, from their next call on; what is absent is removed.

    Lanes are shared, so this needs a key of the operator's tenant (``CHATJOBS_DIRECT_TENANT``).
    """
    wanted = parse(WantedLimits, await json_body(request, MOST_BODY_BYTES))
    if not is_operator(here, caller):
        why = "All tenants share a lane, so only an admin of the operator's tenant changes its limits; ask an operator"
        raise HttpProblem(403, "operators_only", why)
    found = await _lane(here, lane)
    if changes := _changes(found, wanted):
        await here.limiter.set_limits(lane, changes)
        extra = {"action": "limits_set", "lane": lane, "by": caller.key_id, **changes}
        log.info("limits set", extra=extra)
    return json_answer(limits_of(await _lane(here, lane)))


async def _lane(here: Dependencies, name: str) -> Lane:
    """Raises HttpProblem (404)."""
    found = next((lane for lane in await here.limiter.lanes() if lane.name == name), None)
    if found is None:
        raise HttpProblem(404, "lane_not_found", "There is no such lane; GET /api/settings lists them")
    return found


def _changes(lane: Lane, wanted: WantedLimits) -> dict[str, Any]:
    """The limits that differ; setting one anew would forget what the model's headers said."""
    pairs = {
        "per_second": (lane.set_to, wanted.per_second),
        "at_once": (lane.at_once, wanted.at_once),
        "tokens_per_minute": (lane.tokens_set_to, wanted.tokens_per_minute),
    }
    return {name: new for name, (old, new) in pairs.items() if new != old}


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
