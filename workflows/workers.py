"""The Temporal workers of a process: one per task queue, and which workflows and activities each runs.

The values come from worker.py. Workflow code does not import this module.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.assembly import Activities
from dispatch.nexus import NexusService
from domain.build import build_id
from domain.names import BATCHES_QUEUE, COMPLETIONS_QUEUE, JOBS_QUEUE, WEBHOOKS_QUEUE
from domain.settings import Settings
from domain.timings import Timings
from workflows import options
from workflows.chat_batch import ChatBatch
from workflows.chat_job import ChatJob
from workflows.retention import Retention
from workflows.scheduled_batch import ScheduledBatch
from workflows.webhook_delivery import WebhookDelivery

WORKFLOWS = (ChatJob, ChatBatch, ScheduledBatch, WebhookDelivery, Retention)
STICKY_QUEUE_TIMEOUT = timedelta(seconds=1)
"""How long a workflow task waits for a dead worker's cache before any worker may take it; the default is 10 s."""
WEBHOOKS_AT_ONCE = 100
PARTS_AT_ONCE = 100
"""Parts of batches in a process. They share its places (CHATJOBS_BATCH_CONCURRENCY), so that many small batches take
turns."""
TASK_POLLS = 1
"""A frozen worker holds its polls open: each takes one more job, which waits there for a heartbeat timeout."""
WORKFLOW_TASK_POLLS = 2
"""As few as the SDK allows: one for its cached runs and one for others."""

NEXUS_POLLS = PollerBehaviorSimpleMaximum(1)
"""A start or cancel through Nexus is one call of the server; the default is 5 polls."""


def build_workers(
    client: Client,
    settings: Settings,
    timings: Timings,
    activities: Activities,
) -> list[Worker]:
    """One worker per task queue, so that slow receivers never hold up completions."""
    options.configure(heartbeat=settings.heartbeat_timeout, timings=timings)
    throttle = timedelta(seconds=timings.heartbeat_throttle_seconds)
    grace = timedelta(seconds=settings.chatjobs_grace_seconds)
    return [
        Worker(
            client,
            task_queue=JOBS_QUEUE,
            workflows=WORKFLOWS,
            activities=[
                *(
                    activities.results.accept_inline,
                    activities.results.accept_scheduled,
                    activities.results.store_result,
                    activities.retention.remove_old_jobs,
                ),
                *(activities.batches.request_cancel, activities.batches.seal_batch),
            ],
            nexus_service_handlers=[NexusService()],
            nexus_task_poller_behavior=NEXUS_POLLS,
            workflow_runner=UnsandboxedWorkflowRunner(),
            sticky_queue_schedule_to_start_timeout=STICKY_QUEUE_TIMEOUT,
            max_concurrent_workflow_task_polls=WORKFLOW_TASK_POLLS,
            graceful_shutdown_timeout=grace,
            build_id=build_id(),
        ),
        Worker(
            client,
            task_queue=COMPLETIONS_QUEUE,
            activities=[activities.completions.complete_chat],
            max_concurrent_activities=settings.chatjobs_concurrency,
            max_concurrent_activity_task_polls=TASK_POLLS,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=grace,
            build_id=build_id(),
        ),
        Worker(
            client,
            task_queue=BATCHES_QUEUE,
            activities=[
                *(activities.batches.prepare_batch, activities.batches.run_slice, activities.batches.cancel_rest),
                activities.batches.judge_canary,
                activities.scheduled.make_batch,
                *(
                    activities.lane.send_items,
                    activities.lane.look_at_parts,
                    activities.lane.withdraw_parts,
                    activities.lane.take_results,
                ),
            ],
            max_concurrent_activities=PARTS_AT_ONCE,
            max_concurrent_activity_task_polls=TASK_POLLS,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=grace,
            build_id=build_id(),
        ),
        Worker(
            client,
            task_queue=WEBHOOKS_QUEUE,
            activities=[activities.webhooks.deliver_webhook],
            max_concurrent_activities=WEBHOOKS_AT_ONCE,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            graceful_shutdown_timeout=grace,
            build_id=build_id(),
        ),
    ]


def sandboxed() -> SandboxedWorkflowRunner:
    """The runner of the replay tests: it refuses code that is not deterministic (docs/decisions/0011).

    Our own modules are passed through; importing them anew for every run would double its cost.
    """
    rooms = ("chatjobs", "domain", "storage", "activities", "providers", "workflows.options", "pydantic", "sqlalchemy")
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*rooms))
