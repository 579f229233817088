"""The real worker, the real client and Temporal against a fake of OpenAI's API that we did not write (aimock)."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from tests.support.service import Service, Watched, service
from tests.support.stack import Stack, stack
from tests.upstreams.aimock import aimock

TEXT = "A first line.\n\n- one\n- two “quoted” 🦉\n\n    indented = True\n\nThe end."
REASONING = "Let me think.\nFirst this, then that."
DEFAULTS = {"CHATJOBS_CONTINUATION": "auto"}
QUICK = {"firstTokenSeconds": 2.0, "stallSeconds": 1.0}
ARGUMENTS = {"city": "Zürich", "days": 3}


def fixture(prompt: str, response: dict[str, Any], call: int | None = None, **options: Any) -> dict[str, Any]:
    """What is answered to a prompt; ``call`` is the number of the call that this is for, from 0."""
    number = {} if call is None else {"sequenceIndex": call}
    return {"match": {"userMessage": prompt, **number}, "response": response, **options}


def broken(prompt: str, **fault: Any) -> list[dict[str, Any]]:
    """An answer whose first stream breaks."""
    return [fixture(prompt, {"content": TEXT}, 0, **fault), fixture(prompt, {"content": TEXT})]


def refused(prompt: str, status: int, kind: str) -> list[dict[str, Any]]:
    """A first call that is refused."""
    return [
        fixture(prompt, {"error": {"message": "Not now", "type": kind}, "status": status}, 0),
        fixture(prompt, {"content": TEXT}),
    ]


FIXTURES = [
    fixture("plain", {"content": TEXT}),
    fixture("thinking", {"content": TEXT, "reasoning": REASONING}),
    fixture("one tool", {"toolCalls": [{"name": "get_weather", "arguments": ARGUMENTS}]}),
    fixture("two tools", {"toolCalls": [{"name": "get_weather", "arguments": {"city": c}} for c in ("Rome", "Oslo")]}),
    fixture("text and tools", {"content": TEXT, "toolCalls": [{"name": "get_weather", "arguments": ARGUMENTS}]}),
    fixture("too long", {"content": TEXT, "finishReason": "length"}),
    *broken("cut", truncateAfterChunks=4),
    *broken("dropped", disconnectAfterMs=60),
    *broken("stalled", streamingProfile={"ttft": 10, "tps": 0.05}),
    *refused("limited", 429, "rate_limit_error"),
    *refused("down", 503, "server_error"),
    fixture("unauthorized", {"error": {"message": "No such key", "type": "invalid_request_error"}, "status": 401}),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with aimock(tmp_path_factory.mktemp("aimock"), FIXTURES) as url:
        environment = {**DEFAULTS, "CHATJOBS_CONCURRENCY": "50", "MISTRAL_SERVER_URL": url}
        with stack(tmp_path_factory.mktemp("aimock-stack"), env=environment) as running:
            yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running
    sys.stdout.write(machine.news())


async def chat(live: Service, prompt: str, model: str = "gpt-4o", **fields: Any) -> tuple[Job, Watched]:
    job_id = await live.submit(prompt, model=model, limits=QUICK, **fields)
    watched = await live.watched(job_id)
    return await live.ended(job_id), watched


def assert_answered(job: Job, watched: Watched) -> None:
    assert (job.status, job.finish_reason, job.error) == (JobStatus.COMPLETED, "stop", None), job
    assert job.content == watched.texts[Channel.CONTENT] == TEXT


async def test_a_chat(live: Service) -> None:
    job, watched = await chat(live, "plain")
    assert_answered(job, watched)
    assert len(job.attempts) == 1


async def test_reasoning_has_a_channel_of_its_own(live: Service) -> None:
    """OpenAI's servers and those like them stream it beside the content."""
    job, watched = await chat(live, "thinking", model="deepseek-reasoner")
    assert_answered(job, watched)
    assert job.reasoning == watched.texts[Channel.REASONING] == REASONING


@pytest.mark.parametrize(
    ("prompt", "wanted", "text"),
    [
        ("one tool", [ARGUMENTS], ""),
        ("two tools", [{"city": "Rome"}, {"city": "Oslo"}], ""),
        ("text and tools", [ARGUMENTS], TEXT),
    ],
)
async def test_tool_calls_in_pieces_are_whole(live: Service, prompt: str, wanted: list[Any], text: str) -> None:
    job, _ = await chat(live, prompt)
    assert (job.status, job.finish_reason) == (JobStatus.COMPLETED, "tool_calls")
    calls = list(job.tool_calls or ())
    assert [json.loads(str(call.function.arguments)) for call in calls] == wanted
    assert (job.content or "") == text


@pytest.mark.parametrize("prompt", ["cut", "dropped", "stalled", "limited", "down"])
async def test_what_goes_wrong_once_comes_right(live: Service, prompt: str) -> None:
    job, watched = await chat(live, prompt)
    assert_answered(job, watched)
    assert len(job.attempts) == 2


async def test_a_length_limit_is_no_success(live: Service) -> None:
    job, _ = await chat(live, "too long")
    assert (job.status, job.content) == (JobStatus.INCOMPLETE, TEXT)


async def test_a_refusal_is_final(live: Service) -> None:
    job, _ = await chat(live, "unauthorized")
    assert job.error
    assert (job.status, job.error.code, len(job.attempts)) == (JobStatus.FAILED, "upstream_unauthorized", 1)
