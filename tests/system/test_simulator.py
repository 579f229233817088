"""The simulator speaks Mistral's wire, does what its scripts say, and tells what it did."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistralai.client import Mistral
from mistralai.client.errors import ResponseValidationError, SDKError

from simulator import answers
from simulator.faults import DirectiveError, Script, read_directive, without_directive
from tests.support.simulator_process import SimulatorProcess, directive, prompt, simulator

MODEL = "mistral-small-latest"
KEY = {"authorization": "Bearer test-key"}


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorProcess]:
    with simulator() as process:
        yield process


def body(text: str, prefix: str | None = None, **parameters: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    if prefix is not None:
        messages.append({"role": "assistant", "content": prefix, "prefix": True})
    return {"model": MODEL, "stream": True, "messages": messages} | parameters


@asynccontextmanager
async def streaming(sim: SimulatorProcess, request: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
    async with (
        httpx2.AsyncClient(base_url=sim.url, headers=KEY, timeout=10) as client,
        client.stream("POST", "/v1/chat/completions", json=request) as response,
    ):
        yield response


@asynccontextmanager
async def mistral(url: str) -> AsyncIterator[Any]:
    """The SDK with a client of ours: its own is closed by the garbage collector, in a task that may never run."""
    async with httpx2.AsyncClient(timeout=30, follow_redirects=True) as http:
        yield Mistral(api_key="test-key", server_url=url, async_client=http)


async def post(sim: SimulatorProcess, request: Any, **options: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=sim.url, timeout=10) as client:
        return await client.post("/v1/chat/completions", json=request, **({"headers": KEY} | options))


async def raw(sim: SimulatorProcess, request: dict[str, Any]) -> bytes:
    return (await post(sim, request)).content


def chunks(stream: bytes) -> list[Any]:
    """The decoded frames of an ordinary stream, without [DONE]."""
    frames = stream.decode().removesuffix("data: [DONE]\n\n").split("\n\n")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames if frame.startswith("data: ")]


def text_of(found: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found if "choices" in chunk)


async def said(sim: SimulatorProcess, request: dict[str, Any]) -> str:
    return text_of(chunks(await raw(sim, request)))


async def until_broken(sim: SimulatorProcess, request: dict[str, Any]) -> bytes:
    """What came before the connection broke; fails if it did not."""
    received = bytearray()
    with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
        await _receive(sim, request, received)
    return bytes(received)


async def _receive(sim: SimulatorProcess, request: dict[str, Any], received: bytearray) -> None:
    async with streaming(sim, request) as response:
        async for data in response.aiter_raw():
            received += data


# ------------------------------------------------------------------------------------------------ wire


async def test_a_stream_is_framed_as_mistral_frames_it(sim: SimulatorProcess) -> None:
    """Role first with empty content, one token a chunk, then finish reason and usage, then [DONE]."""
    response = await post(sim, body(prompt(pieces=["Hé", " — ", "🌊"])))

    first, *middle, last = chunks(response.content)
    head = {"id": first["id"], "object": "chat.completion.chunk", "created": first["created"], "model": MODEL}
    assert response.headers["content-type"].startswith("text/event-stream")
    assert first == head | {"choices": [_choice({"role": "assistant", "content": ""})]}
    assert middle == [head | {"choices": [_choice({"content": piece})]} for piece in ("Hé", " — ", "🌊")]
    assert last["choices"] == [_choice({"content": ""}, "stop")]
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3
    assert response.content.endswith(b"\n\ndata: [DONE]\n\n")


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


async def test_the_sdk_streams_completes_and_lists(sim: SimulatorProcess) -> None:
    """The real client understands all three, and streaming says the same as completing."""
    text = prompt("Tell me of the sea.")
    async with mistral(sim.url) as client:
        stream = await client.chat.stream_async(model=MODEL, messages=[{"role": "user", "content": text}])
        deltas = [event.data.choices[0].delta.content async for event in stream]
        whole = await client.chat.complete_async(model=MODEL, messages=[{"role": "user", "content": text}])
        listed = await client.models.list_async()

    assert whole.choices[0].message is not None
    assert "".join(map(str, deltas)) == whole.choices[0].message.content == sim.answer(text)["text"]
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == len(sim.answer(text)["tokens"])
    assert MODEL in [getattr(model, "id", None) for model in listed.data or []]


async def test_tool_calls_come_name_first_and_arguments_in_pieces(sim: SimulatorProcess) -> None:
    calls = [{"name": "weather", "arguments": {"city": "Brest", "days": 3}, "id": "a1b2c3d4e"}, {"name": "tide"}]
    found = chunks(await raw(sim, body(prompt(tool_calls=calls))))

    deltas = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0] == {"id": "a1b2c3d4e", "function": {"name": "weather", "arguments": ""}, "index": 0}
    arguments = "".join(delta["function"]["arguments"] for delta in deltas if delta["index"] == 0)
    assert json.loads(arguments) == {"city": "Brest", "days": 3}
    assert len(deltas) > 4
    assert {delta["index"] for delta in deltas} == {0, 1}
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_tool_calls_may_be_whole_or_nameless(sim: SimulatorProcess) -> None:
    """Whole is how Mistral sends them today; a delta without a name is nothing the SDK can read."""
    calls = [{"name": "weather", "arguments": '{"city": "Brest"}'}]
    whole = chunks(await raw(sim, body(prompt(tool_calls=calls, tool_style="whole"))))
    nameless = chunks(await raw(sim, body(prompt(tool_calls=calls, tool_style="nameless"))))

    assert whole[1]["choices"][0]["delta"]["tool_calls"][0]["function"] == calls[0]
    functions = [chunk["choices"][0]["delta"]["tool_calls"][0]["function"] for chunk in nameless[1:-1]]
    assert [function.get("name") for function in functions] == ["weather", *[None] * (len(functions) - 1)]
    assert whole[-1]["usage"]["completion_tokens"] == nameless[-1]["usage"]["completion_tokens"]


async def test_the_sdk_reads_every_kind_of_content(sim: SimulatorProcess) -> None:
    """Thinking, references, text in lists, and a chunk of a type it does not know."""
    text = prompt(
        text="one two three",
        reasoning="first I think",
        references=[{"after": 1, "ids": [7, "doc"]}],
        content_as_list=True,
        faults=[{"kind": "unknown_chunk", "after": 4}],
    )
    async with mistral(sim.url) as client:
        stream = await client.chat.stream_async(model=MODEL, messages=[{"role": "user", "content": text}])
        lists = [delta async for event in stream if isinstance(delta := event.data.choices[0].delta.content, list)]

    types = [chunk.type for found in lists for chunk in found]
    assert types == ["thinking", "thinking", "thinking", "text", "UNKNOWN", "reference", "text", "text"]


async def test_a_forced_tool_is_called_and_json_is_json(sim: SimulatorProcess) -> None:
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {}}}]
    called = (await post(sim, body(prompt(), stream=False, tools=tools, tool_choice="any"))).json()
    document = (await post(sim, body(prompt(), stream=False, response_format={"type": "json_object"}))).json()

    assert called["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "tide", "arguments": "{}"}
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    assert json.loads(document["choices"][0]["message"]["content"])["answer"]


# ------------------------------------------------------------------------------------------------ text


async def test_the_text_depends_on_messages_model_and_seed_only(sim: SimulatorProcess) -> None:
    """A directive that only makes faults changes nothing in what is said."""
    plain = await said(sim, body("What is a harbour?"))
    assert plain == await said(sim, body("What is a harbour?"))
    assert plain == await said(sim, body("What is a harbour?" + directive(framing={"eol": "lf"})))
    others = [
        await said(sim, body("What is a harbor?")),
        await said(sim, body("What is a harbour?", model="mistral-large-latest")),
        await said(sim, body("What is a harbour?", random_seed=1)),
    ]
    assert len({plain, *others}) == 4


async def test_tokens_are_counted_exactly_and_capped(sim: SimulatorProcess) -> None:
    text = prompt(tokens=30)
    whole = chunks(await raw(sim, body(text)))
    capped = chunks(await raw(sim, body(text, max_tokens=10)))

    assert (whole[-1]["choices"][0]["finish_reason"], whole[-1]["usage"]["completion_tokens"]) == ("stop", 30)
    assert (capped[-1]["choices"][0]["finish_reason"], capped[-1]["usage"]["completion_tokens"]) == ("length", 10)
    assert text_of(whole).startswith(text_of(capped))


async def test_an_ordinary_answer_is_60_to_150_tokens_of_sentences(sim: SimulatorProcess) -> None:
    found = [sim.answer(f"question {number}") for number in range(20)]

    assert all(60 <= len(answer["tokens"]) <= 150 for answer in found)
    assert all(answer["text"].endswith(".") for answer in found)
    together = "".join(answer["text"] for answer in found)
    assert "é" in together
    assert "—" in together
    assert any(ord(character) > 0xFFFF for character in together)


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(answers.tokenise(text)) == text


@given(st.text(), st.integers(0, 200), st.sampled_from(["", "As I said: ", "At "]))
def test_a_text_is_resumed_at_any_character(seed: str, length: int, before: str) -> None:
    """Also after words of the caller's own, which are not part of it."""
    tokens = answers.tokenise("".join(token for token, _ in zip(answers.prose(seed), range(50), strict=False)))
    whole = "".join(tokens)
    _, rest = answers.resume(tokens, before + whole[:length])
    if length or before != "At ":
        assert whole[:length] + "".join(rest) == whole


@given(st.lists(st.text("ab", max_size=3)), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1))
def test_nothing_is_said_from_the_first_stop_sequence_on(tokens: list[str], stops: list[str]) -> None:
    text = "".join(tokens)
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    _, first = min(ends, default=(0, len(text)))  # the sequence that is complete first ends the answer
    assert "".join(answers.until_stop(tokens, stops)) == text[:first]


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "status", "expected"),
    [
        ({"callback": "https://example.com"}, 422, "extra_forbidden"),
        ({"messages": []}, 422, "too_short"),
        ({"model": "gpt-4"}, 400, "invalid_model"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 400, "3230"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, 400, "3230"),
    ],
)
async def test_a_wrong_request_is_refused_as_mistral_refuses_it(
    sim: SimulatorProcess, change: dict[str, Any], status: int, expected: str
) -> None:
    response = await post(sim, body("hello") | change)
    assert (response.status_code, expected in response.text) == (status, True)


async def test_a_prefix_with_tools_is_refused(sim: SimulatorProcess) -> None:
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {}}}]
    assert (await post(sim, body("hello", "Well, ", tools=tools))).status_code == 400


async def test_without_a_key_nothing_is_answered(sim: SimulatorProcess) -> None:
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Basic eA=="}):
        response = await post(sim, body("hello"), headers=headers)
        assert (response.status_code, response.json()) == (401, {"detail": "Unauthorized"})


async def test_a_broken_directive_says_what_is_wrong(sim: SimulatorProcess) -> None:
    response = await post(sim, body('[[sim {"tokens": "many"}]]'))
    assert response.status_code == 400
    assert "tokens" in response.json()["message"]


async def test_headers_tell_the_allowance_and_the_limit_can_be_real() -> None:
    with simulator(requests_per_minute=2) as sim:
        responses = [await post(sim, body(prompt(tokens=1))) for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429]
    assert [response.headers["x-ratelimit-remaining-req-minute"] for response in responses] == ["1", "0", "0"]
    assert responses[2].headers["x-ratelimit-limit-req-minute"] == "2"
    assert 1 <= int(responses[2].headers["retry-after"]) <= 61
    assert responses[2].json()["type"] == "rate_limited"
    assert "x-ratelimit-tokens-query-cost" in responses[0].headers


# ---------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("retry_after", ["7", 7, "Wed, 21 Oct 2026 07:28:00 GMT", "99999999", "-1", "abc", None])
async def test_a_429_says_any_retry_after(sim: SimulatorProcess, retry_after: str | int | None) -> None:
    response = await post(sim, body(prompt(faults=[{"kind": 429, "retry_after": retry_after}])))
    assert response.status_code == 429
    assert response.headers.get("retry-after") == (None if retry_after is None else str(retry_after))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("object", {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}),
        ("short", {"message": "Rate limit exceeded", "code": "1300"}),
        ("bare", {"message": "Requests rate limit exceeded"}),
        ("capacity", {"type": "service_tier_capacity_exceeded", "code": "3505"}),
        ("no_allowance", {"object": "error"}),
    ],
)
async def test_a_429_has_any_of_mistrals_bodies(sim: SimulatorProcess, variant: str, expected: dict[str, str]) -> None:
    response = await post(sim, body(prompt(faults=[{"kind": "429", "variant": variant}])))
    assert response.json().items() >= expected.items()
    assert (response.headers["x-ratelimit-limit-req-minute"] == "0") is (variant == "no_allowance")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 422, 500, 502, 503, 529])
async def test_any_status_has_a_json_body(sim: SimulatorProcess, status: int) -> None:
    text = prompt(faults=[{"kind": status}])
    response = await post(sim, body(text))
    assert response.status_code == status
    assert response.json()
    assert sim.requests(text)[0]["fault"] == str(status)
    assert sim.requests(text)[0]["outcome"] == "refused"


async def test_the_sdk_takes_statuses_for_api_errors(sim: SimulatorProcess) -> None:
    async with mistral(sim.url) as client:
        messages: Any = [{"role": "user", "content": prompt(faults=[{"kind": 503}])}]
        with pytest.raises(SDKError) as caught:
            await client.chat.stream_async(model=MODEL, messages=messages)
    assert caught.value.status_code == 503


async def test_204_and_301(sim: SimulatorProcess) -> None:
    nothing = await post(sim, body(prompt(faults=[{"kind": 204}])))
    moved = await post(sim, body(prompt(faults=[{"kind": 301}])))
    assert (nothing.status_code, nothing.content) == (204, b"")
    assert (moved.status_code, moved.headers["location"]) == (301, "/v1/chat/completions?redirected=1")


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("where", ["between", "frame", "utf8"])
async def test_a_cut_breaks_the_connection_after_k_tokens(sim: SimulatorProcess, where: str, reset: bool) -> None:
    text = prompt(tokens=9, faults=[{"kind": "cut", "after": 4, "where": where, "reset": reset}])
    received = await until_broken(sim, body(text))

    *whole, rest = received.split(b"\n\n")
    assert len(whole) == 5  # the role and four tokens
    assert rest.endswith({"between": b"", "frame": rest[-1:], "utf8": b"caf\xc3"}[where])
    assert (rest == b"") is (where == "between")
    entry = await sim.wait(text, ended=True)
    assert (entry["outcome"], entry["tokens_sent"], entry["fault"]) == ("cut", 4, "cut")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_before_the_headers(sim: SimulatorProcess, reset: bool) -> None:
    fault = {"kind": "cut", "where": "headers", "reset": reset}
    assert await until_broken(sim, body(prompt(faults=[fault]))) == b""


async def test_a_stall_is_silent_until_the_client_goes(sim: SimulatorProcess) -> None:
    text = prompt(tokens=9, faults=[{"kind": "stall", "after": 3}])
    async with streaming(sim, body(text)) as response:
        lines = response.aiter_lines()
        for _ in range(8):  # four frames, four blank lines
            await anext(lines)
        assert (await sim.wait(text, tokens=3))["outcome"] is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(lines), 0.1)
    assert (await sim.wait(text, ended=True))["outcome"] == "client_gone"


@pytest.mark.parametrize(
    "fault", [{"kind": "drip", "every": 0.01}, {"kind": "stall", "after": 2, "comments_every": 0.01}]
)
async def test_comments_drip_for_ever(sim: SimulatorProcess, fault: dict[str, Any]) -> None:
    text = prompt(tokens=9, faults=[fault])
    async with streaming(sim, body(text)) as response:
        comments = 0
        async for line in response.aiter_lines():
            comments += line.startswith(":")
            if comments == 5:
                break
    entry = await sim.wait(text, ended=True)
    assert (entry["outcome"], entry["tokens_sent"]) == ("client_gone", fault.get("after", 0))


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "stall", "after": 2, "seconds": 0.15},
        {"kind": "drip", "every": 0.01, "seconds": 0.15},
        {"kind": "slow", "seconds": 0.15},
        {"kind": "slow", "seconds": 0.15, "before": "headers"},
    ],
)
async def test_a_passing_delay_leaves_the_answer_whole(sim: SimulatorProcess, fault: dict[str, Any]) -> None:
    text, started = prompt(tokens=9, faults=[fault]), time.monotonic()
    assert await said(sim, body(text)) == sim.answer(text)["text"]
    assert time.monotonic() - started >= 0.15


async def test_a_clean_end_without_finish_reason(sim: SimulatorProcess) -> None:
    """After k tokens, or after all of them; the SDK takes either for success."""
    early = chunks(await raw(sim, body(prompt(tokens=9, faults=[{"kind": "eof", "after": 4}]))))
    late = chunks(await raw(sim, body(prompt(tokens=9, faults=[{"kind": "eof"}]))))
    assert (len(early), len(late)) == (5, 10)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in early + late)


async def test_everything_but_done(sim: SimulatorProcess) -> None:
    stream = await raw(sim, body(prompt(tokens=2, faults=[{"kind": "no_done"}])))
    assert b"[DONE]" not in stream
    assert chunks(stream)[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_frame_that_is_not_json(sim: SimulatorProcess) -> None:
    stream = await raw(sim, body(prompt(tokens=4, faults=[{"kind": "malformed", "after": 2}])))
    frames = stream.split(b"\n\n")
    with pytest.raises(json.JSONDecodeError):
        json.loads(frames[3].removeprefix(b"data: "))
    assert len(frames) == 1 + 4 + 1 + 2 + 1  # role, tokens, the broken one, end, nothing


async def test_an_error_in_the_stream_is_no_chunk_to_the_sdk(sim: SimulatorProcess) -> None:
    text = prompt(tokens=4, faults=[{"kind": "error", "after": 2, "message": "Overloaded", "code": "3505"}])
    async with mistral(sim.url) as client:
        stream = await client.chat.stream_async(model=MODEL, messages=[{"role": "user", "content": text}])
        with pytest.raises(ResponseValidationError, match="choices"):
            [event async for event in stream]


async def test_a_huge_frame_between_tokens(sim: SimulatorProcess) -> None:
    text = prompt(tokens=4, faults=[{"kind": "huge", "after": 2, "bytes": 2_000_000}])
    found = chunks(await raw(sim, body(text)))
    assert len(found[3]["choices"][0]["delta"]["content"]) == 2_000_000
    assert found[-1]["usage"]["completion_tokens"] == 4


async def test_an_endless_answer_ignores_max_tokens(sim: SimulatorProcess) -> None:
    text = prompt(faults=[{"kind": "endless"}])
    async with streaming(sim, body(text, max_tokens=5)) as response:
        async for _ in response.aiter_raw():
            if (await sim.wait(text))["tokens_sent"] > 500:
                break
    assert (await sim.wait(text, ended=True))["outcome"] == "client_gone"


async def test_an_empty_stream(sim: SimulatorProcess) -> None:
    assert await raw(sim, body(prompt(faults=[{"kind": "empty"}]))) == b""
    assert await raw(sim, body(prompt(faults=[{"kind": "empty", "done": True}]))) == b"data: [DONE]\n\n"


async def test_200_with_something_else(sim: SimulatorProcess) -> None:
    page = await post(sim, body(prompt(faults=[{"kind": "wrong_type"}])))
    document = await post(sim, body(prompt(faults=[{"kind": "wrong_type", "content_type": "application/json"}])))
    assert (page.status_code, page.headers["content-type"], page.text[:9]) == (200, "text/html", "<!doctype")
    assert document.json()["object"] == "chat.completion"


@pytest.mark.parametrize("reason", ["error", "model_length", "a_new_one"])
async def test_other_finish_reasons(sim: SimulatorProcess, reason: str) -> None:
    found = chunks(await raw(sim, body(prompt(tokens=9, faults=[{"kind": "finish", "reason": reason, "after": 3}]))))
    assert found[-1]["choices"][0]["finish_reason"] == reason
    assert found[-1]["usage"]["completion_tokens"] == 3


async def test_usage_may_be_missing(sim: SimulatorProcess) -> None:
    assert all("usage" not in chunk for chunk in chunks(await raw(sim, body(prompt(tokens=3, usage=False)))))


# ------------------------------------------------------------------------------- attempts, continuation


async def test_faults_are_used_up_one_per_attempt_of_a_conversation(sim: SimulatorProcess) -> None:
    """A continuation is the next attempt of the same conversation; null is an attempt without a fault."""
    text = prompt(tokens=12, faults=[{"kind": 503}, {"kind": "cut", "after": 5}, None, {"kind": "eof", "after": 1}])
    whole = sim.answer(text)["text"]

    assert (await post(sim, body(text))).status_code == 503
    start = text_of(chunks(await until_broken(sim, body(text))))
    end = await said(sim, body(text, start))

    assert end == whole  # echoed from its first character
    assert whole.startswith(start)
    assert len(chunks(await raw(sim, body(text)))) == 2
    assert [entry["attempt"] for entry in sim.requests(text)] == [1, 2, 3, 4]
    assert [entry["fault"] for entry in sim.requests(text)] == ["503", "cut", None, "eof"]
    assert sim.requests(text)[2]["prefix"] == start


@pytest.mark.parametrize("echo", ["whole", "pieces", "none", "differing"])
async def test_a_continuation_goes_on_where_the_prefix_ends(sim: SimulatorProcess, echo: str) -> None:
    text = prompt(tokens=20, echo=echo)
    whole = sim.answer(text)["text"]
    prefix = whole[: len(whole) // 2]

    found = chunks(await raw(sim, body(text, prefix)))
    expected = {"none": whole[len(prefix) :], "differing": whole[: len(prefix) // 2] + "≠" + whole[len(prefix) // 2 :]}
    assert text_of(found) == expected.get(echo, whole)
    assert (text_of(found[1:2]) == prefix) is (echo == "whole")
    assert found[-1]["usage"]["completion_tokens"] < 20


async def test_a_callers_own_prefix_stands_before_the_answer(sim: SimulatorProcess) -> None:
    text = prompt(tokens=20)
    whole = sim.answer(text)["text"]
    assert await said(sim, body(text, "Dear Zoë, ")) == "Dear Zoë, " + whole
    assert await said(sim, body(text, "Dear Zoë, " + whole[:30])) == "Dear Zoë, " + whole


async def test_a_continuation_of_the_whole_answer_is_empty(sim: SimulatorProcess) -> None:
    text = prompt(tokens=20, echo="none")
    found = chunks(await raw(sim, body(text, sim.answer(text)["text"])))
    assert text_of(found) == ""
    assert (found[-1]["choices"][0]["finish_reason"], found[-1]["usage"]["completion_tokens"]) == ("stop", 0)


async def test_a_blank_prefix_yields_garbage(sim: SimulatorProcess) -> None:
    text = prompt(tokens=20)
    assert await said(sim, body(text, " ")) != " " + sim.answer(text)["text"]


async def test_rules_serve_what_they_match_newest_first(sim: SimulatorProcess) -> None:
    mark = prompt()
    try:
        sim.script(text="the default")
        sim.script(match=mark, text="the special", times=1)
        assert [await said(sim, body(text)) for text in (mark, mark, prompt(text="my own"))] == [
            "the special",
            "the default",
            "my own",
        ]
        sim.script(match=mark, faults=[{"kind": 500}], repeat_last=True)
        assert [(await post(sim, body(mark))).status_code for _ in range(3)] == [500, 500, 500]
    finally:
        sim.drop_scripts()
    assert await said(sim, body(mark)) == sim.answer(mark)["text"]


def test_a_directive_may_hold_its_own_closing_brackets() -> None:
    text = 'before [[sim {"text": "a]]b", "references": [{"ids": [1]}]}]] after'
    script = read_directive(text)
    assert script is not None
    assert script.text == "a]]b"
    assert without_directive(text) == "before  after"
    assert read_directive("nothing here") is None
    with pytest.raises(DirectiveError):
        read_directive("[[sim {} and so on")


def test_an_unknown_field_or_kind_is_an_error() -> None:
    for script in ({"token": 1}, {"faults": [{"kind": "explode"}]}, {"faults": [{"kind": 99}]}):
        with pytest.raises(ValueError):
            Script.model_validate(script)


# --------------------------------------------------------------------------------------------- framing


@pytest.mark.parametrize("split", [None, 1, 7])
@pytest.mark.parametrize(
    "framing",
    [
        {"eol": "cr"},
        {"eol": "crlf"},
        {"bom": True, "comments": True, "multiline": True},
        {"eol": "crlf", "multiline": True, "space": False, "padding": True},
        {"ascii": True},
    ],
)
async def test_every_framing_says_the_same(sim: SimulatorProcess, framing: dict[str, Any], split: int | None) -> None:
    """Decoded by the specification's rules: BOM off, three line ends, data lines joined, comments skipped."""
    text = prompt(pieces=["Zoë", " 🌊", "\n\n", "ends"], framing=framing | {"split": split})
    received = await raw(sim, body(text))

    lines = received.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    datas = ["\n".join(line[5:] for line in frame.split("\n") if line.startswith("data:")) for frame in lines]
    found = [json.loads(data) for data in datas if data and data.strip() != "[DONE]"]
    assert text_of(found) == "Zoë 🌊\n\nends"
    assert received.startswith(b"\xef\xbb\xbf") is framing.get("bom", False)
    assert (b": keep-alive" in received) is framing.get("comments", False)
    assert received.isascii() is framing.get("ascii", False)


async def test_split_is_bytes_per_write(sim: SimulatorProcess) -> None:
    async with streaming(sim, body(prompt(tokens=2, framing={"split": 16}))) as response:
        sizes = [len(data) async for data in response.aiter_raw()]
    assert max(sizes) <= 16


async def test_a_surrogate_pair_in_two_frames(sim: SimulatorProcess) -> None:
    text = prompt(pieces=["a🌊b"], framing={"split_surrogates": True})
    stream = await raw(sim, body(text))
    assert rb'"content":"a\ud83c"' in stream
    assert rb'"content":"\udf0ab"' in stream
    assert chunks(stream)[-1]["usage"]["completion_tokens"] == 1


async def test_several_tokens_in_a_chunk(sim: SimulatorProcess) -> None:
    text = prompt(tokens=100, tokens_per_chunk=40)
    found = chunks(await raw(sim, body(text)))
    assert len(found) == 1 + 3 + 1
    assert found[-1]["usage"]["completion_tokens"] == 100


# ------------------------------------------------------------------------------------- log and process


async def test_the_log_tells_what_was_asked_and_keeps_no_secret(sim: SimulatorProcess) -> None:
    text = prompt(tokens=5)
    before = time.time()
    await raw(sim, body(text, max_tokens=50, temperature=0.3))

    (entry,) = sim.requests(text)
    assert before <= entry["time"] <= entry["ended"] <= time.time()
    expected = {
        "model": MODEL,
        "stream": True,
        "attempt": 1,
        "fault": None,
        "tokens_sent": 5,
        "status": 200,
        "outcome": "finished",
        "parameters": {"model": MODEL, "stream": True, "max_tokens": 50, "temperature": 0.3},
    }
    assert entry.items() >= expected.items()
    assert "test-key" not in json.dumps(entry)
    assert "authorization" not in entry["headers"]


async def test_a_client_that_goes_is_noticed_at_once(sim: SimulatorProcess) -> None:
    text = prompt(tokens=1_000, tokens_per_second=50)
    async with streaming(sim, body(text)):
        await sim.wait(text, tokens=3)
    entry = await sim.wait(text, ended=True)
    assert entry["outcome"] == "client_gone"
    assert 3 <= entry["tokens_sent"] < 100


async def test_waiting_ends_with_a_timeout_that_shows_the_requests(sim: SimulatorProcess) -> None:
    text = prompt(tokens=1)
    await raw(sim, body(text))
    with pytest.raises(TimeoutError, match="finished"):
        await sim.wait(text, requests=2, timeout=0.05)
    second = asyncio.create_task(sim.wait(text, requests=2, tokens=1))
    await raw(sim, body(text))
    assert (await second)["attempt"] == 2


async def test_forgetting_begins_the_attempts_anew(sim: SimulatorProcess) -> None:
    text = prompt(tokens=1, faults=[{"kind": 500}])
    first = (await post(sim, body(text))).status_code
    sim.forget()
    assert (first, (await post(sim, body(text))).status_code, len(sim.requests())) == (500, 500, 1)


async def test_tokens_keep_their_pace(sim: SimulatorProcess) -> None:
    text = prompt(tokens=21, first_token_seconds=0.2, tokens_per_second=100)
    started = time.monotonic()
    await raw(sim, body(text))
    assert 0.4 <= time.monotonic() - started < 1.5


def test_sigterm_ends_the_process_with_answers_open(tmp_path: Path) -> None:
    """The port is in the file, and an open stream holds nothing up."""
    port_file = tmp_path / "port"
    with simulator(port_file=port_file, rate=10) as sim:
        assert sim.url.endswith(f":{port_file.read_text().strip()}")
        with (
            httpx2.Client(headers=KEY) as client,
            client.stream("POST", f"{sim.url}/v1/chat/completions", json=body("hello")) as response,
        ):
            assert response.status_code == 200
            started = time.monotonic()
            sim.process.send_signal(signal.SIGTERM)
            sim.process.wait(5)
    assert time.monotonic() - started < 2
