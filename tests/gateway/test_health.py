"""What load balancers and Prometheus learn, and what callers are told while the database or Temporal is in trouble."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from storage.engine.database import Database
from tests.support.gateway import Gateway, alone, gateway
from tests.support.postgres import Postgres
from tests.support.small_disk import filled, small_disk
from tests.support.stack import Stack, stack, wait_until
from tests.support.storage_faults import cut_connections, held_locked

JOB = {"messages": [{"role": "user", "content": "a prompt that is nobody's business"}]}
CUTS = 10
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"


def client(door: Gateway) -> httpx2.Client:
    return httpx2.Client(base_url=door.url, timeout=30, trust_env=False)


def ready(http: httpx2.Client) -> tuple[int, dict[str, bool]]:
    begin = time.monotonic()
    answer = http.get("/readyz")
    assert time.monotonic() - begin < 3
    return answer.status_code, {name: check["ok"] for name, check in answer.json()["checks"].items()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("health"), env={"CHATJOBS_PORT": "0"}) as started:
        yield started
        sys.stdout.write(started.news())


@pytest.fixture(scope="module")
def door(running: Stack) -> Gateway:
    return gateway(running)


def test_readiness_follows_temporal(running: Stack, door: Gateway) -> None:
    """Jobs are accepted all the same; the process is alive."""
    with client(door) as http:
        assert wait_until(lambda: ready(http) == (200, {"database": True, "temporal": True}))
        running.temporal.kill()
        assert wait_until(lambda: ready(http) == (503, {"database": True, "temporal": False}))
        answer = http.get("/readyz")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("not_ready", "5")
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.post("/api/jobs", json=JOB).status_code == 202
        running.temporal.start()
        assert wait_until(lambda: ready(http)[0] == 200, timeout=20)
    lines = [json.loads(line) for line in door.process.output().splitlines()]
    told = [line["ok"] for line in lines if line.get("action") == "readiness" and line["part"] == "temporal"]
    assert told == [True, False, True]


def figures(http: httpx2.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_metrics(door: Gateway) -> None:
    with client(door) as http:
        before = figures(http)["chatjobs_jobs_accepted_total"]
        job_id = http.post("/api/jobs", json=JOB, headers={"Prefer": "wait=30"}).json()["jobId"]
        http.get(f"/api/jobs/{job_id}")
        http.get("/api/jobs/nobody")
        http.get("/nothing?token=secret")
        found = figures(http)
        assert found["chatjobs_jobs_accepted_total"] == before + 1
        requests = 'chatjobs_http_requests_total{method="GET",route="/api/jobs/{job_id}",status="%d"}'
        assert (found[requests % 200], found[requests % 404]) == (1, 1)
        assert found['chatjobs_http_request_seconds_count{route="/api/jobs/{job_id}"}'] == 2
        assert found['chatjobs_http_requests_total{method="GET",route="(none)",status="404"}'] == 1
        assert found["chatjobs_open_streams"] == 0
        assert found["chatjobs_event_loop_lag_seconds"] < 5
        ended = 'chatjobs_jobs_ended_last_5_minutes{status="completed"}'
        assert wait_until(lambda: figures(http)[ended] >= 1, timeout=15, pause=0.5)
        text = http.get("/metrics").text
        assert job_id not in text
        assert "secret" not in text
        assert "default" not in text


def test_logs_tell_what_was_done_and_nothing_of_what_was_said(door: Gateway) -> None:
    with client(door) as http:
        headers = {"Idempotency-Key": "my-secret-key", "Prefer": "wait=30"}
        job_id = http.post("/api/jobs", json=JOB, headers=headers).json()["jobId"]
        http.get("/api/jobs?metadata.mine=private&cursor=")
        http.get(f"/api/jobs/{job_id}")
        http.get("/api/jobs/made-up-by-the-caller")
    log = door.process.output()
    lines = [json.loads(line) for line in log.splitlines()]
    mine = [line for line in lines if line.get("action") == "request" and line.get("job_id") == job_id]
    assert [(line["method"], line["route"], line["status"]) for line in mine] == [
        ("POST", "/api/jobs", 200),
        ("GET", "/api/jobs/{job_id}", 200),
    ]
    assert all(line["ms"] >= 0 for line in mine)
    for private in ("nobody's business", "my-secret-key", "private", "made-up-by-the-caller"):
        assert private not in log
    assert all("action" in line for line in lines)


async def test_a_locked_database(door: Gateway, running: Stack) -> None:
    """F25: writes wait for five seconds and are told to come back; reads work; then all is well."""
    database = await Database.open(running.database_url)
    async with httpx2.AsyncClient(base_url=door.url, timeout=30, trust_env=False) as http:
        job_id = (await http.post("/api/jobs", json=JOB)).json()["jobId"]
        async with held_locked(database):
            begin = time.monotonic()
            posting = asyncio.create_task(http.post("/api/jobs", json=JOB))
            assert (await http.get(f"/api/jobs/{job_id}")).status_code == 200
            assert (await http.get("/readyz")).json()["checks"]["database"]["ok"] is False
            answer = await posting
            assert 4 < time.monotonic() - begin < 12
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert answer.headers["retry-after"] == "5"
        assert (await http.post("/api/jobs", json=JOB)).status_code == 202
        lines = (await http.get("/metrics")).text.splitlines()
        assert any(line.startswith('chatjobs_storage_errors_total{code="storage_unavailable"}') for line in lines)
    await database.close()


def database_in(disk: Path) -> dict[str, str]:
    return {"CHATJOBS_DATABASE_URL": f"sqlite:///{disk / 'chatjobs.db'}"}


def test_a_full_disk(tmp_path: Path) -> None:
    """F26: `storage_full`, reads work; once there is space all is well, and what was accepted is there."""
    with small_disk(tmp_path / "disk") as disk, alone(tmp_path, database_in(disk)) as built:
        door = gateway(built)
        with client(door) as http:
            accepted = [http.post("/api/jobs", json=JOB).json()["jobId"]]
            ballast = filled(disk)
            answer = None
            for _ in range(2_000):  # the log has room for some
                answer = http.post("/api/jobs", json={**JOB, "metadata": {"much": "x" * 512}})
                if answer.status_code != 202:
                    break
                accepted.append(answer.json()["jobId"])
            assert answer is not None
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_full")
            assert answer.headers["retry-after"]
            assert http.get(f"/api/jobs/{accepted[0]}").status_code == 200
            assert ready(http)[1]["database"] is False
            ballast.unlink()
            assert http.post("/api/jobs", json=JOB).status_code == 202
            assert {http.get(f"/api/jobs/{job_id}").status_code for job_id in accepted} == {200}
        with closing(sqlite3.connect(disk / "chatjobs.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert "Traceback" not in door.process.output()
        built.kill_all()  # before the disk goes


def test_a_database_that_takes_no_writes(tmp_path: Path, postgres_server: Postgres) -> None:
    """F29: 503 and not ready; it recovers by itself."""
    url = postgres_server.new_database()
    name = url.split("/")[-1].split("?")[0]
    with alone(tmp_path, {"CHATJOBS_DATABASE_URL": url}) as built:
        door = gateway(built)
        with client(door) as http:
            job_id = http.post("/api/jobs", json=JOB).json()["jobId"]
            for read_only, status in (("on", 503), ("off", 202)):
                postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only};")
                postgres_server.sql(CUT + f" AND datname = '{name}';")
                writable = read_only == "off"
                assert wait_until(lambda: ready(http)[1]["database"] is writable)  # noqa: B023 - called at once
                assert http.post("/api/jobs", json=JOB).status_code == status
                assert http.get(f"/api/jobs/{job_id}").status_code == 200
        assert "Traceback" not in door.process.output()


async def test_cut_connections_are_not_noticed(tmp_path: Path, postgres_server: Postgres) -> None:
    """F31: Postgres ends every connection, time after time, while jobs are accepted; each is there, once."""
    url = postgres_server.new_database()
    with alone(tmp_path, {"CHATJOBS_DATABASE_URL": url}) as built:
        door = gateway(built)
        database = await Database.open(url)
        async with door.client() as http:

            async def accept(number: int) -> Any:
                return await http.post("/api/jobs", json={**JOB, "metadata": {"number": str(number)}})

            cuts = 0
            numbers = itertools.takewhile(lambda _: cuts < CUTS, itertools.count())
            accepting = asyncio.create_task(_in_lanes(accept, numbers))
            while cuts < CUTS:
                await cut_connections(postgres_server, database)
                cuts += 1
                await asyncio.wait([accepting], timeout=0.03)
            answers = await accepting
        assert {answer.status_code for answer in answers} == {202}
        assert len(answers) > CUTS
        async with database.single() as connection:
            found = (await connection.exec_driver_sql("SELECT id FROM jobs")).scalars().all()
        assert sorted(found) == sorted(answer.json()["jobId"] for answer in answers)
        await database.close()


async def _in_lanes(work: Any, numbers: Iterator[int]) -> list[Any]:
    found: list[Any] = []

    async def lane() -> None:
        for number in numbers:
            found.append(await work(number))  # noqa: PERF401 - lanes share the list

    await asyncio.gather(*(lane() for _ in range(8)))
    return found
