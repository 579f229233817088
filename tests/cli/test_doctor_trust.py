"""`doctor --live`'s verdict on continued answers, for servers of each kind, and for those that refuse, crawl or ramble.

The simulator speaks as each server; an answer that no simulator gives is scripted frame by frame, for one call of a
prompt: its first and second calls are the uninterrupted answers, the third and later ones the continuations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activities.continuation_check import (
    CALLS,
    HANDOVERS,
    MOST_CHARACTERS,
    MOST_TOKENS,
    TASKS,
    CheckLimits,
    ContinuationCheck,
)
from cli.doctor.checks import Finding
from cli.doctor.live import bound, described, examined
from domain.continuing import AS_MISTRAL, USUAL, Drops, Practice, Way
from domain.seams import SeamOutcome, Spot
from domain.settings import Settings
from domain.trust import Judgement, Trust
from providers.mistral.chat import MistralChat
from tests.support.check_answers import ANSWERS, knows_answers
from tests.support.simulator_process import SimulatorProcess, simulator

SMALL, LARGE = "mistral-small-latest", "mistral-large-latest"
PROSE = TASKS[0]
LIMITS = CheckLimits(seconds=240, call_seconds=240)
Doctor = Callable[..., Awaitable[tuple[list[Finding], list[Judgement]]]]
Check = Callable[..., Awaitable[Judgement]]


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


@pytest.fixture
def sim(process: SimulatorProcess) -> Iterator[SimulatorProcess]:
    """A simulator that knows the answers, and nothing of earlier tests."""
    process.forget()
    knows_answers(process)
    yield process
    process.drop_scripts()


@pytest.fixture
def doctor(sim: SimulatorProcess, tmp_path: Path) -> Doctor:
    """The findings of ``--live`` about models, and its judgements. There is no database to remember them."""

    async def run(*models: str, limits: CheckLimits = LIMITS, setting: Any = "auto") -> tuple[list[Finding], list[Any]]:
        settings = Settings(
            mistral_api_key="a key",
            mistral_server_url=sim.url,
            mistral_requests_per_second=1_000,
            chatjobs_continuation=setting,
            chatjobs_data_dir=tmp_path,
        )
        found = [one async for one in examined(settings, models or (SMALL,), limits)]
        findings = [one for one in found if isinstance(one, Finding)]
        return findings, [one for one in found if isinstance(one, Judgement)]

    return run


@pytest.fixture
async def check(sim: SimulatorProcess) -> AsyncIterator[Check]:
    """A judgement on a server whose practice is given."""
    models: list[MistralChat] = []

    async def run(practice: Practice = AS_MISTRAL, limits: CheckLimits = LIMITS) -> Judgement:
        models.append(MistralChat("a key", sim.url, practice=practice))
        return await ContinuationCheck(models[-1], limits).judged(SMALL)

    yield run
    for model in models:
        await model.aclose()


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [one for one in findings if one.check == check]


def frames(*pieces: str) -> dict[str, Any]:
    return {"kind": "frames", "frames": [{"delta": {"content": piece}} for piece in pieces]}


def answers_otherwise(sim: SimulatorProcess, task: str, *faults: Any, **script: Any) -> None:
    """Script the continuations of a prompt's answers; they come without an echo."""
    found = next(one for one in TASKS if one.name == task)
    sim.script(match=found.prompt, text=ANSWERS[task], echo="none", faults=[None, None, *faults], **script)


SILENT = Practice(Way.PREFIX, Drops.NOTHING, echoes=False)
"""Of a server that continues and does not repeat the text first."""


# ------------------------------------------------------------------------------------------------------- trust


@pytest.mark.parametrize("continues", ["prefix", "continue_final_message", "assistant"])
async def test_a_server_that_continues_is_trusted(doctor: Doctor, sim: SimulatorProcess, continues: str) -> None:
    """In whatever way: it was measured first, and every finding is made in that way."""
    knows_answers(sim, continues=continues)
    findings, (judgement,) = await doctor()
    assert [one for one in findings if one.status != "ok"] == []
    (line,) = of(findings, "live: trust")
    assert line.found == (
        f"{SMALL} at {sim.url}: trust continued answers: 12 of 12 equal the uninterrupted ones"
        " (controls: 4 of 4 the same twice); none wrong (at 95 % certainty fewer than 1 in 4)"
    )
    assert (judgement.trust, judgement.count(SeamOutcome.EQUAL)) == (Trust.TRUST, 12)
    assert {Spot.INDENTATION, Spot.EMOJI, Spot.CELL, Spot.WORD} <= {one.spot for one in judgement.seams}


@pytest.mark.parametrize("setting", ["prefix", "none"])
async def test_a_verdict_on_a_way_that_is_not_used_says_so(doctor: Doctor, sim: SimulatorProcess, setting: str) -> None:
    knows_answers(sim, continues="continue_final_message")
    (line,) = of((await doctor(setting=setting))[0], "live: trust")
    assert (line.status, line.fix) == ("warning", "set CHATJOBS_CONTINUATION=auto")
    assert "trust continued answers: 12 of 12 equal" in line.found
    assert line.found.endswith(f"; so with auto: CHATJOBS_CONTINUATION={setting} does not use this way")


async def test_the_calls_are_those_of_a_worker_and_bounded(doctor: Doctor, sim: SimulatorProcess) -> None:
    """At temperature 0 and with a seed; what was said is sent, and as much less is asked for."""
    await doctor()
    calls = sim.requests()
    assert len(calls) <= 14 + CALLS
    judged = [call for call in calls if any(task.prompt in call["prompt"] for task in TASKS)]
    assert len(judged) == CALLS
    assert {(call["parameters"]["temperature"], call["parameters"]["random_seed"]) for call in judged} == {(0, 7_001)}
    whole = [call for call in judged if call["prefix"] is None]
    assert [call["parameters"]["max_tokens"] for call in whole] == [MOST_TOKENS] * 8
    for call in judged:
        if call["prefix"] is not None:
            text = next(ANSWERS[task.name] for task in TASKS if task.prompt in call["prompt"])
            assert text.startswith(call["prefix"])
            assert 0 < call["parameters"]["max_tokens"] < MOST_TOKENS


async def test_more_calls_have_more_prompts_and_places(check: Check, sim: SimulatorProcess) -> None:
    judgement = await check(limits=LIMITS._replace(calls=42))
    assert (judgement.trust, len(judgement.seams), judgement.controls) == (Trust.TRUST, 28, (7, 7))
    assert {one.task for one in judgement.seams} == {task.name for task in TASKS}
    assert len({one.spot for one in judgement.seams}) >= 9
    assert len(sim.requests()) == 42


async def test_whitespace_that_is_not_said_again_is_a_reset_and_no_damage(check: Check, sim: SimulatorProcess) -> None:
    """Behind the indentation, without its blanks, the model goes on with another line: an attempt would start over."""
    indented = ["class Stack:\n    def push(self, item):\n", "    ", "    ", "self.items.append(item)  # to the list"]
    sim.script(match=TASKS[1].prompt, pieces=indented, continuation="    return item")
    judgement = await check(USUAL[Way.PREFIX])
    (seam,) = [one for one in judgement.seams if one.outcome is SeamOutcome.RESET]
    assert (seam.task, seam.spot) == ("code", Spot.INDENTATION)
    assert "did not go on from the text so far" in seam.why
    assert judgement.wrong == 0


# -------------------------------------------------------------------------------------------- care, and distrust


async def test_one_wrong_seam_asks_for_care(check: Check, sim: SimulatorProcess) -> None:
    answers_otherwise(sim, "prose", frames("thunder and lightning, thunder and lightning"))
    answers_otherwise(sim, "code", frames(ANSWERS["code"][:60]))
    answers_otherwise(sim, "script")
    answers_otherwise(sim, "table")
    judgement = await check(SILENT)
    assert (judgement.trust, judgement.count(SeamOutcome.ANEW)) == (Trust.CARE, 1), judgement.words


async def test_a_model_that_begins_anew_is_not_trusted(doctor: Doctor, sim: SimulatorProcess) -> None:
    """The report names the places, and what to set."""
    for task in TASKS[:4]:
        answers_otherwise(sim, task.name, frames(ANSWERS[task.name]), repeat_last=True)
    for probe in ("four colours", "Count on.", "four fruits", "Count from one"):
        assert sim.requests(probe) == []
    knows_probes_without_echo(sim)
    findings, (judgement,) = await doctor()
    assert judgement.trust is Trust.NONE, judgement.words
    seams = of(findings, "live: seam")
    assert len(seams) == judgement.wrong > 1
    assert {one.status for one in seams} == {"problem"}
    assert "began anew: …" in seams[0].found
    (line,) = of(findings, "live: trust")
    assert (line.status, "do not trust" in line.found, "set onInterrupt to restart" in line.fix) == (
        "problem",
        True,
        True,
    )


def knows_probes_without_echo(sim: SimulatorProcess) -> None:
    """The measurement finds a server that continues, and the later scripts of the tasks stay."""
    from providers.mistral.probe import PROBES

    sim.script(match="Count from one", echo="none")
    for probe in PROBES:
        sim.script(match=probe.prompt, text=f"{probe.list}{probe.rest}, and so on", echo="none")


async def test_a_server_that_is_wrongly_believed_to_continue_is_found_out(check: Check, sim: SimulatorProcess) -> None:
    """It opens a new answer, which would be glued to the old one."""
    sim.drop_scripts()
    sim.script(continues="never")
    judgement = await check(USUAL[Way.ASSISTANT])
    assert judgement.trust is Trust.NONE, judgement.words
    assert judgement.count(SeamOutcome.EQUAL) == 0


async def test_a_server_that_ignores_the_text_gets_one_clear_line(doctor: Doctor, sim: SimulatorProcess) -> None:
    """Even if it says the very same answer again: the measurement is not taken in, and nothing else is examined."""
    knows_answers(sim, continues="never")
    findings, judgements = await doctor()
    assert [(one.trust, one.seams) for one in judgements] == [(Trust.STARTS_OVER, ())]
    assert [(one.check, one.status) for one in findings] == [
        ("live: continuing", "warning"),
        ("live: rate limit", "ok"),
        ("live: first token", "ok"),
    ]
    assert "interrupted answers start over (reset)" in findings[0].found
    findings, (judgement,) = await doctor(setting="prefix")
    assert (judgement.trust, "asked all the same" in judgement.words) == (Trust.NONE, True)
    (glued,) = of(findings, "live: continuing")
    assert (glued.status, glued.fix) == ("problem", "set CHATJOBS_CONTINUATION=none")


async def test_a_server_that_answers_otherwise_each_time(check: Check, sim: SimulatorProcess) -> None:
    """Other words show nothing then; what equals one of its answers still does, and damage is damage."""
    for task in TASKS[:4]:
        other = frames(f"Well, {ANSWERS[task.name]}")
        found = next(one for one in TASKS if one == task)
        sim.script(match=found.prompt, text=ANSWERS[task.name], echo="none", faults=[None, other])
    assert (await check(SILENT)).trust is Trust.TRUST
    sim.forget()
    for task in TASKS[:4]:
        faults = [None, frames(f"Well, {ANSWERS[task.name]}"), frames("and quite another thing")]
        sim.script(match=task.prompt, text=ANSWERS[task.name], echo="none", faults=faults, repeat_last=True)
    judgement = await check(SILENT)
    assert (judgement.trust, judgement.controls) == (Trust.UNKNOWN, (0, 4))
    assert judgement.count(SeamOutcome.UNDECIDED) >= 10


# --------------------------------------------------------------------------------------- refused, slow, endless


async def test_a_server_that_refuses_to_continue_starts_over(check: Check, sim: SimulatorProcess) -> None:
    for task in TASKS[:4]:
        answers_otherwise(sim, task.name, {"kind": 422}, repeat_last=True)
    judgement = await check(SILENT)
    assert (judgement.trust, judgement.resets, judgement.comparable) == (Trust.STARTS_OVER, 12, 0)


@pytest.mark.parametrize(
    ("fault", "words"), [({"kind": 429}, "slow down"), ({"kind": 401}, "refused the API key"), ({"kind": 503}, "")]
)
async def test_a_refusal_ends_it(check: Check, sim: SimulatorProcess, fault: dict[str, Any], words: str) -> None:
    """At the first one, whatever comes then; what was seen until then is told, and is too little for a verdict."""
    for task in TASKS[:4]:
        answers_otherwise(sim, task.name, None, fault, repeat_last=True)
    judgement = await check(SILENT)
    assert judgement.trust is Trust.UNKNOWN
    assert judgement.ended
    assert words in judgement.words
    assert sim.requests()[-1]["status"] == fault["kind"]
    assert sum(call["status"] == fault["kind"] for call in sim.requests()) == 1


async def test_a_server_without_seeds_is_asked_without(check: Check, sim: SimulatorProcess) -> None:
    """One that refuses the parameter: the next call lacks it, and all later ones."""
    sim.script(match=PROSE.prompt, text=ANSWERS["prose"], faults=[{"kind": 422}])
    judgement = await check()
    first, *others = sim.requests()
    assert "random_seed" in first["parameters"]
    assert not [call for call in others if "random_seed" in call["parameters"]]
    assert (len(judgement.seams), judgement.trust) == (11, Trust.TRUST)


def understood(sim: SimulatorProcess) -> list[dict[str, Any]]:
    """The calls without those that asked for ``stream_options``, which Mistral refuses."""
    return [call for call in sim.requests() if call["status"] != 422]


async def test_an_unknown_model_among_others(doctor: Doctor, sim: SimulatorProcess) -> None:
    """It is a problem, and the others are judged."""
    findings, judgements = await doctor("gpt-none", SMALL)
    (problem,) = of(findings, "live")
    assert (problem.status, problem.found.startswith("gpt-none: ")) == ("problem", True)
    assert "has this model" in problem.fix
    assert [(one.model, one.trust) for one in judgements] == [(SMALL, Trust.TRUST)]
    assert len([call for call in understood(sim) if call["model"] == "gpt-none"]) == 1


@pytest.mark.parametrize("fault", [{"kind": 401}, {"kind": 429, "retry_after": 7}])
async def test_a_key_that_is_refused_ends_it_for_all_models(
    doctor: Doctor, sim: SimulatorProcess, fault: dict[str, Any]
) -> None:
    sim.script(match="Count from one", faults=[fault], repeat_last=True)
    findings, judgements = await doctor(SMALL, LARGE)
    assert ([(one.check, one.status) for one in findings], judgements) == ([("live", "problem")], [])
    assert "nothing more was called" in findings[0].fix
    assert len(understood(sim)) == 1


async def test_a_server_that_falls_silent(check: Check, sim: SimulatorProcess) -> None:
    """The time limit ends the check, and says so."""
    for task in TASKS[:4]:
        answers_otherwise(sim, task.name, {"kind": "stall"}, repeat_last=True)
    judgement = await check(SILENT, LIMITS._replace(seconds=2))
    assert (judgement.trust, judgement.ended) == (Trust.UNKNOWN, "2 s were over")
    sim.forget()
    judgement = await check(SILENT, LIMITS._replace(call_seconds=2))
    assert judgement.ended == "a call took more than 2 s"


async def test_a_server_that_never_ends(check: Check, sim: SimulatorProcess) -> None:
    """No more than a bound is read of each answer."""
    for task in TASKS[:4]:
        sim.script(match=task.prompt, faults=[{"kind": "endless"}], repeat_last=True)
    judgement = await check()
    assert len(judgement.seams) == 12
    assert all(0 < one.equal <= MOST_CHARACTERS for one in judgement.seams)
    assert {call["outcome"] for call in sim.requests()} == {"client_gone"}


async def test_an_answer_in_one_piece(check: Check, sim: SimulatorProcess) -> None:
    """It is never cut, and there is nothing to judge."""
    for task in TASKS:
        sim.script(match=task.prompt, pieces=[ANSWERS[task.name]])
    judgement = await check()
    assert (judgement.trust, "could not be cut" in judgement.words or "one piece" in judgement.words) == (
        Trust.UNKNOWN,
        True,
    )


async def test_a_server_that_is_not_known_to_continue_is_not_called(check: Check, sim: SimulatorProcess) -> None:
    judgement = await check(USUAL[Way.NONE])
    assert (judgement.trust, sim.requests()) == (Trust.STARTS_OVER, [])


# -------------------------------------------------------------------------------------------------- two models


async def test_another_model_goes_on(doctor: Doctor, sim: SimulatorProcess) -> None:
    """Each model is judged, and how the second goes on with the text of the first: less certain, and said so."""
    findings, judgements = await doctor(SMALL, LARGE)
    assert [(one.model, one.other, one.trust) for one in judgements] == [
        (SMALL, None, Trust.TRUST),
        (LARGE, None, Trust.TRUST),
        (LARGE, SMALL, Trust.TRUST),
    ]
    (line,) = of(findings, "live: handover")
    assert line.status == "ok"
    assert f"{SMALL} → {LARGE}" in line.found
    assert "less certain" in line.found
    assert len(sim.requests()) <= 2 * (14 + CALLS) + HANDOVERS
    assert len([call for call in sim.requests() if call["model"] == LARGE and call["prefix"] is not None]) >= HANDOVERS
    assert all(one.found.startswith((SMALL, LARGE)) for one in findings)


async def test_another_model_that_answers_anew(doctor: Doctor, sim: SimulatorProcess) -> None:
    """The simulator's models have texts of their own where none is scripted: each begins at its own beginning."""
    for task in TASKS:
        sim.script(match=task.prompt)
    _, judgements = await doctor(SMALL, LARGE)
    handover = judgements[-1]
    assert (handover.other, handover.trust) == (SMALL, Trust.NONE), handover.words
    assert handover.wrong > 1


def test_the_bound_is_for_all_models_and_pairs() -> None:
    assert bound(["a"], 20) == (
        "--live makes at most 38 calls of a: at most 8400 tokens together, 0.8 cents at a dollar for a million tokens."
    )
    assert bound(["a", "b", "c"], 10).startswith("--live makes at most 102 calls of a, b, c: at most 21600 tokens")


async def test_a_judgement_as_json(check: Check) -> None:
    found = described("https://api.example", await check())
    assert found["verdict"] == "trust"
    assert (found["continued"], found["equal"], found["wrong"], found["startedOver"]) == (12, 12, 0, 0)
    assert found["controls"] == {"equal": 4, "total": 4}
    assert len(found["seams"]) == 12
    assert set(found["seams"][0]) == {"task", "spot", "outcome", "equal", "before", "after", "why"}
