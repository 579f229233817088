"""The list of models of the server."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from typing import Any, Final

import httpx2

from chatjobs.contracts import JsonObject
from domain.errors import UpstreamInterrupted
from providers.mistral.errors import ErrorAnswer, Private, mistral_errors, not_mistral
from providers.mistral.sdk import Operation, SdkCalls, http_client
from providers.mistral.values import OK

LIST_MODELS: Final = Operation("list_models_v1_models_get", "models", "GET", "/v1/models")
MAX_BYTES: Final = 4 * 1024 * 1024
TOTAL_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 30.0


class MistralModels:
    """The models that a key may use, as the server describes them; a list is used for ``FRESH_SECONDS``."""

    def __init__(self, api_key: str | None, server_url: str | None) -> None:
        """Raises ValueError for a malformed key or URL, without repeating it."""
        self._calls = SdkCalls(api_key, server_url, http_client(1))
        self._known: list[JsonObject] = []
        self._until = float("-inf")

    async def aclose(self) -> None:
        await self._calls.aclose()

    async def available(self) -> list[JsonObject]:
        """See ModelCatalog."""
        if time.monotonic() >= self._until:
            self._known = await self._fetched()
            self._until = time.monotonic() + FRESH_SECONDS
        return self._known

    async def _fetched(self) -> list[JsonObject]:
        private = Private()
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                with mistral_errors(private):
                    response = await self._calls.send(LIST_MODELS, private)
                    try:
                        return await read_models(response)
                    finally:
                        await response.aclose()
        except TimeoutError:
            raise no_answer() from None


def no_answer() -> UpstreamInterrupted:
    return UpstreamInterrupted(f"Mistral did not answer within {TOTAL_SECONDS:g} s", code="upstream_timeout")


async def read_models(response: httpx2.Response) -> list[JsonObject]:
    """The entries of the list in a response that have an id. Raises ErrorAnswer, UpstreamInterrupted."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > MAX_BYTES:
                raise not_mistral("its list of models is too long")
    if response.status_code != OK:
        raise ErrorAnswer(response.status_code, response.headers, bytes(body[:16_384]))
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise not_mistral("its answer is not JSON") from None
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise not_mistral("its answer is no list of models")
    return [one for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str)]
