"""What a job's request had as a request for one of OpenAI's responses, beside the parameters of the job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    not_kept = sa.text("NOT kept")
    op.create_index(
        "responses_not_kept", "responses", ["job_id"], sqlite_where=not_kept, postgresql_where=not_kept
    )
