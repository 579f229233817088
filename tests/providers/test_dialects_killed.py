"""Workers that are killed in the middle of an answer of another server of Mistral's models: the answer goes on.

Each server is asked to continue in its own way, as the setting says, and as ``auto`` finds out by measuring. The
simulator continues as these servers do, and only then: asked in another way, it begins a new answer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from dispatch import server_knowledge
from domain.settings import Settings
from providers.mistral.probe import PROBES
from tests.support.service import Service, Watched, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.long

TEXT = " ".join(f"word{number}" for number in range(40))
CASES = [
    ("vllm", "continue_final_message", 0),
    ("llamacpp", "assistant", 0),
    ("llamacpp", "prefix", 0),  # it ignores the flag, and goes on from any last message of the assistant's
    ("llamacpp", "continue_final_message", 0),  # the same
    ("ollama", "assistant", 0),
    ("ollama", "prefix", 0),
    ("ollama", "none", 1),
    ("vllm", "none", 1),
]


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"CHATJOBS_HEARTBEAT_SECONDS": "2"}
    with stack(tmp_path_factory.mktemp(request.param), simulator={"dialect": request.param}, env=env) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running
    sys.stdout.write(machine.news())


def serve(machine: Stack, setting: str) -> None:
    """Restart the worker with this CHATJOBS_CONTINUATION."""
    machine.env["CHATJOBS_CONTINUATION"] = setting
    machine.workers[0].restart()


async def killed(machine: Stack, live: Service, model: str, **script: Any) -> tuple[Job, Watched, list[dict[str, Any]]]:
    """A job whose worker is killed after 20 tokens, at its end, and the calls that it took."""
    message = prompt("killed", text=TEXT, hold=20, **script)
    job_id = await live.submit(message, model=model)
    watching = asyncio.create_task(live.watched(job_id))
    await machine.simulator.wait(message, tokens=20)
    await stored(live, job_id, len("".join(machine.simulator.answer(message)["tokens"][:20])))
    await asyncio.to_thread(machine.workers[0].restart)
    machine.simulator.release(message)
    watched = await watching
    return await live.jobs.queries.get(job_id), watched, machine.simulator.requests(message)


async def stored(live: Service, job_id: str, position: int) -> None:
    """Wait until so much of the answer is stored."""
    async with asyncio.timeout(30):
        while (await live.jobs.queries.get(job_id)).position < position:  # noqa: ASYNC110 - the event is for readers
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("machine", "setting", "resets"), CASES, indirect=["machine"])
async def test_the_same_answer_goes_on(machine: Stack, live: Service, setting: str, resets: int) -> None:
    """With the setting for the server no reader notices; with ``none`` it starts over, and nothing is glued."""
    serve(machine, setting)
    job, watched, calls = await killed(machine, live, f"mistral-{setting.replace('_', '-')}")
    assert (job.status, job.content, watched.texts[Channel.CONTENT]) == (JobStatus.COMPLETED, TEXT, TEXT)
    assert (watched.resets, job.epoch, len(calls)) == (resets, 1 + resets, 2)
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "finished"]
    assert job.attempts[1].estimated is (setting == "prefix"), "others are asked for their usage at once"
    if not resets:
        assert calls[1]["prefix"] == TEXT[: len(calls[1]["prefix"])] != ""
        assert calls[1]["tokens_sent"] < len(machine.simulator.answer(job_text(calls))["tokens"])


def job_text(calls: list[dict[str, Any]]) -> str:
    return str(calls[0]["prompt"])


@pytest.mark.parametrize(
    ("machine", "found"),
    [("vllm", "continue_final_message"), ("ollama", "prefix"), ("llamacpp", "prefix")],
    indirect=["machine"],
)
async def test_auto_finds_out(machine: Stack, live: Service, found: str) -> None:
    """The first interrupted answer may start over, since nothing is known; the model is measured, and the next worker
    knows what was found: no further answer starts over."""
    model = "mistral-auto"
    for probe in PROBES:
        machine.simulator.script(match=probe.prompt, text=probe.list + probe.rest + ", and so on")
    serve(machine, "auto")
    assert await cut(live, model) == TEXT
    assert await measurement(machine, live, model) == found
    job, watched, calls = await killed(machine, live, model)
    assert (job.status, job.content, watched.texts[Channel.CONTENT]) == (JobStatus.COMPLETED, TEXT, TEXT)
    assert (watched.resets, job.epoch, len(calls)) == (0, 1, 2)
    machine.simulator.drop_scripts()


@pytest.mark.parametrize("machine", ["ollama"], indirect=True)
async def test_auto_finds_out_that_a_template_ends_each_message(machine: Stack, live: Service) -> None:
    """As that of some of Ollama's models: the server begins a new answer, and it is not asked to go on again."""
    model = "mistral-ended"
    for probe in PROBES:
        text = probe.list + probe.rest + ", and so on"
        machine.simulator.script(match=probe.prompt, text=text, continues="never")
    serve(machine, "auto")
    assert await cut(live, model, continues="never") == TEXT
    assert await measurement(machine, live, model) == "none"
    job, watched, calls = await killed(machine, live, model, continues="never")
    assert (job.content, watched.resets, [call["prefix"] for call in calls]) == (TEXT, 1, [None, None])
    machine.simulator.drop_scripts()


async def cut(live: Service, model: str, **script: Any) -> str | None:
    """The content of an answer whose first stream broke off: the worker measures the model, and is not killed."""
    message = prompt("cut", text=TEXT, faults=[{"kind": "cut", "after": 20}], **script)
    return (await live.ended(await live.submit(message, model=model))).content


async def measurement(machine: Stack, live: Service, model: str) -> str:
    """The way that was measured, once it is stored."""
    known = server_knowledge.store(Settings(mistral_server_url=machine.env["MISTRAL_SERVER_URL"]), live.database)
    async with asyncio.timeout(60):
        while (practice := (await server_knowledge.remembered(known)).get(model)) is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)
    return practice.way.value
