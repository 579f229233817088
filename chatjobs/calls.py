"""HTTP calls of the service, for client.py and batches.py: repeated while that may help, bounded in time and size.

Only this module catches httpx2's errors, and only this module converts the service's problems (RFC 9457) into
exceptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import httpx2
from pydantic import BaseModel, JsonValue
from pydantic_core import from_json

from chatjobs.contracts import read_json
from chatjobs.errors import (
    ApiError,
    BatchFinished,
    BatchNotFound,
    ChatJobsError,
    ConfigurationError,
    ContentDeleted,
    DeliveryNotFound,
    EndpointNotFound,
    EventsExpired,
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobIdConflict,
    JobNotFound,
    JobRunning,
    NothingToResume,
    PauseNotFound,
    Problem,
    ResponseTooLarge,
    ScheduleNotFound,
    ServiceUnavailable,
    TooManyEndpoints,
    Unauthorized,
    WebhookUrlRefused,
)
from chatjobs.retry_after import retry_after

M = TypeVar("M", bound=BaseModel)
Backoff = Callable[[int], float]
"""Seconds to wait after a number of failures in a row; 0 failures: the connection had worked until it broke."""

LONGEST_RETRY_AFTER: Final = 60.0
"""Most seconds that a ``Retry-After`` of the service is honoured for."""
CONNECTIONS: Final = 1_000
"""Most connections of one client at the same time."""
CALLS_REPEATED: Final = frozenset({429, 502, 503, 504})
"""HTTP statuses after which a call is repeated."""
KNOWN: Final[Mapping[str, type[ChatJobsError]]] = {
    "job_id_taken": JobIdConflict,
    **{
        error.code: error
        for error in (
            BatchFinished,
            BatchNotFound,
            ContentDeleted,
            DeliveryNotFound,
            EndpointNotFound,
            EventsExpired,
            IdempotencyMismatch,
            JobFinished,
            JobNotFound,
            JobRunning,
            NothingToResume,
            PauseNotFound,
            ScheduleNotFound,
            TooManyEndpoints,
            WebhookUrlRefused,
        )
    },
}
"""The codes of the service's problems that have an exception of their own."""


def exponential(failures: int) -> float:
    """Seconds to wait, at random so that clients do not call together: up to 0.25, doubled per failure, at most 10."""
    return random.uniform(0, min(10, 0.25 * 2 ** min(failures, 10)))  # noqa: S311 -- to spread load, not to hide


def new_client(
    base_url: str, api_key: str | None, transport: httpx2.AsyncBaseTransport | None, silence: float
) -> httpx2.AsyncClient:
    """The HTTP client of the service at ``base_url``; ``silence`` is its timeout without a byte, in seconds.

    Raises ConfigurationError, which does not repeat the key.
    """
    if not re.fullmatch(r"(?i)https?://[!-~]+", base_url):
        raise ConfigurationError("the service's base_url must be an absolute http or https URL")
    if api_key is not None and not re.fullmatch("[!-~]+", api_key):
        raise ConfigurationError("the API key must be printable ASCII without spaces")
    # Not compressed: the size of a compressed response is known only once it is unpacked.
    headers = {"Accept-Encoding": "identity", "User-Agent": "chatjobs-python"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        return httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            transport=transport,
            timeout=httpx2.Timeout(silence, connect=min(silence, 10)),
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20),
        )
    except httpx2.InvalidURL:
        raise ConfigurationError("the service's base_url is not a URL") from None


@dataclass(frozen=True, slots=True)
class Http:
    """Calls of the service, repeated while that may help; its errors and httpx2's are raised as ChatJobsError.

    ``timeout`` is in seconds, for a call with all its repetitions.
    """

    client: httpx2.AsyncClient
    timeout: float
    max_response_bytes: int
    backoff: Backoff

    async def read(self, model: type[M], method: str, path: str, **options: Any) -> M:
        """The response of a call as a value of ``model``; see ``call``. Raises ApiError for another response, too."""
        return known(model, await self.call(method, path, **options))

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        key: str | None = None,
    ) -> bytes:
        """The body of a successful response. Only calls that may be made twice are made here.

        ``key`` is the idempotency key. Raises ServiceUnavailable once the time is up, ResponseTooLarge, ApiError and
        the service's errors (``KNOWN``, InvalidRequest, Unauthorized).
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        deadline = asyncio.get_running_loop().time() + self.timeout
        last = ServiceUnavailable(f"the service did not answer within {self.timeout:g} seconds")
        for failures in itertools.count(1):
            request = self.client.build_request(method, path, params=params, content=body, headers=headers)
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._answer(request)
            except TimeoutError:
                raise last from None
            except ServiceUnavailable as error:
                last = error
                wait = max(self.backoff(failures), error.retry_after or 0)
                if asyncio.get_running_loop().time() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _answer(self, request: httpx2.Request) -> bytes:
        async with self.opened(request) as response:
            body = await self.body(response)
        if not response.is_success:
            raise failure(response, body, repeated=CALLS_REPEATED)
        return body

    @contextlib.asynccontextmanager
    async def opened(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        """The response to a request, its body unread; closed at the end. Raises ServiceUnavailable."""
        with reachable():
            response = await self.client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def body(self, response: httpx2.Response, limit: int | None = None) -> bytes:
        """The body of a response, at most ``limit`` bytes (None: ``max_response_bytes``).

        Raises ResponseTooLarge, ServiceUnavailable, and ApiError for a compressed response, which was not asked for.
        """
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ApiError("the service's answer is compressed", status=response.status_code)
        pieces = bytearray()
        with reachable():
            async for piece in response.aiter_raw():
                pieces += piece
                self.check(len(pieces), limit)
        return bytes(pieces)

    def check(self, size: int, limit: int | None = None) -> None:
        """Raises ResponseTooLarge if ``size`` is over ``limit`` bytes (None: ``max_response_bytes``)."""
        if size > (allowed := self.max_response_bytes if limit is None else limit):
            raise ResponseTooLarge(f"the service's answer is larger than the {allowed} bytes that this client reads")


def known(model: type[M], document: bytes) -> M:
    """A value of ``model`` from a document of the service. Raises ApiError for any other document."""
    try:
        return read_json(model, document)
    except ValueError:
        raise ApiError(f"the service's answer is no {model.__name__} that this version knows") from None


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """A context in which httpx2's errors are raised as ServiceUnavailable."""
    try:
        yield
    except (httpx2.RequestError, httpx2.StreamError) as error:
        raise ServiceUnavailable(f"the service is not reachable: {type(error).__name__} {error}") from None


def failure(response: httpx2.Response, body: bytes, *, repeated: frozenset[int]) -> ChatJobsError:
    """The exception for an error response (RFC 9457): ServiceUnavailable if its status is in ``repeated``."""
    found, status = _problem(body), response.status_code
    code, detail = _text(found.get("code")), _text(found.get("detail"))
    if status in repeated:
        pause = retry_after(response.headers, datetime.now(UTC))
        pause = None if pause is None else min(pause, LONGEST_RETRY_AFTER)
        return ServiceUnavailable(detail, status=status, reason=code, retry_after=pause)
    if status == 401:
        return Unauthorized(detail)
    if code == InvalidRequest.code:
        return InvalidRequest(_problems(found.get("errors")) or [Problem("", detail or "is not valid")])
    if known := KNOWN.get(code or ""):
        return known(detail)
    return ApiError(detail or f"the service answered {status}", status=status, reason=code)


def _problem(body: bytes) -> dict[str, JsonValue]:
    """The JSON object in a body; empty for any other body, such as a proxy's."""
    try:
        found = from_json(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) and value else None


def _problems(errors: JsonValue) -> list[Problem]:
    listed = [one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else []
    return [Problem(_text(one.get("pointer")) or "", _text(one.get("message")) or "is not valid") for one in listed]
