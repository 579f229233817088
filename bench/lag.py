"""The age of a token when a reader receives it: model → worker → storage → gateway → server-sent events → client.

``python -m bench.lag``. Every part is a separate process; the tokens have the time at which they were sent (model.py).
The alternatives run between the same model and client, in the same run: Redis Streams (one process that reads the model
and adds to a stream, one that serves server-sent events from it) and temporalio.contrib.workflow_streams.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import subprocess
from array import array
from collections.abc import Awaitable, Callable, Sequence

from bench.door import bench_stack, body
from bench.table import Row, table
from bench.wire import BenchReader, percentile
from tests.support.gateway import Gateway
from tests.support.stack import Stack, free_port

STREAMS = 100
RATE = 50
SECONDS = 8
SETTLE_SECONDS = 2.0
"""From the first token of the last stream to the start of the measurement."""
PATIENCE_SECONDS = 60
REDIS = shutil.which("redis-server")
WORKFLOW_STREAMS = 10
"""Not 100, as most updates would be refused."""

Open = Callable[[], Awaitable[BenchReader]]


async def lags(open_reader: Open, streams: int = STREAMS) -> array[float]:
    """The age in milliseconds of every token, while all streams run."""
    gc.collect()
    gc.freeze()  # a collection over all imports takes 25 ms, which would count as lag
    async with asyncio.timeout(PATIENCE_SECONDS):
        readers = [await open_reader() for _ in range(streams)]
        await asyncio.gather(*(reader.first for reader in readers))
        await asyncio.sleep(SETTLE_SECONDS)
        for reader in readers:
            reader.measuring = True
        await asyncio.sleep(SECONDS)
    found = array("d")
    for reader in readers:
        reader.measuring = False
        found.extend(reader.lags)
        reader.close()
    return found


def length() -> int:
    """Tokens per answer: more than needed, as streams do not all start at once."""
    return int((PATIENCE_SECONDS / 2 + SETTLE_SECONDS + SECONDS) * RATE)


async def ours(door: Gateway, streams: int = STREAMS) -> array[float]:
    return await lags(lambda: BenchReader.open(door.url, "/api/chat/stream", body(length(), RATE)), streams)


async def through_redis(built: Stack) -> array[float]:
    port, redis_port = free_port(), free_port()
    command = [REDIS or "", "--port", str(redis_port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:  # noqa: ASYNC220 - nothing else runs yet
        try:
            await _listening(redis_port)
            for role in ("worker", "door"):
                arguments = ("-m", "bench.redis_rival", role, str(port), str(redis_port))
                built.run(f"redis-{role}", *arguments, ready=f"redis rival {role} ready")
            await _listening(port)
            return await lags(lambda: BenchReader.open(f"http://127.0.0.1:{port}", "/chat", body(length(), RATE)))
        finally:
            _stop(built, "redis-")
            server.kill()


async def through_workflow_streams(built: Stack) -> array[float]:
    port = free_port()
    for role in ("worker", "door"):
        arguments = ("-m", "bench.temporal_rival", role, str(port))
        built.run(f"workflow-streams-{role}", *arguments, ready=f"temporal rival {role} ready")
    await _listening(port)
    try:
        url = f"http://127.0.0.1:{port}"
        return await lags(lambda: BenchReader.open(url, "/chat", body(length(), RATE)), WORKFLOW_STREAMS)
    finally:
        _stop(built, "workflow-streams-")


async def _listening(port: int) -> None:
    """Wait until the port accepts connections."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def _stop(built: Stack, name: str) -> None:
    for process in built.processes:
        if process.name.startswith(name) and process.running:
            process.kill()


async def measure(*, rivals: bool) -> list[Row]:
    with bench_stack() as (built, door):
        found = await ours(door)
        if not rivals:
            return _rows(found, [])
        few = await ours(door, WORKFLOW_STREAMS)
        redis = await through_redis(built) if REDIS else None
        streams = await through_workflow_streams(built)
    against = [("Redis Streams", redis)] if redis else []
    return [*_rows(found, against), *_rows(few, [("workflow_streams", streams)], WORKFLOW_STREAMS)]


def _rows(found: array[float], against: Sequence[tuple[str, array[float]]], streams: int = STREAMS) -> list[Row]:
    made = []
    for part, share, most in (("p50", 0.5, 12), ("p99", 0.99, 40)):
        value = percentile(found, share)
        rival = next(((name, percentile(theirs, share)) for name, theirs in against), None)
        made.append(
            Row(
                name=f"lag, model to SSE client, {streams} × {RATE} tokens/s: {part}",
                value=value,
                unit="ms",
                baseline=f"{rival[0]}: {rival[1]:.1f} ms" if rival else f"{len(found)} tokens",
                ratio=value / rival[1] if rival else None,
                target=f"≤ {most} ms" if streams == STREAMS else None,
                met=value <= most if streams == STREAMS else None,
            )
        )
    return made


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(rivals=False))


def run_full() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure(rivals=True))


if __name__ == "__main__":
    print(table(run_full()))
