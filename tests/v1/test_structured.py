"""Structured answers on ``/v1``: what an official client parses, and the error of an answer that does not match."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx2
import mistralai.client as mistralai
import pytest
from mistralai.extra.utils.response_format import response_format_from_pydantic_model
from pydantic import BaseModel

from tests.support.gateway import Gateway
from tests.support.simulator_process import prompt
from tests.v1.test_chat import PATH, ask, body, chunks, text_of


class City(BaseModel):
    name: str
    people: int


RIGHT, WRONG = '{"name": "Lyon", "people": 520774}', '{"name": "Lyon", "people": "many"}'
WANTED: Any = response_format_from_pydantic_model(City)


@pytest.mark.parametrize("script", [{"text": RIGHT}, {"text": WRONG, "repairs": [{"text": RIGHT}]}])
def test_mistrals_client_parses_what_was_repaired(door: Gateway, script: dict[str, Any]) -> None:
    """``chat.parse`` of the official client, which sends the schema that it makes of a pydantic model."""
    client = mistralai.Mistral(api_key="any key will do", server_url=door.url)
    message = {"role": "user", "content": prompt("city", **script)}
    answer = client.chat.parse(City, model="mistral-small-latest", messages=[message])
    assert answer.choices is not None
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.parsed == City(name="Lyon", people=520774)


def streamed(http: httpx2.Client, words: str, headers: dict[str, str] | None = None, **fields: Any) -> list[Any]:
    """The data of all frames of a stream, which ends with an error and without the end of its body."""
    asked, text = body(words, stream=True, response_format=WANTED, **fields), ""
    with suppress(httpx2.RemoteProtocolError), http.stream("POST", PATH, json=asked, headers=headers) as answer:
        for piece in answer.iter_text():
            text += piece
    return chunks(text)


def test_an_answer_that_does_not_match_is_an_error(http: httpx2.Client) -> None:
    """With the code and the place; behind text that was streamed it is the last frame."""
    words = prompt("city", text=WRONG)
    answer = ask(http, words, response_format=WANTED, maxRepairs=0)
    assert (answer.status_code, answer.json()["code"]) == (502, "schema_mismatch")
    assert answer.json()["message"].endswith("/people must be of type integer")
    found = streamed(http, prompt("city", text=WRONG), maxRepairs=0)
    assert text_of([one for one in found if "choices" in one]) == WRONG
    assert found[-1]["code"] == "schema_mismatch"


def test_a_repair_ends_the_stream_of_the_wrong_answer(http: httpx2.Client) -> None:
    """Text that was streamed cannot be taken back; the job goes on, and the same request with its key gets its end."""
    words = prompt("city", text=WRONG, repairs=[{"text": RIGHT}], tokens_per_second=30)
    headers = {"Idempotency-Key": words.split()[1]}
    assert streamed(http, words, headers)[-1]["code"] == "answer_restarted"
    (whole,) = [one for one in [streamed(http, words, headers)] if one]
    assert json.loads(text_of([one for one in whole if one != "[DONE]"])) == json.loads(RIGHT)
    assert whole[-1] == "[DONE]"


def test_a_schema_that_cannot_be_checked(http: httpx2.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = ask(http, prompt(), response_format=wanted)
    assert answer.status_code == 422
    assert answer.json()["param"] == "response_format.json_schema.schema.properties.a.$ref"
    form = {"type": "json_schema", "name": "a", "schema": schema}
    answer = http.post("/v1/responses", json={"model": "mistral-small-latest", "input": "Hi", "text": {"format": form}})
    assert answer.status_code in (400, 422)
    assert "schema" in answer.json()["error"]["param"]


def test_a_response_that_does_not_match(http: httpx2.Client) -> None:
    form = {"type": "json_schema", "name": "city", "schema": WANTED["json_schema"]["schema"]}
    asked = {"model": "mistral-small-latest", "input": prompt("city", text=WRONG), "text": {"format": form}}
    answer = http.post("/v1/responses", json=asked)
    document = answer.json()
    assert "schema_mismatch" in json.dumps(document)
    assert document.get("status") in (None, "failed")
