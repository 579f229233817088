"""Batches: submit, read, list, pause, resume, cancel; their output while they run; their progress as a stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Header, Query
from pydantic import AwareDatetime
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from chatjobs import sse
from chatjobs.contracts import (
    Batch,
    BatchAccepted,
    BatchPage,
    BatchProgress,
    BatchRequest,
    BatchSettings,
    BatchStatus,
    parse,
)
from chatjobs.errors import BatchNotFound, InvalidRequest, Problem
from dispatch.stream_events import KEEP_ALIVE
from domain.batches import BatchHandle
from domain.names import batch_path
from gateway.auth.access import Identity
from gateway.batch_output import output_pages
from gateway.batch_progress import Watched
from gateway.batch_upload import Line, Upload
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import MOST_LISTED, Caller, Here, body_of, checked_key, cursor_text, json_answer, read_cursor
from gateway.routes.streams import EVENTS_DOCUMENTED, EventStreamResponse, check_accept, read_event_id
from gateway.serving.bodies import check_type, decoded, read
from gateway.serving.ndjson import lines
from storage.batches.queries import BatchCursor
from storage.engine.schema import micros

MOST_VALUES = 500_000
"""Values in a body of JSON with all items; a larger batch is sent as lines."""
ITEMS_AT_ONCE = 200
NDJSON = re.compile(r"application/(x-ndjson|jsonl|x-jsonlines|ndjson)\s*(;.*)?", re.IGNORECASE)
EVENTS = {BatchStatus.COMPLETED: "complete", BatchStatus.CANCELLED: "cancelled", BatchStatus.FAILED: "error"}

router = APIRouter(prefix="/api")


class QuerySettings(NamedTuple):
    """The settings of an upload of lines, as they stand in the query."""

    given: dict[str, Any]

    def parsed(self) -> BatchSettings:
        """Raises InvalidRequest."""
        values = dict(self.given)
        if "defaults" in values:
            values["defaults"] = _json_of("defaults", values["defaults"])
        if values.get("webhook", "").startswith("{"):
            values["webhook"] = _json_of("webhook", values["webhook"])
        return parse(BatchSettings, values)


def _json_of(name: str, text: str) -> Any:
    try:
        return decoded(text.encode())
    except HttpProblem as error:
        raise InvalidRequest([Problem(f"/{name}", f"must be a JSON object: {error.detail}")]) from None


@router.post(
    "/batches",
    status_code=202,
    response_model=BatchAccepted,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                **body_of(BatchRequest)["requestBody"]["content"],
                "application/x-ndjson": {"schema": {"type": "string", "description": "A BatchItem in each line"}},
            },
        }
    },
)
async def create(
    request: Request,
    here: Here,
    caller: Caller,
    idempotency_key: Annotated[str | None, Header()] = None,
    name: str | None = None,
    webhook: str | None = None,
    concurrency: int | None = None,
    lane: Literal["live", "batch"] | None = None,
    deadline: str | None = None,
    defaults: str | None = None,
) -> Response:
    """Submit a batch. As ``application/x-ndjson`` it may have any size, and its settings stand in the query
    (``defaults`` as JSON, and ``webhook`` where it names events); as ``application/json`` all stands in the body.
    Nothing begins unless all items are valid.
    """
    key = checked_key(idempotency_key)
    values = {"name": name, "webhook": webhook, "concurrency": concurrency, "lane": lane}
    values |= {"deadline": deadline, "defaults": defaults}
    given = QuerySettings({field: value for field, value in values.items() if value is not None})
    if NDJSON.fullmatch(request.headers.get("content-type", "").strip()):
        settings, groups = given.parsed(), _lines(request, here.settings.chatjobs_max_body_bytes)
    else:
        if given.given:
            raise HttpProblem(422, "validation_failed", "With a body of JSON, the settings stand in the body")
        settings, groups = await _body(request, here.settings.chatjobs_max_body_bytes)
    upload = Upload(here.batches.drafts, here.batches.rules(), caller.tenant, settings, key)
    accepted = await upload.accept(groups)
    if accepted.created:
        here.after_response.soon(lambda: here.batches.dispatch.start(accepted.batch_id))
    return json_answer(_links(accepted), 202, _headers(accepted))


async def _lines(request: Request, longest: int) -> AsyncIterator[Sequence[Line]]:
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding")
    async for group in lines(request.stream(), longest):
        yield [Line(number, text) for number, text in group]


async def _body(request: Request, limit: int) -> tuple[BatchSettings, AsyncIterator[Sequence[Line]]]:
    """The settings and the items in a body of JSON. Raises HttpProblem, InvalidRequest."""
    check_type(request)
    body = await asyncio.to_thread(decoded, await read(request, limit), MOST_VALUES)
    if not isinstance(body, dict):
        raise InvalidRequest([Problem("", "must be an object with items")])
    items = body.pop("items", None)
    if not isinstance(items, list):
        raise InvalidRequest([Problem("/items", "must be an array of items" if items is not None else "is missing")])
    return parse(BatchSettings, body), _grouped(items)


async def _grouped(items: Sequence[Any]) -> AsyncIterator[Sequence[Line]]:
    for first in range(0, len(items), ITEMS_AT_ONCE):
        some = items[first : first + ITEMS_AT_ONCE]
        yield [Line(index, item) for index, item in enumerate(some, first)]


def _links(accepted: BatchHandle) -> BatchAccepted:
    url = batch_path(accepted.batch_id)
    return BatchAccepted(
        batch_id=accepted.batch_id,
        status=accepted.status,
        status_url=url,
        events_url=f"{url}/events",
        output_url=f"{url}/output",
        errors_url=f"{url}/errors",
    )


def _headers(accepted: BatchHandle) -> dict[str, str]:
    location = {"Location": batch_path(accepted.batch_id)}
    return location if accepted.created else {**location, "Idempotency-Replayed": "true"}


@router.get("/batches", response_model=BatchPage)
async def list_batches(
    here: Here,
    caller: Caller,
    status: BatchStatus | None = None,
    since: AwareDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
    cursor: str | None = None,
) -> Response:
    """List batches, newest first, replays among them."""
    return await listed(here, caller, None, status=status, since=since, limit=limit, cursor=cursor)


async def listed(
    here: Dependencies,
    caller: Identity,
    kind: Literal["replay"] | None,
    *,
    status: BatchStatus | None,
    since: datetime | None,
    limit: int,
    cursor: str | None,
) -> Response:
    """A page of batches, or of those of one kind."""
    found = await here.batches.queries.list(
        tenant=caller.tenant,
        kind=kind,
        status=status,
        since=since,
        before=BatchCursor(*read_cursor(cursor)) if cursor else None,
        limit=limit + 1,
    )
    page = tuple(map(here.batches.details.linked, found[:limit]))
    more = len(found) > limit
    next_cursor = cursor_text(micros(page[-1].created_at), page[-1].batch_id) if more else None
    return json_answer(BatchPage(batches=page, next_cursor=next_cursor))


@router.get("/batches/{batch_id}", response_model=Batch)
async def show(batch_id: str, here: Here, caller: Caller) -> Response:
    """One batch: its state, counts, usage, pace and expected end."""
    return json_answer(await here.batches.details.of(await here.batches.queries.get(batch_id, caller.tenant)))


@router.post("/batches/{batch_id}/pause", status_code=202, response_model=BatchAccepted)
async def pause(batch_id: str, here: Here, caller: Caller) -> Response:
    """Let no further item begin; those that run finish. Repeating the call has no further effect."""
    return json_answer(_links(await here.batches.runs.pause(batch_id, caller.tenant)), 202)


@router.post("/batches/{batch_id}/resume", status_code=202, response_model=BatchAccepted)
async def resume(batch_id: str, here: Here, caller: Caller) -> Response:
    """Let the items of a paused batch begin again; of one that has ended, those without an answer go on, and the batch
    ends once more."""
    batch = await here.batches.runs.resume(batch_id, caller.tenant)
    here.after_response.soon(lambda: here.batches.dispatch.start(batch.batch_id))
    return json_answer(_links(batch), 202)


@router.post("/batches/{batch_id}/cancel", status_code=202, response_model=BatchAccepted)
async def cancel(batch_id: str, here: Here, caller: Caller) -> Response:
    """Cancel all items that have not ended, durably. Repeating the call has no further effect."""
    batch = await here.batches.runs.cancel(batch_id, caller.tenant)
    if not batch.status.terminal:
        here.after_response.soon(lambda: here.batches.dispatch.cancel(batch.batch_id))
    return json_answer(_links(batch), 202)


JSONL = {200: {"content": {"application/x-ndjson": {}}, "description": "An OutputLine in each line"}}


@router.get("/batches/{batch_id}/output", response_model=None, responses=JSONL)  # type: ignore[arg-type]
async def output(batch_id: str, here: Here, caller: Caller) -> Response:
    """The answers so far, in the order of the items, in the format of Mistral's and OpenAI's batch output."""
    return await _file(here, caller, batch_id, errors=False)


@router.get("/batches/{batch_id}/errors", response_model=None, responses=JSONL)  # type: ignore[arg-type]
async def errors(batch_id: str, here: Here, caller: Caller) -> Response:
    """The items that have ended without an answer, in their order."""
    return await _file(here, caller, batch_id, errors=True)


async def _file(here: Dependencies, caller: Identity, batch_id: str, *, errors: bool) -> Response:
    batch = await here.batches.queries.get(batch_id, caller.tenant)

    pages = output_pages(here.batches.queries, batch.batch_id, errors=errors)
    name = f"{batch.batch_id}-{'errors' if errors else 'output'}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pages, headers=headers, media_type="application/x-ndjson")


@router.get("/batches/{batch_id}/events", response_model=None, responses=EVENTS_DOCUMENTED)  # type: ignore[arg-type]
async def events(batch_id: str, request: Request, here: Here, caller: Caller) -> Response:
    """The progress of a batch: ``progress`` whenever it changes, at most twice a second; then ``complete``,
    ``cancelled`` or ``error``. Ids are ``<revision>.<ended jobs>``, that of the last event ends in ``.end``."""
    check_accept(request)
    given = request.headers.get("last-event-id", request.query_params.get("lastEventId"))
    if given:
        read_event_id(given)
    batch = await here.batches.queries.get(batch_id, caller.tenant)
    if batch.status.terminal and given == _event_id(batch):
        return Response(status_code=204)
    return BatchEventsResponse(here, caller, batch.batch_id)


def _event_id(state: Batch | BatchProgress) -> str:
    counts = state.counts
    ended = counts.completed + counts.failed + counts.cancelled
    return f"{state.revision}.{ended}{'.end' if state.status.terminal else ''}"


class BatchEventsResponse(EventStreamResponse):
    """One reader of a batch's progress."""

    def __init__(self, here: Dependencies, caller: Identity, batch_id: str) -> None:
        super().__init__(here, caller)
        self._batch_id = batch_id

    async def send_events(self, send: Send) -> None:
        try:
            async with self._here.batches.progress.watching(self._batch_id) as watched:
                await self._send_states(send, watched)
        except BatchNotFound:
            return

    async def _send_states(self, send: Send, watched: Watched) -> None:
        number, sent = 0, ""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_seconds):
                    state, number = await watched.after(number), watched.number
            except TimeoutError:
                await self.write(send, KEEP_ALIVE)
                continue
            if state is None:
                return
            new = _event_id(state)
            await self.write_events(send, _block(state, new if new != sent else None))
            sent = new
            if state.status.terminal:
                return


def _block(state: BatchProgress, event_id: str | None) -> bytes:
    return sse.encode(EVENTS.get(state.status, "progress"), event_id, state.model_dump_json())
