"""What other servers of Mistral's models stream is understood, whichever wrote it: the simulator in their dialects.

The raw forms below are those of the servers themselves: see simulator/dialects.py for the sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from typing import Any

import httpx2
import pytest

from chatjobs.contracts import Channel, ChatRequest
from domain.continuing import USUAL, Practice, Way
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRefused
from domain.ports import MODEL_NOT_FOUND, Finish, ModelEvent, TextDelta
from providers.mistral.chat import MistralChat
from tests.support.raw_http import plain, raw_server
from tests.support.simulator_process import SimulatorProcess, prompt, simulator

DIALECTS = ("vllm", "ollama", "llamacpp")
TEXT = "The tide turns at noon, and the boats come home."
WEATHER = {"name": "get_weather", "arguments": '{"city": "Lyon"}', "id": "abc123DEF"}
TIME = {"name": "get_time", "arguments": '{"zone": "CET"}'}
MODEL = "mistral-small-latest"


@pytest.fixture(scope="module")
def sims() -> Iterator[dict[str, SimulatorProcess]]:
    with ExitStack() as closing:
        yield {dialect: closing.enter_context(simulator(dialect=dialect)) for dialect in DIALECTS}


@pytest.fixture(params=DIALECTS)
def sim(request: pytest.FixtureRequest, sims: dict[str, SimulatorProcess]) -> SimulatorProcess:
    return sims[request.param]


@pytest.fixture
def dialect(request: pytest.FixtureRequest, sim: SimulatorProcess, sims: dict[str, SimulatorProcess]) -> str:
    return next(name for name, one in sims.items() if one is sim)


def asking(words: str, **fields: Any) -> ChatRequest:
    return ChatRequest.parse({"model": MODEL, "messages": [{"role": "user", "content": words}], **fields})


async def said(
    sim: SimulatorProcess, request: ChatRequest, text: str | None = None, practice: Practice | None = None
) -> tuple[str, str, Finish]:
    """Content, reasoning and end of an answer."""
    model = MistralChat("a key", sim.url, practice=practice)
    try:
        return await _said(model, request, text)
    finally:
        await model.aclose()


async def _said(model: MistralChat, request: ChatRequest, text: str | None = None) -> tuple[str, str, Finish]:
    async with aclosing(model.stream(request, text)) as stream:
        events: list[ModelEvent] = [event async for event in stream]
    texts = dict.fromkeys(Channel, "")
    for event in events:
        if isinstance(event, TextDelta):
            texts[event.channel] += event.text
    finish = events[-1]
    assert isinstance(finish, Finish)
    return texts[Channel.CONTENT], texts[Channel.REASONING], finish


async def failure(sim: SimulatorProcess, request: ChatRequest) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await said(sim, request)
    return caught.value


# --------------------------------------------------------------------------------------------------- the table


async def test_text_with_its_usage(sim: SimulatorProcess) -> None:
    """Usage comes because it is asked for."""
    message = prompt(text=TEXT)
    text, reasoning, finish = await said(sim, asking(message))
    expected = sim.answer(message)["usage"]
    assert (text, reasoning, finish.reason) == (TEXT, "", "stop")
    assert finish.usage is not None
    assert finish.usage.model_dump() == expected
    (call,) = sim.requests(message)
    assert call["parameters"]["stream_options"] == {"include_usage": True}


async def test_a_caller_that_wants_no_usage_gets_none(sim: SimulatorProcess) -> None:
    message = prompt(text=TEXT)
    _, _, finish = await said(sim, asking(message, extra={"stream_options": {"include_usage": False}}))
    assert (finish.reason, finish.usage) == ("stop", None)


async def test_reasoning_beside_the_content(sim: SimulatorProcess) -> None:
    text, reasoning, finish = await said(sim, asking(prompt(text=TEXT, reasoning="Let me think about boats.")))
    assert (text, reasoning, finish.reason) == (TEXT, "Let me think about boats.", "stop")


@pytest.mark.parametrize("style", ["pieces", "whole"])
async def test_calls_of_tools(sim: SimulatorProcess, style: str) -> None:
    """In pieces by index, or whole in one chunk."""
    _, _, finish = await said(sim, asking(prompt(tool_calls=[WEATHER, TIME], tool_style=style)))
    calls = [(call.function.name, call.function.arguments, call.index) for call in finish.tool_calls]
    assert calls == [("get_weather", WEATHER["arguments"], 0), ("get_time", TIME["arguments"], 1)]
    assert finish.reason == "tool_calls"
    assert finish.tool_calls[0].id == "call_abc123DEF"
    assert finish.usage is not None


async def test_text_before_a_call(sim: SimulatorProcess) -> None:
    text, _, finish = await said(sim, asking(prompt(text=TEXT, tool_calls=[WEATHER])))
    assert (text, len(finish.tool_calls), finish.reason) == (TEXT, 1, "tool_calls")


@pytest.mark.parametrize("most", [1, 4])
async def test_a_length_limit(sim: SimulatorProcess, most: int) -> None:
    """vLLM has the last piece of text and the finish reason in one chunk."""
    message = prompt(text=TEXT)
    text, _, finish = await said(sim, asking(message, max_tokens=most))
    assert (text, finish.reason) == ("".join(sim.answer(message)["tokens"][:most]), "length")
    assert finish.usage is not None
    assert finish.usage.completion_tokens == most


async def test_an_answer_without_done(sim: SimulatorProcess) -> None:
    text, _, finish = await said(sim, asking(prompt(text=TEXT, faults=[{"kind": "no_done"}])))
    assert (text, finish.reason) == (TEXT, "stop")
    assert finish.usage is not None


@pytest.mark.parametrize(("status", "code"), [(500, "upstream_unavailable"), (503, "upstream_unavailable")])
async def test_an_error_before_the_answer(sim: SimulatorProcess, status: int, code: str) -> None:
    message = prompt()
    sim.script(match=message, faults=[{"kind": status, "message": "Loading model"}])
    error = await failure(sim, asking(message))
    assert (type(error), error.reason, error.http_status) == (UpstreamInterrupted, code, status)
    assert "Mistral says: Loading model" in error.message


async def test_an_error_in_the_middle(sim: SimulatorProcess, dialect: str) -> None:
    """Ollama's is not to be seen: its stream ends, and counts as cut."""
    fault = {"kind": "error", "after": 3, "message": "The engine died"}
    message = prompt()
    sim.script(match=message, text=TEXT, faults=[fault])
    error = await failure(sim, asking(message))
    assert isinstance(error, UpstreamInterrupted)
    assert error.reason == ("upstream_cut" if dialect == "ollama" else "upstream_unavailable")
    assert ("The engine died" in error.message) == (dialect != "ollama")


@pytest.mark.parametrize("fault", [{"kind": "cut", "after": 3}, {"kind": "eof", "after": 3}, {"kind": "eof"}])
async def test_a_cut_before_the_finish_reason(sim: SimulatorProcess, fault: dict[str, Any]) -> None:
    """Also after the last piece of text: without a finish reason no answer is whole."""
    error = await failure(sim, asking(prompt(text=TEXT, faults=[fault])))
    assert (type(error), error.reason) == (UpstreamInterrupted, "upstream_cut")


async def test_an_unknown_model(sim: SimulatorProcess) -> None:
    error = await failure(sim, asking("hello", model="ghost-7b"))
    assert (type(error), error.reason) == (UpstreamRefused, MODEL_NOT_FOUND)


@pytest.mark.parametrize("status", [400, 401, 429])
async def test_other_refusals(sim: SimulatorProcess, status: int) -> None:
    codes = {400: "upstream_rejected", 401: "upstream_unauthorized", 429: "upstream_rate_limited"}
    assert (await failure(sim, asking(prompt(faults=[{"kind": status}] * 2)))).reason == codes[status]


async def test_what_is_beside_the_answer_is_kept(sim: SimulatorProcess, dialect: str) -> None:
    _, _, finish = await said(sim, asking(prompt(text=TEXT)))
    expected = {
        "vllm": {"system_fingerprint"},
        "ollama": {"system_fingerprint"},
        "llamacpp": {"system_fingerprint", "timings"},
    }
    assert set(finish.extra or {}) == expected[dialect]


async def test_a_completion_in_one_document(sim: SimulatorProcess) -> None:
    """What these servers send to callers that do not stream; usage is always in it."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt(text=TEXT, reasoning="Hm.")}]}
    async with httpx2.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
        answer = (await http.post("/v1/chat/completions", json=body)).json()
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXT, "stop")
    assert {choice["message"].get("reasoning"), choice["message"].get("reasoning_content")} == {"Hm.", None}
    assert answer["usage"]["completion_tokens"] > 0


async def test_no_headers_of_mistrals(sim: SimulatorProcess) -> None:
    async with httpx2.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
        answer = await http.post("/v1/chat/completions", json=raw(prompt(tokens=2)))
        assert not [name for name in answer.headers if name.startswith(("x-ratelimit", "mistral"))]
        assert (await http.get("/v1/models")).json()["data"][0]["owned_by"] != "mistralai"
        assert (await http.get("/v1/files")).status_code == 404


# --------------------------------------------------------------------------------------------------- raw forms


def raw(words: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": words}], "stream": True, **fields}


async def frames(sim: SimulatorProcess, **fields: Any) -> list[Any]:
    """The data of all frames."""
    async with httpx2.AsyncClient(base_url=sim.url, headers={"authorization": "Bearer k"}) as http:
        answer = await http.post("/v1/chat/completions", json=fields)
    data = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


ASKS = {"stream_options": {"include_usage": True}}


async def test_vllm_writes_as_vllm(sims: dict[str, SimulatorProcess]) -> None:
    sim = sims["vllm"]
    role, first, *_, last, done = await frames(sim, **raw(prompt(text="Hi there.")))
    null = {"logprobs": None, "token_ids": None}
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, **null, "finish_reason": None}
    ]
    assert first["choices"] == [{"index": 0, "delta": {"content": "Hi"}, **null, "finish_reason": None}]
    end = {"index": 0, "delta": {"content": ""}, **null, "stop_reason": None, "finish_reason": "stop"}
    assert (last["choices"], done) == ([end], "[DONE]")
    assert all("usage" not in one for one in (role, first, last))
    *_, usage, done = await frames(sim, **raw(prompt(text="Hi there."), **ASKS))
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")
    counted = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    _, one, two, *_ = await frames(sim, **raw(prompt(text="Hi there."), **counted))
    assert [frame["usage"]["completion_tokens"] for frame in (one, two)] == [1, 2]
    limited = await frames(sim, **raw(prompt(text="Hi there."), max_tokens=1))
    assert limited[1]["choices"][0]["delta"] == {"content": "Hi"}
    assert (limited[1]["choices"][0]["finish_reason"], limited[2]) == ("length", "[DONE]")
    broken = await frames(sim, **raw(prompt(text="Hi there.", faults=[{"kind": "error", "after": 1}])))
    assert (broken[-2]["error"]["code"], broken[-1]) == (500, "[DONE]")


async def test_ollama_writes_as_ollama(sims: dict[str, SimulatorProcess]) -> None:
    sim = sims["ollama"]
    first, *_, last, done = await frames(sim, **raw(prompt(text="Hi there.")))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]
    assert (first["system_fingerprint"], done) == ("fp_ollama", "[DONE]")
    *_, last, usage, done = await frames(sim, **raw(prompt(text="Hi there."), **ASKS))
    assert usage == last | {"choices": [], "usage": usage["usage"]}
    called, end, _ = await frames(sim, **raw(prompt(tool_calls=[WEATHER], tool_style="pieces")))
    function = {"name": "get_weather", "arguments": '{"city": "Lyon"}'}
    call = {"id": "call_abc123DEF", "type": "function", "index": 0, "function": function}
    assert called["choices"][0]["delta"] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert end["choices"][0]["finish_reason"] == "tool_calls"
    broken = await frames(sim, **raw(prompt(text="Hi there.", faults=[{"kind": "error", "after": 1}])))
    assert (len(broken), broken[-1]["model"]) == (2, "")


async def test_llama_cpp_writes_as_llama_cpp(sims: dict[str, SimulatorProcess]) -> None:
    """As its build 11549 did, which ``tests/upstreams/test_llamacpp.py`` runs."""
    sim = sims["llamacpp"]
    role, first, *_, last, done = await frames(sim, **raw(prompt(text="Hi there.")))
    assert role["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]
    assert first["choices"] == [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert "predicted_n" in last["timings"]
    *_, last, usage, done = await frames(sim, **raw(prompt(text="Hi there."), **ASKS))
    assert ("timings" in last, "timings" in usage, usage["choices"], done) == (False, True, [], "[DONE]")
    broken = await frames(sim, **raw(prompt(text="Hi there.", faults=[{"kind": "error", "after": 1}])))
    assert broken[-1]["error"] == {"code": 500, "message": "Internal server error", "type": "server_error"}


# ------------------------------------------------------------------------------------------------- continuing

HEAD, REST = "The tide turns", " at noon, and the boats come home."


@pytest.mark.parametrize(
    ("dialect", "way"),
    [("vllm", Way.CONTINUE_FINAL_MESSAGE), ("ollama", Way.ASSISTANT), ("llamacpp", Way.ASSISTANT)],
)
async def test_the_way_of_each_server_continues(sims: dict[str, SimulatorProcess], dialect: str, way: Way) -> None:
    """From the text, without repeating it."""
    text, _, finish = await said(sims[dialect], asking(prompt(text=TEXT)), HEAD, USUAL[way])
    assert (text, finish.reason) == (REST, "stop")


async def test_vllm_ignores_prefix_silently(sims: dict[str, SimulatorProcess]) -> None:
    """A new answer begins: the trap that ``auto`` is for."""
    messages = [{"role": "user", "content": prompt(text=TEXT)}]
    messages.append({"role": "assistant", "content": HEAD, "prefix": True})  # type: ignore[dict-item]
    answer = await frames(sims["vllm"], **raw("", messages=messages))
    assert "".join(one["choices"][0]["delta"]["content"] for one in answer[:-1]) == TEXT


async def test_vllm_echoes_when_it_is_told_to(sims: dict[str, SimulatorProcess]) -> None:
    """With its parameter ``echo``, which a caller may send; the echo is taken out."""
    practice = Practice(Way.CONTINUE_FINAL_MESSAGE, USUAL[Way.CONTINUE_FINAL_MESSAGE].drops)
    request = asking(prompt(text=TEXT), extra={"echo": True})
    text, _, _ = await said(sims["vllm"], request, HEAD + " at noon", practice)
    assert text == REST.removeprefix(" at noon")


BOTH = {"continue_final_message": True, "add_generation_prompt": True}
TRAILING = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("vllm", {"messages": TRAILING, **BOTH}),
        ("vllm", {"messages": TRAILING, "continue_final_message": True}),
        ("llamacpp", {"messages": TRAILING, **BOTH}),
        ("llamacpp", {"messages": [*TRAILING, {"role": "assistant", "content": "B"}]}),
        ("llamacpp", {"messages": TRAILING, "chat_template_kwargs": {"enable_thinking": True}}),
        ("vllm", {"messages": TRAILING, "stream": False, "stream_options": {"include_usage": True}}),
    ],
)
async def test_what_these_servers_refuse(
    sims: dict[str, SimulatorProcess], dialect: str, fields: dict[str, Any]
) -> None:
    async with httpx2.AsyncClient(base_url=sims[dialect].url, headers={"authorization": "Bearer k"}) as http:
        answer = await http.post("/v1/chat/completions", json={"model": MODEL, "stream": True, **fields})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)


# ------------------------------------------------------------------------------------------------ stream_options


@pytest.fixture(scope="module")
def mistral() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


async def test_a_server_that_refuses_the_parameter_is_asked_without_it(mistral: SimulatorProcess) -> None:
    """As Mistral's refuses it: once in a process and for each model. Nobody sees more than the answer."""
    model = MistralChat("a key", mistral.url, practice=None)
    message = prompt(text=TEXT)
    for _ in range(2):
        text, _, finish = await _said(model, asking(message))
        assert (text, finish.reason) == (TEXT, "stop")
        assert finish.usage is not None
    await _said(model, asking(message, model="mistral-large-latest"))
    await model.aclose()
    statuses = [(call["model"], call["status"]) for call in mistral.requests(message)]
    small, large = ("mistral-small-latest", "mistral-large-latest")
    assert statuses == [(small, 422), (small, 200), (small, 200), (large, 422), (large, 200)]


@pytest.mark.parametrize("practice", [None, USUAL[Way.ASSISTANT]])
async def test_a_refusal_that_names_nothing(practice: Practice | None) -> None:
    """It costs no job: what is taken without the parameter was refused for it, and is not asked again."""
    refusal = plain("400 Bad Request", {"error": {"message": "Unrecognized request argument supplied"}})
    answer = plain("200 OK", completion(), content_type="application/json")
    async with raw_server(refusal, answer) as server:
        model = MistralChat("a key", server.url, practice=practice)
        texts = [(await _said(model, asking("hello")))[0] for _ in range(2)]
        await model.aclose()
    assert texts == [TEXT, TEXT]
    assert ["stream_options" in json.loads(visit.body) for visit in server.visits] == [True, False, False]


async def test_a_request_that_is_wrong_itself_changes_nothing() -> None:
    """Servers repeat the request in their refusal, and with it the parameter's name: other jobs have their usage."""
    refusal = plain("422 Unprocessable Entity", {"detail": [{"msg": "too hot", "input": {"stream_options": {}}}]})
    answer = plain("200 OK", completion(), content_type="application/json")
    async with raw_server(refusal, refusal, answer) as server:
        model = MistralChat("a key", server.url, practice=None)
        with pytest.raises(UpstreamRefused):
            await _said(model, asking("hello"))
        await _said(model, asking("hello"))
        await model.aclose()
    assert ["stream_options" in json.loads(visit.body) for visit in server.visits] == [True, False, True]


async def test_a_model_that_takes_the_parameter_is_refused_once() -> None:
    refusal = plain("400 Bad Request", {"error": {"message": "temperature is too high"}})
    answer = plain("200 OK", completion(), content_type="application/json")
    async with raw_server(answer, refusal) as server:
        model = MistralChat("a key", server.url, practice=None)
        await _said(model, asking("hello"))
        with pytest.raises(UpstreamRefused):
            await _said(model, asking("hello"))
        await model.aclose()
    assert len(server.visits) == 2


def completion() -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


async def test_a_refusal_of_a_callers_own_parameter_is_the_callers(mistral: SimulatorProcess) -> None:
    message = prompt(text=TEXT)
    error = await failure(mistral, asking(message, extra={"stream_options": {"include_usage": True}}))
    assert (error.reason, len(mistral.requests(message))) == ("upstream_rejected", 1)


async def test_another_refusal_is_tried_again_once(mistral: SimulatorProcess) -> None:
    message = prompt(continues="never", faults=[{"kind": 422}] * 2)
    assert (await failure(mistral, asking(message))).reason == "upstream_rejected"
    assert len(mistral.requests(message)) == 2


async def test_a_server_of_mistrals_kind_is_asked_once_an_answer_had_no_usage(
    sims: dict[str, SimulatorProcess],
) -> None:
    """``CHATJOBS_CONTINUATION=prefix`` says that the server is of that kind, and it may be a gateway that is not."""
    model = MistralChat("a key", sims["vllm"].url, practice=USUAL[Way.PREFIX])
    usages = [(await _said(model, asking(prompt(text=TEXT))))[2].usage is not None for _ in range(3)]
    await model.aclose()
    assert usages == [False, True, True]


async def test_mistrals_own_server_is_never_asked() -> None:
    for practice in (None, USUAL[Way.PREFIX], USUAL[Way.ASSISTANT]):
        model = MistralChat("a key", None, practice=practice)
        model._usage.note(asking("hello"), Finish("stop"))
        assert not model._usage.asks(asking("hello"))
        await model.aclose()
