"""What a store with a million finished jobs needs: indexes of the filters, pairs of metadata, numbers of ended jobs that
are kept up to date, and the words of prompts and answers.

Triggers record what has to be followed up, so that it does not matter which statement accepts, seals or removes a job:
pairs of metadata at once; ended jobs in ``ended_changes`` and texts in ``search_queue``, which storage/jobs/follow_up.py
works through. A batch of text sets no column that a trigger names.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

VALUE_CHARACTERS = 100
OPEN_AFTER = 5_000_000
CHARTED = 8 * 86_400 * 1_000_000


def upgrade() -> None:
    _indexes()
    _tables()
    if op.get_bind().dialect.name == "sqlite":
        _sqlite()
    else:
        _postgres()
    _fill()


def _indexes() -> None:
    op.drop_index("jobs_by_status", "jobs")  # its order was not whole: jobs of one moment are listed by their ids
    op.create_index("jobs_by_status", "jobs", ["tenant", "status", "created_at", "id"])
    op.create_index("jobs_by_model", "jobs", ["tenant", "model", "created_at", "id"])
    failed, batched = sa.text("error_code IS NOT NULL"), sa.text("batch_id IS NOT NULL")
    by_error, by_batch = ["tenant", "error_code", "created_at", "id"], ["batch_id", "created_at", "id"]
    op.create_index("jobs_by_error", "jobs", by_error, sqlite_where=failed, postgresql_where=failed)
    op.create_index("jobs_by_batch", "jobs", by_batch, sqlite_where=batched, postgresql_where=batched)


def _tables() -> None:
    op.create_table(
        "job_metadata",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("key", sa.String(length=64), primary_key=True),
        sa.Column("value_start", sa.String(length=VALUE_CHARACTERS), primary_key=True),
        sa.Column("created_at", sa.BigInteger(), primary_key=True),
        sa.Column("job_id", sa.String(length=128), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ended_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.SmallInteger(), nullable=False),
        sa.Column("charted", sa.SmallInteger(), nullable=False),
    )
    op.create_table(
        "ended_counts",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("status", sa.String(length=16), primary_key=True),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "ended_rollups",
        sa.Column("tenant", sa.String(length=128), primary_key=True),
        sa.Column("at", sa.BigInteger(), primary_key=True),
        sa.Column("figures", sa.Text(), nullable=False),
    )
    op.create_table(
        "search_queue",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("search_queue_due", "search_queue", ["due_at", "id"])
    op.create_table(
        "search_entries",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("job_id", sa.String(length=128), nullable=True, unique=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("preview", sa.Text(), nullable=True),
        sa.Column("words", sa.LargeBinary().with_variant(postgresql.TSVECTOR(), "postgresql"), nullable=True),
        sqlite_autoincrement=True,
    )
    removed = sa.text("job_id IS NULL")
    op.create_index("search_entries_removed", "search_entries", ["number"], sqlite_where=removed, postgresql_where=removed)


SQLITE_PAIRS = f"SELECT NEW.tenant, key, substr(value, 1, {VALUE_CHARACTERS}), NEW.created_at, NEW.id FROM json_each(NEW.metadata)"
SQLITE_UNPAIR = f"""
    DELETE FROM job_metadata
    WHERE tenant = OLD.tenant AND created_at = OLD.created_at AND job_id = OLD.id
    AND (key, value_start) IN (SELECT key, substr(value, 1, {VALUE_CHARACTERS}) FROM json_each(OLD.metadata));"""
CHANGE = "INSERT INTO ended_changes (tenant, job_id, status, created_at, completed_at, tokens, counted, charted)"
VALUES = "{0}.tenant, {0}.id, {0}.status, {0}.created_at, {0}.completed_at, {0}.token_count"
QUEUE = "INSERT INTO search_queue (job_id, due_at)"
SQLITE = f"""
CREATE TRIGGER jobs_accepted AFTER INSERT ON jobs WHEN NEW.completed_at IS NULL BEGIN
    {QUEUE} VALUES (NEW.id, NEW.created_at + {OPEN_AFTER});
END
---
CREATE TRIGGER jobs_paired AFTER INSERT ON jobs WHEN NEW.metadata <> '{{}}' BEGIN
    INSERT INTO job_metadata {SQLITE_PAIRS};
END
---
CREATE TRIGGER jobs_paired_again AFTER UPDATE OF metadata ON jobs WHEN OLD.metadata <> NEW.metadata BEGIN
    {SQLITE_UNPAIR}
    INSERT INTO job_metadata {SQLITE_PAIRS};
END
---
CREATE TRIGGER jobs_inserted_ended AFTER INSERT ON jobs WHEN NEW.completed_at IS NOT NULL BEGIN
    {CHANGE} VALUES ({VALUES.format("NEW")}, 1, 1);
    {QUEUE} VALUES (NEW.id, NEW.completed_at);
END
---
CREATE TRIGGER jobs_sealed AFTER UPDATE OF completed_at ON jobs
WHEN OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL BEGIN
    {CHANGE} VALUES ({VALUES.format("NEW")}, 1, 1);
    {QUEUE} VALUES (NEW.id, NEW.completed_at);
END
---
CREATE TRIGGER jobs_reopened AFTER UPDATE OF completed_at ON jobs
WHEN OLD.completed_at IS NOT NULL AND NEW.completed_at IS NULL BEGIN
    {CHANGE} VALUES ({VALUES.format("OLD")}, -1, -1);
    {QUEUE} VALUES (NEW.id, OLD.completed_at);
END
---
CREATE TRIGGER jobs_removed AFTER DELETE ON jobs WHEN OLD.completed_at IS NOT NULL BEGIN
    {CHANGE} VALUES ({VALUES.format("OLD")}, -1, 0);
END
---
CREATE TRIGGER jobs_unpaired AFTER DELETE ON jobs WHEN OLD.metadata <> '{{}}' BEGIN
    {SQLITE_UNPAIR}
END
"""
FTS5 = """
CREATE VIRTUAL TABLE job_words
USING fts5(words, content='', columnsize=0, detail=none, tokenize='ascii')
"""


def _sqlite() -> None:
    for statement in SQLITE.split("---"):
        op.execute(sa.text(statement.replace(":", "\\:")))
    modules = {row[0] for row in op.get_bind().execute(sa.text("PRAGMA module_list"))}
    if "fts5" in modules:  # without it everything works but the search
        op.execute(FTS5)


PAIRS = f"""
    INSERT INTO job_metadata (tenant, key, value_start, created_at, job_id)
    SELECT {{0}}.tenant, pair.key, left(pair.value, {VALUE_CHARACTERS}), {{0}}.created_at, {{0}}.id
    FROM {{0}}, jsonb_each_text({{0}}.metadata) pair"""
UNPAIR = f"""
    DELETE FROM job_metadata USING {{0}}, jsonb_each_text({{1}}.metadata) pair
    WHERE job_metadata.tenant = {{1}}.tenant AND job_metadata.key = pair.key
    AND job_metadata.value_start = left(pair.value, {VALUE_CHARACTERS})
    AND job_metadata.created_at = {{1}}.created_at AND job_metadata.job_id = {{1}}.id;"""
POSTGRES = f"""
CREATE FUNCTION jobs_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {QUEUE} SELECT id, coalesce(completed_at, created_at + {OPEN_AFTER}) FROM fresh;
    {PAIRS.format("fresh")};
    {CHANGE} SELECT {VALUES.format("fresh")}, 1, 1 FROM fresh WHERE completed_at IS NOT NULL;
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION jobs_inserted()
---
CREATE FUNCTION jobs_sealed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {CHANGE} VALUES ({VALUES.format("NEW")}, 1, 1);
    {QUEUE} VALUES (NEW.id, NEW.completed_at);
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_sealed AFTER UPDATE OF completed_at ON jobs FOR EACH ROW
WHEN (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL) EXECUTE FUNCTION jobs_sealed()
---
CREATE FUNCTION jobs_reopened() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {CHANGE} VALUES ({VALUES.format("OLD")}, -1, -1);
    {QUEUE} VALUES (NEW.id, OLD.completed_at);
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_reopened AFTER UPDATE OF completed_at ON jobs FOR EACH ROW
WHEN (OLD.completed_at IS NOT NULL AND NEW.completed_at IS NULL) EXECUTE FUNCTION jobs_reopened()
---
CREATE FUNCTION jobs_paired_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {UNPAIR.format("(SELECT OLD.*) was", "was")}
    INSERT INTO job_metadata (tenant, key, value_start, created_at, job_id)
    SELECT NEW.tenant, pair.key, left(pair.value, {VALUE_CHARACTERS}), NEW.created_at, NEW.id
    FROM jsonb_each_text(NEW.metadata) pair;
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_paired_again AFTER UPDATE OF metadata ON jobs FOR EACH ROW
WHEN (OLD.metadata <> NEW.metadata) EXECUTE FUNCTION jobs_paired_again()
---
CREATE FUNCTION jobs_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {UNPAIR.format("gone", "gone")}
    {CHANGE} SELECT {VALUES.format("gone")}, -1, 0 FROM gone WHERE completed_at IS NOT NULL;
    RETURN NULL;
END $$
---
CREATE TRIGGER jobs_removed AFTER DELETE ON jobs REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION jobs_removed()
"""


def _postgres() -> None:
    for statement in POSTGRES.split("---"):
        op.get_bind().exec_driver_sql(statement)
    op.create_index("search_entries_words", "search_entries", ["words"], postgresql_using="gin")


def _fill() -> None:
    """Follow up on the jobs that are there: their pairs and their number at once, charts and texts in the background."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    pairs = f"""
        INSERT INTO job_metadata SELECT jobs.tenant, key, substr(value, 1, {VALUE_CHARACTERS}), jobs.created_at, jobs.id
        FROM jobs, json_each(jobs.metadata)"""
    op.execute(pairs if sqlite else PAIRS.format("jobs"))
    ended = "WHERE completed_at IS NOT NULL"
    op.execute(f"INSERT INTO ended_counts SELECT tenant, status, count(*) FROM jobs {ended} GROUP BY tenant, status")
    newest = f"(SELECT max(completed_at) FROM jobs) - {CHARTED}"
    op.execute(f"{CHANGE} SELECT {VALUES.format('jobs')}, 0, 1 FROM jobs {ended} AND completed_at > {newest}")
    op.execute(f"{QUEUE} SELECT id, created_at FROM jobs WHERE deleted_at IS NULL ORDER BY created_at, id")
