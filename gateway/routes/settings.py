"""What this service runs with, for the page's settings view: no secret, and nothing of other tenants."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.contracts import Lane, Many, WireModel
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.routes.jobs import Caller, Here, json_answer
from storage.engine.database import SCHEMA_VERSION

router = APIRouter(prefix="/api")


class EnvironmentSetting(WireModel):
    """A setting of the gateway's environment, which changes with a restart; ``variable`` is its name there.

    ``unit`` is None for words and switches.
    """

    variable: str
    value: bool | float | str
    unit: Literal["bytes", "days", "calls per second"] | None = None


class LaneLimits(WireModel):
    """The limits of a lane: those in force, those that an operator set, and those that the model's headers tell."""

    lane: str
    per_second: float
    per_second_set: float | None
    per_second_seen: float | None
    at_once: int | None
    tokens_per_minute: int | None
    tokens_per_minute_set: int | None
    tokens_per_minute_seen: int | None


class ServiceSettings(WireModel):
    """What runs. ``operator``: the caller's tenant is the operator's, whose admins change limits that all tenants
    share."""

    version: str
    schema_version: str
    tenant: str
    operator: bool
    database: Literal["sqlite", "postgresql"]
    environment: Many[EnvironmentSetting]
    lanes: Many[LaneLimits]
    """All lanes for the operator's tenant; for others those that their jobs use at the moment."""


@router.get("/settings", response_model=ServiceSettings)
async def show_settings(request: Request, here: Here, caller: Caller) -> Response:
    """What this gateway runs with: version, limits, retention, switches. Workers have an environment of their own."""
    operator = is_operator(here, caller)
    lanes = await here.limiter.lanes(None if operator else caller.tenant)
    found = ServiceSettings(
        version=request.app.version,
        schema_version=SCHEMA_VERSION,
        tenant=caller.tenant,
        operator=operator,
        database="sqlite" if here.database.is_sqlite else "postgresql",
        environment=_environment(here),
        lanes=tuple(map(limits_of, lanes)),
    )
    return json_answer(found)


def is_operator(here: Dependencies, caller: Identity) -> bool:
    """Whether the caller's tenant is that of the command line, of jobs started in Temporal, and of no keys."""
    return caller.tenant == here.settings.chatjobs_direct_tenant


def limits_of(lane: Lane) -> LaneLimits:
    return LaneLimits(
        lane=lane.name,
        per_second=lane.per_second,
        per_second_set=lane.set_to,
        per_second_seen=lane.seen,
        at_once=lane.at_once,
        tokens_per_minute=lane.tokens_per_minute,
        tokens_per_minute_set=lane.tokens_set_to,
        tokens_per_minute_seen=lane.tokens_seen,
    )


def _environment(here: Dependencies) -> tuple[EnvironmentSetting, ...]:
    known = here.settings
    return (
        EnvironmentSetting(variable="CHATJOBS_RETENTION_DAYS", value=known.chatjobs_retention_days, unit="days"),
        EnvironmentSetting(variable="CHATJOBS_MAX_BODY_BYTES", value=known.chatjobs_max_body_bytes, unit="bytes"),
        EnvironmentSetting(variable="CHATJOBS_MAX_FILE_BYTES", value=known.chatjobs_max_file_bytes, unit="bytes"),
        EnvironmentSetting(
            variable="MISTRAL_REQUESTS_PER_SECOND", value=known.mistral_requests_per_second, unit="calls per second"
        ),
        EnvironmentSetting(variable="CHATJOBS_CONTINUATION", value=known.chatjobs_continuation),
        EnvironmentSetting(variable="CHATJOBS_WEBHOOK_HTTP", value=known.chatjobs_webhook_http),
    )
