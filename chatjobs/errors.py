"""The errors of the client and of webhooks. Each docstring is the message that is shown unless a better one is given.

Errors that only the service itself raises are in domain/errors.py.

ChatJobsError
├── InvalidRequest
├── JobNotFound
├── BatchNotFound
├── BatchFinished
├── DeliveryNotFound
├── EndpointNotFound
├── TooManyEndpoints
├── EventsExpired
├── PauseNotFound
├── ScheduleNotFound
├── JobIdConflict
├── JobFinished
├── JobRunning
├── NothingToResume
├── ContentDeleted
├── IdempotencyMismatch
├── Unauthorized
├── ApiError
│   ├── ServiceUnavailable
│   ├── ResponseTooLarge
│   └── StreamBroken
├── JobFailed
├── ConfigurationError
└── WebhookError
    ├── InvalidSecret
    ├── InvalidSignature
    └── WebhookUrlRefused
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

MAX_MESSAGE_CHARACTERS = 500
"""Longest message of an error."""


def bounded(text: str, limit: int = MAX_MESSAGE_CHARACTERS) -> str:
    """One line of printable text, at most ``limit`` characters: safe to store, to log and to send through Temporal."""
    line = re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


class Problem(NamedTuple):
    """One thing that is wrong with an input: a JSON pointer (RFC 6901) and why."""

    pointer: str
    """Empty for the whole input."""
    message: str
    """The end of a sentence that begins with the place, such as ``is missing``."""


class ChatJobsError(Exception):
    """Something went wrong in the chat-job service."""

    code: ClassVar[str] = "internal"
    """A stable word for the error, as in the service's problems (RFC 9457)."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(bounded(message or type(self).__doc__ or self.code))

    @property
    def message(self) -> str:
        """One line for people, at most 500 characters, without secrets."""
        return str(self)


class InvalidRequest(ChatJobsError):
    """The request is not valid; correct the fields named and send it again."""

    code = "validation_failed"

    def __init__(self, problems: Sequence[Problem]) -> None:
        """``problems`` are all that were found; the message lists them."""
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer}: {p.message}" if p.pointer else p.message for p in self.problems))


class JobNotFound(ChatJobsError):
    """There is no job with this id; look at `starter.py list`."""

    code = "job_not_found"


class BatchNotFound(ChatJobsError):
    """There is no batch with this id; look at `starter.py batch list`."""

    code = "batch_not_found"


class BatchFinished(ChatJobsError):
    """The batch has ended and can no longer be changed."""

    code = "batch_finished"


class DeliveryNotFound(ChatJobsError):
    """There is no delivery with this id; look at the deliveries of its job."""

    code = "delivery_not_found"


class EndpointNotFound(ChatJobsError):
    """Nothing was sent to this URL lately; look at `starter.py endpoints`."""

    code = "endpoint_not_found"


class TooManyEndpoints(ChatJobsError):
    """There are 16 endpoints for all jobs, which is the most; delete one first."""

    code = "too_many_endpoints"


class EventsExpired(ChatJobsError):
    """Events after this id were removed, as they were too old; go on with after=0, the oldest event that is kept."""

    code = "events_expired"


class PauseNotFound(ChatJobsError):
    """There is no such pause; look at `starter.py limits`."""

    code = "pause_not_found"


class ScheduleNotFound(ChatJobsError):
    """There is no schedule with this id."""

    code = "schedule_not_found"


class JobIdConflict(ChatJobsError):
    """Another job has this id; choose a different one, or leave it out."""

    code = "job_id_conflict"


class JobFinished(ChatJobsError):
    """The job has ended and can no longer be changed."""

    code = "job_finished"


class JobRunning(ChatJobsError):
    """The job is still running; cancel it first, or wait for its end."""

    code = "job_running"


class NothingToResume(ChatJobsError):
    """The job has no text to go on from; replay it."""

    code = "nothing_to_resume"


class ContentDeleted(ChatJobsError):
    """The content of this job was deleted."""

    code = "content_deleted"


class IdempotencyMismatch(ChatJobsError):
    """This idempotency key was used with another request; use a new key for a new request."""

    code = "idempotency_mismatch"


class Unauthorized(ChatJobsError):
    """The API key is missing, unknown, expired or revoked."""

    code = "unauthorized"


class ApiError(ChatJobsError):
    """The service did not give the answer that was asked for."""

    code = "api_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """``status`` is the response's HTTP status, None if there was no response; ``reason`` is the code in it.

        ``retry_after`` is in seconds, from the response's header.
        """
        super().__init__(message)
        self.status = status
        self.reason = reason or self.code
        self.retry_after = retry_after


class ServiceUnavailable(ApiError):
    """The service is not reachable or overloaded; try again in a moment."""

    code = "service_unavailable"


class ResponseTooLarge(ApiError):
    """The service's answer is larger than this client reads."""

    code = "response_too_large"


class StreamBroken(ApiError):
    """The events of the stream do not fit together."""

    code = "stream_broken"


class JobFailed(ChatJobsError):
    """The job ended without an answer."""

    code = "job_failed"

    def __init__(
        self,
        message: str | None = None,
        *,
        reason: str | None = None,
        retryable: bool = False,
        cause: str | None = None,
    ) -> None:
        """``reason`` is the code of the job's error, or ``cancelled``; a ``retryable`` job may succeed when replayed.

        ``cause`` is the code of the last failure, where a limit of the job ended it (``error.cause``).
        """
        super().__init__(message)
        self.reason = reason or self.code
        self.retryable = retryable
        self.cause = cause


class ConfigurationError(ChatJobsError):
    """A setting is missing or wrong."""

    code = "configuration"


class WebhookError(ChatJobsError):
    """A webhook could not be signed, verified or delivered."""

    code = "webhook_error"


class InvalidSecret(WebhookError):
    """The webhook secret is not usable: `whsec_` must be followed by base64, and it must not be empty."""

    code = "invalid_secret"


class InvalidSignature(WebhookError):
    """The webhook's signature, timestamp or body is not valid; do not trust it."""

    code = "invalid_signature"


class WebhookUrlRefused(WebhookError):
    """Webhooks may not be sent to this URL."""

    code = "webhook_url_refused"
