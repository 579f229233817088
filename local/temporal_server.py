"""The command line of Temporal's development server, for `make run`, the drill and the tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from chatjobs.errors import ConfigurationError
from domain.names import SEARCH_ATTRIBUTES

HOST = "127.0.0.1"
FASTER_POLLING = "history.{}ProcessorMaxPollRPS=2000"
"""The server's default, 20 per second, costs up to 50 ms at each step of a job."""
PUNCTUAL_TIMERS = 'history.timerProcessorMaxTimeShift="1ms"'
"""By default every timer and every retry may be a second late, in case the clocks of several servers differ."""
FAIRNESS = "matching.enableFairness=true"
"""Without it, fairness keys do nothing."""
ONE_PARTITION = ("matching.numTaskqueueReadPartitions=1", "matching.numTaskqueueWritePartitions=1")
"""Priority and fairness hold within a partition of a task queue; by default it has four."""

KEEP_ALIVE = ('frontend.keepAliveTime="2s"', 'frontend.keepAliveTimeout="3s"')
"""A worker that does not answer the server's pings for 5 s in all (by default 70 s) loses its connection and its open
polls. Both together stay below the heartbeat timeout (10 s), when its jobs go to other workers."""


def binary(name: str = "temporal") -> str:
    """The path of a program installed beside this Python, or on the PATH. Raises ConfigurationError."""
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
    """``durable``: the data survive a power loss, and not only kill -9. ``configuration``: more ``key=value``."""
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
            *ONE_PARTITION,
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
