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

from activities.batch import BatchActivities
from activities.batch_lane import BatchLaneActivities
from activities.completer import Completer
from activities.completion import CompletionActivities
from activities.result import ResultActivities
from activities.retention import RetentionActivities
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
from storage.batches.lane import BatchLaneStore
from storage.batches.retention import BatchRetention
from storage.engine.database import Database
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.jobs.follow_up import behind
from storage.rate_limits.limiter import Limiter
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import EndpointStore
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
        jobs, tenant, timings = self.jobs, self.settings.chatjobs_direct_tenant, self.timings
        links = RunLinks(self.settings.chatjobs_temporal_ui, self.client.namespace)
        completer = Completer(
            attempts=jobs.attempts, transcript=transcript, model=self.model, limiter=self.limiter, timings=timings
        )
        return build_workers(
            self.client,
            self.settings,
            timings,
            results=ResultActivities(
                jobs=jobs, run_url=links.of, tenant=tenant, indexed=self.indexed, policy=self.rules
            ),
            completions=CompletionActivities(completer=completer, timings=timings),
            webhooks=self.webhooks,
            batches=BatchActivities(
                *(completer, upkeep.batch_runs, jobs.seals),
                announce=upkeep.first_tries.soon,
                places=self.settings.chatjobs_batch_concurrency,
                indexed=self.indexed,
                timings=timings,
            ),
            retention=RetentionActivities(
                retention=RetentionStore(self.database),
                batches=BatchRetention(self.database),
                endpoints=EndpointStore(self.database),
                timings=timings,
            ),
            lane=BatchLaneActivities(
                *(self.batch_model, self.model, upkeep.batch_runs, BatchLaneStore(self.database), jobs.seals),
                completer=Completer(attempts=jobs.attempts, transcript=transcript, model=self.model, timings=timings),
                announce=upkeep.first_tries.soon,
                limiter=self.limiter,
                places=self.settings.chatjobs_batch_concurrency,
                timings=timings,
            ),
        )


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
