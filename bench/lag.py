"""How old a token is when a reader has it: model → worker → storage → gateway → server-sent events → client.

``python -m bench.lag``. Every part is a process of its own; the tokens say when they were sent (model.py). The rivals
do the same between the same model and the same client, in the same run: Redis Streams (one process that reads the model
and adds to a stream, one that serves server-sent events from it) and temporalio.contrib.workflow_streams.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from array import array
from collections.abc import Awaitable, Callable

from bench.door import bench_stack, body
from bench.table import Row, table
from bench.wire import Reader, percentile
from tests.gateway import Gateway

STREAMS = 100
RATE = 50
SECONDS = 8
SETTLE_SECONDS = 2.0
"""After the first token of the last stream, before anything is measured."""
PATIENCE_SECONDS = 60
WORKFLOW_STREAMS = 10
"""So many, because with 100 most of their updates are refused."""

Open = Callable[[], Awaitable[Reader]]


async def lags(open_reader: Open, streams: int = STREAMS) -> array[float]:
    """Milliseconds, of every token of so many streams while all of them run."""
    gc.collect()
    gc.freeze()  # going through everything takes 25 ms now and then, which the reader would be blamed for
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
    """Tokens: more than are needed, because streams do not all start at once."""
    return int((PATIENCE_SECONDS / 2 + SETTLE_SECONDS + SECONDS) * RATE)


async def ours(door: Gateway) -> array[float]:
    return await lags(lambda: Reader.open(door.url, "/api/chat/stream", body(length(), RATE)))


async def measure() -> list[Row]:
    with bench_stack() as (built, door):
        found = await ours(door)
    return rows("SSE client", found, None)


def rows(name: str, found: array[float], against: array[float] | None) -> list[Row]:
    made = []
    for part, share, most in (("p50", 0.5, 12), ("p99", 0.99, 40)):
        value = percentile(found, share)
        made.append(
            Row(
                name=f"lag, {STREAMS} × {RATE} tokens/s, {name}: {part}",
                value=value,
                unit="ms",
                baseline=f"{len(found)} tokens",
                ratio=None,
                target=f"≤ {most} ms",
                met=value <= most,
            )
        )
    return made


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure())


if __name__ == "__main__":
    print(table(run()))
