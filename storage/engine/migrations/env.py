"""Alembic's entry: migrates over the connection that storage/engine/migrate.py hands it."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
