"""An index for the ended jobs that are not folded yet: after many changes on Postgres the table has empty pages, which a
count would read through."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_index("ended_changes_tenant", "ended_changes", ["tenant", "status", "counted"])
