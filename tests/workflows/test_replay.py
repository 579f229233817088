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

from tests.replay.changed import CarelessChatJob
from tests.replay.record import HISTORIES, SCENARIOS, SHORT, record, short_histories
from workflows.chat_batch import ChatBatch
from workflows.chat_job import ChatJob
from workflows.retention import Retention
from workflows.webhook_delivery import WebhookDelivery
from workflows.workers import sandboxed

RECORDED = sorted(path.stem for path in HISTORIES.glob("*.json"))


def recorded(name: str, directory: Path = HISTORIES) -> WorkflowHistory:
    events = json.loads((directory / f"{name}.json").read_text())
    started = events["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started.get("workflowId", f"job_{name}"), events)


def replayer(*workflows: type) -> Replayer:
    """As the worker runs them."""
    return Replayer(workflows=workflows, data_converter=pydantic_data_converter, workflow_runner=sandboxed())


@pytest.mark.parametrize("name", RECORDED)
async def test_a_recorded_run_replays(name: str) -> None:
    with short_histories() if name in SHORT else nullcontext():
        await replayer(ChatJob, ChatBatch, WebhookDelivery, Retention).replay_workflow(recorded(name))


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
    await replayer(ChatJob, WebhookDelivery).replay_workflow(recorded("delivered", tmp_path))
