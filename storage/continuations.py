"""How servers of models continue an interrupted answer, as it was measured: once per server, model and version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from domain.text import clean
from storage.engine.database import Database, retried
from storage.engine.schema import continuations, jobs, micros, now

LONGEST = timedelta(minutes=10)
"""A measurement that has no result after so long was that of a process that died: its calls take 7 minutes at most."""
LOOKED_AT = 200
"""Jobs that have not ended, whose models are the ones in use."""


@dataclass(frozen=True, slots=True)
class MeasuredPractice:
    """What was seen of a model: the names are those of domain/continuing.py."""

    model: str
    way: str
    drops: str
    echoes: bool | None
    formats: frozenset[str] | None = None


class ContinuationStore:
    """The measurements of one ``server`` by one ``version`` of the measurement."""

    def __init__(self, database: Database, server: str, version: int) -> None:
        self._database = database
        self._server = clean(server)
        self._version = version

    async def measured(self) -> Sequence[MeasuredPractice]:
        """All that have ended."""
        query = select(continuations).where(
            continuations.c.server == self._server,
            continuations.c.version == self._version,
            continuations.c.way.is_not(None),
        )
        async with self._database.single() as connection:
            rows = (await connection.execute(query)).all()
        return [_measured(row) for row in rows]

    @retried
    async def begin(self, model: str) -> bool:
        """Whether the caller measures a model: no process has begun to before, or the one that had is gone."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        time = now()
        row = dialect.insert(continuations).values({**self._key(model), "asked_at": micros(time)})
        gone = (continuations.c.way.is_(None)) & (continuations.c.asked_at < micros(time - LONGEST))
        made = row.on_conflict_do_update(
            index_elements=["server", "model", "version"], set_={"asked_at": micros(time)}, where=gone
        ).returning(continuations.c.model)
        async with self._database.write("fast") as connection:
            return await connection.scalar(made) is not None

    @retried
    async def forget(self, model: str) -> None:
        """Delete the record that a measurement was begun."""
        async with self._database.write("fast") as connection:
            await connection.execute(delete(continuations).where(*self._is(model)))

    @retried
    async def end(self, found: MeasuredPractice) -> None:
        """Store the result of a measurement, in place of the one before."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        formats = None if found.formats is None else " ".join(sorted(found.formats))
        values: dict[str, Any] = {"way": found.way, "drops": found.drops, "echoes": found.echoes, "formats": formats}
        values["asked_at"] = micros(now())
        row = dialect.insert(continuations).values(self._key(found.model) | values)
        kept = row.on_conflict_do_update(index_elements=["server", "model", "version"], set_=values)
        async with self._database.write("fast") as connection:
            await connection.execute(kept)

    async def models_in_use(self, limit: int) -> Sequence[str]:
        """The models of jobs that have not ended."""
        newest = select(jobs.c.model).where(jobs.c.completed_at.is_(None)).order_by(jobs.c.created_at.desc())
        async with self._database.single() as connection:
            rows = (await connection.execute(newest.limit(LOOKED_AT))).all()
        return list(dict.fromkeys(row.model for row in rows))[:limit]

    def _key(self, model: str) -> dict[str, str | int]:
        return {"server": self._server, "model": clean(model), "version": self._version}

    def _is(self, model: str) -> Sequence[ColumnElement[bool]]:
        return [continuations.c[name] == value for name, value in self._key(model).items()]


def _measured(row: Row[Any]) -> MeasuredPractice:
    formats = None if row.formats is None else frozenset(row.formats.split())
    return MeasuredPractice(row.model, row.way, row.drops, row.echoes, formats)
