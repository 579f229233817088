"""The page's login, and tokens for EventSource: authentication for browsers, which cannot set the header there.

A session is a signed cookie that does not contain the key. It ends after a week, with its key, or when the browser
drops it.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Strict
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Timestamp, WireModel
from chatjobs.errors import JobNotFound, Problem
from domain.roles import Role
from gateway.auth.access import COOKIE, SESSION_LASTS, Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.serving.bodies import json_body

log = logging.getLogger(__name__)

LARGEST_LOGIN = 4_096
NOT_KEPT = {"Cache-Control": "no-store"}

router = APIRouter(prefix="/api")


class Login(WireModel):
    key: str


class Session(WireModel):
    """``tenant`` and ``role`` are None for a caller that is not authenticated."""

    tenant: str | None
    role: Annotated[Role, Strict(False)] | None
    authenticated: bool
    keys_required: bool


class StreamToken(WireModel):
    """For ``?token=`` of the job's event stream. It is checked when connecting, not afterwards."""

    token: str
    expires_at: Timestamp


@router.post("/session", response_model=Session, openapi_extra=body_of(Login))
async def log_in(request: Request, here: Here) -> Response:
    """Exchange a key for a cookie."""
    here.access.check_page(request)
    caller = await here.access.log_in(_key(await json_body(request, LARGEST_LOGIN)))
    response = _session(here, caller)
    response.set_cookie(
        COOKIE,
        here.access.session(caller),
        max_age=int(SESSION_LASTS.total_seconds()),
        secure=here.access.secure(request),
        httponly=True,
        samesite="strict",
    )
    log.info("session opened", extra={"action": "session_opened", "key_id": caller.key_id})
    return response


@router.get("/session", response_model=Session)
async def show_session(request: Request, here: Here) -> Response:
    """The caller's session, and whether keys are required."""
    try:
        return _session(here, await here.access.identify(request))
    except HttpProblem as problem:
        if problem.status != 401:
            raise
        return _session(here, None)


@router.delete("/session", status_code=204)
async def log_out(request: Request, here: Here) -> Response:
    """Delete the session cookie."""
    here.access.check_page(request)
    response = Response(status_code=204, headers=NOT_KEPT)
    response.delete_cookie(COOKIE, secure=here.access.secure(request), httponly=True, samesite="strict")
    return response


@router.post("/jobs/{job_id}/stream-token", response_model=StreamToken)
async def stream_token(job_id: str, here: Here, caller: Caller) -> Response:
    """A token for this job's event stream only, valid for 15 minutes and no longer than the caller's key."""
    if not await _job_exists(here, caller, job_id):
        raise JobNotFound
    token, expires_at = here.access.stream_token(caller, job_id)
    return json_answer(StreamToken(token=token, expires_at=expires_at), headers=NOT_KEPT)


async def _job_exists(here: Dependencies, caller: Identity, job_id: str) -> bool:
    """Whether the job has a row, or runs in Temporal without one so far."""
    if await here.jobs.queries.exists(job_id, caller.tenant):
        return True
    return await here.may_be_new(job_id, caller) and await here.intake.runs(job_id)


def _key(body: Any) -> str:
    """The key in a login body. Raises HttpProblem, which does not repeat the body: it may be a key."""
    if not isinstance(body, dict) or not isinstance(key := body.get("key"), str) or len(body) > 1:
        wrong = Problem("/key", "must be there, a string, and alone")
        raise HttpProblem(422, "validation_failed", 'The body must be {"key": "cj_…"}', errors=[wrong])
    return key


def _session(here: Dependencies, caller: Identity | None) -> Response:
    session = Session(
        tenant=caller.tenant if caller else None,
        role=caller.role if caller else None,
        authenticated=caller is not None,
        keys_required=here.access.keys_required,
    )
    return json_answer(session, headers=NOT_KEPT)
