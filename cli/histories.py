"""The command `history`."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path

from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError

from chatjobs.errors import DeliveryNotFound, JobNotFound
from cli.output import one_line, write
from cli.place import ServiceLocation
from dispatch.stores import job_store
from dispatch.temporal import RPC_TIMEOUT, runs_of
from domain.errors import RunNotFound, TemporalUnavailable
from domain.names import DELIVERY_PREFIX, delivery_workflow_id
from domain.values import RunRef
from storage.engine.database import Database
from storage.webhooks.deliveries import DeliveryStore

OK = 0
STANDARD_OUTPUT = "-"
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
"""Characters of a workflow's id that are not used in the name of its file."""
GONE = "Temporal keeps the history of a closed run for the namespace's retention period"


class HistoryCommands:
    """Saves histories of runs. ``database`` tells which run a job is."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._place = place
        self._jobs = job_store(place.settings, database)
        self._deliveries = DeliveryStore(database)
        self._as_json = as_json

    async def save(self, name: str, output: str | None) -> int:
        """Write the history of the newest run of a job, a delivery or a workflow.

        ``output``: a file, ``-`` for standard output, None for a file named after the workflow. Raises RunNotFound,
        TemporalUnavailable, OSError.
        """
        client = await self._place.connect()
        run = await self._newest(client, name)
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        try:
            history = await handle.fetch_history(rpc_timeout=RPC_TIMEOUT)
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from None
        content = json.dumps(history.to_json_dict(), indent=1, ensure_ascii=False)
        if output == STANDARD_OUTPUT:
            write(f"{content}\n")
            return OK
        path = Path(output or f"{NOT_IN_A_NAME.sub('_', run.id)}.history.json")
        await asyncio.to_thread(path.write_text, f"{content}\n", encoding="utf-8")
        saved = {"file": str(path), "workflowId": run.id, "runId": run.run_id, "events": len(history.events)}
        write(f"{one_line(saved)}\n" if self._as_json else f"{path}\n")
        return OK

    async def _newest(self, client: Client, name: str) -> WorkflowExecutionDescription:
        """The newest run of what the name means. Raises RunNotFound, TemporalUnavailable."""
        try:
            if found := await runs_of(client, await self._run(name)):
                return found[-1]
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from None
        raise RunNotFound(await self._why_none(name))

    async def _run(self, name: str) -> RunRef:
        if name.startswith(DELIVERY_PREFIX):
            return RunRef(delivery_workflow_id(name))
        return await self._jobs.queries.run_of(name)  # a name without a job is that of a workflow

    async def _why_none(self, name: str) -> str:
        """Why Temporal has no run of it, and what to do."""
        if name.startswith(DELIVERY_PREFIX):
            with suppress(DeliveryNotFound):
                await self._deliveries.outgoing(name)
                return f"Delivery {name} has no run of its own: its first try is in the run of its job, or {GONE}"
        with suppress(JobNotFound):
            job = await self._jobs.queries.outline(name)
            if job.status.terminal:
                return f"Job {name} has no run (any more): {GONE}. What the service knows of it: starter.py show {name}"
            return f"The run of job {name} was not started yet; `starter.py doctor` says what is missing"
        return f"Neither a job nor a delivery nor a workflow has the id {name}; a job's run may be gone: {GONE}"


def _unavailable(error: Exception) -> TemporalUnavailable:
    name = error.status.name if isinstance(error, RPCError) else "not reachable"
    return TemporalUnavailable(f"Temporal did not give the history ({name}); try again in a moment")
