"""The ASGI middleware around every request: response headers, metrics, the log, and 500 for unhandled exceptions."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatjobs.contracts import JOB_ID
from gateway.problems import METHOD, PROTECTION, allowed_methods, problem
from gateway.routes.metrics import Metrics
from gateway.serving.cors import Cors, Headers

log = logging.getLogger("gateway.requests")

NO_ROUTE = "(none)"
QUIET = ("/healthz", "/readyz", "/metrics")
"""Polled every few seconds by machines, so logged at DEBUG."""
JOB_URL = re.compile(f"/api/jobs/({JOB_ID})".encode())
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected before the response; only metrics and the log have it."""
NO_STORE = (b"cache-control", b"no-store")
ANSWER = "chatjobs.answer"
"""The key of the ``OutgoingResponse`` in a request's scope."""
STACKS = ("fastapi_middleware_astack", "fastapi_inner_astack", "fastapi_function_astack")
"""The keys of FastAPI's exit stacks, which it leaves in the scope after closing them."""

Stream = Callable[[Receive, Send], Awaitable[None]]


def defer_stream(scope: Scope, stream: Stream) -> None:
    """Have the middleware call ``stream`` to send the response after the route has returned.

    A stream may last for an hour. Sent from within the route, it would keep the frames and exit stacks of routes,
    dependencies and exception handlers alive for as long, which take more memory than the stream itself.
    """
    scope[ANSWER].stream = stream


class HeadAnswered(Exception):
    """The response to a HEAD request is complete after its head."""


class RequestMiddleware:
    """Pure ASGI middleware: Starlette's BaseHTTPMiddleware costs a task per request and breaks streams."""

    def __init__(self, app: ASGIApp, metrics: Metrics, cors: Cors) -> None:
        self._app = app
        self._metrics = metrics
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, began = scope["method"], time.perf_counter()
        scope = {**scope, "method": "GET" if method == "HEAD" else method, METHOD: method}
        answer = scope[ANSWER] = OutgoingResponse(
            send,
            head_only=method == "HEAD",
            api=scope["path"].startswith(("/api/", "/v1/")),
            cors=self._cors.headers(scope["headers"]),
        )
        try:
            app = self._options(scope) if method == "OPTIONS" else self._app
            await app(scope, receive, answer.send)
            if answer.stream is not None:
                for name in STACKS:
                    scope.pop(name, None)
                await answer.stream(receive, answer.send)
        except HeadAnswered:
            pass
        except ClientDisconnect:
            answer.status = answer.status or CLIENT_CLOSED_REQUEST
        except Exception:
            if answer.status:
                raise
            log.exception("request failed", extra={"action": "request_failed"})
            failed = problem(scope["path"], 500, "internal", "Something went wrong here; it is in the log")
            await failed(scope, receive, answer.send)
        finally:
            self._record(scope, method, answer, time.perf_counter() - began)

    def _options(self, scope: Scope) -> ASGIApp:
        """The response to an OPTIONS request; the application, which answers 404, for an unknown path."""
        allowed, preflight = allowed_methods(scope), self._cors.preflight(scope["headers"])
        if not allowed and preflight is None:
            return self._app
        response = Response(status_code=204)
        if allowed:
            response.headers["Allow"] = ", ".join(allowed)
        response.raw_headers += preflight or []
        return response

    def _record(self, scope: Scope, method: str, answer: OutgoingResponse, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        status = answer.status or CLIENT_CLOSED_REQUEST
        self._metrics.observed(route, method, status, seconds, stream=answer.is_stream)
        level = logging.DEBUG if route in QUIET else logging.INFO
        if log.isEnabledFor(level):
            extra = {"action": "request", "method": method, "route": route, "status": status}
            extra["ms"] = round(seconds * 1000, 1)
            if job_id := _job_id(scope, answer, status):
                extra["job_id"] = job_id
            log.log(level, "request", extra=extra)


class OutgoingResponse:
    """The response to one request while it is sent. ``status`` is 0 until it has started."""

    def __init__(self, send: Send, *, head_only: bool, api: bool, cors: Headers) -> None:
        self._send = send
        self._head_only = head_only
        self._api = api
        self._cors = cors
        self.status = 0
        self.is_stream = False
        self.stream: Stream | None = None
        self.location: bytes | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        await self._send(message)
        if self._head_only and message["type"] == "http.response.start":
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            raise HeadAnswered

    def _begin(self, message: MutableMapping[str, Any]) -> None:
        self.status = message["status"]
        headers = list(message.get("headers", ()))
        given = dict(headers)
        self.location = given.get(b"location")
        self.is_stream = given.get(b"content-type", b"").startswith(b"text/event-stream")
        headers += [header for header in PROTECTION if header[0] not in given]
        headers += self._cors
        if self._api and NO_STORE[0] not in given:
            headers.append(NO_STORE)
        message["headers"] = headers


def _job_id(scope: Scope, answer: OutgoingResponse, status: int) -> str | None:
    """The id of the job that a request was about, for the log; None for an id that may be the caller's invention."""
    if answer.location and (found := JOB_URL.fullmatch(answer.location)):
        return found[1].decode()
    given = scope.get("path_params", {}).get("job_id", "")
    return given if (status < 400 or status in (409, 410)) and re.fullmatch(JOB_ID, given) else None
