"""Replays of many jobs, batches and jobs that go on after their end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("inline_workflow_id", sa.String(length=160), nullable=True))
    op.add_column("jobs", sa.Column("inline_run_id", sa.String(length=64), nullable=True))
    op.add_column("batches", sa.Column("reopened", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("kind", sa.String(length=16), nullable=False, server_default="batch"))
    op.add_column("batches", sa.Column("filter", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("overrides", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("canary", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("max_error_rate", sa.Float(), nullable=True))
    op.add_column("batches", sa.Column("phase", sa.String(length=8), nullable=True))
    op.add_column("batches", sa.Column("judged", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("gather_after", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("skipped", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("batch_items", sa.Column("problem", sa.Text(), nullable=True))
