"""The objects that routes depend on, created once by the entry point."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from temporalio.client import Client

from activities.waker import Waker
from activities.webhook import WebhookActivities
from dispatch.batches import BatchDispatch
from dispatch.intake import Intake
from dispatch.job_details import BatchDetails, JobDetails
from dispatch.job_schedules import JobSchedules
from dispatch.replays import ReplayIntake
from dispatch.server_knowledge import PrefixRule
from dispatch.stores import job_store
from dispatch.temporal import RunLinks, connect
from dispatch.upkeep import Upkeep
from dispatch.webhook_rules import WebhookRules, signing_secrets
from domain.ports import ModelCatalog, WebhookSender
from domain.settings import Settings
from domain.tasks import in_background
from domain.timings import Timings
from gateway.auth.access import Access, Identity
from gateway.auth.roles import check_role
from gateway.batch_progress import ProgressFeeds
from gateway.event_feed import FeedWatch
from gateway.page.overview import Feeds, Figures
from gateway.serving.after_response import AfterResponse
from gateway.serving.open_streams import OpenStreams
from gateway.v1.batch_job_work import BatchJobWork
from gateway.webhook_test import WebhookTests
from storage.batches.batch_jobs import BatchJobStore
from storage.batches.drafts import DraftStore
from storage.batches.queries import BatchQueries
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.events.feed import EventFeed
from storage.events.sequencer import Sequencer
from storage.files.queries import FileQueries
from storage.files.uploads import FileUploads
from storage.jobs.follow_up import FollowUp
from storage.jobs.overview import Overview
from storage.jobs.store import JobStore
from storage.keys import KeyStore, SecretStore
from storage.rate_limits.limiter import Limiter
from storage.rate_limits.pauses import PauseStore
from storage.rate_limits.queueing import QueueReader
from storage.transcript.reader import TranscriptReader
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import EndpointStore
from storage.webhooks.tenant_endpoints import TenantEndpointStore


@dataclass(frozen=True)
class BatchParts:
    """What the routes of batches need."""

    drafts: DraftStore
    runs: BatchRunStore
    queries: BatchQueries
    dispatch: BatchDispatch
    replays: ReplayIntake
    rules: WebhookRules
    progress: ProgressFeeds
    details: BatchDetails


@dataclass(frozen=True)
class FileParts:
    """What the routes of Mistral's files and batch jobs need."""

    uploads: FileUploads
    queries: FileQueries
    jobs: BatchJobStore
    work: BatchJobWork


@dataclass(frozen=True)
class EventParts:
    """What the route of the feed needs."""

    feed: EventFeed
    watch: FeedWatch


SenderOf = Callable[[WebhookRules], AbstractAsyncContextManager[WebhookSender]]
"""Makes the sender of webhooks under these rules; the entry point provides it."""


@dataclass(frozen=True)
class Dependencies:
    """Everything that a request may need."""

    settings: Settings
    timings: Timings
    database: Database
    client: Client
    jobs: JobStore
    links: RunLinks
    details: JobDetails
    deliveries: DeliveryStore
    endpoints: EndpointStore
    tenant_endpoints: TenantEndpointStore
    webhook_tests: WebhookTests
    intake: Intake
    batches: BatchParts
    files: FileParts
    schedules: JobSchedules
    after_response: AfterResponse
    reader: TranscriptReader
    queue: QueueReader
    limiter: Limiter
    pauses: PauseStore
    open_streams: OpenStreams
    access: Access
    keys: KeyStore
    secrets: SecretStore
    feeds: Feeds
    figures: Figures
    models: ModelCatalog | None
    """None where the gateway has no key for the model's server."""
    events: EventParts

    async def may_be_new(self, job_id: str, caller: Identity) -> bool:
        """Whether a job without a row may be one that so far exists only in Temporal, not another tenant's job."""
        mine = caller.tenant == self.settings.chatjobs_direct_tenant
        return mine and (
            not await self.jobs.queries.exists(job_id) or await self.jobs.queries.exists(job_id, caller.tenant)
        )


def parts(request: Request) -> Dependencies:
    """FastAPI dependency: the Dependencies of the application."""
    found: Dependencies = request.app.state.parts
    return found


async def identity(request: Request) -> Identity:
    """FastAPI dependency: the authenticated caller, whose role covers what the route needs. Raises HttpProblem."""
    caller = await parts(request).access.identify(request)
    check_role(request, caller)
    return caller


@asynccontextmanager
async def open_dependencies(
    settings: Settings, sender_of: SenderOf, *, models: ModelCatalog | None = None, timings: Timings = Timings()
) -> AsyncIterator[Dependencies]:
    """The dependencies and their background tasks, while the block runs. Temporal may be unavailable; the database not.

    Raises ChatJobsError, whose message says what to do.
    """
    async with AsyncExitStack() as stack:
        database = await Database.open(settings.database_url, timings=timings)
        stack.push_async_callback(database.close)
        client = await connect(lazy=True)
        limiter = Limiter(database, per_second=settings.mistral_requests_per_second, timings=timings)
        jobs = job_store(settings, database, limiter)
        links = RunLinks(settings.chatjobs_temporal_ui, client.namespace)
        details = JobDetails(links, settings.chatjobs_prices, jobs.queries)
        deliveries = DeliveryStore(database)
        rules = await stack.enter_async_context(WebhookRules(settings, database).running())
        sender = await stack.enter_async_context(sender_of(rules))
        secrets_of = partial(signing_secrets, settings, database)
        intake = Intake(
            jobs=jobs,
            client=client,
            indexed=None,
            policy=rules,
            prefixes=PrefixRule(settings, database),
            most_bytes=settings.chatjobs_max_body_bytes,
        )
        schedules = JobSchedules(jobs=jobs, intake=intake, client=client, timings=timings)
        reader = await stack.enter_async_context(TranscriptReader(database, timings=timings).running())
        queue = await stack.enter_async_context(QueueReader(limiter, timings=timings).running())
        after_response = await stack.enter_async_context(AfterResponse().running())
        open_streams = OpenStreams()
        access = await Access.open(settings, database, open_streams)
        await stack.enter_async_context(in_background(access.run(), "access"))
        webhooks = WebhookActivities(deliveries=deliveries, sender=sender, secrets_of=secrets_of)
        wake = Waker(limiter=limiter, jobs=jobs.queries, client=client, heartbeat=settings.heartbeat_timeout).wake
        upkeep = Upkeep(
            *(settings, database, client),
            jobs=jobs,
            intake=intake,
            try_once=webhooks.try_once,
            wake=wake,
            timings=timings,
        )
        await stack.enter_async_context(upkeep.first_tries.running())
        await stack.enter_async_context(in_background(upkeep.sweeper.run(), "sweeper"))
        await stack.enter_async_context(in_background(FollowUp(database).run(), "follow-up"))
        await stack.enter_async_context(in_background(Sequencer(database).run(), "events"))
        overview, queries, feed = Overview(database), BatchQueries(database), EventFeed(database)
        uploads, file_queries, batch_jobs = FileUploads(database), FileQueries(database), BatchJobStore(database)
        work = BatchJobWork(
            *(batch_jobs, uploads, file_queries, upkeep.drafts, upkeep.batch_runs, upkeep.batches),
            rules=rules,
            longest_line=settings.chatjobs_max_body_bytes,
        )
        await stack.enter_async_context(in_background(work.run(), "batch jobs"))
        yield Dependencies(
            settings=settings,
            timings=timings,
            database=database,
            client=client,
            jobs=jobs,
            links=links,
            details=details,
            deliveries=deliveries,
            endpoints=EndpointStore(database),
            tenant_endpoints=(tenant_endpoints := TenantEndpointStore(database)),
            webhook_tests=WebhookTests(sender, rules, secrets_of, tenant_endpoints.secrets_of),
            intake=intake,
            batches=BatchParts(
                *(upkeep.drafts, upkeep.batch_runs, queries, upkeep.batches),
                replays=ReplayIntake(upkeep.replays, rules),
                rules=rules,
                progress=ProgressFeeds(queries),
                details=BatchDetails(links, settings.chatjobs_prices, queries),
            ),
            files=FileParts(uploads, file_queries, batch_jobs, work),
            schedules=schedules,
            after_response=after_response,
            reader=reader,
            queue=queue,
            limiter=limiter,
            pauses=PauseStore(database),
            open_streams=open_streams,
            access=access,
            keys=KeyStore(database),
            secrets=SecretStore(database),
            feeds=Feeds(overview, details),
            figures=Figures(overview),
            models=models,
            events=EventParts(feed, FeedWatch(feed)),
        )
