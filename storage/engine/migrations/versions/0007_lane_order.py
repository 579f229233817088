"""The order of a lane's waiters, the breaker of a lane, and the end of a job's time in the queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("queue_until", sa.BigInteger(), nullable=True))
    waiting = sa.text("queue_until IS NOT NULL")
    op.create_index("jobs_queue_until", "jobs", ["queue_until"], sqlite_where=waiting, postgresql_where=waiting)
    op.add_column("attempts", sa.Column("excused", sa.Boolean(), nullable=False, server_default=sa.false()))
    for name in ("shifted", "failures", "openings", "open_until", "probe_until"):
        op.add_column("lanes", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("lanes", sa.Column("probe", sa.String(length=128), nullable=True))
    op.add_column("lanes", sa.Column("suspects", sa.Text(), nullable=True))
    op.add_column("lanes", sa.Column("last_error", sa.String(length=256), nullable=True))
    op.drop_index("lane_waiters_lane", "lane_waiters")
    op.drop_table("lane_waiters")  # waiters enter again when they ask
    op.create_table(
        "lane_waiters",
        sa.Column("job_id", sa.String(length=128), primary_key=True),
        sa.Column("lane", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("tag", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("asks_at", sa.BigInteger(), nullable=False),
        sa.Column("near", sa.Boolean(), nullable=False),
    )
    op.create_index("lane_waiters_order", "lane_waiters", ["lane", "priority", "tag", "since", "job_id"])
    op.create_index(
        "lane_waiters_near",
        "lane_waiters",
        ["lane"],
        sqlite_where=sa.text("near = 1"),
        postgresql_where=sa.text("near"),
    )
    op.create_table(
        "lane_classes",
        sa.Column("lane", sa.String(length=128), primary_key=True),
        sa.Column("priority", sa.SmallInteger(), primary_key=True),
        sa.Column("tag", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "lane_tenants",
        sa.Column("lane", sa.String(length=128), primary_key=True),
        sa.Column("priority", sa.SmallInteger(), primary_key=True),
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("tag", sa.BigInteger(), nullable=False),
    )
