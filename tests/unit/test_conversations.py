"""A request, an answer and what follows, joined to one request: no database, no model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from chatjobs.contracts import ChatRequest, ChatResult, JobStatus, Message, PlacedPart, ToolCall
from chatjobs.errors import ContentDeleted, InvalidRequest, JobRunning
from domain.conversations import ConversationTurn, conversation, follow_up, history, joined
from domain.new_jobs import new_job
from domain.values import NewJob
from tests.support.factories import make_body

NOW = datetime(2026, 11, 27, tzinfo=UTC)
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    "index": 0,
}
REFERENCE: dict[str, Any] = {"type": "reference", "reference_ids": [1]}
UNKNOWN: dict[str, Any] = {"type": "tool_file", "tool": "image_generation", "file_id": "f"}
MOST = 10_000


def user(text: str = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def thinking(words: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [text(words)], "closed": True}


def result(content: str = "Hi.", status: JobStatus = JobStatus.COMPLETED, **fields: Any) -> ChatResult:
    known: dict[str, Any] = {"job_id": "job_1", "request_id": "r", "model": "m", "created_at": NOW}
    return ChatResult(**known, status=status, content=content, **fields)


def turn(*messages: dict[str, Any], **fields: Any) -> ConversationTurn:
    return ConversationTurn(json.dumps({"messages": list(messages) or [user()]}), result(**fields))


def wire(messages: tuple[Message, ...] | None) -> list[dict[str, Any]] | None:
    """The messages as JSON, with what was given alone."""
    return None if messages is None else [one.model_dump(mode="json", exclude_unset=True) for one in messages]


def follower(*messages: dict[str, Any]) -> NewJob:
    return new_job({"messages": list(messages) or [user("And?")], "previousJobId": "job_1"}, tenant="default")


ANSWERS: dict[str, tuple[list[dict[str, Any]], ChatResult, list[dict[str, Any]]]] = {
    "text": ([user()], result(), [user(), assistant("Hi.")]),
    "blanks around it": ([user()], result(" Hi. \n"), [user(), assistant(" Hi. \n")]),
    "reasoning": ([user()], result(reasoning="Hm."), [user(), assistant([thinking("Hm."), text("Hi.")])]),
    "calls": (
        [user()],
        result("", tool_calls=(ToolCall.model_validate(CALL),)),
        [user(), assistant("", tool_calls=[CALL])],
    ),
    "reasoning and calls": (
        [user()],
        result("", reasoning="Hm.", tool_calls=(ToolCall.model_validate(CALL),)),
        [user(), assistant([thinking("Hm.")], tool_calls=[CALL])],
    ),
    "a part in the text": (
        [user()],
        result("So. Yes.", content_parts=(PlacedPart(position=3, part=REFERENCE),)),
        [user(), assistant([text("So."), REFERENCE, text(" Yes.")])],
    ),
    "a part of a kind that no request has": (
        [user()],
        result("So. Yes.", content_parts=(PlacedPart(position=3, part=UNKNOWN),)),
        [user(), assistant([text("So."), text(" Yes.")])],
    ),
    "a prefix": ([user(), assistant("Well, ", prefix=True)], result("hi."), [user(), assistant("Well, hi.")]),
    "an empty prefix": ([user(), assistant("", prefix=True)], result("hi."), [user(), assistant("hi.")]),
    "a prefix in parts": (
        [user(), assistant([thinking("Hm."), text("Well, ")], prefix=True)],
        result("hi."),
        [user(), assistant([thinking("Hm."), text("Well, hi.")])],
    ),
    "a prefix and a part": (
        [user(), assistant("Well, ", prefix=True)],
        result("hi", content_parts=(PlacedPart(position=2, part=REFERENCE),)),
        [user(), assistant([text("Well, hi"), REFERENCE])],
    ),
    "a turn before": (
        [system("Be brief."), user("1"), assistant("2"), user("3")],
        result("4"),
        [system("Be brief."), user("1"), assistant("2"), user("3"), assistant("4")],
    ),
    "partial text of a failed job": ([user()], result("Hi th", JobStatus.FAILED), [user(), assistant("Hi th")]),
    "partial text of a cancelled job": ([user()], result("Hi th", JobStatus.CANCELLED), [user(), assistant("Hi th")]),
    "text up to a limit": ([user()], result("Hi th", JobStatus.INCOMPLETE), [user(), assistant("Hi th")]),
}


@pytest.mark.parametrize(("messages", "answer", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_the_answer_is_the_last_message(
    messages: list[dict[str, Any]], answer: ChatResult, expected: list[dict[str, Any]]
) -> None:
    request = ChatRequest.parse({"messages": messages})
    said = conversation(request, answer)
    assert wire(said) == expected
    ChatRequest.parse({"messages": [*expected, user()]})  # a request may have them


@pytest.mark.parametrize("status", [one for one in JobStatus if one.terminal])
@pytest.mark.parametrize("fields", [{}, {"content": " \n"}, {"reasoning": "I was about to"}])
def test_without_text_there_is_no_answer(status: JobStatus, fields: dict[str, Any]) -> None:
    """Nothing, blanks, and a thought that led to nothing."""
    given = {"content": "", **fields}
    assert conversation(ChatRequest.parse(make_body()), result(status=status, **given)) is None
    with pytest.raises(InvalidRequest, match="/previousJobId: names a job that ended without text"):
        history(turn(status=status, **given))


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.IN_PROGRESS])
def test_a_job_that_has_not_ended_has_no_answer(status: JobStatus) -> None:
    with pytest.raises(JobRunning, match="previousJobId"):
        history(turn(status=status))


def test_what_is_not_there_is_named_by_the_field_that_asks() -> None:
    """A second door has another name for it."""
    with pytest.raises(ContentDeleted, match="previous_response_id"):
        history(turn(deleted_at=NOW), "previous_response_id")
    with pytest.raises(InvalidRequest, match="/previous_response_id: names a job whose request was not valid"):
        history(ConversationTurn(None, result()), "previous_response_id")


INSTRUCTIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "none": ([user("1"), assistant("2")], [user("3")], [user("1"), assistant("2"), user("3")]),
    "the first ones": (
        [system("a"), user("1"), assistant("2")],
        [user("3")],
        [system("a"), user("1"), assistant("2"), user("3")],
    ),
    "new ones": (
        [user("1"), assistant("2")],
        [system("b"), user("3")],
        [system("b"), user("1"), assistant("2"), user("3")],
    ),
    "other ones": (
        [system("a"), system("a"), user("1"), assistant("2")],
        [system("b"), user("3")],
        [system("b"), user("1"), assistant("2"), user("3")],
    ),
    "later ones stay where they are": (
        [system("a"), user("1"), system("c"), assistant("2")],
        [user("3"), system("d"), user("4")],
        [system("a"), user("1"), system("c"), assistant("2"), user("3"), system("d"), user("4")],
    ),
}


@pytest.mark.parametrize(("before", "new", "expected"), INSTRUCTIONS.values(), ids=INSTRUCTIONS.keys())
def test_system_messages_at_the_beginning_take_the_place_of_the_first(
    before: list[dict[str, Any]], new: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    first, second = (ChatRequest.parse({"messages": [*messages, user()]}).messages[:-1] for messages in (before, new))
    assert wire(joined(first, second)) == expected


def test_a_follow_up_is_stored_with_the_whole_conversation() -> None:
    """Without the name of the previous job, which would bring the messages a second time. The hash is of the body."""
    job = follow_up(follower(), turn(thread="job_0"), MOST)
    assert json.loads(job.request_json or "") == {"messages": [user(), assistant("Hi."), user("And?")]}
    assert job.request is not None
    assert wire(job.request.messages) == [user(), assistant("Hi."), user("And?")]
    assert (job.previous_job_id, job.thread, job.lacks_history) == ("job_1", "job_0", False)
    assert job.body_hash == follower().body_hash
    assert follower().lacks_history


def test_the_first_job_is_the_thread() -> None:
    assert follow_up(follower(), turn(), MOST).thread == "job_1"


def test_a_request_of_a_newer_version_can_be_followed() -> None:
    """Its unknown fields are dropped."""
    stored = json.dumps({"messages": [user()], "field_of_tomorrow": 1})
    assert wire(history(ConversationTurn(stored, result()))) == [user(), assistant("Hi.")]


def test_calls_are_answered_first() -> None:
    called = turn(content="", tool_calls=(ToolCall.model_validate(CALL),))
    with pytest.raises(InvalidRequest, match="/messages/0/role: must be tool"):
        follow_up(follower(user("And?")), called, MOST)
    with pytest.raises(InvalidRequest, match="/messages/0/tool_call_id: must be the id of a call"):
        follow_up(follower({"role": "tool", "content": "sunny", "tool_call_id": "call_2"}), called, MOST)
    answer = {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}
    with pytest.raises(InvalidRequest, match="each of its calls has one answer"):
        follow_up(follower(answer, answer), called, MOST)
    told = follow_up(follower({"role": "system", "content": "Be brief."}, answer), called, MOST)
    assert told.request is not None
    assert [one.role for one in told.request.messages] == ["system", "user", "assistant", "tool"]
    answered = follow_up(follower({"role": "tool", "content": "sunny", "tool_call_id": "call_1"}), called, MOST)
    assert answered.request is not None
    assert [one.role for one in answered.request.messages] == ["user", "assistant", "tool"]


def test_a_conversation_has_limits() -> None:
    """As a request has; the message says what to do."""
    full = turn(*[user()] * 999)
    follow_up(follower(), turn(*[user()] * 998), 100_000)
    for previous, most, why in (
        (full, 100_000, "of 1001 messages, and a request may have 1000; leave the field out and give"),
        (turn(content="x" * 2_000_000), 3_000_000, "of 2000009 characters, and a request may have 2000000"),
        (turn(), 10, "bytes, and a request may have 10;"),
    ):
        with pytest.raises(InvalidRequest, match=f"^/previousJobId: leads to a conversation .*{why}"):
            follow_up(follower(), previous, most)
