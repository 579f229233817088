"""Whole answers that were not the JSON that they were to be, each with what is wrong: the next attempt repairs it.

They stay until the content of their job is deleted: a failed job may be reopened, and goes on with the last one.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.text import clean
from domain.values import Repair
from storage.engine.schema import repairs

LATEST = select(repairs).where(repairs.c.job_id == bindparam("key")).order_by(repairs.c.number.desc()).limit(1)


async def keep(connection: AsyncConnection, row: Row[Any], number: int, repair: Repair) -> None:
    """Store the answer of attempt ``number``, unless that was done before."""
    known = await latest(connection, row.id)
    if known is not None and known.number >= number:
        return
    values = {"epoch": repair.epoch, "content": clean(repair.content), "problem": clean(repair.problem)}
    await connection.execute(insert(repairs).values(job_id=row.id, number=number, **values))


async def latest(connection: AsyncConnection, job_id: str) -> Repair | None:
    """The newest of a job."""
    row = (await connection.execute(LATEST, {"key": job_id})).first()
    return None if row is None else Repair(row.epoch, row.content, row.problem, row.number)
