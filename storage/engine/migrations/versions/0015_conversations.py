"""Conversations: the job before, and the first job of the thread. Jobs from before begin threads of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("previous_job_id", sa.String(length=128), nullable=True))
    op.add_column("jobs", sa.Column("thread", sa.String(length=128), nullable=True))
    in_thread = sa.text("thread IS NOT NULL")
    op.create_index(
        "jobs_of_thread",
        "jobs",
        ["thread", "created_at", "id"],
        sqlite_where=in_thread,
        postgresql_where=in_thread,
    )
