"""Which webhooks this installation sends: the settings' policy, and while nobody has a key, loopback receivers too."""

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
OWN_PORTS = {"postgresql": 5432}


class WebhookRules:
    """Called, it gives the policy in force; entered, it follows the keys that come and go.

    Without keys the service is for the people of this machine, and so may be its receivers.
    """

    def __init__(self, settings: Settings, database: Database, temporal: str | None = None) -> None:
        """``temporal`` is the server's ``host:port``; by default what the environment names."""
        temporal = temporal or ClientConfig.load_client_connect_config().get("target_host", "localhost:7233")
        self._keys = KeyStore(database)
        self._open, self._closed = (_policy(settings, temporal, loopback=loopback) for loopback in (True, False))
        self._current = self._closed

    def __call__(self) -> WebhookPolicy:
        return self._current

    async def now(self) -> WebhookPolicy:
        """For a command, which is over before anything changes. Raises StorageUnavailable."""
        await self._look()
        return self._current

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WebhookRules]:
        """Raises StorageUnavailable at first."""
        await self._look()
        task = asyncio.create_task(self._keep_looking(), name="webhook rules")
        try:
            yield self
        finally:
            await cancel_and_wait(task)

    async def _look(self) -> None:
        self._current = self._closed if await self._keys.configured() else self._open

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self._look()
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
    """``address:port`` of what a webhook must not reach even where its network is allowed."""
    found = [temporal, f"{settings.chatjobs_host}:{settings.chatjobs_port}"]
    database = urlsplit(settings.database_url)
    if database.hostname:
        found.append(f"{database.hostname}:{database.port or OWN_PORTS.get(database.scheme.partition('+')[0], 0)}")
    servers = [urlsplit(url or "") for url in (settings.chatjobs_temporal_ui, settings.mistral_server_url)]
    found += [f"{server.hostname}:{server.port}" for server in servers if server.hostname and server.port]
    found += settings.chatjobs_webhook_deny
    places = [one.rpartition(":") for one in found]
    local = [f"{name}:{port}" for host, _, port in places if _is_local(host) for name in ("127.0.0.1", "localhost")]
    return [one for one in dict.fromkeys([*found, *local]) if not one.endswith(":0")]


def _is_local(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "0.0.0.0", "::", "[::]", "::1", "[::1]")  # noqa: S104 - only asked
