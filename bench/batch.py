"""Batches against one workflow for each job and against BullMQ: jobs per second, and the CPU time of every process.

``python -m bench.batch``. The contestants (contest.py) run in turns. ``--memory`` measures the memory of gateway and
worker in a batch of 1,000 and in one of 50,000 items instead, and ``--accept`` how many items per second an upload
brings.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from bench.contest import (
    BARE,
    BATCH,
    BULLMQ,
    LOOK_SECONDS,
    PROMPT_CHARACTERS,
    SINGLE,
    WARM_UP,
    Contest,
    NoBatches,
    Turn,
    contest,
    say,
)
from bench.readers import megabytes
from bench.table import Row, table

ITEMS = 2_000
ROUNDS = 3
TARGETS = {BARE: 3.0, BULLMQ: 0.8}
"""Jobs per second of a batch, per one of theirs."""
MEMORY_ITEMS = (1_000, 50_000)
MEMORY_MEGABYTES = 20
ACCEPT_ITEMS = 20_000
ACCEPT_PER_SECOND = 5_000
SHOWN_MILLISECONDS = 0.05
"""A process that takes less CPU time per job is not shown."""

Measurement = Callable[[Contest], Awaitable[list[Row]]]


async def jobs_per_second(here: Contest, items: int = ITEMS, rounds: int = ROUNDS) -> list[Row]:
    """Every contestant in turns."""
    contestants, prompts = await here.contestants(), here.items(items)
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            turn = await here.turn(contestant, prompts)
            say(f"{name}: {turn.done.jobs} in {turn.done.seconds:.2f} s, {turn.rate:.1f} per s")
            turns[name].append(turn)
    if BATCH in turns:
        count, size = await here.output()
        expected = turns[BULLMQ][-1].done.bytes if BULLMQ in turns else size
        assert (count, size) == (items, expected), f"the output has {count} answers of {size} bytes, not of {expected}"
    return [*_rates(turns), *(_cpu_row(name, found) for name, found in turns.items())]


def _rates(turns: Mapping[str, list[Turn]]) -> list[Row]:
    rows = [_against(BARE, name, turns) for name in (SINGLE, BULLMQ) if name in turns]
    if BATCH in turns:
        rows += [_against(other, BATCH, turns, target) for other, target in TARGETS.items() if other in turns]
    return rows


def _against(other: str, name: str, turns: Mapping[str, list[Turn]], target: float | None = None) -> Row:
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(turns[name], turns[other], strict=True))
    return Row(
        name=f"jobs, {name}",
        value=statistics.median(turn.rate for turn in turns[name]),
        unit="per s",
        baseline=f"{other}: {statistics.median(turn.rate for turn in turns[other]):.1f} per s",
        ratio=ratio,
        target=None if target is None else f"ratio ≥ {target:g}",
        met=None if target is None else ratio >= target,
    )


def _cpu_row(name: str, turns: list[Turn]) -> Row:
    jobs = sum(turn.done.jobs for turn in turns)
    parts = {part: sum(turn.cpu[part] for turn in turns) * 1_000 / jobs for part in turns[0].cpu}
    shown = sorted((part for part in parts if parts[part] >= SHOWN_MILLISECONDS), key=lambda part: -parts[part])
    return Row(
        name=f"CPU time per job, {name}",
        value=sum(parts.values()),
        unit="ms",
        baseline=", ".join(f"{part} {parts[part]:.2f}" for part in shown),
        ratio=None,
        target=None,
        met=None,
    )


async def memory(here: Contest) -> list[Row]:
    """The growth of the service's largest memory, from a small batch to a large one; the output is read, too."""
    await here.batch(here.items(MEMORY_ITEMS[0]))  # fills connections and caches
    few, many = [await _largest(here, here.items(items)) for items in MEMORY_ITEMS]
    return [_memory_row(name, few[name], many[name]) for name in few]


async def _largest(here: Contest, items: Path) -> dict[str, float]:
    """Megabytes of each process of the service, the most of all samples during a batch."""
    found = dict.fromkeys(here.service, 0.0)

    async def run() -> None:
        await here.batch(items)
        await here.output()

    running = asyncio.create_task(run())
    while not running.done():
        for name, pid in here.service.items():
            found[name] = max(found[name], megabytes(pid))
        await asyncio.sleep(LOOK_SECONDS)
    await running
    return found


def _memory_row(name: str, few: float, many: float) -> Row:
    small, large = MEMORY_ITEMS
    return Row(
        name=f"memory of the {name}, a batch of {large:,} items",
        value=many - few,
        unit="MB more",
        baseline=f"a batch of {small:,}: {few:.0f} MB",
        ratio=None,
        target=f"± {MEMORY_MEGABYTES} MB",
        met=abs(many - few) <= MEMORY_MEGABYTES,
    )


async def accept(here: Contest) -> list[Row]:
    """Items per second of an upload, from its first byte to the 202."""
    await here.batch(here.items(WARM_UP))
    items = here.items(ACCEPT_ITEMS)
    began = time.perf_counter()
    batch = await here.batches.submit(items)
    value = ACCEPT_ITEMS / (time.perf_counter() - began)
    await here.batches.cancel(batch)
    return [
        Row(
            name="accept, a batch",
            value=value,
            unit="items per s",
            baseline=f"{ACCEPT_ITEMS:,} items, prompts of {PROMPT_CHARACTERS} characters",
            ratio=None,
            target=f"≥ {ACCEPT_PER_SECOND:,}",
            met=value >= ACCEPT_PER_SECOND,
        )
    ]


async def measure(*measurements: Measurement, against: bool) -> list[Row]:
    """The rows of all measurements, on the same processes."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as directory:
        async with contest(Path(directory), against=against) as here:
            for measurement in measurements:
                try:
                    rows += await measurement(here)
                except NoBatches as missing:
                    say(f"{measurement.__name__} is not measured: {missing}")
    return rows


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(jobs_per_second, accept, against=True))


def run_full() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(jobs_per_second, memory, accept, against=True))


def main() -> None:
    """Print the figures that the command line asks for."""
    parser = argparse.ArgumentParser("python -m bench.batch", description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS, help="of a batch; single jobs are a twentieth as many")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of every contestant")
    parser.add_argument("--memory", action="store_true", help="the memory instead; some minutes")
    parser.add_argument("--accept", action="store_true", help="the upload instead")
    asked = parser.parse_args()

    async def rates(here: Contest) -> list[Row]:
        return await jobs_per_second(here, asked.items, asked.rounds)

    instead = [measurement for measurement in (memory, accept) if getattr(asked, measurement.__name__)]
    logging.disable(logging.WARNING)
    print(table(asyncio.run(measure(*(instead or [rates]), against=not instead))))


if __name__ == "__main__":
    main()
