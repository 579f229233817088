"""Workflows that were changed without care, to see that replaying finds it."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RawValue

from domain.names import CHAT_JOB, COMPLETIONS_QUEUE


@workflow.defn(name=CHAT_JOB)
class CarelessChatJob:
    """It takes a nap before the first step; runs that are under way have none in their history."""

    @workflow.run
    async def run(self, start: RawValue) -> None:
        await workflow.sleep(1)
        await workflow.execute_activity(
            "complete_chat", start, task_queue=COMPLETIONS_QUEUE, start_to_close_timeout=timedelta(days=8)
        )


@workflow.defn(name=CHAT_JOB)
class BrokenChatJob:
    """It raises an error, which fails the workflow task."""

    @workflow.run
    async def run(self, start: RawValue) -> None:
        raise ValueError("no such thing")
