"""The tables. Only the migrations in ``migrations/`` create and change the schema.

The row in ``jobs`` is written with every batch of text, so large values have tables of their own: requests (images are
base64) and results. As the row is written anyway, it also holds the newest text, its ``tail``: a page of ``transcript``
is written once for some hundred characters, not for every token. Times are microseconds since 1970 in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

from chatjobs.contracts import Channel

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CHANNELS = (Channel.CONTENT, Channel.REASONING)
"""A channel's number in storage is its index here."""


def micros(moment: datetime) -> int:
    """An aware time as microseconds since 1970, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment(value: int) -> datetime:
    return EPOCH + timedelta(microseconds=value)


def now() -> datetime:
    return datetime.now(UTC)


metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("idempotency_key", String(255)),
    Column("body_hash", String(64), nullable=False),
    Column("webhook", Text),  # JSON: the target, so that sealing need not read a request full of images
    Column("model", String(64), nullable=False),
    Column("metadata", JSON().with_variant(JSONB(), "postgresql"), nullable=False),
    Column("replay_of", String(128)),
    Column("previous_job_id", String(128)),  # the job whose answer its conversation goes on from
    Column("thread", String(128)),  # the first job of the conversation; NULL: this one is the first
    Column("batch_id", String(128)),
    Column("status", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("workflow_started_at", BigInteger),  # NULL: the sweeper has to start it
    Column("started_at", BigInteger),
    Column("progressed_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),  # set by the seal, and only by it
    Column("cancel_requested_at", BigInteger),
    # The transcript's head.
    Column("fence", BigInteger, nullable=False),
    Column("claimant", String(64)),
    Column("attempt", Integer, nullable=False),  # the number of the last one in the ledger
    Column("epoch", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("token_count", BigInteger, nullable=False),
    Column("tail", Text, nullable=False),  # the newest text, which is not in `transcript` yet
    Column("tail_channel", SmallInteger, nullable=False),
    Column("reset_reason", String(64)),
    Column("finish", Text),  # the end of the answer as data (JSON), from its commit to the seal
    # The outcome.
    Column("revision", Integer, nullable=False),
    Column("sealed_by", String(64)),  # the run that sealed it; "sweeper", "": none (sealing.py)
    Column("error_code", String(64)),
    Column("priority", SmallInteger, nullable=False, server_default="3"),  # 1 goes first
    # The run of a cron or Schedule: its workflow id is not the job's. NULL for all others.
    Column("workflow_id", String(160)),
    Column("workflow_run_id", String(64)),
    # limits.maxLost, readable without the request.
    Column("max_lost", SmallInteger, nullable=False, server_default="5"),
    Column("queue_until", BigInteger),  # the end of limits.queueSeconds; NULL once the model was called
    Column("deleted_at", BigInteger),  # its request, texts and deliveries were deleted; only this row is left
    Column("batched", Boolean, nullable=False, server_default=false()),  # its batch runs it; it has no workflow
    Column("start_at", BigInteger),  # the request's startAt: no workflow is started before, and no model called
    Column("schedule_id", String(64)),  # the schedule that made it
    # The run whose history has the request, where that is no longer the job's run.
    Column("inline_workflow_id", String(160)),
    Column("inline_run_id", String(64)),
    Column("begun", Integer),  # the newest revision whose first attempt has begun, which is an event once
    UniqueConstraint("tenant", "idempotency_key", name="jobs_idempotency"),
    # No column that a batch of text changes is indexed, so that Postgres can update the row in place (HOT).
    postgresql_with={"fillfactor": "70"},
)
Index("jobs_newest", jobs.c.tenant, jobs.c.created_at, jobs.c.id)
Index("jobs_by_status", jobs.c.tenant, jobs.c.status, jobs.c.created_at, jobs.c.id)
NOT_DELAYED = or_(jobs.c.start_at.is_(None), jobs.c.workflow_started_at.is_not(None))
"""Of an open job: nothing but a sweeper's look is between it and its workflow."""
_open = and_(jobs.c.completed_at.is_(None), NOT_DELAYED)
Index("jobs_open", jobs.c.created_at, sqlite_where=_open, postgresql_where=_open)
_delayed = and_(jobs.c.start_at.is_not(None), jobs.c.workflow_started_at.is_(None), jobs.c.completed_at.is_(None))
Index("jobs_delayed", jobs.c.start_at, sqlite_where=_delayed, postgresql_where=_delayed)
Index(
    "jobs_queue_until",
    jobs.c.queue_until,
    sqlite_where=jobs.c.queue_until.is_not(None),
    postgresql_where=jobs.c.queue_until.is_not(None),
)
Index("jobs_replays", jobs.c.replay_of)
Index(
    "jobs_of_thread",
    jobs.c.thread,
    jobs.c.created_at,
    jobs.c.id,
    sqlite_where=jobs.c.thread.is_not(None),
    postgresql_where=jobs.c.thread.is_not(None),
)
Index(
    "jobs_batch",
    jobs.c.batch_id,
    jobs.c.status,
    sqlite_where=jobs.c.batch_id.is_not(None),
    postgresql_where=jobs.c.batch_id.is_not(None),
)
Index(
    "jobs_of_schedule",
    jobs.c.tenant,
    jobs.c.schedule_id,
    jobs.c.created_at,
    sqlite_where=jobs.c.schedule_id.is_not(None),
    postgresql_where=jobs.c.schedule_id.is_not(None),
)
Index(
    "jobs_ended",
    jobs.c.completed_at,
    sqlite_where=jobs.c.completed_at.is_not(None),
    postgresql_where=jobs.c.completed_at.is_not(None),
)

Index("jobs_by_model", jobs.c.tenant, jobs.c.model, jobs.c.created_at, jobs.c.id)
Index(
    "jobs_by_error",
    jobs.c.tenant,
    jobs.c.error_code,
    jobs.c.created_at,
    jobs.c.id,
    sqlite_where=jobs.c.error_code.is_not(None),
    postgresql_where=jobs.c.error_code.is_not(None),
)
Index(
    "jobs_by_batch",
    jobs.c.batch_id,
    jobs.c.created_at,
    jobs.c.id,
    sqlite_where=jobs.c.batch_id.is_not(None),
    postgresql_where=jobs.c.batch_id.is_not(None),
)

# Triggers on jobs fill these (migration 0010), whichever statement accepts, seals, reopens or removes a job.
VALUE_CHARACTERS = 100
"""A row of an index has limited space: of a longer value the beginning is indexed."""
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""The type of a number that the database gives; SQLite counts only an INTEGER PRIMARY KEY itself."""

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value_start", String(VALUE_CHARACTERS), primary_key=True),
    Column("created_at", BigInteger, primary_key=True),
    Column("job_id", String(128), primary_key=True),
    sqlite_with_rowid=False,
)

ended_changes = Table(
    "ended_changes",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("counted", SmallInteger, nullable=False),  # what it adds to the number of jobs: 1, -1 or 0
    Column("charted", SmallInteger, nullable=False),  # what it adds to the charts
)
Index("ended_changes_tenant", ended_changes.c.tenant, ended_changes.c.status, ended_changes.c.counted)

ended_counts = Table(
    "ended_counts",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("status", String(16), primary_key=True),
    Column("jobs", BigInteger, nullable=False),  # without those in ended_changes
)

ended_rollups = Table(
    "ended_rollups",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("at", BigInteger, primary_key=True),
    Column("figures", Text, nullable=False),  # JSON (storage/jobs/rollups.py)
)

search_queue = Table(
    "search_queue",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("job_id", String(128), nullable=False),
    Column("due_at", BigInteger, nullable=False),
)
Index("search_queue_due", search_queue.c.due_at, search_queue.c.id)

search_entries = Table(
    "search_entries",
    metadata,
    Column("number", NUMBER, primary_key=True),  # on SQLite the row's in job_words, the full-text index (FTS5)
    Column(
        "job_id", String(128), unique=True
    ),  # NULL: its job or its content is gone; SQLite's index has to lose it, too
    Column("ended_at", BigInteger, nullable=False),  # the end of the job whose texts these are; 0: it had not ended
    Column("preview", Text),  # the beginning of the last user message
    Column("words", LargeBinary().with_variant(TSVECTOR(), "postgresql")),  # on SQLite as they stand in job_words
    sqlite_autoincrement=True,
)
Index(
    "search_entries_removed",
    search_entries.c.number,
    sqlite_where=search_entries.c.job_id.is_(None),
    postgresql_where=search_entries.c.job_id.is_(None),
)
Index("search_entries_words", search_entries.c.words, postgresql_using="gin").ddl_if(dialect="postgresql")

requests = Table(
    "requests",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("body", Text, nullable=False),
)

responses = Table(  # of jobs that were made as OpenAI's responses, or asked for as such
    "responses",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("settings", Text, nullable=False),  # JSON: what the request had beside the job's own parameters
    Column("kept", Boolean, nullable=False),  # false: the content is deleted once the job has ended
)
NOT_KEPT = text("NOT kept")
Index("responses_not_kept", responses.c.job_id, sqlite_where=NOT_KEPT, postgresql_where=NOT_KEPT)

transcript = Table(
    "transcript",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("position", BigInteger, primary_key=True),  # after this piece
    Column("channel", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("token_count", BigInteger, nullable=False),  # of the epoch: the server's count, or else deltas
    sqlite_with_rowid=False,
)

results = Table(
    "results",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("content", Text, nullable=False),
    Column("reasoning", Text, nullable=False),
    Column("runs", Text, nullable=False),  # JSON: [[channel, characters, token count after], …] in order
    Column("sha256", String(64), nullable=False),
    Column("finish_reason", String(64)),
    Column("tool_calls", Text),
    Column("parts", Text),
    Column("usage", Text),
    Column("usage_estimated", Boolean, nullable=False),
    Column("error", Text),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("outcome", String(64)),
    Column("http_status", Integer),
    Column("usage", Text),
    Column("estimated", Boolean, nullable=False),
    Column("first_token_ms", Integer),
    Column("tokens_per_second", Float),
    Column("tokens_before", BigInteger, nullable=False),  # the epoch's token count when it began
    Column("position", BigInteger),  # the transcript's when it ended
    Column("message", Text),  # why it failed, for people
    # The lane's outage or a freeze ended it, or the job was resumed after it: it does not count as a failure.
    Column("excused", Boolean, nullable=False, server_default=false()),
    Column("lane", String(128)),  # of its call
    Column("worker", String(32)),  # that makes the call: a lease in worker_leases
    Column("model", String(64)),
    Column("epoch", Integer),  # of the text that it writes
    Column("confirmed", Boolean),  # the server repeated the text before it went on from it; NULL: it has not gone on
)
_running = and_(attempts.c.ended_at.is_(None), attempts.c.lane.is_not(None))
Index("attempts_running", attempts.c.lane, sqlite_where=_running, postgresql_where=_running)

worker_leases = Table(
    "worker_leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("until", BigInteger, nullable=False),  # by the database's clock
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(128), nullable=False, index=True),
    Column("tenant", String(128), nullable=False),
    Column("event", String(32), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("body", LargeBinary, nullable=False),  # the exact bytes of every try
    Column("body_timestamp", String(32), nullable=False),
    Column("status", String(16), nullable=False),  # pending, delivered, failed
    Column("created_at", BigInteger, nullable=False),
    Column("next_try_at", BigInteger),
    Column("delivered_at", BigInteger),
    Column("wanted_at", BigInteger),  # when Temporal is to be notified of a requested try; NULL once it was
    # For an endpoint of the tenant, not for the webhook of the job or batch: it ends with the endpoint.
    Column("of_endpoint", Boolean, nullable=False, server_default=false()),
)
Index("deliveries_newest", deliveries.c.tenant, deliveries.c.created_at, deliveries.c.id)
Index(
    "deliveries_wanted",
    deliveries.c.wanted_at,
    sqlite_where=deliveries.c.wanted_at.is_not(None),
    postgresql_where=deliveries.c.wanted_at.is_not(None),
)
Index(
    "deliveries_pending",
    deliveries.c.next_try_at,
    sqlite_where=deliveries.c.status == "pending",
    postgresql_where=deliveries.c.status == "pending",
)

delivery_tries = Table(
    "delivery_tries",
    metadata,
    Column("delivery_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", BigInteger, nullable=False),
    Column("latency_ms", Integer, nullable=False),
    Column("status_code", Integer),
    Column("error", String(512)),
    Column("response", Text),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("name", String(128), nullable=False),  # the owner's name for it
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 (hex) of the key, which is not stored
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("secret", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("signs_until", BigInteger),  # set when a newer one replaces it
)
Index("webhook_secrets_tenant", webhook_secrets.c.tenant, webhook_secrets.c.created_at)

service_secrets = Table(
    "service_secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),  # shared by all processes, such as the key of the stream tokens
)

lanes = Table(
    "lanes",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("free_at", BigInteger, nullable=False),  # when the next call may start
    Column("shifted", BigInteger, nullable=False, server_default="0"),  # the sum of what late calls added to free_at
    Column("paused_until", BigInteger, nullable=False),
    Column("refusals", Integer, nullable=False),  # 429s in a row
    Column("set_to", Float),  # calls per second, set by an operator
    Column("seen", Float),  # calls per second, from the model's headers
    # The breaker (storage/rate_limits/breaker.py).
    Column("failures", BigInteger, nullable=False, server_default="0"),  # calls in a row that the model failed
    Column("openings", BigInteger, nullable=False, server_default="0"),  # in a row; 0: the breaker is closed
    Column("open_until", BigInteger, nullable=False, server_default="0"),
    Column("probe", String(128)),  # the job that probes the model while the others wait, or that probed it last
    Column("probe_until", BigInteger, nullable=False, server_default="0"),
    Column("suspects", Text),  # JSON: [job, attempt] of the failures in a row
    Column("last_error", String(256)),
    Column("at_once", Integer),  # calls that may run at once, set by an operator; NULL: any number
    # The budget of tokens (storage/rate_limits/budget.py).
    Column("tokens_set_to", BigInteger),  # per minute, set by an operator
    Column("tokens_seen", BigInteger),  # per minute, from the model's headers
    Column("token_spends", Text),  # JSON: [slot, tokens] of the last minute
    Column("typical_answer", Integer),  # tokens
)

lane_waiters = Table(
    "lane_waiters",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("lane", String(128), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("tag", BigInteger, nullable=False),  # its round in fair queueing (storage/rate_limits/lane_queue.py)
    Column("since", BigInteger, nullable=False),
    Column("asks_at", BigInteger, nullable=False),  # when it requests its turn again
    Column("near", Boolean, nullable=False),  # it waits in a worker, or was woken
    Column("held", Boolean, nullable=False, server_default=false()),  # a pause concerns it
    Column("tokens", BigInteger, nullable=False, server_default="0"),  # the estimate of its call; 0: no budget
)
Index(
    "lane_waiters_order",
    lane_waiters.c.lane,
    lane_waiters.c.priority,
    lane_waiters.c.tag,
    lane_waiters.c.since,
    lane_waiters.c.job_id,
)
Index("lane_waiters_near", lane_waiters.c.lane, sqlite_where=lane_waiters.c.near, postgresql_where=lane_waiters.c.near)

lane_classes = Table(
    "lane_classes",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("priority", SmallInteger, primary_key=True),
    Column("tag", BigInteger, nullable=False),  # the current round
)

lane_tenants = Table(
    "lane_tenants",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("priority", SmallInteger, primary_key=True),
    Column("tenant", String(128), primary_key=True),
    Column("tag", BigInteger, nullable=False),  # the last round in which the tenant has a place
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("name", String(256)),
    Column("idempotency_key", String(255)),  # NULL in a draft, even if it was given
    Column("body_hash", String(64), nullable=False),
    Column("status", String(16), nullable=False),  # "draft" while the items arrive: nobody sees it yet
    Column("webhook", Text),  # JSON: the target
    Column("concurrency", Integer),
    Column("lane", String(16), nullable=False),
    Column("deadline", BigInteger),
    Column("total", Integer, nullable=False),
    Column("prepared", Integer, nullable=False),  # so many items, the first ones, have a row in `jobs`
    Column("tally", Text, nullable=False),  # JSON: of the jobs that have ended (storage/batches/tally.py)
    Column("created_at", BigInteger, nullable=False),
    Column("workflow_started_at", BigInteger),  # NULL: its workflow has to be started, or told of a wish
    Column("started_at", BigInteger),
    Column("progressed_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("paused_at", BigInteger),
    Column("cancel_requested_at", BigInteger),
    Column("revision", Integer, nullable=False),
    Column("sealed_by", String(64)),  # the run that ended it; "": none did
    Column("error", Text),
    Column("schedule_id", String(64)),  # the schedule that made it
    # After a resume: the items before this number that had no answer are open again; NULL: nothing is to be reopened.
    Column("reopened", Integer),
    Column("kind", String(16), nullable=False, server_default="batch"),
    # Of a replay (storage/batches/replays.py).
    Column("filter", Text),  # JSON: the jobs that are replayed
    Column("overrides", Text),  # JSON: the fields of their requests that change
    Column("canary", Integer),
    Column("max_error_rate", Float),
    Column("phase", String(8)),
    Column("judged", Text),  # JSON: [number of its first item, jobs that failed, jobs that ended] of the last parts
    # JSON: (created_at, id) of the last job of the filter that was looked at; NULL once all have their items.
    Column("gather_after", Text),
    Column("skipped", Integer, nullable=False, server_default="0"),  # jobs of the filter whose request is gone
    UniqueConstraint("tenant", "idempotency_key", name="batches_idempotency"),
)
Index(
    "batches_of_schedule",
    batches.c.tenant,
    batches.c.schedule_id,
    batches.c.created_at,
    sqlite_where=batches.c.schedule_id.is_not(None),
    postgresql_where=batches.c.schedule_id.is_not(None),
)
Index("batches_newest", batches.c.tenant, batches.c.created_at, batches.c.id)
Index(
    "batches_open",
    batches.c.progressed_at,
    sqlite_where=batches.c.completed_at.is_(None),
    postgresql_where=batches.c.completed_at.is_(None),
)

# What the row of an item's job is made of, before the batch begins. Its request is in `requests` from the start.
batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String(128), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 0, in the order of the upload
    Column("custom_id", String(512), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("webhook", Text),
    Column("model", String(64), nullable=False),
    Column("metadata", JSON().with_variant(JSONB(), "postgresql"), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("max_lost", SmallInteger, nullable=False),
    Column("queue_time", BigInteger),  # microseconds that it may wait, if its request says so
    Column("problem", Text),  # JSON: the error of an item that can only fail
    UniqueConstraint("batch_id", "custom_id", name="batch_items_custom_id"),
    sqlite_with_rowid=False,
)

# Files of Mistral's files API. `file_chunks` has the content of those that were uploaded; the results of a batch job
# are made from its jobs whenever they are read.
files = Table(
    "files",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("tenant", String(128), nullable=False),
    Column("status", String(16), nullable=False),  # "uploading", "complete" or "deleted"; others see complete ones only
    Column("filename", String(512), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("sample_type", String(32), nullable=False),
    Column("source", String(16), nullable=False),
    Column("mimetype", String(128), nullable=False),
    Column("visibility", String(16), nullable=False),
    Column("size", BigInteger),  # bytes; NULL: results that were not measured since they last changed
    Column("num_lines", BigInteger),
    Column("sha256", String(64)),
    Column("batch_job", String(36)),  # the job whose results these are
    Column("created_at", BigInteger, nullable=False),
    Column("progressed_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),  # NULL: with the retention
)
Index("files_newest", files.c.tenant, files.c.created_at, files.c.id)
Index("files_oldest", files.c.created_at)
Index("files_of_job", files.c.batch_job)
Index(
    "files_expiring",
    files.c.expires_at,
    sqlite_where=files.c.expires_at.is_not(None),
    postgresql_where=files.c.expires_at.is_not(None),
)
Index(
    "files_unseen",
    files.c.progressed_at,
    sqlite_where=files.c.status != "complete",
    postgresql_where=files.c.status != "complete",
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", String(36), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 0
    Column("data", LargeBinary, nullable=False),
)

# Batch jobs of Mistral's batch API: what was asked for, until and beside the batch that it becomes.
batch_jobs = Table(
    "batch_jobs",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("tenant", String(128), nullable=False),
    Column("idempotency_key", String(255)),
    Column("body_hash", String(64), nullable=False),
    Column("input_files", Text, nullable=False),  # JSON: ids of files
    Column("inline", Boolean, nullable=False),  # its requests were in the body
    Column("model", String(64)),
    Column("metadata", JSON().with_variant(JSONB(), "postgresql")),
    Column("lane", String(16), nullable=False),
    Column("webhook", Text),  # JSON: the target
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),  # the end of timeout_hours
    Column("tries", Integer, nullable=False),  # of reading its files
    Column("claimed_at", BigInteger),  # a gateway reads its files, and was alive at this time
    Column("batch_id", String(128)),  # NULL: its files are not read and checked yet
    Column("errors", Text),  # JSON: why its files were refused
    Column("cancel_requested_at", BigInteger),
    Column("timed_out_at", BigInteger),
    Column("completed_at", BigInteger),  # of one that ended without a batch
    Column("settled", Integer),  # its end is recorded, for this revision of the batch; NULL: it has not ended
    Column("output_file", String(36)),
    Column("error_file", String(36)),
    Column("deleted_at", BigInteger),  # nobody sees it any more; its jobs' contents are being deleted
    UniqueConstraint("tenant", "idempotency_key", name="batch_jobs_idempotency"),
)
Index("batch_jobs_newest", batch_jobs.c.tenant, batch_jobs.c.created_at, batch_jobs.c.id)
Index("batch_jobs_oldest", batch_jobs.c.created_at)
Index(
    "batch_jobs_open",
    batch_jobs.c.created_at,
    sqlite_where=batch_jobs.c.settled.is_(None),
    postgresql_where=batch_jobs.c.settled.is_(None),
)

pauses = Table(
    "pauses",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("lane", String(128), nullable=False),  # "": all lanes
    Column("tenant", String(128), nullable=False),  # "": all tenants
    Column("reason", Text, nullable=False),
    Column("paused_at", BigInteger, nullable=False),
    Column("paused_by", String(64), nullable=False),
    UniqueConstraint("lane", "tenant", name="pauses_scope"),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("url", String(2048), primary_key=True),
    Column("failing_since", BigInteger),  # the first failure since the last success
    Column("failures", Integer, nullable=False),
    Column("successes", Integer, nullable=False),
    Column("last_success_at", BigInteger),
    Column("last_failure_at", BigInteger),
    Column("last_error", String(512)),
    Column("disabled_at", BigInteger),
    Column("disabled_reason", String(64)),
)

# Endpoints that get the webhooks of all jobs and batches of their tenant; their health is in `endpoints`.
tenant_endpoints = Table(
    "tenant_endpoints",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("url", String(2048), primary_key=True),
    Column("events", Text, nullable=False),  # JSON: a list of the subscribed ones
    Column("secrets", Text, nullable=False),  # JSON: [[secret, until when it signs or null], …], newest first
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

# Triggers on jobs write this (migration 0016); storage/events/sequencer.py moves it to `events`.
job_changes = Table(
    "job_changes",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("event", String(16), nullable=False),  # created, started, or the terminal status
    Column("revision", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("error_code", String(64)),
)

# The feed of all jobs. A number is visible only after all that are smaller.
events = Table(
    "events",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=False),
    Column("tenant", String(128), nullable=False),
    Column("job_id", String(128), nullable=False),
    Column("event", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("error_code", String(64)),
)
Index("events_of_tenant", events.c.tenant, events.c.number)

event_numbers = Table(
    "event_numbers",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: the only row, locked by who gives numbers
    Column("last", BigInteger, nullable=False),
)

event_horizons = Table(
    "event_horizons",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("removed", BigInteger, nullable=False),  # the greatest number of the tenant's that retention has removed
)

continuations = Table(
    "continuations",
    metadata,
    Column("server", String(512), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("version", Integer, primary_key=True),  # of the measurement
    Column("asked_at", BigInteger, nullable=False),
    Column("way", String(32)),  # how it continues, or "none"; NULL: the measurement has not ended
    Column("drops", String(16)),
    Column("echoes", Boolean),
)

schedules = Table(
    "schedules",
    metadata,
    Column("uid", String(12), primary_key=True),  # random; a part of the ids of its jobs and of Temporal's schedule
    Column("tenant", String(128), nullable=False),
    Column("id", String(64), nullable=False),
    Column("timing", Text, nullable=False),  # JSON: contracts.ScheduleTiming
    Column("request", Text),  # JSON: what each run asks
    Column("batch", Text),  # JSON: the same for batches
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("note", String(512)),  # why it was paused or resumed
    Column("deleted_at", BigInteger),  # the row goes once Temporal has no schedule
    Column("trigger_at", BigInteger),  # the time of a requested run that Temporal was not told of
    Column("triggered_at", BigInteger),  # the time of the last requested run
    # Temporal is behind while `applied` is below `revision`.
    Column("revision", Integer, nullable=False),
    Column("applied", Integer, nullable=False),
    Column("wanted_at", BigInteger, nullable=False),  # when a sweeper compares it with Temporal's
    Column("seen_at", BigInteger),  # when Temporal last had it
    Column("next_runs", Text, nullable=False),  # JSON: times of runs, as Temporal named them then
)
Index(
    "schedules_ids",
    schedules.c.tenant,
    schedules.c.id,
    unique=True,
    sqlite_where=schedules.c.deleted_at.is_(None),
    postgresql_where=schedules.c.deleted_at.is_(None),
)
Index("schedules_wanted", schedules.c.wanted_at)
