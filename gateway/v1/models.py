"""``/v1/models``: the models of the server that answers, as it describes them."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from chatjobs.contracts import JsonObject
from domain.errors import UpstreamError, UpstreamRateLimited, UpstreamRefused
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.routes.jobs import Caller, Here

NO_KEY: Final = "The gateway has no key for the model's server: set MISTRAL_API_KEY for it, too"
USUAL: Final[JsonObject] = {
    "object": "model",
    "created": 0,
    "owned_by": "unknown",
    "capabilities": {"completion_chat": True},
    "type": "base",
}
"""What Mistral's clients require of a model, where another server leaves it out."""

router = APIRouter(prefix="/v1")


@router.get("/models", response_model=None)
async def list_models(here: Here, caller: Caller) -> Response:
    """List the models that the service may use."""
    return _json({"object": "list", "data": await _models(here)})


@router.get("/models/{model_id:path}", response_model=None)
async def show_model(model_id: str, here: Here, caller: Caller) -> Response:
    """One model."""
    for model in await _models(here):
        if model_id == model["id"]:
            return _json(model)
    raise HttpProblem(404, "model_not_found", "There is no such model; GET /v1/models lists them")


async def _models(here: Dependencies) -> list[JsonObject]:
    """Raises HttpProblem."""
    if here.models is None:
        raise HttpProblem(503, "upstream_unauthorized", NO_KEY)
    try:
        return [USUAL | model for model in await here.models.available()]
    except UpstreamError as error:
        status = 429 if isinstance(error, UpstreamRateLimited) else 502
        if isinstance(error, UpstreamRefused) and error.http_status:
            status = error.http_status
        raise HttpProblem(status, error.reason, error.message) from None


def _json(document: Any) -> Response:
    return Response(json.dumps(document), media_type="application/json")
