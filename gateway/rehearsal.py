"""Test calls of webhooks: signed like the real ones, through the same guard, and few of them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from activities.ports import WebhookResponse, WebhookSender
from chatjobs.contracts import JobStatus, WebhookData, WebhookEvent, WebhookTest, WebhookTestEvent, rfc3339
from chatjobs.errors import WebhookError
from chatjobs.names import status_path
from chatjobs.webhook_urls import WebhookPolicy
from chatjobs.webhooks import read_otherwise, sign
from gateway.keyring import Allowance
from gateway.problems import HttpProblem

AT_ONCE = 2
"""Per tenant, in one gateway."""
MOST_TESTS = 10
TESTS_PER_SECOND = 1 / 6
MOST_TENANTS = 10_000
DENIED = "address_denied"
CONTENT = "This is a test."
EXAMPLE_JOB = "job_test"


class _Caller:
    """What one tenant may do."""

    def __init__(self) -> None:
        self.under_way = 0
        self.allowance = Allowance(MOST_TESTS, TESTS_PER_SECOND)


class Rehearsals:
    """``secrets_of`` gives a tenant's signing secrets, newest first; ``policy`` the rules for URLs in force."""

    def __init__(
        self,
        sender: WebhookSender,
        policy: Callable[[], WebhookPolicy],
        secrets_of: Callable[[str], Awaitable[Sequence[str]]],
    ) -> None:
        self._sender = sender
        self._policy = policy
        self._secrets_of = secrets_of
        self._callers: dict[str, _Caller] = {}

    async def post(self, tenant: str, url: str) -> WebhookTest:
        """Call a URL once. Raises WebhookUrlRefused, StorageUnavailable, and HttpProblem (429)."""
        url = self._policy().check(url)
        async with self._place(tenant):
            secrets = await self._secrets_of(tenant)
            heard = tested(await self._signed(secrets, url, datetime.now(UTC)))
        why = next(filter(None, map(read_otherwise, secrets)), None)
        return heard.model_copy(update={"advice": f"The secret {why}"}) if why else heard

    async def _signed(self, secrets: Sequence[str], url: str, now: datetime) -> WebhookResponse:
        body = example(now)
        try:
            headers = sign(
                body,
                webhook_id=f"whe_test_{uuid.uuid4().hex}",
                timestamp=now,
                body_timestamp=rfc3339(now),
                secrets=secrets,
            )
        except WebhookError as error:
            return WebhookResponse(latency_ms=0, error=error.message)
        return await self._sender.post(url, headers=headers, body=body)

    @asynccontextmanager
    async def _place(self, tenant: str) -> AsyncIterator[None]:
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


def tested(response: WebhookResponse) -> WebhookTest:
    """What the caller may know. Of an address that is denied neither why nor how long it took to find out: both would
    tell of names and networks that only this machine can see."""
    if (response.error or "").startswith(DENIED):
        return WebhookTest(delivered=False, latency_ms=0, error=DENIED)
    return WebhookTest(
        delivered=response.delivered,
        status_code=response.status_code,
        latency_ms=response.latency_ms,
        error=response.error,
    )


def example(now: datetime) -> bytes:
    """The body: what a receiver would get of a job that is complete, under an event of its own."""
    data = WebhookData(
        job_id=EXAMPLE_JOB,
        request_id="test",
        status=JobStatus.COMPLETED,
        model="test",
        content=CONTENT,
        finish_reason="stop",
        completed_at=now,
        sha256=hashlib.sha256(CONTENT.encode()).hexdigest(),
        status_url=status_path(EXAMPLE_JOB),
    )
    return WebhookEvent(event=WebhookTestEvent.TEST, timestamp=now, data=data).model_dump_json().encode()
