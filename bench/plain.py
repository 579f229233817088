"""The baseline for streaming an answer: a route that calls the model and forwards its events.

Nothing is stored: if the connection or the process ends, the answer is lost. A process: ``python -m bench.plain PORT``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse

app = FastAPI()
client = httpx2.AsyncClient(timeout=60, trust_env=False)


@app.post("/chat")
async def chat(request: Request) -> StreamingResponse:
    body = await request.body()

    async def events() -> AsyncIterator[bytes]:
        url = f"{os.environ['MISTRAL_SERVER_URL']}/v1/chat/completions"
        async with client.stream("POST", url, content=body) as response:
            async for piece in response.aiter_bytes():
                yield piece
        yield b"event: complete\ndata: {}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def main(port: int) -> None:
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", access_log=False, lifespan="off")
    sys.stdout.write("plain proxy listening on\n")
    sys.stdout.flush()
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
