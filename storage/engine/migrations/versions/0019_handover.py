"""The model of each attempt, the epoch of its text, and how surely it went on from the text before it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("model", sa.String(length=64), nullable=True))
    op.add_column("attempts", sa.Column("epoch", sa.Integer(), nullable=True))
    op.add_column("attempts", sa.Column("confirmed", sa.Boolean(), nullable=True))
