"""Delayed jobs: those whose ``startAt`` is ahead, by the database's clock where several machines share one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.engine.database import Database


async def seconds_ahead(database: Database, connection: AsyncConnection, row: Row[Any]) -> float:
    """Seconds until a job of this row may call the model for the first time; 0 or less if it may."""
    if row.start_at is None or row.attempt:
        return 0.0
    return float(row.start_at - await database.time(connection)) / 1e6
