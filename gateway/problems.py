"""Errors as ``application/problem+json`` (RFC 9457) with a stable code; they never repeat the request."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from chatjobs.errors import ChatJobsError, InvalidRequest, JobIdConflict, Problem
from chatjobs.validation import reason
from domain.errors import StorageError
from gateway.page import files as page
from gateway.v1.errors import error_response, is_v1

log = logging.getLogger(__name__)

STATUSES: Mapping[str, int] = {
    "validation_failed": 422,
    "idempotency_mismatch": 422,
    "webhook_url_refused": 422,
    "job_not_found": 404,
    "batch_not_found": 404,
    "batch_job_not_found": 404,
    "file_not_found": 404,
    "delivery_not_found": 404,
    "endpoint_not_found": 404,
    "pause_not_found": 404,
    "key_not_found": 404,
    "schedule_not_found": 404,
    "job_id_conflict": 409,
    "job_finished": 409,
    "job_running": 409,
    "nothing_to_resume": 409,
    "batch_finished": 409,
    "too_many_endpoints": 409,
    "too_many_keys": 409,
    "last_admin_key": 409,
    "role_required": 403,
    "content_deleted": 410,
    "events_expired": 410,
    "storage_unavailable": 503,
    "storage_full": 503,
    "storage_refused": 422,
    "search_unavailable": 501,
    "temporal_unavailable": 503,
}
"""The HTTP status of each error code of ours; 500 for codes that should not reach a caller."""
RETRY_AFTER_SECONDS = "5"
BLANK_FOR_PLUS = re.compile(r":[0-9]{2}(?:[.,][0-9]+)? [0-9]{1,2}(?::?[0-9]{2})?$")
"""A time with an offset whose + was not escaped and was decoded as a blank."""
V1_ONLY = "Of /v1, this service has chat/completions, responses, models, files and batch/jobs"
LONGEST_POINTER = 200
"""A pointer is cut to this length: it may consist of names that the caller chose."""
METHOD = "chatjobs.method"
"""The key of the request's original method in its scope; the application sees GET for HEAD."""
PROBLEM_TYPE = "application/problem+json"
PROTECTION = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
"""Headers of every response that does not set them itself."""
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
    """An error response, raised by a route."""

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
    path: str,
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response to a request for ``path`` that failed, in the form of that API."""
    if is_v1(path):
        return error_response(path, status, code, detail, errors, headers)
    return Response(problem_body(status, code, detail, errors), status, headers, PROBLEM_TYPE)


def problem_body(status: int, code: str, detail: str, errors: Sequence[Problem] = (), **more: Any) -> bytes:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        **more,
    }
    if errors:
        body["errors"] = [{"pointer": pointer[:LONGEST_POINTER], "message": message} for pointer, message in errors]
    return json.dumps(body).encode()


async def on_http_problem(request: Request, error: Exception) -> Response:
    refused = cast(HttpProblem, error)
    path, errors, headers = request.scope["path"], refused.errors, refused.headers
    return problem(path, refused.status, refused.code, refused.detail, errors=errors, headers=headers)


async def on_chatjobs_error(request: Request, error: Exception) -> Response:
    error = cast(ChatJobsError, error)
    status = STATUSES.get(error.code, 500)
    errors = error.problems if isinstance(error, InvalidRequest) else ()
    code = "job_id_taken" if isinstance(error, JobIdConflict) else error.code
    detail = type(error).__doc__ or code if isinstance(error, InvalidRequest) else error.message
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else None
    if isinstance(error, StorageError):
        request.app.state.metrics.storage_failed(error)
    if status >= 500:
        log.error("request failed: %s", error, extra={"action": "request_failed", "code": error.code})
    return problem(request.scope["path"], status, code, detail, errors=errors, headers=headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler for Starlette's errors: no such path, no such method."""
    error = cast(HTTPException, error)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _method_not_allowed(request.scope)
    if error.status_code == HTTPStatus.NOT_FOUND and page.is_page_request(request):
        return page.not_found_page()
    code, path = CODES.get(error.status_code, "http_error"), request.scope["path"]
    known = HTTPStatus(error.status_code).description
    detail = V1_ONLY if error.status_code == HTTPStatus.NOT_FOUND and is_v1(path) else known
    return problem(path, error.status_code, code, detail, headers=error.headers)


def _method_not_allowed(scope: Scope) -> Response:
    allowed = ", ".join(allowed_methods(scope))
    detail = f"This path does not take {scope[METHOD]}; it takes {allowed}"
    return problem(scope["path"], 405, CODES[405], detail, headers={"Allow": allowed})


def allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes that match a request's path, sorted; empty for an unknown path."""
    matching = [r for r in iter_route_contexts(scope["app"].routes) if r.path_regex.match(scope["path"])]
    methods = {method for route in matching for method in route.methods or ()}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods | {"OPTIONS"}) if methods else []


async def on_invalid_parameters(request: Request, error: Exception) -> Response:
    error = cast(RequestValidationError, error)
    found = [Problem("/" + "/".join(map(str, item["loc"][1:])), _why(item)) for item in error.errors()]
    path = request.scope["path"]
    return problem(path, 422, "validation_failed", "The parameters are not valid", errors=found)


def _why(item: Mapping[str, Any]) -> str:
    if item["type"].startswith("datetime") and BLANK_FOR_PLUS.search(str(item.get("input", ""))):
        return "has a blank for the + of its offset: escape it as %2B, as in 2026-01-31T09:00:00%2B02:00, or use Z"
    return reason(cast(ErrorDetails, item))
