"""Errors as ``application/problem+json`` (RFC 9457) with a stable code; never with what was sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from chatjobs.errors import ChatJobsError, InvalidRequest, JobIdConflict, Problem

log = logging.getLogger(__name__)

STATUSES: Mapping[str, int] = {
    "validation_failed": 422,
    "idempotency_mismatch": 422,
    "webhook_url_refused": 422,
    "job_not_found": 404,
    "delivery_not_found": 404,
    "job_id_conflict": 409,
    "job_finished": 409,
    "job_running": 409,
    "content_deleted": 410,
    "storage_unavailable": 503,
    "storage_full": 503,
    "temporal_unavailable": 503,
}
"""The HTTP status of our errors' codes; 500 for the others, which nobody should see."""
RETRY_AFTER_SECONDS = "5"
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    410: "gone",
    413: "body_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    431: "headers_too_large",
}


class HttpProblem(Exception):
    """An answer that is an error, decided by a route."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors, self.headers = status, code, detail, errors, headers


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if errors:
        body["errors"] = [{"pointer": pointer, "message": message} for pointer, message in errors]
    return Response(json.dumps(body).encode(), status, headers, "application/problem+json")


async def on_http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpProblem)
    return problem(error.status, error.code, error.detail, errors=error.errors, headers=error.headers)


async def on_our_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ChatJobsError)
    status = STATUSES.get(error.code, 500)
    errors = error.problems if isinstance(error, InvalidRequest) else ()
    code = "job_id_taken" if isinstance(error, JobIdConflict) else error.code
    detail = type(error).__doc__ or code if isinstance(error, InvalidRequest) else error.message
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else None
    if status >= 500:
        log.error("request failed: %s", error, extra={"action": "request_failed", "code": error.code})
    return problem(status, code, detail, errors=errors, headers=headers)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """What the framework refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "http_error")
    return problem(error.status_code, code, HTTPStatus(error.status_code).description, headers=error.headers)


async def on_invalid_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [Problem("/" + "/".join(map(str, item["loc"][1:])), item["msg"]) for item in error.errors()]
    return problem(422, "validation_failed", "The parameters are not valid", errors=found)


async def on_anything_else(_: Request, error: Exception) -> Response:
    """A defect of ours. The log has it, the caller gets no traceback."""
    log.error("request failed", exc_info=error, extra={"action": "request_failed"})
    return problem(500, "internal", "Something went wrong here; it is in the log")
