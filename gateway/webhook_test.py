"""Test calls of webhooks: signed like real ones, sent through the same network guard, and rate-limited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from activities.example_webhook import post_example
from activities.webhook import all_secrets
from chatjobs.contracts import WebhookTest
from domain.ports import WebhookSender
from domain.webhook_urls import WebhookPolicy
from gateway.auth.key_cache import TokenBucket
from gateway.problems import HttpProblem

AT_ONCE = 2
"""Concurrent test calls per tenant, in one gateway."""
MOST_TESTS = 10
TESTS_PER_SECOND = 1 / 6
MOST_TENANTS = 10_000
DENIED = "address_denied"


class _Caller:
    """The limits of one tenant."""

    def __init__(self) -> None:
        self.under_way = 0
        self.allowance = TokenBucket(MOST_TESTS, TESTS_PER_SECOND)


class WebhookTests:
    """``secrets_of`` gives a tenant's signing secrets, newest first, ``own_secrets`` those of an endpoint of all jobs;
    ``policy`` the rules for URLs in force."""

    def __init__(
        self,
        sender: WebhookSender,
        policy: Callable[[], WebhookPolicy],
        secrets_of: Callable[[str], Awaitable[Sequence[str]]],
        own_secrets: Callable[[str, str], Awaitable[Sequence[str | None] | None]] | None = None,
    ) -> None:
        self._sender = sender
        self._policy = policy
        self._own_secrets = own_secrets
        self._secrets_of = secrets_of
        self._callers: dict[str, _Caller] = {}

    async def post(self, tenant: str, url: str) -> WebhookTest:
        """Call a URL once. Raises WebhookUrlRefused, StorageUnavailable, and HttpProblem (429)."""
        url = self._policy().check(url)
        async with self._slot(tenant):
            own = await self._own_secrets(tenant, url) if self._own_secrets is not None else None
            secrets = await all_secrets(own or (None,), tenant, self._secrets_of)
            return redacted(await post_example(self._sender, url, secrets))

    @asynccontextmanager
    async def _slot(self, tenant: str) -> AsyncIterator[None]:
        if tenant not in self._callers and len(self._callers) >= MOST_TENANTS:
            self._callers.clear()
        caller = self._callers.setdefault(tenant, _Caller())
        if caller.under_way >= AT_ONCE or not caller.allowance.take():
            seconds = round(1 / TESTS_PER_SECOND)
            detail = f"At most {AT_ONCE} test calls at once, and one every {seconds} seconds"
            raise HttpProblem(429, "too_many_tests", detail, headers={"Retry-After": str(seconds)})
        caller.under_way += 1
        try:
            yield
        finally:
            caller.under_way -= 1


def redacted(result: WebhookTest) -> WebhookTest:
    """The result without reason and latency if the address was denied: both reveal names and networks that only this
    machine can see."""
    if not (result.error or "").startswith(DENIED):
        return result
    return WebhookTest(delivered=False, latency_ms=0, error=DENIED, advice=result.advice)
