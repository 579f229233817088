"""The webhook policy of this installation: the settings', and loopback receivers too while there are no keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from temporalio.envconfig import ClientConfig

from domain.errors import StorageUnavailable
from domain.settings import Settings
from domain.tasks import cancel_and_wait
from domain.webhook_urls import WebhookPolicy
from storage.engine.database import Database
from storage.keys import KeyStore, SecretStore

log = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
DATABASE_PORTS = {"postgresql": 5432}
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::", "[::]", "::1", "[::1]"})  # noqa: S104 - not bound


class WebhookRules:
    """The policy in force, returned by a call of the object; ``running`` keeps it up to date.

    A service without keys is for the users of this machine, so its receivers may be on it too.
    """

    def __init__(self, settings: Settings, database: Database, temporal: str | None = None) -> None:
        """``temporal`` is the server's ``host:port``; by default the environment's."""
        temporal = temporal or ClientConfig.load_client_connect_config().get("target_host", "localhost:7233")
        self._keys = KeyStore(database)
        self._keyless, self._keyed = (_policy(settings, temporal, loopback=loopback) for loopback in (True, False))
        self._current = self._keyed

    def __call__(self) -> WebhookPolicy:
        return self._current

    async def now(self) -> WebhookPolicy:
        """The policy at this moment, for a short-lived command. Raises StorageUnavailable."""
        await self._refresh()
        return self._current

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WebhookRules]:
        """Refresh the policy while the block runs. Raises StorageUnavailable at its beginning."""
        await self._refresh()
        task = asyncio.create_task(self._poll(), name="webhook rules")
        try:
            yield self
        finally:
            await cancel_and_wait(task)

    async def _refresh(self) -> None:
        self._current = self._keyed if await self._keys.configured() else self._keyless

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._refresh()
            except StorageUnavailable as error:
                log.warning("webhook rules stay as they are: %s", error, extra={"action": "webhook_rules_wait"})


async def signing_secrets(settings: Settings, database: Database, tenant: str) -> Sequence[str]:
    """A tenant's signing secrets, newest first. Raises StorageUnavailable."""
    if tenant != settings.chatjobs_direct_tenant:
        return await SecretStore(database).secrets_of(tenant)
    return [secret.get_secret_value() for secret in settings.webhook_secret]


def _policy(settings: Settings, temporal: str, *, loopback: bool) -> WebhookPolicy:
    public = urlsplit(settings.chatjobs_public_url or "").hostname
    return WebhookPolicy(
        allow=settings.chatjobs_webhook_allow,
        allow_http=settings.chatjobs_webhook_http,
        loopback=loopback,
        own_hosts=(public,) if public else (),
        deny=tuple(_own_servers(settings, temporal)),
    )


def _own_servers(settings: Settings, temporal: str) -> list[str]:
    """``address:port`` of the servers that a webhook must not reach even if their network is allowed."""
    found = [temporal, f"{settings.chatjobs_host}:{settings.chatjobs_port}"]
    database = urlsplit(settings.database_url)
    if database.hostname:
        found.append(f"{database.hostname}:{database.port or DATABASE_PORTS.get(database.scheme.partition('+')[0], 0)}")
    servers = [urlsplit(url or "") for url in (settings.chatjobs_temporal_ui, settings.mistral_server_url)]
    found += [f"{server.hostname}:{server.port}" for server in servers if server.hostname and server.port]
    found += settings.chatjobs_webhook_deny
    places = [one.rpartition(":") for one in found]
    ports = [port for host, _, port in places if host in LOCAL_HOSTS]
    local = [f"{name}:{port}" for port in ports for name in ("127.0.0.1", "localhost")]
    return [one for one in dict.fromkeys([*found, *local]) if not one.endswith(":0")]
