"""Uploaded files in pieces, and batch jobs as Mistral's API has them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=36), primary_key=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("filename", sa.String(length=512), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("sample_type", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("mimetype", sa.String(length=128), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("num_lines", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("batch_job", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("progressed_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
    )
    op.create_index("files_newest", "files", ["tenant", "created_at", "id"])
    op.create_index("files_oldest", "files", ["created_at"])
    op.create_index("files_of_job", "files", ["batch_job"])
    expiring = sa.text("expires_at IS NOT NULL")
    op.create_index("files_expiring", "files", ["expires_at"], sqlite_where=expiring, postgresql_where=expiring)
    unseen = sa.text("status != 'complete'")
    op.create_index("files_unseen", "files", ["progressed_at"], sqlite_where=unseen, postgresql_where=unseen)
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.String(length=36), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "batch_jobs",
        sa.Column("id", sa.String(length=36), primary_key=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("input_files", sa.Text(), nullable=False),
        sa.Column("inline", sa.Boolean(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=True),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True),
        sa.Column("lane", sa.String(length=16), nullable=False),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("batch_id", sa.String(length=128), nullable=True),
        sa.Column("errors", sa.Text(), nullable=True),
        sa.Column("cancel_requested_at", sa.BigInteger(), nullable=True),
        sa.Column("timed_out_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("settled", sa.Integer(), nullable=True),
        sa.Column("output_file", sa.String(length=36), nullable=True),
        sa.Column("error_file", sa.String(length=36), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.UniqueConstraint("tenant", "idempotency_key", name="batch_jobs_idempotency"),
    )
    op.create_index("batch_jobs_newest", "batch_jobs", ["tenant", "created_at", "id"])
    op.create_index("batch_jobs_oldest", "batch_jobs", ["created_at"])
    still_open = sa.text("settled IS NULL")
    op.create_index(
        "batch_jobs_open", "batch_jobs", ["created_at"], sqlite_where=still_open, postgresql_where=still_open
    )
