"""Delayed jobs; pauses; the calls that run in a lane, and its budget of tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("start_at", sa.BigInteger(), nullable=True))
    op.drop_index("jobs_open", "jobs")
    _index("jobs", "jobs_open", "created_at", "completed_at IS NULL AND (start_at IS NULL OR workflow_started_at IS NOT NULL)")
    delayed = "start_at IS NOT NULL AND workflow_started_at IS NULL AND completed_at IS NULL"
    _index("jobs", "jobs_delayed", "start_at", delayed)
    op.add_column("attempts", sa.Column("lane", sa.String(length=128), nullable=True))
    op.add_column("attempts", sa.Column("worker", sa.String(length=32), nullable=True))
    _index("attempts", "attempts_running", "lane", "ended_at IS NULL AND lane IS NOT NULL")
    op.create_table(
        "worker_leases",
        sa.Column("id", sa.String(length=32), primary_key=True),
        sa.Column("until", sa.BigInteger(), nullable=False),
    )
    op.add_column("lanes", sa.Column("at_once", sa.Integer(), nullable=True))
    op.add_column("lanes", sa.Column("tokens_set_to", sa.BigInteger(), nullable=True))
    op.add_column("lanes", sa.Column("tokens_seen", sa.BigInteger(), nullable=True))
    op.add_column("lanes", sa.Column("token_spends", sa.Text(), nullable=True))
    op.add_column("lanes", sa.Column("typical_answer", sa.Integer(), nullable=True))
    op.add_column("lane_waiters", sa.Column("tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("lane_waiters", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "pauses",
        sa.Column("id", sa.String(length=32), primary_key=True),
        sa.Column("lane", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.BigInteger(), nullable=False),
        sa.Column("paused_by", sa.String(length=64), nullable=False),
        sa.UniqueConstraint("lane", "tenant", name="pauses_scope"),
    )


def _index(table: str, name: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)
