"""limits.queueSeconds ends a job that was never called for, whoever is dead: the gateway's sweeper is enough."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.client import WorkflowFailureError

from storage.engine.database import Database
from storage.jobs.store import JobStore
from tests.support.factories import accepted
from tests.support.gateway import gateway
from tests.support.receiver import Answer, receiver
from tests.support.service import service
from tests.support.stack import stack

LONG_ENOUGH = 5.0
"""Seconds after the limit in which the job has to have ended."""


async def ended(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            job: dict[str, Any] = (await http.get(f"/api/jobs/{job_id}")).json()
            if job["completedAt"]:
                return job
            await asyncio.sleep(0.05)


async def tried(http: httpx2.AsyncClient, job_id: str) -> list[int]:
    """The receiver's answers to the tries that are recorded."""
    job = (await http.get(f"/api/jobs/{job_id}")).json()
    return [one["statusCode"] for delivery in job["deliveries"] for one in delivery["tries"]]


def body(hook: str, seconds: float) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"messages": messages, "callback": hook, "limits": {"queueSeconds": seconds}}


@pytest.mark.parametrize("temporal", [True, False], ids=["no worker", "no worker and no Temporal"])
async def test_nobody_but_the_gateway_lives(tmp_path: Path, temporal: bool) -> None:
    """It ends in time, once, without a call, and its webhook is sent; a worker that comes then finds it ended."""
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path, workers=0, env=env) as place, receiver() as hook:
        if not temporal:
            place.temporal.kill()
        async with gateway(place).client() as http:
            began = time.monotonic()
            posted = await http.post("/api/jobs", json=body(hook.url("/hook"), 2))
            job_id = posted.json()["jobId"]
            job = await ended(http, job_id)
            assert 2 <= time.monotonic() - began < 2 + LONG_ENOUGH
            assert (job["status"], job["error"]["code"], job["attempts"]) == ("failed", "queue_timeout", [])
            (told,) = await hook.arrived(1, path="/hook")
            assert time.monotonic() - began < 2 + LONG_ENOUGH
            assert told.json()["data"]["error"]["code"] == "queue_timeout"
            if not temporal:
                place.temporal.start()
            place.add_worker()
            async with service(place) as live:
                if temporal:
                    with pytest.raises(WorkflowFailureError):
                        await asyncio.wait_for(live.run(job_id).result(), 30)
                job = await ended(http, job_id)
            assert (job["status"], job["error"]["code"]) == ("failed", "queue_timeout")
            assert [one["status"] for one in job["deliveries"]] == ["delivered"]
            assert place.simulator.requests() == []
            assert len(hook.requests("/hook")) == 1


async def test_a_webhook_that_fails_first_is_sent_again_by_temporal(tmp_path: Path) -> None:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path, workers=0, env=env) as place, receiver() as hook:
        hook.answer("/hook", [Answer(status=500), Answer()])
        async with gateway(place).client() as http:
            job_id = (await http.post("/api/jobs", json=body(hook.url("/hook"), 1))).json()["jobId"]
            await hook.arrived(1, path="/hook")
            place.add_worker()
            await hook.arrived(2, path="/hook", timeout=30)
            async with asyncio.timeout(30):
                while len(tries := await tried(http, job_id)) < 2:  # noqa: ASYNC110 - recorded in another process
                    await asyncio.sleep(0.05)
    assert tries == [500, 200]


async def test_a_claim_after_the_limit_takes_nothing(database: Database) -> None:
    store = JobStore(database)
    job_id = await accepted(store, limits={"queueSeconds": 0.01})
    await asyncio.sleep(0.02)
    claim = await store.attempts.claim(job_id, fence=1, claimant="me", run_id="run-1")
    assert (claim.outcome, claim.attempt) == ("expired", 0)
    (sealed,) = await store.seals.expire()
    assert (sealed.job_id, sealed.error and sealed.error.code) == (job_id, "queue_timeout")
    assert await store.seals.expire() == []


async def test_a_job_that_was_called_for_is_not_queued_any_more(database: Database) -> None:
    store = JobStore(database)
    job_id = await accepted(store, limits={"queueSeconds": 1})
    assert (await store.attempts.claim(job_id, fence=1, claimant="me", run_id="run-1")).outcome == "taken"
    await asyncio.sleep(1.1)
    assert await store.seals.expire() == []


async def test_the_first_run_adopts_the_seal_and_a_reset_reopens_it(database: Database) -> None:
    store = JobStore(database)
    job_id = await accepted(store, limits={"queueSeconds": 0.01})
    await asyncio.sleep(0.02)
    await store.seals.expire()
    assert (await store.attempts.claim(job_id, fence=1, claimant="a", run_id="run-1")).outcome == "sealed"
    assert (await store.attempts.claim(job_id, fence=2, claimant="b", run_id="run-1")).outcome == "sealed"
    assert (await store.attempts.claim(job_id, fence=3, claimant="c", run_id="run-2")).outcome in ("taken", "expired")
