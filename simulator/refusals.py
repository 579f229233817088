"""Refusals: the status codes and bodies of Mistral's errors.

The forms are from public reports of the real service; only the refusal of a prefix with tools is invented.
"""

from __future__ import annotations

from http.client import responses
from typing import Any, NamedTuple

from pydantic import ValidationError

from simulator.faults import Status
from simulator.wire import JSON_TYPE, json_bytes

Headers = dict[str, str]

_NO_ALLOWANCE: Headers = {"x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0"}
_TYPES = {400: "invalid_request_error", 403: "forbidden", 404: "not_found", 429: "rate_limited"}
_CODES = {400: "3000", 403: "1400", 404: "1600", 429: "1300"}


class Refusal(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: Headers


class Refused(Exception):
    """The request is answered with this refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.status)
        self.refusal = refusal


def of_json(status: int, document: Any, **headers: str) -> Refusal:
    return Refusal(status, json_bytes(document), {"content-type": JSON_TYPE} | headers)


def error(status: int, message: str, type_: str, code: str | None) -> Refusal:
    document = {"object": "error", "message": message, "type": type_, "param": None, "code": code}
    return of_json(status, document | {"raw_status_code": status})


def unauthorized() -> Refusal:
    return of_json(401, {"detail": "Unauthorized"})


def rate_limited(retry_after: int, headers: Headers) -> Refusal:
    """The 429 of an exceeded allowance; ``retry_after`` in seconds."""
    refusal = error(429, "Rate limit exceeded", "rate_limited", "1300")
    return refusal._replace(headers=refusal.headers | headers | {"retry-after": str(retry_after)})


def invalid(found: ValidationError) -> Refusal:
    """422, with the location of each error in the body."""
    problems = [
        {"type": item["type"], "loc": ["body", *item["loc"]], "msg": item["msg"], "input": item["input"]}
        for item in found.errors(include_url=False, include_context=False)
    ]
    return of_json(422, {"detail": problems})


def no_stream_options() -> Refusal:
    """Mistral's refusal of OpenAI's parameter, as in openai/openai-agents-python#442."""
    place = ["body", "stream_options", "include_usage"]
    found = {"type": "extra_forbidden", "loc": place, "msg": "Extra inputs are not permitted", "input": True}
    document = {"object": "error", "message": {"detail": [found]}, "type": "invalid_request_error"}
    return of_json(422, document | {"param": None, "code": None})


def of_fault(fault: Status) -> Refusal:
    """The response of a scripted status."""
    refusal = _with_body(fault)
    headers = refusal.headers | _NO_ALLOWANCE if fault.variant == "no_allowance" else dict(refusal.headers)
    if fault.retry_after is not None:
        headers["retry-after"] = str(fault.retry_after)
    if 300 <= fault.status < 400:
        headers["location"] = fault.location
    body = b"" if fault.status in (204, 304) else refusal.body
    return Refusal(fault.status, body, headers | fault.headers)


def _with_body(fault: Status) -> Refusal:
    if isinstance(fault.body, str):
        return Refusal(fault.status, fault.body.encode(), {"content-type": "text/plain"})
    if fault.body is not None:
        return of_json(fault.status, fault.body)
    if fault.status == 401:
        return unauthorized()
    if fault.status == 429:
        return _rate_limited(fault)
    if 300 <= fault.status < 400 or fault.status < 300:
        return Refusal(fault.status, b"", {})
    return _plain(fault)


def _rate_limited(fault: Status) -> Refusal:
    match fault.variant:
        case "short":
            return of_json(429, {"message": fault.message or "Rate limit exceeded", "code": "1300"})
        case "bare":
            return of_json(429, {"message": fault.message or "Requests rate limit exceeded"})
        case "capacity":
            message = fault.message or "Service tier capacity exceeded for this model."
            return error(429, message, "service_tier_capacity_exceeded", "3505")
        case _:
            return error(429, fault.message or "Rate limit exceeded", "rate_limited", "1300")


def _plain(fault: Status) -> Refusal:
    message = fault.message or responses.get(fault.status, f"Status {fault.status}")
    if fault.status == 422:
        return of_json(422, {"detail": [{"type": "value_error", "loc": ["body"], "msg": message, "input": None}]})
    type_ = _TYPES.get(fault.status, "invalid_request_error" if fault.status < 500 else "internal_server_error")
    return error(fault.status, message, type_, _CODES.get(fault.status, "1000" if fault.status >= 500 else None))
