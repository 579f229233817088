"""Where the running service's Temporal and database are, by the environment or by the files of `make run`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from temporalio.client import Client

from chatjobs.errors import ConfigurationError
from cli.endpoints_file import TEMPORAL_VARIABLES, LocalService
from dispatch.temporal import RunLinks, configured, connect, dial, silence_core
from dispatch.webhook_rules import WebhookRules
from domain.errors import StorageUnavailable, TemporalUnavailable
from domain.settings import Settings, problems
from storage.engine.database import Database

CONNECT_SECONDS = 5.0
DIAL_SECONDS = 2.0
NOTHING_RUNS = "Is `make run` running, with the same CHATJOBS_DATA_DIR?"


def find() -> ServiceLocation:
    """The location by this process's environment. Raises ConfigurationError."""
    try:
        return ServiceLocation(Settings(), os.environ)
    except ValidationError as error:
        raise ConfigurationError(f"The settings are not valid: {problems(error)}") from None


@asynccontextmanager
async def located(*, database: bool, create: bool, first: bool) -> AsyncIterator[tuple[ServiceLocation, Any]]:
    """The location and, unless ``database`` is false, its open Database, which is closed after the block; else None.

    ``create`` and ``first``: see ``ServiceLocation.open_database``. Raises ConfigurationError, StorageUnavailable.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what a person should know is printed by the commands
    location = find()
    if not database:
        yield location, None
        return
    storage = await location.open_database(create=create, first=first)
    try:
        yield location, storage
    finally:
        await storage.close()


class ServiceLocation:
    """Addresses and settings by the environment, else by ``endpoints.json`` in the data directory."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self._environment = environment
        self._local = LocalService(settings.chatjobs_data_dir)

    def webhook_rules(self, database: Database) -> WebhookRules:
        """The service's own rules for webhook URLs. Raises ConfigurationError."""
        temporal = None if self._temporal_is_set else self._endpoints.get("temporal")
        return WebhookRules(self.service_settings, database, temporal)

    @cached_property
    def service_settings(self) -> Settings:
        """The settings of the running `make run` with its ports and secret, else those of this process.

        Raises ConfigurationError.
        """
        running = self._endpoints
        if not running:
            return self.settings
        changes: dict[str, Any] = {
            "chatjobs_webhook_deny": (*map(_server, running.values()), *self.settings.chatjobs_webhook_deny),
            "chatjobs_temporal_ui": running.get("temporalUi", self.settings.chatjobs_temporal_ui),
        }
        if port := urlsplit(running.get("gateway", "")).port:
            changes["chatjobs_port"] = port
        if not self.settings.webhook_secret and (secret := self._local.webhook_secret):
            changes["webhook_secret"] = (SecretStr(secret),)
        return self.settings.model_copy(update=changes)

    def require_service(self) -> None:
        """Raise ServiceNotRunning before anything is stored that only a running service could process.

        A service that the environment names is not checked: its database accepts a job whether the rest runs or not.
        """
        if not self._temporal_is_set and not self._database_is_set:
            self._local.require_running()

    async def connect(self) -> Client:
        """A client of the Temporal that a setting names, or that of `make run`; any other would be a stranger's.

        Raises TemporalUnavailable, ConfigurationError.
        """
        if not self._temporal_is_set:
            self._local.require_running()
        address = configured(self._temporal).get("target_host", "localhost:7233")
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and (why := await dial(host.strip("[]"), int(port), DIAL_SECONDS)):
            hint = "is TEMPORAL_ADDRESS right, does it run?" if self._temporal_is_set else "`make run` starts it again"
            raise TemporalUnavailable(f"Temporal is not reachable at {address} ({why}); {hint}")
        silence_core()
        try:
            return await asyncio.wait_for(connect(self._temporal), CONNECT_SECONDS)
        except TimeoutError:
            raise TemporalUnavailable(f"What listens at {address} does not answer as Temporal does") from None

    async def open_database(self, *, create: bool, first: bool) -> Database:
        """``create``: create it if its URL is set or a service runs; ``first``: also if its directory is set.

        Raises ConfigurationError, StorageUnavailable, and ServiceNotRunning if nothing says where it should be.
        """
        url = self._database_url()
        if url is not None and url.get_backend_name() == "sqlite":
            named = first and "chatjobs_data_dir" in self.settings.model_fields_set
            may_create = create and (named or self._database_is_set or bool(self._endpoints))
            self._require_file(Path(url.database or ""), may_create=may_create)
        elif url is not None:
            await self._require_server(url)
        try:
            return await Database.open(self.settings.database_url)
        except OSError as error:
            raise StorageUnavailable(f"The database cannot be opened ({error.strerror}). {NOTHING_RUNS}") from None

    @property
    def links(self) -> RunLinks:
        """Where the Temporal UI shows a job's run."""
        namespace = configured(self._temporal).get("namespace", "default")
        ui_is_set = "chatjobs_temporal_ui" in self.settings.model_fields_set
        ui = None if ui_is_set else self._endpoints.get("temporalUi")
        return RunLinks(ui or self.settings.chatjobs_temporal_ui, namespace)

    @property
    def gateway(self) -> str | None:
        """The gateway's URL; None if it takes a free port and nothing says which."""
        if running := self._endpoints.get("gateway"):
            return running
        host, port = self.settings.chatjobs_host, self.settings.chatjobs_port
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
        return f"http://{f'[{local}]' if ':' in local else local}:{port}" if port else None

    @property
    def simulated(self) -> bool:
        """Whether `make run` is up and answers come from its simulator."""
        return "simulator" in self._endpoints

    def _require_file(self, path: Path, *, may_create: bool) -> None:
        """A look for a job in the wrong directory must not leave an empty database there. Raises StorageUnavailable."""
        if may_create or path.exists() or str(path) in ("", ".", ":memory:"):
            return
        if not (self._temporal_is_set or self._database_is_set):
            self._local.require_running()
        raise StorageUnavailable(f"There is no database at {path}: no service has run with it. {NOTHING_RUNS}")

    async def _require_server(self, url: URL) -> None:
        """Raise StorageUnavailable at once if the server accepts no TCP connection."""
        if not url.host or "," in url.host or "host" in url.query:
            return
        port = url.port or 5432
        if why := await dial(url.host, port, DIAL_SECONDS):
            where = f"{url.host}:{port}"
            raise StorageUnavailable(
                f"The database of CHATJOBS_DATABASE_URL is not reachable at {where} ({why}); is it running?"
            )

    def _database_url(self) -> URL | None:
        """None for an invalid URL: Database.open raises the error for it."""
        try:
            return make_url(self.settings.database_url)
        except (ArgumentError, ValueError):
            return None

    @property
    def _endpoints(self) -> Mapping[str, str]:
        return self._local.endpoints

    @property
    def _database_is_set(self) -> bool:
        return self.settings.chatjobs_database_url is not None

    @cached_property
    def _temporal_is_set(self) -> bool:
        """Whether variables name a Temporal, or, if `make run` does not run, a file of the `temporal` command."""
        considered = any(self._environment.get(name) for name in TEMPORAL_VARIABLES) or not self._endpoints
        return considered and "target_host" in configured()

    @property
    def _temporal(self) -> Mapping[str, str] | None:
        """The environment for the connection; None: that of this process, as the `temporal` command reads it."""
        address = self._endpoints.get("temporal")
        if address is None or self._temporal_is_set:
            return None
        return {"TEMPORAL_ADDRESS": address, "TEMPORAL_CONFIG_FILE": os.devnull}


def _server(address: str) -> str:
    """``127.0.0.1:8000`` from a URL or from the same text."""
    return urlsplit(address).netloc or address
