"""The same answer goes on: interrupted wherever, its text is what it would have been, and nobody reads any of it twice.

Most of it runs in this process, against a real Temporal, with the real client of Mistral over the simulator's wire; the
end of the page kills real workers.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from chatjobs.contracts import Channel, Job, JobStatus
from domain.values import Cursor
from providers.mistral.chat import MistralChat
from storage.engine.database import Database
from storage.transcript.reader import TranscriptReader
from tests.support.fakes import PATIENCE
from tests.support.house import QUICK, House, house
from tests.support.service import Service, service
from tests.support.simulator_process import SimulatorProcess, prompt, simulator
from tests.support.stack import Stack, stack

COMPLETED, FAILED, INCOMPLETE = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.INCOMPLETE
CUT, FINISHED = "upstream_cut", "finished"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


@pytest.fixture
async def here(client: Client, sqlite: Database, sim: SimulatorProcess) -> AsyncIterator[House]:
    """A service with the real client of Mistral, whose attempts follow each other without a pause."""
    model = MistralChat("a key", sim.url)
    async with house(client, sqlite, model=model, timings=QUICK, chatjobs_concurrency=100) as running:
        yield running
    await model.aclose()


def words(count: int) -> str:
    """A text of so many tokens, none of them a space alone."""
    return " ".join(f"word{number}" for number in range(count))


def cut(after: int, **more: Any) -> dict[str, Any]:
    return {"kind": "cut", "after": after, **more}


def outcomes(job: Job) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


@dataclass
class Told:
    """What a job became, and what it took."""

    job: Job
    answer: dict[str, Any]
    """What the model would have said to the same request without interruption."""
    calls: list[dict[str, Any]]
    reset: str | None
    """Why a reader of the first epoch has to drop its text, if there was another one."""

    @property
    def generated(self) -> int:
        return sum(int(call["tokens_sent"]) for call in self.calls)


async def tell(here: House, sim: SimulatorProcess, script: dict[str, Any], **fields: Any) -> Told:
    """Submit a job under a script and follow it to its end."""
    message = prompt("continue", **script)
    job_id = await here.submit(message, **fields)
    async with asyncio.timeout(PATIENCE):
        resets = await assert_readers_agree(here.reader, job_id)
    job = await here.ended(job_id)
    old = await here.reader.read(Cursor(job_id, 1, 1 if job.epoch > 1 else 0))
    assert set(resets) <= {old.reset_reason}
    assert old.reset == (job.epoch > 1)
    parameters = {name: value for name, value in fields.items() if name in ("max_tokens", "tools", "response_format")}
    return Told(job, sim.answer(message, **parameters), sim.requests(message), old.reset_reason if old.reset else None)


async def assert_readers_agree(reader: TranscriptReader, job_id: str) -> list[str]:
    """A reader from the beginning, one that reconnects at every slice, and one who comes late have the stored text.

    The reasons of the resets that the first one saw.
    """
    whole, broken = await asyncio.gather(read(reader, job_id, resuming=False), read(reader, job_id, resuming=True))
    late = await read(reader, job_id, resuming=False)
    assert whole[0] == broken[0] == late[0]
    return whole[1]


async def read(reader: TranscriptReader, job_id: str, *, resuming: bool) -> tuple[str, list[str]]:
    """The content and the resets' reasons. ``resuming``: with a look of its own at the transcript, from where the last
    one ended, in place of the reader that holds on to its place."""
    text, resets, cursor = "", list[str](), Cursor(job_id)
    while True:
        piece = await reader.wait(cursor)
        if resuming and not piece.status.terminal:
            piece = await reader.read(cursor)
        assert (piece.epoch, piece.position) >= (cursor.epoch, cursor.position), "a place before the reader's own"
        if piece.reset:
            text, resets = "", [*resets, str(piece.reset_reason)]
        text += "".join(run.text for run in piece.runs if run.channel is Channel.CONTENT)
        if piece.status.terminal:
            return text, resets
        cursor = piece.cursor


# ------------------------------------------------------------------------------------------------ it goes on


@pytest.mark.parametrize("echo", ["whole", "pieces", "none"])
async def test_an_interrupted_answer_goes_on(here: House, sim: SimulatorProcess, echo: str) -> None:
    """From the last character, whether the model repeats what it was given or not; no token is generated twice."""
    told = await tell(here, sim, {"text": words(60), "echo": echo, "faults": [cut(20), {"kind": "eof", "after": 20}]})
    assert (told.job.status, outcomes(told.job)) == (COMPLETED, [CUT, CUT, FINISHED])
    assert (told.job.content, told.job.epoch, told.reset) == (told.answer["text"], 1, None)
    assert [call["prefix"] for call in told.calls] == [None, *prefixes(told.answer, 20, 40)]
    assert told.generated == 60


def prefixes(answer: dict[str, Any], *tokens: int) -> list[str]:
    """What is sent to the model after so many tokens."""
    return ["".join(answer["tokens"][:count]).rstrip(" ") for count in tokens]


async def test_an_answer_that_goes_on_from_something_else(here: House, sim: SimulatorProcess) -> None:
    """The model repeats another text than it was given: nobody knows where its answer begins, and it starts over."""
    told = await tell(here, sim, {"text": words(60), "echo": "differing", "faults": [cut(30)]})
    assert outcomes(told.job) == [CUT, "continuation_refused", FINISHED]
    assert (told.job.content, told.job.epoch, told.reset) == (told.answer["text"], 2, "refused")


FIRST_EMOJI = 0x2190
LOSSY = ("reset", "malformed")
"""Faults that tokens are lost in: a reset drops what is on its way, and behind a broken chunk the model talks on."""
KINDS: Sequence[dict[str, Any]] = (
    {"kind": "cut"},
    {"kind": "cut", "where": "frame"},
    {"kind": "cut", "where": "utf8"},
    {"kind": "eof"},
    {"kind": "error"},
    {"kind": "finish", "reason": "error"},
    {"kind": "cut", "reset": True},
    {"kind": "malformed"},
)


def some_script(dice: random.Random) -> dict[str, Any]:
    """An answer that is interrupted up to four times, written in some way. Half of the faults come before any text."""
    faults = [dice.choice(KINDS) | {"after": dice.choice((0, 1, 2, 7, 15))} for _ in range(dice.randint(1, 4))]
    framing = {
        "split_surrogates": dice.random() < 0.3,
        "ascii": dice.random() < 0.3,
        "split": dice.choice((None, None, 7)),
    }
    return {
        "tokens": dice.randint(1, 50),
        "faults": faults,
        "echo": dice.choice(("whole", "pieces", "none")),
        "framing": framing,
        "content_as_list": dice.random() < 0.3,
    }


def some_fields(dice: random.Random, script: dict[str, Any]) -> dict[str, Any]:
    limits = {"max_tokens": dice.randint(1, 50)}
    segments = {"max_tokens": dice.randint(5, 20), "maxSegments": 20}
    return dice.choice(({}, limits, segments))


@pytest.mark.parametrize("seed", range(40))
async def test_any_sequence_of_interruptions(here: House, sim: SimulatorProcess, seed: int) -> None:
    """The text, its end and its readers are as if nothing had happened, and no word was generated twice."""
    dice = random.Random(seed)  # noqa: S311 - repeatable
    script = some_script(dice)
    fields = some_fields(dice, script)
    told = await tell(here, sim, script, **fields)
    if "maxSegments" in fields:
        told.answer = sim.answer(told.calls[0]["prompt"])
    tokens = told.answer["tokens"]
    if "max_tokens" in fields and told.job.content != told.answer["text"]:
        # An emoji may have tokens without text: what was said is estimated high, and a token less is left for the rest
        # after each interruption.
        assert any(ord(character) >= FIRST_EMOJI for character in told.answer["text"])
        shorter = [tokens[:-fewer] for fewer in range(1, len(told.calls))]
        tokens = next((some for some in shorter if "".join(some) == told.job.content), tokens)
    assert told.job.content == "".join(tokens)
    assert told.job.finish_reason == told.answer["finish_reason"]
    assert told.job.status is (INCOMPLETE if told.job.finish_reason == "length" else COMPLETED)
    assert (told.job.epoch, told.reset) == (1, None)
    if not any(word in str(script["faults"]) for word in LOSSY):
        # A space at the end of the text so far is said again (mistral.continued).
        assert 0 <= told.generated - len(tokens) < len(told.calls)


@pytest.mark.parametrize("echo", ["whole", "pieces", "none"])
async def test_the_callers_own_prefix_is_no_part_of_the_answer(here: House, sim: SimulatorProcess, echo: str) -> None:
    """Neither at first nor when the answer goes on: prefix and text so far are one message then."""
    message, own = prompt("go on", tokens=40, echo=echo, faults=[cut(15)]), "My dear, as I said to them all: "
    messages = [{"role": "user", "content": message}, {"role": "assistant", "content": own, "prefix": True}]
    job = await here.ended(await here.submit(messages=messages))
    text = sim.answer(message, messages=messages)["text"]
    assert (job.content, job.epoch, own in text) == (text, 1, False)
    first, second = sim.requests(message)
    assert (first["prefix"], second["prefix"].startswith(own), len(second["prefix"]) > len(own)) == (
        own.rstrip(),
        True,
        True,
    )


async def test_an_answer_that_lacked_only_its_end(here: House, sim: SimulatorProcess) -> None:
    """All the text was there: the continuation says nothing more, and the job is complete."""
    told = await tell(here, sim, {"text": words(12), "faults": [{"kind": "eof"}]})
    assert (told.job.status, told.job.content, told.reset) == (COMPLETED, told.answer["text"], None)
    assert (outcomes(told.job), told.generated) == ([CUT, FINISHED], 12)


async def test_spaces_at_the_end_of_the_text_so_far(here: House, sim: SimulatorProcess) -> None:
    """The model does not see them, says them again, and they are there once."""
    told = await tell(here, sim, {"pieces": ["def f():\n", "    ", "return", " 1"], "faults": [cut(2), cut(2)]})
    assert (told.job.content, told.reset) == ("def f():\n    return 1", None)
    assert [call["prefix"] for call in told.calls] == [None, "def f():\n", "def f():\n    return"]


# ------------------------------------------------------------------------------------------- it starts over

CALLS: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "none"}
FALLBACKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "restart": ({}, {"onInterrupt": "restart"}),
    "tools": ({}, CALLS),
    "response_format": ({"text": json.dumps({"answer": words(20)})}, {"response_format": {"type": "json_object"}}),
    "reasoning": ({"reasoning": "Let me think about this for a while, with no end to it."}, {}),
    "blank": ({"pieces": ["\n", " ", "\n", " ", "\n", "Well"]}, {}),
    "parts": ({"references": [{"after": 1, "ids": [7]}]}, {}),
}


@pytest.mark.parametrize("reason", FALLBACKS)
async def test_an_answer_that_cannot_go_on_starts_over(here: House, sim: SimulatorProcess, reason: str) -> None:
    """By policy, or because going on would not give the same answer; readers are told why."""
    script, fields = FALLBACKS[reason]
    told = await tell(here, sim, {"text": words(20), "faults": [cut(5)]} | script, **fields)
    assert (told.job.status, told.job.content) == (COMPLETED, told.answer["text"])
    assert (told.job.epoch, told.reset, outcomes(told.job)) == (2, reason, [CUT, FINISHED])
    assert [call["prefix"] for call in told.calls] == [None, None]
    assert len(told.job.content_parts or ()) == (reason == "parts")


async def test_a_thought_that_is_over_does_not_hinder(here: House, sim: SimulatorProcess) -> None:
    """The answer's own text goes on, without thinking again."""
    told = await tell(here, sim, {"reasoning": "Let me think.", "text": words(30), "faults": [cut(15)]})
    assert (told.job.content, told.job.reasoning, told.reset) == (told.answer["text"], "Let me think.", None)


async def test_nothing_to_go_on_from(here: House, sim: SimulatorProcess) -> None:
    """Interrupted before its first character, an answer is just asked for again, whatever the policy."""
    told = await tell(here, sim, {"text": words(9), "faults": [cut(0), {"kind": 503}]}, onInterrupt="fail")
    assert (told.job.content, told.job.epoch, told.reset) == (told.answer["text"], 1, None)


async def test_policy_fail(here: House, sim: SimulatorProcess) -> None:
    """The job fails at the first interruption, without another call, and keeps its text."""
    told = await tell(here, sim, {"text": words(20), "faults": [cut(5)]}, onInterrupt="fail")
    assert (told.job.status, told.job.error and told.job.error.code) == (FAILED, "interrupted")
    assert (told.job.content, len(told.calls)) == ("".join(told.answer["tokens"][:5]), 1)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_prefix_that_is_refused(here: House, sim: SimulatorProcess, status: int) -> None:
    """Costs the text, not the job, and no failure."""
    faults = [cut(5), {"kind": status}, *[{"kind": 503}] * 3]
    told = await tell(here, sim, {"text": words(20), "faults": faults})
    unavailable = ["upstream_unavailable"] * 3
    assert outcomes(told.job) == [CUT, "continuation_refused", *unavailable, FINISHED]
    assert (told.job.content, told.reset) == (told.answer["text"], "refused")
    assert told.job.attempts[1].http_status == status


async def test_a_request_that_is_refused_with_and_without_prefix(here: House, sim: SimulatorProcess) -> None:
    told = await tell(here, sim, {"text": words(20), "faults": [cut(5), {"kind": 400}, {"kind": 400}]})
    assert (told.job.status, told.job.error and told.job.error.code) == (FAILED, "upstream_rejected")
    assert len(told.calls) == 3


# ---------------------------------------------------------------------------------------- length and segments


async def test_the_length_limit_counts_what_is_there(here: House, sim: SimulatorProcess) -> None:
    told = await tell(here, sim, {"text": words(60), "faults": [cut(10), cut(5)]}, max_tokens=25)
    assert (told.job.status, told.job.content) == (INCOMPLETE, told.answer["text"])
    assert [call["parameters"]["max_tokens"] for call in told.calls] == [25, 15, 10]
    assert told.generated == 25


async def test_nothing_left_needs_no_call(here: House, sim: SimulatorProcess) -> None:
    """The cut came between the last token and the finish reason: the answer is as long as it may be."""
    told = await tell(here, sim, {"text": words(60), "faults": [cut(10)]}, max_tokens=10)
    assert (told.job.status, told.job.finish_reason, len(told.calls)) == (INCOMPLETE, "length", 1)
    assert (told.job.content, outcomes(told.job)) == (told.answer["text"], [CUT])
    assert told.job.usage
    assert told.job.usage.completion_tokens == 10


async def test_segments_make_one_answer(here: House, sim: SimulatorProcess) -> None:
    """Each up to max_tokens; the ledger has them all, exactly, and none is a failure."""
    told = await tell(here, sim, {"text": words(25)}, max_tokens=10, maxSegments=5, onInterrupt="fail")
    assert (told.job.status, told.job.finish_reason) == (COMPLETED, "stop")
    assert (told.job.content, told.reset) == (sim.answer(told.calls[0]["prompt"])["text"], None)
    assert outcomes(told.job) == ["segment", "segment", FINISHED]
    assert [call["parameters"]["max_tokens"] for call in told.calls] == [10, 10, 10]
    used = [attempt.usage.completion_tokens for attempt in told.job.attempts if attempt.usage]
    assert (used, told.job.usage_estimated) == ([10, 10, 5], False)
    assert told.job.usage
    assert told.job.usage.completion_tokens == 25


async def test_the_last_segment_may_end_at_its_limit(here: House, sim: SimulatorProcess) -> None:
    told = await tell(here, sim, {"text": words(60)}, max_tokens=10, maxSegments=2)
    assert (told.job.status, outcomes(told.job)) == (INCOMPLETE, ["segment", FINISHED])
    assert told.job.content == sim.answer(told.calls[0]["prompt"], max_tokens=20)["text"]


async def test_a_segment_that_is_interrupted(here: House, sim: SimulatorProcess) -> None:
    """Its own limit counts what it had, also where that was all of it."""
    faults = [None, cut(4), None, cut(10)]
    told = await tell(here, sim, {"text": words(40), "faults": faults}, max_tokens=10, maxSegments=4)
    assert outcomes(told.job) == ["segment", CUT, "segment", CUT, "segment", FINISHED]
    assert [call["parameters"]["max_tokens"] for call in told.calls] == [10, 10, 6, 10, 10]
    assert told.job.content == sim.answer(told.calls[0]["prompt"])["text"]
    assert (told.generated, told.reset) == (40, None)


async def test_a_segment_that_is_refused(here: House, sim: SimulatorProcess) -> None:
    """What there is, is the answer: a longer one is not worth the text so far."""
    told = await tell(here, sim, {"text": words(40), "faults": [None, {"kind": 400}]}, max_tokens=10, maxSegments=4)
    assert (told.job.status, told.job.finish_reason) == (INCOMPLETE, "length")
    assert (outcomes(told.job), told.job.attempts[1].http_status) == (["segment", "continuation_refused"], 400)
    assert (told.job.content, told.reset) == ("".join(sim.answer(told.calls[0]["prompt"])["tokens"][:10]), None)


@pytest.mark.parametrize("fields", [CALLS, {"response_format": {"type": "json_object"}}])
async def test_what_cannot_go_on_has_one_segment(here: House, sim: SimulatorProcess, fields: dict[str, Any]) -> None:
    told = await tell(here, sim, {"text": words(40)}, max_tokens=10, maxSegments=4, **fields)
    assert (told.job.status, outcomes(told.job)) == (INCOMPLETE, [FINISHED])


# --------------------------------------------------------------------------------------------- ledger and cap


async def test_the_ledger_of_an_interrupted_answer(here: House, sim: SimulatorProcess) -> None:
    """Every call with what it used, estimated where Mistral did not say, and nothing where it refused."""
    told = await tell(here, sim, {"text": words(30), "faults": [{"kind": 503}, cut(10)]})
    refused, interrupted, whole = told.job.attempts
    assert (refused.http_status, refused.estimated, refused.usage and refused.usage.total_tokens) == (503, False, 0)
    assert (interrupted.http_status, interrupted.estimated) == (200, True)
    assert interrupted.usage
    assert interrupted.usage.completion_tokens == 10
    assert interrupted.usage.prompt_tokens > 10
    assert (whole.http_status, whole.estimated, whole.usage and whole.usage.completion_tokens) == (200, False, 20)
    assert interrupted.first_token_ms is not None
    assert interrupted.tokens_per_second is not None
    assert told.job.usage
    assert told.job.usage.completion_tokens == 30
    assert told.job.usage.total_tokens == sum(one.usage.total_tokens for one in told.job.attempts if one.usage)
    assert told.job.usage_estimated


async def test_an_answer_without_usage(here: House, sim: SimulatorProcess) -> None:
    """It is estimated, and said to be."""
    told = await tell(here, sim, {"text": words(20), "usage": False})
    (attempt,) = told.job.attempts
    assert told.job.usage == attempt.usage
    assert (attempt.estimated, told.job.usage_estimated) == (True, True)
    assert attempt.usage
    assert (attempt.usage.completion_tokens, attempt.usage.prompt_tokens > 20) == (20, True)


async def test_empty_answers_have_a_budget_of_their_own(here: House, sim: SimulatorProcess) -> None:
    """Other failures before them do not use it up; the common budget counts them all."""
    down, empty = {"kind": 503}, {"kind": "empty"}
    told, given_up = await asyncio.gather(
        tell(here, sim, {"text": words(5), "faults": [down, down, empty, empty]}),
        tell(here, sim, {"text": words(5), "faults": [down, empty, empty, empty]}),
    )
    assert (told.job.status, len(told.calls)) == (COMPLETED, 5)
    assert (given_up.job.error and given_up.job.error.code, len(given_up.calls)) == ("upstream_empty", 4)


async def test_a_cap_on_all_tokens_ends_the_answer(here: House, sim: SimulatorProcess) -> None:
    """The model is told how many are left, and the text is kept."""
    told = await tell(here, sim, {"tokens": 400}, limits={"maxTotalTokens": 150})
    assert (told.job.status, told.job.error and told.job.error.code) == (FAILED, "max_total_tokens")
    left = told.calls[0]["parameters"]["max_tokens"]
    assert 10 < left < 150
    assert told.generated == left
    assert told.job.content == "".join(sim.answer(told.calls[0]["prompt"])["tokens"][:left])


async def test_a_model_that_says_more_than_it_may(here: House, sim: SimulatorProcess) -> None:
    """The stream is ended at the cap by us."""
    script = {"tokens_per_second": 2_000, "faults": [{"kind": "endless"}]}
    told = await tell(here, sim, script, limits={"maxTotalTokens": 150})
    assert told.job.error
    assert told.job.error.code == "max_total_tokens"
    call = await sim.wait(told.calls[0]["prompt"], ended=True)
    assert call["outcome"] == "client_gone"


async def test_a_cap_counts_all_attempts(here: House, sim: SimulatorProcess) -> None:
    """When the calls so far have used it up there is no other."""
    script = {"tokens": 400, "faults": [cut(60), cut(60), cut(60)]}
    told = await tell(here, sim, script, limits={"maxTotalTokens": 600})
    assert (told.job.status, told.job.error and told.job.error.code) == (FAILED, "max_total_tokens")
    assert len(told.calls) == 2
    assert told.job.content
    assert sim.answer(told.calls[0]["prompt"])["text"].startswith(told.job.content)


PROMPTS = (
    "0123456789 " * 20,
    "日本語の文章です。" * 10,
    "Съешь же ещё этих мягких французских булок. " * 5,
    "a-b_c.d " * 30,
)


@pytest.mark.parametrize("words_of_caller", PROMPTS, ids=("digits", "japanese", "russian", "marks"))
async def test_a_cap_is_never_passed(here: House, sim: SimulatorProcess, words_of_caller: str) -> None:
    """Whatever the prompt is written in: it is estimated high."""
    message = prompt(words_of_caller, tokens=2_000)
    job = await here.ended(await here.submit(message, limits={"maxTotalTokens": 1_000}, tools=[WEATHER]))
    assert job.usage
    assert job.error
    assert job.error.code == "max_total_tokens"
    assert job.usage.completion_tokens > 0
    assert job.usage.total_tokens <= 1_000


@pytest.mark.parametrize(("fields", "faults"), [({"onInterrupt": "restart"}, []), ({}, [{"kind": 400}])])
async def test_a_cap_keeps_the_text(
    here: House, sim: SimulatorProcess, fields: dict[str, Any], faults: list[dict[str, Any]]
) -> None:
    """It is not thrown away for an answer that may not come."""
    script = {"tokens": 400, "faults": [cut(100), *faults]}
    told = await tell(here, sim, script, limits={"maxTotalTokens": 290}, **fields)
    assert (told.job.status, told.job.error and told.job.error.code) == (FAILED, "max_total_tokens")
    assert told.job.content == "".join(sim.answer(told.calls[0]["prompt"])["tokens"][:100])


async def test_an_answer_within_its_cap(here: House, sim: SimulatorProcess) -> None:
    told = await tell(
        here, sim, {"text": words(20), "faults": [cut(5)]}, max_tokens=30, limits={"maxTotalTokens": 2_000}
    )
    assert (told.job.status, told.job.content) == (COMPLETED, told.answer["text"])
    assert [call["parameters"]["max_tokens"] for call in told.calls] == [30, 25]


# ------------------------------------------------------------------------------------------- real processes

SLOW: dict[str, Any] = {"tokens": 90, "tokens_per_second": 45}
WINDOW = 15
"""Tokens that were sent and not yet stored when a worker died: a third of a second."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path, env={"CHATJOBS_HEARTBEAT_SECONDS": "2", "CHATJOBS_CONCURRENCY": "20"}) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running


async def test_killed_workers(machine: Stack, live: Service) -> None:
    """Three times with -9 and once with SIGTERM, under answers of every kind of echo: readers notice but the time."""
    scripts = [SLOW | {"echo": echo} for echo in ("whole", "pieces", "none")]
    scripts.append(SLOW | {"faults": [None, cut(7), {"kind": "stall", "after": 3}]})
    messages = [prompt("killed", **script) for script in scripts]
    job_ids = [await live.submit(message, limits={"stallSeconds": 1}) for message in messages]
    reading = [asyncio.create_task(assert_readers_agree(live.reader, job_id)) for job_id in job_ids]
    for kill in range(3):
        await asyncio.gather(
            *(machine.simulator.wait(m, requests=kill + 1, tokens=3, timeout=30) for m in messages[:3])
        )
        machine.workers[0].restart()
    await asyncio.gather(*(machine.simulator.wait(m, requests=4, tokens=3, timeout=30) for m in messages[:3]))
    assert await asyncio.to_thread(machine.workers[0].stop) == 0
    machine.workers[0].start()
    assert await asyncio.gather(*reading) == [[]] * len(scripts)
    for message, job_id in zip(messages, job_ids, strict=True):
        job, answer = await live.ended(job_id), machine.simulator.answer(message)
        calls = machine.simulator.requests(message)
        assert (job.status, job.content, job.epoch) == (COMPLETED, answer["text"], 1)
        unsent = 0 if message in messages[:3] else outcomes(job).count("lost")  # a kill may come before the request
        assert len(job.attempts) - unsent <= len(calls) <= len(job.attempts)
        assert sum(call["tokens_sent"] for call in calls) <= len(answer["tokens"]) + WINDOW * (len(calls) - 1)
    assert outcomes(await live.jobs.queries.get(job_ids[0])) == ["lost", "lost", "lost", "handed_over", FINISHED]
