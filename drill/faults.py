"""The catalogue of faults: what each breaks, and how soon its jobs must have ended."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

from drill.load import DrillBatch, DrillJob, Load, Order
from drill.processes import Process
from drill.stack import DrillStack

MOMENT_SECONDS = 1.0
PAUSE_SECONDS = 8
LONG = "at great length"
FILE_BYTES = 64 * 1024
"""The size limit of files while the disk is full: less than the database has already."""


@dataclass(frozen=True)
class Field:
    """What a fault works on. ``scale`` multiplies its number of jobs; ``wrong`` gets the violations it sees itself."""

    stack: DrillStack
    load: Load
    wrong: list[str]
    scale: int = 1

    async def jobs(self, order: Order) -> list[DrillJob]:
        return await self.load.submit(replace(order, jobs=order.jobs * self.scale))

    async def batch(self, order: Order, **settings: Any) -> DrillBatch:
        return await self.load.submit_batch(replace(order, jobs=order.jobs * self.scale), **settings)

    # In threads, so that readers and receivers are not blocked.
    async def kill(self, *processes: Process) -> None:
        await asyncio.to_thread(self.stack.kill, *processes)

    async def start(self, *processes: Process) -> None:
        """Start the processes that do not run, and wait until they are ready."""
        await asyncio.to_thread(self.stack.start_all, processes)

    async def operator(self, *arguments: str) -> None:
        """Run a command of `temporal`."""
        await asyncio.to_thread(self.stack.temporal_command, *arguments)


Breaking = Callable[[Field], Awaitable[object]]
"""Starts jobs and breaks something. The auditor checks all jobs that it started."""
Databases = Literal["any", "sqlite", "postgres"]


@dataclass(frozen=True)
class Fault:
    """``within``: seconds from the end of the fault to the last job's end. ``sources``: rows of the fault catalogue."""

    name: str
    sources: str
    breaks: Breaking
    within: float = 40
    database: Databases = "any"


CATALOGUE: list[Fault] = []


def fault(sources: str, within: float = 40, *, database: Databases = "any") -> Callable[[Breaking], Breaking]:
    """Add a function to the catalogue under its name."""

    def add(breaks: Breaking) -> Breaking:
        CATALOGUE.append(Fault(breaks.__name__.replace("_", " "), sources, breaks, within, database))
        return breaks

    return add


# ------------------------------------------------------------------------------------------------- workers


@fault("F01")
async def workers_die_before_the_first_token(field: Field) -> None:
    await field.jobs(Order(jobs=6, script={"first_token_seconds": 1.0}))
    await asyncio.sleep(MOMENT_SECONDS / 2)
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)


@fault("F02, F62")
async def a_worker_dies_in_mid_stream(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=9, tokens=120, rate=40, readers=2, cut_after=7))
    for nth, worker in enumerate(field.stack.worker_processes):
        await field.load.streaming(jobs, 20 * (nth + 1))
        await field.kill(worker)
        await field.start(worker)


@fault("F02")
async def all_workers_die_again_and_again(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=6, tokens=160, rate=30))
    for characters in (20, 60, 120):
        await field.load.streaming(jobs, characters)
        await field.kill(*field.stack.worker_processes)
        await field.start(*field.stack.worker_processes)


@fault("F02")
async def a_worker_dies_under_jobs_that_start_over(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=6, tokens=80, fields={"onInterrupt": "restart"}))
    await field.load.streaming(jobs, 40)
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)


@fault("F07")
async def a_rolling_deploy(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=15, tokens=150, rate=30))
    for worker in field.stack.worker_processes:
        await field.load.streaming(jobs, 20)
        field.stack.record(f"stopped {worker.name}")
        await asyncio.to_thread(worker.stop)
        await field.start(worker)


@fault("F10", within=60)
async def a_frozen_worker_wakes_up_after_others_took_over(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=6, tokens=120, rate=30))
    await field.load.streaming(jobs, 30)
    frozen = field.stack.worker_processes[0]
    field.stack.record(f"froze {frozen.name}")
    frozen.freeze()
    await field.load.settled(jobs, 60)
    field.stack.record(f"thawed {frozen.name}")
    frozen.thaw()
    await asyncio.sleep(MOMENT_SECONDS)


# ------------------------------------------------------------------------------------- Temporal, gateways, all


@fault("F13")
async def temporal_dies(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=10, tokens=90))
    for _ in range(2):
        await field.load.streaming(jobs, 20)
        await field.kill(field.stack.temporal)
        await field.start(field.stack.temporal)


@fault("F14, F28", within=45)
async def temporal_is_down_when_jobs_come(field: Field) -> None:
    await field.kill(field.stack.temporal)
    await field.jobs(Order(jobs=15, patience=5))
    await field.start(field.stack.temporal)


@fault("F14", within=45)
async def temporal_is_frozen_when_jobs_come(field: Field) -> None:
    field.stack.record("froze temporal")
    field.stack.temporal.freeze()
    await field.jobs(Order(jobs=15, patience=5))
    await asyncio.sleep(MOMENT_SECONDS)
    field.stack.record("thawed temporal")
    field.stack.temporal.thaw()


@fault("F28, F62")
async def a_gateway_dies_under_callers_and_readers(field: Field) -> None:
    coming = asyncio.create_task(field.jobs(Order(jobs=12, tokens=100, readers=2)))
    await asyncio.sleep(0.05)
    await field.kill(field.stack.gateway_processes[0])
    await field.start(field.stack.gateway_processes[0])
    jobs = await coming
    await field.load.streaming(jobs, 30)
    await field.kill(*field.stack.gateway_processes)
    await field.start(*field.stack.gateway_processes)


@fault("F07, F62")
async def a_rolling_deploy_of_gateways(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=10, tokens=150, rate=30, readers=3))
    await field.load.streaming(jobs, 20)
    for gateway in field.stack.gateway_processes:
        field.stack.record(f"stopped {gateway.name}", cuts=False)
        code = await asyncio.to_thread(gateway.stop)
        if code != 0:
            field.wrong.append(f"I8 {gateway.name} left with exit code {code}")
        await field.start(gateway)


@fault("F17", within=75)
async def temporal_loses_its_database(field: Field) -> None:
    """Finished jobs stay finished; the others are started again after half a minute without progress."""
    done = await field.jobs(Order(jobs=5, tokens=10))
    await field.load.settled(done, 30)
    jobs = await field.jobs(Order(jobs=6, tokens=150, rate=30))
    await field.load.streaming(jobs, 20)
    await field.kill(*field.stack.worker_processes, field.stack.temporal)
    field.stack.lose_temporal()
    await field.start(field.stack.temporal, *field.stack.worker_processes)


@fault("F17", within=75)
async def temporal_is_restored_from_a_backup(field: Field) -> None:
    """The backup has finished jobs as running ones, and lacks the newest."""
    known = await field.jobs(Order(jobs=5, tokens=60, rate=30))
    await field.load.streaming(known, 20)
    backup = await asyncio.to_thread(field.stack.back_up_temporal)
    await field.load.settled(known, 30)
    newest = await field.jobs(Order(jobs=5, tokens=150, rate=30))
    await field.load.streaming(newest, 20)
    await field.kill(*field.stack.worker_processes, field.stack.temporal)
    field.stack.lose_temporal(backup)
    await field.start(field.stack.temporal, *field.stack.worker_processes)


@fault("F20")
async def an_operator_resets_jobs(field: Field) -> None:
    done = await field.jobs(Order(jobs=4, tokens=10))
    await field.load.settled(done, 30)
    running = await field.jobs(Order(jobs=4, tokens=200, rate=40))
    await field.load.streaming(running, 20)
    field.stack.record("reset jobs")
    which = ("--type", "FirstWorkflowTask", "--reason", "drill")
    await asyncio.gather(
        *(field.operator("workflow", "reset", "--workflow-id", job.id, *which) for job in [*done, *running])
    )


@fault("F20", within=60)
async def an_operator_terminates_jobs(field: Field) -> None:
    """The sweeper finds them after half a minute without progress."""
    jobs = await field.jobs(Order(jobs=4, tokens=2_000, rate=40, expects=("failed",)))
    await field.load.streaming(jobs, 20)
    field.stack.record("terminated jobs", cuts=False)
    await asyncio.gather(*(field.operator("workflow", "terminate", "--workflow-id", job.id) for job in jobs))


@fault("F02, F13, F28", within=60)
async def everything_dies_at_once(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=10, tokens=120, rate=40))
    await field.load.streaming(jobs, 40)
    await field.kill(*field.stack.service)
    await field.start(*field.stack.service)


# ----------------------------------------------------------------------------------------------- the model


@fault("F37, F38")
async def the_model_cuts_its_streams(field: Field) -> None:
    cuts = [{"kind": "cut", "after": 15}, {"kind": "eof", "after": 5}, {"kind": "cut", "after": 8, "where": "utf8"}]
    await field.jobs(Order(jobs=10, tokens=60, faults=cuts))


@fault("F02, F37")
async def the_model_echoes_what_it_is_given_in_every_way(field: Field) -> None:
    for echo in ("whole", "pieces", "none"):
        order = Order(jobs=4, tokens=60, faults=[{"kind": "cut", "after": 20}], script={"echo": echo})
        await field.jobs(order)


@fault("F40", within=60)
async def the_model_falls_silent(field: Field) -> None:
    limits: dict[str, Any] = {"stallSeconds": 2, "firstTokenSeconds": 3}
    faults: list[dict[str, Any]] = [{"kind": "stall", "after": 12}, {"kind": "drip"}]
    await field.jobs(Order(jobs=6, faults=faults, fields={"limits": limits}))


@fault("F34", within=60)
async def a_storm_of_429(field: Field) -> None:
    faults: list[dict[str, Any]] = [{"kind": 429, "retry_after": 2}] * 3
    await field.jobs(Order(jobs=8, tokens=30, faults=faults))


@fault("F34", within=60)
async def one_model_refuses_and_another_one_goes_on(field: Field) -> None:
    """The pause applies to one lane: its model is not called meanwhile, and the other's jobs end."""
    large = {"model": "mistral-large-latest"}
    order = Order(jobs=1, tokens=10, fields=large, faults=[{"kind": 429, "retry_after": PAUSE_SECONDS}])
    slow = await field.jobs(order)
    began = await called(field, slow[0])
    late = asyncio.create_task(field.jobs(Order(jobs=4, tokens=10, fields=large)))
    other = await field.jobs(Order(jobs=6, tokens=10))
    await field.load.settled(other, 30)
    if any(job.settled is None or job.settled > began + PAUSE_SECONDS for job in other):
        field.wrong.append("I8 a pause of one model held up another one's jobs")
    calls = [await called(field, job) for job in await late]
    if min(calls) < began + PAUSE_SECONDS - 1:
        field.wrong.append(f"I5 a model was called {min(calls) - began:.1f} s after it asked for {PAUSE_SECONDS} s")


async def called(field: Field, job: DrillJob, *, calls: int = 1) -> float:
    """Wait until the model has been called so often for a job. Returns the time of that call in unix seconds."""
    words = job.body["messages"][-1]["content"].split(" ")[0]
    query: dict[str, Any] = {"contains": words, "requests": calls, "timeout": 30}
    found = await field.load.client.get(f"{field.stack.simulator_url}/sim/wait", params=query)
    assert found.status_code == 200, "the model was not called"
    return float(found.json()["time"])


@fault("F35", within=60)
async def the_model_fails_three_times(field: Field) -> None:
    """Each job calls a different model: eight failures on one model are an outage, in which all its jobs wait."""
    faults = [{"kind": 500}, {"kind": 503}, {"kind": 529}]
    for number in range(8):
        await field.jobs(Order(jobs=1, tokens=30, faults=faults, fields={"model": f"mistral-drill{number}-latest"}))


@fault("F83", within=60)
async def a_model_goes_down_in_mid_answer_and_another_one_goes_on(field: Field) -> None:
    """The other one's workers die, too: the text of one answer comes from two models and three calls."""
    text = " ".join(f"word{number}" for number in range(120))
    down: list[dict[str, Any]] = [{"kind": 503}] * 3
    outage = [{"kind": "cut", "after": 20}, *down]
    jobs = []
    for number in range(6):
        first = f"mistral-outage{number}-latest"
        fields = {"model": first, "fallbackModels": ["mistral-medium-latest"]}
        order = Order(jobs=1, faults=outage, script={"text": text, "failing": first}, fields=fields)
        jobs += await field.jobs(order)
    await called(field, jobs[0], calls=len(outage) + 1)
    await asyncio.sleep(MOMENT_SECONDS)
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)


@fault("F43")
async def answers_end_at_a_length_limit(field: Field) -> None:
    await field.jobs(Order(jobs=6, tokens=80, fields={"max_tokens": 30}, expects=("incomplete",)))


# ------------------------------------------------------------------------------------------------ receivers


@fault("F47", within=60)
async def receivers_are_down_for_a_moment(field: Field) -> None:
    await field.load.receiver.down()
    jobs = await field.jobs(Order(jobs=10, tokens=20))
    await field.load.settled(jobs, 30)
    await field.load.receiver.up()
    await delivered(field, jobs)


@fault("F05, F47, F53", within=60)
async def receivers_are_slow_broken_or_hang_up(field: Field) -> None:
    jobs: list[DrillJob] = []
    for manner in ("slow", "refusing", "dropping"):
        some = await field.jobs(Order(jobs=4, tokens=100, rate=50))
        field.load.receiver.manners |= {str(job.path): manner for job in some}
        jobs += some
    await field.load.settled(jobs, 30)
    field.load.receiver.manners.clear()
    await delivered(field, jobs)


async def delivered(field: Field, jobs: list[DrillJob]) -> None:
    """Wait until every webhook is accepted, at its second try 5 s after the first."""
    for _ in range(150):
        seen = {post.path for post in field.load.receiver.log if post.status == 200}
        if {job.path for job in jobs} <= seen:
            return
        await asyncio.sleep(0.1)
    field.wrong.append("I3 the receivers are well again, and after 15 s not every webhook was accepted")


# -------------------------------------------------------------------------------------------- readers, callers


@fault("F58, F61, F62")
async def readers_hang_up_after_every_frame(field: Field) -> None:
    await field.jobs(Order(jobs=10, tokens=40, rate=40, readers=2, cut_after=1))


@fault("F02")
async def callers_cancel(field: Field) -> None:
    expects = ("cancelled", "completed")
    jobs = await field.jobs(Order(jobs=10, tokens=200, rate=40, expects=("cancelled",)))
    await field.load.streaming(jobs, 20)
    answers = await asyncio.gather(*(field.load.post(job, "cancel") for job in jobs))
    field.stack.record("cancelled jobs", cuts=False)
    assert {answer.status_code for answer in answers} == {202}
    late = await field.jobs(Order(jobs=6, tokens=1, expects=expects))
    await asyncio.gather(*(field.load.post(job, "cancel") for job in late))
    field.stack.record("cancelled jobs", cuts=False)


@fault("F59")
async def readers_take_nothing_for_a_while(field: Field) -> None:
    """The answers are longer than what a gateway buffers for a reader."""
    pieces = [f"{number} {'x' * 40_000}" for number in range(150)]
    script = {"script": {"pieces": pieces, "tokens_per_second": 50}, "match": LONG}
    given = await field.load.client.post(f"{field.stack.simulator_url}/sim/script", json=script)
    assert given.status_code == 200, given.text
    await field.jobs(Order(jobs=2, rule=LONG, readers=2, pause_seconds=5))


@fault("F28, F62")
async def callers_send_everything_to_all_gateways_at_once(field: Field) -> None:
    """Each job is sent with one key, while a gateway dies."""
    coming = asyncio.create_task(field.jobs(Order(jobs=10, tokens=30, copies=6)))
    await asyncio.sleep(0.05)
    await field.kill(field.stack.gateway_processes[-1])
    await field.start(field.stack.gateway_processes[-1])
    await coming


# ------------------------------------------------------------------------------------------------- batches


@fault("F74", within=60)
async def workers_die_in_the_middle_of_a_batch(field: Field) -> None:
    batch = await field.batch(Order(jobs=60, tokens=60, rate=60))
    for nth, worker in enumerate(field.stack.worker_processes):
        await field.load.working(batch, 10 * (nth + 1))
        await field.kill(worker)
        await field.start(worker)


@fault("F74", within=60)
async def everything_dies_in_the_middle_of_a_batch(field: Field) -> None:
    batch = await field.batch(Order(jobs=45, tokens=60, rate=60))
    await field.load.working(batch, 10)
    await field.kill(*field.stack.service)
    await field.start(*field.stack.service)


@fault("F76", within=60)
async def temporal_dies_in_the_middle_of_a_batch(field: Field) -> None:
    batch = await field.batch(Order(jobs=45, tokens=60, rate=60))
    await field.load.working(batch, 10)
    await field.kill(field.stack.temporal)
    await asyncio.sleep(2 * MOMENT_SECONDS)
    await field.start(field.stack.temporal)


@fault("F77", within=60, database="sqlite")
async def the_database_is_locked_in_the_middle_of_a_batch(field: Field) -> None:
    batch = await field.batch(Order(jobs=60, tokens=60, rate=60))
    await field.load.working(batch, 10)
    with closing(sqlite3.connect(field.stack.database.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        field.stack.record("locked the database")
        await asyncio.sleep(7)
        other.execute("ROLLBACK")
        field.stack.record("unlocked the database")


@fault("F77", within=60, database="postgres")
async def postgres_ends_all_connections_in_the_middle_of_a_batch(field: Field) -> None:
    import asyncpg  # type: ignore[import-untyped]  # the package has no type hints

    batch = await field.batch(Order(jobs=45, tokens=60, rate=60))
    await field.load.working(batch, 10)
    operator = await asyncpg.connect(field.stack.database)
    for _ in range(4):
        field.stack.record("ended the connections to Postgres")
        await operator.execute(CUT)
        await asyncio.sleep(MOMENT_SECONDS / 4)
    await operator.close()


@fault("F79", within=60)
async def a_storm_of_429_hits_a_batch(field: Field) -> None:
    faults: list[dict[str, Any]] = [{"kind": 429, "retry_after": 1}] * 2
    await field.batch(Order(jobs=30, tokens=30, faults=faults))


@fault("F80", within=60)
async def batches_are_paused_and_resumed_while_workers_die(field: Field) -> None:
    batch = await field.batch(Order(jobs=45, tokens=60, rate=60))
    await field.load.working(batch, 10)
    await field.load.wish(batch, "pause")
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)
    await field.load.wish(batch, "resume")


@fault("F80", within=60)
async def callers_cancel_batches(field: Field) -> None:
    expects = ("completed", "cancelled")
    batch = await field.batch(Order(jobs=40, tokens=90, rate=60, expects=expects))
    await field.load.working(batch, 5)
    field.stack.record("cancelled a batch")
    await field.load.wish(batch, "cancel")
    dying = await field.batch(Order(jobs=40, tokens=90, rate=60, expects=expects))
    await field.load.working(dying, 5)
    field.stack.record("cancelled a batch")
    await field.load.wish(dying, "cancel")
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)


# ------------------------------------------------------------------------------------------------- storage


@fault("F25", within=60, database="sqlite")
async def the_database_is_locked(field: Field) -> None:
    jobs = await field.jobs(Order(jobs=8, tokens=120, rate=40))
    await field.load.streaming(jobs, 20)
    with closing(sqlite3.connect(field.stack.database.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        field.stack.record("locked the database")
        more = asyncio.create_task(field.jobs(Order(jobs=4, tokens=20)))
        await asyncio.sleep(7)
        other.execute("ROLLBACK")
        field.stack.record("unlocked the database")
    await more


@fault("F26", within=60, database="sqlite")
async def the_disk_is_full(field: Field) -> None:
    """No file of the service can grow: running jobs wait, and new ones are refused until there is room again."""
    jobs = await field.jobs(Order(jobs=8, tokens=120, rate=40))
    await field.load.streaming(jobs, 20)
    field.stack.record("filled the disk")
    field.stack.limit_files(FILE_BYTES)
    try:
        await refused(field)
        more = asyncio.create_task(field.jobs(Order(jobs=6, tokens=20)))
        await asyncio.sleep(MOMENT_SECONDS)
        if more.done():
            field.wrong.append("I1 a job was accepted while the disk was full")
    finally:
        field.stack.limit_files(None)
        field.stack.record("made room on the disk")
    await more


async def refused(field: Field) -> None:
    """Wait until every gateway reports that it is not ready, while jobs can still be read."""
    for url in field.stack.gateway_urls:
        async with asyncio.timeout(20):
            while (await field.load.client.get(f"{url}/readyz")).status_code != 503:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)
    if await field.load.get(field.load.jobs[-1]) is None:
        field.wrong.append("I8 nothing could be read while the disk was full")


@fault("F31", within=60, database="postgres")
async def postgres_ends_all_connections(field: Field) -> None:
    import asyncpg

    coming = asyncio.create_task(field.jobs(Order(jobs=20, tokens=100, rate=30)))
    operator = await asyncpg.connect(field.stack.database)
    for _ in range(8):
        field.stack.record("ended the connections to Postgres")
        await operator.execute(CUT)
        await asyncio.sleep(MOMENT_SECONDS / 4)
    await operator.close()
    await coming


CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
