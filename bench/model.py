"""A model that stamps every token with the time at which it was sent. A process: ``python -m bench.model PORT``.

All processes of a machine share CLOCK_MONOTONIC, so any reader of a token can compute its age.
The last message of a request is the plan of its answer: ``{"tokens": 250, "rate": 50, "first": 0.3}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import sys
import time
from array import array
from typing import Any

STAMP = re.compile(rb"<([0-9]+)>")
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"connection: close\r\n\r\n"
)


def microseconds() -> int:
    return time.monotonic_ns() // 1_000


def ages(data: bytes, into: array[float]) -> None:
    """Add the age, in milliseconds, of every token in a piece of a stream."""
    now = microseconds()
    for stamp in STAMP.findall(data):
        into.append((now - int(stamp)) / 1_000)


def plan(tokens: int, rate: float = 0, first: float = 0) -> str:
    """The message that requests so many tokens, ``rate`` per second, the first after ``first`` seconds."""
    return json.dumps({"tokens": tokens, "rate": rate, "first": first})


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        writer.write(HEAD)
        await _tokens(writer, **json.loads(body["messages"][-1]["content"]))
    writer.close()


async def _tokens(writer: asyncio.StreamWriter, tokens: int, rate: float, first: float) -> None:
    began = time.monotonic() + first
    for number in range(tokens):
        if (pause := began + (number / rate if rate else 0) - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        writer.write(_chunk(_delta({"content": f"<{microseconds()}>"})))
        await writer.drain()
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    writer.write(_chunk(_delta({"content": ""}, finish_reason="stop", usage=usage)))
    writer.write(_chunk(b"[DONE]") + b"0\r\n\r\n")
    await writer.drain()


def _delta(delta: dict[str, Any], finish_reason: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(chunk | ({"usage": usage} if usage else {}), separators=(",", ":")).encode()


def _chunk(data: bytes) -> bytes:
    frame = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(frame), frame)


async def main(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    gc.collect()
    gc.freeze()
    sys.stdout.write("model listening on\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
