"""The catalogue: what is broken, when, and how soon all must be well again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from drill.load import Job, Load, Order
from drill.processes import Process
from drill.stack import HEARTBEAT_SECONDS, Stack

TAKEOVER_SECONDS = HEARTBEAT_SECONDS + 2
MOMENT_SECONDS = 1.0


@dataclass(frozen=True)
class Field:
    """What a fault works on. ``scale`` multiplies its number of jobs."""

    stack: Stack
    load: Load
    scale: int = 1

    async def jobs(self, order: Order) -> list[Job]:
        grown = Order(**{**order.__dict__, "jobs": order.jobs * self.scale})
        return await self.load.submit(grown)

    # Threads, so that readers and receivers go on meanwhile.
    async def kill(self, *processes: Process) -> None:
        await asyncio.to_thread(self.stack.kill, *processes)

    async def start(self, *processes: Process) -> None:
        """Start what does not run, and wait until it is ready."""
        await asyncio.to_thread(self.stack.start_all, processes)


Breaking = Callable[[Field], Awaitable[list[Job]]]


@dataclass(frozen=True)
class Fault:
    """``within``: seconds from the end of the fault to the last job's end. ``sources``: rows of the fault catalogue."""

    name: str
    sources: str
    breaks: Breaking
    within: float = 40
    sqlite_only: bool = False


CATALOGUE: list[Fault] = []


def fault(sources: str, within: float = 40, *, sqlite_only: bool = False) -> Callable[[Breaking], Breaking]:
    """Into the catalogue, under the function's name."""

    def add(breaks: Breaking) -> Breaking:
        CATALOGUE.append(Fault(breaks.__name__.replace("_", " "), sources, breaks, within, sqlite_only))
        return breaks

    return add


# ------------------------------------------------------------------------------------------------- workers


@fault("F01")
async def workers_die_before_the_first_token(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=6, script={"first_token_seconds": 1.0}))
    await asyncio.sleep(MOMENT_SECONDS / 2)
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)
    return jobs


@fault("F02, F62")
async def a_worker_dies_in_mid_stream(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=9, tokens=120, rate=40, readers=2, cut_after=7))
    for nth, worker in enumerate(field.stack.worker_processes):
        await field.load.streaming(jobs, 20 * (nth + 1))
        await field.kill(worker)
        await field.start(worker)
    return jobs


@fault("F02")
async def all_workers_die_again_and_again(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=6, tokens=160, rate=30))
    for characters in (20, 60, 120):
        await field.load.streaming(jobs, characters)
        await field.kill(*field.stack.worker_processes)
        await field.start(*field.stack.worker_processes)
    return jobs


@fault("F02")
async def a_worker_dies_under_jobs_that_start_over(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=6, tokens=80, fields={"onInterrupt": "restart"}))
    await field.load.streaming(jobs, 40)
    await field.kill(*field.stack.worker_processes)
    await field.start(*field.stack.worker_processes)
    return jobs


@fault("F07")
async def a_rolling_deploy(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=15, tokens=150, rate=30))
    for worker in field.stack.worker_processes:
        await field.load.streaming(jobs, 20)
        field.stack.happened(f"stopped {worker.name}")
        await asyncio.to_thread(worker.stop)
        await field.start(worker)
    return jobs


@fault("F10", within=60)
async def a_frozen_worker_wakes_up_after_others_took_over(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=6, tokens=120, rate=30))
    await field.load.streaming(jobs, 30)
    frozen = field.stack.worker_processes[0]
    field.stack.happened(f"froze {frozen.name}")
    frozen.freeze()
    await field.load.settled(jobs, 60)
    field.stack.happened(f"thawed {frozen.name}")
    frozen.thaw()
    await asyncio.sleep(MOMENT_SECONDS)
    return jobs


# ------------------------------------------------------------------------------------- Temporal, gateways, all


@fault("F13")
async def temporal_dies(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=10, tokens=90))
    for _ in range(2):
        await field.load.streaming(jobs, 20)
        await field.kill(field.stack.temporal)
        await field.start(field.stack.temporal)
    return jobs


@fault("F14, F28", within=45)
async def temporal_is_down_when_jobs_come(field: Field) -> list[Job]:
    await field.kill(field.stack.temporal)
    jobs = await field.jobs(Order(jobs=15, patience=5))
    await field.start(field.stack.temporal)
    return jobs


@fault("F14", within=45)
async def temporal_is_frozen_when_jobs_come(field: Field) -> list[Job]:
    field.stack.happened("froze temporal")
    field.stack.temporal.freeze()
    jobs = await field.jobs(Order(jobs=15, patience=5))
    await asyncio.sleep(MOMENT_SECONDS)
    field.stack.happened("thawed temporal")
    field.stack.temporal.thaw()
    return jobs


@fault("F28, F62")
async def a_gateway_dies_under_callers_and_readers(field: Field) -> list[Job]:
    coming = asyncio.create_task(field.jobs(Order(jobs=12, tokens=100, readers=2)))
    await asyncio.sleep(0.05)
    await field.kill(field.stack.gateway_processes[0])
    await field.start(field.stack.gateway_processes[0])
    jobs = await coming
    await field.load.streaming(jobs, 30)
    await field.kill(*field.stack.gateway_processes)
    await field.start(*field.stack.gateway_processes)
    return jobs


@fault("F02, F13, F28", within=60)
async def everything_dies_at_once(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=10, tokens=120, rate=40))
    await field.load.streaming(jobs, 40)
    await field.kill(*field.stack.service)
    await field.start(*field.stack.service)
    return jobs


# ----------------------------------------------------------------------------------------------- the model


@fault("F37, F38")
async def the_model_cuts_its_streams(field: Field) -> list[Job]:
    cuts = [{"kind": "cut", "after": 15}, {"kind": "eof", "after": 5}, {"kind": "cut", "after": 8, "where": "utf8"}]
    return await field.jobs(Order(jobs=10, tokens=60, faults=cuts))


@fault("F02, F37")
async def the_model_echoes_what_it_is_given_in_every_way(field: Field) -> list[Job]:
    jobs: list[Job] = []
    for echo in ("whole", "pieces", "none"):
        order = Order(jobs=4, tokens=60, faults=[{"kind": "cut", "after": 20}], script={"echo": echo})
        jobs += await field.jobs(order)
    return jobs


@fault("F40", within=60)
async def the_model_falls_silent(field: Field) -> list[Job]:
    limits: dict[str, Any] = {"stallSeconds": 2, "firstTokenSeconds": 3}
    faults: list[dict[str, Any]] = [{"kind": "stall", "after": 12}, {"kind": "drip"}]
    return await field.jobs(Order(jobs=6, faults=faults, fields={"limits": limits}))


@fault("F34", within=60)
async def a_storm_of_429(field: Field) -> list[Job]:
    faults: list[dict[str, Any]] = [{"kind": 429, "retry_after": 2}] * 3
    return await field.jobs(Order(jobs=8, tokens=30, faults=faults))


@fault("F35", within=60)
async def the_model_fails_three_times(field: Field) -> list[Job]:
    faults = [{"kind": 500}, {"kind": 503}, {"kind": 529}]
    return await field.jobs(Order(jobs=8, tokens=30, faults=faults))


@fault("F43")
async def answers_end_at_a_length_limit(field: Field) -> list[Job]:
    return await field.jobs(Order(jobs=6, tokens=80, fields={"max_tokens": 30}, expects=("incomplete",)))


# ------------------------------------------------------------------------------------------------ receivers


@fault("F47", within=60)
async def receivers_are_down_for_a_moment(field: Field) -> list[Job]:
    await field.load.receiver.down()
    jobs = await field.jobs(Order(jobs=10, tokens=20))
    await field.load.settled(jobs, 30)
    await field.load.receiver.up()
    await delivered(field, jobs)
    return jobs


@fault("F05, F47, F53", within=60)
async def receivers_are_slow_broken_or_hang_up(field: Field) -> list[Job]:
    jobs: list[Job] = []
    for manner in ("slow", "refusing", "dropping"):
        some = await field.jobs(Order(jobs=4, tokens=100, rate=50))
        field.load.receiver.manners |= {str(job.path): manner for job in some}
        jobs += some
    await field.load.settled(jobs, 30)
    field.load.receiver.manners.clear()
    await delivered(field, jobs)
    return jobs


async def delivered(field: Field, jobs: list[Job]) -> None:
    """Wait for the second try, 5 s after the first."""
    for _ in range(150):
        seen = {post.path for post in field.load.receiver.log if post.status == 200}
        if {job.path for job in jobs} <= seen:
            return
        await asyncio.sleep(0.1)


# -------------------------------------------------------------------------------------------- readers, callers


@fault("F58, F61, F62")
async def readers_hang_up_after_every_frame(field: Field) -> list[Job]:
    return await field.jobs(Order(jobs=10, tokens=40, rate=40, readers=2, cut_after=1))


@fault("F02")
async def callers_cancel(field: Field) -> list[Job]:
    expects = ("cancelled", "completed")
    jobs = await field.jobs(Order(jobs=10, tokens=200, rate=40, expects=("cancelled",)))
    await field.load.streaming(jobs, 20)
    answers = await asyncio.gather(*(field.load.post(job, "cancel") for job in jobs))
    field.stack.happened("cancelled jobs")
    assert {answer.status_code for answer in answers} == {202}
    late = await field.jobs(Order(jobs=6, tokens=1, expects=expects))
    await asyncio.gather(*(field.load.post(job, "cancel") for job in late))
    field.stack.happened("cancelled jobs")
    return [*jobs, *late]


# ------------------------------------------------------------------------------------------------- storage


@fault("F25", within=60, sqlite_only=True)
async def the_database_is_locked(field: Field) -> list[Job]:
    jobs = await field.jobs(Order(jobs=8, tokens=120, rate=40))
    await field.load.streaming(jobs, 20)
    with closing(sqlite3.connect(field.stack.database.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        field.stack.happened("locked the database")
        more = asyncio.create_task(field.jobs(Order(jobs=4, tokens=20)))
        await asyncio.sleep(7)
        other.execute("ROLLBACK")
        field.stack.happened("unlocked the database")
    return [*jobs, *await more]
