"""/api/schedules: durable whatever happens to Temporal, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from chatjobs.client import AsyncChatJobs
from chatjobs.errors import InvalidRequest, ScheduleNotFound
from tests.support.fakes import eventually
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.snippets import output, snippets
from tests.support.stack import Stack, stack

LONG_AGO = "0 0 29 2 *"
SOON = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
TWICE = [{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hello"}]}}] * 2
ASK = {"messages": [{"role": "user", "content": "Write the report"}]}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("schedules"), env={"CHATJOBS_PORT": "0"}) as built:
        yield built


@pytest.fixture(scope="module")
def door(machine: Stack) -> Gateway:
    return gateway(machine)


@pytest.fixture
async def http(machine: Stack, door: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client() as client:
        yield client
        for schedule in (await client.get("/api/schedules")).json()["schedules"]:
            await client.delete(f"/api/schedules/{schedule['id']}")
    sys.stdout.write(machine.news())


async def post(http: httpx2.AsyncClient, status: int = 201, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/api/schedules", json={"request": ASK, **fields})
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def shown(http: httpx2.AsyncClient, schedule_id: str) -> dict[str, Any]:
    document: dict[str, Any] = (await http.get(f"/api/schedules/{schedule_id}")).json()
    return document


async def applied(http: httpx2.AsyncClient, schedule_id: str) -> dict[str, Any]:
    """The schedule, once Temporal has it as it is."""

    async def there() -> dict[str, Any] | None:
        found = await shown(http, schedule_id)
        return None if found["pending"] else found

    found = await eventually(there)
    assert found is not None
    return found


async def test_made_shown_changed_and_deleted(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/api/schedules", json={"id": "daily", "cron": "0 2 * * *", "request": ASK})
    assert (answer.status_code, answer.headers["location"]) == (201, "/api/schedules/daily")
    made = answer.json()
    assert {
        name: made[name] for name in ("id", "cron", "every", "timezone", "overlap", "catchupSeconds", "paused")
    } == {
        "id": "daily",
        "cron": "0 2 * * *",
        "every": None,
        "timezone": "UTC",
        "overlap": "skip",
        "catchupSeconds": 86_400,
        "paused": False,
    }
    assert (made["id"], made["request"], made["lastRuns"]) == ("daily", ASK, [])
    assert (made["paused"], made["pending"]) == (False, True)
    assert "/schedules/daily-" in made["temporalUrl"]
    there = await applied(http, "daily")
    first = datetime.fromisoformat(there["nextRuns"][0])
    assert (first.hour, first.minute) == (2, 0)
    assert datetime.now(UTC) < first < datetime.now(UTC) + timedelta(days=1)
    again = await post(http, 200, id="daily", cron="0 2 * * *")
    assert (again["pending"], again["updatedAt"]) == (False, made["updatedAt"])
    changed = await post(http, 200, id="daily", every="PT15M")
    assert (changed["cron"], changed["every"], changed["createdAt"]) == (None, 900, made["createdAt"])
    (listed,) = (await http.get("/api/schedules")).json()["schedules"]
    assert (listed["id"], listed["request"]) == ("daily", None)
    assert (await http.delete("/api/schedules/daily")).status_code == 204
    assert (await http.delete("/api/schedules/daily")).json()["code"] == "schedule_not_found"
    assert (await http.get("/api/schedules")).json() == {"schedules": [], "nextCursor": None}


async def test_its_jobs_are_found_by_it(http: httpx2.AsyncClient) -> None:
    await post(http, id="found", cron=LONG_AGO, request={**ASK, "metadata": {"report": "daily"}})
    answer = await http.post("/api/schedules/found/trigger")
    assert (answer.status_code, answer.json()["pending"]) == (202, True)

    async def ended() -> dict[str, Any] | None:
        runs = (await shown(http, "found"))["lastRuns"]
        return runs[0] if runs and runs[0]["status"] == "completed" else None

    run = await eventually(ended)
    assert run is not None
    (job,) = (await http.get("/api/jobs", params={"scheduleId": "found"})).json()["jobs"]
    assert (job["jobId"], job["scheduleId"], job["metadata"]) == (run["jobId"], "found", {"report": "daily"})
    whole = (await http.get(f"/api/jobs/{run['jobId']}")).json()
    assert (whole["scheduleId"], whole["content"] != "") == ("found", True)
    assert (await http.get(f"/api/jobs/{run['jobId']}/request")).json()["messages"] == ASK["messages"]
    other = await http.get("/api/jobs", params={"scheduleId": "other"})
    assert other.json()["jobs"] == []


async def test_a_job_of_a_schedule_can_be_cancelled(http: httpx2.AsyncClient) -> None:
    slow = {"messages": [{"role": "user", "content": prompt("slow", tokens=5_000, tokens_per_second=20)}]}
    await post(http, id="slow", cron=LONG_AGO, request=slow)
    await http.post("/api/schedules/slow/trigger")

    async def running() -> str | None:
        runs = (await shown(http, "slow"))["lastRuns"]
        return runs[0]["jobId"] if runs and runs[0]["status"] == "in_progress" else None

    job_id = await eventually(running)
    assert (await http.post(f"/api/jobs/{job_id}/cancel")).status_code == 202

    async def cancelled() -> bool:
        return bool((await http.get(f"/api/jobs/{job_id}")).json()["status"] == "cancelled")

    await eventually(cancelled)


async def test_a_batch_is_scheduled(http: httpx2.AsyncClient) -> None:
    items = [{"custom_id": name, "body": ASK} for name in ("a", "b", "c")]
    made = await post(http, id="nightly", cron=LONG_AGO, request=None, batch={"items": items, "name": "nightly"})
    assert (made["request"], made["batch"]) == (None, {"name": "nightly", "items": items})
    await http.post("/api/schedules/nightly/trigger")

    async def ended() -> dict[str, Any] | None:
        runs = (await shown(http, "nightly"))["lastRuns"]
        return runs[0] if runs and runs[0]["status"] == "completed" else None

    run = await eventually(ended)
    assert run is not None
    assert run["jobId"] is None
    batch = (await http.get(f"/api/batches/{run['batchId']}")).json()
    assert (batch["name"], batch["scheduleId"], batch["counts"]["completed"]) == ("nightly", "nightly", 3)
    output = (await http.get(f"/api/batches/{run['batchId']}/output")).text
    assert output.count('"custom_id"') == 3


async def test_pause_and_resume(http: httpx2.AsyncClient) -> None:
    await post(http, id="p", every=3600)
    paused = (await http.post("/api/schedules/p/pause", json={"note": "the model is being changed"})).json()
    assert (paused["paused"], paused["note"], paused["nextRuns"]) == (True, "the model is being changed", [])
    assert (await applied(http, "p"))["nextRuns"] == []
    resumed = (await http.post("/api/schedules/p/resume")).json()
    assert (resumed["paused"], resumed["note"]) == (False, None)
    assert len((await applied(http, "p"))["nextRuns"]) == 10
    wrong = await http.post("/api/schedules/p/pause", json={"reason": "x"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/reason")


async def test_without_an_id_a_new_one_is_made(http: httpx2.AsyncClient) -> None:
    made = [await post(http, cron=LONG_AGO) for _ in range(2)]
    assert made[0]["id"] != made[1]["id"]
    assert made[0]["id"].startswith("schedule_")
    page = (await http.get("/api/schedules", params={"limit": 1})).json()
    rest = (await http.get("/api/schedules", params={"limit": 1, "cursor": page["nextCursor"]})).json()
    assert [page["schedules"][0]["id"], rest["schedules"][0]["id"]] == sorted(one["id"] for one in made)
    assert rest["nextCursor"] is None


@pytest.mark.parametrize(
    ("fields", "pointer", "why"),
    [
        ({"cron": "0 25 * * *"}, "/cron", "hour"),
        ({"cron": "@daily", "timezone": "Europe/Berln"}, "/timezone", "did you mean Europe/Berlin?"),
        ({"cron": "@daily", "timezone": "localtime"}, "/timezone", "must be an IANA time zone"),
        ({"every": "soon"}, "/every", "15m"),
        ({}, "", "must have cron or every, one of them"),
        ({"every": 60, "request": {"messages": []}}, "/request/messages", "at least 1"),
        ({"every": 60, "request": {**ASK, "jobId": "mine"}}, "/request/jobId", "must be left out"),
        ({"every": 60, "request": {**ASK, "startAt": SOON}}, "/request/startAt", "must be left out"),
        ({"every": 60, "request": {**ASK, "temprature": 1}}, "/request/temprature", "did you mean temperature?"),
        ({"every": 60, "request": None, "batch": {"items": []}}, "/batch/items", "at least one item"),
        ({"every": 60, "request": None, "batch": {}}, "/batch/items", "must be an array"),
        ({"every": 60, "request": None, "batch": {"items": [{"body": {}}]}}, "/batch/items/0/body/messages", "missing"),
        ({"every": 60, "request": None, "batch": {"items": TWICE}}, "/batch/items/1/custom_id", "items/0"),
        ({"every": 60, "request": None, "batch": {"items": TWICE, "nam": "x"}}, "/batch/nam", "did you mean name?"),
        ({"every": 60, "overlap": "queue"}, "/overlap", "must be one of skip"),
    ],
)
async def test_what_is_wrong_is_said(http: httpx2.AsyncClient, fields: dict[str, Any], pointer: str, why: str) -> None:
    document = await post(http, 422, **fields)
    assert document["code"] == "validation_failed"
    assert document["errors"][0]["pointer"] == pointer
    assert why in document["errors"][0]["message"]
    assert (await http.get("/api/schedules")).json()["schedules"] == []


async def test_a_webhook_to_a_private_address_is_refused(http: httpx2.AsyncClient) -> None:
    document = await post(http, 422, every=60, request={**ASK, "callback": "http://127.0.0.1:1/"})
    assert document["code"] == "webhook_url_refused"


@pytest.mark.parametrize("call", ["", "/pause", "/resume", "/trigger"])
async def test_an_unknown_one_is_404(http: httpx2.AsyncClient, call: str) -> None:
    answer = await http.request("POST" if call else "GET", f"/api/schedules/unknown{call}")
    assert (answer.status_code, answer.json()["code"]) == (404, "schedule_not_found")


async def test_the_python_client_offers_all_of_it(http: httpx2.AsyncClient, door: Gateway) -> None:
    async with AsyncChatJobs(door.url) as jobs:
        made = await jobs.schedules.create(ASK, id="client", every=timedelta(minutes=15), overlap="buffer_one")
        assert (made.id, made.every, made.overlap, made.request) == ("client", 900, "buffer_one", ASK)
        changed = await jobs.schedules.create(ASK, id="client", cron="30 2 * * *", timezone="Europe/Berlin")
        assert (changed.cron, changed.timezone, changed.created_at) == ("30 2 * * *", "Europe/Berlin", made.created_at)
        unnamed = await jobs.schedules.create(ASK, cron="@yearly", catchup_seconds=60)
        listed = [one.id async for one in jobs.schedules.list(page_size=1)]
        assert listed == sorted(["client", unnamed.id])
        await jobs.schedules.trigger("client")

        async def ended() -> str | None:
            runs = (await jobs.schedules.get("client")).last_runs
            return runs[0].job_id if runs and runs[0].status.terminal else None

        job_id = await eventually(ended)
        assert [job.job_id async for job in jobs.list(schedule_id="client")] == [job_id]
        paused = await jobs.schedules.pause("client", "for a while")
        assert (paused.paused, paused.note) == (True, "for a while")
        assert not (await jobs.schedules.resume("client")).paused
        await jobs.schedules.delete("client")
        for unknown in ("client", "no/id"):
            with pytest.raises(ScheduleNotFound):
                await jobs.schedules.get(unknown)
        with pytest.raises(InvalidRequest, match="five fields"):
            await jobs.schedules.create(ASK, cron="daily")
        with pytest.raises(InvalidRequest, match="IANA"):
            await jobs.schedules.create(ASK, cron="@daily", timezone="Europe/Berln")


async def test_the_examples_of_the_page_work(http: httpx2.AsyncClient, door: Gateway) -> None:
    """The commands make the schedule, run it, and delete it; the program prints what it has listed."""
    env = {"CHATJOBS_URL": door.url, "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
    (commands,) = snippets("schedules.md", "bash")
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-ec", commands], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"id":"daily-report"' in done.stdout
    assert '"code"' not in done.stdout  # of a problem
    assert (await http.get("/api/schedules/daily-report")).status_code == 404
    (program,) = snippets("schedules.md", "python")
    printed = await asyncio.to_thread(output, program, env=env)
    assert printed == "hourly-report 3600 True until Monday\n"


async def test_everything_is_durable_while_temporal_is_away(http: httpx2.AsyncClient, machine: Stack) -> None:
    """It is done when Temporal is back: made, paused, triggered, deleted; each call is answered at once."""
    await post(http, id="goes", every=3600)
    await applied(http, "goes")
    await asyncio.to_thread(machine.temporal.kill)
    try:
        begun = asyncio.get_running_loop().time()
        await post(http, id="comes", cron=LONG_AGO)
        await http.post("/api/schedules/comes/pause", json={"note": "later"})
        for _ in range(2):  # one run
            assert (await http.post("/api/schedules/comes/trigger")).status_code == 202
        assert (await http.delete("/api/schedules/goes")).status_code == 204
        found = (await http.get("/api/schedules")).json()["schedules"]
        assert [(one["id"], one["pending"], one["paused"]) for one in found] == [("comes", True, True)]
        assert asyncio.get_running_loop().time() - begun < 5
    finally:
        await asyncio.to_thread(machine.temporal.start)

    async def done() -> bool:
        found = await shown(http, "comes")
        return [run["status"] for run in found["lastRuns"]] == ["completed"] and not found["pending"]

    await eventually(done)
    client = await machine.connect()

    async def listed() -> list[str]:
        return [one.id.rpartition("-")[0] async for one in await client.list_schedules()]

    async def gone() -> bool:
        names = await listed()
        return "comes" in names and "goes" not in names

    await eventually(gone)
