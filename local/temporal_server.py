"""The command line of Temporal's development server, for whoever starts one: `make run`, the drill, the tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from chatjobs.errors import ConfigurationError
from domain.names import SEARCH_ATTRIBUTES

HOST = "127.0.0.1"
FASTER_POLLING = "history.{}ProcessorMaxPollRPS=2000"
"""The server's default, 20 a second, costs up to 50 ms at each step of a job."""
PUNCTUAL_TIMERS = 'history.timerProcessorMaxTimeShift="1ms"'
"""By default every timer and every retry may be a second late, in case the clocks of several servers differ."""
FAIRNESS = "matching.enableFairness=true"
"""Without it, fairness keys do nothing."""
ONE_LINE = ("matching.numTaskqueueReadPartitions=1", "matching.numTaskqueueWritePartitions=1")
"""Priority and fairness hold within a partition of a task queue; by default it has four."""

KEEP_ALIVE = ('frontend.keepAliveTime="2s"', 'frontend.keepAliveTimeout="3s"')
"""A worker that answers no ping of the server's for 5 s in all loses its connection, and its open polls with it; by
default after 70 s. Both together stay below the heartbeat timeout (10 s): by then its jobs go to workers that run."""


def binary(name: str = "temporal") -> str:
    """The program that a package has installed beside our Python. Raises ConfigurationError."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigurationError(f"The `{name}` program is missing; `make run` installs it (requirements.lock)")
    return found


def command(
    database: Path,
    *,
    port: int,
    ui_port: int | None = None,
    metrics_port: int | None = None,
    durable: bool = True,
    search_attributes: bool = True,
    configuration: Sequence[str] = (),
) -> list[str]:
    """``durable``: survives a power loss; a kill -9 it survives either way. ``configuration``: more ``key=value``."""
    options = {
        "--ip": [HOST],
        "--port": [str(port)],
        "--db-filename": [str(database)],
        "--sqlite-pragma": ["journal_mode=wal", f"synchronous={2 if durable else 0}"],
        "--search-attribute": [f"{name}=Keyword" for name in SEARCH_ATTRIBUTES if search_attributes],
        "--dynamic-config-value": [
            *(FASTER_POLLING.format(queue) for queue in ("transfer", "timer", "visibility", "outbound")),
            PUNCTUAL_TIMERS,
            FAIRNESS,
            *ONE_LINE,
            *KEEP_ALIVE,
            *configuration,
        ],
        "--log-level": ["error"],
        "--ui-port": [] if ui_port is None else [str(ui_port)],
        "--metrics-port": [] if metrics_port is None else [str(metrics_port)],
    }
    flags = [part for name, values in options.items() for part in (v for value in values for v in (name, value))]
    quiet = ["--headless"] if ui_port is None else ["--ui-disable-news-fetch"]
    return [binary(), "server", "start-dev", *quiet, *flags]
