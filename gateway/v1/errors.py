"""Errors of ``/v1``: in Mistral's form, and in OpenAI's for responses.

Sources: Mistral's API reference (``HTTPValidationError``) and the errors that its clients parse: ``@ai-sdk/mistral``
wants ``object``, ``message``, ``type``, ``param`` and ``code``, the first three as texts; OpenAI's clients take the
members of ``error`` (those for JavaScript) or of the whole body.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from chatjobs.contracts import Job, JobError
from chatjobs.errors import Problem

PATH: Final = "/v1/"
RESPONSES_PATH: Final = "/v1/responses"
TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "gone",
    422: "invalid_request_error",
    429: "rate_limited",
}
"""Mistral's ``type`` by status; ``invalid_request_error`` for other 4xx, ``internal_server_error`` for 5xx."""
RETRY_SOON: Final = {"Retry-After": "5"}

JOB_STATUSES: Final = {
    "upstream_rate_limited": 429,
    "upstream_no_allowance": 429,
    "upstream_unauthorized": 401,
    "upstream_rejected": 400,
    "model_not_found": 400,
    "upstream_too_large": 502,
    "upstream_unavailable": 503,
    "queue_timeout": 503,
    "worker_lost": 503,
    "storage_unavailable": 503,
    "storage_full": 503,
    "first_token_timeout": 504,
    "stall_timeout": 504,
    "total_timeout": 504,
    "max_total_tokens": 400,
    "prefix_not_continued": 400,
    "schema_mismatch": 502,
    "schema_check_failed": 400,
    "validation_failed": 422,
    "webhook_url_refused": 422,
    "cancelled": 400,
    "terminated": 500,
    "internal": 500,
}
"""The status for the code of a job's error; 502 for every other failure of the model's server."""
LIMITED: Final = frozenset({"upstream_rate_limited", "upstream_no_allowance"})
CANCELLED: Final = JobError(code="cancelled", message="The job was cancelled; send the request again with another key")


def is_v1(path: str) -> bool:
    return path.startswith(PATH)


def error_response(
    path: str, status: int, code: str, detail: str, errors: Sequence[Problem] = (), headers: Any = None
) -> Response:
    """The response to a request for ``path`` that failed."""
    if path.startswith(RESPONSES_PATH) and status == 422:
        status = 400  # as OpenAI answers every invalid request
    document = error_document(status, code, detail, errors)
    if path.startswith(RESPONSES_PATH):
        document = {"error": document["error"]}
    return Response(json.dumps(document), status, headers, "application/json")


def error_document(status: int, code: str, detail: str, errors: Sequence[Problem] = ()) -> dict[str, Any]:
    """Mistral's error object, with the places of a 422, as its clients parse them. ``error`` has it in OpenAI's form:
    OpenAI's clients take the message from there, and know an error in a stream by it."""
    usual = "internal_server_error" if status >= 500 else "invalid_request_error"
    places = "; ".join(f"{_name(one.pointer)}: {one.message}" if one.pointer else one.message for one in errors)
    document: dict[str, Any] = {
        "object": "error",
        "message": f"{detail.rstrip('.')}: {places}" if places else detail,
        "type": TYPES.get(status, usual),
        "param": _name(errors[0].pointer) or None if errors else None,
        "code": code,
    }
    if status == 422:
        document["detail"] = [
            {"type": "value_error", "loc": ["body", *one.pointer.split("/")[1:]], "msg": one.message}
            for one in errors or [Problem("", detail)]
        ]
    return document | {"error": {name: document[name] for name in ("message", "type", "param", "code")}}


def stream_error(status: int, error: JobError) -> bytes:
    """An error as a frame of a stream."""
    return f"data: {json.dumps(error_document(status, error.code, error.message))}\n\n".encode()


class Failure(NamedTuple):
    """How a request is answered whose job ended without an answer."""

    status: int
    error: JobError
    headers: Mapping[str, str]


def failure(job: Job) -> Failure:
    """The answer for a job without one: with the status that the model's server gave, where it gave one.

    ``x-should-retry`` is for OpenAI's clients: the job has made its retries already.
    """
    error = job.error or CANCELLED
    status = _status(job, error)
    return Failure(status, error, {"X-Should-Retry": "false"} | (RETRY_SOON if status in (429, 503) else {}))


def _status(job: Job, error: JobError) -> int:
    if error.code in LIMITED or (error.cause is not None and error.cause.code in LIMITED):
        return 429
    of_code = JOB_STATUSES.get(error.code, 502 if error.code.startswith("upstream_") else 500)
    given = next((one.http_status for one in reversed(job.attempts) if one.http_status), 0)
    return given if error.code.startswith("upstream_") and given >= 400 and given // 100 == of_code // 100 else of_code


def _name(pointer: str) -> str:
    """``messages.0.content`` for ``/messages/0/content``."""
    return pointer[1:].replace("/", ".").replace("~1", "/").replace("~0", "~")
