"""The baseline of bench/jobs.py, in a module that the workflow sandbox can import cheaply."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow


@activity.defn
async def nothing() -> None:
    """The empty activity of the baseline."""


@workflow.defn
class Bare:
    """The smallest workflow with a worker: one activity."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(nothing, start_to_close_timeout=timedelta(seconds=10))
