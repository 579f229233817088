"""Webhooks: deliveries and redelivery on demand; the state of endpoints; test calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import (
    Delivery,
    Endpoint,
    EndpointList,
    EndpointRequest,
    EndpointStatus,
    Many,
    Redelivering,
    Redelivery,
    WebhookTest,
    WireModel,
    parse,
)
from chatjobs.errors import InvalidRequest, InvalidSecret, Problem
from chatjobs.webhooks import check_secret
from dispatch.deliveries import try_now
from gateway.dependencies import Dependencies
from gateway.routes.jobs import Caller, Here, body_of, json_answer
from gateway.serving.bodies import json_body
from storage.engine.schema import now
from storage.webhooks.deliveries import RedeliveryRequest
from storage.webhooks.endpoints import MOST_LISTED

MOST_BODY_BYTES = 16 * 1024

router = APIRouter(prefix="/api")


class DeliveryList(WireModel):
    """Oldest first."""

    deliveries: Many[Delivery]


class WebhookAddress(WireModel):
    """The URL of an endpoint."""

    url: Annotated[str, StringConstraints(max_length=2_048)]


@router.get(
    "/jobs/{job_id}/deliveries", response_model=DeliveryList, responses={410: {"description": "The job was deleted"}}
)
async def deliveries(job_id: str, here: Here, caller: Caller) -> Response:
    """A job's webhook deliveries with all their tries."""
    return json_answer(DeliveryList(deliveries=tuple(await here.deliveries.of_job(job_id, caller.tenant))))


@router.post("/jobs/{job_id}/deliveries/{delivery_id}/redeliver", status_code=202, response_model=Redelivering)
async def redeliver(job_id: str, delivery_id: str, here: Here, caller: Caller) -> Response:
    """Send a delivery again now, whatever its status: the same body with the same ``webhook-id``.

    If it fails it is retried like a new one. The request is durable, even while Temporal is unavailable.
    """
    wanted = await here.deliveries.redeliver(delivery_id, tenant=caller.tenant, job_id=job_id)
    return _redeliver_after_response(here, [wanted])


@router.post("/jobs/{job_id}/redeliver", status_code=202, response_model=Redelivering)
async def redeliver_job(job_id: str, here: Here, caller: Caller) -> Response:
    """Send all deliveries of a job again."""
    return _redeliver_after_response(here, await here.deliveries.redeliver_job(job_id, caller.tenant))


@router.post("/redeliveries", status_code=202, response_model=Redelivering, openapi_extra=body_of(Redelivery))
async def redeliver_some(request: Request, here: Here, caller: Caller) -> Response:
    """Send the deliveries of a period again, oldest first, up to 10,000 of them."""
    chosen = parse(Redelivery, await json_body(request, MOST_BODY_BYTES))
    return json_answer(await here.deliveries.redeliver_some(chosen, caller.tenant), 202)


def _redeliver_after_response(here: Dependencies, wanted: Sequence[RedeliveryRequest]) -> Response:
    for one in wanted:
        here.after_response.soon(partial(try_now, here.client, here.deliveries, one))
    return json_answer(Redelivering(count=len(wanted)), 202)


@router.post("/webhooks/test", response_model=WebhookTest, openapi_extra=body_of(WebhookAddress))
async def test(request: Request, here: Here, caller: Caller) -> Response:
    """Call a URL with the event ``webhook.test``, signed like every webhook, and report its response."""
    address = parse(WebhookAddress, await json_body(request, MOST_BODY_BYTES))
    return json_answer(await here.webhook_tests.post(caller.tenant, address.url))


@router.get("/endpoints", response_model=EndpointList)
async def list_endpoints(
    here: Here,
    caller: Caller,
    status: EndpointStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
) -> Response:
    """The state of each webhook URL: the disabled ones first, then those that fail."""
    found = await here.endpoints.list(caller.tenant, status=status, limit=limit)
    return json_answer(EndpointList(endpoints=tuple(found)))


@router.post(
    "/endpoints",
    response_model=Endpoint,
    responses={201: {"model": Endpoint, "description": "The endpoint is new"}},
    openapi_extra=body_of(EndpointRequest),
)
async def put_endpoint(request: Request, here: Here, caller: Caller) -> Response:
    """Have the webhooks of all jobs and batches sent to a URL, from now on; up to 16 URLs.

    The same URL again changes what is given: its ``events`` (all, unless given) and its ``secret``. A secret that is
    replaced signs beside the new one for 24 hours. A job that has the URL as its own webhook is announced there once.
    """
    wanted = parse(EndpointRequest, await json_body(request, MOST_BODY_BYTES))
    if wanted.secret is not None:
        try:
            check_secret(wanted.secret)
        except InvalidSecret as error:
            raise InvalidRequest([Problem("/secret", error.message)]) from None
    wanted = wanted.model_copy(update={"url": here.batches.rules().check(wanted.url)})
    new = await here.tenant_endpoints.put(caller.tenant, wanted)
    return json_answer(await here.endpoints.get(caller.tenant, wanted.url), 201 if new else 200)


@router.delete("/endpoints", status_code=204, response_model=None, openapi_extra=body_of(WebhookAddress))
async def delete_endpoint(request: Request, here: Here, caller: Caller) -> Response:
    """Stop the webhooks of all jobs to a URL, given as in the list. Those that are still to be delivered there fail
    (``endpoint_deleted``); those of jobs that have the URL as their own webhook do not."""
    address = parse(WebhookAddress, await json_body(request, MOST_BODY_BYTES))
    await here.tenant_endpoints.delete(caller.tenant, address.url)
    here.after_response.soon(partial(here.deliveries.give_up, caller.tenant, address.url, now()))
    return Response(status_code=204)


@router.post("/endpoints/enable", response_model=Endpoint, openapi_extra=body_of(WebhookAddress))
async def enable(request: Request, here: Here, caller: Caller) -> Response:
    """Enable a URL, given as in the list. Deliveries that failed meanwhile are not sent again: redeliver them."""
    address = parse(WebhookAddress, await json_body(request, MOST_BODY_BYTES))
    return json_answer(await here.endpoints.enable(caller.tenant, address.url))
