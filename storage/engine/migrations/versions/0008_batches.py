"""Batches and their items, and jobs that a batch runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("batched", sa.Boolean(), nullable=False, server_default=sa.false()))
    some = sa.text("batch_id IS NOT NULL")
    op.create_index("jobs_batch", "jobs", ["batch_id", "status"], sqlite_where=some, postgresql_where=some)
    op.create_table(
        "batches",
        sa.Column("id", sa.String(length=128), primary_key=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.Column("lane", sa.String(length=16), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("prepared", sa.Integer(), nullable=False),
        sa.Column("tally", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("workflow_started_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("progressed_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("cancel_requested_at", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("sealed_by", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.UniqueConstraint("tenant", "idempotency_key", name="batches_idempotency"),
    )
    op.create_index("batches_newest", "batches", ["tenant", "created_at", "id"])
    still_open = sa.text("completed_at IS NULL")
    op.create_index(
        "batches_open", "batches", ["progressed_at"], sqlite_where=still_open, postgresql_where=still_open
    )
    op.create_table(
        "batch_items",
        sa.Column("batch_id", sa.String(length=128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("custom_id", sa.String(length=512), nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("max_lost", sa.SmallInteger(), nullable=False),
        sa.Column("queue_time", sa.BigInteger(), nullable=True),
        sa.UniqueConstraint("batch_id", "custom_id", name="batch_items_custom_id"),
        sqlite_with_rowid=False,
    )
