"""Liveness and readiness, for load balancers. Both need no key and reveal nothing about tenants."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response
from temporalio.service import RPCError

from chatjobs.contracts import WireModel
from domain.errors import StorageError
from gateway.dependencies import Dependencies, parts
from gateway.problems import PROBLEM_TYPE, RETRY_AFTER_SECONDS, problem_body
from storage.engine.database import check_writable

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
FRESH_SECONDS = 1.0
"""However many ask, the database and Temporal are asked once in so long."""

router = APIRouter()
Here = Annotated[Dependencies, Depends(parts)]


class Alive(WireModel):
    status: Literal["ok"] = "ok"


class Check(WireModel):
    """The result of one check; ``error`` is None if it succeeded."""

    ok: bool
    latency_ms: int
    error: str | None = None


class Ready(WireModel):
    status: Literal["ready"] = "ready"
    checks: dict[str, Check]


@router.get("/healthz", response_model=Alive)
async def healthz() -> Response:
    """Liveness: the process responds."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz", response_model=Ready, responses={503: {"description": "Something is missing; see `checks`"}})
async def readyz(request: Request, here: Here) -> Response:
    """Readiness: the database accepts writes and Temporal responds; 503 if one of them does not."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.checks(here)
    if all(check.ok for check in checks.values()):
        return Response(Ready(checks=checks).model_dump_json(), media_type="application/json")
    missing = ", ".join(name for name, check in checks.items() if not check.ok)
    shown = {name: check.model_dump(mode="json") for name, check in checks.items()}
    body = problem_body(503, "not_ready", f"Not available: {missing}", checks=shown)
    return Response(body, 503, {"Retry-After": RETRY_AFTER_SECONDS}, PROBLEM_TYPE)


class Readiness:
    """The cached result of the readiness checks; changes are logged."""

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._found: dict[str, Check] = {}

    async def checks(self, here: Dependencies) -> dict[str, Check]:
        async with self._looking:
            if time.monotonic() > self._looked + FRESH_SECONDS:
                database, temporal = await asyncio.gather(
                    _checked(check_writable(here.database)), _checked(_temporal(here))
                )
                self._log_changes({"database": database, "temporal": temporal})
                self._looked = time.monotonic()
            return self._found

    def _log_changes(self, found: dict[str, Check]) -> None:
        for name, check in found.items():
            before = self._found.get(name)
            if before is None or before.ok != check.ok:
                extra = {"action": "readiness", "part": name, "ok": check.ok}
                log.log(
                    logging.INFO if check.ok else logging.ERROR, "%s: %s", name, check.error or "ready", extra=extra
                )
        self._found = found


async def _temporal(here: Dependencies) -> None:
    await here.client.service_client.check_health(timeout=timedelta(seconds=CHECK_SECONDS))


async def _checked(work: Awaitable[object]) -> Check:
    begin = time.monotonic()
    error = None
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await work
    except TimeoutError:
        error = f"no answer within {CHECK_SECONDS:g} s"
    except StorageError as failure:
        error = failure.code
    except (RPCError, RuntimeError):  # RuntimeError: the SDK could not connect
        error = "temporal_unavailable"
    return Check(ok=error is None, latency_ms=round((time.monotonic() - begin) * 1000), error=error)
