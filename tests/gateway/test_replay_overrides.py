"""The fields that a replay changes: all of a request's, and taken away by null."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from chatjobs.contracts import ChatRequest
from tests.support.gateway import alone, gateway

USER = {"role": "user", "content": "Why?"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHANGES: dict[str, tuple[Any, Any]] = {
    "messages": ([USER], [{"role": "system", "content": "Be brief."}, USER]),
    "model": ("mistral-small-latest", "mistral-large-latest"),
    "temperature": (0.1, 0.2),
    "top_p": (0.1, 0.2),
    "top_k": (1, 2),
    "max_tokens": (10, 20),
    "min_tokens": (1, 2),
    "stream": (True, False),
    "stop": (["a"], "b"),
    "random_seed": (1, 2),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "tools": ([TOOL], [{"type": "web_search"}]),
    "tool_choice": ("auto", "any"),
    "presence_penalty": (0.1, 0.2),
    "frequency_penalty": (0.1, 0.2),
    "repetition_penalty": (1.1, 1.2),
    "logprobs": (True, False),
    "top_logprobs": (1, 2),
    "prompt_logprobs": (True, False),
    "top_prompt_logprobs": (1, 2),
    "n": (None, 1),
    "prediction": ({"type": "content", "content": "a"}, {"type": "content", "content": "b"}),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("high", "none"),
    "prompt_mode": (None, "reasoning"),
    "guardrails": ([{"a": 1}], [{"a": 2}]),
    "prompt_cache_key": ("a", "b"),
    "service_tier": ("auto", "standard_only"),
    "safe_prompt": (True, False),
    "id": ("a", "b"),
    "callback": ("https://a.example/", "https://b.example/"),
    "webhook": ({"url": "https://a.example/"}, {"url": "https://b.example/", "events": ["chat.failed"]}),
    "metadata": ({"a": "1"}, {"b": "2"}),
    "onInterrupt": ("restart", "fail"),
    "maxSegments": (2, 3),
    "limits": ({"totalSeconds": 10.0}, {"stallSeconds": 20.0}),
    "retry": ({"attempts": 2}, {"backoff": {"type": "fixed", "delay": 1}}),
    "priority": (1, 2),
    "extra": ({"a": 1}, {"b": [2]}),
    "fallbackModels": (["a"], ["b", "c"]),
    "maxRepairs": (0, 2),
}
"""A value of each field before and after; None: it was not there."""
OF_THE_NEW_JOB = {"jobId", "startAt", "previousJobId"}
"""Not repeated; the last may not be given."""
FIELDS = sorted({field.alias or name for name, field in ChatRequest.model_fields.items()} - OF_THE_NEW_JOB)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with alone(tmp_path_factory.mktemp("overrides")) as stack:
        url = gateway(stack).url
        with httpx2.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield client


def accepted(answer: httpx2.Response) -> str:
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


def replayed(http: httpx2.Client, job_id: str, overrides: dict[str, Any]) -> Any:
    """The request of the replay."""
    return http.get(f"/api/jobs/{accepted(http.post(f'/api/jobs/{job_id}/replay', json=overrides))}/request").json()


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_can_be_changed_and_taken_away(http: httpx2.Client, field: str) -> None:
    """An object as a whole. Null leaves what is required, and says that it is missing."""
    before, after = CHANGES[field]
    body = {"messages": [USER], "top_p": 0.5, **({} if before is None else {field: before})}
    job_id = accepted(http.post("/api/jobs", json=body))
    assert replayed(http, job_id, {}).get(field) == before
    assert replayed(http, job_id, {field: after})[field] == after
    if field == "messages":
        refused = http.post(f"/api/jobs/{job_id}/replay", json={field: None})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/messages")
        return
    without = replayed(http, job_id, {field: None})
    assert field not in without
    assert without["messages"] == [USER]


def test_a_refused_change_names_its_place(http: httpx2.Client) -> None:
    """By a pointer into the request that the replay would have had."""
    job_id = accepted(http.post("/api/jobs", json={"messages": [USER]}))
    messages = [USER, {"role": "user", "content": 7}]
    refused = http.post(f"/api/jobs/{job_id}/replay", json={"messages": messages, "limits": {"totalSeconds": 0}})
    assert refused.status_code == 422
    assert {one["pointer"] for one in refused.json()["errors"]} >= {"/limits/totalSeconds"}
    assert any(one["pointer"].startswith("/messages/1/content") for one in refused.json()["errors"])


def test_the_place_in_a_conversation_is_kept(http: httpx2.Client) -> None:
    job_id = accepted(http.post("/api/jobs", json={"messages": [USER]}))
    refused = http.post(f"/api/jobs/{job_id}/replay", json={"previousJobId": "job_x"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/previousJobId")
