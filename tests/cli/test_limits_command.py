"""`starter.py limits`, against a database that a real worker works with."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

import starter
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

FAMILY = "mistral-small"
SLOW, FAST = 1, 50


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("limits"), env={"CHATJOBS_CONCURRENCY": "20"}) as started:
        yield started


@pytest.fixture
def call(running: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """The program in this process: ``call("list", "--json")``."""

    def called(*arguments: str, family: Sequence[str] = ("limits",)) -> Outcome:
        with monkeypatch.context() as changed:
            for name, value in running.env.items():
                changed.setenv(name, value)
            return Outcome(starter.main([*family, *arguments]), *capfd.readouterr())

    yield called
    sys.stdout.write(running.news())


def lanes(call: Call) -> list[dict[str, Any]]:
    return list(json.loads(call("list", "--json").out)["lanes"])


async def starts(there: Service, count: int) -> list[float]:
    """When the calls of so many jobs began (unix seconds), which are submitted together and complete."""
    words = prompt()
    ids = await asyncio.gather(*(there.submit(f"{words} {number}") for number in range(count)))
    for job_id in ids:
        assert (await there.ended(job_id)).status == "completed"
    return sorted(entry["time"] for entry in there.stack.simulator.requests(words))


async def test_a_change_takes_effect_while_the_worker_runs(running: Stack, call: Call) -> None:
    """Nobody is restarted: one a second, then fifty."""
    async with service(running) as there:
        await starts(there, 1)  # makes the lane
        name = (await asyncio.to_thread(lanes, call))[0]["lane"]
        assert name.endswith(f":{FAMILY}")
        slowed = await asyncio.to_thread(call, "set", name, str(SLOW))
        assert (slowed.code, slowed.out) == (0, f"{name}: 1/s, set here\n")
        slow = await starts(there, 4)
        assert slow[-1] - slow[0] > 2 / SLOW, slow
        freed = await asyncio.to_thread(call, "set", name, str(FAST), "--json")
        assert json.loads(freed.out)["perSecond"] == FAST
        fast = await starts(there, 10)
        assert fast[-1] - fast[0] < 5 / SLOW, fast  # ten of them: nine seconds at the limit before
        back = json.loads((await asyncio.to_thread(call, "reset", name, "--json")).out)
        assert (back["setTo"], back["perSecond"]) == (None, 1000)


def test_a_lane_may_be_limited_before_its_first_call(call: Call) -> None:
    early = call("set", "0a1b2c3d:mistral-large", "2.5")
    assert (early.code, early.out) == (0, "0a1b2c3d:mistral-large: 2.5/s, set here\n")
    assert "no call has been made" in early.err
    assert "0a1b2c3d:mistral-large" in call("list").out
    assert {
        "lane": "0a1b2c3d:mistral-large",
        "perSecond": 2.5,
        "setTo": 2.5,
        "seen": None,
        "atOnce": None,
        "running": 0,
        "tokensPerMinute": None,
        "tokensSetTo": None,
        "tokensSeen": None,
        "tokensUsed": None,
        "pauses": [],
        "pausedUntil": None,
        "waiting": 0,
        "waitingBy": [],
        "down": False,
        "probesAt": None,
        "lastError": None,
    } in lanes(call)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "mistral-large", "5"], "must be a name as in"),
        (["set", "0a1b2c3d:x", "0"], "from 0.001 to 10000"),
        (["set", "0a1b2c3d:x", "nan"], "from 0.001 to 10000"),
        (["set", "0a1b2c3d:x", "1e9"], "from 0.001 to 10000"),
        (["set", "0a1b2c3d:x", "many"], "must be a number"),
        (["reset", "0a1b2c3d:nobody"], "no such lane"),
        (["0a1b2c3d:x", "--at-once", "0"], "from 1 to 100000, or none"),
        (["0a1b2c3d:x", "--at-once", "many"], "from 1 to 100000, or none"),
        (["0a1b2c3d:x", "--tokens-per-minute", "1e6"], "must be a whole number"),
        (["0a1b2c3d:x"], "give one of --per-second, --at-once, --tokens-per-minute"),
    ],
)
def test_what_makes_no_sense_changes_nothing(call: Call, arguments: list[str], words: str) -> None:
    before = lanes(call)
    refused = call(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.err
    assert lanes(call) == before


def test_pause_and_resume(running: Stack, call: Call) -> None:
    """Each is told in words, and as JSON; resuming what is not paused says what is."""
    everything = call("pause", "--reason", "the budget is spent", family=())
    assert (everything.code, everything.out) == (0, "paused: everything\n")
    tenant = json.loads(call("pause", "--tenant", "acme", "--lane", "0a1b2c3d:mistral-small", "--json", family=()).out)
    assert (tenant["tenant"], tenant["lane"], tenant["pausedBy"]) == ("acme", "0a1b2c3d:mistral-small", "operator")
    wrong = call("resume", "--tenant", "acme", family=())
    assert (wrong.code, wrong.out) == (2, "")
    assert "There is no such pause; paused: everything since" in wrong.err
    assert call("resume", family=()).out == "resumed: everything\n"
    ended = call("resume", "--tenant", "acme", "--lane", "0a1b2c3d:mistral-small", family=())
    assert ended.out == "resumed: tenant acme in lane 0a1b2c3d:mistral-small\n"
    assert "nothing is paused" in call("resume", family=()).err
    assert "must be a name as in" in call("pause", "--lane", "mistral-small", family=()).err


def test_limits_are_set_after_the_name_of_a_lane(call: Call) -> None:
    lane = "0a1b2c3d:codestral"
    assert call(lane, "--at-once", "3").out == f"{lane}: 1000/s, by MISTRAL_REQUESTS_PER_SECOND, 3 at once\n"
    both = json.loads(call(lane, "--per-second", "5", "--at-once", "4", "--json").out)
    assert (both["perSecond"], both["atOnce"]) == (5, 4)
    assert call(lane, "--tokens-per-minute", "50000").out.endswith(", 4 at once, 50,000 tokens a minute\n")
    listed = call().out
    assert "0 of 4" in listed
    assert "0 of 50,000" in " ".join(listed.split())
    assert json.loads(call(lane, "--at-once", "none", "--json").out)["atOnce"] is None
    assert call(lane, "--at-once", "2").code == 0
    back = json.loads(call("reset", lane, "--json").out)
    assert (back["atOnce"], back["tokensPerMinute"]) == (None, None)


async def test_who_waits_is_shown(running: Stack, call: Call) -> None:
    """By tenant and priority, with what is paused; the list needs no word."""
    async with service(running) as there:
        await starts(there, 1)
        name = next(lane["lane"] for lane in await asyncio.to_thread(lanes, call) if lane["lane"].endswith(FAMILY))
        await asyncio.to_thread(call, "pause", "--lane", name, "--reason", "for a test", family=())
        ids = [await there.submit(prompt()) for _ in range(2)] + [await there.submit(prompt(), priority=1)]
        async with asyncio.timeout(20):
            while next(one for one in await asyncio.to_thread(lanes, call) if one["lane"] == name)["waiting"] < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        listed = json.loads((await asyncio.to_thread(call, "--json")).out)
        (lane,) = [one for one in listed["lanes"] if one["lane"] == name]
        assert lane["waitingBy"] == [
            {"tenant": "default", "priority": 1, "count": 1},
            {"tenant": "default", "priority": 3, "count": 2},
        ]
        assert (
            [one["reason"] for one in lane["pauses"]] == [one["reason"] for one in listed["pauses"]] == ["for a test"]
        )
        shown = " ".join((await asyncio.to_thread(call)).out.split())
        assert f"paused: lane {name} since" in shown
        assert "by operator: for a test" in shown
        await asyncio.to_thread(call, "resume", "--lane", name, family=())
        for job_id in ids:
            assert (await there.ended(job_id)).status == "completed"
