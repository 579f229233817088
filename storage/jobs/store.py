"""The stores of jobs, by what one does: accept, attempts, seals, queries, schedules, sweep."""

from __future__ import annotations

from domain.webhook_body import webhook_body
from storage.engine.database import Database
from storage.jobs.accept import AcceptStore
from storage.jobs.attempts import AttemptStore
from storage.jobs.queries import JobQueries
from storage.jobs.schedules import ScheduleStore
from storage.jobs.sealing import WebhookBody
from storage.jobs.seals import SealStore
from storage.jobs.sweep import SweepStore
from storage.rate_limits.limiter import Limiter


class JobStore:
    """All stores of jobs over one database; what needs only one of them gets that one.

    ``limiter`` knows the place of a waiting job; ``webhook_body`` makes the body that announces an outcome.
    """

    def __init__(
        self, database: Database, *, limiter: Limiter | None = None, webhook_body: WebhookBody = webhook_body
    ) -> None:
        self.acceptance = AcceptStore(database)
        self.attempts = AttemptStore(database)
        self.seals = SealStore(database, webhook_body)
        self.queries = JobQueries(database, limiter)
        self.schedules = ScheduleStore(database)
        self.sweep = SweepStore(database)
