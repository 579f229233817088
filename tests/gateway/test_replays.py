"""Replays of many jobs, by HTTP, the client and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

import starter
from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import Batch, BatchCounts, BatchStatus, JobStatus
from chatjobs.errors import IdempotencyMismatch, InvalidRequest
from tests.support.fakes import eventually
from tests.support.gateway import Gateway, gateway
from tests.support.simulator_process import prompt
from tests.support.snippets import output, snippets
from tests.support.stack import ROOT, Stack, stack

REFUSED = [{"kind": 400}]
"""The faults of an answer that fails the first time it is asked for."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    with stack(tmp_path_factory.mktemp("replays"), env={"CHATJOBS_PORT": "0"}) as started:
        yield started, gateway(started)


@pytest.fixture(autouse=True)
def _logs(running: tuple[Stack, Gateway]) -> Iterator[None]:
    yield
    sys.stdout.write(running[0].news())


@pytest.fixture
async def jobs(running: tuple[Stack, Gateway]) -> AsyncIterator[AsyncChatJobs]:
    async with AsyncChatJobs(running[1].url) as client:
        yield client


@pytest.fixture
async def http(running: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with running[1].client() as client:
        yield client


async def failed(jobs: AsyncChatJobs, faults: Sequence[Sequence[Any]]) -> tuple[dict[str, str], list[str]]:
    """Metadata that only these jobs have, and their ids: each has failed, with faults of its own."""
    mark = {"mark": uuid.uuid4().hex}
    ids = []
    for one in faults:
        job = await jobs.ask(prompt(tokens=3, faults=list(one)), metadata=mark)
        assert job.status is JobStatus.FAILED
        ids.append(job.job_id)
    return mark, ids


async def ended(http: httpx2.AsyncClient, batch_id: str) -> Batch:
    async def look() -> Batch | None:
        batch = Batch.model_validate_json((await http.get(f"/api/replays/{batch_id}")).content)
        return batch if batch.status.terminal else None

    batch = await eventually(look)
    assert batch is not None
    return batch


async def test_a_dry_run_says_what_would_happen(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    """Nothing is started."""
    mark, ids = await failed(jobs, [REFUSED, REFUSED])
    body = {"filter": {"status": "failed", "metadata": mark}, "dryRun": True}
    answer = await http.post("/api/replays", json=body)
    assert (answer.status_code, answer.json()["count"], answer.json()["firstJobIds"]) == (200, 2, ids)
    assert (await jobs.estimate_replay(metadata=mark, error_code="upstream_rejected")).count == 2
    assert (await jobs.get(ids[0])).replays == ()


async def test_the_jobs_of_a_filter_run_again(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    """One key is one replay; it is a batch, too, with the lineage in both directions."""
    mark, ids = await failed(jobs, [REFUSED] * 3)
    given: dict[str, Any] = {
        "metadata": mark,
        "canary": 1,
        "overrides": {"max_tokens": 50},
        "idempotency_key": f"key {mark}",
    }
    replay = await jobs.replay_all(**given)
    assert (replay.kind, replay.phase, replay.canary, replay.max_error_rate) == ("replay", "canary", 1, 0.5)
    again = await jobs.replay_all(**given)
    assert again.batch_id == replay.batch_id
    with pytest.raises(IdempotencyMismatch):
        await jobs.replay_all(**given | {"canary": 2})
    batch = await ended(http, replay.batch_id)
    assert (batch.status, batch.phase) == (BatchStatus.COMPLETED, "rest")
    assert batch.counts == BatchCounts(total=3, completed=3)
    assert batch.filter is not None
    assert (batch.filter.metadata, batch.overrides) == (mark, {"max_tokens": 50})
    assert (await http.get(f"/api/batches/{batch.batch_id}")).json() == json.loads(batch.model_dump_json())
    listed = (await http.get("/api/replays")).json()["batches"]
    assert batch.batch_id in [one["batchId"] for one in listed]
    output = (await http.get(f"/api/batches/{batch.batch_id}/output")).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == ids
    for job_id in ids:
        (one,) = (await jobs.get(job_id)).replays
        assert ((await jobs.get(one)).replay_of, (await jobs.get(one)).batch_id) == (job_id, batch.batch_id)


async def test_a_badly_asked_replay_is_refused(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    mark, _ = await failed(jobs, [REFUSED])
    chosen = {"filter": {"metadata": mark}}
    for body, pointer in (
        ({"filter": {}}, "/filter"),
        ({}, "/filter"),
        ({"filter": {"status": "queued"}}, "/filter/status"),
        ({"filter": {"status": "gone"}}, "/filter/status"),
        ({"filter": {"since": "yesterday"}}, "/filter/since"),
        ({"filter": {"colour": "red"}}, "/filter/colour"),
        (chosen | {"canary": 0}, "/canary"),
        (chosen | {"maxErrorRate": 1.5}, "/maxErrorRate"),
        (chosen | {"overrides": {"max_tokens": 0}}, "/overrides/max_tokens"),
        (chosen | {"overrides": {"max_tokens": 0}, "dryRun": True}, "/overrides/max_tokens"),
    ):
        answer = await http.post("/api/replays", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), body
    with pytest.raises(InvalidRequest):
        await jobs.replay_all(status="queued")


async def test_pause_resume_and_cancel(jobs: AsyncChatJobs, http: httpx2.AsyncClient) -> None:
    """Of a replay; an ordinary batch is none."""
    mark, _ = await failed(jobs, [REFUSED] * 2)
    replay = await jobs.replay_all(metadata=mark, overrides={"messages": [said(tokens=400, tokens_per_second=50)]})
    path = f"/api/replays/{replay.batch_id}"

    async def gathered() -> bool:
        return bool((await http.get(path)).json()["counts"]["total"] == 2)

    await eventually(gathered)
    for action, status in (("pause", "paused"), ("resume", "in_progress"), ("cancel", "in_progress")):
        answer = await http.post(f"{path}/{action}")
        assert answer.status_code == 202, answer.text
        assert (await http.get(path)).json()["status"] in (status, "queued", "cancelled")
    batch = await ended(http, replay.batch_id)
    assert (batch.status, batch.counts) == (BatchStatus.CANCELLED, BatchCounts(total=2, cancelled=2))
    assert (await http.post(f"{path}/resume")).status_code == 202
    assert (await http.post(f"{path}/cancel")).status_code == 202
    assert (await ended(http, replay.batch_id)).revision == 2
    other = await http.post("/api/batches", json={"items": [{"body": {"messages": [said(tokens=2)]}}]})
    for way in ("", "/pause", "/resume", "/cancel"):
        ask = http.get if not way else http.post
        answer = await ask(f"/api/replays/{other.json()['batchId']}{way}")
        assert (answer.status_code, answer.json()["code"]) == (404, "batch_not_found")


def said(**script: Any) -> dict[str, str]:
    return {"role": "user", "content": prompt(**script)}


async def test_a_finished_batch_has_nothing_to_resume(http: httpx2.AsyncClient) -> None:
    made = await http.post("/api/batches", json={"items": [{"body": {"messages": [said(tokens=2)]}}]})
    path = f"/api/batches/{made.json()['batchId']}"

    async def done() -> bool:
        return bool((await http.get(path)).json()["status"] == "completed")

    await eventually(done)
    answer = await http.post(f"{path}/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "batch_finished")


# ------------------------------------------------------------------------------------------- the command line

Call = Callable[..., Any]


@pytest.fixture
def call(running: tuple[Stack, Gateway], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    for name, value in running[0].env.items():
        monkeypatch.setenv(name, value)

    async def called(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(starter.main, list(arguments))
        return code, *capfd.readouterr()

    return called


async def test_the_command_line_looks_first_and_replays_then(jobs: AsyncChatJobs, call: Call) -> None:
    mark, ids = await failed(jobs, [REFUSED, REFUSED, [*REFUSED, *REFUSED]])
    chosen = ("replay", "--status", "failed", "--since", "1h", "--metadata", f"mark={mark['mark']}")
    code, out, err = await call(*chosen, "--dry-run")
    assert (code, out.split(), err.startswith("starter: 3 jobs to replay")) == (0, ids, True)
    code, out, err = await call(*chosen)
    assert (code, out, "--yes" in err) == (2, "", True)
    code, out, err = await call(*chosen, "--yes", "--wait", "--canary", "2", "--set", "temperature=0.1", "--json")
    batch = json.loads(out)
    assert (code, batch["status"], batch["counts"]["completed"], batch["counts"]["failed"]) == (1, "completed", 2, 1)
    assert (batch["overrides"], batch["errorsByCode"]) == ({"temperature": 0.1}, {"upstream_rejected": 1})
    code, out, err = await call(*chosen, "--error-code", "no_such_code", "--yes")
    assert (code, out, "0 jobs" in err) == (0, "", True)


def in_a_shell(commands: str, place: Stack, directory: Path) -> tuple[int, str]:
    """The code and the complaints of commands that call ``starter.py`` as in a checkout."""
    program_file = directory / "starter.py"
    program_file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "starter.py"}" "$@"\n')
    program_file.chmod(0o755)
    env = place.env | {"PATH": f"{directory}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-ec", commands], cwd=directory, env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


async def test_the_examples_of_the_page(
    running: tuple[Stack, Gateway], jobs: AsyncChatJobs, call: Call, tmp_path: Path
) -> None:
    _, ids = await failed(jobs, [REFUSED])
    (changing, commands), (program,) = snippets("replay.md", "sh"), snippets("replay.md", "python")
    assert await asyncio.to_thread(in_a_shell, changing, running[0], tmp_path) == (0, "")
    look, start = commands.splitlines()
    code, out, _ = await call(*shlex.split(look)[1:])
    assert (code, len(out.split()) >= len(ids)) == (0, True)
    assert (await call(*shlex.split(start)[1:]))[0] == 0
    said = await asyncio.to_thread(output, program, env={"CHATJOBS_URL": running[1].url})
    assert re.match(r"\d+ jobs, about \d+ tokens\nbatch_\w+ canary\n", said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replay"], "a filter"),
        (["replay", "job_1", "--status", "failed"], "one of them"),
        (["replay", "--status", "queued", "--yes"], "terminal"),
        (["replay", "--status", "failed", "--set", "max_tokens=0", "--dry-run"], "max_tokens"),
    ],
)
async def test_a_badly_typed_replay(call: Call, arguments: list[str], words: str) -> None:
    code, out, err = await call(*arguments)
    assert (code, out, words in err) == (2, "", True), err
