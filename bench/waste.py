"""Tokens that the model generates for an interrupted answer: continued, against restarted.

``python -m bench.waste``. Real worker processes, and the simulator, which counts the tokens it sends. Jobs of both
policies run concurrently under the same faults: broken streams, and workers killed with -9.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from bench.table import Row, table
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import Stack, stack

TOKENS = 400
JOBS = 8
"""Of each policy, under each kind of fault."""
CUTS = [{"kind": "cut", "after": 100}] * 2
"""One more, and an answer that is started over would be given up: breaks at the same place are paid for three times."""
KILLS = 2
SLOW = {"tokens": 300, "tokens_per_second": 100}
POLICIES = ("continue", "restart")
BROKEN, KILLED = f"{len(CUTS)} broken streams", f"{KILLS} killed workers"
TARGET = {BROKEN: 1.02, KILLED: 1.1}


async def measure() -> list[Row]:
    environment = {"CHATJOBS_HEARTBEAT_SECONDS": "2", "CHATJOBS_CONCURRENCY": "50"}
    with (
        tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as directory,
        stack(Path(directory), env=environment) as machine,
    ):
        async with service(machine) as live:
            return [
                _row(BROKEN, await broken_streams(machine, live)),
                _row(KILLED, await killed_workers(machine, live)),
            ]


async def broken_streams(machine: Stack, live: Service) -> dict[str, float]:
    messages = _messages({"tokens": TOKENS, "faults": CUTS})
    return await finished(machine, live, messages, await submitted(live, messages))


async def killed_workers(machine: Stack, live: Service) -> dict[str, float]:
    """Kill the worker each time the restarted answers have 80 tokens again."""
    messages = _messages(SLOW)
    job_ids = await submitted(live, messages)
    for kill in range(KILLS):
        for message in messages["restart"]:
            await machine.simulator.wait(message, requests=kill + 1, tokens=80, timeout=60)
        machine.workers[0].restart()
    return await finished(machine, live, messages, job_ids)


def _messages(script: dict[str, Any]) -> dict[str, list[str]]:
    return {policy: [prompt("waste", **script) for _ in range(JOBS)] for policy in POLICIES}


async def submitted(live: Service, messages: dict[str, list[str]]) -> list[str]:
    return [await live.submit(one, onInterrupt=policy) for policy in POLICIES for one in messages[policy]]


async def finished(
    machine: Stack, live: Service, messages: dict[str, list[str]], job_ids: list[str]
) -> dict[str, float]:
    """Tokens generated per token of the answers, by policy. Asserts that every answer is whole."""
    jobs = await asyncio.gather(*(live.ended(job_id) for job_id in job_ids))
    needed = {policy: [machine.simulator.answer(one) for one in messages[policy]] for policy in POLICIES}
    texts = [answer["text"] for policy in POLICIES for answer in needed[policy]]
    if [job.content for job in jobs] != texts:
        raise AssertionError("an answer is not what it would have been without interruption")
    return {
        policy: sum(call["tokens_sent"] for one in messages[policy] for call in machine.simulator.requests(one))
        / sum(len(answer["tokens"]) for answer in needed[policy])
        for policy in POLICIES
    }


def _row(name: str, found: dict[str, float]) -> Row:
    target = TARGET[name]
    return Row(
        name=f"tokens generated, {name}",
        value=found["continue"],
        unit="× the answer",
        baseline=f"started over: {found['restart']:.2f} ×",
        ratio=found["continue"] / found["restart"],
        target=f"≤ {target} ×",
        met=found["continue"] <= target,
    )


def run() -> list[Row]:
    return asyncio.run(measure())


if __name__ == "__main__":
    print(table(run()))
