"""The composition root of the worker: makes its parts, runs them, closes them in order (see workflows/workers.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from temporalio.client import Client
from temporalio.worker import Worker

from activities.assembly import assembled
from activities.waker import Waker
from activities.webhook import WebhookActivities
from dispatch import measuring, server_knowledge
from dispatch.intake import Intake
from dispatch.schedules import ensure_retention_schedule
from dispatch.stores import job_store
from dispatch.temporal import RunLinks, connect, indexed
from dispatch.upkeep import Upkeep
from dispatch.webhook_rules import WebhookRules, signing_secrets
from domain.ports import BatchModel, ChatModel, WebhookSender
from domain.process_exit import exit_now
from domain.programs import freeze_imports, run
from domain.settings import Settings
from domain.tasks import in_background
from domain.timings import Timings
from providers.mistral.chat import MistralChat
from providers.mistral.from_settings import mistral_batch, mistral_chat
from providers.mistral.probe import measured
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from storage.events import sequencer
from storage.jobs.follow_up import behind
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.deliveries import DeliveryStore
from workflows.workers import build_workers

log = logging.getLogger("worker")


@dataclass(frozen=True)
class WorkerParts:
    """What a worker is made of; tests put in their own model or sender."""

    settings: Settings
    client: Client
    database: Database
    model: ChatModel
    sender: WebhookSender
    indexed: bool
    rules: WebhookRules | None = None
    """For webhook URLs; None: only the sender judges them."""
    timings: Timings = Timings()
    batch_model: BatchModel | None = None
    """None: the model has no batch jobs, and ``lane: batch`` is made of live calls."""

    @property
    def jobs(self) -> JobStore:
        return job_store(self.settings, self.database)

    @cached_property
    def limiter(self) -> Limiter:
        return Limiter(self.database, per_second=self.settings.mistral_requests_per_second, timings=self.timings)

    @property
    def webhooks(self) -> WebhookActivities:
        secrets_of = partial(signing_secrets, self.settings, self.database)
        deliveries = DeliveryStore(self.database)
        return WebhookActivities(deliveries=deliveries, sender=self.sender, secrets_of=secrets_of, timings=self.timings)

    @property
    def waker(self) -> Waker:
        heartbeat = self.settings.heartbeat_timeout
        return Waker(limiter=self.limiter, jobs=self.jobs.queries, client=self.client, heartbeat=heartbeat)

    def upkeep(self) -> Upkeep:
        return Upkeep(
            *(self.settings, self.database, self.client),
            jobs=self.jobs,
            intake=Intake(jobs=self.jobs, client=self.client, indexed=self.indexed),
            try_once=self.webhooks.try_once,
            wake=self.waker.wake,
            timings=self.timings,
        )

    def workers(self, transcript: TranscriptWriter, upkeep: Upkeep) -> list[Worker]:
        activities = assembled(
            *(self.settings, self.database),
            jobs=self.jobs,
            batch_runs=upkeep.batch_runs,
            replays=upkeep.replays,
            limiter=self.limiter,
            transcript=transcript,
            model=self.model,
            batch_model=self.batch_model,
            webhooks=self.webhooks,
            announce=upkeep.first_tries.soon,
            announce_endpoints=upkeep.first_tries.of_endpoints,
            run_url=RunLinks(self.settings.chatjobs_temporal_ui, self.client.namespace).of,
            indexed=self.indexed,
            policy=self.rules,
            timings=self.timings,
        )
        return build_workers(self.client, self.settings, self.timings, activities)


@asynccontextmanager
async def parts_from(settings: Settings, timings: Timings = Timings()) -> AsyncIterator[WorkerParts]:
    """The real parts, closed after the block. Raises ChatJobsError, which says what to do, if one is missing."""
    if not settings.webhook_secret:
        log.warning("WEBHOOK_SECRET is not set: webhooks wait until it is", extra={"action": "no_webhook_secret"})
    async with AsyncExitStack() as stack:
        model = mistral_chat(settings, server_knowledge.assumed(settings), timings)
        stack.push_async_callback(model.aclose)
        batches = mistral_batch(settings, model, timings)
        stack.push_async_callback(batches.aclose)
        database = await Database.open(settings.database_url, timings=timings)
        stack.push_async_callback(database.close)
        client = await connect()
        rules = await stack.enter_async_context(WebhookRules(settings, database).running())
        sender = await stack.enter_async_context(HttpWebhookSender(policy=rules, timings=timings))
        found = await indexed(client)
        yield WorkerParts(settings, client, database, model, sender, found, rules, timings, batches)


@asynccontextmanager
async def running(parts: WorkerParts) -> AsyncIterator[None]:
    """Run workers and background tasks beside the block. On the way out, in reverse order: the background tasks end,
    the workers hand their streams over within one grace time, the transcript writer stops."""
    settings, client = parts.settings, parts.client
    waker, upkeep = parts.waker, parts.upkeep()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(upkeep.first_tries.running())
        if isinstance(parts.model, MistralChat):
            await measuring.recall(settings, parts.database, parts.model)
        transcript = await stack.enter_async_context(TranscriptWriter(parts.database, timings=parts.timings).running())
        workers = parts.workers(transcript, upkeep)
        for worker in workers:
            await stack.enter_async_context(worker)
        stack.push_async_callback(lambda: asyncio.gather(*(worker.shutdown() for worker in workers)))
        retention = ensure_retention_schedule(client, settings.chatjobs_retention_days)
        background = {
            "sweeper": upkeep.sweeper.run(),
            "waker": waker.run(),
            "follow-up": behind(parts.database).run(),
            "events": sequencer.behind(parts.database).run(),
            "lease": parts.limiter.lease.run(),
            "retention schedule": retention,
        }
        if isinstance(parts.model, MistralChat):
            background["continuations"] = measuring.keep_informed(settings, parts.database, parts.model, measured)
        for name, work in background.items():
            await stack.enter_async_context(in_background(work, name))
        yield


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Work until ``stop`` is set. Raises ChatJobsError."""
    async with parts_from(settings) as parts, running(parts):
        freeze_imports()
        log.info("worker ready", extra={"action": "worker_ready"})
        await stop.wait()
        log.info("worker stops", extra={"action": "worker_stops"})


if __name__ == "__main__":
    exit_now(run("worker", serve))
