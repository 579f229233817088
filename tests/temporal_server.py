"""A real Temporal dev server for tests, with its command line.

    with temporal_server(directory) as temporal:
        client = await temporal.connect()
        await temporal.cli("workflow", "terminate", "--workflow-id", job_id)
        temporal.process.restart()                # kill -9, and start again on the same file and port

Nothing is left behind: the server is killed at the end of the block, and by the kernel if pytest itself dies.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from chatjobs.names import SEARCH_ATTRIBUTES
from tests.stack import Process, free_port

QUEUES = ("transfer", "timer", "visibility", "outbound")
CLI_SECONDS = 20.0


class TemporalServer:
    """Where it listens, its process, and its commands."""

    def __init__(self, directory: Path, *, search_attributes: bool) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._env = os.environ | {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        self.process = Process(
            "temporal",
            self._command(directory / "temporal.db", search_attributes),
            env=self._env,
            log=directory / "temporal.log",
            ready="Temporal Server:",
        )

    async def connect(self, identity: str = "tests") -> Client:
        return await Client.connect(self.address, data_converter=pydantic_data_converter, identity=identity)

    async def cli(self, *arguments: str, succeeds: bool = True) -> str:
        """What a command of `temporal` prints. Raises AssertionError where it fails, unless that is expected."""
        process = await asyncio.create_subprocess_exec(
            binary("temporal"),
            *arguments,
            *("--address", self.address, "--command-timeout", f"{CLI_SECONDS:.0f}s"),
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert (process.returncode == 0) is succeeds, f"{arguments}: {out.decode()}{err.decode()}"
        return out.decode() if succeeds else err.decode()

    def _command(self, database: Path, search_attributes: bool) -> list[str]:
        host, port = self.address.split(":")
        command = [
            *(binary("temporal"), "server", "start-dev", "--headless", "--ip", host, "--port", port),
            *("--log-level", "error", "--db-filename", str(database)),
            # What survives a kill -9 needs no fsync; only a power loss would tell.
            *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=0"),
        ]
        for name in SEARCH_ATTRIBUTES if search_attributes else ():
            command += ["--search-attribute", f"{name}=Keyword"]
        for queue in QUEUES:  # the default is 20 looks a second, which costs 50 ms a step
            command += ["--dynamic-config-value", f"history.{queue}ProcessorMaxPollRPS=2000"]
        # Else every timer and every retry comes up to a second late, in case the clocks of several servers differ.
        return [*command, "--dynamic-config-value", 'history.timerProcessorMaxTimeShift="1ms"']


def binary(name: str) -> str:
    """A program that a package has installed beside our Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed"
    return found


@contextmanager
def temporal_server(directory: Path, *, search_attributes: bool = True) -> Iterator[TemporalServer]:
    """A server of its own until the end of the block."""
    directory.mkdir(parents=True, exist_ok=True)
    server = TemporalServer(directory, search_attributes=search_attributes)
    server.process.start()
    try:
        yield server
    finally:
        if server.process.running:
            server.process.kill()
