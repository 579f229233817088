"""The alternative with temporalio.contrib.workflow_streams: a worker, and a process that serves the events.

``python -m bench.temporal_rival (worker|door) PORT``. The publisher flushes every 50 ms and the reader pauses 10 ms
between polls: much faster than the defaults (2 s and 100 ms), and about as fast as the server allows.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.contrib.workflow_streams import WorkflowStream, WorkflowStreamClient
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from dispatch.temporal import connect

QUEUE = "bench-workflow-streams"
FLUSH = timedelta(milliseconds=50)
POLL = timedelta(milliseconds=10)
LONGEST = timedelta(minutes=10)
END = "end"


@activity.defn
async def answer(body: str) -> None:
    url = f"{os.environ['MISTRAL_SERVER_URL']}/v1/chat/completions"
    stream = WorkflowStreamClient.from_within_activity(batch_interval=FLUSH)
    async with stream, httpx2.AsyncClient(timeout=120, trust_env=False) as client:
        topic = stream.topic("text", type=str)
        async with client.stream("POST", url, content=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    topic.publish(json.loads(line[6:])["choices"][0]["delta"]["content"])
        topic.publish(END, force_flush=True)


@workflow.defn
class Streamed:
    @workflow.init
    def __init__(self, body: str) -> None:
        self.stream = WorkflowStream()

    @workflow.run
    async def run(self, body: str) -> None:
        await workflow.execute_activity(answer, body, start_to_close_timeout=LONGEST)


async def work() -> None:
    client = await connect()
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Streamed],
        activities=[answer],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_activities=200,
    ):
        _announce("worker")
        await asyncio.Event().wait()


app = FastAPI()
clients: list[Client] = []


@app.post("/chat")
async def chat(request: Request) -> StreamingResponse:
    if not clients:
        clients.append(await connect())
    job, body = uuid.uuid4().hex, (await request.body()).decode()
    await clients[0].start_workflow(Streamed.run, body, id=job, task_queue=QUEUE)
    return StreamingResponse(_events(job), media_type="text/event-stream")


async def _events(job: str) -> AsyncIterator[bytes]:
    stream = WorkflowStreamClient.create(clients[0], job)
    async for item in stream.subscribe("text", result_type=str, poll_cooldown=POLL):
        if item.data == END:
            yield b"event: complete\ndata: {}\n\n"
            return
        yield f"event: chunk\nid: {item.offset}\ndata: {json.dumps({'content': item.data})}\n\n".encode()


def _announce(name: str) -> None:
    sys.stdout.write(f"temporal rival {name} ready\n")
    sys.stdout.flush()


def main(role: str, port: int) -> None:
    if role == "worker":
        asyncio.run(work())
        return
    _announce("door")
    uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", access_log=False, lifespan="off")).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
