"""The stores of jobs and batches as a program's settings want them."""

from __future__ import annotations

from functools import partial

from domain.settings import Settings
from domain.webhook_body import batch_webhook_body, webhook_body
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter


def job_store(settings: Settings, database: Database, limiter: Limiter | None = None) -> JobStore:
    """``limiter`` knows the place of a waiting job in its queue; without it no place is shown."""
    body = partial(webhook_body, public_url=settings.chatjobs_public_url or "")
    return JobStore(database, limiter=limiter, webhook_body=body)


def batch_runs(settings: Settings, database: Database) -> BatchRunStore:
    url = settings.chatjobs_public_url or ""
    return BatchRunStore(database, partial(batch_webhook_body, public_url=url), partial(webhook_body, public_url=url))
