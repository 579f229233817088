"""Requests for responses as requests of jobs, and numbers of events: without a service."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatjobs.contracts import MAX_MESSAGES, Channel, ChatRequest, FunctionCall, JobStatus, ToolCall
from chatjobs.errors import InvalidRequest
from chatjobs.sse import Parser
from domain.values import RunRef, Slice, StoredJob, TextRun
from gateway.v1.responses_conversation import check_whole
from gateway.v1.responses_events import ROOM, EventPlace, ResponseFraming, ResponseRestarted
from gateway.v1.responses_input import input_items
from gateway.v1.responses_object import ResponseParts
from gateway.v1.responses_request import (
    PARAMETERS,
    REFUSALS,
    EarlierTurns,
    ResponseRequest,
    ResponseSettings,
    Use,
    parsed_request,
    settings_of,
    translated,
)

MODEL = "mistral-small-latest"
CALL = {"type": "function_call", "call_id": "abcdefghi", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "abcdefghi", "output": "1"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm", "annotations": []}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "So"}]}
USER = {"role": "user", "content": "Hi"}


def messages(*items: Any) -> list[dict[str, Any]]:
    """The messages of a job's request for these items, which ChatRequest accepts."""
    body = {"model": MODEL, "input": [*items]}
    job = translated(parsed_request(body), body).body
    ChatRequest.parse(job)
    found: list[dict[str, Any]] = job["messages"]
    return found


# ----------------------------------------------------------------------------------------------- requests


def test_every_parameter_has_its_use() -> None:
    """What is translated or repeated has a type, and what is refused has a reason."""
    modelled = {name for name, use in PARAMETERS.items() if use in (Use.TRANSLATED, Use.ECHOED)}
    assert modelled == set(ResponseRequest.model_fields)
    assert {name for name, use in PARAMETERS.items() if use is Use.REFUSED} == set(REFUSALS)


@pytest.mark.parametrize("name", [name for name, use in PARAMETERS.items() if use is Use.IGNORED])
def test_ignored_parameters_change_nothing(name: str) -> None:
    body = {"model": MODEL, "input": "Hi"}
    plain = translated(parsed_request(body), body)
    more: dict[str, Any] = body | {name: ["anything"]}
    assert translated(parsed_request(more), more).body == plain.body


def test_items_of_one_answer_are_one_message() -> None:
    found = messages(
        USER, THOUGHT, SAID, CALL, {**CALL, "call_id": "bcdefghij"}, OUTPUT, {**OUTPUT, "call_id": "bcdefghij"}
    )
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "tool"]
    assert [part["type"] for part in found[1]["content"]] == ["thinking", "text"]
    assert [call["id"] for call in found[1]["tool_calls"]] == ["abcdefghi", "bcdefghij"]
    assert [message["name"] for message in found[2:]] == ["f", "f"]


def test_an_answer_after_a_call_is_another_message() -> None:
    found = messages(USER, CALL, OUTPUT, SAID, USER)
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant", "user"]
    assert found[3]["content"] == "Hm"


def test_reasoning_without_a_text_is_dropped() -> None:
    """As a reasoning item that OpenAI has encrypted."""
    encrypted = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    assert messages(USER, encrypted, SAID, USER)[1]["content"] == "Hm"


def test_instructions_behind_an_answer_join_those_at_the_beginning() -> None:
    """Where Mistral would refuse them; listed as what they were."""
    body = {
        "model": MODEL,
        "input": [USER, SAID, {"role": "developer", "content": "Rhyme."}, USER],
        "instructions": "A",
    }
    found = translated(parsed_request(body), body)
    request = ChatRequest.parse(found.body)
    assert [message.role for message in request.messages] == ["system", "system", "user", "assistant", "user"]
    items = input_items("job", request.messages, found.settings.developers, found.settings.calls)
    assert [item["role"] for item in items] == ["system", "developer", "user", "assistant", "user"]


def test_instructions_keep_their_order_and_their_items() -> None:
    """Also those of an earlier conversation, and those in front of an answer, which stay where they are."""
    earlier = EarlierTurns([{"role": "system", "content": "0"}, {"role": "user", "content": "1"}], [0])
    given = [("system", "2"), ("assistant", "3"), ("developer", "4"), ("user", "5"), ("system", "6"), ("user", "7")]
    body = {
        "model": MODEL,
        "input": [{"role": role, "content": text} for role, text in given],
        "instructions": "A",
    }
    found = translated(parsed_request(body), body, earlier)
    assert [message["content"] for message in found.body["messages"]] == ["A", "0", "4", "6", "1", "2", "3", "5", "7"]
    assert found.settings.developers == (1, 2)
    assert found.places == {2: 2, 3: 4, 5: 0, 6: 1, 7: 3, 8: 5}


@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_too_many_messages_are_refused_while_they_are_collected(role: str) -> None:
    """The messages of an input are as many as a job may have; what earlier turns add is judged with the whole."""
    body = {"model": MODEL, "input": [USER, SAID, *[{"role": role, "content": "x"}] * (MAX_MESSAGES - 3), USER]}
    earlier = EarlierTurns([USER])
    assert len(translated(parsed_request(body), body, earlier).body["messages"]) == MAX_MESSAGES + 1
    body["input"] = [USER, *body["input"]]
    with pytest.raises(InvalidRequest, match=r"^/input: must lead to at most 1000 messages"):
        translated(parsed_request(body), body, earlier)


def test_a_conversation_with_its_earlier_turns_has_the_limits_of_a_request() -> None:
    body: dict[str, Any] = {"model": MODEL, "input": "And?"}

    def check(earlier: list[dict[str, Any]], most_bytes: int = 10_000_000) -> None:
        check_whole(translated(parsed_request(body), body, EarlierTurns(earlier)), most_bytes)

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    seen = {"role": "user", "content": [{"type": "text", "text": "é" * 100}, image]}
    check([USER] * (MAX_MESSAGES - 1))
    check([seen], 10_500)
    for earlier, most, why in (
        ([USER] * MAX_MESSAGES, 10_000_000, "1001 messages, and a request may have 1000; leave the field out and give"),
        ([{"role": "user", "content": "x" * 2_000_000}], 10_000_000, "2000004 characters, and a request may have"),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 2_000_000}]}], 10_000_000, "2000004 characters"),
        ([seen], 10_000, "bytes, and a request may have 10000; .* in input$"),
    ):
        with pytest.raises(InvalidRequest, match=f"^/previous_response_id: leads to a conversation of .*{why}"):
            check(earlier, most)


def test_a_problem_names_the_item_that_has_it() -> None:
    body = {"model": MODEL, "input": [USER, SAID, {"role": "user", "content": [{"type": "input_image"}]}]}
    with pytest.raises(InvalidRequest) as refused:
        parsed_request(body)
    assert refused.value.problems[0].pointer.startswith("/input/2/content/0")


def test_items_come_back_as_they_were_given() -> None:
    """After translation, storage and translation back; only ids are new."""
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "high"}
    document = {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}
    file = {"type": "input_file", "file_id": "0123"}
    asked = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "See"}, image, document, file],
    }
    call = CALL | {"call_id": "call_of-another-api"}
    output = OUTPUT | {"call_id": "call_of-another-api"}
    given_items = [asked, {k: v for k, v in THOUGHT.items() if k != "id"}, SAID, call, output]
    body = {"model": MODEL, "input": given_items}
    found = translated(parsed_request(body), body)
    stored = ChatRequest.model_validate_json(ChatRequest.parse(found.body).model_dump_json(exclude_unset=True))
    items = input_items("job", stored.messages, found.settings.developers, found.settings.calls)
    assert len({item.pop("id") for item in items}) == len(items)
    assert [{k: v for k, v in item.items() if k != "status"} for item in items] == given_items


def test_settings_are_as_small_as_their_request() -> None:
    body = {"model": MODEL, "input": "Hi " * 10_000}
    assert len(translated(parsed_request(body), body).settings.model_dump_json()) < 1_000


# ------------------------------------------------------------------------------------------------- events


def job(position: int, status: JobStatus = JobStatus.COMPLETED, calls: int = 0) -> StoredJob:
    function = FunctionCall(name="f", arguments="{}")
    return StoredJob(
        job_id="job_1",
        request_id="r",
        status=status,
        model=MODEL,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        position=position,
        tool_calls=tuple(ToolCall(id=f"call{n:05}", function=function) for n in range(calls)) or None,
        run=RunRef("job_1"),
    )


def sliced(runs: list[TextRun], position: int, *, epoch: int = 1, reset: bool = False) -> Slice:
    return Slice("job_1", epoch, position, tuple(runs), reset, JobStatus.IN_PROGRESS, 1, None, True)


def as_runs(texts: list[tuple[Channel, str]]) -> list[TextRun]:
    """Texts as a transcript has them, neighbours of one channel joined."""
    runs: list[TextRun] = []
    for channel, text in texts:
        if runs and runs[-1].channel is channel:
            last = runs.pop()
            runs.append(last._replace(text=last.text + text, position=last.position + len(text)))
        else:
            runs.append(TextRun((runs[-1].position if runs else 0) + len(text), channel, text, 0))
    return runs


def events(
    framing: ResponseFraming, deltas: list[TextRun], ended: StoredJob, runs: list[TextRun]
) -> list[dict[str, Any]]:
    framing.whole = runs
    blocks = framing.opening() + b"".join(framing.encoded(sliced([one], one.position)) for one in deltas)
    if not deltas:
        blocks += framing.encoded(sliced([], 0))
    return [json.loads(event.data) for event in Parser().feed(blocks + framing.ending(ended))]


TEXTS = st.lists(
    st.tuples(st.sampled_from(Channel), st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)), max_size=8
)
SETTINGS = ResponseSettings(echo={})


@given(
    TEXTS,
    st.sampled_from([JobStatus.COMPLETED, JobStatus.INCOMPLETE, JobStatus.FAILED, JobStatus.CANCELLED]),
    st.integers(0, 3),
    st.data(),
)
def test_numbers_are_the_same_however_the_text_came(
    texts: list[tuple[Channel, str]], status: JobStatus, calls: int, data: st.DataObject
) -> None:
    """Written letter by letter, in deltas, or whole, and read from any number on: the same events but for the deltas,
    which join to the same text, with numbers that grow."""
    runs, position = as_runs(texts), sum(len(text) for _, text in texts)
    ended = job(position, status, calls)
    parts = ResponseParts(ended, SETTINGS)
    deltas, at = [], 0
    for channel, text in texts:
        at += len(text)
        deltas.append(TextRun(at, channel, text, 0))
    live = events(ResponseFraming(parts, None), deltas, ended, runs)
    late = events(ResponseFraming(parts, None), runs, ended, runs)
    assert rest_of(live, -1) == rest_of(late, -1)
    assert [event["type"] for event in rest_of(late, -1)] == expected_kinds(runs, status, calls)
    numbers = [event["sequence_number"] for event in live]
    assert numbers == sorted(set(numbers))
    assert all(number % 2 == 0 for number in numbers)

    number = data.draw(st.integers(0, numbers[-1] + 2))
    place = EventPlace.of(number)
    read = [one for one in as_runs(cut(texts, 0, place.position)) if one.text] if place.has_text else []
    lacking = as_runs_from(cut(texts, place.position if place.has_text else 0, position), position)
    resumed = events(ResponseFraming(parts, place, read), lacking, ended, runs)
    assert rest_of(resumed, number) == rest_of(late, number)
    for kind in ("response.output_text.delta", "response.reasoning_summary_text.delta"):
        channel = Channel.CONTENT if "output" in kind else Channel.REASONING
        already = "".join(one.text for one in read if one.channel is channel)
        whole = "".join(text for its, text in texts if its is channel)
        assert already + "".join(e["delta"] for e in resumed if e["type"] == kind) == whole


def expected_kinds(runs: list[TextRun], status: JobStatus, calls: int) -> list[str]:
    """The events of a stream in OpenAI's order, without the deltas of texts."""
    whole = status in (JobStatus.COMPLETED, JobStatus.INCOMPLETE)
    kinds = ["created", "queued", "in_progress"]
    for number, run in enumerate(runs, 1):
        text = run.channel is Channel.CONTENT
        part, done = ("content_part", "output_text") if text else ("reasoning_summary_part", "reasoning_summary_text")
        kinds += ["output_item.added", f"{part}.added"]
        if number < len(runs) or whole:
            kinds += [f"{done}.done", f"{part}.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    kinds += call * calls if whole else []
    return [f"response.{kind}" for kind in (*kinds, "failed" if status is JobStatus.CANCELLED else status.value)]


def cut(texts: list[tuple[Channel, str]], start: int, end: int) -> list[tuple[Channel, str]]:
    letters = [(channel, letter) for channel, text in texts for letter in text]
    return letters[start:end]


def as_runs_from(texts: list[tuple[Channel, str]], position: int) -> list[TextRun]:
    before = position - sum(len(text) for _, text in texts)
    return [one._replace(position=one.position + before) for one in as_runs(texts)]


def rest_of(found: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [e for e in found if e["sequence_number"] > number and not e["type"].endswith("text.delta")]


def test_an_error_has_the_number_after_the_last_event() -> None:
    """Whoever goes on from the error's number misses nothing."""
    framing = ResponseFraming(ResponseParts(job(3, JobStatus.IN_PROGRESS), SETTINGS), None)
    framing.opening()
    framing.encoded(sliced([TextRun(3, Channel.CONTENT, "abc", 1)], 3))
    (error,) = Parser().feed(framing.broken_off("stream_interrupted", "Go on"))
    document = json.loads(error.data)
    assert document["sequence_number"] == 4 * ROOM + 1
    assert EventPlace.of(document["sequence_number"]).position == 3
    assert document["error"]["message"] == document["message"] == "Go on"


def test_text_of_another_epoch_is_never_added() -> None:
    framing = ResponseFraming(ResponseParts(job(3, JobStatus.IN_PROGRESS), SETTINGS), None)
    framing.encoded(sliced([TextRun(3, Channel.CONTENT, "abc", 1)], 3))
    with pytest.raises(ResponseRestarted):
        framing.encoded(sliced([TextRun(1, Channel.CONTENT, "x", 1)], 1, epoch=2, reset=True))


def test_the_settings_of_any_job_are_those_of_a_response() -> None:
    """Both ways lead to the same repeated parameters."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "description": "d", "strict": True}
    body: dict[str, Any] = {
        "model": MODEL,
        "input": "Hi",
        "background": True,
        "temperature": 0.5,
        "max_output_tokens": 7,
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        "reasoning": {"effort": "high"},
    }
    found = translated(parsed_request(body), body)
    derived = settings_of(ChatRequest.parse(found.body))
    given_echo = {name: value for name, value in found.settings.echo.items() if value is not None}
    derived_echo = {name: value for name, value in derived.echo.items() if value is not None}
    assert derived_echo == given_echo
