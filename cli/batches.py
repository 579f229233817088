"""The commands `batch`, each a method of BatchCommands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from temporalio.client import Client

from chatjobs.contracts import Batch, BatchSettings, BatchStatus, parse
from chatjobs.errors import ChatJobsError, InvalidRequest, Problem
from cli.batch_views import BatchView, batch_list, batch_page, batch_view
from cli.output import console, one_line, write
from cli.place import ServiceLocation
from cli.views import Printer
from cli.waiting import WaitReporter
from dispatch.batches import BatchDispatch
from dispatch.job_details import BatchDetails
from dispatch.stores import batch_runs
from domain.batches import BatchHandle
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.names import BATCHES_QUEUE
from gateway.batch_output import output_line
from gateway.batch_upload import Line, Upload
from gateway.problems import HttpProblem
from gateway.serving.ndjson import lines
from storage.batches.drafts import DraftStore
from storage.batches.queries import BatchQueries
from storage.engine.database import Database

OK, FAILED, INTERRUPTED = 0, 1, 130
PIECE = 256 * 1024
"""Bytes of a file that are read at once."""
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 60
"""How long the database may be unavailable before a watcher gives up."""


class BatchCommands:
    """Each command is a method that prints and returns the exit code. As the other commands, they work on the service's
    database; workers and gateways act on what is stored there."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._place = place
        self._database = database
        self._as_json = as_json
        self._printer = Printer(as_json=as_json)
        self._drafts = DraftStore(database)
        self._runs = batch_runs(place.service_settings, database)
        self._queries = BatchQueries(database)
        self._client: Client | None = None

    # -------------------------------------------------------------------------------------------- commands

    async def submit(
        self, source: BinaryIO, settings: dict[str, Any], key: str | None, *, resume: bool, wait: bool
    ) -> int:
        self._place.require_service()
        parsed = parse(BatchSettings, settings)
        if resume:
            key = await asyncio.to_thread(_key_of, source, settings)
        policy = await self._place.webhook_rules(self._database).now()
        upload = Upload(self._drafts, policy, self._place.settings.chatjobs_direct_tenant, parsed, key)
        try:
            accepted = await upload.accept(self._lines(source))
        except HttpProblem as error:
            raise _refusal(error) from None
        if not self._as_json:
            write(f"{accepted.batch_id}\n")  # first, as the batch is durable from here on
        if accepted.created:
            await self._start(accepted.batch_id)
        else:
            await self._found(accepted, resume=resume)
        return await self._outcome(accepted.batch_id, wait=wait)

    async def list(self, status: str | None, since: datetime | None, limit: int) -> int:
        chosen = BatchStatus(status) if status else None
        found = [self._details.linked(one) for one in await self._queries.list(status=chosen, since=since, limit=limit)]
        if self._as_json:
            write(f"{one_line({'batches': [batch.model_dump(mode='json') for batch in found]})}\n")
        elif found:
            console().print(batch_list(found))
        else:
            self._printer.notice("there are no such batches")
        return OK

    async def show(self, batch_id: str) -> int:
        self._print(await self._batch(batch_id))
        return OK

    async def watch(self, batch_id: str) -> int:
        batch = await self._batch(batch_id)
        if not batch.status.terminal:
            self._place.require_service()
        return await self._watched(batch, batch_view(as_json=self._as_json))

    async def pause(self, batch_id: str) -> int:
        return await self._changed(await self._runs.pause(batch_id))

    async def resume(self, batch_id: str) -> int:
        changed = await self._runs.resume(batch_id)
        await self._start(batch_id)
        return await self._changed(changed)

    async def cancel(self, batch_id: str) -> int:
        changed = await self._runs.cancel(batch_id)
        if not changed.status.terminal:
            dispatch = BatchDispatch(self._runs, self._drafts, await self._client_or_none())
            await self._or_notice(dispatch.cancel(batch_id), "the rest is done")
        return await self._changed(changed)

    async def output(self, batch_id: str, file: str, *, errors: bool) -> int:
        """Raises OSError."""
        batch = await self._batch(batch_id)
        pages = self._pages(batch.batch_id, errors=errors)
        if file == "-":
            async for page in pages:
                sys.stdout.buffer.write(b"".join(page))
            sys.stdout.buffer.flush()
            return OK
        count, target = 0, Path(file)
        unfinished = target.with_name(f"{target.name}.part")
        try:
            with unfinished.open("wb") as opened:
                async for page in pages:
                    await asyncio.to_thread(opened.write, b"".join(page))
                    count += len(page)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        if self._as_json:
            write(f"{one_line({'file': file, 'lines': count})}\n")
        else:
            self._printer.notice(f"{count} lines in {file}")
        return OK

    # ------------------------------------------------------------------------------------------- submitting

    async def _lines(self, source: BinaryIO) -> AsyncIterator[Sequence[Line]]:
        async def pieces() -> AsyncIterator[bytes]:
            while piece := await asyncio.to_thread(source.read, PIECE):
                yield piece

        async for group in lines(pieces(), self._place.settings.chatjobs_max_body_bytes):
            yield [Line(number, text) for number, text in group]

    async def _found(self, accepted: BatchHandle, *, resume: bool) -> None:
        """The batch was there before: say so, and with ``resume`` let it go on."""
        batch = await self._batch(accepted.batch_id)
        self._printer.notice(f"the batch is there already: {batch.status}")
        if not resume:
            return
        ended = batch.status.terminal
        if ended and not (batch.status is BatchStatus.FAILED or batch.counts.failed or batch.counts.cancelled):
            self._printer.notice("all of its items are done")
        elif ended or batch.status is BatchStatus.PAUSED:
            changed = await self._runs.resume(accepted.batch_id)
            self._printer.notice(f"it goes on: {changed.status}")
            await self._start(accepted.batch_id)

    async def _start(self, batch_id: str) -> None:
        dispatch = BatchDispatch(self._runs, self._drafts, await self._client_or_none())
        await self._or_notice(dispatch.start(batch_id), "the batch is stored and goes on")

    async def _outcome(self, batch_id: str, *, wait: bool) -> int:
        batch = await self._batch(batch_id)
        if wait:
            return await self._watched(batch, BatchView(as_json=self._as_json))
        if self._as_json:
            self._print(batch)
        return OK

    # --------------------------------------------------------------------------------------------- watching

    async def _watched(self, batch: Batch, view: BatchView) -> int:
        waiting = WaitReporter(batch.batch_id, self._temporal, view.waits, queue=BATCHES_QUEUE, what="batch")
        try:
            with view:
                async with waiting.running():
                    while True:
                        view.show(batch)
                        if batch.status.terminal:
                            break
                        await asyncio.sleep(LOOK_SECONDS)
                        before, batch = batch, await self._next(batch.batch_id)
                        if batch.counts != before.counts or batch.status is BatchStatus.PAUSED:
                            waiting.progress()
        except asyncio.CancelledError:  # Ctrl-C
            view.notice(f"detached; the batch goes on. To watch it again: starter.py batch watch {batch.batch_id}")
            return INTERRUPTED
        view.ended(batch)
        return OK if batch.status is BatchStatus.COMPLETED and not batch.counts.failed else FAILED

    async def _next(self, batch_id: str) -> Batch:
        """The batch as it is now. Raises StorageUnavailable once the database is away for too long."""
        since = time.monotonic()
        while True:
            try:
                return await self._batch(batch_id)
            except StorageUnavailable:
                if time.monotonic() - since > PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(LOOK_SECONDS)

    # ------------------------------------------------------------------------------------------------ parts

    async def _pages(self, batch_id: str, *, errors: bool) -> AsyncIterator[Sequence[bytes]]:
        async for items in self._queries.output(batch_id, errors=errors):
            yield tuple(map(output_line, items))

    async def _batch(self, batch_id: str) -> Batch:
        """Raises BatchNotFound."""
        return await self._details.of(await self._queries.get(batch_id))

    @cached_property
    def _details(self) -> BatchDetails:
        return BatchDetails(self._place.links, self._place.settings.chatjobs_prices, self._queries)

    async def _changed(self, changed: BatchHandle) -> int:
        batch = await self._batch(changed.batch_id)
        if self._as_json:
            self._print(batch)
        else:
            write(f"{batch.batch_id} {batch.status}\n")
        return OK

    def _print(self, batch: Batch) -> None:
        if self._as_json:
            write(f"{one_line(batch.model_dump(mode='json'))}\n")
        else:
            console().print(batch_page(batch), soft_wrap=True)

    async def _temporal(self) -> Client:
        """Raises TemporalUnavailable."""
        if self._client is None:
            self._client = await self._place.connect()
        return self._client

    async def _client_or_none(self) -> Client | None:
        try:
            return await self._temporal()
        except TemporalUnavailable:
            return None

    async def _or_notice(self, action: Awaitable[None], consequence: str) -> None:
        """Await a call of Temporal; if Temporal is unavailable, print the consequence."""
        try:
            await action
        except ChatJobsError as error:
            self._printer.notice(f"{error.message}; {consequence} when Temporal is back")


def _key_of(source: BinaryIO, settings: dict[str, Any]) -> str:
    """An idempotency key of a file's content and the settings. The file is at its beginning again afterwards."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE):
        digest.update(piece)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    source.seek(0)
    return f"resume-{digest.hexdigest()}"


def _refusal(error: HttpProblem) -> ChatJobsError:
    """The error of an upload, for a command."""
    if error.status >= 500:
        return StorageUnavailable(error.detail)
    return InvalidRequest(error.errors or [Problem("", error.detail)])
