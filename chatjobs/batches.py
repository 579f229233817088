"""Batches: the client's calls on them, as ``jobs.batches`` of an AsyncChatJobs, or synchronously of a ChatJobs.

    accepted = await jobs.batches.submit("prompts.jsonl", name="night run", defaults={"model": "mistral-small-latest"})
    async for state in jobs.batches.watch(accepted.batch_id):
        print(state.counts.completed, "of", state.counts.total)
    async for line in jobs.batches.output(accepted.batch_id):
        print(line.custom_id, line.response)

Uploads and outputs are streamed: memory does not grow with their size.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal
from urllib.parse import urlencode

import httpx2
from pydantic import BaseModel
from pydantic_core import from_json

from chatjobs.calls import CALLS_REPEATED, Http, failure, known, reachable
from chatjobs.contracts import (
    JOB_ID,
    Batch,
    BatchAccepted,
    BatchPage,
    BatchProgress,
    BatchSettings,
    BatchStatus,
    BatchWebhook,
    OutputLine,
    WireModel,
    parse,
    rfc3339,
)
from chatjobs.errors import ApiError, BatchNotFound, InvalidRequest, Problem, ServiceUnavailable, StreamBroken
from chatjobs.prompts import Item, each, item_line, json_bytes, named, plain
from chatjobs.sse import BatchEvents
from chatjobs.stream import MAX_PROBLEM_BYTES, STREAMS_REPEATED, Stream
from chatjobs.sync import Twin, call, items, stream

Items = str | os.PathLike[str] | BinaryIO | Iterable[Item] | AsyncIterable[Item]
"""The items of a batch: the path of a file with an item in each line, such a file open in binary mode, or items."""

DAY: Final = 24 * 3600.0
"""In seconds."""
PIECE: Final = 64 * 1024
"""Bytes of an upload that are sent together, about."""
LONGEST_QUERY: Final = 6 * 1024
"""Most bytes of a batch's settings, which stand in the URL: servers refuse a longer one."""


class _Changed(WireModel):
    batch_id: str
    status: BatchStatus


class BatchCalls:
    """The calls on batches. Their methods raise ServiceUnavailable once the client's time is up, Unauthorized,
    ApiError, and the errors that they name."""

    def __init__(self, http: Http, *, patience: float, silence: float, max_event_bytes: int) -> None:
        self._http = http
        self._patience = patience
        self._silence = silence
        self._max_event_bytes = max_event_bytes

    async def submit(
        self,
        items: Items,
        *,
        name: str | None = None,
        webhook: str | BatchWebhook | None = None,
        concurrency: int | None = None,
        lane: Literal["live", "batch"] | None = None,
        deadline: datetime | None = None,
        defaults: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        timeout: float = DAY,
    ) -> BatchAccepted:
        """Start a batch; it is durable once this returns, and nothing begins unless all of its items are valid.

        ``items`` are read while they are sent. They should come at 64 KiB/s at least, or the service gives up (408):
        write slower ones to a file first. ``webhook`` is a URL, or a BatchWebhook that names events; ``defaults`` are
        fields of a request for items that lack them; ``deadline`` is aware.

        The same ``idempotency_key`` with the same items and settings is the same batch. If the upload breaks off, a
        file or a collection is sent again while that may help, as other calls are; an iterator or an open file, which
        cannot be read again, is not: the call raises ServiceUnavailable, and nothing was started. ``timeout``: seconds
        for everything.
        Raises InvalidRequest, whose problems name lines (from 1), IdempotencyMismatch, WebhookUrlRefused, OSError for a
        file that cannot be read, TimeoutError, and what iterating over the items raises.
        """
        if isinstance(items, (Mapping, BaseModel)):
            raise TypeError("items are several: put a single one in a list")
        settings = {"name": name, "webhook": webhook, "concurrency": concurrency, "lane": lane, "deadline": deadline}
        params = _query({**settings, "defaults": defaults})
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        async with asyncio.timeout(timeout):
            return known(BatchAccepted, await self._uploaded(items, params, headers))

    async def get(self, batch_id: str) -> Batch:
        """The batch as it is now. Raises BatchNotFound."""
        return await self._http.read(Batch, "GET", _path(batch_id))

    async def list(
        self, *, status: BatchStatus | str | None = None, since: datetime | None = None, page_size: int = 100
    ) -> AsyncIterator[Batch]:
        """Batches, newest first, read in pages of ``page_size``. ``since`` is aware.

        Raises InvalidRequest, and ValueError for an unknown ``status``.
        """
        params = {"limit": str(page_size)}
        if status is not None:
            params["status"] = BatchStatus(status).value
        if since is not None:
            params["since"] = rfc3339(since)
        seen: set[str] = set()
        while True:
            page = await self._http.read(BatchPage, "GET", "/api/batches", params=params)
            for batch in page.batches:
                yield batch
            if page.next_cursor is None:
                return
            if page.next_cursor in seen:
                raise ApiError("the pages of the list go round in circles")
            seen.add(page.next_cursor)
            params["cursor"] = page.next_cursor

    async def pause(self, batch_id: str) -> BatchStatus:
        """Let no further item begin, durably; those that run finish. The status now.

        Raises BatchNotFound, BatchFinished.
        """
        return await self._change(batch_id, "pause")

    async def resume(self, batch_id: str) -> BatchStatus:
        """Let items begin again, durably. The status now. Raises BatchNotFound, BatchFinished."""
        return await self._change(batch_id, "resume")

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Cancel all items that have not ended, durably. The status now, which may not be the last one yet.

        Raises BatchNotFound, BatchFinished.
        """
        return await self._change(batch_id, "cancel")

    async def wait(self, batch_id: str, timeout: float = DAY) -> Batch:
        """The batch once it has ended, with any terminal status.

        ``timeout`` is in seconds. Raises BatchNotFound, TimeoutError and what ``watch`` raises.
        """
        async with asyncio.timeout(timeout):
            while not (batch := await self.get(batch_id)).status.terminal:
                async with self.watch(batch_id, timeout=math.inf) as states:
                    async for _ in states:
                        pass
            return batch

    def watch(self, batch_id: str, *, last_event_id: str = "", timeout: float = DAY) -> Stream[BatchProgress]:
        """The states of a batch, from the one it has now to its terminal one, at most two per second.

        A broken connection is opened again. ``timeout`` is in seconds, for the whole stream. Raises StreamBroken if
        ``last_event_id`` is not an event's id; iterating raises BatchNotFound, TimeoutError, StreamBroken.
        """
        events = BatchEvents(last_event_id=last_event_id, limit=self._max_event_bytes)
        return Stream(self._http, f"{_path(batch_id)}/events", events, self._patience, self._silence, timeout)

    async def output(self, batch_id: str) -> AsyncIterator[OutputLine]:
        """The answers so far, in the order of the items. Leave an asynchronous loop early with ``contextlib.aclosing``.

        A broken connection is opened again, and the lines go on where they were. Raises BatchNotFound,
        ResponseTooLarge, StreamBroken.
        """
        async with contextlib.aclosing(self._lines(batch_id, "output")) as lines:
            async for line in lines:
                yield known(OutputLine, line)

    async def errors(self, batch_id: str) -> AsyncIterator[OutputLine]:
        """The items that have ended without an answer, in their order; otherwise as ``output``."""
        async with contextlib.aclosing(self._lines(batch_id, "errors")) as lines:
            async for line in lines:
                yield known(OutputLine, line)

    async def download(self, batch_id: str, path: str | os.PathLike[str], *, errors: bool = False) -> int:
        """Write the output so far, or the errors, to a file as JSON lines. The number of lines.

        The file appears, or is replaced, when all is there. Raises OSError and what ``output`` raises.
        """
        target = Path(path)
        unfinished = target.with_name(f"{target.name}.part")
        count = 0
        file = await asyncio.to_thread(unfinished.open, "wb")
        try:
            async with contextlib.aclosing(self._lines(batch_id, "errors" if errors else "output")) as lines:
                async for line in lines:
                    file.write(line + b"\n")  # to a buffer, and a few times a second to the system's
                    count += 1
            await asyncio.to_thread(file.close)
            await asyncio.to_thread(unfinished.replace, target)
        finally:
            file.close()
            unfinished.unlink(missing_ok=True)
        return count

    # ------------------------------------------------------------------------------------------------ parts

    async def _change(self, batch_id: str, what: str) -> BatchStatus:
        return (await self._http.read(_Changed, "POST", f"{_path(batch_id)}/{what}")).status

    async def _uploaded(self, items: Items, params: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
        """The body of the response to an upload, which is repeated for the client's timeout of waiting in all."""
        waited = 0.0
        for failures in itertools.count(1):
            try:
                return await self._upload(items, params, headers)
            except ServiceUnavailable as error:
                wait = max(self._http.backoff(failures), error.retry_after or 0)
                waited += wait
                if not _can_be_read_again(items) or waited >= self._http.timeout:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _upload(self, items: Items, params: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
        async with _reading(items) as pieces:
            request = self._http.client.build_request(
                "POST", "/api/batches", params=params, content=pieces, headers=headers
            )
            async with self._http.opened(request) as response:
                body = await self._http.body(response)
        if not response.is_success:
            raise failure(response, body, repeated=CALLS_REPEATED)
        return body

    async def _lines(self, batch_id: str, which: str) -> AsyncGenerator[bytes]:
        """The lines of an output. After a broken connection those up to the last one are skipped. Only new lines show
        that it goes on: a service that breaks off at the same line for the client's patience does not."""
        clock = asyncio.get_running_loop().time
        path, last, failures, received_at = f"{_path(batch_id)}/{which}", b"", 0, clock()
        while True:
            try:
                async with contextlib.aclosing(self._connection(path)) as lines:
                    skipping = _id(last)
                    async for line in lines:
                        if skipping is None:
                            last, failures = line, 0
                            yield line
                            received_at = clock()
                        elif _id(line) == skipping:
                            skipping = None
                if skipping is not None:
                    raise StreamBroken("the last line before the connection broke is not there any more; read again")
                return
            except ServiceUnavailable as error:
                if clock() - received_at >= self._patience:
                    raise
                wait = max(self._http.backoff(failures), error.retry_after or 0)
            failures += 1
            await asyncio.sleep(min(wait, max(self._patience - (clock() - received_at), 0)))

    async def _connection(self, path: str) -> AsyncGenerator[bytes]:
        """The lines of one response, without their ends."""
        async with self._http.opened(self._http.client.build_request("GET", path)) as response:
            if response.status_code != 200:
                body = await self._http.body(response, MAX_PROBLEM_BYTES)
                raise failure(response, body, repeated=STREAMS_REPEATED)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ApiError("the service's answer is compressed", status=response.status_code)
            rest = bytearray()
            async for piece in _received(response):
                *whole, end = piece.split(b"\n")
                if whole:
                    whole[0] = bytes(rest) + whole[0]
                    rest.clear()
                rest += end
                for line in whole:
                    yield line
                self._http.check(len(rest))
            if rest:
                raise ServiceUnavailable("the output was cut")


class SyncBatchCalls(Twin):
    """The calls on batches, synchronously. Items are iterated over in the thread that submits them."""

    submit = call(BatchCalls.submit, lends="items")
    get = call(BatchCalls.get)
    list = items(BatchCalls.list)
    pause = call(BatchCalls.pause)
    resume = call(BatchCalls.resume)
    cancel = call(BatchCalls.cancel)
    wait = call(BatchCalls.wait)
    watch = stream(BatchCalls.watch)
    output = items(BatchCalls.output)
    errors = items(BatchCalls.errors)
    download = call(BatchCalls.download)


async def _received(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The bytes of a response. Raises ServiceUnavailable; what the reader of them raises passes as it is."""
    pieces = response.aiter_raw()
    while True:
        with reachable():
            piece = await anext(pieces, None)
        if piece is None:
            return
        yield piece


def _query(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a batch, as they were given, as parameters of the URL. Raises InvalidRequest."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "deadline" in given:
        given["deadline"] = rfc3339(given["deadline"])
    if "webhook" in given:
        given["webhook"] = plain(given["webhook"])
    if "defaults" in given:
        given["defaults"] = named(given["defaults"])
    parse(BatchSettings, given)
    params = {name: value if isinstance(value, str) else json_bytes(value).decode() for name, value in given.items()}
    if (size := len(urlencode(params))) > LONGEST_QUERY:
        why = f"all settings may have {LONGEST_QUERY} bytes in the URL of an upload, not {size}"
        raise InvalidRequest([Problem("", f"{why}; put long defaults into the items")])
    return params


def _can_be_read_again(items: Items) -> bool:
    return isinstance(items, (str, os.PathLike, Collection))


@contextlib.asynccontextmanager
async def _reading(items: Items) -> AsyncIterator[AsyncIterator[bytes]]:
    """The lines of an upload in pieces of about PIECE bytes. Raises OSError; iterating also raises InvalidRequest."""
    if isinstance(items, (str, os.PathLike)):
        file = await asyncio.to_thread(open, items, "rb")
        try:
            yield _pieces_of_file(file)
        finally:
            file.close()
    else:
        yield _pieces_of_file(items) if hasattr(items, "read") else _pieces_of_items(items)


async def _pieces_of_file(file: Any) -> AsyncIterator[bytes]:
    # read1 takes what is there: a pipe may be slow to fill a whole piece.
    read = getattr(file, "read1", file.read)
    while piece := await asyncio.to_thread(read, PIECE):
        if not isinstance(piece, bytes):
            raise TypeError("the file must be open in binary mode")
        yield piece


async def _pieces_of_items(items: Any) -> AsyncIterator[bytes]:
    piece = bytearray()
    number = 0
    async for item in each(items):
        number += 1
        try:
            piece += item_line(item)
        except InvalidRequest as error:
            found = [Problem(f"/lines/{number}{one.pointer}", one.message) for one in error.problems]
            raise InvalidRequest(found) from None
        if len(piece) >= PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _id(line: bytes) -> str | None:
    """The id in a line of output; None if there is no line."""
    return from_json(line).get("id") if line else None


def _path(batch_id: str) -> str:
    """The path of a batch. Raises BatchNotFound for a text that cannot be an id of a batch."""
    if not re.fullmatch(JOB_ID, batch_id):
        raise BatchNotFound
    return f"/api/batches/{batch_id}"
