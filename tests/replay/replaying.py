"""Replays histories with the code as it is, and says in plain words where a history and the code differ.

The SDK's message names an event or a state machine, and never the command that the code gave. Commands are therefore
recorded on their way from the workflow to the SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio import workflow
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from workflows.workers import sandboxed

COMMANDS = (
    *("activity_task_scheduled", "timer_started", "marker_recorded", "start_child_workflow_execution_initiated"),
    *("upsert_workflow_search_attributes", "workflow_execution_completed", "workflow_execution_failed"),
    *("workflow_execution_canceled", "workflow_execution_continued_as_new", "timer_canceled"),
    *("activity_task_cancel_requested", "signal_external_workflow_execution_initiated"),
)
"""The events that a workflow's commands make."""


class NotAHistory(Exception):
    """A file that cannot be replayed; the text says why."""


@dataclass(frozen=True)
class Difference:
    """Where a history and the code part.

    ``event``: its number in the history; ``task``: that of the last completed workflow task before it, to which a
    Reset can go back. ``message`` is the SDK's.
    """

    event: int | None
    task: int | None
    in_history: str
    in_code: str
    message: str


def read(path: Path) -> WorkflowHistory:
    """The history in a file, as Temporal's tools export it. Raises NotAHistory."""
    try:
        document = json.loads(path.read_bytes())
        first = document["events"][0]["workflowExecutionStartedEventAttributes"]
        history = WorkflowHistory.from_json(first.get("workflowId") or path.stem, document)
    except OSError as error:
        raise NotAHistory(error.strerror or "it cannot be read") from None
    except Exception as error:  # what is in the file decides which
        why = "it is not the JSON of a workflow's history, as `starter.py history JOB` saves it"
        raise NotAHistory(why) from error
    if not any(_kind(event) == "workflow_task_started" for event in history.events):  # the SDK would wait for ever
        raise NotAHistory("no worker has begun this run: there is nothing to replay")
    return history


async def replay(history: WorkflowHistory, workflows: Sequence[type]) -> Difference | None:
    """Replay a history as the worker would run it; None if the code gives the same steps. Raises NotAHistory."""
    recorder = Recorder(sandboxed())
    replayer = Replayer(workflows=workflows, data_converter=pydantic_data_converter, workflow_runner=recorder)
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    if result.replay_failure is None:
        return None
    if not recorder.seen:
        started = history.events[0].workflow_execution_started_event_attributes
        raise NotAHistory(f"this code has no workflow of its type, {started.workflow_type.name}")
    return _difference(history.events, recorder, str(result.replay_failure))


class Recorder(WorkflowRunner):
    """Another runner, whose workflows' last commands are kept.

    ``seen``: how many events of the history the code had seen when it gave them. ``raised``: what it raised instead.
    """

    def __init__(self, inner: WorkflowRunner) -> None:
        self.commands: list[Any] = []
        self.seen = 0
        self.raised: str | None = None
        self._inner = inner

    def prepare_workflow(self, defn: Any) -> None:
        self._inner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _Recorded(self._inner.create_instance(det), self)


class _Recorded(WorkflowInstance):
    def __init__(self, inner: WorkflowInstance, recorder: Recorder) -> None:
        self._inner = inner
        self._recorder = recorder

    def activate(self, act: Any) -> Any:
        completion = self._inner.activate(act)
        if not any(job.HasField("remove_from_cache") for job in act.jobs):
            failure = completion.failed.failure
            self._recorder.commands = list(completion.successful.commands)
            self._recorder.seen = act.history_length
            kind = failure.application_failure_info.type
            self._recorder.raised = f"{kind}: {failure.message}" if completion.HasField("failed") else None
        return completion

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> workflow.Info:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()


def _difference(events: Sequence[HistoryEvent], recorder: Recorder, failure: str) -> Difference:
    found = re.search(r'message: "((?:[^"\\]|\\.)*)"', failure)
    message = (found[1] if found else failure).replace('\\"', '"')
    event = None if recorder.raised else _event(events, recorder.seen, message)
    end = event.event_id if event else recorder.seen + 1
    tasks = [one.event_id for one in events if one.event_id < end and _kind(one) == "workflow_task_completed"]
    return Difference(
        event=event.event_id if event else None,
        task=tasks[-1] if tasks else None,
        in_history=_as_event(event) if event else "nothing more",
        in_code=f"raises {recorder.raised}" if recorder.raised else _as_commands(recorder.commands),
        message=message[:300],
    )


def _event(events: Sequence[HistoryEvent], seen: int, message: str) -> HistoryEvent | None:
    """The event that the SDK names, by its number or by a local activity's; else the first one that the code had to
    make next."""
    if named := re.search(r"(?:\bid|event_id): (\d+)", message):
        return next((one for one in events if one.event_id == int(named[1])), None)
    if local := re.search(r"LocalActivity\((\d+)\)", message):
        return next((one for one in events if _local_activity(one).get("seq") == int(local[1])), None)
    return next((one for one in events if one.event_id > seen and _kind(one) in COMMANDS), None)


def _kind(event: HistoryEvent) -> str:
    return (event.WhichOneof("attributes") or "").removesuffix("_event_attributes")


def _local_activity(event: HistoryEvent) -> dict[str, Any]:
    """What the marker of a local activity says of it; empty for any other event."""
    marker = event.marker_recorded_event_attributes
    if marker.marker_name != "core_local_activity":
        return {}
    data = marker.details["data"].payloads
    return dict(json.loads(data[0].data)) if data else {}


def _as_event(event: HistoryEvent) -> str:
    """``the activity complete_chat is scheduled``"""
    match _kind(event):
        case "activity_task_scheduled":
            return f"the activity {event.activity_task_scheduled_event_attributes.activity_type.name} is scheduled"
        case "timer_started":
            length = _length(event.timer_started_event_attributes.start_to_fire_timeout)
            return f"a timer of {length} is started"
        case "marker_recorded" if local := _local_activity(event):
            return f"the local activity {local.get('activity_type')} has run"
        case "marker_recorded":
            return f"the marker {_marker(event)} is recorded"
        case "start_child_workflow_execution_initiated":
            child = event.start_child_workflow_execution_initiated_event_attributes
            return f"the child workflow {child.workflow_type.name} is started"
        case "upsert_workflow_search_attributes":
            fields = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            return f"the search attributes {', '.join(sorted(fields))} are set"
        case other:
            return other.replace("_", " ")


def _marker(event: HistoryEvent) -> str:
    marker = event.marker_recorded_event_attributes
    patch = marker.details["patch-data"].payloads if marker.marker_name == "core_patch" else ()
    return f"of the patch {json.loads(patch[0].data)['id']}" if patch else marker.marker_name


def _as_commands(commands: Sequence[Any]) -> str:
    """``starts a timer of 1 s, then schedules the activity complete_chat``"""
    return ", then ".join(map(_as_command, commands)) or "gives no command: it waits"


def _as_command(command: Any) -> str:
    match command.WhichOneof("variant"):
        case "schedule_activity":
            return f"schedules the activity {command.schedule_activity.activity_type}"
        case "schedule_local_activity":
            return f"runs the local activity {command.schedule_local_activity.activity_type}"
        case "start_timer":
            return f"starts a timer of {_length(command.start_timer.start_to_fire_timeout)}"
        case "start_child_workflow_execution":
            return f"starts the child workflow {command.start_child_workflow_execution.workflow_type}"
        case "set_patch_marker":
            return f"records the patch {command.set_patch_marker.patch_id}"
        case "upsert_workflow_search_attributes":
            fields = command.upsert_workflow_search_attributes.search_attributes.indexed_fields
            return f"sets the search attributes {', '.join(sorted(fields))}"
        case "complete_workflow_execution":
            return "ends the run as completed"
        case "fail_workflow_execution":
            return f"ends the run as failed ({command.fail_workflow_execution.failure.message})"
        case "cancel_workflow_execution":
            return "ends the run as cancelled"
        case other:
            return f"gives the command {(other or 'none').replace('_', ' ')}"


def _length(given: Duration) -> str:
    span: timedelta = given.ToTimedelta()
    return f"{span.total_seconds():g} s"
