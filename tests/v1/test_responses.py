"""Responses as the official OpenAI clients use them: created, read, listed, cancelled, deleted, and refused."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx2
import pytest

from tests.support.gateway import Gateway
from tests.support.simulator_process import prompt
from tests.support.stack import Stack
from tests.v1.openai_clients import ClientError, OpenAIClient

pytestmark = pytest.mark.long

MODEL = "mistral-small-latest"
TEXT = "The tide turns at noon, and the boats come home."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def ended(openai: OpenAIClient, response_id: str) -> dict[str, Any]:
    """The response once it has ended."""
    *_, last = openai.events("responses.retrieve", response_id, stream=True)
    response: dict[str, Any] = last["response"]
    return response


def text_of(response: dict[str, Any]) -> str:
    return "".join(p["text"] for item in response["output"] if item["type"] == "message" for p in item["content"])


def sent(service: Stack, words: str) -> dict[str, Any]:
    """The parameters of the one request that the model's server got with these words."""
    (request,) = service.simulator.requests(words)
    parameters: dict[str, Any] = request["parameters"]
    return parameters


def messages_of(door: Gateway, response: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the job of a response sends to the model's server."""
    asked = httpx2.get(f"{door.url}/api/jobs/{response['id'].removeprefix('resp_')}/request").json()
    messages: list[dict[str, Any]] = asked["messages"]
    return messages


# ------------------------------------------------------------------------------------------------- creating


def test_a_background_response_is_there_at_once_and_ends(openai: OpenAIClient, service: Stack, door: Gateway) -> None:
    """`create(background=True)`, then `retrieve` until the status is terminal, as OpenAI's guide does it."""
    words = prompt(text=TEXT, hold=3)
    created = openai.call(
        "responses.create",
        model=MODEL,
        input=words,
        background=True,
        instructions="Be brief.",
        metadata={"order": "42"},
        temperature=0.2,
        top_p=0.9,
        max_output_tokens=300,
        user="someone",
        truncation="auto",
        service_tier="flex",
        include=["reasoning.encrypted_content"],
    )
    assert created["id"].startswith("resp_")
    assert created["status"] in ("queued", "in_progress")
    assert created["background"] is True
    service.simulator.release(words[:32])
    final = ended(openai, created["id"])
    again = openai.call("responses.retrieve", created["id"])
    assert {k: v for k, v in again.items() if k != "output_text"} == {
        k: v for k, v in final.items() if k != "output_text"
    }
    assert again["status"] == "completed"
    assert again["completed_at"] >= again["created_at"]
    assert openai.answer["output_text"] == TEXT
    assert again["instructions"] == "Be brief."
    assert again["metadata"] == {"order": "42"}
    assert (again["temperature"], again["top_p"], again["max_output_tokens"]) == (0.2, 0.9, 300)
    assert (again["user"], again["truncation"], again["service_tier"]) == ("someone", "disabled", "default")
    assert (again["tools"], again["tool_choice"], again["parallel_tool_calls"]) == ([], "auto", True)
    assert again["usage"]["total_tokens"] == again["usage"]["input_tokens"] + again["usage"]["output_tokens"]
    body = sent(service, words)
    assert [message["role"] for message in messages_of(door, created)] == ["system", "user"]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.2, 0.9, 300)
    assert not body.keys() & {"user", "truncation", "include", "service_tier", "metadata", "background", "store"}


def test_without_background_the_answer_comes_whole(openai: OpenAIClient) -> None:
    response = openai.call("responses.create", model=MODEL, input=prompt(text=TEXT))
    assert (response["status"], response["background"]) == ("completed", False)
    assert openai.answer["output_text"] == TEXT


def test_streamed_events_build_the_final_response(openai: OpenAIClient) -> None:
    """`create(stream=True)`: the events in OpenAI's order, with numbers that grow."""
    events = [*openai.events("responses.create", model=MODEL, input=prompt(text=TEXT), stream=True)]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    kinds = [event["type"] for event in events if not event["type"].endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == TEXT
    done = {event["type"]: event for event in events}
    assert done["response.output_text.done"]["text"] == TEXT
    assert done["response.output_item.done"]["item"] == done["response.completed"]["response"]["output"][0]


def test_the_helper_accumulates_what_the_final_response_says(openai: OpenAIClient) -> None:
    """`client.responses.stream(…)`: its snapshots end as the final response."""
    words = prompt(text=TEXT, reasoning="Let me think about boats.", tokens_per_second=200)
    events = [*openai.events("responses.stream", model="magistral-small-latest", input=words)]
    final = openai.answer["result"]
    snapshots = [
        event["snapshot"] for event in events if event["type"] == "response.output_text.delta" and "snapshot" in event
    ]
    assert snapshots[-1:] in ([TEXT], [])  # that for Node gives none with its events
    assert text_of(final) == TEXT
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]


def test_the_helper_follows_a_response_from_any_event(openai: OpenAIClient) -> None:
    """`client.responses.stream(response_id=…, starting_after=n)`."""
    created = openai.call("responses.create", model=MODEL, input=prompt(text=TEXT))
    follow = {"response_id": created["id"], "starting_after": 4}
    events = [*openai.events("responses.stream", **follow)]
    assert text_of(openai.answer["result"]) == TEXT
    assert events[0]["type"] == "response.output_item.added"


def test_an_idempotency_key_repeats_the_response(openai: OpenAIClient, service: Stack) -> None:
    """The same request again, streamed or not, is the same response from its beginning: the model is called once."""
    words, headers = prompt(text=TEXT), {"Idempotency-Key": uuid.uuid4().hex}
    first = openai.call("responses.create", model=MODEL, input=words, headers=headers)
    *_, last = openai.events("responses.create", model=MODEL, input=words, stream=True, headers=headers)
    assert last["response"]["id"] == first["id"]
    assert text_of(last["response"]) == TEXT
    assert len(service.simulator.requests(words)) == 1
    with pytest.raises(ClientError) as refused:
        openai.call("responses.create", model=MODEL, input=words, user="another", headers=headers)
    assert (refused.value.status, refused.value.code) == (400, "idempotency_mismatch")


# ---------------------------------------------------------------------------------------- what is in an answer


def test_functions_are_called_and_their_outputs_given_back(openai: OpenAIClient, door: Gateway) -> None:
    """A whole turn with a tool, first by `previous_response_id`, then with all items in `input`."""
    words = prompt(tool_calls=[{"name": "get_weather", "arguments": {"city": "Lyon"}}], text="Let me see.")
    events = [
        *openai.events(
            "responses.create", model=MODEL, input=words, tools=[WEATHER], tool_choice="required", stream=True
        )
    ]
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["message", "function_call"]
    call = final["output"][1]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Lyon"})
    assert [e["type"] for e in events if e.get("output_index") == 1] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert (final["tools"], final["tool_choice"]) == ([WEATHER], "required")

    output = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky": "blue"}'}
    chained = openai.call(
        "responses.create", model=MODEL, input=[output], previous_response_id=final["id"], tools=[WEATHER]
    )
    items = [{"role": "user", "content": words}, *final["output"], output]
    given = openai.call("responses.create", model=MODEL, input=items, tools=[WEATHER])
    for response in (chained, given):
        assert response["status"] == "completed"
        messages = messages_of(door, response)
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
        assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == call["call_id"]


def test_calls_with_ids_of_another_api_are_taken(strict: OpenAIClient, door: Gateway) -> None:
    """Mistral wants ids of nine letters and digits; callers see their own."""
    words = prompt(text=TEXT)
    items = [
        {"role": "user", "content": words},
        {"type": "function_call", "call_id": "call_abc-123", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_abc-123", "output": "rain"},
    ]
    response = strict.call("responses.create", model=MODEL, input=items, tools=[WEATHER])
    messages = messages_of(door, response)
    assert len(messages[1]["tool_calls"][0]["id"]) == 9
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"]
    listed = strict.call("responses.input_items.list", response["id"], order="asc")
    assert [item.get("call_id") for item in listed] == [None, "call_abc-123", "call_abc-123"]


def test_an_answer_in_json_is_parsed(strict: OpenAIClient, service: Stack) -> None:
    """`responses.parse` with a pydantic model, which becomes a JSON schema."""
    words = prompt(text='{"city": "Lyon", "people": 522250}')
    response = strict.call("responses.parse", model=MODEL, input=words, parsed=True)
    assert strict.answer["parsed"] == {"city": "Lyon", "people": 522250}
    assert response["text"]["format"]["type"] == "json_schema"
    wanted = sent(service, words)["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["strict"] is True
    assert set(wanted["json_schema"]["schema"]["properties"]) == {"city", "people"}


def test_reasoning_is_an_item_of_its_own(openai: OpenAIClient, service: Stack, door: Gateway) -> None:
    """Thoughts come as the summary of a reasoning item, and may be given back."""
    words = prompt(text=TEXT, reasoning="Let me think about boats.")
    model, reasoning = "magistral-small-latest", {"effort": "high", "summary": "auto"}
    events = [*openai.events("responses.create", model=model, input=words, reasoning=reasoning, stream=True)]
    final = events[-1]["response"]
    thought, message = final["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "Let me think about boats."}]
    assert message["content"][0]["text"] == TEXT
    assert final["reasoning"] == reasoning
    assert [e["type"] for e in events if e.get("output_index") == 0 and not e["type"].endswith("delta")] == [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
    ]
    items = [{"role": "user", "content": words}, *final["output"], {"role": "user", "content": f"Again: {words}"}]
    again = openai.call("responses.create", model=model, input=items)
    assert again["status"] == "completed"
    assert service.simulator.requests(words)[0]["parameters"]["reasoning_effort"] == "high"
    assert [part["type"] for part in messages_of(door, again)[1]["content"]] == ["thinking", "text"]


def test_images_and_documents_reach_the_model(openai: OpenAIClient, door: Gateway) -> None:
    words = prompt(text=TEXT)
    content = [
        {"type": "input_text", "text": words},
        {"type": "input_image", "image_url": PIXEL, "detail": "low"},
        {"type": "input_file", "file_url": "https://example.com/report.pdf", "filename": "report.pdf"},
    ]
    response = openai.call("responses.create", model=MODEL, input=[{"role": "user", "content": content}])
    assert response["status"] == "completed"
    assert messages_of(door, response)[0]["content"] == [
        {"type": "text", "text": words},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "document_url", "document_url": "https://example.com/report.pdf", "document_name": "report.pdf"},
    ]
    (item,) = openai.call("responses.input_items.list", response["id"])
    assert item["content"] == content


def test_a_conversation_goes_on_from_a_response(openai: OpenAIClient, door: Gateway) -> None:
    """`previous_response_id`: the earlier items and the answer, without the earlier instructions."""
    words = prompt(text=TEXT)
    items = [{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": words}]
    first = openai.call("responses.create", model=MODEL, input=items, instructions="Old.")
    second = openai.call(
        "responses.create",
        model=MODEL,
        input=f"And then? {words}",
        instructions="New.",
        previous_response_id=first["id"],
    )
    third = openai.call("responses.create", model=MODEL, input=f"Really? {words}", previous_response_id=second["id"])
    assert second["previous_response_id"] == first["id"]
    sent_second, sent_third = messages_of(door, second), messages_of(door, third)
    assert [m["content"] for m in sent_second] == ["New.", "Rhyme.", words, TEXT, f"And then? {words}"]
    assert [m["content"] for m in sent_third][:4] == ["Rhyme.", words, TEXT, f"And then? {words}"]
    listed = openai.call("responses.input_items.list", third["id"], order="asc", limit=2)
    assert [item["role"] for item in listed] == ["developer", "user", "assistant", "user", "assistant", "user"]
    assert len({item["id"] for item in listed}) == 6
    newest_first = openai.call("responses.input_items.list", third["id"])
    assert [item["id"] for item in newest_first] == [item["id"] for item in listed][::-1]


def test_parameters_of_mistrals_and_of_this_service_are_passed_on(strict: OpenAIClient, service: Stack) -> None:
    words = prompt(text=TEXT)
    more = {"random_seed": 7, "safe_prompt": True, "limits": {"totalSeconds": 60}}
    response = strict.call("responses.create", model=MODEL, input=words, background=True, extra_body=more)
    assert ended(strict, response["id"])["status"] == "completed"
    assert (sent(service, words)["random_seed"], sent(service, words)["safe_prompt"]) == (7, True)


def test_parameters_that_nobody_knows_reach_the_models_server(strict: OpenAIClient) -> None:
    """Which says what it thinks of them, as Mistral's does."""
    response = strict.call("responses.create", model=MODEL, input=prompt(text=TEXT), extra_body={"brand_new": 1})
    assert (response["status"], response["error"]["code"]) == ("failed", "invalid_prompt")


# ------------------------------------------------------------------------------------------------- endings


def test_a_length_limit_makes_it_incomplete(openai: OpenAIClient) -> None:
    events = [
        *openai.events("responses.create", model=MODEL, input=prompt(tokens=40), max_output_tokens=16, stream=True)
    ]
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 16


@pytest.mark.parametrize(("status", "code"), [(400, "invalid_prompt"), (401, "server_error")])
def test_a_refusal_of_the_models_server_makes_it_failed(openai: OpenAIClient, status: int, code: str) -> None:
    words = prompt(faults=[{"kind": status, "message": "No."}])
    events = [*openai.events("responses.create", model=MODEL, input=words, background=True, stream=True)]
    assert [event["type"] for event in events][-1] == "response.failed"
    response = openai.call("responses.retrieve", events[-1]["response"]["id"])
    assert (response["status"], response["error"]["code"], response["output"]) == ("failed", code, [])
    assert response["error"]["message"]


def test_a_response_is_cancelled(openai: OpenAIClient, service: Stack) -> None:
    """Cancelling keeps the output so far, may be repeated, and ends the streams."""
    words = prompt(text=TEXT, hold=4)
    created = openai.call("responses.create", model=MODEL, input=words, background=True)
    wait_for_text(openai, created["id"])
    cancelled = openai.call("responses.cancel", created["id"])
    assert cancelled["status"] == "cancelled"
    assert TEXT.startswith(text_of(cancelled))
    assert text_of(cancelled)
    assert cancelled["output"][0]["status"] == "incomplete"
    assert openai.call("responses.cancel", created["id"])["status"] == "cancelled"
    *_, last = openai.events("responses.retrieve", created["id"], stream=True)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")


def wait_for_text(openai: OpenAIClient, response_id: str) -> None:
    *_, last = openai.events("responses.retrieve", response_id, stream=True, stop_after=6)
    assert last["type"] == "response.output_text.delta"


def test_an_ended_response_is_not_cancelled(openai: OpenAIClient) -> None:
    response = openai.call("responses.create", model=MODEL, input=prompt(text=TEXT))
    with pytest.raises(ClientError) as refused:
        openai.call("responses.cancel", response["id"])
    assert (refused.value.status, refused.value.code) == (400, "response_finished")


def test_a_deleted_response_is_gone(openai: OpenAIClient, door: Gateway) -> None:
    response = openai.call("responses.create", model=MODEL, input=prompt(text=TEXT))
    openai.call("responses.delete", response["id"])
    for method in ("retrieve", "cancel", "delete", "input_items.list"):
        with pytest.raises(ClientError) as missing:
            openai.call(f"responses.{method}", response["id"])
        assert (missing.value.name, missing.value.status) == ("NotFoundError", 404)
    with pytest.raises(ClientError) as missing:
        openai.call("responses.create", model=MODEL, input="Go on", previous_response_id=response["id"])
    assert missing.value.code == "previous_response_not_found"


def test_delete_says_what_openai_says(strict: OpenAIClient, door: Gateway) -> None:
    response = strict.call("responses.create", model=MODEL, input=prompt(text=TEXT))
    answer = httpx2.delete(f"{door.url}/v1/responses/{response['id']}")
    assert answer.json() == {"id": response["id"], "object": "response", "deleted": True}


def test_what_is_not_stored_is_deleted_once_delivered(openai: OpenAIClient, door: Gateway) -> None:
    """`store: false`: the content is gone from this service, too; the row of the job stays."""
    whole = openai.call("responses.create", model=MODEL, input=prompt(text=TEXT), store=False)
    *_, last = openai.events("responses.create", model=MODEL, input=prompt(text=TEXT), store=False, stream=True)
    for response in (whole, last["response"]):
        assert text_of(response) == TEXT
        with pytest.raises(ClientError) as missing:
            openai.call("responses.retrieve", response["id"])
        assert missing.value.status == 404
        job = wait_until_deleted(door, response["id"].removeprefix("resp_"))
        assert job["content"] is None


def wait_until_deleted(door: Gateway, job_id: str) -> dict[str, Any]:
    """It is deleted after the last byte was sent."""
    for _ in range(100):
        job: dict[str, Any] = httpx2.get(f"{door.url}/api/jobs/{job_id}").json()
        if "deletedAt" in job:
            return job
        time.sleep(0.05)
    raise AssertionError("the content stays")


def test_any_job_is_a_response(strict: OpenAIClient, door: Gateway) -> None:
    """A job that was made in another way is read as a response all the same."""
    body = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt(text=TEXT)}],
        "temperature": 0.5,
        "max_tokens": 99,
    }
    job = httpx2.post(f"{door.url}/api/jobs", json=body, headers={"Prefer": "wait=30"}).json()
    response = strict.call("responses.retrieve", f"resp_{job['jobId']}")
    assert text_of(response) == TEXT
    assert (response["temperature"], response["max_output_tokens"], response["background"]) == (0.5, 99, True)
    listed = strict.call("responses.input_items.list", response["id"], order="asc")
    assert [item["role"] for item in listed] == ["system", "user"]


def test_an_answer_continues_after_its_worker_was_killed(openai: OpenAIClient, service: Stack) -> None:
    """kill -9 in mid-stream: the reader's stream goes on, the words it has stay valid, none comes twice."""
    words = prompt(text=TEXT, hold=5)
    events = openai.events("responses.create", model=MODEL, input=words, background=True, stream=True)
    seen = [next(events)]
    while seen[-1]["type"] != "response.output_text.delta":
        seen.append(next(events))
    service.workers[0].kill()
    service.workers[0].start()
    service.simulator.release(words[:32])
    seen += events
    numbers = [event["sequence_number"] for event in seen]
    assert numbers == sorted(set(numbers))
    assert "".join(e["delta"] for e in seen if e["type"] == "response.output_text.delta") == TEXT
    assert (seen[-1]["type"], text_of(seen[-1]["response"])) == ("response.completed", TEXT)
    assert len(service.simulator.requests(words)) == 2


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "name": "", "parameters": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"store": False, "background": True}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "input"),
        (
            {
                "input": [
                    {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
                    {"role": "user", "content": "And?"},
                ]
            },
            "input",
        ),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ({"extra_body": {"webhook": {"url": "https://example.com/"}}, "store": False}, "store"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_done_is_refused(strict: OpenAIClient, params: dict[str, Any], param: str) -> None:
    """A 400 in OpenAI's form that names the parameter, and repeats nothing of it."""
    with pytest.raises(ClientError) as refused:
        strict.call("responses.create", **{"model": MODEL, "input": "Hello", **params})
    assert (refused.value.name, refused.value.status) == ("BadRequestError", 400)
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert refused.value.body["type"] == "invalid_request_error"


def test_a_running_response_has_no_successor(strict: OpenAIClient, service: Stack) -> None:
    words = prompt(text=TEXT, hold=2)
    created = strict.call("responses.create", model=MODEL, input=words, background=True)
    with pytest.raises(ClientError) as refused:
        strict.call("responses.create", model=MODEL, input="Go on", previous_response_id=created["id"])
    assert (refused.value.status, refused.value.code) == (409, "job_running")
    strict.call("responses.cancel", created["id"])


def test_unknown_ids_are_not_found(strict: OpenAIClient) -> None:
    for unknown in ("resp_none", "chatcmpl-1", "input_tokens"):
        with pytest.raises(ClientError) as missing:
            strict.call("responses.retrieve", unknown)
        assert (missing.value.status, missing.value.code) == (404, "response_not_found")
