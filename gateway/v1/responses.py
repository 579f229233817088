"""``/v1/responses``: OpenAI's background mode, in front of Mistral's models. Each response is a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import JobStatus
from chatjobs.errors import ContentDeleted, InvalidRequest, JobFinished, JobNotFound, Problem
from dispatch.intake import LARGE_BYTES
from dispatch.schedules import delete_runs
from dispatch.stream_events import first_part
from domain.conversations import ThreadPlace
from domain.values import Cursor, JobHandle, ResponseForm
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here, accept_body, body_of, checked_key
from gateway.serving.bodies import sized_json_body
from gateway.v1.completions import with_our_headers
from gateway.v1.responses_conversation import check_whole, earlier_turns
from gateway.v1.responses_events import EventPlace, ResponseFraming
from gateway.v1.responses_found import FoundResponse, found_job, found_response, not_found
from gateway.v1.responses_input import JsonDict, first_id, input_items
from gateway.v1.responses_object import ResponseParts, response_object
from gateway.v1.responses_request import ResponseRequest, Translation, in_their_words, parsed_request, translated
from gateway.v1.responses_stream import RESTARTED, HeldResponse, ResponseStream, whole_text

CANCEL_WAIT_SECONDS: Final = 5.0
"""How long the answer to a cancellation waits for the job's end; the cancellation is durable before."""
MOST_ITEMS: Final = 100

P = ParamSpec("P")
T = TypeVar("T")

router = APIRouter(prefix="/v1/responses")


@router.post("", response_model=None, openapi_extra=body_of(ResponseRequest))
async def create(
    request: Request, here: Here, caller: Caller, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """Create a response, as OpenAI does. It is a job, which the header X-Job-Id names.

    With ``background`` the answer comes at once, with ``stream`` as events, else when the response has ended. Hanging
    up does not stop it. The same request with the same Idempotency-Key gets the same response from its beginning.
    """
    key = checked_key(idempotency_key)
    body, size = await sized_json_body(request, here.settings.chatjobs_max_body_bytes)
    wanted = await _off_loop(size, parsed_request, body)
    earlier = await earlier_turns(here, caller, wanted.previous_response_id)
    size += earlier.size
    asked = await _off_loop(size, translated, wanted, body, earlier)
    if earlier.messages:
        await _off_loop(size, check_whole, asked, here.settings.chatjobs_max_body_bytes)
    job = await _accept(request, here, caller, key, asked, place=earlier.place, size=size, kept=wanted.store)
    headers = {"X-Job-Id": job.job_id} | ({} if job.created else {"Idempotency-Replayed": "true"})
    found = await found_job(here, caller, job.job_id)
    if wanted.stream:
        return _events(here, caller, found, ResponseFraming(ResponseParts(found.job, found.settings), None), headers)
    if wanted.background:
        return await _whole(here, found, headers)
    return HeldResponse(here, caller, found.job, found.settings, kept=found.kept, headers=headers)


async def _off_loop(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Run what takes long for a large body in a thread, so that others are answered meanwhile."""
    return work(*given, **named) if size < LARGE_BYTES else await asyncio.to_thread(work, *given, **named)


async def _accept(
    request: Request,
    here: Dependencies,
    caller: Identity,
    key: str | None,
    asked: Translation,
    *,
    place: ThreadPlace | None,
    size: int,
    kept: bool,
) -> JobHandle:
    """Commit the job of a request for a response, and have it started. Raises InvalidRequest in the caller's words."""
    body = _with_format(with_our_headers(asked.body, request.headers))
    if not kept and "webhook" in body:
        why = "must be true for a response with a webhook, whose receiver reads the response afterwards"
        raise InvalidRequest([Problem("/store", why)])
    form = ResponseForm(asked.settings.model_dump_json(exclude_defaults=True), kept)
    try:
        return await accept_body(request, here, caller, key, body, size, response=form, place=place)
    except InvalidRequest as error:
        raise in_their_words(error, asked.places) from None


def _with_format(body: JsonDict) -> JsonDict:
    """A job's body whose webhook gets OpenAI's events, unless it says otherwise."""
    callback, webhook = body.get("callback"), body.get("webhook")
    if webhook is None and callback is not None:
        return {**{name: value for name, value in body.items() if name != "callback"}, "webhook": _openai(callback)}
    if isinstance(webhook, dict) and "format" not in webhook:
        return {**body, "webhook": {**webhook, "format": "openai"}}
    return body


def _openai(url: Any) -> JsonDict:
    return {"url": url, "format": "openai"}


def _events(
    here: Dependencies, caller: Identity, found: FoundResponse, framing: ResponseFraming, headers: Mapping[str, str]
) -> ResponseStream:
    cursor = Cursor(found.job.job_id, *framing.read_up_to)
    return ResponseStream(here, caller, cursor, framing, job=found.job, kept=found.kept, headers=headers)


async def _whole(
    here: Dependencies, found: FoundResponse, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """The response as it is now. Raises JobNotFound, ContentDeleted, StorageUnavailable."""
    runs = await whole_text(here, found.job)
    return _json(response_object(ResponseParts(found.job, found.settings, runs)), headers)


def _json(document: JsonDict, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    return Response(json.dumps(document, ensure_ascii=False), 200, headers, "application/json")


@router.get("/{response_id}", response_model=None)
async def retrieve(
    response_id: str,
    here: Here,
    caller: Caller,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A response, with the output so far; with ``stream`` its events after the one that ``starting_after`` names."""
    found = await found_response(here, caller, response_id)
    try:
        if not stream:
            return await _whole(here, found)
        place = None if starting_after is None else EventPlace.of(starting_after)
        return _events(here, caller, found, await _framing(here, found, place), {"X-Job-Id": found.job.job_id})
    except (JobNotFound, ContentDeleted):
        raise not_found() from None


async def _framing(here: Dependencies, found: FoundResponse, place: EventPlace | None) -> ResponseFraming:
    """The events after a place. Raises HttpProblem (400) if the response never had it, or has it no more."""
    parts, job = ResponseParts(found.job, found.settings), found.job
    if place is None or not (place.has_text or place.epoch > 1):
        return ResponseFraming(parts, place)
    text = await here.reader.read(Cursor(job.job_id, job.epoch, 0))
    if place.epoch < text.epoch:
        raise HttpProblem(400, *RESTARTED)
    if place.epoch > text.epoch or place.position > text.position:
        if not text.status.terminal:
            why = "starting_after names an event that this response has not had. Stream it again without starting_after"
            raise HttpProblem(400, "unknown_event", why)
        place = place.within(text.epoch, text.position)
    return ResponseFraming(parts, place, first_part(text, place.position).runs if place.position else ())


@router.post("/{response_id}/cancel", response_model=None)
async def cancel(response_id: str, here: Here, caller: Caller) -> Response:
    """Cancel a response, durably. Repeating the call has no further effect; one that has ended is not cancelled."""
    found = await found_response(here, caller, response_id)
    job_id = found.job.job_id
    try:
        await here.jobs.seals.request_cancel(job_id, caller.tenant)
    except JobFinished:
        detail = f"The response has ended ({found.job.status.value}) and can no longer be cancelled"
        raise HttpProblem(400, "response_finished", detail) from None
    here.after_response.soon(lambda: here.intake.send_cancel(job_id))
    with suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_WAIT_SECONDS):
            async for _ in here.reader.follow(Cursor(job_id)):
                pass
    found = await found_response(here, caller, response_id)
    runs = await whole_text(here, found.job)
    # The request to cancel is durable: the job can have no other outcome any more.
    cancelled = found.job.model_copy(update={"status": JobStatus.CANCELLED})
    return _json(response_object(ResponseParts(cancelled, found.settings, runs)))


@router.delete("/{response_id}", response_model=None)
async def delete(response_id: str, here: Here, caller: Caller) -> Response:
    """Delete the content of a response that has ended."""
    job_id = (await found_response(here, caller, response_id)).job.job_id
    if run := await here.jobs.seals.delete(job_id, caller.tenant):
        here.after_response.soon(lambda: delete_runs(here.client, run))
    return _json({"id": response_id, "object": "response", "deleted": True})


@router.get("/{response_id}/input_items", response_model=None)
async def list_input_items(
    response_id: str,
    here: Here,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The items of the conversation that a response answers, without its instructions."""
    found = await found_response(here, caller, response_id)
    try:
        request = await here.jobs.queries.request(found.job.job_id, caller.tenant)
    except (JobNotFound, ContentDeleted):
        raise not_found() from None
    settings = found.settings
    items = input_items(found.job.job_id, request.messages, settings.developers, settings.calls)
    items = [item for item in items if not (settings.instructions and item["id"] == first_id(found.job.job_id))]
    listed = items if order == "asc" else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(listed, 1) if item["id"] == after]
        if not places:
            raise InvalidRequest([Problem("/after", "is not the id of an item of this response")])
        listed = listed[places[0] :]
    page = listed[:limit]
    return _json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": len(listed) > limit,
        }
    )
