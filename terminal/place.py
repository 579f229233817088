"""Where the running service is: its Temporal, its database, by the environment or by what `make run` has written."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from chatjobs.errors import ConfigurationError, StorageUnavailable, TemporalUnavailable
from connection import connect, run_url
from settings import Settings, problems
from storage.database import Database

CONNECT_SECONDS = 10
WHERE_IS_TEMPORAL = ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE")
NOTHING_RUNS = "Is `make run` running, with the same CHATJOBS_DATA_DIR?"


def find() -> Place:
    """By this process's environment. Raises ConfigurationError."""
    try:
        return Place(Settings(), os.environ)
    except ValidationError as error:
        raise ConfigurationError(f"The settings are not valid: {problems(error)}") from None


class Place:
    """What ``endpoints.json`` in the data directory says holds where the environment says nothing."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self._environment = environment

    async def connect(self) -> Client:
        """Raises TemporalUnavailable."""
        try:
            return await asyncio.wait_for(connect(self._temporal), CONNECT_SECONDS)
        except TimeoutError:
            raise TemporalUnavailable from None
        except TemporalUnavailable as error:
            if self._endpoints or self._told_where:
                raise
            raise TemporalUnavailable(f"{error.message} {NOTHING_RUNS}") from None

    async def open_database(self, *, create: bool) -> Database:
        """``create``: it may be empty. Raises ConfigurationError, StorageUnavailable."""
        if not create:
            self._expect_file()
        try:
            return await Database.open(self.settings.database_url)
        except OSError as error:
            raise StorageUnavailable(f"The database cannot be opened ({error.strerror}). {NOTHING_RUNS}") from None

    def run_url(self, job_id: str) -> str:
        """Where the Temporal UI shows a job's run."""
        config = ClientConfig.load_client_connect_config(override_env_vars=self._temporal)
        configured = "chatjobs_temporal_ui" in self.settings.model_fields_set
        ui = None if configured else self._endpoints.get("temporalUi")
        return run_url(ui or self.settings.chatjobs_temporal_ui, config.get("namespace", "default"), job_id)

    @property
    def gateway(self) -> str | None:
        """Where the gateway should answer; None where it takes a free port and nothing says which."""
        if running := self._endpoints.get("gateway"):
            return running
        host, port = self.settings.chatjobs_host, self.settings.chatjobs_port
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only asked
        return f"http://{f'[{local}]' if ':' in local else local}:{port}" if port else None

    @property
    def simulated(self) -> bool:
        """`make run` is up, and answers come from its simulator."""
        return "simulator" in self._endpoints

    def _expect_file(self) -> None:
        """To look for a job in the wrong directory must not leave an empty database there."""
        try:
            url = make_url(self.settings.database_url)
        except (ArgumentError, ValueError):
            return  # Database.open says what is wrong with it
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            raise StorageUnavailable(f"There is no database at {url.database}. {NOTHING_RUNS}")

    @cached_property
    def _endpoints(self) -> Mapping[str, str]:
        try:
            found = json.loads((self.settings.chatjobs_data_dir / "endpoints.json").read_bytes())
            return {name: value for name, value in found.items() if isinstance(value, str)}
        except (OSError, ValueError, AttributeError):  # not there, not JSON, not an object
            return {}

    @property
    def _told_where(self) -> bool:
        return any(name in self._environment for name in WHERE_IS_TEMPORAL)

    @property
    def _temporal(self) -> Mapping[str, str] | None:
        """The environment by which to find Temporal; None: this process's own, as the `temporal` command reads it."""
        address = self._endpoints.get("temporal")
        if address is None or self._told_where:
            return None
        return {"TEMPORAL_ADDRESS": address, "TEMPORAL_CONFIG_FILE": os.devnull}
