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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from local.temporal_server import binary as binary
from local.temporal_server import command
from tests.support.stack import Process, free_port

CLI_SECONDS = 20.0


class TemporalServer:
    """Where it listens, its process, and its commands."""

    def __init__(self, directory: Path, *, search_attributes: bool) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._env = os.environ | {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        self.process = Process(
            "temporal",
            command(
                directory / "temporal.db",
                port=int(self.address.split(":")[1]),
                durable=False,
                search_attributes=search_attributes,
            ),
            env=self._env,
            log=directory / "temporal.log",
            ready="Temporal Server:",
        )

    async def connect(self, identity: str = "tests") -> Client:
        return await Client.connect(self.address, data_converter=pydantic_data_converter, identity=identity)

    async def cli(self, *arguments: str, succeeds: bool = True) -> str:
        """What a command of `temporal` prints. Raises AssertionError where it fails, unless that is expected."""
        process = await asyncio.create_subprocess_exec(
            binary(),
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
