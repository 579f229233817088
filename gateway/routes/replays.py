"""Replays of many jobs: batches whose items are the jobs that match a filter."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import AwareDatetime
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Batch, BatchAccepted, BatchPage, BatchStatus, ReplayEstimate, ReplayRequest
from domain.batches import BatchHandle
from domain.names import replay_path
from gateway.routes import batches
from gateway.routes.jobs import MOST_LISTED, Caller, Here, body_of, checked_key, json_answer
from gateway.serving.bodies import sized_json_body

router = APIRouter(prefix="/api")


@router.post(
    "/replays",
    status_code=202,
    response_model=Batch,
    responses={200: {"model": ReplayEstimate, "description": "What a replay would do (`dryRun`)"}},
    openapi_extra=body_of(ReplayRequest),
)
async def create(
    request: Request,
    here: Here,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Ask for all jobs that match a filter again, as they are now: those that end later are no part of it. With a
    ``canary`` so many run first, and the others only if few enough of them fail."""
    key = checked_key(idempotency_key)
    body, _ = await sized_json_body(request, here.settings.chatjobs_max_body_bytes)
    found = await here.batches.replays.accept(body, tenant=caller.tenant, idempotency_key=key)
    if isinstance(found, ReplayEstimate):
        return json_answer(found)
    if found.created:
        here.after_response.soon(lambda: here.batches.dispatch.start(found.batch_id))
    replay = await here.batches.details.of(await here.batches.queries.get(found.batch_id, caller.tenant))
    return json_answer(replay, 202, _headers(found))


def _headers(accepted: BatchHandle) -> dict[str, str]:
    location = {"Location": replay_path(accepted.batch_id)}
    return location if accepted.created else {**location, "Idempotency-Replayed": "true"}


@router.get("/replays", response_model=BatchPage)
async def list_replays(
    here: Here,
    caller: Caller,
    status: BatchStatus | None = None,
    since: AwareDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
    cursor: str | None = None,
) -> Response:
    """List replays, newest first."""
    return await batches.listed(here, caller, "replay", status=status, since=since, limit=limit, cursor=cursor)


@router.get("/replays/{batch_id}", response_model=Batch)
async def show(batch_id: str, here: Here, caller: Caller) -> Response:
    """One replay: what ``GET /api/batches/{batchId}`` shows of it."""
    replay = await here.batches.queries.get(batch_id, caller.tenant, kind="replay")
    return json_answer(await here.batches.details.of(replay))


@router.post("/replays/{batch_id}/pause", status_code=202, response_model=BatchAccepted)
async def pause(batch_id: str, here: Here, caller: Caller) -> Response:
    """Let no further job begin; those that run finish. Repeating the call has no further effect."""
    await here.batches.queries.get(batch_id, caller.tenant, kind="replay")
    return await batches.pause(batch_id, here, caller)


@router.post("/replays/{batch_id}/resume", status_code=202, response_model=BatchAccepted)
async def resume(batch_id: str, here: Here, caller: Caller) -> Response:
    """Let the jobs of a paused replay begin again; of one that has ended or was stopped, those without an answer go
    on, and the errors are counted from the beginning."""
    await here.batches.queries.get(batch_id, caller.tenant, kind="replay")
    return await batches.resume(batch_id, here, caller)


@router.post("/replays/{batch_id}/cancel", status_code=202, response_model=BatchAccepted)
async def cancel(batch_id: str, here: Here, caller: Caller) -> Response:
    """Cancel all jobs of the replay that have not ended, durably. Repeating the call has no further effect."""
    await here.batches.queries.get(batch_id, caller.tenant, kind="replay")
    return await batches.cancel(batch_id, here, caller)
