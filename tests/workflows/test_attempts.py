"""How often a job's call is made, how long it pauses in between, and what a job that ends at a limit says of it.

The real worker and the real client of Mistral over the wire.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from chatjobs.contracts import Job, JobStatus
from dispatch.stream_events import last_frame
from tests.support.receiver import Receiver, receiver
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

COMPLETED, FAILED = JobStatus.COMPLETED, JobStatus.FAILED
LIMITED = "upstream_rate_limited"
UNAVAILABLE = "upstream_unavailable"
FIXED = {"type": "fixed", "delay": 1000}
GROWING = {"type": "exponential", "delay": 1000}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"CHATJOBS_CONCURRENCY": "50"}
    with stack(tmp_path_factory.mktemp("attempts"), env=environment) as running:
        yield running


@pytest.fixture
async def live(faulty: Stack) -> AsyncIterator[Service]:
    async with service(faulty) as running:
        yield running
    sys.stdout.write(faulty.news())


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


async def told(live: Service, faults: list[Any], *, script: dict[str, Any] | None = None, **fields: Any) -> Job:
    """The job after its end, from a model with these faults. Each test has a model, and so a rate limit, of its own."""
    message = prompt("attempts", **{"tokens": 12, "faults": faults, **(script or {})})
    job = await live.ended(await live.submit(message, **fields))
    assert len(live.stack.simulator.requests(message)) == len(job.attempts)
    return job


def outcomes(job: Job) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


def pauses(job: Job) -> list[float]:
    """Seconds between the end of each attempt and the start of the next."""
    pairs = zip(job.attempts, job.attempts[1:], strict=False)
    return [(later.started_at - before.ended_at).total_seconds() for before, later in pairs if before.ended_at]


# --------------------------------------------------------------------------------------- silence (case W12)


async def test_forty_seconds_of_silence_are_one_call(live: Service) -> None:
    """At the default limits: a server that makes something long is slow, not dead."""
    job = await told(live, [{"kind": "stall", "after": 3, "seconds": 40}])
    assert (job.status, outcomes(job)) == (COMPLETED, ["finished"])


@pytest.mark.parametrize(("fault", "policy"), [("stall", "continue"), ("stall", "restart"), ("cut", "restart")])
async def test_what_breaks_off_at_the_same_place_is_paid_for_three_times(
    live: Service, fault: str, policy: str
) -> None:
    """The job fails with the code of what happened, and the text is kept."""
    first = {"kind": fault, "after": 3}
    again = first | {"after": 3 if policy == "restart" else 0}
    job = await told(
        live, [first, again], script={"repeat_last": True}, limits={"stallSeconds": 1, "firstTokenSeconds": 1},
        onInterrupt=policy,
    )  # fmt: skip
    assert job.error
    assert (job.status, len(job.attempts)) == (FAILED, 3)
    assert job.error.code == outcomes(job)[-1]
    assert job.content


async def test_interruptions_that_bring_new_text_are_not_held_against_the_job(live: Service) -> None:
    """An answer that is cut every three tokens is whole after as many calls as that takes."""
    job = await told(
        live, [{"kind": "cut", "after": 3}] * 9, script={"tokens": 29},
        retry={"backoff": {"type": "fixed", "delay": 10}},
    )  # fmt: skip
    assert (job.status, job.epoch) == (COMPLETED, 1)
    assert len(job.attempts) == 10


async def test_interruptions_with_new_text_end_as_well(live: Service) -> None:
    """One token per call is no way to get an answer: ten times the retries that the job may have, then it fails."""
    job = await told(
        live, [{"kind": "cut", "after": 1}], script={"repeat_last": True, "tokens": 100},
        retry={"attempts": 2, "backoff": {"type": "fixed", "delay": 10}},
    )  # fmt: skip
    assert job.error
    assert (job.status, job.error.code, len(job.attempts)) == (FAILED, "upstream_cut", 10)


# --------------------------------------------------------------------------------------- causes (case W10)


async def test_a_limit_names_what_kept_the_job_from_ending(live: Service, hook: Receiver) -> None:
    """Only 429s until the total limit: its code, and the last cause in message, ``cause``, event and webhook."""
    job = await told(
        live, [{"kind": 429, "retry_after": "60"}], script={"repeat_last": True}, model="mistral-large-latest",
        limits={"totalSeconds": 2}, callback=hook.url("/hook"),
    )  # fmt: skip
    assert job.error
    assert job.error.cause
    assert (job.error.code, job.error.cause.code) == ("total_timeout", LIMITED)
    assert LIMITED in job.error.message
    assert job.error.cause.message in job.error.message
    assert job.completed_at
    assert (job.completed_at - job.created_at).total_seconds() < 20  # the pause that the server wants is longer
    await hook.arrived(1, path="/hook")
    shown = json.loads(job.model_dump_json())["error"]
    assert hook.requests("/hook")[0].json()["data"]["error"] == shown
    assert shown["cause"] == {"code": LIMITED, "message": job.error.cause.message}
    event = json.loads(last_frame(job).event.model_dump_json())
    assert event == shown


async def test_a_first_token_that_never_came(live: Service) -> None:
    job = await told(
        live,
        [{"kind": "slow", "seconds": 600}],
        script={"repeat_last": True},
        limits={"firstTokenSeconds": 0.5},
        retry={"attempts": 2},
    )
    assert job.error
    assert job.error.cause
    assert (job.error.code, job.error.cause.code) == ("first_token_timeout", "silence")
    assert "limits.firstTokenSeconds: 0.5 s" in job.error.message


async def test_the_total_limit_while_waiting_for_a_first_token(live: Service) -> None:
    job = await told(live, [{"kind": "slow", "seconds": 600}], limits={"totalSeconds": 1})
    assert job.error
    assert job.error.cause
    assert (job.error.code, job.error.cause.code) == ("total_timeout", "silence")


async def test_an_error_without_a_limit_has_no_cause(live: Service) -> None:
    job = await told(live, [{"kind": 400}])
    assert job.error
    assert "cause" not in job.error.model_dump()


# -------------------------------------------------------------------------------- Retry-After (case W13)

WAITS: dict[str, dict[str, Any]] = {
    "503": {"kind": 503, "retry_after": "3"},
    "500": {"kind": 500, "retry_after": 3},
    "529": {"kind": 529, "retry_after": "3"},
    "in the stream": {"kind": "error", "after": 2, "retry_after": 3},
}


@pytest.mark.parametrize("fault", WAITS.values(), ids=WAITS.keys())
async def test_retry_after_of_any_failure_is_kept(live: Service, fault: dict[str, Any]) -> None:
    job = await told(live, [fault, fault])
    assert (job.status, len(job.attempts)) == (COMPLETED, 3)
    assert min(pauses(job)) >= 3


async def test_retry_after_is_clamped(live: Service) -> None:
    """A second at the least."""
    job = await told(live, [{"kind": 503, "retry_after": "0"}])
    assert 1 <= min(pauses(job)) < 10


# ------------------------------------------------------------------------------------------------- retry


async def test_the_job_says_how_often_and_how_fast(live: Service) -> None:
    """``retry`` as in the request: three calls, a second apart or more each time. Each job has a lane of its own, so
    that their failures together do not make it wait."""
    fixed, grown, one = await asyncio.gather(
        told(live, [{"kind": 500}], script={"repeat_last": True}, retry={"attempts": 3, "backoff": FIXED}),
        told(live, [{"kind": 500}] * 2, model="codestral-latest", retry={"attempts": 3, "backoff": GROWING}),
        told(live, [{"kind": 500}], model="open-mistral-nemo", retry={"attempts": 1}),
    )
    assert (fixed.status, outcomes(fixed)) == (FAILED, [UNAVAILABLE] * 3)
    assert min(pauses(fixed)) >= 1
    assert (grown.status, outcomes(grown)) == (COMPLETED, [UNAVAILABLE] * 2 + ["finished"])
    assert [pauses(grown)[0] >= 1, pauses(grown)[1] >= 2] == [True, True]
    assert (one.status, outcomes(one)) == (FAILED, [UNAVAILABLE])


async def test_only_real_failures_count(live: Service) -> None:
    """A 429 costs no attempt, whatever ``retry`` says."""
    job = await told(
        live, [{"kind": 429, "retry_after": "1"}] * 2, model="mistral-medium-latest", retry={"attempts": 1}
    )
    assert (job.status, outcomes(job)) == (COMPLETED, [LIMITED, LIMITED, "finished"])


async def test_retry_is_not_sent_to_the_model(live: Service) -> None:
    message = prompt("retry stays here", tokens=3)
    await live.ended(await live.submit(message, retry={"attempts": 2}))
    (call,) = live.stack.simulator.requests(message)
    assert "retry" not in call["parameters"]
