"""Batches for tests, made without the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.client import Client

from chatjobs.contracts import BatchSettings
from dispatch.batches import BatchDispatch
from dispatch.stores import batch_runs
from domain.batches import BatchHash, NewBatch, new_item
from domain.names import new_batch_id
from domain.settings import Settings
from storage.batches.drafts import DraftStore
from storage.engine.database import Database


def dispatch(database: Database, client: Client) -> BatchDispatch:
    return BatchDispatch(batch_runs(Settings(), database), DraftStore(database), client)


async def submit_batch(
    database: Database, client: Client, bodies: Sequence[dict[str, Any]], tenant: str = "default", **settings: Any
) -> str:
    """The id of a batch that has begun; the items are called ``item-0``, ``item-1``, …"""
    batch_id = await store_batch(database, bodies, tenant, **settings)
    await dispatch(database, client).start(batch_id)
    return batch_id


async def store_batch(
    database: Database, bodies: Sequence[dict[str, Any]], tenant: str = "default", **settings: Any
) -> str:
    """The id of a batch that nothing has started yet."""
    batch_id, chosen = new_batch_id(), BatchSettings(**settings)
    drafts, hashes = DraftStore(database), BatchHash()
    await drafts.begin(batch_id, tenant)
    items = []
    for number, body in enumerate(bodies):
        line = {"custom_id": f"item-{number}", "body": body}
        items.append(new_item(line, number, batch_id, chosen, hashes.add(line), None))
    for first in range(0, len(items), 500):
        await drafts.add(batch_id, items[first : first + 500])
    await drafts.publish(NewBatch(batch_id, tenant, chosen, len(items), hashes.digest(chosen)))
    return batch_id
