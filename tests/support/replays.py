"""Replays for tests, made without the gateway."""

from __future__ import annotations

from typing import Any

from chatjobs.contracts import ReplayFilter, ReplayRequest, parse
from domain.names import new_batch_id
from domain.replays import NewReplay
from storage.batches.replays import ReplayStore
from storage.engine.database import Database

FAILED = {"status": "failed"}


def asked(chosen: dict[str, Any] | None = None, **fields: Any) -> ReplayRequest:
    """A request for a replay; without a filter, of all failed jobs."""
    return parse(ReplayRequest, {"filter": chosen or FAILED, **fields})


def chosen(**fields: Any) -> ReplayFilter:
    return parse(ReplayFilter, fields)


async def store_replay(database: Database, request: ReplayRequest, *, key: str | None = None, tag: str = "") -> str:
    """The id of a replay that nothing has started yet. ``tag`` is its hash."""
    replay = NewReplay(new_batch_id(), "default", request, tag, key)
    return (await ReplayStore(database).create(replay)).batch_id
