"""The names that several rooms use: workflow types, task queues, search attributes, ids."""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import datetime
from typing import Final

from chatjobs.contracts import BatchEventType, WebhookEventType

CHAT_JOB: Final = "ChatJob"
CHAT_BATCH: Final = "ChatBatch"
SCHEDULED_BATCH: Final = "ScheduledBatch"
WEBHOOK_DELIVERY: Final = "WebhookDelivery"
COMPLETE_CHAT: Final = "complete_chat"
"""The activity that calls the model."""
RETENTION: Final = "Retention"
RETENTION_SCHEDULE: Final = "chatjobs-retention"

JOBS_QUEUE: Final = "chatjobs"
"""Workflows and the short local steps: accept, store."""
COMPLETIONS_QUEUE: Final = "chatjobs-completions"
"""Calls of the model; a worker's slots here are its CHATJOBS_CONCURRENCY."""
BATCHES_QUEUE: Final = "chatjobs-batches"
"""Parts of batches, apart, so that a batch never takes the places of single jobs."""
WEBHOOKS_QUEUE: Final = "chatjobs-webhooks"
"""Delivery tries, apart, so that slow receivers never hold up completions."""

SEARCH_ATTRIBUTES: Final = ("ChatStatus", "ChatModel", "ChatTenant", "ChatReplayOf")
"""All of type Keyword."""

DELIVERY_PREFIX: Final = "whe_"
"""The beginning of a delivery's id."""

RETRY_NOW: Final = "retry_now"
REVISION: Final = "revision"
"""In the memo of a run that was started for a job that goes on after its end: the revision of the job."""
LOOK: Final = "look"
"""The signal by which a batch's workflow looks at what was asked of the batch."""
STATUS_QUERY: Final = "status"
ACCEPTED_UPDATE: Final = "accepted"
"""The update by which a caller through Temporal learns that a job is stored."""


SCHEDULED: Final = re.compile(r"(.+)-([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)", re.DOTALL)
"""The workflow id of a Schedule's action: the id in the action, and the time that Temporal appends."""


def new_job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


def new_batch_id() -> str:
    return f"batch_{uuid.uuid4().hex}"


def batch_job_id(batch_id: str, number: int) -> str:
    """The id of the job of a batch's item: the same for every try of making it."""
    return f"job_{batch_id.removeprefix('batch_')}-{number:07d}"


def new_schedule_id() -> str:
    return f"schedule_{uuid.uuid4().hex}"


def item_number(batch_job_id: str) -> int:
    """The number of the item that has a job with this id (``batch_job_id``)."""
    return int(batch_job_id.rpartition("-")[2])


def job_id_of_run(workflow_id: str, run_id: str, *, cron: bool) -> str:
    """The id of the job that a run of ``ChatJob`` is: the workflow's id, where that names one run.

    A cron uses one workflow id for all its runs, and a Schedule's workflow id has the time of the action to the second,
    with colons, so that two actions of one second share it. The job of such a run has the end of the run's id in its
    own. ``run_id`` is the one that the run was started with, which a Reset keeps.
    """
    scheduled = SCHEDULED.fullmatch(workflow_id)
    if scheduled is None and not cron:
        return workflow_id
    stem = f"{scheduled[1]}-{scheduled[2].replace(':', '')}" if scheduled else workflow_id
    return f"{stem}-{run_id.rpartition('-')[2]}"


def job_id_of_scheduled(workflow_id: str) -> str:
    """The id of the job that a run of one of our schedules makes: the schedule and the time of the run decide it, so
    that a run that Temporal starts a second time makes no second job."""
    return workflow_id.replace(":", "")


def batch_id_of_scheduled(workflow_id: str) -> str:
    """The same for the batch of such a run."""
    return f"batch_{job_id_of_scheduled(workflow_id)}"


def scheduled_second(workflow_id: str) -> datetime | None:
    """The time of a Schedule's run, to the second; None for any other workflow."""
    found = SCHEDULED.fullmatch(workflow_id)
    return datetime.fromisoformat(found[2]) if found else None


def new_request_id() -> str:
    return str(uuid.uuid4())


def delivery_id(
    job_id: str, event: WebhookEventType | BatchEventType, revision: int, endpoint: str | None = None
) -> str:
    """The ``webhook-id`` of the event of a job or batch: the same for every try and after every crash.

    ``revision`` counts the outcomes: 1, and one more each time that a job or batch that had ended goes on.
    ``endpoint``: the URL of an endpoint of all jobs; None: the webhook of the job or batch itself.
    """
    place = "" if endpoint is None else f"\n{endpoint}"
    digest = hashlib.sha256(f"{job_id}\n{event.value}{place}".encode()).hexdigest()[:32]
    return f"{DELIVERY_PREFIX}{digest}" + (f".{revision}" if revision > 1 else "")


def delivery_workflow_id(delivery: str) -> str:
    return f"delivery-{delivery}"


def status_path(job_id: str) -> str:
    return f"/api/jobs/{job_id}"


def replay_path(batch_id: str) -> str:
    return f"/api/replays/{batch_id}"


def batch_path(batch_id: str) -> str:
    return f"/api/batches/{batch_id}"
