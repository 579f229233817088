"""How soon a cancel ends the call of the model: over HTTP, through Temporal, and while Temporal is unavailable.

``python -m bench.cancel``. The time runs from the request to the end of the connection in the simulator's log; for jobs
that wait for their turn, which have no connection, to the end of the job. One worker process with its own settings and
the default heartbeat timeout.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.table import Row, table
from tests.support.cancelling import cancel
from tests.support.gateway import Gateway, gateway
from tests.support.service import Service, service
from tests.support.simulator_process import prompt
from tests.support.stack import stack

CANCELS = 40
"""By each way; all of them stream at the same time."""
BETWEEN = 0.05
"""Seconds between two cancels, so that they are spread over the heartbeat's second."""
LIMIT_SECONDS = 2.0
PATIENCE = 30.0

Cancel = Callable[[str], Awaitable[Any]]


async def streaming(live: Service, count: int) -> dict[str, str]:
    """Start jobs and wait for their first tokens. Returns their ids by message."""
    messages = [prompt("to be cancelled", tokens=5_000, tokens_per_second=10) for _ in range(count)]
    ids = await asyncio.gather(*(live.submit(message) for message in messages))
    sim = live.stack.simulator
    await asyncio.gather(*(sim.wait(message, tokens=2, timeout=PATIENCE) for message in messages))
    return dict(zip(messages, ids, strict=True))


async def cancel_times(live: Service, count: int, cancel: Cancel, *, after: Cancel | None = None) -> list[float]:
    """Seconds from each cancel to the end of its connection."""
    jobs = await streaming(live, count)
    if after is not None:
        await after("")
    requested = {}
    for message, job_id in jobs.items():
        requested[message] = time.time()
        await cancel(job_id)
        await asyncio.sleep(BETWEEN)
    sim = live.stack.simulator
    entries = await asyncio.gather(*(sim.wait(message, ended=True, timeout=PATIENCE) for message in jobs))
    return [entry["ended"] - requested[message] for message, entry in zip(jobs, entries, strict=True)]


async def queued_cancel_times(live: Service, count: int) -> list[float]:
    """Seconds from a cancel to the end of a job that waits for its lane, which is paused."""
    model = "open-mistral-nemo"
    first = prompt(faults=[{"kind": 429, "retry_after": 300}])
    await live.submit(first, model=model)
    await live.stack.simulator.wait(first, ended=True, timeout=PATIENCE)
    took = []
    for job_id in [await live.submit(prompt(), model=model) for _ in range(count)]:
        began = time.time()
        await cancel(live, job_id)
        job = await live.ended(job_id)
        took.append(job.completed_at.timestamp() - began if job.completed_at else PATIENCE)
    return took


async def measure(count: int) -> dict[str, list[float]]:
    """Seconds of each cancel by way."""
    async with AsyncExitStack() as closing:
        home = closing.enter_context(tempfile.TemporaryDirectory(prefix="chatjobs-bench-"))
        env = {"CHATJOBS_CONCURRENCY": str(count), "CHATJOBS_PORT": "0"}
        built = closing.enter_context(stack(Path(home), workers=1, env=env))
        door = gateway(built)
        live = await closing.enter_async_context(service(built))
        found = {
            "over HTTP": await cancel_times(live, count, over_http(door)),
            "through Temporal": await cancel_times(live, count, lambda job_id: live.run(job_id).cancel()),
            "in the queue for the rate limit": await queued_cancel_times(live, count // 2),
        }
        request = live.jobs.seals.request_cancel
        away = await cancel_times(live, count, request, after=lambda _: asyncio.to_thread(kill, live))
        return found | {"while Temporal is away": away}


def over_http(door: Gateway) -> Cancel:
    async def cancel(job_id: str) -> None:
        async with door.client() as client:
            (await client.post(f"/api/jobs/{job_id}/cancel")).raise_for_status()

    return cancel


def kill(live: Service) -> None:
    live.stack.temporal.kill()


def rows(found: dict[str, list[float]]) -> list[Row]:
    streams = [seconds for way, times in found.items() if "queue" not in way for seconds in times]
    return [
        _row(
            f"cancel to the connection's end, p99 of {len(streams)}", sorted(streams)[int(len(streams) * 0.99)], streams
        ),
        *(_row(f"longest cancel {way}", max(times), times) for way, times in found.items()),
    ]


def _row(name: str, value: float, times: Sequence[float]) -> Row:
    return Row(
        name=name,
        value=value,
        unit="s",
        baseline=f"median {statistics.median(times):.2f} s",
        ratio=None,
        target=f"≤ {LIMIT_SECONDS:.0f} s",
        met=value <= LIMIT_SECONDS,
    )


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return rows(asyncio.run(measure(CANCELS)))


if __name__ == "__main__":
    print(table(run()))
