"""Accepting jobs over HTTP: latency under load, throughput of a burst, and the time to the first token.

``python -m bench.door``. Temporal, worker, gateway and model are separate processes; the database is SQLite. The
baseline of the first token is a route that calls the model and forwards its events (plain.py).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.model import plan
from bench.table import Row, table
from bench.wire import BenchReader, Connection, percentile
from tests.support.gateway import Gateway, gateway
from tests.support.stack import Stack, free_port, stack

POSTS_PER_SECOND = 50
SECONDS = 8
STREAMS = 20
BURST = 1_000
BURST_CONNECTIONS = 50
SINGLES = 30
FIRST_TOKEN_SECONDS = 0.1
STREAM, COMPLETIONS, PLAIN = "/api/chat/stream", "/v1/chat/completions", "/chat"
"""The routes on which the first token is timed; the last is that of the plain proxy."""


@contextmanager
def bench_stack(concurrency: int = 200) -> Iterator[tuple[Stack, Gateway]]:
    """The service with a model that stamps its tokens."""
    port = free_port()
    settings = {
        "MISTRAL_SERVER_URL": f"http://127.0.0.1:{port}",
        "MISTRAL_REQUESTS_PER_SECOND": "10000",
        "CHATJOBS_CONCURRENCY": str(concurrency),
        "CHATJOBS_PORT": "0",
    }
    with (
        tempfile.TemporaryDirectory(prefix="chatjobs-bench-") as home,
        stack(Path(home), workers=0, env=settings) as built,
    ):
        built.run("model", "-m", "bench.model", str(port), ready="model listening on")
        built.add_worker()
        yield built, gateway(built)


def body(tokens: int, rate: float = 0, first: float = 0, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": plan(tokens, rate, first)}], **fields}


# ------------------------------------------------------------------------------------------------ under load


async def under_load(url: str) -> list[float]:
    """Milliseconds of each post, at a fixed rate independent of the answers, beside running streams."""
    length = int((SECONDS + 4) * 50)
    readers = [await BenchReader.open(url, "/api/chat/stream", body(length, 50)) for _ in range(STREAMS)]
    await asyncio.gather(*(reader.first for reader in readers))
    spare = [Connection(url) for _ in range(20)]
    for connection in spare:
        await connection.post("/api/jobs", body(1))
    taken: list[float] = []

    async def one() -> None:
        connection = spare.pop()
        began = time.perf_counter()
        answer = await connection.post("/api/jobs", body(1))
        taken.append((time.perf_counter() - began) * 1_000)
        assert answer.status == 202, answer
        spare.append(connection)

    began, posts = time.monotonic(), []
    for number in range(POSTS_PER_SECOND * SECONDS):
        await asyncio.sleep(max(0.0, began + number / POSTS_PER_SECOND - time.monotonic()))
        posts.append(asyncio.create_task(one()))
    await asyncio.gather(*posts)
    await asyncio.gather(*(reader.ended for reader in readers))
    return taken


# ------------------------------------------------------------------------------------------------- a burst


async def burst(url: str, database: str) -> tuple[float, float]:
    """Jobs accepted per second, and started per second. Asserts that every accepted job is in the database."""
    ids: list[str] = []

    async def post(connection: Connection, times: int) -> None:
        for _ in range(times):
            answer = await connection.post("/api/jobs", body(1))
            assert answer.status == 202, answer
            ids.append(answer.json()["jobId"])
        connection.close()

    began = time.monotonic()
    times = BURST // BURST_CONNECTIONS
    await asyncio.gather(*(post(Connection(url), times) for _ in range(BURST_CONNECTIONS)))
    taken = time.monotonic() - began
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM jobs")}
        assert set(ids) <= found, f"{len(set(ids) - found)} accepted jobs are lost"
        waiting = len(ids)
        while waiting:
            await asyncio.sleep(0.1)
            query = "SELECT count(*) FROM jobs WHERE workflow_started_at IS NULL"
            waiting = connection.execute(query).fetchone()[0]
    return BURST / taken, BURST / (time.monotonic() - began)


# ---------------------------------------------------------------------------------------------- first token


async def first_token(url: str, path: str) -> float:
    """Milliseconds from before the connection to the first token, without the model's own time."""
    began = time.perf_counter()
    asked = body(5, 50, FIRST_TOKEN_SECONDS, model="mistral-small-latest", stream=True)
    reader = await BenchReader.open(url, path, asked)
    await reader.first
    taken = time.perf_counter() - began - FIRST_TOKEN_SECONDS
    await reader.ended
    return taken * 1_000


async def first_tokens(ours: str, plain: str) -> dict[str, list[float]]:
    """Times of our two routes and of the plain one, measured in turns."""
    routes = {STREAM: ours, COMPLETIONS: ours, PLAIN: plain}
    found: dict[str, list[float]] = {path: [] for path in routes}
    for number in range(SINGLES + 3):
        for path, url in routes.items():
            taken = await first_token(url, path)
            if number >= 3:  # the first ones fill connections and caches
                found[path].append(taken)
    return found


async def measure() -> list[Row]:
    # The streams take all the worker's slots, so that the jobs posted beside them wait, as in a busy service.
    with bench_stack(concurrency=STREAMS) as (built, door):
        database = built.database_url.removeprefix("sqlite:///")
        proxy = built.run("plain", "-m", "bench.plain", str(port := free_port()), ready="plain proxy listening on")
        firsts = await first_tokens(door.url, f"http://127.0.0.1:{port}")
        proxy.stop()
        load = await under_load(door.url)
        accepted, started = await burst(door.url, database)
    return [*_first_rows(firsts), *_load_rows(load), *_burst_rows(accepted, started)]


def _first_rows(firsts: dict[str, list[float]]) -> list[Row]:
    rows = []
    for path, words in ((STREAM, "POST"), (COMPLETIONS, "POST to /v1")):
        for name, share, most in (("p50", 0.5, 60), ("p99", 0.99, 120)):
            value, base = percentile(firsts[path], share), percentile(firsts[PLAIN], share)
            rows.append(
                Row(
                    name=f"{words} to first token, beyond the model's own, {name}",
                    value=value,
                    unit="ms",
                    baseline=f"plain proxying: {base:.1f} ms",
                    ratio=value / base,
                    target=f"≤ {most} ms",
                    met=value <= most,
                )
            )
    return rows


def _load_rows(load: list[float]) -> list[Row]:
    beside = f"{POSTS_PER_SECOND} posts/s beside {STREAMS} streams"
    return [
        Row(
            name=f"accept, {beside}: {name}",
            value=percentile(load, share),
            unit="ms",
            baseline=f"mean: {statistics.mean(load):.1f} ms",
            ratio=None,
            target=f"≤ {most} ms",
            met=percentile(load, share) <= most,
        )
        for name, share, most in (("p50", 0.5, 4), ("p99", 0.99, 20))
    ]


def _burst_rows(accepted: float, started: float) -> list[Row]:
    head = {"unit": "per s", "ratio": None}
    against = f"{BURST} posts over {BURST_CONNECTIONS} connections"
    return [
        Row(name="accept, burst", value=accepted, baseline=against, target="≥ 500", met=accepted >= 500, **head),  # type: ignore[typeddict-item]
        Row(name="accept, burst: started", value=started, baseline=against, target=None, met=None, **head),  # type: ignore[typeddict-item]
    ]


def run() -> list[Row]:
    logging.disable(logging.WARNING)
    return asyncio.run(measure())


if __name__ == "__main__":
    print(table(run()))
