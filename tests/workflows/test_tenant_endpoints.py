"""Webhooks to endpoints of all jobs, in a running service without a sweeper: sent at once, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from chatjobs.contracts import EndpointRequest, JobStatus, WebhookEventType
from chatjobs.errors import InvalidSignature
from chatjobs.webhooks import verify, verify_legacy
from dispatch.deliveries import try_now
from domain.names import delivery_id, delivery_workflow_id
from storage.engine.database import Database
from storage.webhooks.tenant_endpoints import TenantEndpointStore
from tests.support.batches import submit_batch
from tests.support.factories import make_body
from tests.support.fakes import OK, PATIENCE, SECRET, Gate, Post, ScriptedSender, answered, eventually
from tests.support.house import HOOK, House, house

pytestmark = pytest.mark.long

ALL, OTHER = "http://receiver.example/all", "http://receiver.example/other"
ITS_SECRET = "the secret of the endpoint"
COMPLETED = WebhookEventType.COMPLETED


class SenderByUrl(ScriptedSender):
    """Answers as it is told for a URL, and 200 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.by_url: dict[str, Any] = {}

    async def post(self, url: str, **message: Any) -> Any:
        self.answers = [self.by_url.get(url, OK)]
        return await super().post(url, **message)

    async def got(self, url: str, count: int = 1) -> list[Post]:
        async def look() -> list[Post] | None:
            found = [post for post in self.posts if post.url == url]
            return found if len(found) >= count else None

        found = await eventually(look)
        assert found is not None
        return found


@pytest.fixture
async def here(client: Client, sqlite: Database) -> AsyncIterator[House]:
    async with house(client, sqlite, sender=SenderByUrl()) as running:
        yield running


@pytest.fixture
def sender(here: House) -> SenderByUrl:
    assert isinstance(here.sender, SenderByUrl)
    return here.sender


@pytest.fixture
def endpoints(sqlite: Database) -> TenantEndpointStore:
    return TenantEndpointStore(sqlite)


async def status_of(here: House, one: str, job_id: str) -> str:
    (found,) = [delivery for delivery in await here.deliveries.of_job(job_id) if delivery.id == one]
    return found.status


async def test_first_tries_are_made_at_once(here: House, sender: SenderByUrl, endpoints: TenantEndpointStore) -> None:
    """Each signed with its own secret; with the tenant's, where it has none."""
    await endpoints.put("default", EndpointRequest(url=ALL, secret=ITS_SECRET))
    await endpoints.put("default", EndpointRequest(url=OTHER))
    job_id = await here.submit(callback=HOOK)
    job = await here.ended(job_id)
    (own,), (to_all,), (to_other,) = [await sender.got(url) for url in (HOOK, ALL, OTHER)]
    assert [post.id for post in (own, to_all, to_other)] == [
        delivery_id(job_id, COMPLETED, 1, endpoint) for endpoint in (None, ALL, OTHER)
    ]
    assert own.body == to_all.body == to_other.body
    assert own.event == to_other.event
    assert verify(to_all.body, to_all.headers, secrets=ITS_SECRET, now=to_all.at) == own.event
    assert verify_legacy(to_all.body, to_all.headers, secrets=ITS_SECRET) == own.event
    with pytest.raises(InvalidSignature):
        verify(to_all.body, to_all.headers, secrets=SECRET, now=to_all.at)
    assert job.status is JobStatus.COMPLETED

    async def all_delivered() -> bool:
        return {delivery.status for delivery in await here.deliveries.of_job(job_id)} == {"delivered"}

    assert await eventually(all_delivered)
    assert await here.deliveries.take_requests() == []


async def test_histories_have_neither_secrets_nor_endpoints(
    here: House, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    await endpoints.put("default", EndpointRequest(url=ALL, secret=ITS_SECRET))
    sender.by_url[ALL] = answered(500, retry_after=3600.0)
    job_id = await here.submit()
    await here.ended(job_id)
    which = delivery_id(job_id, COMPLETED, 1, ALL)
    await sender.got(ALL)
    run = here.run(delivery_workflow_id(which))

    async def goes_on() -> bool:
        return await status_of(here, which, job_id) == "pending" and await started(run)

    assert await eventually(goes_on)
    histories = [(await one.fetch_history()).to_json() for one in (here.run(job_id), run)]
    assert ITS_SECRET not in histories[0] + histories[1]
    assert "endpointDeliveries" not in histories[0]
    await run.terminate("the test is over")


async def started(run: Any) -> bool:
    try:
        await run.describe()
    except RPCError:
        return False
    return True


async def test_a_dead_endpoint_holds_up_nothing(
    here: House, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    """The run of the job ends while the endpoint has not answered; when it fails, a run of its own goes on."""
    await endpoints.put("default", EndpointRequest(url=ALL))
    sender.by_url[ALL] = silence = Gate()
    job_id = await here.submit(callback=HOOK)
    async with asyncio.timeout(PATIENCE):
        await here.run(job_id).result()
    await silence.reached()
    await sender.got(HOOK)
    which = delivery_id(job_id, COMPLETED, 1, ALL)
    assert await status_of(here, which, job_id) == "pending"
    sender.by_url[ALL] = OK
    sender.answers = [OK]
    silence.open()

    async def delivered() -> bool:
        return await status_of(here, which, job_id) == "delivered"

    assert await eventually(delivered)


async def test_a_first_try_that_fails_goes_on_in_a_run(
    here: House, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    await endpoints.put("default", EndpointRequest(url=ALL))
    sender.by_url[ALL] = answered(503)
    job_id = await here.submit()
    await here.ended(job_id)
    first = (await sender.got(ALL))[0]
    sender.by_url[ALL] = OK
    second = (await sender.got(ALL, 2))[1]
    assert (first.id, first.body) == (second.id, second.body)
    assert (await here.run(delivery_workflow_id(first.id)).result())["delivered"]


async def test_jobs_started_straight_through_temporal(
    here: House, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    """Also those whose request is not valid."""
    await endpoints.put("default", EndpointRequest(url=ALL))
    good = await here.direct({"request": make_body()})
    await here.ended(good.id)
    bad = await here.direct({"request": {"messages": []}})
    await here.ended(bad.id)
    events = {post.event.data.job_id: post.event.event.value for post in await sender.got(ALL, 2)}
    assert events == {good.id: "chat.completed", bad.id: "chat.failed"}


async def test_items_of_a_batch(
    here: House, client: Client, sqlite: Database, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    await endpoints.put("default", EndpointRequest(url=ALL, events=(COMPLETED,)))
    batch_id = await submit_batch(sqlite, client, [make_body() for _ in range(20)])
    posts = await sender.got(ALL, 20)
    await here.run(batch_id).result()
    assert len({post.event.data.job_id for post in posts}) == 20
    assert len(sender.posts) == 20


async def test_a_redelivery_during_the_first_try_is_made(
    here: House, sender: SenderByUrl, endpoints: TenantEndpointStore
) -> None:
    """Temporal was not told of it yet: it stays requested when the first try has ended, and a sweeper has it made."""
    await endpoints.put("default", EndpointRequest(url=ALL))
    sender.by_url[ALL] = slow = Gate()
    job_id = await here.submit()
    await here.ended(job_id)
    await slow.reached()
    which = delivery_id(job_id, COMPLETED, 1, ALL)
    await here.deliveries.redeliver(which, notifying=False)
    sender.by_url[ALL] = OK
    sender.answers = [OK]
    slow.open()

    async def first_try_over() -> bool:
        return all(task.get_name() != "first webhook try" for task in asyncio.all_tasks())

    assert await eventually(first_try_over)
    (taken,) = await here.deliveries.take_requests()
    await try_now(here.client, here.deliveries, taken)
    await sender.got(ALL, 2)
