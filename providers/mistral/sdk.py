"""Calls of Mistral's API by way of the SDK: its credentials, URL, headers and hooks, but not its reading of responses.

The SDK reads most responses whole, without a limit of size, and no response within a limit of time. So requests are
built and sent by the SDK, and the response is handed on before its body is read. Not all methods of the SDK that are
called here are public; its version is pinned to 3.7 (docs/decisions/0023).
"""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple

import httpx2
from mistralai.client import Mistral, models, utils
from mistralai.client._hooks import (
    AfterErrorContext,
    AfterSuccessContext,
    BeforeRequestContext,
    HookContext,
    SDKHooks,
)

from chatjobs.errors import bounded
from providers.mistral.errors import ErrorAnswer, Private
from providers.mistral.transport import StreamTransport

CONNECT_SECONDS: Final = 10.0
MAX_ERROR_BYTES: Final = 16 * 1024

_DEPRECATION: Final = "x-model-deprecation-timestamp"

log = logging.getLogger(__name__)


class Operation(NamedTuple):
    """An operation of Mistral's API, with the SDK's name and tag for it."""

    name: str
    tag: str
    method: str
    path: str
    accept: str = "application/json"


class SdkCalls:
    """Sends requests as the SDK does. Close it with ``aclose``."""

    def __init__(self, api_key: str | None, server_url: str | None, http: httpx2.AsyncClient) -> None:
        """Without ``api_key`` the SDK looks for credentials itself; without ``server_url`` it calls Mistral's server.

        Raises ValueError for a malformed key or URL, without repeating it.
        """
        check_access(api_key, server_url)
        self._http = http
        self._sdk = Mistral(api_key=api_key, server_url=server_url, async_client=http)
        self._chat = self._sdk.chat  # any part of the SDK will do: all of them have the same methods

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(
        self,
        operation: Operation,
        private: Private,
        *,
        parameters: Any = None,
        content: bytes | None = None,
        files: Any = None,
        form: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """The response, whatever its status, before its body is read; the caller closes it.

        ``parameters``: the SDK's model of what is in path and query. ``content``: a body of JSON; ``files`` and
        ``form``: a form, as for httpx2. The key is added to ``private``.
        """
        response = await self._send(operation, self._request(operation, parameters, content, files, form))
        private.hide_key(response.request.headers.get("authorization", ""))
        return response

    def _request(
        self, operation: Operation, parameters: Any, content: bytes | None, files: Any, form: dict[str, str] | None
    ) -> httpx2.Request:
        """The request as the SDK builds it, except for the body. No timeout: the client has one."""
        serialised = None
        if content is not None:
            serialised = utils.SerializedRequestBody(media_type="application/json", content=content)
        elif files is not None:
            serialised = utils.SerializedRequestBody(media_type="multipart/form-data", data=form, files=files)
        return self._chat._build_request_async(
            method=operation.method,
            path=operation.path,
            base_url=None,
            url_variables=None,
            request=parameters,
            request_body_required=serialised is not None,
            request_has_path_params=parameters is not None,
            request_has_query_params=parameters is not None,
            user_agent_header="user-agent",
            accept_header_value=operation.accept,
            security=self._chat.sdk_configuration.security,
            get_serialized_body=lambda: serialised,
        )

    async def _send(self, operation: Operation, request: httpx2.Request) -> httpx2.Response:
        """Send with the SDK's hooks, in its order, but without its retries: Temporal retries.

        The SDK runs each hook in a thread, which costs more than the hooks do: they compute, or read a small file (the
        token of a service account).
        """
        configuration = self._chat.sdk_configuration
        hooks: SDKHooks = configuration.__dict__["_hooks"]
        context = HookContext(
            config=configuration,
            base_url=self._chat._get_url(None, None),  # type: ignore[no-untyped-call]  # the SDK has no types here
            operation_id=operation.name,
            oauth2_scopes=None,
            security_source=utils.get_security_from_env(configuration.security, models.Security),
            tags=[operation.tag],
            extensions=None,
        )
        request = hooks.before_request(BeforeRequestContext(context), request)
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.HTTPError as error:
            _, told = hooks.after_error(AfterErrorContext(context), None, error)
            if told is not None and told is not error:
                raise told from error
            raise
        try:
            _note_deprecation(response)
            if response.is_error:
                replaced, told = hooks.after_error(AfterErrorContext(context), response, None)
                if told is not None:
                    raise told
                return replaced or response
            return hooks.after_success(AfterSuccessContext(context), response)
        except BaseException:
            await response.aclose()
            raise


def http_client(idle_connections: int) -> httpx2.AsyncClient:
    """The client that the SDK sends with: no redirects, no compression, no time limit except for connecting.

    The environment is trusted: many networks reach Mistral through an egress proxy or a private certificate authority
    named there, and the server called is Mistral's or the operator's own. (Webhooks, whose receivers are untrusted, do
    not use it.) With a proxy, httpx2's own transport is used; ours does not support proxies.
    """
    tls = httpx2.create_ssl_context()
    transport = StreamTransport(tls, idle_connections=idle_connections)
    return httpx2.AsyncClient(
        transport=None if {"http", "https", "all"} & urllib.request.getproxies().keys() else transport,
        verify=tls,
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=idle_connections, keepalive_expiry=30.0),
        # Size limits apply to the bytes read; a compressed answer would be larger once decoded.
        headers={"accept-encoding": "identity"},
    )


def transfer_client(silence_seconds: float) -> httpx2.AsyncClient:
    """A client for files: as ``http_client``, with httpx2's own transport, which streams the body of a request.

    ``silence_seconds``: how long nothing may move in either direction.
    """
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(silence_seconds, connect=CONNECT_SECONDS),
        headers={"accept-encoding": "identity"},
    )


def _note_deprecation(response: httpx2.Response) -> None:
    """Log the deprecation of a model. The SDK's own hook reads the body for the model's name: not with a stream."""
    moment = response.headers.pop(_DEPRECATION, None)
    if moment is not None:
        log.warning("the model is deprecated", extra={"action": "model_deprecated", "removed_at": bounded(moment, 64)})


def check_access(api_key: str | None, server_url: str | None) -> None:
    """Raises ValueError for a malformed key or URL, without repeating it."""
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
        raise ValueError("MISTRAL_API_KEY has blanks around it, or characters that an HTTP header cannot carry")
    if server_url is not None:
        try:
            url = httpx2.URL(server_url)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("MISTRAL_SERVER_URL is not an http or https URL, such as https://api.mistral.ai")


async def error_answer(response: httpx2.Response, seconds: float) -> ErrorAnswer:
    """The error that a response is; the response is closed."""
    try:
        return ErrorAnswer(response.status_code, response.headers, await _error_body(response, seconds))
    finally:
        await response.aclose()


def is_encoded(response: httpx2.Response) -> bool:
    """Whether the body is compressed."""
    return response.headers.get("content-encoding", "").strip().lower() not in ("", "identity")


async def _error_body(response: httpx2.Response, seconds: float) -> bytes:
    """The beginning of the raw body, as far as it arrives in time; empty for a compressed one, which is not decoded."""
    body = bytearray()
    if is_encoded(response):
        return b""
    with suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(seconds), aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) >= MAX_ERROR_BYTES:
                    break
    return bytes(body[:MAX_ERROR_BYTES])
