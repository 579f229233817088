"""The alternative with Redis Streams: one process calls the model, one serves the events.

``python -m bench.redis_rival (worker|door) PORT REDIS_PORT``. Nothing is durable, fenced, counted or resumed here.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import StreamingResponse

QUEUE = "jobs"
LIMITS = httpx2.Limits(max_connections=1_000)
PAUSE = 0.002
"""Seconds between two pipelines and between two reads, as in the service's group commit."""


async def work(redis: Any) -> None:
    """Take jobs from a list, and add each token to the job's stream; pending tokens share one pipeline."""
    client = httpx2.AsyncClient(timeout=120, trust_env=False, limits=LIMITS)
    pending: list[tuple[str, dict[str, str]]] = []
    gc.collect()
    gc.freeze()
    _announce("worker")
    async with asyncio.TaskGroup() as group:
        group.create_task(_add(redis, pending))
        while True:
            _, job = await redis.blpop(QUEUE)
            group.create_task(_answer(pending, client, json.loads(job)))


async def _add(redis: Any, pending: list[tuple[str, dict[str, str]]]) -> None:
    while True:
        taken, pending[:] = pending[:], []
        if taken:
            async with redis.pipeline(transaction=False) as pipeline:
                for name, fields in taken:
                    pipeline.xadd(name, fields)
                await pipeline.execute()
        await asyncio.sleep(PAUSE)


async def _answer(pending: list[tuple[str, dict[str, str]]], client: httpx2.AsyncClient, job: dict[str, Any]) -> None:
    url, rest = f"{os.environ['MISTRAL_SERVER_URL']}/v1/chat/completions", b""
    async with client.stream("POST", url, json=job["body"]) as response:
        async for piece in response.aiter_raw():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    content = json.loads(line[6:])["choices"][0]["delta"]["content"]
                    pending.append((job["id"], {"content": content}))
    pending.append((job["id"], {"end": "1"}))


class Streams:
    """Reads all streams over one connection."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._last: dict[str, Any] = {}
        self._reading: asyncio.Task[None] | None = None

    def open(self, job: str) -> asyncio.Queue[Any]:
        self._queues[job], self._last[job] = asyncio.Queue(), "0"
        self._reading = self._reading or asyncio.create_task(self._read())
        return self._queues[job]

    async def _read(self) -> None:
        while True:
            found = await self._redis.xread(self._last)
            for name, entries in found:
                job = name.decode()
                self._last[job] = entries[-1][0]
                self._queues[job].put_nowait(entries)
            await asyncio.sleep(PAUSE)


def door(redis: Any) -> FastAPI:
    app, streams = FastAPI(), Streams(redis)

    @app.post("/chat")
    async def chat(request: Request) -> StreamingResponse:
        job = uuid.uuid4().hex
        entries = streams.open(job)
        await redis.rpush(QUEUE, json.dumps({"id": job, "body": await request.json()}))
        return StreamingResponse(_events(entries), media_type="text/event-stream")

    return app


async def _events(queue: asyncio.Queue[Any]) -> AsyncIterator[bytes]:
    while True:
        for number, fields in await queue.get():
            if b"end" in fields:
                yield b"event: complete\ndata: {}\n\n"
                return
            data = json.dumps({"content": fields[b"content"].decode()})
            yield f"event: chunk\nid: {number.decode()}\ndata: {data}\n\n".encode()


def _announce(name: str) -> None:
    sys.stdout.write(f"redis rival {name} ready\n")
    sys.stdout.flush()


def main(role: str, port: int, redis_port: int) -> None:
    redis = Redis(port=redis_port, max_connections=1_000)
    if role == "worker":
        asyncio.run(work(redis))
        return
    config = uvicorn.Config(door(redis), port=port, log_level="critical", access_log=False, lifespan="off")
    _announce("door")
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
