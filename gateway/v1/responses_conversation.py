"""The conversation that a response goes on from."""

from __future__ import annotations

from collections.abc import Sequence

from chatjobs.contracts import Channel, Job, ToolCall
from chatjobs.errors import ContentDeleted, InvalidRequest, JobNotFound, JobRunning, Problem
from domain.values import TextRun
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.v1.responses_found import found_response
from gateway.v1.responses_input import JsonDict, arguments_text
from gateway.v1.responses_object import CALLED
from gateway.v1.responses_request import NO_TURNS, EarlierTurns
from gateway.v1.responses_stream import whole_text


async def earlier_turns(here: Dependencies, caller: Identity, response_id: str | None) -> EarlierTurns:
    """The messages of an earlier response and its answer, without its instructions, which hold for it alone.

    Raises HttpProblem (404), JobRunning, InvalidRequest, StorageUnavailable.
    """
    if response_id is None:
        return NO_TURNS
    try:
        found = await found_response(here, caller, response_id)
        request = await here.jobs.queries.request(found.job.job_id, caller.tenant)
        runs = await whole_text(here, found.job)
    except (HttpProblem, JobNotFound, ContentDeleted):
        detail = "previous_response_id names no response that is kept here"
        raise HttpProblem(404, "previous_response_not_found", detail) from None
    if not found.job.status.terminal:
        raise JobRunning("The previous response has not ended; wait for its end, or cancel it")
    answer = _answer(found.job, runs)
    if answer is None:
        raise InvalidRequest([Problem("/previous_response_id", "names a response without any output")])
    settings, dropped = found.settings, 1 if found.settings.instructions else 0
    asked = [message.model_dump(mode="json", exclude_unset=True) for message in request.messages[dropped:]]
    developers = [index - dropped for index in settings.developers]
    return EarlierTurns([*asked, answer], developers, settings.calls)


def _answer(job: Job, runs: Sequence[TextRun]) -> JsonDict | None:
    """A job's answer as a message; None if there is none."""
    calls: Sequence[ToolCall] = (job.tool_calls or ()) if job.status in CALLED else ()
    parts = [_part(run) for run in runs]
    if not calls and not any(run.text.strip() for run in runs if run.channel is Channel.CONTENT):
        return None  # the model refuses a message without text
    only_text = len(parts) == 1 and parts[0]["type"] == "text"
    message: JsonDict = {"role": "assistant", "content": parts[0]["text"] if only_text else parts}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _part(run: TextRun) -> JsonDict:
    text = {"type": "text", "text": run.text}
    return text if run.channel is Channel.CONTENT else {"type": "thinking", "thinking": [text], "closed": True}


def _call(call: ToolCall) -> JsonDict:
    function = {"name": call.function.name, "arguments": arguments_text(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function, "index": call.index}
