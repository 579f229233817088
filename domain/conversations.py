"""Conversations: the messages of a job and its answer, and the request of a job that goes on from them. Pure.

What a model is given back of its answer is what it gave: the text, the calls of tools, and its reasoning as a thinking
part before the text (Mistral's documentation, "Reasoning", "Multi-turn conversations").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from chatjobs.contracts import (
    MAX_MESSAGES,
    MAX_TEXT_CHARACTERS,
    AssistantMessage,
    ChatRequest,
    ChatResult,
    Content,
    ContentPart,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    message_text,
    read_json,
)
from chatjobs.errors import ContentDeleted, InvalidRequest, JobRunning, Problem
from domain.chat_completion import answer_content
from domain.values import NewJob

NO_PREVIOUS = "There is no job with the id in previousJobId; give the conversation in messages instead"
PREVIOUS = "previousJobId"
"""The field of a request that names the job whose conversation goes on."""
SHORTER = "leave the field out and give the newest messages, or a summary of the others, in {instead}"
NO_ANSWER = "names a job that ended without text; replay that job, or go on from the one before it"
NO_REQUEST = "names a job whose request was not valid; give the whole conversation in messages instead"
TOOLS_FIRST = "must be tool: the previous job called tools, whose answers come first, one message for each call"
TOOLS_ALL = "must be the id of a call of the previous job; each of its calls has one answer, and there is no other"
_PART: TypeAdapter[Any] = TypeAdapter(ContentPart)


class ThreadPlace(NamedTuple):
    """The place of a job among conversations. ``thread``: the id of the first job of its conversation."""

    thread: str
    previous_job_id: str | None

    @classmethod
    def of(cls, job: ChatResult) -> ThreadPlace:
        return cls(job.thread or job.job_id, job.previous_job_id)


@dataclass(frozen=True, slots=True)
class ConversationTurn:
    """A job that a conversation goes on from. ``request``: as it is stored, None where it was not valid.

    ``result`` has the texts if the job has ended.
    """

    request: str | None
    result: ChatResult


def history(turn: ConversationTurn, field: str = PREVIOUS) -> tuple[Message, ...]:
    """The messages of a conversation up to a job's answer, which is the last one.

    ``field`` is the one that named the job, for messages of errors. Raises ContentDeleted, JobRunning (also for a job
    that has not begun), InvalidRequest for a job without an answer.
    """
    result = turn.result
    if result.deleted_at is not None:
        raise ContentDeleted(f"The content of the job in {field} was deleted; give the conversation in messages")
    if not result.status.terminal:
        raise JobRunning(f"The job in {field} has not ended; wait for its end, or cancel it and go on from its text")
    if turn.request is None:
        raise InvalidRequest([Problem(f"/{field}", NO_REQUEST)])
    said = conversation(read_json(ChatRequest, turn.request), result)
    if said is None:
        raise InvalidRequest([Problem(f"/{field}", NO_ANSWER)])
    return said


def conversation(request: ChatRequest, result: ChatResult) -> tuple[Message, ...] | None:
    """The messages of a request, and its answer as one of the assistant's; None where the answer has no text but blanks
    (the model refuses such a message), no part of another kind, and no call of a tool.

    The answer of a job that failed, was cancelled or is incomplete is the text that it has. A prefix of the caller's
    own and the answer are one message.
    """
    if not ((result.content or "").strip() or result.tool_calls or result.content_parts):
        return None
    *before, last = request.messages
    own = last if isinstance(last, AssistantMessage) else None
    content = answer_content(result)
    if not isinstance(content, str):
        content = [_given_back(part) for part in content if _is_taken(part)]
    message: dict[str, Any] = {"role": "assistant", "content": _continued(own.content if own else None, content)}
    if result.tool_calls:
        message["tool_calls"] = [call.model_dump(mode="json") for call in result.tool_calls]
    kept = before if own else request.messages
    return (*kept, AssistantMessage.model_validate(message))


def joined(before: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation and the messages that follow it.

    System messages at the beginning of ``messages`` take the place of those at the beginning of the conversation:
    behind an answer Mistral refuses them (mistral-common, ``_validate_message_order``).
    """
    instructions = _instructions(messages)
    if instructions:
        before = before[len(_instructions(before)) :]
    return (*instructions, *before, *messages[len(instructions) :])


def follow_up(job: NewJob, turn: ConversationTurn, most_bytes: int) -> NewJob:
    """A job whose request names the job of ``turn``, with the whole conversation as its messages.

    ``most_bytes``: of the request's JSON. Raises what ``history`` raises, and InvalidRequest for what would be too long
    and for a conversation that lacks the answers of tools.
    """
    if job.request is None:
        raise ValueError("a request that is not valid has no conversation")
    before = history(turn)
    new = job.request.messages
    last = before[-1]
    if isinstance(last, AssistantMessage) and last.tool_calls:
        _check_tools(last.tool_calls, new)
    request = job.request.model_copy(update={"messages": joined(before, new)})
    document = stored_form(request)
    texts = [message_text(message) for message in request.messages]
    check_length(texts, len(document.encode()), most_bytes)
    return replace(job, request=request, request_json=document, thread=ThreadPlace.of(turn.result).thread)


def stored_form(request: ChatRequest) -> str:
    """A request as it is stored: the fields that the caller gave. The messages of a conversation are all there, so
    ``previousJobId`` is not: a job that repeats the request would get them twice."""
    return request.model_dump_json(exclude_unset=True, exclude={"previous_job_id"})


def check_length(
    texts: Sequence[str], size: int, most_bytes: int, *, field: str = PREVIOUS, instead: str = "messages"
) -> None:
    """Check the length of a whole conversation: the text of each message, and the bytes of the request's JSON.

    ``field`` named the conversation, and ``instead`` takes messages without it. Raises InvalidRequest at ``field``.
    """
    for number, most, unit in (
        (len(texts), MAX_MESSAGES, "messages"),
        (sum(map(len, texts)), MAX_TEXT_CHARACTERS, "characters"),
        (size, most_bytes, "bytes"),
    ):
        if number > most:
            why = f"leads to a conversation of {number} {unit}, and a request may have {most}; "
            raise InvalidRequest([Problem(f"/{field}", why + SHORTER.format(instead=instead))])


def _check_tools(calls: Sequence[ToolCall], messages: Sequence[Message]) -> None:
    """Check that ``messages`` begin with the answers to calls of tools. Raises InvalidRequest."""
    begin = len(_instructions(messages))
    answers = list(takewhile(lambda one: isinstance(one, ToolMessage), messages[begin:]))
    if not answers:
        raise InvalidRequest([Problem(f"/messages/{begin}/role", TOOLS_FIRST)])
    known = {None, *(call.id for call in calls)}
    other = any(isinstance(one, ToolMessage) and one.tool_call_id not in known for one in answers)
    if other or len(answers) != len(calls):
        raise InvalidRequest([Problem(f"/messages/{begin}/tool_call_id", TOOLS_ALL)])


def _instructions(messages: Sequence[Message]) -> Sequence[Message]:
    """The system messages at the beginning."""
    count = next((n for n, one in enumerate(messages) if not isinstance(one, SystemMessage)), len(messages))
    return messages[:count]


def _is_taken(part: Any) -> bool:
    """Whether a part of an answer may be a part of a request: a model may give kinds that none takes back."""
    try:
        _PART.validate_python(part)
    except ValidationError:
        return False
    return True


def _given_back(part: dict[str, Any]) -> dict[str, Any]:
    """A part of an answer as a part of a request: Mistral's own thinking parts say that the thought is complete."""
    return part | {"closed": True} if part["type"] == "thinking" else part


def _continued(prefix: Content | None, answer: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The content of a message that begins with a prefix; neighbouring texts are one part."""
    if not prefix:
        return answer
    if isinstance(prefix, str) and isinstance(answer, str):
        return prefix + answer
    parts: list[dict[str, Any]] = []
    for part in (*_parts(prefix), *_parts(answer)):
        if parts and part["type"] == parts[-1]["type"] == "text":
            parts[-1] = parts[-1] | {"text": parts[-1]["text"] + part["text"]}
        else:
            parts.append(part)
    return parts


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part if isinstance(part, dict) else part.model_dump(mode="json", exclude_unset=True) for part in content]
