"""Continued answers against uninterrupted ones: how often they are equal, and whether the check finds the other cases.

``python -m bench.continuation``: the simulator as servers of each kind, and a small real model
(``make .venv/real_model/made`` brings it; left out without it). ``--server URL --model M``: a server of your own, with
the key in MISTRAL_API_KEY. Nothing here is judged by time.

Each answer is asked for twice (the baseline), then cut, continued and compared, as `starter.py doctor --live` does it
(activities/continuation_check.py). The way to continue is measured first, except where a row says that it is assumed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from activities.continuation_check import CheckLimits, ContinuationCheck
from bench.table import Row, table
from domain.continuing import AS_MISTRAL, NEVER, Practice
from domain.seams import SeamOutcome
from domain.trust import Judgement, Trust
from providers.mistral.chat import MistralChat
from providers.mistral.probe import measured
from tests.real_model.install import MADE
from tests.real_model.model import real_model
from tests.support.check_answers import knows_answers
from tests.support.simulator_process import simulator

LIMITS = CheckLimits(calls=42, seconds=1_200, call_seconds=300)
"""All seven prompts, each twice, and 28 places."""
MODEL = "mistral-small-latest"
KINDS = {
    "prefix": "the simulator as Mistral",
    "continue_final_message": "the simulator as vLLM",
    "assistant": "the simulator as llama.cpp",
    "never": "the simulator as a server that ignores the text",
}


class Case(NamedTuple):
    """A server and model, and the verdict that is due. ``practice``: assumed; None: measured first."""

    name: str
    url: str
    model: str = MODEL
    due: Trust | None = Trust.TRUST
    practice: Practice | None = None
    key: str = "a key"


async def judged(case: Case) -> Judgement:
    chat = MistralChat(case.key, case.url, practice=case.practice)
    try:
        if case.practice is None:
            practice = await measured(chat, case.model)
            if practice is None:
                return Judgement(case.model, ended="a call that measures the server had no answer")
            chat.learn({case.model: practice})
            if practice == NEVER:
                return Judgement(case.model, ended="the server does not go on with a text", continues=False)
        return await ContinuationCheck(chat, LIMITS).judged(case.model)
    finally:
        await chat.aclose()


def simulated() -> Iterator[tuple[Case, Judgement]]:
    with simulator() as sim:
        for kind, name in KINDS.items():
            knows_answers(sim, continues=kind)
            due = Trust.STARTS_OVER if kind == "never" else Trust.TRUST
            case = Case(f"{name}, measured", sim.url, due=due)
            yield case, asyncio.run(judged(case))
        sim.drop_scripts()
        sim.script(continues="never")
        case = Case(f"{KINDS['never']}, asked all the same", sim.url, due=Trust.NONE, practice=AS_MISTRAL)
        yield case, asyncio.run(judged(case))


def real() -> Iterator[tuple[Case, Judgement]]:
    """The small model; nothing where it is not installed."""
    if not MADE.exists():
        print("without the real model: make .venv/real_model/made brings it", file=sys.stderr)
        return
    with (
        _quiet(),
        tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as directory,
        real_model(Path(directory)) as port,
    ):
        for name, practice in (("measured", None), ("assumed as Mistral's, which drops spaces", AS_MISTRAL)):
            case = Case(f"SmolLM2 135M, {name}", f"http://127.0.0.1:{port}", "smollm2", practice=practice)
            yield case, asyncio.run(judged(case))


@contextmanager
def _quiet() -> Iterator[None]:
    """The log of the model's server goes to standard error; standard output is for figures."""
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


def row(case: Case, judgement: Judgement) -> Row:
    count, controls = judgement.count, judgement.controls
    others = {kind: count(kind) for kind in SeamOutcome if kind is not SeamOutcome.EQUAL and count(kind)}
    words = "".join(f", {number} {kind}" for kind, number in others.items())
    equal = count(SeamOutcome.EQUAL)
    return Row(
        name=f"continued answers, {case.name}",
        value=equal,
        unit=f"of {judgement.comparable} equal{words}",
        baseline=f"uninterrupted, asked twice: {controls.equal} of {controls.total} equal",
        ratio=equal / judgement.comparable if judgement.comparable else None,
        target=None if case.due is None else f"verdict: {case.due}",
        met=None if case.due is None else judgement.trust is case.due,
    )


def run() -> list[Row]:
    """All servers; each verdict is printed to standard error as it comes."""
    return [_told(case, judgement) for cases in (simulated, real) for case, judgement in cases()]


def _told(case: Case, judgement: Judgement) -> Row:
    print(f"{case.name} ({case.model}): {judgement.words}", file=sys.stderr, flush=True)
    for one in judgement.seams:
        if one.outcome is not SeamOutcome.EQUAL:
            shown = f"…{one.before!r} | {one.after!r}"
            print(f"    {one.task}, cut {one.spot}: {one.outcome} ({one.equal}): {shown} {one.why}", file=sys.stderr)
    return row(case, judgement)


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.continuation", description=__doc__)
    parser.add_argument("--server", help="a server's base URL without /v1")
    parser.add_argument("--model", default=MODEL)
    given = parser.parse_args()
    if given.server is None:
        print(table(run()))
        return
    case = Case(given.server, given.server, given.model, None, key=os.environ.get("MISTRAL_API_KEY") or "none")
    print(table([_told(case, asyncio.run(judged(case)))]))


if __name__ == "__main__":
    main()
