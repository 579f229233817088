"""The real worker, the real client and Temporal against a fake of Mistral that we did not write (llmock)."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from tests.support.service import Service, Watched, service
from tests.support.stack import Stack, stack
from tests.upstreams.llmock import LLMock, llmock

pytestmark = pytest.mark.long

TEXT = "The first line stands.\n\nThen a list:\n\n- apples, pears\n- a  gap, “quotes” and an emoji 🦉\n\nThe end."
WORDS = 8
"""More than the chunks after which the faults come."""
DEFAULTS = {"CHATJOBS_CONTINUATION": "auto"}
QUICK = {"firstTokenSeconds": 10.0, "stallSeconds": 1.0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SAYS = {"type": "reply", "text": TEXT, "times": None}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMock]:
    with llmock(tmp_path_factory.mktemp("llmock")) as server:
        yield server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, upstream: LLMock) -> Iterator[Stack]:
    environment = {**DEFAULTS, "CHATJOBS_CONCURRENCY": "50", "MISTRAL_SERVER_URL": upstream.server_url}
    with stack(tmp_path_factory.mktemp("llmock-stack"), env=environment) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running
    sys.stdout.write(machine.news())


async def chat(live: Service, model: str, message: str = "Hello", **fields: Any) -> tuple[Job, Watched]:
    """The job at its end, and what a reader saw of it who followed from the beginning."""
    job_id = await live.submit(message, model=model, limits=QUICK, **fields)
    watched = await live.watched(job_id)
    return await live.ended(job_id), watched


def assert_answered(job: Job, watched: Watched, text: str) -> None:
    assert (job.status, job.finish_reason, job.error) == (JobStatus.COMPLETED, "stop", None), job
    assert job.content == watched.texts[Channel.CONTENT] == text


async def test_a_chat(live: Service, upstream: LLMock) -> None:
    """The text is the one that the server gives to somebody who does not stream."""
    job, watched = await chat(live, "plain-chat", "Why is the sky blue?")
    body = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    assert_answered(job, watched, upstream.answer("plain-chat", body)["content"])
    assert len(job.attempts) == 1
    assert job.usage
    assert job.usage.completion_tokens
    assert not job.usage_estimated, "this server sends no usage unless it is asked for in OpenAI's way"


async def test_tool_calls_are_whole(live: Service, upstream: LLMock) -> None:
    wanted = [{"name": "get_weather", "arguments": {"city": "Zürich"}}, {"name": "get_weather", "arguments": {}}]
    upstream.script("tools", {"type": "reply", "tool_calls": wanted})
    job, _ = await chat(live, "tools", tools=[WEATHER])
    assert (job.status, job.finish_reason) == (JobStatus.COMPLETED, "tool_calls")
    calls = list(job.tool_calls or ())
    assert [(call.function.name, json.loads(str(call.function.arguments))) for call in calls] == [
        (call["name"], call["arguments"]) for call in wanted
    ]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize("fault", ["malformed_arguments", "unknown_tool"])
async def test_what_the_model_says_wrongly_is_handed_on_as_it_is(live: Service, upstream: LLMock, fault: str) -> None:
    """Arguments that are no JSON, a tool that was not offered: the caller's to judge, the answer is complete."""
    upstream.script(fault, {"type": "tool_fault", "kind": fault})
    job, _ = await chat(live, fault, "What is the weather in Rome?", tools=[WEATHER])
    assert (job.status, job.finish_reason, len(job.attempts)) == (JobStatus.COMPLETED, "tool_calls", 1)
    assert len(job.tool_calls or []) == 1


async def test_a_tool_call_that_is_cut_starts_over(live: Service, upstream: LLMock) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Rome"}}
    cut = {"type": "stream_fault", "kind": "disconnect", "after_chunks": 2}
    upstream.script("cut-tools", {"type": "reply", "tool_calls": [call], "times": None}, cut)
    job, _ = await chat(live, "cut-tools", tools=[WEATHER])
    assert (job.status, job.finish_reason, len(job.attempts)) == (JobStatus.COMPLETED, "tool_calls", 2)
    assert [json.loads(str(found.function.arguments)) for found in job.tool_calls or []] == [{"city": "Rome"}]


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed", "stall"])
@pytest.mark.parametrize("chunks", [0, 1, WORDS], ids=["before anything", "before the text", "in the text"])
async def test_a_broken_answer_comes_whole(live: Service, upstream: LLMock, kind: str, chunks: int) -> None:
    """This server does not know ``prefix``: it answers from the beginning, and nothing may be glued together."""
    model = f"broken-{kind}-{chunks}"
    fault = {"type": "stream_fault", "kind": kind, "after_chunks": chunks, "stall_seconds": 20}
    upstream.script(model, SAYS, fault)
    job, watched = await chat(live, model)
    assert_answered(job, watched, TEXT)
    *broken, last = job.attempts  # the fault may have met the call that tries whether this server continues a text
    assert (len(broken) <= 1, last.outcome) == (True, "finished")
    assert all(attempt.outcome != "finished" for attempt in broken)


async def test_an_answer_that_breaks_three_times_comes_whole(live: Service, upstream: LLMock) -> None:
    faults = [
        {"type": "stream_fault", "kind": kind, "after_chunks": 2 + number}
        for number, kind in enumerate(("disconnect", "truncate", "malformed"))
    ]
    upstream.script("three-times", SAYS, *faults)
    job, watched = await chat(live, "three-times")
    assert_answered(job, watched, TEXT)
    assert len(job.attempts) in (3, 4)  # a fault may meet the call that tries whether this server continues a text


async def test_a_429_is_obeyed(live: Service, upstream: LLMock) -> None:
    upstream.script("limited", {"type": "fail", "status": 429, "retry_after": 2}, SAYS)
    job, watched = await chat(live, "limited")
    assert_answered(job, watched, TEXT)
    first, second = upstream.calls("limited")
    assert second["started_at"] - first["started_at"] >= 2


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_an_outage_is_waited_out(live: Service, upstream: LLMock, status: int) -> None:
    model = f"down-{status}"
    upstream.script(model, {"type": "fail", "status": status, "times": 2}, SAYS)
    job, watched = await chat(live, model)
    assert_answered(job, watched, TEXT)
    assert len(upstream.calls(model)) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "upstream_rejected"),
        (401, "upstream_unauthorized"),
        (403, "upstream_unauthorized"),
        (404, "upstream_rejected"),
        (422, "upstream_rejected"),
    ],
)
async def test_a_refusal_is_final(live: Service, upstream: LLMock, status: int, code: str) -> None:
    model = f"refused-{status}"
    upstream.script(model, {"type": "fail", "status": status, "times": None})
    job, _ = await chat(live, model)
    assert job.status is JobStatus.FAILED
    assert job.error
    assert job.error.code == code
    # It may be `stream_options` that such a server refuses: the call is made once more without it.
    assert len(upstream.calls(model)) == (2 if status in (400, 422) else 1)


async def test_a_slow_first_token_is_waited_for(live: Service, upstream: LLMock) -> None:
    upstream.script("slow", {"type": "slow_first_token", "seconds": 2}, SAYS)
    job, watched = await chat(live, "slow")
    assert_answered(job, watched, TEXT)
    assert len(job.attempts) == 1


async def test_a_length_limit_is_no_success(live: Service, upstream: LLMock) -> None:
    upstream.script("short", {**SAYS, "finish_reason": "length"})
    job, _ = await chat(live, "short")
    assert (job.status, job.content) == (JobStatus.INCOMPLETE, TEXT)


async def test_two_answers_are_never_glued_together(live: Service, upstream: LLMock) -> None:
    """The second call is answered with another text, from its beginning: the beginning of the first one is dropped."""
    other = "Something else altogether: nine words of another answer."
    cut = {"type": "stream_fault", "kind": "disconnect", "after_chunks": WORDS}
    upstream.script("other", {**SAYS, "times": 1}, {"type": "reply", "text": other, "times": None}, cut)
    job, watched = await chat(live, "other")
    assert_answered(job, watched, other)
    assert watched.resets == 1


async def test_the_server_holds_nothing_against_us(upstream: LLMock) -> None:
    """The last test of this file: its verdict over everything above.

    It takes a truncated answer for accepted when no call with the same body follows. Ours may carry the text so far.
    """
    calls = {call["seq"]: call for call in upstream.calls()}

    def called_again(finding: dict[str, Any]) -> bool:
        last = max(finding["requests"])
        return any(call["model"] == calls[last]["model"] for seq, call in calls.items() if seq > last)

    held = [finding for finding in upstream.verdict() if finding["severity"] == "error"]
    assert [f for f in held if f["code"] != "truncated_stream_accepted" or not called_again(f)] == []
