"""The application: routes and exception handlers. serving/server.py serves it."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from chatjobs.errors import ChatJobsError
from gateway import problems
from gateway.dependencies import Dependencies
from gateway.page import files as page
from gateway.parameters import Parameters
from gateway.routes import (
    batches,
    events,
    feed,
    health,
    jobs,
    keys,
    lanes,
    metrics,
    replays,
    schedules,
    sessions,
    settings,
    streams,
    webhooks,
)
from gateway.routes.document import described
from gateway.routes.health import Readiness
from gateway.routes.metrics import Metrics
from gateway.serving.cors import Cors
from gateway.serving.middleware import RequestMiddleware
from gateway.v1 import batch_jobs, chat, files, models, responses

DESCRIPTION = "Durable chat jobs for Mistral AI: start one, watch its answer appear, receive it by signed webhook."

CHECKED = (
    ("Jobs", jobs.router),
    ("Streams", streams.router),
    ("Batches", batches.router),
    ("Replays", replays.router),
    ("Webhooks", webhooks.router),
    ("Events", events.router),
    ("Lanes", lanes.router),
    ("Schedules", schedules.router),
    ("Overview", feed.router),
    ("Administration", keys.router),
    ("Administration", settings.router),
)
"""Routers whose query parameters are checked, with their tags in the API document."""
OTHERS = (
    ("Sessions", sessions.router),
    ("Operation", health.router),
    ("Operation", metrics.router),
    ("As Mistral speaks", chat.router),
    ("As Mistral speaks", models.router),
    ("As Mistral speaks", files.router),
    ("As Mistral speaks", batch_jobs.router),
    ("As OpenAI speaks", responses.router),
)


def create_app(parts: Dependencies | None) -> FastAPI:
    """The FastAPI application; ``parts`` is None to generate the OpenAPI document only."""
    app = FastAPI(
        title="chatjobs",
        version="1",
        description=DESCRIPTION,
        redirect_slashes=False,
        docs_url=None,  # page/files.py serves our own
        redoc_url=None,
    )
    app.state.parts = parts
    app.state.metrics = Metrics(parts)
    app.state.readiness = Readiness()
    for tag, router in CHECKED:
        app.include_router(router, dependencies=[Depends(Parameters().check)], tags=[tag])
    for tag, router in OTHERS:
        app.include_router(router, tags=[tag])
    app.include_router(page.router)
    app.state.cors = Cors(parts.settings.chatjobs_cors_origins if parts else ())
    app.add_middleware(RequestMiddleware, metrics=app.state.metrics, cors=app.state.cors)
    app.add_exception_handler(problems.HttpProblem, problems.on_http_problem)
    app.add_exception_handler(ChatJobsError, problems.on_chatjobs_error)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(RequestValidationError, problems.on_invalid_parameters)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]  # as in FastAPI's documentation
    return app
