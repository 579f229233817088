"""What each process does for all jobs beside its own work: sweeps, and webhooks that no workflow sends first."""

from __future__ import annotations

from temporalio.client import Client

from dispatch.batches import BatchDispatch
from dispatch.first_tries import FirstTries, TryOnce, Wake
from dispatch.intake import Intake
from dispatch.stores import batch_runs
from dispatch.sweeper import Sweeper
from domain.settings import Settings
from domain.timings import Timings
from storage.batches.drafts import DraftStore
from storage.batches.replays import ReplayStore
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.webhooks.deliveries import DeliveryStore


class Upkeep:
    """``try_once`` makes one try of a webhook, ``wake`` lets the workflow of a waiting job go on."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        client: Client,
        *,
        jobs: JobStore,
        intake: Intake,
        try_once: TryOnce,
        wake: Wake,
        timings: Timings = Timings(),
    ) -> None:
        deliveries = DeliveryStore(database)
        self.first_tries = FirstTries(client, deliveries, try_once, wake)
        self.drafts = DraftStore(database)
        self.batch_runs = batch_runs(settings, database)
        self.replays = ReplayStore(database)
        self.batches = BatchDispatch(self.batch_runs, self.drafts, client)
        self.sweeper = Sweeper(
            intake=intake,
            jobs=jobs,
            deliveries=deliveries,
            client=client,
            timings=timings,
            first_tries=self.first_tries,
            batches=self.batches,
        )
