"""Rate limits shared by all workers, and how webhook endpoints do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), nullable=False, server_default="3"))
    op.add_column("deliveries", sa.Column("wanted_at", sa.BigInteger(), nullable=True))
    wanted = sa.text("wanted_at IS NOT NULL")
    op.create_index("deliveries_wanted", "deliveries", ["wanted_at"], sqlite_where=wanted, postgresql_where=wanted)
    op.create_index("deliveries_newest", "deliveries", ["tenant", "created_at", "id"])
    op.create_table(
        "lanes",
        sa.Column("name", sa.String(length=128), primary_key=True),
        sa.Column("free_at", sa.BigInteger(), nullable=False),
        sa.Column("paused_until", sa.BigInteger(), nullable=False),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("set_to", sa.Float(), nullable=True),
        sa.Column("seen", sa.Float(), nullable=True),
    )
    op.create_table(
        "lane_waiters",
        sa.Column("job_id", sa.String(length=128), primary_key=True),
        sa.Column("lane", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("comes_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("lane_waiters_lane", "lane_waiters", ["lane"])
    op.create_table(
        "endpoints",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("url", sa.String(length=2048), primary_key=True),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("successes", sa.Integer(), nullable=False),
        sa.Column("last_success_at", sa.BigInteger(), nullable=True),
        sa.Column("last_failure_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.String(length=512), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_reason", sa.String(length=64), nullable=True),
    )
