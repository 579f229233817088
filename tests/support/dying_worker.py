"""A worker that kills itself with -9 at a named point: ``python -m tests.support.dying_worker after_finish``.

The real worker with one method wrapped; what follows the point never happens. ``decoding`` is the moment in which a
job's request is read; ``poison`` is that of a request with this word.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import storage.jobs.attempts
import worker
from activities.webhook import WebhookActivities
from chatjobs.contracts import ChatRequest
from domain import programs
from domain.process_exit import exit_now
from providers.mistral.batch import MistralBatch
from providers.webhooks.sender import HttpWebhookSender
from storage.batches.replays import ReplayStore
from storage.jobs.attempts import AttemptStore
from storage.jobs.seals import SealStore
from storage.transcript.batches import BatchEntry, PostgresBatches, SqliteBatches
from storage.transcript.writer import JobWriter

POINTS: dict[str, tuple[type, str]] = {
    "after_claim": (AttemptStore, "claim"),
    "before_end": (AttemptStore, "end"),
    "after_end": (AttemptStore, "end"),
    "after_restart": (AttemptStore, "restart"),
    "before_finish": (JobWriter, "finish"),
    "after_finish": (JobWriter, "finish"),
    "after_seal": (SealStore, "seal"),
    "after_gather": (ReplayStore, "gather"),
    "after_verdict": (ReplayStore, "judge_canary"),
    "after_upload": (MistralBatch, "upload"),
    "after_create": (MistralBatch, "create"),
    "before_send": (WebhookActivities, "_send"),
    "after_send": (HttpWebhookSender, "post"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(method: Callable[..., Awaitable[Any]], *, before: bool) -> Callable[..., Awaitable[Any]]:
    async def dies(*arguments: Any, **options: Any) -> Any:
        if not before:
            await method(*arguments, **options)
        die()

    return dies


def dying_with_the_finish(append: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """At the commit of a batch that has the end of an answer; all batches before it are committed."""

    async def dies(self: Any, entries: Sequence[BatchEntry]) -> Any:
        if any(entry.finish for entry in entries):
            die()
        return await append(self, entries)

    return dies


class Deadly:
    """Stands for ChatRequest where a claim reads one."""

    word = ""

    @classmethod
    def model_validate_json(cls, body: str) -> ChatRequest:
        if cls.word in body:
            die()
        return ChatRequest.model_validate_json(body)


class Poison(Deadly):
    """Ends the worker only if the request has the word."""

    word = "poison"


READERS = {"decoding": Deadly, "poison": Poison}


def main(point: str) -> int:
    if point in READERS:
        setattr(storage.jobs.attempts, "ChatRequest", READERS[point])  # noqa: B010 - as for the other points
    elif point == "before_finish_commit":
        for kind in (SqliteBatches, PostgresBatches):
            setattr(kind, "append", dying_with_the_finish(kind.append))  # noqa: B010 - as for the other points
    else:
        owner, name = POINTS[point]
        setattr(owner, name, dying(getattr(owner, name), before=point.startswith("before")))
    return programs.run("worker", worker.serve)


if __name__ == "__main__":
    exit_now(main(sys.argv[1]))
