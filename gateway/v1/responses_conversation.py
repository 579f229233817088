"""The conversation that a response goes on from."""

from __future__ import annotations

from chatjobs.errors import ContentDeleted, JobNotFound
from domain.conversations import ThreadPlace, history
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.v1.responses_found import found_response
from gateway.v1.responses_input import JsonDict, arguments_text
from gateway.v1.responses_request import NO_TURNS, EarlierTurns


async def earlier_turns(here: Dependencies, caller: Identity, response_id: str | None) -> EarlierTurns:
    """The messages of an earlier response and its answer, without its instructions, which hold for it alone.

    Raises HttpProblem (404), JobRunning, InvalidRequest, StorageUnavailable.
    """
    if response_id is None:
        return NO_TURNS
    try:
        found = await found_response(here, caller, response_id)
        turn = await here.jobs.queries.conversation_turn(found.job.job_id, caller.tenant)
        messages = history(turn, "previous_response_id")
    except (HttpProblem, JobNotFound, ContentDeleted):
        detail = "previous_response_id names no response that is kept here"
        raise HttpProblem(404, "previous_response_not_found", detail) from None
    settings, dropped = found.settings, 1 if found.settings.instructions else 0
    said = [_with_text(message.model_dump(mode="json", exclude_unset=True)) for message in messages[dropped:]]
    developers = [index - dropped for index in settings.developers]
    place = ThreadPlace(found.job.thread or found.job.job_id, found.job.job_id)
    return EarlierTurns(said, developers, settings.calls, place)


def _with_text(message: JsonDict) -> JsonDict:
    """A message whose calls of tools have their arguments as text, which is what callers compare and give back."""
    for call in message.get("tool_calls") or ():
        call["function"]["arguments"] = arguments_text(call["function"]["arguments"])
    return message
