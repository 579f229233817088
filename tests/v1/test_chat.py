"""``POST /v1/chat/completions`` on the wire: what is a job of it, how it fails, and how it is read again."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx2
import pytest

from tests.support.fakes import eventually
from tests.support.gateway import Gateway, alone, gateway
from tests.support.receiver import receiver
from tests.support.simulator_process import SimulatorProcess, prompt
from tests.support.stack import Stack

PATH = "/v1/chat/completions"


def body(words: str, **fields: Any) -> dict[str, Any]:
    return {"model": "mistral-small-latest", "messages": [{"role": "user", "content": words}], **fields}


def ask(http: httpx2.Client, words: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    return http.post(PATH, json=body(words, **fields), headers=headers)


def chunks(response: httpx2.Response | str) -> list[Any]:
    """The data of all frames; the last is ``[DONE]`` if the response is complete."""
    text = response if isinstance(response, str) else response.text
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(found: list[Any]) -> str:
    return "".join(
        one["choices"][0]["delta"].get("content", "") for one in found if one != "[DONE]" and "choices" in one
    )


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


# ------------------------------------------------------------------------------------------------ a job


def test_a_completion_is_a_job(http: httpx2.Client, sim: SimulatorProcess) -> None:
    words = prompt(tokens=5)
    answer = ask(http, words, temperature=0.5, seed=7, max_completion_tokens=9, stream=False)
    job_id = answer.headers["x-job-id"]
    job = http.get(f"/api/jobs/{job_id}").json()
    completion = answer.json()
    assert completion["id"] == f"chatcmpl-{job_id}"
    assert completion["object"] == "chat.completion"
    expected_text = sim.answer(words, random_seed=7)["text"]
    assert completion["choices"][0]["message"]["content"] == job["content"] == expected_text
    (call,) = sim.requests(words)
    expected = {"temperature": 0.5, "random_seed": 7, "max_tokens": 9}
    assert {name: call["parameters"][name] for name in expected} == expected


def test_a_stream_is_as_mistrals(http: httpx2.Client) -> None:
    answer = ask(http, prompt(tokens=5), stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *middle, last, done = chunks(answer)
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert {one["object"] for one in (first, *middle, last)} == {"chat.completion.chunk"}
    assert len({(one["id"], one["created"], one["model"]) for one in (first, *middle, last)}) == 1
    assert all(set(one["choices"][0]["delta"]) == {"content"} for one in middle)
    assert last["choices"][0] == {"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}
    assert last["usage"]["completion_tokens"] == 5
    assert done == "[DONE]"


def test_an_answer_at_its_length_limit_is_no_failure(http: httpx2.Client) -> None:
    assert ask(http, prompt(tokens=50), max_tokens=3).json()["choices"][0]["finish_reason"] == "length"


def test_other_parts_of_an_answer_are_at_their_places(http: httpx2.Client) -> None:
    """In an object; in a stream they come at its end, when the job knows that they stay."""
    references = [{"after": 0, "ids": [1]}]
    part = {"type": "reference", "reference_ids": [1]}
    whole = ask(http, prompt(text="Yes.", references=references)).json()
    assert whole["choices"][0]["message"]["content"] == [part, {"type": "text", "text": "Yes."}]
    streamed = chunks(ask(http, prompt(text="Yes.", references=references), stream=True))
    assert {"content": [part]} in [one["choices"][0]["delta"] for one in streamed[:-1]]


def test_what_the_server_sends_beside_an_answer_stands_where_it_stood(http: httpx2.Client) -> None:
    """In the object, and in the last chunk; the job has it as ``extra``. As llama.cpp writes it."""
    words = {"text": "Yes.", "dialect": "llamacpp"}
    answer = ask(http, prompt(**words))
    job = http.get(f"/api/jobs/{answer.headers['x-job-id']}").json()
    assert set(job["extra"]) == {"system_fingerprint", "timings"}
    assert {name: answer.json()[name] for name in job["extra"]} == job["extra"]
    *others, last, _ = chunks(ask(http, prompt(**words), stream=True))
    assert {name: last[name] for name in job["extra"]} == job["extra"]
    assert not any("timings" in one for one in others)
    assert last["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert "extra" not in http.get(f"/api/jobs/{ask(http, prompt(tokens=1)).headers['x-job-id']}").json()


def test_a_model_that_does_not_exist(http: httpx2.Client) -> None:
    """400, as at Mistral (code 1500, invalid_model); OpenAI's servers answer 404."""
    answer = http.post(PATH, json=body(prompt()) | {"model": "ghost-7b"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found")


def test_unknown_parameters_are_forwarded(http: httpx2.Client) -> None:
    """Mistral itself refuses this one, and names it."""
    answer = ask(http, prompt(), thinking_budget={"tokens": 5})
    assert answer.status_code == 422
    assert "body.thinking_budget" in answer.json()["message"]
    request = http.get(f"/api/jobs/{answer.headers['x-job-id']}/request").json()
    assert request["extra"] == {"thinking_budget": {"tokens": 5}}


def test_our_own_fields_and_headers(http: httpx2.Client) -> None:
    with receiver() as hooks:
        headers = {"X-Chatjobs-Metadata": '{"order": "42", "n": 1}', "X-Chatjobs-Callback": hooks.url()}
        answer = ask(http, prompt(tokens=2), headers, metadata={"team": "a", "tags": ["x"]}, onInterrupt="fail")
        job_id = answer.headers["x-job-id"]
        hooks.wait_for(1)
    job, request = http.get(f"/api/jobs/{job_id}").json(), http.get(f"/api/jobs/{job_id}/request").json()
    assert job["metadata"] == {"order": "42", "n": "1", "team": "a", "tags": '["x"]'}
    assert request["onInterrupt"] == "fail"
    assert [one["url"] for one in job["deliveries"]] == [hooks.url()]


@pytest.mark.parametrize("given", ["[1]", "{", '{"a": ' + "[" * 5_000, "ü"])
def test_metadata_of_the_header_that_are_no_object(http: httpx2.Client, given: str) -> None:
    answer = ask(http, "hello", {"X-Chatjobs-Metadata": given.encode()})  # type: ignore[dict-item]  # bytes are taken
    assert (answer.status_code, answer.json()["param"]) == (422, "metadata")


def test_a_developers_message_is_a_systems(http: httpx2.Client) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": prompt(tokens=2)}]
    assert http.post(PATH, json={"model": "mistral-small-latest", "messages": messages}).status_code == 200


# ------------------------------------------------------------------------------------------------ errors

REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no model": ({"model": None}, 422, "model"),
    "two answers": ({"n": 2}, 422, "n"),
    "a temperature of 3": ({"temperature": 3}, 422, "temperature"),
    "no messages": ({"messages": []}, 422, "messages"),
    "a word for stream": ({"stream": "yes"}, 422, "stream"),
    "metadata that is too long": ({"metadata": {"k": "v" * 600}}, 422, "metadata.k"),
    "extra that is a field": ({"extra": {"model": "x"}}, 422, "extra"),
}


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request(http: httpx2.Client, fields: dict[str, Any], status: int, param: str) -> None:
    answer = ask(http, "hello", **fields)
    error = answer.json()
    assert (answer.status_code, error["param"], error["object"]) == (status, param, "error")
    assert error["type"] == "invalid_request_error"
    assert error["detail"][0]["loc"] == ["body", *param.split(".")]
    assert "x-job-id" not in answer.headers


FAILED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "5xx": ({"faults": [{"kind": 503}]}, {"retry": {"attempts": 1}}, 503, "upstream_unavailable"),
    "500": ({"faults": [{"kind": 500}]}, {"retry": {"attempts": 1}}, 500, "upstream_unavailable"),
    "429": (
        {"faults": [{"kind": 429, "retry_after": 1}], "repeat_last": True},
        {"limits": {"totalSeconds": 2}},
        429,
        "total_timeout",
    ),
    "no key": ({"faults": [{"kind": 401}]}, {}, 401, "upstream_unauthorized"),
    "silence": (
        {"faults": [{"kind": "stall"}]},
        {"retry": {"attempts": 1}, "limits": {"firstTokenSeconds": 0.5}},
        504,
        "first_token_timeout",
    ),
    "no answer": ({"faults": [{"kind": "wrong_type"}]}, {"retry": {"attempts": 1}}, 502, "upstream_protocol"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("script", "fields", "status", "code"), FAILED.values(), ids=FAILED)
def test_a_job_that_fails(
    http: httpx2.Client, script: dict[str, Any], fields: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    """Before any text: a stream has a status, too. OpenAI's clients are told not to try again: the job has."""
    model = f"mistral-{uuid.uuid4().hex}"  # of its own, since a model that fails again and again is spared for a while
    answer = ask(http, prompt(**script), stream=stream, model=model, **fields)
    error = answer.json()
    assert (answer.status_code, error["code"]) == (status, code), error
    assert answer.headers["x-should-retry"] == "false"
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert http.get(f"/api/jobs/{answer.headers['x-job-id']}").json()["status"] == "failed"


def test_a_cancelled_job_is_no_answer(http: httpx2.Client, sim: SimulatorProcess, door: Gateway) -> None:
    words = prompt(tokens=20, hold=5)

    async def run() -> httpx2.Response:
        async with door.client() as client:
            asking = asyncio.create_task(client.post(PATH, json=body(words)))
            await sim.wait(words, tokens=5)
            job_id = http.get("/api/jobs").json()["jobs"][0]["jobId"]
            assert http.post(f"/api/jobs/{job_id}/cancel").status_code == 202
            return await asking

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["code"]) == (400, "cancelled")


async def test_an_error_after_some_text_breaks_the_stream_off(door: Gateway) -> None:
    """Some clients take every regular end of a stream for that of the answer."""
    words = prompt(tokens=20, tokens_per_second=100, faults=[{"kind": "cut", "after": 5}])
    raw = await broken_stream(door, body(words, stream=True, onInterrupt="fail"))
    *texts, error = chunks(raw)
    assert text_of(texts)
    assert error["code"] == error["error"]["code"] == "interrupted"
    assert error["object"] == "error"


async def test_text_that_is_void_is_not_followed_by_another(door: Gateway, sim: SimulatorProcess) -> None:
    """The answer started over: the same request reads the new one."""
    words, headers = prompt(tokens=20, hold=5, faults=[{"kind": "cut", "after": 10}]), new_key()
    asked = body(words, stream=True, onInterrupt="restart")
    reading = asyncio.create_task(broken_stream(door, asked, headers, lambda: sim.release(words)))
    *_, error = chunks(await reading)
    assert error["code"] == "answer_restarted"
    sim.release(words)
    async with door.client() as client:
        again = await client.post(PATH, json=asked, headers=headers)
    found = chunks(again)
    assert (text_of(found), found[-1]) == (sim.answer(words)["text"], "[DONE]")


async def broken_stream(
    door: Gateway, asked: dict[str, Any], headers: dict[str, str] | None = None, at_text: Any = None
) -> str:
    """The text of a stream that is broken off. ``at_text`` is called when the first text is there."""
    raw, broken = "", False
    async with door.client() as client, client.stream("POST", PATH, json=asked, headers=headers) as answer:
        try:
            async for piece in answer.aiter_text():
                raw += piece
                if at_text is not None and text_of(chunks(raw)):
                    at_text, _ = None, at_text()
        except httpx2.RemoteProtocolError:
            broken = True
    assert broken, raw
    assert "[DONE]" not in raw
    return raw


# ------------------------------------------------------------------------------------------ read it again


def test_the_same_key_is_the_same_answer_streamed_or_not(http: httpx2.Client, sim: SimulatorProcess) -> None:
    words, headers = prompt(tokens=6), new_key()
    first = ask(http, words, headers)
    again = ask(http, words, headers, stream=True)
    assert text_of(chunks(again)) == first.json()["choices"][0]["message"]["content"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    assert len(sim.requests(words)) == 1
    other = ask(http, words + "?", headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_a_failed_answer_stays_failed_under_its_key(http: httpx2.Client, sim: SimulatorProcess) -> None:
    words, headers = prompt(faults=[{"kind": 401}]), new_key()
    assert [ask(http, words, headers).status_code for _ in range(2)] == [401, 401]
    assert len(sim.requests(words)) == 1


async def test_disconnecting_does_not_stop_the_job_unless_it_shall(
    door: Gateway, http: httpx2.Client, sim: SimulatorProcess
) -> None:
    stays, ends = prompt(tokens=20, hold=5), prompt(tokens=20, hold=5)
    ids = {}
    for words, headers in ((stays, {}), (ends, {"X-On-Disconnect": "cancel"})):
        async with door.client() as client:
            asked = body(words, stream=True)
            async with client.stream("POST", PATH, json=asked, headers=headers) as answer:
                ids[words] = answer.headers["x-job-id"]
                await anext(answer.aiter_text())

    async def status(words: str) -> str:
        return str(http.get(f"/api/jobs/{ids[words]}").json()["status"])

    async def cancelled() -> bool:
        return await status(ends) == "cancelled"

    async def completed() -> bool:
        return await status(stays) == "completed"

    await eventually(cancelled)
    sim.release(stays)
    await eventually(completed)


async def test_a_worker_that_is_killed_is_not_noticed(door: Gateway, service: Stack, sim: SimulatorProcess) -> None:
    """The stream goes on with the same answer."""
    words = prompt(tokens=30, hold=10)
    raw = ""
    async with door.client() as client, client.stream("POST", PATH, json=body(words, stream=True)) as answer:
        killed = False
        async for piece in answer.aiter_text():
            raw += piece
            if not killed and text_of(chunks(raw)):
                killed = True
                service.workers[0].kill()
                service.workers[0].start()
                await sim.wait(words, requests=2, tokens=10)
                sim.release(words)
    found = chunks(raw)
    assert (text_of(found), found[-1]) == (sim.answer(words)["text"], "[DONE]")


async def test_a_gateway_that_stops_breaks_off_and_says_what_to_do(service: Stack, sim: SimulatorProcess) -> None:
    """A stream and a request that waits: neither looks like an answer, and both go on elsewhere."""
    port, service.env["CHATJOBS_PORT"] = service.env["CHATJOBS_PORT"], "0"
    try:
        leaving, staying = gateway(service, "leaving"), gateway(service, "staying")
    finally:
        service.env["CHATJOBS_PORT"] = port
    words, waiting, headers, other = prompt(tokens=20, hold=5), prompt(tokens=20, hold=5), new_key(), new_key()
    stopping: list[asyncio.Future[int]] = []

    def stop() -> None:
        stopping.append(asyncio.ensure_future(asyncio.to_thread(leaving.process.stop)))

    async with leaving.client() as client, staying.client() as next_client:
        whole = asyncio.create_task(client.post(PATH, json=body(waiting), headers=other))
        await sim.wait(waiting, tokens=5)
        *_, error = chunks(await broken_stream(leaving, body(words, stream=True), headers, stop))
        assert error["code"] == "response_broken_off"
        refused = await whole
        assert (refused.status_code, refused.json()["code"]) == (503, "response_broken_off")
        assert refused.headers["retry-after"]
        assert "x-should-retry" not in refused.headers
        assert await stopping[0] == 0
        sim.release(words)
        sim.release(waiting)
        again = await next_client.post(PATH, json=body(words, stream=True), headers=headers)
        assert text_of(chunks(again)) == sim.answer(words)["text"]
        again = await next_client.post(PATH, json=body(waiting), headers=other)
        assert again.json()["choices"][0]["message"]["content"] == sim.answer(waiting)["text"]
    staying.process.stop()


# -------------------------------------------------------------------------------------------------- access


def test_with_keys_only_ours_are_taken(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key gets Mistral's 401; without keys the clients may send any."""
    with alone(tmp_path) as built:
        door = gateway(built)
        with httpx2.Client(base_url=door.url, trust_env=False) as http:
            anyone = {"Authorization": "Bearer whatever"}
            assert http.get("/v1/models", headers=anyone).status_code != 401
            assert http.get("/api/jobs", headers=anyone).status_code == 401
            foreign = http.get("/v1/models", headers=anyone | {"Origin": "https://evil.example"})
            assert foreign.status_code == 403
            added = built.run("keys", "starter.py", "keys", "add", "--tenant", "acme", ready="cj_")
            refused = asyncio.run(eventually(lambda: _refused(http, anyone)))
            assert refused["object"] == "error"
            assert refused["type"] == "authentication_error"
            assert "cj_" in added.output()


async def _refused(http: httpx2.Client, headers: dict[str, str]) -> dict[str, Any]:
    answer = http.get("/v1/models", headers=headers)
    return dict(answer.json()) if answer.status_code == 401 else {}


def test_what_v1_does_not_have(http: httpx2.Client) -> None:
    answer = http.post("/v1/embeddings", json={})
    assert (answer.status_code, answer.json()["object"]) == (404, "error")
    assert "chat/completions" in answer.json()["message"]
