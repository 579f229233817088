"""What the ledger says of failures: their messages, how far each attempt came, and how many workers may die."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("max_lost", sa.SmallInteger(), nullable=False, server_default="5"))
    op.add_column("attempts", sa.Column("position", sa.BigInteger(), nullable=True))
    op.add_column("attempts", sa.Column("message", sa.Text(), nullable=True))
