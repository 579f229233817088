"""What the model's server sent beside an answer, in fields that the service does not know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("results", sa.Column("extra", sa.Text(), nullable=True))
