"""Schedules, and the schedule of a job and of a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("schedule_id", sa.String(length=64), nullable=True))
    scheduled = sa.text("schedule_id IS NOT NULL")
    op.create_index(
        "jobs_of_schedule",
        "jobs",
        ["tenant", "schedule_id", "created_at"],
        sqlite_where=scheduled,
        postgresql_where=scheduled,
    )
    op.add_column("batches", sa.Column("schedule_id", sa.String(length=64), nullable=True))
    op.create_index(
        "batches_of_schedule",
        "batches",
        ["tenant", "schedule_id", "created_at"],
        sqlite_where=scheduled,
        postgresql_where=scheduled,
    )
    op.create_table(
        "schedules",
        sa.Column("uid", sa.String(length=12), primary_key=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("timing", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("batch", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("note", sa.String(length=512), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("trigger_at", sa.BigInteger(), nullable=True),
        sa.Column("triggered_at", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("applied", sa.Integer(), nullable=False),
        sa.Column("wanted_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("next_runs", sa.Text(), nullable=False),
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "schedules_ids", "schedules", ["tenant", "id"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_index("schedules_wanted", "schedules", ["wanted_at"])
