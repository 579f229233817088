"""Events of all jobs, and endpoints that get the webhooks of all jobs of a tenant.

Triggers record in ``job_changes`` that a job was created, started or ended, so that it does not matter which statement
does it, and no transaction has a statement more. storage/events/sequencer.py gives the changes their numbers.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("begun", sa.Integer(), nullable=True))
    op.add_column("deliveries", sa.Column("of_endpoint", sa.Boolean(), nullable=False, server_default=sa.false()))
    _tables()
    op.execute("INSERT INTO event_numbers (id, last) VALUES (1, 0)")
    if op.get_bind().dialect.name == "sqlite":
        for statement in SQLITE.split("---"):
            op.execute(sa.text(statement.replace(":", "\\:")))
    else:
        for statement in POSTGRES.split("---"):
            op.get_bind().exec_driver_sql(statement)


def _change() -> list[sa.Column[Any]]:
    return [
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
    ]


def _tables() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table("job_changes", sa.Column("id", number, primary_key=True), *_change())
    op.create_table("events", sa.Column("number", number, primary_key=True, autoincrement=False), *_change())
    op.create_index("events_of_tenant", "events", ["tenant", "number"])
    op.create_table(
        "event_numbers",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "event_horizons",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("removed", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "tenant_endpoints",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("url", sa.String(length=2048), primary_key=True),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("secrets", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
    )


RECORD = "INSERT INTO job_changes (tenant, job_id, event, revision, at, error_code)"
SQLITE = f"""
CREATE TRIGGER jobs_created_event AFTER INSERT ON jobs WHEN NEW.completed_at IS NULL BEGIN
    {RECORD} VALUES (NEW.tenant, NEW.id, 'created', NEW.revision, NEW.created_at, NULL);
END
---
CREATE TRIGGER jobs_started_event AFTER UPDATE OF begun ON jobs WHEN NEW.begun IS NOT OLD.begun BEGIN
    {RECORD} VALUES (NEW.tenant, NEW.id, 'started', NEW.revision, NEW.started_at, NULL);
END
---
CREATE TRIGGER jobs_ended_event AFTER UPDATE OF completed_at ON jobs
WHEN OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL BEGIN
    {RECORD} VALUES (NEW.tenant, NEW.id, NEW.status, NEW.revision, NEW.completed_at, NEW.error_code);
END
"""
POSTGRES = f"""
CREATE FUNCTION jobs_created_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {RECORD} SELECT tenant, id, 'created', revision, created_at, NULL FROM fresh WHERE completed_at IS NULL;
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_created_event AFTER INSERT ON jobs REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION jobs_created_event()
---
CREATE FUNCTION jobs_started_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {RECORD} VALUES (NEW.tenant, NEW.id, 'started', NEW.revision, NEW.started_at, NULL);
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_started_event AFTER UPDATE OF begun ON jobs FOR EACH ROW
WHEN (NEW.begun IS DISTINCT FROM OLD.begun) EXECUTE FUNCTION jobs_started_event()
---
CREATE FUNCTION jobs_ended_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {RECORD} VALUES (NEW.tenant, NEW.id, NEW.status, NEW.revision, NEW.completed_at, NEW.error_code);
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_ended_event AFTER UPDATE OF completed_at ON jobs FOR EACH ROW
WHEN (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL) EXECUTE FUNCTION jobs_ended_event()
"""
