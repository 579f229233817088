"""Answers of a real model, cut in many places and by workers that are killed: each is whole in the end, and of what a
reader was shown no character is lost, changed or said twice.

An answer ends in one of three ways: ``equal`` to the uninterrupted one; ``reset``, started over, and readers are told;
or ``different``, another text behind the cut, as what a model says may be when it reads its own words afresh. Anything
else fails. The server repeats the text that it continues, so it is known exactly what has to come of an answer: the
last response as it came over the wire.

Speed is nobody's promise here: nothing waits for a time, and a busy machine takes as long as it takes.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from chatjobs.contracts import Channel, Job, JobStatus
from dispatch import server_knowledge
from domain.continuing import Drops, Practice, Way
from domain.settings import Settings
from domain.values import Cursor
from tests.real_model.model import real_model
from tests.real_model.proxy import Fault, Proxy, proxy
from tests.support.service import Service, Watched, service
from tests.support.stack import ROOT, Stack, stack

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.xdist_group("real_model")]

MOST_TOKENS = 56
PROMPTS = {
    "prose": "Tell me a story about a lighthouse and a storm.",
    "list": "List five fruits as a numbered list.",
    "table": "Write a Markdown table of three animals with columns Animal and Legs.",
    "class": "Write a Python class Stack with push and pop. Only code.",
    "JSON": "Write JSON for a person with name, age and a list of two hobbies. Only JSON.",
}
INDENTED = re.compile(r"\n[ \t]+")
PATIENT = {"firstTokenSeconds": 3600, "stallSeconds": 3600, "totalSeconds": 3600, "maxLost": 20}
SETTINGS = {"CHATJOBS_CONTINUATION": "prefix", "CHATJOBS_HEARTBEAT_SECONDS": "2"}
KILLS = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one answer. ``place``: where it was interrupted; ``cuts``: how often."""

    setting: str
    place: str
    cuts: int
    end: str


OUTCOMES: list[Outcome] = []


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with real_model(tmp_path_factory.mktemp("model")) as port, proxy(port) as running:
        yield running


@pytest.fixture(scope="module")
def machine(wire: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {**SETTINGS, "MISTRAL_SERVER_URL": wire.url}
    with stack(tmp_path_factory.mktemp("seams"), env=env) as running:
        yield running


@pytest.fixture
async def live(machine: Stack) -> AsyncIterator[Service]:
    async with service(machine) as running:
        yield running
    sys.stdout.write(machine.news())


class Bench:
    """Runs jobs, interrupted and not, of one model, and judges them."""

    def __init__(self, live: Service, wire: Proxy, setting: str, model: str) -> None:
        self.live = live
        self.wire = wire
        self.setting = setting
        self.model = model

    async def submit(self, prompt: str, key: int) -> str:
        return await self.live.submit(
            PROMPTS[prompt],
            model=self.model,
            random_seed=key,
            max_tokens=MOST_TOKENS,
            limits=PATIENT,
            retry={"backoff": {"type": "fixed", "delay": 20}},
        )

    async def whole(self, prompt: str) -> list[str]:
        """The deltas of an answer that nothing interrupts."""
        key = self.wire.job()
        job_id = await self.submit(prompt, key)
        watched = await self.live.watched(job_id)
        (exchange,) = self.wire.seen(key)
        assert (watched.resets, watched.texts[Channel.CONTENT]) == (0, "".join(exchange.deltas))
        return exchange.deltas

    async def cut(self, prompt: str, deltas: Sequence[str], *after: int) -> Outcome:
        """Interrupt an answer after so many deltas (then, after so many more)."""
        key = self.wire.job(*(Fault(one) for one in after))
        watched = await self.live.watched(job_id := await self.submit(prompt, key))
        return self.judge(
            await self.live.jobs.queries.get(job_id), watched, key, deltas, place_of(prompt, deltas, after[0])
        )

    def judge(self, job: Job, watched: Watched, key: int, deltas: Sequence[str], place: str) -> Outcome:
        """The outcome. Fails where a character that was shown is lost, changed, or said twice."""
        *cut, last = self.wire.seen(key)
        story = f"{place}: cut {[(one.prefix, one.text[-40:]) for one in cut]}, then {last.prefix!r} {last.deltas}"
        assert job.status in (JobStatus.COMPLETED, JobStatus.INCOMPLETE), job
        assert watched.texts[Channel.CONTENT] == job.content == last.text, story
        assert last.whole
        if job.epoch == 1:
            kept = [one.text for one in cut]
        else:  # what was said before the last reset is gone, and readers were told
            kept = [one.text for one in cut[max(n for n, one in enumerate([*cut, last]) if not one.prefix) :]]
        assert watched.resets == job.epoch - 1
        assert all(last.text.startswith(shown) for shown in kept), story
        assert last.usage
        deltas_kept = sum(map(len, (one.deltas for one in cut[len(cut) - len(kept) :])))
        again = len(kept[-1]) - len(last.prefix or "") if kept else 0  # whitespace that was shown, and not sent
        assert deltas_kept + last.usage["completion_tokens"] <= MOST_TOKENS + again, story
        whole = "".join(deltas)
        if job.epoch > 1:
            assert kept or job.content == whole, story  # it is what the model says when nothing interrupts it
            end = "reset"
        else:
            end = "equal" if job.content == whole else "different"
        if end == "different":
            sys.stdout.write(f"{story}\nwhole: {whole!r}\n")
        OUTCOMES.append(found := Outcome(self.setting, place, sum(one.broken for one in cut), end))
        return found


def place_of(prompt: str, deltas: Sequence[str], after: int) -> str:
    """Where it is that an answer is cut."""
    return "indentation" if INDENTED.fullmatch(deltas[after - 1]) else prompt


def spread(deltas: Sequence[str], count: int) -> list[int]:
    """So many places, evenly over an answer."""
    return sorted({round(2 + n * (len(deltas) - 4) / (count - 1)) for n in range(count)})


def indented(deltas: Sequence[str]) -> list[int]:
    """All places right after an indentation."""
    return [n for n in range(1, len(deltas)) if INDENTED.fullmatch(deltas[n - 1])]


# ------------------------------------------------------------------------------------- as Mistral does, assumed


@pytest.mark.parametrize("prompt", ["prose", "list", "table"])
async def test_cut_in_text(live: Service, wire: Proxy, prompt: str) -> None:
    """In words, between them, at the ends of lines and cells."""
    bench = Bench(live, wire, "prefix", "smollm2")
    deltas = await bench.whole(prompt)
    await asyncio.gather(*(bench.cut(prompt, deltas, after) for after in spread(deltas, 5)))


@pytest.mark.parametrize("prompt", ["class", "JSON"])
async def test_cut_after_an_indentation(live: Service, wire: Proxy, prompt: str) -> None:
    """Blanks at the end are not sent, as Mistral drops them. This model, that has a line's end and its indentation in
    one token, does not say them again: it starts over, and never goes on at another depth."""
    bench = Bench(live, wire, "prefix", "smollm2")
    deltas = await bench.whole(prompt)
    await asyncio.gather(*(bench.cut(prompt, deltas, after) for after in indented(deltas)))


async def test_cut_twice(live: Service, wire: Proxy) -> None:
    bench = Bench(live, wire, "prefix", "smollm2")
    deltas = await bench.whole("list")
    await asyncio.gather(*(bench.cut("list", deltas, first, 6) for first in (4, 11, 23)))


async def test_killed_workers(live: Service, wire: Proxy, machine: Stack) -> None:
    """kill -9, five times, in the middle of two answers each."""
    bench = Bench(live, wire, "prefix", "smollm2")
    wholes = {prompt: await bench.whole(prompt) for prompt in ("prose", "class")}
    keys = {prompt: wire.job(*[Fault(6, hold=True)] * KILLS) for prompt in wholes}
    jobs = {prompt: await bench.submit(prompt, key) for prompt, key in keys.items()}
    watching = {prompt: asyncio.create_task(live.watched(job_id)) for prompt, job_id in jobs.items()}
    for _ in range(KILLS):
        for prompt, key in keys.items():
            while not await asyncio.to_thread(wire.held(key).wait, 0.5):
                assert not watching[prompt].done(), "the answer ended before it was to be interrupted"
            await shown(live, jobs[prompt], lambda key=key: wire.seen(key)[-1].text)  # type: ignore[misc]
            wire.held(key).clear()
        machine.workers[0].restart()
    for prompt, key in keys.items():
        watched, job = await watching[prompt], await live.jobs.queries.get(jobs[prompt])
        assert [one.outcome for one in job.attempts].count("lost") == KILLS
        bench.judge(job, watched, key, wholes[prompt], "kill -9")


async def shown(live: Service, job_id: str, text: Callable[[], str]) -> None:
    """A reader has all of the text."""
    watched = Watched()
    async for piece in live.reader.follow(Cursor(job_id)):
        watched.take(piece)
        if watched.texts[Channel.CONTENT].startswith(text()):
            return


# -------------------------------------------------------------------------------------------------- measured


MEASURED = Practice(Way.PREFIX, Drops.NOTHING, echoes=True, formats=frozenset({"json_object", "json_schema"}))
"""The server in front of the model has no grammars: it continues JSON as any text."""


async def test_auto(live: Service, wire: Proxy, machine: Stack) -> None:
    """Nothing is known of the server: the first interrupted answer starts over, the server is measured meanwhile, and
    later ones go on. Its model sees all whitespace, so that all of it is sent."""
    machine.env["CHATJOBS_CONTINUATION"] = "auto"
    machine.workers[0].restart()
    bench = Bench(live, wire, "auto", "smollm2-auto")
    deltas = await bench.whole("class")
    assert (await bench.cut("class", deltas, 4)).end == "reset"
    await asyncio.to_thread(machine.workers[0].wait_for_log, "interrupted answers continue: prefix", timeout=3600)
    assert await remembered(live, wire, "smollm2-auto") == MEASURED
    for prompt in ("class", "JSON"):
        deltas = await bench.whole(prompt)
        ends = await asyncio.gather(*(bench.cut(prompt, deltas, after) for after in indented(deltas)))
        assert "reset" not in {one.end for one in ends}
    deltas = await bench.whole("table")
    await asyncio.gather(*(bench.cut("table", deltas, after) for after in spread(deltas, 2)))


async def test_prefix_as_the_doctor_has_measured_it(live: Service, wire: Proxy, machine: Stack) -> None:
    """`starter.py doctor --live` finds that the blanks may be sent, and with them answers go on after indentations."""
    machine.env["CHATJOBS_CONTINUATION"] = "prefix"
    found = await asyncio.to_thread(doctor, machine, "smollm2-measured")
    assert found["status"] == "ok"
    assert "goes on with a text (prefix: true) and repeats it first; its model sees all of it" in found["found"]
    assert await remembered(live, wire, "smollm2-measured") == MEASURED
    machine.workers[0].restart()
    bench = Bench(live, wire, "measured", "smollm2-measured")
    deltas = await bench.whole("class")
    ends = await asyncio.gather(*(bench.cut("class", deltas, after) for after in indented(deltas)))
    assert "reset" not in {one.end for one in ends}


def doctor(machine: Stack, model: str) -> dict[str, str]:
    """What it finds of how the server continues. It gives a call half a minute, and a busy machine is asked again."""
    command = [sys.executable, "starter.py", "doctor", "--live", "--model", model, "--calls", "0", "--json"]
    while True:
        done = subprocess.run(command, cwd=ROOT, env=machine.env, capture_output=True, text=True, timeout=1800)
        checks: list[dict[str, str]] = json.loads(done.stdout)["checks"]
        for one in checks:
            if one["check"] == "live: continuing" and "had no answer" not in one["found"]:
                return one
        assert any("took more than" in one["found"] or "had no answer" in one["found"] for one in checks), checks


async def remembered(live: Service, wire: Proxy, model: str) -> Practice | None:
    settings = Settings(mistral_server_url=wire.url)
    return (await server_knowledge.remembered(server_knowledge.store(settings, live.database))).get(model)


# ----------------------------------------------------------------------------------------------------- in all


def test_outcomes(record_property: Callable[[str, object], None]) -> None:
    """Enough was cut, and enough of it went on. The table is printed at the end of the run (tests/conftest.py)."""
    if {"prefix", "auto", "measured"} - {one.setting for one in OUTCOMES}:
        pytest.skip("only some of the tests in this file ran")
    record_property("table", table(OUTCOMES))
    cuts = Counter[str]()
    for one in OUTCOMES:
        cuts[one.place] += one.cuts
    assert cuts.total() >= 40
    assert cuts["indentation"] >= 10
    assert cuts["kill -9"] >= KILLS
    ends = Counter(one.end for one in OUTCOMES)
    assert ends["equal"] >= ends.total() // 2


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'setting':10}{'interrupted in':18}{'answers':>9}{'cuts':>6}{'equal':>7}{'different':>11}{'reset':>7}"]
    for setting, place in dict.fromkeys((one.setting, one.place) for one in outcomes):
        these = [one for one in outcomes if (one.setting, one.place) == (setting, place)]
        ends = Counter(one.end for one in these)
        cuts = sum(one.cuts for one in these)
        counts = f"{len(these):9}{cuts:6}{ends['equal']:7}{ends['different']:11}{ends['reset']:7}"
        lines.append(f"{setting:10}{place:18}{counts}")
    return "\n".join(lines)
