"""Roles of keys. Keys from before may do what they could: everything but administration."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.String(length=16), nullable=False, server_default="write"))
    op.add_column("api_keys", sa.Column("changes", sa.Integer(), nullable=False, server_default="0"))
