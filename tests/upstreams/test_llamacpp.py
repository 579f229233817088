"""The real worker, the real client and Temporal against llama.cpp's own server, which we did not write, and a real
model: SmolLM2 with 135 million parameters. What it says is of no matter; that it goes on is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from chatjobs.contracts import Channel, ChatRequest, JobStatus
from domain.continuing import Drops, Practice, Way
from domain.errors import UpstreamRefused
from domain.ports import Finish, ModelEvent, TextDelta
from providers.mistral.chat import MistralChat
from providers.mistral.probe import measured
from tests.support.service import Service, service
from tests.support.stack import Stack, stack
from tests.upstreams.llamacpp import CONTEXT_TOKENS, llamacpp

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("real_model")]

MODEL = "smollm2"
STORY = "Tell me a long story about a lighthouse and a storm."
MOST_TOKENS = 160
PATIENT = {"firstTokenSeconds": 600, "stallSeconds": 600, "totalSeconds": 900}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llamacpp(tmp_path_factory.mktemp("llamacpp")) as url:
        yield url


@pytest.fixture
async def model(server: str) -> AsyncIterator[MistralChat]:
    found = MistralChat("any key", server, practice=None)
    yield found
    await found.aclose()


@pytest.fixture(scope="module")
def machine(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"MISTRAL_SERVER_URL": server, "CHATJOBS_CONTINUATION": "assistant", "CHATJOBS_HEARTBEAT_SECONDS": "2"}
    with stack(tmp_path_factory.mktemp("llamacpp-stack"), env=env) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running
    sys.stdout.write(machine.news())


def asking(words: str, **fields: object) -> ChatRequest:
    request = {"model": MODEL, "messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 12}
    return ChatRequest.parse(request | fields)


async def said(model: MistralChat, request: ChatRequest, text: str | None = None) -> tuple[str, Finish]:
    async with aclosing(model.stream(request, text)) as stream:
        events: list[ModelEvent] = [event async for event in stream]
    finish = events[-1]
    assert isinstance(finish, Finish)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), finish


async def test_an_answer_with_its_usage_and_what_is_beside_it(model: MistralChat) -> None:
    text, finish = await said(model, asking("Say hi"))
    assert (bool(text), finish.reason) == (True, "length")
    assert finish.usage is not None
    assert finish.usage.completion_tokens == 12
    assert finish.usage.prompt_tokens > 0
    assert {"timings", "system_fingerprint"} <= set(finish.extra or {})


async def test_one_answer_after_the_other(model: MistralChat) -> None:
    """The server closes each connection after a stream without saying so, and the next request is sent on it."""
    answers = [await said(model, asking("Say hi")) for _ in range(8)]
    assert {finish.reason for _, finish in answers} == {"length"}


async def test_the_probabilities_of_tokens_are_kept(model: MistralChat) -> None:
    text, finish = await said(model, asking("Say hi", logprobs=True, top_logprobs=1))
    choice = (finish.extra or {})["choice"]
    assert isinstance(choice, dict)
    assert "".join(one["token"] for one in choice["logprobs"]["content"]) == text  # type: ignore[index,call-overload,union-attr,misc]


async def test_how_it_continues_is_measured(model: MistralChat) -> None:
    """Any last message of the assistant's, so that the first way tried works; its model sees all of the text."""
    found = await measured(model, MODEL)
    assert found is not None
    assert (found.way, found.drops, found.echoes) == (Way.PREFIX, Drops.NOTHING, False)


@pytest.mark.parametrize("way", [Way.PREFIX, Way.CONTINUE_FINAL_MESSAGE, Way.ASSISTANT])
async def test_every_way_continues(server: str, way: Way) -> None:
    """A series of numbers is gone on with, and not begun again."""
    model = MistralChat("any key", server, practice=Practice(way, Drops.NOTHING))
    text, _ = await said(model, asking("Count from 4001 to 4030."), "4001, 4002, 4003, 4004, 40")
    await model.aclose()
    assert text.startswith("05")


async def test_a_prompt_that_is_too_long(model: MistralChat) -> None:
    with pytest.raises(UpstreamRefused) as refused:
        await said(model, asking("word " * 4 * CONTEXT_TOKENS))
    assert (refused.value.reason, refused.value.http_status) == ("upstream_rejected", 400)


async def test_a_killed_worker_loses_no_word(machine: Stack, live: Service) -> None:
    """SIGKILL in mid-answer, twice: what a reader was shown stays, and the answer goes on from there."""
    job_id = await live.submit(STORY, model=MODEL, max_tokens=MOST_TOKENS, temperature=0, limits=PATIENT)
    watching = asyncio.create_task(live.watched(job_id))
    shown = list[str]()
    for _ in range(2):
        shown.append(await grown(live, job_id, len(shown[-1]) if shown else 0))
        await asyncio.to_thread(machine.workers[0].restart)
    watched = await watching
    job = await live.jobs.queries.get(job_id)
    assert job.status in (JobStatus.COMPLETED, JobStatus.INCOMPLETE)
    assert (watched.resets, job.epoch, watched.texts[Channel.CONTENT]) == (0, 1, job.content)
    assert all((job.content or "").startswith(text) for text in shown)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "lost", "finished"]
    assert job.attempts[-1].estimated is False


async def grown(live: Service, job_id: str, length: int) -> str:
    """The stored text, once it has at least 20 characters more than ``length``."""
    async with asyncio.timeout(300):
        while len(text := (await live.jobs.queries.get(job_id)).content or "") < length + 20:  # noqa: ASYNC110 - readers
            await asyncio.sleep(0.01)
    return text
