"""Webhooks through the gateway: looked at, made again, tested, enabled; by HTTP, the client and the command line."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

import starter
from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import Job
from chatjobs.errors import ContentDeleted, DeliveryNotFound, EndpointNotFound, JobNotFound, WebhookUrlRefused
from chatjobs.webhooks import verify, verify_legacy
from domain.webhook_urls import WebhookPolicy
from gateway.problems import HttpProblem
from gateway.webhook_test import MOST_TESTS, WebhookTests
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from storage.keys import KeyStore, SecretStore
from tests.support.fakes import SECRET, ScriptedSender, eventually
from tests.support.gateway import Gateway, gateway
from tests.support.receiver import Answer, Received, Receiver, receiver
from tests.support.stack import WEBHOOK_SECRET, Stack, stack

TENANTS = ("default", "acme")
NEW = "a newer secret for tests"
"""The default tenant is in the middle of a rotation."""
DOWN = Answer(500, headers={"retry-after": "3600"})


@dataclass(frozen=True)
class Secrets:
    keys: dict[str, str]
    acme: str


@dataclass(frozen=True)
class Here:
    stack: Stack
    default: AsyncChatJobs
    acme: AsyncChatJobs
    http: httpx2.AsyncClient
    key: str
    hooks: Receiver
    acme_secret: str

    async def announced(self, path: str, status: str = "delivered", jobs: AsyncChatJobs | None = None) -> Job:
        """A job whose webhook went to a path of the receiver, once its delivery has a status and a try."""
        client = jobs or self.default
        job = await client.ask("Hello", callback=self.hooks.url(path))
        return await self.become(job.job_id, status, client)

    async def become(self, job_id: str, status: str, jobs: AsyncChatJobs | None = None, tries: int = 1) -> Job:
        async def look() -> Job | None:
            job = await (jobs or self.default).get(job_id)
            (delivery,) = job.deliveries
            return job if delivery.status == status and len(delivery.tries) >= tries else None

        found = await eventually(look)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway, Secrets]]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.0/8", "WEBHOOK_SECRET": f"{NEW},{WEBHOOK_SECRET}"}
    with stack(tmp_path_factory.mktemp("redelivery"), env=env) as started:
        secrets = asyncio.run(made_secrets(started.database_url))
        yield started, gateway(started), secrets


async def made_secrets(database_url: str) -> Secrets:
    database = await Database.open(database_url)
    keys = {tenant: (await KeyStore(database).add(tenant=tenant))[1] for tenant in TENANTS}
    _, acme = await SecretStore(database).rotate("acme")
    await database.close()
    return Secrets(keys, acme)


@pytest.fixture
async def here(running: tuple[Stack, Gateway, Secrets]) -> AsyncIterator[Here]:
    started, door, secrets = running
    with receiver() as hooks:
        async with AsyncExitStack() as closing:
            default, acme = [
                await closing.enter_async_context(AsyncChatJobs(door.url, secrets.keys[tenant])) for tenant in TENANTS
            ]
            headers = {"Authorization": f"Bearer {secrets.keys['default']}"}
            http = await closing.enter_async_context(door.client(headers=headers))
            yield Here(started, default, acme, http, secrets.keys["default"], hooks, secrets.acme)


def same_event(first: Received, second: Received) -> bool:
    """The same bytes under the same id, each signed for its own moment, with the new secret and the old one."""
    for one in (first, second):
        for secret in (NEW, WEBHOOK_SECRET):
            verify(one.body, one.headers, secrets=secret, now=one.at)
        verify_legacy(one.body, one.headers, secrets=NEW)
    return (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


async def test_a_delivered_one_is_made_again(here: Here) -> None:
    job = await here.announced("/hook")
    listed = (await here.http.get(f"/api/jobs/{job.job_id}/deliveries")).json()
    assert listed == {"deliveries": [json.loads(one.model_dump_json()) for one in job.deliveries]}
    answer = await here.http.post(f"/api/jobs/{job.job_id}/deliveries/{job.deliveries[0].id}/redeliver")
    assert (answer.status_code, answer.json()) == (202, {"count": 1, "more": False})
    first, second = await here.hooks.arrived(2)
    assert same_event(first, second)
    await here.become(job.job_id, "delivered", tries=2)


async def test_one_that_waits_for_its_next_try_goes_now(here: Here) -> None:
    """The run that sleeps for an hour is woken."""
    here.hooks.answer("/hook", [DOWN, Answer(200)])
    job = await here.announced("/hook", "pending")
    assert await here.default.redeliver(job.job_id) == 1
    await here.hooks.arrived(2)
    ended = await here.become(job.job_id, "delivered")
    assert [one.status_code for one in ended.deliveries[0].tries] == [500, 200]


async def test_gone_enabled_and_made_again(here: Here) -> None:
    """410 disables: the next job's delivery fails without a request. Enabled, those of a time are made again."""
    began = datetime.now(UTC)
    here.hooks.answer("/gone", [Answer(410), Answer(200)])
    url = here.hooks.url("/gone")
    gone = await here.announced("/gone", "failed")
    kept = await here.announced("/gone", "failed")
    assert [one.error for one in kept.deliveries[0].tries] == ["endpoint_disabled"]
    (disabled,) = [one for one in await here.default.endpoints() if one.url == url]
    assert (disabled.status, disabled.disabled_reason, disabled.last_error) == ("disabled", "gone", "HTTP 410")
    with pytest.raises(EndpointNotFound):
        await here.acme.enable_endpoint(url)
    assert (await here.default.enable_endpoint(url)).status == "ok"
    assert (await here.default.redeliver_all(began, datetime.now(UTC), url=url)).count == 2
    for job in (gone, kept):
        await here.become(job.job_id, "delivered")
    assert len(here.hooks.requests("/gone")) == 3


async def test_temporal_may_be_away_and_the_gateway_die(here: Here) -> None:
    """What was asked for is in the database: a worker does it when Temporal is back."""
    job = await here.announced("/hook")
    doomed = gateway(here.stack, "doomed")
    here.stack.temporal.kill()
    try:
        async with AsyncChatJobs(doomed.url, here.key) as jobs:
            assert await jobs.redeliver(job.job_id, job.deliveries[0].id) == 1
        doomed.process.kill()
        assert (await here.default.get(job.job_id)).deliveries[0].status == "pending"
    finally:
        here.stack.temporal.start()
    first, second = await here.hooks.arrived(2, timeout=40)
    assert same_event(first, second)
    await here.become(job.job_id, "delivered", tries=2)


async def test_other_tenants_see_nothing(here: Here) -> None:
    job = await here.announced("/hook", jobs=here.acme)
    delivery = job.deliveries[0].id
    url = here.hooks.url("/hook")
    assert [one.status for one in await here.acme.endpoints() if one.url == url] == ["ok"]
    assert [one for one in await here.default.endpoints() if one.url == url] == []
    for call in (here.default.redeliver(job.job_id), here.default.redeliver(job.job_id, delivery)):
        with pytest.raises(JobNotFound):
            await call
    assert (await here.http.get(f"/api/jobs/{job.job_id}/deliveries")).status_code == 404
    since = job.created_at - timedelta(minutes=1)
    assert (await here.default.redeliver_all(since, status="delivered", url=url)).count == 0
    with pytest.raises(DeliveryNotFound):
        await here.acme.redeliver(job.job_id, "whe_none")
    assert len(here.hooks.requests()) == 1


async def test_a_deleted_job_has_none(here: Here) -> None:
    job = await here.announced("/hook")
    await here.default.delete(job.job_id)
    assert (await here.http.get(f"/api/jobs/{job.job_id}/deliveries")).status_code == 410
    for call in (here.default.redeliver(job.job_id), here.default.redeliver(job.job_id, job.deliveries[0].id)):
        with pytest.raises(ContentDeleted):
            await call


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/redeliveries", {}, 422),
        ("/api/redeliveries", {"since": "yesterday"}, 422),
        ("/api/redeliveries", {"since": "2026-01-01T00:00:00Z", "status": "lost"}, 422),
        ("/api/redeliveries", {"since": "2026-01-01T00:00:00"}, 422),
        ("/api/redeliveries", {"since": "2026-01-01T00:00:00Z", "url": "x" * 3_000}, 422),
        ("/api/redeliveries", {"since": "0001-01-01T00:00:00Z", "until": "0002-01-01T00:00:00Z"}, 202),
        ("/api/webhooks/test", {}, 422),
        ("/api/webhooks/test", {"url": "http://169.254.169.254/"}, 422),
        ("/api/webhooks/test", {"url": "https://nowhere/"}, 422),
        ("/api/webhooks/test", {"url": "x" * 20_000}, 413),
        ("/api/endpoints/enable", {"url": "https://nobody.example/\0"}, 404),
        ("/api/jobs/no/redeliver", {}, 404),
    ],
)
async def test_what_is_wrong_is_refused(here: Here, path: str, body: dict[str, Any], status: int) -> None:
    answer = await here.http.post(path, json=body)
    assert answer.status_code == status, answer.text


# ----------------------------------------------------------------------------------------------- test calls


async def test_a_test_call_is_signed_by_its_tenant(here: Here) -> None:
    """A receiver that verifies with our library takes it; its answer is told, and nothing of it is kept."""
    here.hooks.answer("/hook", [Answer(204), Answer(503)])
    url = here.hooks.url("/hook")
    heard = await here.acme.test_webhook(url)
    assert (heard.delivered, heard.status_code, heard.error) == (True, 204, None)
    (received,) = here.hooks.requests()
    event = verify(received.body, received.headers, secrets=here.acme_secret, now=received.at)
    assert (event.event.value, event.data.status, event.data.job_id) == ("webhook.test", "completed", "job_test")
    assert verify_legacy(received.body, received.headers, secrets=here.acme_secret) == event
    down = await here.acme.test_webhook(url)
    assert (down.delivered, down.status_code) == (False, 503)
    assert [one for one in await here.acme.endpoints() if one.url == url] == []
    assert (await here.acme.test_webhook("http://127.0.0.1:9/")).error == "connect_error"


async def secrets_of(tenant: str) -> list[str]:
    return [SECRET] if tenant != "bare" else []


async def inside(host: str) -> list[str]:
    return ["10.1.2.3"] if host == "inside.example" else ["127.0.0.1"]


async def test_a_test_call_tells_nothing_of_inner_networks() -> None:
    """Whatever the name leads to, and for whatever reason it is denied: the answer is the same, to the millisecond."""
    policy = WebhookPolicy()
    async with HttpWebhookSender(policy=policy, resolver=inside) as sender:
        webhook_tests = WebhookTests(sender, lambda: policy, secrets_of)
        answers = [await webhook_tests.post("acme", f"https://{name}.example/") for name in ("inside", "own")]
    assert answers[0] == answers[1]
    assert (answers[0].error, answers[0].latency_ms, answers[0].status_code) == ("address_denied", 0, None)


async def test_a_test_call_says_how_a_library_reads_the_secret() -> None:
    """R8"""
    text = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

    async def secrets(tenant: str) -> list[str]:
        return [text] if tenant == "bare" else [f"whsec_{text}"]

    webhook_tests = WebhookTests(ScriptedSender(), WebhookPolicy, secrets)
    told = (await webhook_tests.post("bare", "https://receiver.example/")).advice or ""
    assert "32 bytes of its text" in told
    assert "whsec_" in told
    assert text not in told
    assert (await webhook_tests.post("acme", "https://receiver.example/")).advice is None


async def test_test_calls_are_few() -> None:
    """Per tenant; and without a secret nothing is sent."""
    sender = ScriptedSender()
    webhook_tests = WebhookTests(sender, WebhookPolicy, secrets_of)
    for _ in range(MOST_TESTS):
        assert (await webhook_tests.post("acme", "https://receiver.example/")).delivered
    with pytest.raises(HttpProblem) as refused:
        await webhook_tests.post("acme", "https://receiver.example/")
    assert (refused.value.status, refused.value.code) == (429, "too_many_tests")
    assert "secret" in ((await webhook_tests.post("bare", "https://receiver.example/")).error or "")
    with pytest.raises(WebhookUrlRefused):
        await webhook_tests.post("other", "https://10.0.0.1/")
    assert len(sender.posts) == MOST_TESTS


# -------------------------------------------------------------------------------------- the command line


async def test_by_the_command_line(
    here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs the database only: the service does what is stored there."""
    monkeypatch.setenv("CHATJOBS_DATA_DIR", str(here.stack.data_dir))
    monkeypatch.delenv("CHATJOBS_DATABASE_URL", raising=False)

    async def call(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(starter.main, arguments)
        return code, *capsys.readouterr()

    here.hooks.answer("/hook", [Answer(410), Answer(200)])
    url = here.hooks.url("/hook")
    job = await here.announced("/hook", "failed")
    _, out, _ = await call("endpoints", "--json")
    (listed,) = [one for one in json.loads(out)["endpoints"] if one["url"] == url]
    assert listed["disabledReason"] == "gone"
    _, out, _ = await call("endpoints")
    assert "disabled (gone)" in out
    assert (await call("endpoints", "--enable", url))[:2] == (0, f"{url} enabled\n")
    assert (await call("redeliver", job.deliveries[0].id))[:2] == (0, "1 delivery will be made again\n")
    await here.become(job.job_id, "delivered")
    assert (await call("redeliver", job.job_id))[:2] == (0, "1 delivery will be made again\n")
    await here.become(job.job_id, "delivered", tries=3)
    code, out, _ = await call("redeliver", "--since", "5m", "--status", "delivered", "--url", url, "--json")
    assert (code, json.loads(out)) == (0, {"count": 1, "more": False})
    await here.become(job.job_id, "delivered", tries=4)
    for arguments in ((), ("x", "--since", "2h"), ("x", "--url", url), ("nobody",), ("whe_nobody",)):
        assert (await call("redeliver", *arguments))[0] == 2
    assert (await call("endpoints", "--enable", "https://nobody.example/"))[0] == 2


async def test_a_test_call_by_the_command_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the secret and the closed ports of the service in the data directory; 1 where it is not delivered."""
    monkeypatch.setenv("CHATJOBS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CHATJOBS_DATABASE_URL", here.stack.database_url)
    monkeypatch.setenv("CHATJOBS_WEBHOOK_ALLOW", "127.0.0.1")
    monkeypatch.delenv("WEBHOOK_SECRET", raising=False)
    (tmp_path / "webhook_secret").write_text(f"{SECRET}\n")
    endpoints = {"temporal": here.stack.temporal_address, "gateway": "http://127.0.0.1:4343"}
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))

    async def call(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(starter.main, ("webhooks", "test", *arguments))
        return code, *capsys.readouterr()

    here.hooks.answer("/tried", [Answer(204), Answer(503), Answer(200), Answer(200)])
    url = here.hooks.url("/tried")
    code, out, err = await call(url)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"delivered: answered 204 in \d+ ms\n", out)
    received = here.hooks.requests("/tried")[0]
    event = verify(received.body, received.headers, secrets=SECRET, now=received.at)
    assert (event.event.value, event.data.job_id) == ("webhook.test", "job_test")
    code, out, _ = await call(url)
    assert (code, out.startswith("not delivered: answered 503 in ")) == (1, True)
    code, out, _ = await call(url, "--json")
    assert (code, json.loads(out)["delivered"], json.loads(out)["statusCode"]) == (0, True, 200)
    _, _, err = await call(url, "--tenant", "acme")
    acme = here.hooks.requests("/tried")[-1]
    assert verify(acme.body, acme.headers, secrets=here.acme_secret, now=acme.at).event.value == "webhook.test"
    code, out, _ = await call("http://127.0.0.1:9/")
    assert (code, out.startswith("not delivered: connect_error")) == (1, True)
    for refused in ("http://127.0.0.1:4343/api", f"http://{here.stack.temporal_address}/"):
        code, out, err = await call(refused)
        assert (code, out, "a part of the service itself" in err) == (2, "", True), err
    assert (await call("nonsense"))[0] == 2
    code, _, err = await call("http://10.1.2.3/", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (2, "webhook_url_refused")
