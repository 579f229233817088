"""Runs that began under an older version go on under this one: their histories replay.

When this fails, the workflow's commands have changed. See tests/replay/record.py for what to do about it.
"""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from tests.replay.__main__ import check
from tests.replay.changed import BrokenChatJob, CarelessChatJob
from tests.replay.record import HISTORIES, SCENARIOS, SHORT, record, short_histories
from tests.replay.replaying import read
from workflows.retention import Retention
from workflows.workers import WORKFLOWS, sandboxed

COMPLETED = (HISTORIES / "completed.json").read_text()
RECORDED = sorted(path.stem for path in HISTORIES.glob("*.json"))


def recorded(name: str, directory: Path = HISTORIES) -> WorkflowHistory:
    return read(directory / f"{name}.json")


def without_tasks() -> str:
    """The history of a run that no worker has begun."""
    return json.dumps({"events": json.loads(COMPLETED)["events"][:2]})


def replayer(*workflows: type) -> Replayer:
    """As the worker runs them."""
    return Replayer(workflows=workflows, data_converter=pydantic_data_converter, workflow_runner=sandboxed())


@pytest.mark.parametrize("name", RECORDED)
async def test_a_recorded_run_replays(name: str) -> None:
    with short_histories() if name in SHORT else nullcontext():
        await replayer(*WORKFLOWS).replay_workflow(recorded(name))


@pytest.mark.parametrize(
    ("name", "event", "in_history"),
    [
        ("completed", 5, "the activity complete_chat is scheduled"),
        ("inline", 5, "the local activity accept_inline has run"),
    ],
)
async def test_a_careless_change_names_itself(
    name: str, event: int, in_history: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make replay` says which history, which event, and what the code does instead; and what can be done."""
    kept, changed = HISTORIES / "retention.json", HISTORIES / f"{name}.json"
    assert await check([kept, changed], [CarelessChatJob, Retention]) == 1
    told = capsys.readouterr().out
    assert "retention.json: replays" in told
    assert f"{name}.json: differs\n  history   event {event}: {in_history}\n  code      starts a timer of 1 s\n" in told
    for remedy in ("workflow.patched", "build id", f"reset --workflow-id job_{name} --event-id 4"):
        assert remedy in told


async def test_an_error_in_the_code_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert await check([HISTORIES / "completed.json"], [BrokenChatJob]) == 1
    assert "code      raises ValueError: no such thing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("no JSON", "not the JSON of a workflow's history"),
        ('{"events": []}', "not the JSON of a workflow's history"),
        (without_tasks(), "no worker has begun this run"),
        (COMPLETED.replace('"ChatJob"', '"Other"'), "no workflow of its type, Other"),
    ],
)
async def test_a_file_without_a_history_of_ours_is_2(
    content: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.json"
    if content is not None:
        file.write_text(content)
    assert await check([file]) == 2
    told = capsys.readouterr().out
    assert told.startswith(f"{file}: ")
    assert why in told


@pytest.mark.parametrize("name", ["completed", "failed", "cancelled", "inline"])
async def test_a_careless_change_is_found(name: str) -> None:
    """So that the test above is known to be able to fail."""
    with pytest.raises(NondeterminismError):
        await replayer(CarelessChatJob).replay_workflow(recorded(name))


def test_every_scenario_is_recorded() -> None:
    """Histories of earlier versions may stand beside them."""
    assert set(SCENARIOS) <= set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_histories_hold_nothing_of_a_machine(name: str) -> None:
    """They are public: no path, host or user of whoever recorded them."""
    text = (HISTORIES / f"{name}.json").read_text()
    for word in ("stackTrace", ".py", "site-packages", str(Path.home()), f"@{socket.gethostname()}"):
        assert word not in text


async def test_a_new_recording_replays(tmp_path: Path) -> None:
    """The command that records still works."""
    await record("delivered", tmp_path)
    await replayer(*WORKFLOWS).replay_workflow(recorded("delivered", tmp_path))
