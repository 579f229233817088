"""How servers of models continue an interrupted answer, as it was measured."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "continuations",
        sa.Column("server", sa.String(length=512), primary_key=True),
        sa.Column("model", sa.String(length=128), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("way", sa.String(length=32), nullable=True),
        sa.Column("drops", sa.String(length=16), nullable=True),
        sa.Column("echoes", sa.Boolean(), nullable=True),
    )
