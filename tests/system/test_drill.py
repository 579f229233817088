"""The drill's auditor can see: what is tampered with is found, each under its own invariant."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx2
import pytest

from drill.auditor import Auditor
from drill.faults import CATALOGUE
from drill.load import DrillJob, Load, Order
from drill.readers import ReceivedFrame
from drill.receiver import receiver
from drill.stack import DrillStack, Event, running
from tests.support.stack import ROOT

pytestmark = pytest.mark.long


@dataclasses.dataclass
class Scene:
    """A stack on which three jobs have run, and were judged well."""

    stack: DrillStack
    load: Load
    client: httpx2.AsyncClient
    jobs: list[DrillJob]

    async def wrong(self, **options: float) -> str:
        """What a fresh auditor finds."""
        options = {"within": 60.0, "since": time.time()} | options
        verdict = await Auditor(self.stack, self.load, self.client).audit(self.jobs, **options)
        return "\n".join(verdict.wrong)

    def sql(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.stack.database.removeprefix("sqlite:///"))) as connection:
            connection.execute(statement, values)
            connection.commit()


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    stack = DrillStack(directory, workers=1, gateways=1, database_url=None)
    with running(stack):
        async with receiver() as hooks, httpx2.AsyncClient(timeout=30, trust_env=False) as client:
            load = Load(stack, hooks, client, seed=1)
            try:
                jobs = await load.submit(Order(jobs=3, tokens=20, rate=0, readers=1))
                await load.settled(jobs, 30)
                async with asyncio.timeout(30):
                    while not {str(job.path) for job in jobs} <= {post.path for post in hooks.log}:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                yield Scene(stack, load, client, jobs)
            finally:
                await load.close()


async def test_every_kind_of_damage_is_seen(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        assert await s.wrong() == ""
        assert await Auditor(s.stack, s.load, s.client).final() == []
        for sign, damage, repair in damages(s):
            damage()
            found = await s.wrong()
            assert sign in found, f"not seen: {sign}; only: {found}"
            repair()
            assert await s.wrong() == "", sign
        assert "I8" in await s.wrong(since=0, within=0)


def damages(s: Scene) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    job, log, hooks = s.jobs[0], s.jobs[0].logs[0], s.load.receiver.log
    frames, posts = list(log.frames), list(hooks)
    chunk = next(frame for frame in frames if frame.event == "chunk")
    end = frames[-1]

    def table(statement: str, undo: str) -> tuple[Callable[[], object], Callable[[], object]]:
        return lambda: s.sql(statement, job.id), lambda: s.sql(undo, job.id)

    def read(*changed: ReceivedFrame) -> tuple[Callable[[], object], Callable[[], object]]:
        return lambda: log.frames.__setitem__(slice(None), changed), lambda: log.frames.__setitem__(slice(None), frames)

    def posted(**changed: object) -> tuple[Callable[[], object], Callable[[], object]]:
        mine = next(post for post in posts if post.path == job.path)
        others = [post for post in posts if post is not mine]
        tampered = [*posts, dataclasses.replace(mine, **changed)] if changed else others  # type: ignore[arg-type]
        return lambda: hooks.__setitem__(slice(None), tampered), lambda: hooks.__setitem__(slice(None), posts)

    mine = next(post for post in posts if post.path == job.path)
    forged = mine.headers | {"webhook-signature": "v1,AAAA"}
    ungrown = dataclasses.replace(chunk, data=chunk.data | {"content": ""})
    return [
        (
            "I1 it ended as failed",
            *table("UPDATE jobs SET status='failed' WHERE id=?", "UPDATE jobs SET status='completed' WHERE id=?"),
        ),
        (
            "I1 it has not ended",
            *table("UPDATE jobs SET completed_at=NULL WHERE id=?", "UPDATE jobs SET completed_at=1 WHERE id=?"),
        ),
        (
            "I2 the stored digest",
            *table(
                "UPDATE results SET sha256='x'||sha256 WHERE job_id=?",
                "UPDATE results SET sha256=substr(sha256,2) WHERE job_id=?",
            ),
        ),
        (
            "I4 the stored text is not the model's",
            *table(
                "UPDATE results SET content=content||'!' WHERE job_id=?",
                "UPDATE results SET content=substr(content,1,length(content)-1) WHERE job_id=?",
            ),
        ),
        (
            "I3 its webhook has no delivery",
            *table(
                "UPDATE deliveries SET job_id='-'||job_id WHERE job_id=?",
                "UPDATE deliveries SET job_id=substr(job_id,2) WHERE job_id='-'||?",
            ),
        ),
        ("I3 its delivery is called delivered", *posted()),
        ("I3 the tries differ", *posted(body=mine.body + b" ")),
        ("I3 a try is not signed", *posted(headers=forged)),
        ("I4 a reader saw ids that do not grow", *read(*frames[:-1], chunk, end)),
        ("I4 a reader has another text", *read(*(ungrown if frame is chunk else frame for frame in frames))),
        ("I1 one Idempotency-Key made 2 jobs", lambda: job.others.add("job_2"), job.others.clear),
        ("I4 a reader was answered with [404]", lambda: log.refused.add(404), log.refused.clear),
        ("I1 a reader saw the ends", *read(*frames, dataclasses.replace(end, id="9.9.end"))),
    ]


async def test_damage_to_a_batch_is_seen(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        batch = await s.load.submit_batch(Order(jobs=5, tokens=5, rate=0))
        await s.load.batch_settled(batch, 30)
        async with asyncio.timeout(30):
            while batch.path not in {post.path for post in s.load.receiver.log}:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
        auditor = Auditor(s.stack, s.load, s.client)
        assert auditor.audit_batch(batch) == []
        assert len(s.load.jobs) == 8
        batch.listed[0] = batch.listed[1]
        found = "\n".join(auditor.audit_batch(batch))
        assert "I10 1 items are listed twice" in found
        assert "I10 1 items are not listed" in found
        batch.status = "paused"
        found = "\n".join(auditor.audit_batch(batch))
        assert "I10 it is paused" in found
        assert "I10 its webhook tells another outcome" in found


async def test_a_second_call_needs_a_reason(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        prompt = {"model": "mistral-small-latest", "messages": s.jobs[0].body["messages"], "stream": True}
        headers = {"authorization": "Bearer x"}
        await s.client.post(f"{s.stack.simulator_url}/v1/chat/completions", json=prompt, headers=headers)
        assert "I5 2 calls" in await s.wrong()
        s.stack.events.append(Event(time.time(), "killed a gateway", 1, cuts=False))
        assert "I5 2 calls" in await s.wrong()
        s.stack.events.append(Event(time.time(), "killed somebody", 1))
        assert "I5" not in await s.wrong()
        for _ in range(2):
            await s.client.post(f"{s.stack.simulator_url}/v1/chat/completions", json=prompt, headers=headers)
        assert "I5 4 calls" in await s.wrong(), "one kill excuses one call"


async def test_leaks_and_crossings_are_seen(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        with s.stack.gateway_processes[0].log.open("a") as log:
            log.write(f"oh: {s.stack.api_key}\n")
        s.jobs[0].tenant = "blue" if s.jobs[0].tenant == "red" else "red"
        found = "\n".join(await Auditor(s.stack, s.load, s.client).final())
        assert "I6 the model's key stands in gateway-1.log" in found
        assert "I7 " in found


def test_the_catalogue_has_no_fault_twice() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE) >= 24


def page() -> dict[str, str]:
    """Of docs/faults.md: what stands in the line of each fault and invariant."""
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    found = [line.split("|", 2)[1:] for line in lines if line.startswith(("| F", "| I"))]
    assert len({row for row, _ in found}) == len(found)
    return {row.strip(): rest for row, rest in found}


def named_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}


def test_no_fault_is_missing() -> None:
    """Their numbers were given once and for all; numbers that are divisible by three were never given."""
    numbers = [f"F{number:02}" for number in range(1, 86) if number % 3]
    assert sorted(page()) == sorted(numbers + [f"I{number}" for number in range(1, 11)])


@pytest.mark.parametrize("row", sorted(row for row in page() if row.startswith("F")))
def test_what_shows_it_is_there(row: str) -> None:
    names = {fault.name: fault.sources.split(", ") for fault in CATALOGUE}
    shown = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page()[row])
    drilled = re.findall(r"`drill: ([^`]+)`", page()[row])
    assert shown or drilled
    assert [f"{file}::{name}" for file, name in shown if name not in named_in(file)] == []
    assert sorted(drilled) == sorted(name for name, rows in names.items() if row in rows)
