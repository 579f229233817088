"""A worker that kills itself with -9 at a named point: ``python -m tests.dying_worker after_finish``.

The real worker with one method wrapped; what follows the point never happens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import worker
from activities.webhook import WebhookActivities
from providers.webhook_sender import HttpWebhookSender
from storage.jobs import JobStore
from storage.transcript import JobWriter

POINTS: dict[str, tuple[type, str]] = {
    "after_claim": (JobStore, "claim"),
    "after_finish": (JobWriter, "finish"),
    "after_seal": (JobStore, "seal"),
    "before_send": (WebhookActivities, "_send"),
    "after_send": (HttpWebhookSender, "post"),
}


def dying(method: Callable[..., Awaitable[Any]], *, before: bool) -> Callable[..., Awaitable[Any]]:
    async def die(*arguments: Any, **options: Any) -> Any:
        if not before:
            await method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return die


def main(point: str) -> int:
    owner, name = POINTS[point]
    setattr(owner, name, dying(getattr(owner, name), before=point.startswith("before")))
    return asyncio.run(worker.main())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
