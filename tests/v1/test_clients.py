"""The official clients of Mistral's API against /v1: only base URL and key are changed."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.support.cutter import BAD_GATEWAY, cutter
from tests.support.gateway import Gateway
from tests.support.simulator_process import SimulatorProcess, prompt
from tests.v1.conftest import OfficialClient

CLIENTS = (
    *("python mistralai", "python openai", "python langchain"),
    *("node mistralai", "node openai", "node vercel"),
)
WITH_MODELS = ("python mistralai", "python openai", "node mistralai", "node openai")
TEXT = 'Grüße, 🦉\u2028 \u0085and\r\n\tmore: "quoted" \\ back.'
CALL = {"name": "weather", "arguments": {"city": "Zürich"}}
RETRIED = {"python mistralai": (BAD_GATEWAY, BAD_GATEWAY), "python langchain": (1, 1)}
"""What these retry by themselves: only errors of a server, only broken connections. The others retry both."""
BASE = {"key": "any key will do", "retries": 0, "model": "mistral-small-latest"}

pytestmark = [pytest.mark.long, pytest.mark.parametrize("official", CLIENTS, indirect=True)]


def case(door: str, kind: str, words: str, **fields: Any) -> dict[str, Any]:
    return {**BASE, "url": door, "kind": kind, "prompt": words, **fields}


async def one(official: OfficialClient, door: str, kind: str, words: str, **fields: Any) -> dict[str, Any]:
    return (await official.run({"it": case(door, kind, words, **fields)}))["it"]


def arguments(calls: Any) -> Any:
    """The arguments of the only call; some clients decode them."""
    ((name, given),) = calls
    assert name == "weather"
    return json.loads(given) if isinstance(given, str) else given


async def test_answers(official: OfficialClient, door: Gateway, sim: SimulatorProcess) -> None:
    """Text, streams, thoughts, tools, a schema and images, all in the client's own types."""
    asked = {
        "chat": prompt(text=TEXT),
        "stream": prompt(text=TEXT, tokens_per_second=40),
        "reasoning": prompt(reasoning="Let me think.\n", text=TEXT),
        "tools": prompt("tool "),
        "tools_stream": prompt(tool_calls=[CALL]),
        "schema": prompt(text='{"answer": "yes"}'),
        "image": prompt(text=TEXT),
    }
    sim.script(match=asked["tools"], times=1, tool_calls=[CALL])
    found = await official.run({kind: case(door.url, kind, words) for kind, words in asked.items()})
    assert {name: outcome["error"] for name, outcome in found.items() if "error" in outcome} == {}
    assert [found[kind]["text"] for kind in ("chat", "stream", "reasoning", "image")] == [TEXT] * 4
    assert found["stream"]["pieces"] > 1
    for kind in ("chat", "stream"):
        assert found[kind]["finish"] == "stop"
        prompt_tokens, completion_tokens, total = found[kind]["usage"]
        assert prompt_tokens > 0
        assert completion_tokens > 0
        assert total == prompt_tokens + completion_tokens
    assert found["reasoning"]["reasoning"] == "Let me think.\n"
    for kind in ("tools", "tools_stream"):
        assert arguments(found[kind]["calls"]) == CALL["arguments"]
        assert found[kind]["finish"].replace("-", "_") == "tool_calls"
    assert found["tools"]["then"]
    first, second = sim.requests(asked["tools"])
    assert first["conversation"] != second["conversation"]
    assert found["schema"]["parsed"] == {"answer": "yes"}
    (seen,) = sim.requests(asked["schema"])
    assert seen["parameters"]["response_format"]["type"] == "json_schema"


async def test_errors(official: OfficialClient, door: Gateway, sim: SimulatorProcess) -> None:
    """Whatever fails is an error of the client's, with the status that Mistral would use: never an answer."""
    words = {
        "unknown model": prompt(),
        "no allowance": prompt(faults=[{"kind": 429, "variant": "no_allowance"}]),
        "no allowance, streamed": prompt(faults=[{"kind": 429, "variant": "no_allowance"}]),
        "refused": prompt(),
        "fails later": prompt(tokens=20, faults=[{"kind": "cut", "after": 5}, {"kind": 401}]),
        "starts over": prompt(tokens=20, tool_calls=[CALL], faults=[{"kind": "cut", "after": 5}]),
    }
    plan = {
        name: case(door.url, "chat" if name in ("unknown model", "no allowance", "refused") else "stream", given)
        for name, given in words.items()
    }
    sim.script(match=words["refused"], faults=[{"kind": 422, "message": "The seed is odd"}])
    plan["unknown model"]["model"] = "no-such-model"
    plan["starts over"]["kind"] = "tools_stream"
    found = await official.run(plan)
    assert [name for name, outcome in found.items() if "error" not in outcome] == []
    statuses = {name: outcome["error"]["status"] for name, outcome in found.items()}
    assert statuses["unknown model"] == 400
    assert statuses["no allowance"] == statuses["no allowance, streamed"] == 429
    assert statuses["refused"] == 422
    assert "seed is odd" in found["refused"]["error"]["message"]


async def test_its_own_retry_is_no_second_generation(
    official: OfficialClient, door: Gateway, sim: SimulatorProcess
) -> None:
    """A connection that breaks before the head of the response is there: the client sends the request
    again, with the same Idempotency-Key."""
    words = prompt(text=TEXT)
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    async with cutter(door.url, iter([*RETRIED.get(official.name, (1, BAD_GATEWAY)), None])) as proxy:
        found = await one(official, proxy.url, "chat", words, headers=headers, retries=4)
    assert found.get("text") == TEXT, found
    assert proxy.cuts == 2
    assert len(sim.requests(words)) == 1


async def test_a_stream_that_was_cut_is_read_again_from_its_beginning(
    official: OfficialClient, door: Gateway, sim: SimulatorProcess
) -> None:
    """While the answer is being generated: the client fails, and so would one that was killed; the same request again
    has all of it."""
    words = prompt(tokens=40, hold=20)
    given = case(door.url, "stream", words, headers={"Idempotency-Key": uuid.uuid4().hex})
    async with cutter(door.url, iter([700, None])) as proxy:
        first = await official.run({"it": given | {"url": proxy.url}})
        assert "error" in first["it"], first
        sim.release(words)
        second = await official.run({"it": given | {"url": proxy.url}})
    assert second["it"].get("text") == sim.answer(words)["text"], second
    assert len(sim.requests(words)) == 1


async def test_a_long_silence(official: OfficialClient, door: Gateway, sim: SimulatorProcess) -> None:
    """The comments that keep a connection open are no part of the answer, before it and within it."""
    words = prompt(text=TEXT, faults=[{"kind": "stall", "after": 2, "seconds": 17}])
    found = await one(official, door.url, "stream", words)
    assert found.get("text") == TEXT, found
