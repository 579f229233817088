"""`starter.py history`, against a real Temporal and a real worker, and the replay of what it saved."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowContinuedAsNewError

import starter
from dispatch.schedules import delete_runs
from dispatch.temporal import runs_of
from domain.names import CHAT_JOB, JOBS_QUEUE, delivery_workflow_id, job_id_of_run
from domain.values import RunRef
from tests.support.fakes import eventually
from tests.support.receiver import Answer, receiver
from tests.support.simulator_process import prompt
from tests.support.snippets import snippets
from tests.support.stack import ROOT, Stack, free_port, stack

pytestmark = pytest.mark.long

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("history"), env={"CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}) as started:
        yield started


@pytest.fixture
def call(
    running: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """A command in this process and in an empty directory: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as changed:
            for name, value in (running.env | environment).items():
                changed.setenv(name, value)
            return (starter.main(arguments), *capfd.readouterr())

    yield called
    sys.stdout.write(running.news())


def ended_job(call: Call, *options: str) -> str:
    code, out, err = call("start", prompt("debug", tokens=3), "--wait", *options)
    assert code == 0, err
    return out.strip()


def replayed(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.replay", *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def workflow_of(file: Path) -> tuple[str, str]:
    """Type and id of the workflow whose history a file has."""
    first = json.loads(file.read_text())["events"][0]["workflowExecutionStartedEventAttributes"]
    return first["workflowType"]["name"], first["workflowId"]


def test_a_saved_history_replays(call: Call, tmp_path: Path) -> None:
    job = ended_job(call)
    code, out, _ = call("history", job)
    assert (code, out) == (0, f"{job}.history.json\n")
    saved = tmp_path / f"{job}.history.json"
    assert workflow_of(saved) == (CHAT_JOB, job)
    done = replayed(saved)
    assert (done.returncode, f"{saved}: replays" in done.stdout) == (0, True), done.stdout + done.stderr
    assert "tests/replay/histories/completed.json: replays" in done.stdout


def test_it_goes_to_standard_output_and_to_a_named_file(call: Call, tmp_path: Path) -> None:
    job = ended_job(call)
    printed = json.loads(call("history", job, "--output", "-")[1])
    named = tmp_path / "my.json"
    told = json.loads(call("history", job, "--output", str(named), "--json")[1])
    assert json.loads(named.read_text()) == printed
    assert (told["file"], told["workflowId"], told["events"]) == (str(named), job, len(printed["events"]))
    code, _, err = call("history", job, "--output", str(tmp_path / "no" / "directory"))
    assert (code, "No such file or directory" in err) == (1, True)


def test_prompt_and_answer_are_only_in_the_history_of_an_inline_start(call: Call, running: Stack) -> None:
    question = prompt("secret words", tokens=3)
    stored = call("start", question, "--wait")[1].strip()
    inline = call("start", "--direct", question, "--wait")[1].split()[0]
    words = json.dumps({"content": question})[13:-2]
    payloads = {job: _decoded(json.loads(call("history", job, "--output", "-")[1])) for job in (stored, inline)}
    answer = running.simulator.answer(question)["text"]
    assert [words in payloads[stored], answer in payloads[stored]] == [False, False]
    assert [words in payloads[inline], answer in payloads[inline]] == [True, True]


def _decoded(value: Any) -> str:
    """Every payload of a history as text."""
    if isinstance(value, dict):
        own = base64.b64decode(value["data"]).decode() if isinstance(value.get("data"), str) else ""
        return own + "".join(_decoded(one) for name, one in value.items() if name != "metadata")
    return "".join(map(_decoded, value)) if isinstance(value, list) else ""


def test_a_delivery_has_a_history_of_its_own(call: Call, tmp_path: Path) -> None:
    """From its second try on; before that it is in the job's."""
    with receiver() as hooks:
        hooks.answer("/down", [Answer(500)])
        down = ended_job(call, "--callback", hooks.url("/down"))
        hooks.wait_for(2, path="/down")
        up = ended_job(call, "--callback", hooks.url("/up"))
        hooks.wait_for(1, path="/up")
    failing, delivered = (json.loads(call("show", job, "--json")[1])["deliveries"][0]["id"] for job in (down, up))
    for name in (failing, delivery_workflow_id(failing)):
        assert call("history", name, "--output", "delivery.json")[0] == 0
        assert workflow_of(tmp_path / "delivery.json") == ("WebhookDelivery", delivery_workflow_id(failing))
    assert replayed(tmp_path / "delivery.json").returncode == 0
    code, _, err = call("history", delivered)
    assert (code, "its first try is in the run of its job" in err) == (2, True)


def test_a_run_of_a_cron_is_found_by_its_job(call: Call, running: Stack, tmp_path: Path) -> None:
    body = {"request": {"messages": [{"role": "user", "content": prompt("cron", tokens=2)}]}}

    async def first_job() -> str:
        client = await running.connect()
        cron = await client.start_workflow(
            CHAT_JOB, body, id="nightly", task_queue=JOBS_QUEUE, cron_schedule="@every 1s"
        )
        try:
            first = str(cron.first_execution_run_id)
            with pytest.raises(WorkflowContinuedAsNewError):  # the run ends, and the cron goes on
                await client.get_workflow_handle("nightly", run_id=first).result(follow_runs=False)
            return job_id_of_run("nightly", first, cron=True)
        finally:
            await cron.terminate()

    job = asyncio.run(first_job())
    assert call("history", job, "--output", "cron.json")[0] == 0
    assert workflow_of(tmp_path / "cron.json") == (CHAT_JOB, "nightly")
    assert job in _decoded(json.loads((tmp_path / "cron.json").read_text()))
    assert replayed(tmp_path / "cron.json").returncode == 0


def test_what_has_no_run_says_why(call: Call, running: Stack) -> None:
    job = ended_job(call)

    async def lost() -> None:
        client = await running.connect()
        await delete_runs(client, RunRef(job))

        async def gone() -> bool:
            return not await runs_of(client, RunRef(job))

        await eventually(gone)

    asyncio.run(lost())
    code, out, err = call("history", job, "--json")
    error = json.loads(err)["error"]
    assert (code, out, error["code"]) == (2, "", "run_not_found")
    assert "retention" in error["message"]
    assert f"starter.py show {job}" in error["message"]
    for unknown in ("job_that_is_not", "whe_that_is_not"):
        code, _, err = call("history", unknown)
        assert (code, f"has the id {unknown}" in err) == (2, True)


def test_temporal_away_is_3(call: Call) -> None:
    code, _, err = call("history", "job_1", TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert (code, "Temporal is not reachable" in err) == (3, True)


def test_the_commands_of_the_page_work(call: Call, running: Stack, tmp_path: Path) -> None:
    """Run in the project's directory, which must not keep what they write."""
    job = ended_job(call)
    (code,) = snippets("debug.md", "bash")
    place = f'cd "{tmp_path}"; ln -s "{ROOT}"/.venv "{ROOT}"/starter.py .; set -e\n'
    there = f'make -C "{ROOT}" --no-print-directory --assume-old=.venv/dev'  # it must not install anything
    make = f'make() {{ command {there} "${{@/#ARGS=/ARGS=$PWD/}}"; }}\n'
    done = subprocess.run(
        ["bash", "-c", place + make + code],
        env=running.env | {"JOB": job, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{job}.history.json: replays" in done.stdout
