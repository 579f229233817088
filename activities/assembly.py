"""All activities of a worker, made of the stores and of what the worker's composition root has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from activities.batch import Announce, BatchActivities
from activities.batch_lane import BatchLaneActivities
from activities.completer import Completer
from activities.completion import CompletionActivities
from activities.result import ResultActivities
from activities.retention import RetentionActivities
from activities.schedules import ScheduledBatchActivities
from activities.webhook import WebhookActivities
from domain.ports import BatchModel, ChatModel
from domain.settings import Settings
from domain.timings import Timings
from domain.values import RunRef
from domain.webhook_urls import WebhookPolicy
from storage.batches.drafts import DraftStore
from storage.batches.lane import BatchLaneStore
from storage.batches.replays import ReplayStore
from storage.batches.retention import BatchRetention
from storage.batches.runs import BatchRunStore
from storage.engine.database import Database
from storage.events.feed import EventFeed
from storage.files.retention import FileRetention
from storage.jobs.retention import RetentionStore
from storage.jobs.store import JobStore
from storage.rate_limits.limiter import Limiter
from storage.transcript.writer import TranscriptWriter
from storage.webhooks.endpoints import EndpointStore


@dataclass(frozen=True)
class Activities:
    """Each group is registered with the worker of its task queue (workflows/workers.py)."""

    results: ResultActivities
    completions: CompletionActivities
    batches: BatchActivities
    lane: BatchLaneActivities
    scheduled: ScheduledBatchActivities
    webhooks: WebhookActivities
    retention: RetentionActivities


def assembled(
    settings: Settings,
    database: Database,
    *,
    jobs: JobStore,
    batch_runs: BatchRunStore,
    replays: ReplayStore,
    limiter: Limiter,
    transcript: TranscriptWriter,
    model: ChatModel,
    batch_model: BatchModel | None,
    webhooks: WebhookActivities,
    announce: Announce,
    announce_endpoints: Announce,
    run_url: Callable[[RunRef], str],
    indexed: bool,
    policy: Callable[[], WebhookPolicy] | None = None,
    timings: Timings = Timings(),
) -> Activities:
    """The activities, each with its part of the arguments; what one means is said where it is used."""
    places = settings.chatjobs_batch_concurrency
    completer = Completer(attempts=jobs.attempts, transcript=transcript, model=model, limiter=limiter, timings=timings)
    unlimited = Completer(attempts=jobs.attempts, transcript=transcript, model=model, timings=timings)
    return Activities(
        results=ResultActivities(
            jobs=jobs,
            run_url=run_url,
            tenant=settings.chatjobs_direct_tenant,
            indexed=indexed,
            policy=policy,
            most_bytes=settings.chatjobs_max_body_bytes,
            announce=announce_endpoints,
        ),
        completions=CompletionActivities(completer=completer, timings=timings),
        batches=BatchActivities(
            *(completer, batch_runs, jobs.seals, replays, policy),
            announce=announce,
            places=places,
            indexed=indexed,
            timings=timings,
        ),
        lane=BatchLaneActivities(
            *(batch_model, model, batch_runs, BatchLaneStore(database), jobs.seals),
            completer=unlimited,  # batch jobs have no rate limit
            announce=announce,
            limiter=limiter,
            places=places,
            timings=timings,
        ),
        scheduled=ScheduledBatchActivities(
            *(jobs.schedules, DraftStore(database), batch_runs), policy=policy, timings=timings
        ),
        webhooks=webhooks,
        retention=RetentionActivities(
            retention=RetentionStore(database),
            batches=BatchRetention(database),
            files=FileRetention(database),
            endpoints=EndpointStore(database),
            events=EventFeed(database),
            timings=timings,
        ),
    )
