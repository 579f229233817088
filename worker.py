"""Builds the parts, runs the Temporal workers, shuts down in order. The only place that knows every concrete class."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic import ValidationError
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.completion import CompletionActivities
from activities.result import ResultActivities
from activities.retention import RetentionActivities
from activities.waker import Waker
from activities.webhook import WebhookActivities
from chatjobs.errors import ChatJobsError, ConfigurationError
from dispatch import measuring, server_knowledge
from dispatch.intake import Intake, Sweeper
from dispatch.schedules import scheduled_retention
from dispatch.temporal import connect, indexed, run_url
from dispatch.webhook_rules import WebhookRules, signing_secrets
from domain import logs
from domain.names import COMPLETIONS_QUEUE, JOBS_QUEUE, WEBHOOKS_QUEUE
from domain.ports import ChatModel, WebhookSender
from domain.process_exit import exit_now
from domain.settings import Settings, problems
from domain.timings import Timings
from providers.mistral.chat import MistralChat
from providers.mistral.probe import measured
from providers.webhooks.sender import HttpWebhookSender
from storage.engine.database import Database
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import EndpointStore
from workflows import options
from workflows.chat_job import ChatJob
from workflows.retention import Retention
from workflows.webhook_delivery import WebhookDelivery

log = logging.getLogger("worker")

STICKY_QUEUE_TIMEOUT = timedelta(seconds=1)
"""How long a workflow task waits for a dead worker's cache before any worker may take it; the default is 10 s."""
WEBHOOKS_AT_ONCE = 100
TASK_POLLS = 1
"""A frozen worker holds its polls open: each takes one more job, which waits there for a heartbeat timeout."""
WORKFLOW_TASK_POLLS = 2
"""As few as the SDK allows: one for its cached runs and one for others."""


@dataclass(frozen=True)
class WorkerParts:
    """What a worker is made of; tests put in their own model or sender."""

    settings: Settings
    client: Client
    database: Database
    model: ChatModel
    sender: WebhookSender
    indexed: bool
    rules: WebhookRules | None = field(default=None, kw_only=True)
    """For webhook URLs; None: they are judged only by the sender."""
    timings: Timings = field(default=Timings(), kw_only=True)

    @property
    def jobs(self) -> JobStore:
        ui, namespace = self.settings.chatjobs_temporal_ui, self.client.namespace
        return JobStore(
            self.database,
            run_url=lambda job_id: run_url(ui, namespace, job_id),
            public_url=self.settings.chatjobs_public_url,
        )

    @property
    def limiter(self) -> Limiter:
        per_second = self.settings.mistral_requests_per_second
        return Limiter(self.database, per_second=per_second, timings=self.timings)

    @property
    def waker(self) -> Waker:
        heartbeat = timedelta(seconds=self.settings.chatjobs_heartbeat_seconds)
        return Waker(limiter=self.limiter, jobs=self.jobs, client=self.client, heartbeat=heartbeat)

    @property
    def webhooks(self) -> WebhookActivities:
        return WebhookActivities(
            deliveries=DeliveryStore(self.database),
            sender=self.sender,
            secrets_of=self.secrets_of,
            timings=self.timings,
        )

    async def secrets_of(self, tenant: str) -> Sequence[str]:
        """A tenant's signing secrets, newest first. Raises StorageUnavailable."""
        return await signing_secrets(self.settings, self.database, tenant)


def build_workers(parts: WorkerParts, transcript: TranscriptWriter) -> list[Worker]:
    """One worker per task queue, so that slow receivers never hold up completions."""
    heartbeat = timedelta(seconds=parts.settings.chatjobs_heartbeat_seconds)
    options.configure(heartbeat=heartbeat, timings=parts.timings)
    jobs = parts.jobs
    results = ResultActivities(
        jobs=jobs, tenant=parts.settings.chatjobs_direct_tenant, indexed=parts.indexed, policy=parts.rules
    )
    completions = CompletionActivities(
        jobs=jobs, transcript=transcript, model=parts.model, limiter=parts.limiter, timings=parts.timings
    )
    webhooks = parts.webhooks
    retention = RetentionActivities(
        retention=RetentionStore(parts.database), endpoints=EndpointStore(parts.database), timings=parts.timings
    )
    throttle = timedelta(seconds=parts.timings.heartbeat_throttle_seconds)
    grace = timedelta(seconds=parts.settings.chatjobs_grace_seconds)
    return [
        Worker(
            parts.client,
            task_queue=JOBS_QUEUE,
            workflows=[ChatJob, WebhookDelivery, Retention],
            activities=[results.accept_inline, results.store_result, retention.remove_old_jobs],
            workflow_runner=UnsandboxedWorkflowRunner(),
            sticky_queue_schedule_to_start_timeout=STICKY_QUEUE_TIMEOUT,
            max_concurrent_workflow_task_polls=WORKFLOW_TASK_POLLS,
            graceful_shutdown_timeout=grace,
        ),
        Worker(
            parts.client,
            task_queue=COMPLETIONS_QUEUE,
            activities=[completions.complete_chat],
            max_concurrent_activities=parts.settings.chatjobs_concurrency,
            max_concurrent_activity_task_polls=TASK_POLLS,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=grace,
        ),
        Worker(
            parts.client,
            task_queue=WEBHOOKS_QUEUE,
            activities=[webhooks.deliver_webhook],
            max_concurrent_activities=WEBHOOKS_AT_ONCE,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=grace,
        ),
    ]


def sandboxed() -> SandboxedWorkflowRunner:
    """The runner of the replay tests: it refuses what is not deterministic (docs/decisions/0011).

    Our own modules are only referred to; importing them anew for every run would double its cost.
    """
    rooms = ("chatjobs", "domain", "storage", "activities", "providers", "workflows.options", "pydantic", "sqlalchemy")
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*rooms))


@asynccontextmanager
async def running(parts: WorkerParts) -> AsyncIterator[None]:
    """Workers, waker, sweeper, while the block runs. On the way out streams are handed over before the writer stops."""
    deliveries = DeliveryStore(parts.database)
    intake = Intake(jobs=parts.jobs, client=parts.client, indexed=parts.indexed)
    waker = parts.waker
    sweeper = Sweeper(
        intake=intake,
        jobs=parts.jobs,
        deliveries=deliveries,
        client=parts.client,
        timings=parts.timings,
        try_once=parts.webhooks.try_once,
        wake=waker.wake,
    )
    async with AsyncExitStack() as stack:
        transcript = await stack.enter_async_context(TranscriptWriter(parts.database, timings=parts.timings).running())
        workers = build_workers(parts, transcript)
        for worker in workers:
            await stack.enter_async_context(worker)
        stack.push_async_callback(_shut_down, workers)
        stack.push_async_callback(_cancelled, asyncio.create_task(sweeper.run(), name="sweeper"))
        stack.push_async_callback(_cancelled, asyncio.create_task(waker.run(), name="waker"))
        if isinstance(parts.model, MistralChat):
            informing = measuring.keep_informed(parts.settings, parts.database, parts.model, measured)
            stack.push_async_callback(_cancelled, asyncio.create_task(informing, name="continuations"))
        scheduling = scheduled_retention(parts.client, parts.settings.chatjobs_retention_days)
        stack.push_async_callback(_cancelled, asyncio.create_task(scheduling, name="retention schedule"))
        yield


async def _shut_down(workers: Sequence[Worker]) -> None:
    """All at once, so that the grace time is spent once."""
    await asyncio.gather(*(worker.shutdown() for worker in workers))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def parts_from(settings: Settings, timings: Timings = Timings()) -> AsyncIterator[WorkerParts]:
    """The real parts. Raises ChatJobsError with what to do where one is missing."""
    if not settings.webhook_secret:
        log.warning("WEBHOOK_SECRET is not set: webhooks wait until it is", extra={"action": "no_webhook_secret"})
    async with AsyncExitStack() as stack:
        model = _model(settings, timings)
        stack.push_async_callback(model.aclose)
        database = await Database.open(settings.database_url, timings=timings)
        stack.push_async_callback(database.close)
        client = await connect()
        rules = await stack.enter_async_context(WebhookRules(settings, database).running())
        sender = await stack.enter_async_context(HttpWebhookSender(policy=rules, timings=timings))
        found = await indexed(client)
        yield WorkerParts(settings, client, database, model, sender, found, rules=rules, timings=timings)


def _model(settings: Settings, timings: Timings) -> MistralChat:
    key = settings.mistral_api_key
    if key is None:
        raise ConfigurationError("MISTRAL_API_KEY is not set; set it, or use `make run`, which brings a simulator")
    try:
        return MistralChat(
            api_key=key.get_secret_value(),
            server_url=settings.mistral_server_url,
            idle_connections=settings.chatjobs_concurrency,
            practice=server_knowledge.assumed(settings),
            timings=timings,
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _spare_the_collector() -> None:
    """What was imported stays for good. Looking through it again and again stops the process for 25 ms at a time."""
    gc.collect()
    gc.freeze()


async def main() -> int:
    """Run until SIGTERM or Ctrl-C; the exit code."""
    logs.configure()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with parts_from(Settings()) as parts, running(parts):
            _spare_the_collector()
            log.info("worker ready", extra={"action": "worker_ready"})
            await stop.wait()
            log.info("worker stops", extra={"action": "worker_stops"})
    except ChatJobsError as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return 2
    except ValidationError as error:
        print(f"worker: the settings are not valid: {problems(error)}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    exit_now(asyncio.run(main()))
