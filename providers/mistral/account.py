"""The check of an API key with a request for the list of models, which costs nothing."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import httpx2
from mistralai.client.sdkconfiguration import SERVER_GLOBAL, SERVERS

from chatjobs.retry_after import http_date
from domain.errors import UpstreamError, UpstreamInterrupted
from providers.mistral.errors import ErrorAnswer, Private, mistral_errors, not_mistral
from providers.mistral.sdk import check_access, http_client
from providers.mistral.values import OK

SERVER: Final = SERVERS[SERVER_GLOBAL]
MAX_BYTES: Final = 4 * 1024 * 1024
TOTAL_SECONDS: Final = 5.0


class Account(NamedTuple):
    """``models``: the names that the key may use; empty if ``error`` is not None.

    ``ahead``: how far the server's clock is ahead of ours, to the second; None if no response had a Date header.
    """

    models: frozenset[str]
    seconds: float
    error: UpstreamError | None = None
    ahead: timedelta | None = None


async def account(api_key: str, server_url: str | None) -> Account:
    """Send one request; a failure is in ``error``. Raises ValueError for a malformed key or URL."""
    check_access(api_key, server_url)
    began, ahead, models = time.monotonic(), None, frozenset[str]()
    failure: UpstreamError | None = None
    try:
        async with asyncio.timeout(TOTAL_SECONDS), http_client(1) as http:
            headers = {"authorization": f"Bearer {api_key}", "accept": "application/json"}
            url = f"{(server_url or SERVER).rstrip('/')}/v1/models"
            request = http.build_request("GET", url, headers=headers)
            private = Private()
            private.hide_key(request.headers["authorization"])
            with mistral_errors(private):
                response = await http.send(request, stream=True)
                ahead = clock_ahead(response, time.monotonic() - began)
                try:
                    models = await _models(response)
                finally:
                    await response.aclose()
    except UpstreamError as error:
        failure = error
    except TimeoutError:
        failure = UpstreamInterrupted(f"Mistral did not answer within {TOTAL_SECONDS:g} s", code="upstream_timeout")
    return Account(models, time.monotonic() - began, failure, ahead)


def clock_ahead(response: httpx2.Response, seconds: float) -> timedelta | None:
    """How far the server's clock is ahead, by a response that took ``seconds``; None without a Date header."""
    date = http_date(response.headers.get("date", ""))
    # The header has whole seconds, rounded down: on average it is half a second early.
    sent = datetime.now(UTC) - timedelta(seconds=seconds / 2)
    return None if date is None else date + timedelta(seconds=0.5) - sent


async def _models(response: httpx2.Response) -> frozenset[str]:
    """The names in the response's list of models. Raises ErrorAnswer, UpstreamInterrupted."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > MAX_BYTES:
                raise not_mistral("its list of models is too long")
    if response.status_code != OK:
        raise ErrorAnswer(response.status_code, response.headers, bytes(body[:16_384]))
    try:
        return _names(json.loads(body))
    except (ValueError, RecursionError):
        raise not_mistral("its answer is not JSON") from None


def _names(document: Any) -> frozenset[str]:
    """The names of the models in a parsed list. Raises UpstreamInterrupted."""
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise not_mistral("its answer is no list of models")
    return frozenset(one["id"] for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str))
