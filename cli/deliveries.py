"""The commands `redeliver`, `endpoints` and `webhooks test`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from activities.example_webhook import post_example
from activities.webhook import all_secrets
from chatjobs.contracts import Endpoint, EndpointList, EndpointRequest, Redelivering, Redelivery, WebhookTest, WireModel
from chatjobs.errors import DeliveryNotFound
from chatjobs.webhooks import check_secret
from cli.output import Records, complain, console, local_time, one_line, safe, write
from cli.place import ServiceLocation
from dispatch.webhook_rules import WebhookRules, signing_secrets
from domain.names import DELIVERY_PREFIX
from domain.ports import WebhookSender
from storage.engine.database import Database
from storage.engine.schema import now
from storage.webhooks.deliveries import DeliveryStore
from storage.webhooks.endpoints import EndpointStore
from storage.webhooks.tenant_endpoints import TenantEndpointStore

OK, NOT_DELIVERED = 0, 1
COLOURS = {"ok": "green", "failing": "yellow", "disabled": "red"}

SenderOf = Callable[[WebhookRules], AbstractAsyncContextManager[WebhookSender]]
"""Makes the sender that applies these rules; the entry point knows the class."""


class WebhookCommands:
    """Each command is a method that prints and returns the exit code. Workers and gateways act on stored changes."""

    def __init__(self, place: ServiceLocation, database: Database, *, as_json: bool) -> None:
        self._place = place
        self._database = database
        self._deliveries = DeliveryStore(database)
        self._endpoints = EndpointStore(database)
        self._of_all_jobs = TenantEndpointStore(database)
        self._default_tenant = place.settings.chatjobs_direct_tenant
        self._as_json = as_json

    async def redeliver(self, name: str) -> int:
        """``name`` is a delivery's id or a job's."""
        return self._report(Redelivering(count=await self._redeliver(name)))

    async def redeliver_some(self, chosen: Redelivery, tenant: str | None) -> int:
        return self._report(await self._deliveries.redeliver_some(chosen, tenant or self._default_tenant))

    async def list_endpoints(self, tenant: str | None) -> int:
        found = await self._endpoints.list(tenant or self._default_tenant)
        if self._as_json:
            self._print(EndpointList(endpoints=tuple(found)))
        elif found:
            console().print(_table(found))
        else:
            complain("no webhook was sent lately")
        return OK

    async def enable(self, url: str, tenant: str | None) -> int:
        enabled = await self._endpoints.enable(tenant or self._default_tenant, url)
        if self._as_json:
            self._print(enabled)
        else:
            write(f"{safe(enabled.url)} enabled\n")
            complain("what failed meanwhile is not sent by itself: `starter.py redeliver --since … --url …`")
        return OK

    async def add_endpoint(self, wanted: EndpointRequest, tenant: str | None) -> int:
        """Raises InvalidSecret, WebhookUrlRefused, TooManyEndpoints."""
        owner = tenant or self._default_tenant
        if wanted.secret is not None:
            check_secret(wanted.secret)
        url = (await self._place.webhook_rules(self._database).now()).check(wanted.url)
        new = await self._of_all_jobs.put(owner, wanted.model_copy(update={"url": url}))
        added = await self._endpoints.get(owner, url)
        if self._as_json:
            self._print(added)
        else:
            events = ", ".join(event.value for event in added.events or ())
            write(f"{safe(url)} {'added' if new else 'changed'}: {events}\n")
        return OK

    async def remove_endpoint(self, url: str, tenant: str | None) -> int:
        """Raises EndpointNotFound."""
        owner = tenant or self._default_tenant
        await self._of_all_jobs.delete(owner, url)
        count = await self._deliveries.give_up(owner, url, now())
        write(f"{safe(url)} removed; {count} {'delivery' if count == 1 else 'deliveries'} to it given up\n")
        return OK

    async def test(self, url: str, tenant: str | None, sender_of: SenderOf) -> int:
        """Send a test event from this process, by the service's rules and secrets. Raises WebhookUrlRefused."""
        rules = self._place.webhook_rules(self._database)
        url = (await rules.now()).check(url)
        settings, owner = self._place.service_settings, tenant or self._default_tenant
        own = await self._of_all_jobs.secrets_of(owner, url) or (None,)
        secrets = await all_secrets(own, owner, partial(signing_secrets, settings, self._database))
        async with sender_of(rules) as sender:
            result = await post_example(sender, url, secrets)
        if self._as_json:
            self._print(result)
        else:
            write(f"{_test_line(result)}\n")
            if result.advice:
                complain(safe(result.advice))
        return OK if result.delivered else NOT_DELIVERED

    async def _redeliver(self, name: str) -> int:
        if name.startswith(DELIVERY_PREFIX):
            with suppress(DeliveryNotFound):
                await self._deliveries.redeliver(name, notifying=False)
                return 1
        return len(await self._deliveries.redeliver_job(name, notifying=False))

    def _report(self, made: Redelivering) -> int:
        if self._as_json:
            self._print(made)
            return OK
        write(f"{made.count} {'delivery' if made.count == 1 else 'deliveries'} will be made again\n")
        if made.more:
            complain("there are more: give this command again")
        return OK

    def _print(self, value: WireModel) -> None:
        write(f"{one_line(value.model_dump(mode='json'))}\n")


def _test_line(result: WebhookTest) -> str:
    """``delivered: answered 204 in 12 ms``; ``not delivered: connect_error``."""
    answer = f"answered {result.status_code}" if result.status_code else ""
    why = ", ".join(filter(None, (answer, safe(result.error or ""))))
    took = f" in {result.latency_ms} ms" if result.latency_ms else ""
    return f"{'delivered' if result.delivered else 'not delivered'}: {why}{took}"


def _table(endpoints: Sequence[Endpoint]) -> RenderableType:
    table = Records("status", "to", "gets", "delivered", "failed", "since", "last error")
    for one in endpoints:
        status = Text(one.status + (f" ({one.disabled_reason})" if one.disabled_reason else ""), COLOURS[one.status])
        counts = (str(one.successes), str(one.failures))
        since = local_time(one.disabled_at or one.failing_since)
        gets = "its jobs" if one.events is None else f"all jobs, {len(one.events)} events"
        table.add_row(status, safe(one.url), gets, *counts, since, safe(one.last_error or ""))
    return table
