"""A drill: a stack, one or more rounds of faults, a verdict per fault, and figures."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2

from drill.auditor import Auditor, Verdict
from drill.faults import CATALOGUE, Fault, Field
from drill.load import Load
from drill.receiver import receiver
from drill.stack import DrillStack, running

SETTLE_SECONDS = 120.0


@dataclass(frozen=True)
class DrillPlan:
    """``jobs`` and ``kills``: rounds of faults are repeated up to so many. ``scale`` multiplies each fault's jobs."""

    jobs: int = 0
    kills: int = 0
    scale: int = 1
    workers: int = 3
    gateways: int = 2
    seed: int = 1
    only: str = ""
    database_url: str | None = None
    directory: str | None = None


@dataclass
class DrillReport:
    """The result. ``wrong`` has the violations."""

    faults: list[dict[str, object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    jobs: int = 0
    kills: int = 0
    calls: int = 0
    largest_mb: float = 0
    tokens_generated: int = 0
    tokens_needed: int = 0
    accept_p50_ms: float = 0
    accept_p99_ms: float = 0
    seconds: float = 0

    def add(self, fault: Fault, jobs: int, seconds: float, verdict: Verdict) -> None:
        found = {"fault": fault.name, "rows": fault.sources, "jobs": jobs, "passed": verdict.passed}
        self.faults.append(found | {"seconds": seconds})
        self.wrong += [f"{fault.name}: {wrong}" for wrong in verdict.wrong]
        self.calls += verdict.calls
        self.largest_mb = max(self.largest_mb, verdict.largest_mb)
        self.tokens_generated += verdict.generated
        self.tokens_needed += verdict.needed


def chosen(plan: DrillPlan) -> list[Fault]:
    """The faults of a plan."""
    kind = "postgres" if plan.database_url else "sqlite"
    return [one for one in CATALOGUE if plan.only in one.name and one.database in (kind, "any")]


async def drill(plan: DrillPlan, say: Callable[[str], None] = print) -> DrillReport:
    """Run a plan. Violations are in the report; raises errors of the drill itself."""
    with tempfile.TemporaryDirectory(prefix="chatjobs-drill-", ignore_cleanup_errors=True) as temporary:
        directory = Path(plan.directory or temporary)
        stack = DrillStack(directory, plan.workers, plan.gateways, plan.database_url)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=50)
        say(f"starting Temporal, the simulator, {plan.workers} workers, {plan.gateways} gateways; logs in {directory}")
        with running(stack):
            async with receiver() as hooks, httpx2.AsyncClient(limits=limits, timeout=40, trust_env=False) as client:
                return await _rounds(plan, chosen(plan), stack, Load(stack, hooks, client, plan.seed), client, say)


async def _rounds(
    plan: DrillPlan,
    faults: Sequence[Fault],
    stack: DrillStack,
    load: Load,
    client: httpx2.AsyncClient,
    say: Callable[[str], None],
) -> DrillReport:
    report, began, auditor = DrillReport(), time.monotonic(), Auditor(stack, load, client)
    order = list(faults)
    shuffle = random.Random(plan.seed)  # noqa: S311 - a drill is repeatable
    try:
        while True:
            before = stack.kills
            for one in order:
                await _run_fault(one, plan, stack, load, auditor, report, say)
            enough = stack.kills >= plan.kills or stack.kills == before
            if len(load.jobs) >= plan.jobs and enough:
                break
            shuffle.shuffle(order)
        report.wrong += await auditor.final()
    finally:
        await load.close()
    report.jobs, report.kills, report.seconds = len(load.jobs), stack.kills, time.monotonic() - began
    times = sorted(job.accept_seconds * 1000 for job in load.jobs)
    if times:
        report.accept_p50_ms, report.accept_p99_ms = times[len(times) // 2], times[int(len(times) * 0.99)]
    return report


async def _run_fault(
    fault: Fault,
    plan: DrillPlan,
    stack: DrillStack,
    load: Load,
    auditor: Auditor,
    report: DrillReport,
    say: Callable[[str], None],
) -> None:
    began, first, found = time.monotonic(), len(load.jobs), list[str]()
    batches = len(load.batches)
    try:
        await fault.breaks(Field(stack, load, found, plan.scale))
    except (AssertionError, TimeoutError, subprocess.CalledProcessError) as error:
        found.append(f"it did not come so far as it should: {type(error).__name__} {error}")
    since = time.time()
    await asyncio.to_thread(stack.heal)
    for batch in load.batches[batches:]:
        await load.batch_settled(batch, SETTLE_SECONDS)
    jobs = load.jobs[first:]
    await load.settled(jobs, SETTLE_SECONDS)
    verdict = await auditor.audit(jobs, within=fault.within, since=since)
    verdict.wrong += [wrong for batch in load.batches[batches:] for wrong in auditor.audit_batch(batch)]
    verdict.wrong += found
    seconds = time.monotonic() - began
    report.add(fault, len(jobs), round(seconds, 1), verdict)
    word = "ok   " if verdict.passed else "WRONG"
    say(f"{word} {fault.name:<52} {fault.sources:<16} {len(jobs):>4} jobs {seconds:6.1f} s")
    for wrong in verdict.wrong[:10]:
        say(f"      {wrong}")


def summary(report: DrillReport) -> str:
    waste = report.tokens_generated - report.tokens_needed
    share = waste / report.tokens_needed if report.tokens_needed else 0
    kinds = len({str(one["fault"]) for one in report.faults})
    return "\n".join(
        [
            f"{report.jobs} jobs, {kinds} kinds of faults, {report.kills} kills in {report.seconds:.0f} s",
            f"model: {report.calls} calls, {report.tokens_generated} tokens for answers of {report.tokens_needed} "
            f"({share:+.1%})",
            f"accepting a job: p50 {report.accept_p50_ms:.0f} ms, p99 {report.accept_p99_ms:.0f} ms, faults included",
            f"largest process: {report.largest_mb:.0f} MB",
            f"verdict: {'all invariants hold' if not report.wrong else f'{len(report.wrong)} violations'}",
        ]
    )


def run(plan: DrillPlan, *, as_json: bool) -> int:
    """Run a plan and print its report. The exit code is 0 if all invariants hold."""
    out = sys.stderr if as_json else sys.stdout
    if not chosen(plan):
        print(f"no fault has {plan.only!r} in its name", file=sys.stderr)
        return 2
    report = asyncio.run(drill(plan, say=lambda line: print(line, file=out, flush=True)))
    print(json.dumps(asdict(report)) if as_json else summary(report))
    for wrong in report.wrong if as_json else report.wrong[:50]:
        print(wrong, file=sys.stderr)
    return 1 if report.wrong else 0
