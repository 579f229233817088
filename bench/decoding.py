"""CPU cost of a streamed token and of a request: our provider against the SDK, in one run.

``python -m bench.decoding``. A server in another process sends chat completions with one write per token; only this
process's CPU time is counted. Both sides read the same streams from the same server, in turns, each as it is commonly
used: ``Mistral().chat.stream_async`` with the SDK's default client, and ``MistralChat.stream``. Counting starts when
all streams are open and ends when all answers are whole.

Two ways of sending measure different things:

- *as fast as it goes*: each read returns all tokens that have accumulated, so this is the cost of decoding;
- *one read a token*: tokens are sent 20 ms apart on each stream (1 ms if there is only one), so this is the cost of a
  token with wake-up, read and HTTP. A process with a single slow stream mostly pays for the wake-up, which costs both
  sides the same and says little about decoding; that row has no target.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import NamedTuple

import httpx2
from mistralai.client import Mistral
from mistralai.client.models import UserMessage

from bench.table import Row, table
from chatjobs.contracts import ChatRequest
from domain.ports import TextDelta
from providers.mistral.chat import MistralChat

TARGET_RATIO = 20
TARGET_REQUEST_MS = 4
ROUNDS = 3
REQUESTS = 40
"""Per round and side, in sequence."""
SETTLE_SECONDS = 0.3
"""From the last stream's opening to the second tokens: by then all clients have read their first token."""


class StreamLoad(NamedTuple):
    """``tokens`` on each of ``streams`` streams, each at ``rate`` tokens per second; 0 is as fast as possible."""

    streams: int
    tokens: int
    rate: int

    @property
    def model(self) -> str:
        """The load as the name of a model, which tells the server what to send."""
        return ":".join(map(str, self))

    @property
    def name(self) -> str:
        streams = f"{self.streams} stream{'s' * (self.streams > 1)}"
        return f"decoding, {streams}, {'one read a token' if self.rate else 'as fast as it goes'}"

    @property
    def has_target(self) -> bool:
        return self.streams > 1 or not self.rate


LOADS = (
    StreamLoad(1, 1_500, 0),
    StreamLoad(50, 30, 0),
    StreamLoad(200, 10, 0),
    StreamLoad(1, 800, 1_000),
    StreamLoad(50, 30, 50),
    StreamLoad(200, 15, 50),
)
SHORTEST = StreamLoad(1, 1, 0)
PROMPT = [UserMessage(role="user", content="Hi")]


# ---------------------------------------------------------------------------------------------------- server


def _frame(content: str, finish: str | None = None, **more: object) -> bytes:
    """One chunk of the answer as Mistral sends it, in one chunk of HTTP."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    head = {"id": "cmpl-e5cc70bb28c444948073e77776eb30ef", "object": "chat.completion.chunk", "created": 1702256327}
    document = head | {"model": "mistral-small-latest", "choices": [choice]} | more
    return _part(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n")


def _part(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = _frame(" token")
USAGE = {"prompt_tokens": 5, "completion_tokens": 100, "total_tokens": 105}
END = _frame("", "stop", usage=USAGE) + _part(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class LoadServer:
    """Answers each request with the load that its model names. All streams of a load start together."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[asyncio.Future[float]]] = defaultdict(list)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                load = await self._read_request(reader)
                writer.write(HEAD + TOKEN)
                began = await self._start_together(load) if load.streams > 1 or load.tokens > 1 else 0
                await self._answer(writer, load, began)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader) -> StreamLoad:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        return StreamLoad(*map(int, body["model"].split(":")))

    async def _start_together(self, load: StreamLoad) -> float:
        """Wait for all streams of a load to open. Returns the time at which they start."""
        waiting = self._waiting[load.model]
        mine: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        waiting.append(mine)
        if len(waiting) == load.streams:
            del self._waiting[load.model]
            began = time.monotonic() + SETTLE_SECONDS
            for future in waiting:
                future.set_result(began)
        began = await mine
        await asyncio.sleep(began - time.monotonic())
        return began

    async def _answer(self, writer: asyncio.StreamWriter, load: StreamLoad, began: float) -> None:
        for number in range(1, load.tokens):
            if load.rate:
                await asyncio.sleep(max(0, began + number / load.rate - time.monotonic()))
            writer.write(TOKEN)
            await writer.drain()
        writer.write(END)
        await writer.drain()


async def _serve() -> None:
    server = await asyncio.start_server(LoadServer().connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def server() -> Iterator[str]:
    """The address of a server in another process."""
    command = [sys.executable, "-m", "bench.decoding", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


# --------------------------------------------------------------------------------------------------- clients

Client = Callable[[StreamLoad, Callable[[], None]], Awaitable[int]]
"""Reads one answer, calling back at each token. Returns the number of tokens."""


@asynccontextmanager
async def sdk(url: str) -> AsyncIterator[Client]:
    limits = httpx2.Limits(max_connections=None)  # the SDK's default client would queue beyond 100
    async with httpx2.AsyncClient(follow_redirects=True, limits=limits) as http:
        mistral = Mistral(api_key="none", server_url=url, async_client=http)

        async def read(load: StreamLoad, opened: Callable[[], None]) -> int:
            tokens = 0
            stream = await mistral.chat.stream_async(model=load.model, messages=PROMPT)
            async for event in stream:
                if event.data.choices[0].delta.content:
                    tokens += 1
                    opened()
            return tokens

        yield read


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Client]:
    model = MistralChat("none", url, idle_connections=200)
    messages = [message.model_dump() for message in PROMPT]

    async def read(load: StreamLoad, opened: Callable[[], None]) -> int:
        tokens = 0
        async with aclosing(model.stream(ChatRequest.parse({"messages": messages, "model": load.model}))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    tokens += 1
                    opened()
        return tokens

    yield read
    await model.aclose()


# ----------------------------------------------------------------------------------------------- measurement


class _Start:
    """The CPU time at which the last stream was opened."""

    def __init__(self, streams: int) -> None:
        self._missing = streams
        self.cpu = 0.0

    def callback(self) -> Callable[[], None]:
        """A callback for one stream, called at each of its tokens."""
        first = True

        def opened() -> None:
            nonlocal first
            if first:
                first = False
                self._missing -= 1
                self.cpu = time.process_time()

        return opened


async def tokens_per_cpu_second(client: Client, load: StreamLoad) -> float:
    start = _Start(load.streams)
    counts = await asyncio.gather(*(client(load, start.callback()) for _ in range(load.streams)))
    spent = time.process_time() - start.cpu
    assert counts == [load.tokens] * load.streams
    return load.streams * (load.tokens - 1) / spent


async def cpu_ms_per_request(client: Client) -> float:
    began = time.process_time()
    for _ in range(REQUESTS):
        await client(SHORTEST, lambda: None)
    return (time.process_time() - began) * 1000 / REQUESTS


async def _compare(measure: Callable[[Client], Awaitable[float]], us: Client, them: Client) -> tuple[float, float]:
    """Medians of ours and theirs, measured in turns."""
    pairs = [(await measure(them), await measure(us)) for _ in range(ROUNDS)]
    return statistics.median(our for _, our in pairs), statistics.median(their for their, _ in pairs)


async def _measure(url: str) -> list[Row]:
    rows = []
    async with sdk(url) as them, ours(url) as us:
        for client in (them, us):
            await tokens_per_cpu_second(client, StreamLoad(2, 20, 0))  # imports, caches, connections
        for load in LOADS:

            async def tokens(client: Client, load: StreamLoad = load) -> float:
                return await tokens_per_cpu_second(client, load)

            rows.append(_decoding(load, *await _compare(tokens, us, them)))
        rows.append(_request(*await _compare(cpu_ms_per_request, us, them)))
    return rows


def _decoding(load: StreamLoad, value: float, baseline: float) -> Row:
    ratio = value / baseline
    return Row(
        name=load.name,
        value=round(value),
        unit="tokens per CPU second",
        baseline=f"the SDK's iterator, {baseline:,.0f}",
        ratio=round(ratio, 1),
        target=f"≥ {TARGET_RATIO}× the SDK" if load.has_target else None,
        met=ratio >= TARGET_RATIO if load.has_target else None,
    )


def _request(value: float, baseline: float) -> Row:
    return Row(
        name="one request with an answer of one token",
        value=round(value, 2),
        unit="ms of CPU",
        baseline=f"the SDK's stream_async, {baseline:.1f}",
        ratio=round(value / baseline, 2),
        target=f"≤ {TARGET_REQUEST_MS} ms",
        met=value <= TARGET_REQUEST_MS,
    )


def run() -> list[Row]:
    with server() as url:
        return asyncio.run(_measure(url))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
    else:
        print(table(run()))
