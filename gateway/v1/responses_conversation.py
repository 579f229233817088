"""The conversation that a response goes on from."""

from __future__ import annotations

import asyncio
import json

from chatjobs.errors import ContentDeleted, JobNotFound
from domain.conversations import ConversationTurn, ThreadPlace, check_length, history
from gateway.auth.access import Identity
from gateway.dependencies import Dependencies
from gateway.problems import HttpProblem
from gateway.v1.responses_found import found_response
from gateway.v1.responses_input import JsonDict, arguments_text
from gateway.v1.responses_request import NO_TURNS, EarlierTurns, Translation

FIELD = "previous_response_id"
"""The parameter that names the earlier response."""


async def earlier_turns(here: Dependencies, caller: Identity, response_id: str | None) -> EarlierTurns:
    """The messages of an earlier response and its answer, without its instructions, which hold for it alone.

    Raises HttpProblem (404), JobRunning, InvalidRequest, StorageUnavailable.
    """
    if response_id is None:
        return NO_TURNS
    try:
        found = await found_response(here, caller, response_id)
        turn = await here.jobs.queries.conversation_turn(found.job.job_id, caller.tenant)
        settings, dropped = found.settings, 1 if found.settings.instructions else 0
        said, size = await asyncio.to_thread(_said, turn, dropped)
    except (HttpProblem, JobNotFound, ContentDeleted):
        detail = f"{FIELD} names no response that is kept here"
        raise HttpProblem(404, "previous_response_not_found", detail) from None
    developers = [index - dropped for index in settings.developers]
    place = ThreadPlace(found.job.thread or found.job.job_id, found.job.job_id)
    return EarlierTurns(said, developers, settings.calls, place, size)


def check_whole(asked: Translation, most_bytes: int) -> None:
    """Check that the conversation with its earlier turns is not too long. Raises InvalidRequest."""
    size = len(json.dumps(asked.body, ensure_ascii=False, separators=(",", ":")).encode())
    check_length([*map(_text, asked.body["messages"])], size, most_bytes, field=FIELD, instead="input")


def _said(turn: ConversationTurn, dropped: int) -> tuple[list[JsonDict], int]:
    """The messages of a turn without the first ones, and the bytes that it takes to read them."""
    messages = history(turn, FIELD)[dropped:]
    said = [_with_text(message.model_dump(mode="json", exclude_unset=True)) for message in messages]
    return said, len((turn.request or "").encode()) + len((turn.result.content or "").encode())


def _text(message: JsonDict) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _with_text(message: JsonDict) -> JsonDict:
    """A message whose calls of tools have their arguments as text, which is what callers compare and give back."""
    for call in message.get("tool_calls") or ():
        call["function"]["arguments"] = arguments_text(call["function"]["arguments"])
    return message
