"""What becomes of a job when Mistral misbehaves: the real worker, the real client, over the real wire."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

QUICK = {"firstTokenSeconds": 3.0, "stallSeconds": 3.0}
MARK = "prompt-that-must-not-be-repeated"

TWELVE = {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
UNLABELLED = [{"delta": {"content": "word " * 12}}, {"json": {"choices": [], "usage": TWELVE}}]


@dataclass(frozen=True)
class Case:
    """A fault, what the job becomes, and how many calls that takes."""

    faults: list[Any]
    status: JobStatus = JobStatus.COMPLETED
    code: str | None = None
    calls: int = 2
    outcome: str | None = None
    """Of the first attempt, in the ledger."""
    script: dict[str, Any] | None = None
    limits: dict[str, float] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """More of the request."""


COMPLETED, FAILED, INCOMPLETE = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.INCOMPLETE
CASES = {
    "nothing wrong": Case([None], calls=1, outcome="finished"),
    "429 with Retry-After": Case([{"kind": 429, "retry_after": "1"}], outcome="upstream_rate_limited"),
    "429 without Retry-After": Case([{"kind": 429}], outcome="upstream_rate_limited"),
    "429 with junk": Case([{"kind": 429, "retry_after": "abc"}], outcome="upstream_rate_limited"),
    "429 as a bare message": Case([{"kind": 429, "variant": "bare", "retry_after": "-1"}], calls=2),
    "more 429 than the budget of failures": Case([{"kind": 429, "retry_after": "0"}] * 6, calls=7),
    "no allowance": Case([{"kind": 429, "variant": "no_allowance"}], FAILED, "upstream_no_allowance", 1),
    "500, 502, 503, then an answer": Case([{"kind": "500"}, {"kind": "502"}, {"kind": "503"}], calls=4),
    "529": Case([{"kind": "529"}], outcome="upstream_unavailable"),
    "408": Case([{"kind": "408"}], outcome="upstream_unavailable"),
    # In a lane of its own, and with a number of attempts of its own: otherwise it waits until the model is up again.
    "500 for ever": Case(
        [{"kind": "500"}],
        FAILED,
        "upstream_unavailable",
        3,
        script={"repeat_last": True},
        fields={"model": "codestral-latest", "retry": {"attempts": 3}},
    ),
    "401": Case([{"kind": "401"}], FAILED, "upstream_unauthorized", 1),
    "403": Case([{"kind": "403"}], FAILED, "upstream_unauthorized", 1),
    "400": Case([{"kind": "400"}], FAILED, "upstream_rejected", 1),
    "404": Case([{"kind": "404"}], FAILED, "upstream_rejected", 1),
    "422": Case([{"kind": "422"}], FAILED, "upstream_rejected", 1),
    "no first token": Case([{"kind": "slow", "seconds": 30}], outcome="first_token_timeout"),
    "no headers": Case([{"kind": "slow", "seconds": 30, "before": "headers"}], outcome="first_token_timeout"),
    "comments in place of the first token": Case([{"kind": "drip", "every": 0.1}], outcome="first_token_timeout"),
    "stall": Case([{"kind": "stall", "after": 3}], outcome="stall_timeout"),
    "stall with comments": Case([{"kind": "stall", "after": 3, "comments_every": 0.1}], outcome="stall_timeout"),
    "endless answer": Case(
        [{"kind": "endless"}],
        FAILED,
        "total_timeout",
        1,
        script={"tokens_per_second": 50},
        limits={"totalSeconds": 5},
    ),
    "cut by FIN": Case([{"kind": "cut", "after": 3}], outcome="upstream_cut"),
    "cut by RST": Case([{"kind": "cut", "after": 3, "reset": True}], outcome="upstream_cut"),
    "cut within a frame": Case([{"kind": "cut", "after": 3, "where": "frame"}], outcome="upstream_cut"),
    "cut within a character": Case([{"kind": "cut", "after": 3, "where": "utf8"}], outcome="upstream_cut"),
    "ends without a finish reason": Case([{"kind": "eof", "after": 3}], outcome="upstream_cut"),
    "whole text without a finish reason": Case([{"kind": "eof"}], outcome="upstream_cut"),
    "no [DONE]": Case([{"kind": "no_done"}], calls=1, outcome="finished"),
    "malformed chunk": Case([{"kind": "malformed", "after": 3}], outcome="upstream_protocol"),
    "unknown kind of chunk": Case([{"kind": "unknown_chunk", "after": 3}], calls=1, outcome="finished"),
    "error in the stream": Case([{"kind": "error", "after": 3}]),
    "huge line": Case([{"kind": "huge", "after": 3}], FAILED, "upstream_too_large", 1),
    "nothing at all, for ever": Case([{"kind": "empty"}], FAILED, "upstream_empty", 3, script={"repeat_last": True}),
    "nothing at all, twice": Case([{"kind": "empty"}, {"kind": "empty", "done": True}], calls=3),
    "nothing at all, after other failures": Case(
        [{"kind": "503"}, {"kind": "503"}, {"kind": "empty"}, {"kind": "empty"}], calls=5
    ),
    "the prefix refused": Case([{"kind": "cut", "after": 3}, {"kind": "400"}], calls=3),
    "a page of HTML": Case([{"kind": "wrong_type", "content_type": "text/html"}], outcome="upstream_protocol"),
    "the answer at once as JSON": Case(
        [{"kind": "wrong_type", "content_type": "application/json"}], calls=1, outcome="finished"
    ),
    "half an answer as JSON": Case(
        [{"kind": "wrong_type", "content_type": "application/json", "body": '{"choices": [{"index": 0, "mess'}],
        outcome="upstream_protocol",
    ),
    "an event stream that calls itself text": Case(
        [{"kind": "frames", "content_type": "text/plain", "frames": UNLABELLED}],
        calls=1,
        outcome="finished",
    ),
    "204": Case([{"kind": "204"}], outcome="upstream_protocol"),
    "301": Case([{"kind": "301", "location": "http://127.0.0.1:9/"}], outcome="upstream_protocol"),
    "finish reason error": Case([{"kind": "finish", "reason": "error", "after": 3}], outcome="upstream_error"),
    "finish reason length": Case([{"kind": "finish", "reason": "length"}], INCOMPLETE, calls=1),
    "finish reason model_length": Case([{"kind": "finish", "reason": "model_length"}], INCOMPLETE, calls=1),
    "unknown finish reason": Case([{"kind": "finish", "reason": "tired"}], calls=1),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"CHATJOBS_CONCURRENCY": "50"}
    with stack(tmp_path_factory.mktemp("faults"), env=environment) as running:
        yield running


@pytest.fixture
async def live(faulty: Stack) -> AsyncIterator[Service]:
    async with service(faulty) as running:
        yield running
    sys.stdout.write(faulty.news())


@pytest.fixture(scope="module")
def submitted() -> dict[str, tuple[str, str]]:
    """Prompts and job ids by case: all are submitted by the first test, so that their pauses pass at the same time."""
    return {}


async def submit_all(live: Service, submitted: dict[str, tuple[str, str]]) -> None:
    for name, case in CASES.items():
        script = {"tokens": 12, "faults": case.faults, **(case.script or {})}
        message = prompt(f"{MARK} {name}", **script)
        submitted[name] = message, await live.submit(message, limits=QUICK | (case.limits or {}), **case.fields)


@pytest.mark.parametrize("name", CASES)
async def test_the_job_ends_as_it_should(live: Service, submitted: dict[str, tuple[str, str]], name: str) -> None:
    """Status, error code, number of calls and ledger, for every way in which the upstream can fail."""
    if not submitted:
        await submit_all(live, submitted)
    case, (message, job_id) = CASES[name], submitted[name]
    job = await live.ended(job_id)
    assert (job.status, job.error.code if job.error else None) == (case.status, case.code), job
    assert len(live.stack.simulator.requests(message)) == len(job.attempts) == case.calls
    assert case.outcome in (None, job.attempts[0].outcome)
    assert MARK not in str(job.error)
    if job.status is COMPLETED:
        assert_whole(job)


def assert_whole(job: Job) -> None:
    """Text of whatever attempts; exact usage where every attempt had one, or was refused."""
    assert job.content
    assert job.attempts[-1].outcome == "finished"
    assert job.usage is not None
    assert job.usage.completion_tokens >= 12
    assert job.usage_estimated == any(attempt.http_status in (None, 200) for attempt in job.attempts[:-1])


@pytest.mark.parametrize(("policy", "resets"), [("continue", 0), ("restart", 1)])
async def test_the_reader_of_a_cut_stream(live: Service, policy: str, resets: int) -> None:
    """The text goes on, or there is one reset; either way the reader has exactly the stored text at the end."""
    script: dict[str, Any] = {"tokens": 30, "tokens_per_second": 60, "faults": [{"kind": "cut", "after": 10}]}
    message = prompt("reader of a cut stream", **script)
    job_id = await live.submit(message, onInterrupt=policy)
    watched = await live.watched(job_id)
    job = await live.jobs.queries.get(job_id)
    assert (watched.resets, watched.ends) == (resets, [COMPLETED])
    assert watched.texts[Channel.CONTENT] == job.content == live.stack.simulator.answer(message)["text"]
    assert job.epoch == 1 + resets


async def test_policy_fail_does_not_start_over(live: Service) -> None:
    """onInterrupt: fail ends the job at the first interruption of its text, which is kept."""
    script: dict[str, Any] = {"tokens": 12, "faults": [{"kind": "cut", "after": 5}]}
    job = await live.ended(await live.submit(prompt("interrupted", **script), onInterrupt="fail"))
    assert job.status is FAILED
    assert job.error
    assert job.error.code == "interrupted"
    assert job.content


async def test_reasoning_stands_apart_from_content(live: Service) -> None:
    """Thinking chunks are the reasoning, text chunks the content, in list form too."""
    message = prompt("think", text="So be it.", reasoning="Let me think.", content_as_list=True)
    job = await live.ended(await live.submit(message))
    assert (job.content, job.reasoning) == ("So be it.", "Let me think.")


async def test_an_answer_larger_than_16_mb_is_refused(live: Service) -> None:
    """The size limit of a response ends the job; what came before is kept."""
    live.stack.simulator.script(match="a flood", pieces=["x" * 500_000] * 40)
    job = await live.ended(await live.submit("a flood of text"))
    assert (job.status, job.error and job.error.code) == (FAILED, "upstream_too_large")
    assert 10_000_000 < len(job.content or "") < 16 * 1024 * 1024


async def test_no_secret_and_no_prompt_in_the_log(faulty: Stack) -> None:
    """Whatever happened above, the worker's log names neither the key nor a prompt."""
    log = faulty.workers[0].log.read_text()
    assert "attempt_ended" in log
    assert MARK not in log
    assert faulty.env["MISTRAL_API_KEY"] not in log
    assert faulty.env["WEBHOOK_SECRET"] not in log
