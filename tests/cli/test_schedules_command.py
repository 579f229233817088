"""`starter.py schedules`, against a real Temporal and a real worker."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import starter
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, free_port, stack

Call = Callable[..., tuple[int, str, str]]
NEVER = "0 0 29 2 *"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("schedules")) as started:
        yield started


@pytest.fixture
def call(running: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """``schedules …`` in this process: exit code, standard output, standard error."""

    def called(*arguments: str, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as changed:
            for name, value in (running.env | environment).items():
                changed.setenv(name, value)
            return (starter.main(["schedules", *arguments]), *capfd.readouterr())

    yield called
    sys.stdout.write(running.news())


def shown(call: Call, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(call("show", name, "--json")[1])
    return document


def last_run(call: Call, name: str) -> dict[str, Any]:
    """The last job of a schedule, once it has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        runs = shown(call, name)["lastRuns"]
        if runs and runs[0]["completedAt"]:
            return dict(runs[0])
        time.sleep(0.05)
    raise AssertionError("no job has ended")


def test_all_of_it(call: Call) -> None:
    question = prompt("scheduled", tokens=3)
    code, out, _ = call("add", question, "--id", "daily", "--cron", NEVER, "--metadata", "report=daily")
    assert (code, out) == (0, "daily made\n")
    assert call("add", question, "--id", "daily", "--every", "15m", "--model", "open-mistral-nemo")[1] == (
        "daily is there, and does this now\n"
    )
    assert call("trigger", "daily")[:2] == (0, "daily triggered\n")
    job = last_run(call, "daily")
    assert call("pause", "daily", "--note", "no money")[:2] == (0, "daily paused\n")
    document = shown(call, "daily")
    assert (document["every"], document["paused"], document["note"]) == (900, True, "no money")
    assert document["request"]["model"] == "open-mistral-nemo"
    page = call("show", "daily")[1]
    for words in ("daily", "every 0:15:00", "paused: no money", job["jobId"], "completed", "/schedules/daily-"):
        assert words in page
    table = call("list")[1]
    assert "paused" in table
    assert job["jobId"] in table
    assert json.loads(call("resume", "daily", "--json")[1])["nextRuns"]
    assert call("delete", "daily")[:2] == (0, "daily deleted\n")
    assert call("list")[2] == "there are no schedules; `starter.py schedules add` makes one\n"


def test_its_jobs_are_listed_by_it(call: Call, running: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    call("add", prompt("listed", tokens=2), "--id", "listed", "--cron", "@yearly")
    call("trigger", "listed")
    job = last_run(call, "listed")
    for name, listed in (("listed", [job["jobId"]]), ("other", [])):
        with pytest.MonkeyPatch.context() as changed:
            for variable, value in running.env.items():
                changed.setenv(variable, value)
            assert starter.main(["list", "--schedule", name, "--json"]) == 0
        assert [one["jobId"] for one in json.loads(capfd.readouterr().out)["jobs"]] == listed
    call("delete", "listed")


def test_a_batch_from_a_file(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    body = {"messages": [{"role": "user", "content": prompt("in a batch", tokens=2)}]}
    file.write_text(json.dumps({"items": [{"body": body}, {"body": body}]}))
    assert call("add", "--batch", str(file), "--id", "nightly", "--cron", NEVER)[:2] == (0, "nightly made\n")
    call("trigger", "nightly")
    run = last_run(call, "nightly")
    assert run["status"] == "completed"
    assert run["batchId"] in call("show", "nightly")[1]
    call("delete", "nightly")


def test_without_temporal_it_is_stored(call: Call) -> None:
    away = {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}
    code, out, err = call("add", "hi", "--id", "stored", "--cron", "@daily", **away)
    assert (code, out) == (0, "stored made\n")
    assert "this is stored, and done when Temporal is back" in err
    assert shown(call, "stored")["pending"] or shown(call, "stored")["nextRuns"]
    assert call("delete", "stored")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "hi"], "must have cron or every, one of them"),
        (["add", "hi", "--cron", "0 25 * * *"], "cron has a value for the hour that is not from 0 to 23"),
        (["add", "hi", "--cron", "@daily", "--timezone", "Europe/Berln"], "did you mean Europe/Berlin?"),
        (["add", "hi", "--every", "soon"], "every must be whole seconds"),
        (["add", "hi", "--every", "1h", "--overlap", "none"], "overlap must be one of skip"),
        (["add", "--every", "1h"], "give a prompt or --file"),
        (["add", "hi", "--batch", "x.json", "--every", "1h"], "give a prompt, --file or --batch, one of them"),
        (["add", "--batch", "no-such-file.json", "--every", "1h"], "--batch: no-such-file.json: No such file"),
        (["show", "unknown"], "There is no schedule with this id"),
        (["trigger", "unknown"], "There is no schedule with this id"),
        (["puase", "x"], "did you mean pause?"),
    ],
)
def test_what_is_wrong_is_2(call: Call, arguments: list[str], words: str) -> None:
    code, _, err = call(*arguments)
    assert (code, words in err, len(err.splitlines())) == (2, True, 1), err
