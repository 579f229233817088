"""Jobs that are runs of a cron or Schedule: the workflow id is not the job's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("workflow_id", sa.String(length=160), nullable=True))
    op.add_column("jobs", sa.Column("workflow_run_id", sa.String(length=64), nullable=True))
