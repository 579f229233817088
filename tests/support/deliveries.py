"""Deliveries as their job's list shows them."""

from __future__ import annotations

from sqlalchemy import select

from chatjobs.contracts import Delivery
from storage.engine.schema import deliveries as table
from storage.webhooks.deliveries import DeliveryStore


async def stored_delivery(deliveries: DeliveryStore, delivery_id: str) -> Delivery:
    async with deliveries._database.read() as connection:
        job_id = await connection.scalar(select(table.c.job_id).where(table.c.id == delivery_id))
    (found,) = [one for one in await deliveries.of_job(str(job_id)) if one.id == delivery_id]
    return found
