"""What becomes of a job when a server streams in another shape: simulator, provider and worker, over the wire."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from simulator import oddities
from simulator.oddities import TEXT
from tests.support.odd_streams import BROKEN, ERRORS, WHOLE, Outcome, fault
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

MARK = "prompt-that-must-not-be-repeated"
QUICK = {"firstTokenSeconds": 1.0, "stallSeconds": 1.0}
TOOL_ID = {
    "object": "error",
    "message": {"detail": "Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9."},
    "type": "invalid_request_message_order",
    "param": None,
    "code": "3280",
}
DETAIL = [{"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required", "input": MARK}]
REASONS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "W15 400 with a number": (
        {"kind": 400, "body": TOOL_ID},
        "upstream_rejected",
        ("Tool call id was call_1", "code 3280"),
    ),
    "W15 422": (
        {"kind": 422, "body": {"detail": DETAIL}},
        "upstream_rejected",
        ("Field required", "body.messages.0.content"),
    ),
    "W15 422 in a string": (
        {"kind": 422, "body": {"message": json.dumps({"detail": DETAIL})}},
        "upstream_rejected",
        ("Field required", "body.messages.0.content"),
    ),
    "W15 401, a plan used up": (
        {"kind": 401, "body": {"message": "Your plan is used up until the end of the month."}},
        "upstream_unauthorized",
        ("Your plan is used up", "the plan of its account"),
    ),
    "402": ({"kind": 402, "body": {"detail": "Payment required"}}, "upstream_no_allowance", ("Payment required",)),
}
NAMES = [*WHOLE, *BROKEN, *ERRORS, *REASONS]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("odd"), env={"CHATJOBS_CONCURRENCY": "100"}) as running:
        yield running


@pytest.fixture
async def live(odd: Stack) -> AsyncIterator[Service]:
    async with service(odd) as running:
        yield running
    sys.stdout.write(odd.news())


@pytest.fixture(scope="module")
def submitted() -> dict[str, str]:
    """Job ids by name: all are submitted by the first test, so that their pauses pass at the same time."""
    return {}


async def submit_all(live: Service, submitted: dict[str, str]) -> None:
    """Each has a lane of its own: a refusal for the rate makes a lane wait.

    What a server shall say of the request must not stand in the request: it would be taken for an echo.
    """
    for number, name in enumerate(NAMES):
        words = f"{MARK} {number} {uuid.uuid4().hex}"
        live.stack.simulator.script(
            match=words, text=TEXT, faults=[REASONS[name][0] if name in REASONS else fault(name)]
        )
        limits = QUICK if name.startswith("W3") else {}
        submitted[name] = await live.submit(words, limits=limits, model=f"mistral-odd{number}-latest")


async def ended(live: Service, submitted: dict[str, str], name: str) -> Job:
    if not submitted:
        await submit_all(live, submitted)
    job = await live.ended(submitted[name])
    assert MARK not in str(job.error)
    return job


@pytest.mark.parametrize("name", oddities.WHOLE)
async def test_a_whole_answer_in_another_shape(live: Service, submitted: dict[str, str], name: str) -> None:
    """One call, and all that it said: text, reasoning, tool calls, usage."""
    job = await ended(live, submitted, name)
    assert (job.status, job.error, [attempt.outcome for attempt in job.attempts]) == (
        JobStatus.COMPLETED,
        None,
        ["finished"],
    )
    assert said(job) == WHOLE[name]


def said(job: Job) -> Outcome:
    found = tuple((call.function.name, str(call.function.arguments)) for call in job.tool_calls or ())
    usage = None if job.usage_estimated or job.usage is None else job.usage.model_dump()
    return Outcome(job.content or "", job.reasoning or "", found, usage, job.finish_reason or "")


@pytest.mark.parametrize("name", oddities.BROKEN)
async def test_a_cut_answer_in_another_shape(live: Service, submitted: dict[str, str], name: str) -> None:
    """An interruption, and another attempt brings the whole text; never a success with a part of it."""
    job = await ended(live, submitted, name)
    assert (job.status, job.attempts[0].outcome) == (JobStatus.COMPLETED, BROKEN[name])
    assert (job.content, job.attempts[-1].outcome) == (TEXT, "finished")


@pytest.mark.parametrize("name", oddities.ERRORS)
async def test_an_error_in_another_shape(live: Service, submitted: dict[str, str], name: str) -> None:
    """A refusal of the request is final and gives its reason; a busy server is waited for, and counts as no failure."""
    code, words = ERRORS[name]
    job = await ended(live, submitted, name)
    assert job.attempts[0].outcome == code
    if code == "upstream_rejected":
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert (job.error.code, len(job.attempts)) == (code, 1)
        assert words in job.error.message
    else:
        assert (job.status, job.content) == (JobStatus.COMPLETED, TEXT)


@pytest.mark.parametrize("name", REASONS)
async def test_a_reason_reaches_the_user(live: Service, submitted: dict[str, str], name: str) -> None:
    """The words, the number and the field; nothing of the prompt."""
    _, code, words = REASONS[name]
    job = await ended(live, submitted, name)
    assert (job.status, job.error and job.error.code, len(job.attempts)) == (JobStatus.FAILED, code, 1)
    assert job.error is not None
    assert all(word in job.error.message for word in words), job.error.message


async def test_usage_with_a_count_missing_is_completed_and_marked(live: Service) -> None:
    """What was reported is kept; the prompt's tokens are estimated."""
    frames = [{"delta": {"content": TEXT}}, {"delta": {}, "finish": "stop", "usage": {"completion_tokens": 12}}]
    done = {"raw": "data: [DONE]\n\n"}
    fault = {"kind": "frames", "frames": [*frames, done], "ending": False}
    job = await live.ended(await live.submit(prompt("missing counts", faults=[fault])))
    assert job.usage is not None
    assert (job.usage.completion_tokens, job.usage_estimated) == (12, True)
    assert job.usage.prompt_tokens > 0
    assert job.usage.total_tokens == job.usage.prompt_tokens + 12


async def test_readers_see_reasoning_and_late_text(live: Service) -> None:
    """On their channels, once each, in order."""
    for name, reasoning in (("W3 between pieces", oddities.REASONING), ("W8 text after the finish reason", "")):
        watched = await live.watched(await live.submit(prompt("watched", faults=[fault(name)])))
        assert watched.texts == {Channel.CONTENT: TEXT, Channel.REASONING: reasoning}
        assert (watched.resets, watched.ends) == (0, [JobStatus.COMPLETED])
