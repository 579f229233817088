"""The check of an API key with a request for the list of models, which costs nothing."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import httpx2
from mistralai.client.sdkconfiguration import SERVER_GLOBAL, SERVERS

from chatjobs.retry_after import http_date
from domain.errors import UpstreamError
from providers.mistral.errors import Private, mistral_errors
from providers.mistral.models import TOTAL_SECONDS, no_answer, read_models
from providers.mistral.sdk import check_access, http_client

SERVER: Final = SERVERS[SERVER_GLOBAL]


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
                    models = frozenset(str(one["id"]) for one in await read_models(response))
                finally:
                    await response.aclose()
    except UpstreamError as error:
        failure = error
    except TimeoutError:
        failure = no_answer()
    return Account(models, time.monotonic() - began, failure, ahead)


def clock_ahead(response: httpx2.Response, seconds: float) -> timedelta | None:
    """How far the server's clock is ahead, by a response that took ``seconds``; None without a Date header."""
    date = http_date(response.headers.get("date", ""))
    # The header has whole seconds, rounded down: on average it is half a second early.
    sent = datetime.now(UTC) - timedelta(seconds=seconds / 2)
    return None if date is None else date + timedelta(seconds=0.5) - sent
