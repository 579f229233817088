"""Whether `make run` runs with a data directory, judged by the files there, without heavy imports."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from chatjobs.errors import ConfigurationError
from domain.errors import ServiceNotRunning

TEMPORAL_VARIABLES = ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE")
DATA_DIR, DATABASE_URL = "CHATJOBS_DATA_DIR", "CHATJOBS_DATABASE_URL"
TEMPORAL_FILES = (
    Path("temporalio/temporal.toml"),
    Path("Library/Application Support/temporalio/temporal.toml"),
    Path(".config/temporalio/temporal.toml"),
)
"""Possible files of the `temporal` command: in XDG_CONFIG_HOME, in the home directory on macOS and on Linux."""


class LocalService:
    """The service that `make run` runs, as described by the files of its data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    @cached_property
    def endpoints(self) -> Mapping[str, str]:
        """Addresses of its parts; empty if it does not run. Raises ConfigurationError."""
        path = self.directory / "endpoints.json"
        try:
            found = json.loads(path.read_bytes())
            return {name: value for name, value in found.items() if isinstance(value, str)}
        except PermissionError as error:
            why = f"{path} cannot be read ({error.strerror}); use the account that runs the service"
            raise ConfigurationError(why) from None
        except (OSError, ValueError, AttributeError):  # not there, not JSON, not an object
            return {}

    @cached_property
    def webhook_secret(self) -> str | None:
        """The default tenant's signing secret if WEBHOOK_SECRET is not set. Raises ConfigurationError."""
        path = self.directory / "webhook_secret"
        try:
            return path.read_text().strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            why = f"{path} cannot be read ({error.strerror}); use the account that runs the service"
            raise ConfigurationError(why) from None

    def require_running(self) -> None:
        """Raises ServiceNotRunning if it does not run, and ConfigurationError."""
        if "temporal" not in self.endpoints:
            raise ServiceNotRunning(
                f"No service runs here: there is no endpoints.json in {self.directory}, and TEMPORAL_ADDRESS is not "
                "set; start one with `make run`, or set TEMPORAL_ADDRESS and CHATJOBS_DATABASE_URL to those of yours"
            )
        if self._supervisor_died():
            raise ServiceNotRunning(
                f"The service in {self.directory} does not run any more: it was killed and left its endpoints.json; "
                "start it again with `make run`, and its jobs go on"
            )

    def _supervisor_died(self) -> bool:
        """Whether the process named in the lock file of `make run` has ended; false if there is no such file."""
        try:
            os.kill(int((self.directory / "lock").read_text()), 0)
        except ProcessLookupError:
            return True
        except (OSError, ValueError):
            return False
        return False


def require_location(environment: Mapping[str, str], *, needs_service: bool, first: bool) -> None:
    """Raise ServiceNotRunning if neither the environment nor a data directory says where the service is.

    ``needs_service``: its database alone is not enough. ``first``: the command may be used before the service ever
    ran, if a setting names the data directory. Whether a named server can be reached is checked later, since that
    takes heavy libraries.
    """
    given = {name.upper(): value for name, value in environment.items() if value}  # as the settings read them
    roots = [Path(given[name]) for name in ("XDG_CONFIG_HOME", "HOME") if name in given]
    has_temporal_file = any((root / file).exists() for root in roots for file in TEMPORAL_FILES)
    if has_temporal_file or any(name in given for name in (*TEMPORAL_VARIABLES, DATABASE_URL)):
        return
    if first and DATA_DIR in given:
        return
    directory = Path(given.get(DATA_DIR, ".chatjobs"))
    if needs_service or not (directory / "chatjobs.db").exists():
        LocalService(directory).require_running()
