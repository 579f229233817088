"""The service on one machine: Temporal with its UI, worker, gateway, and a simulator of Mistral if there is no key.

Children that die are restarted, all children die with this process, and a data directory has one such process at a
time. Jobs survive kill -9 of any process or of all of them: the state is in the data directory.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chatjobs.errors import ChatJobsError, ConfigurationError
from local.supervisor import (
    GRACE_SECONDS,
    HOST,
    Console,
    DataDirectory,
    Spec,
    Supervisor,
    accepts,
    end_with_parent,
    free_port,
    write_whole,
)

if TYPE_CHECKING:  # slow imports are made below, while the first child starts
    from temporalio.client import Client

    from domain.settings import Settings

OLDEST_PYTHON = (3, 11)
USUAL_PORTS = {"temporal": 7233, "temporalUi": 8233, "metrics": 9233, "simulator": 7333}


class LocalStack:
    """Addresses, environments and child processes of the service on this machine, and their readiness checks."""

    def __init__(self, settings: Settings, data: DataDirectory, simulator_options: Sequence[str] = ()) -> None:
        self.simulated = settings.mistral_api_key is None
        usual_ports = USUAL_PORTS | {"gateway": settings.chatjobs_port}
        self._ports = {name: free_port(usual) for name, usual in usual_ports.items()}
        self._data = data
        self._simulator_options = simulator_options
        self._client: Client | None = None
        own = {"chatjobs_data_dir": data.path, "chatjobs_temporal_ui": f"http://{HOST}:{self._ports['temporalUi']}"}
        self.settings = settings.model_copy(update=own)

    @property
    def own_ports(self) -> list[int]:
        """Ports that no webhook may be sent to, though they are on this machine."""
        return sorted(self._ports.values())

    @property
    def endpoints(self) -> dict[str, str | None]:
        """Addresses by name; None for a part that does not run. ``metrics`` are the Temporal server's."""
        return {
            "gateway": self.gateway_url,
            "temporal": f"{HOST}:{self._ports['temporal']}",
            "temporalUi": self.settings.chatjobs_temporal_ui,
            "metrics": f"http://{HOST}:{self._ports['metrics']}/metrics",
            "simulator": f"http://{HOST}:{self._ports['simulator']}" if self.simulated else None,
        }

    @property
    def gateway_url(self) -> str:
        host = self.settings.chatjobs_host
        host = HOST if host in ("0.0.0.0", "::") else host  # noqa: S104 - only compared
        return f"http://{f'[{host}]' if ':' in host else host}:{self._ports['gateway']}"

    async def client(self) -> Client:
        """Raises TemporalUnavailable."""
        from dispatch.temporal import connect, silence_core

        if self._client is None:
            silence_core()
            self._client = await connect(self._service_environment())
        return self._client

    # --------------------------------------------------------------------------------------------- Temporal

    def temporal(self) -> Spec:
        """Raises ConfigurationError."""
        from local.temporal_server import command

        started = command(
            self._data.path / "temporal.db",
            port=self._ports["temporal"],
            ui_port=self._ports["temporalUi"],
            metrics_port=self._ports["metrics"],
        )
        return Spec("temporal", started, _environment(), self._temporal_serves)

    async def _temporal_serves(self, pid: int) -> bool:
        """Whether it listens and has its search attributes, which a worker checks only once, at its start.

        It gets its Nexus endpoint then, if that is absent.
        """
        from dispatch.nexus import ensure_endpoint
        from dispatch.temporal import indexed

        with contextlib.suppress(ChatJobsError):
            if await accepts(self._ports["temporal"], pid) and await indexed(await self.client()):
                await ensure_endpoint(await self.client())
                return True
        return False

    # ----------------------------------------------------------------------- the simulator, the worker, the gateway

    def simulator(self) -> Spec:
        port = self._ports["simulator"]
        command = [sys.executable, "-m", "simulator", "--port", str(port), *self._simulator_options]
        return Spec("simulator", command, _environment(), lambda pid: accepts(port, pid))

    def worker(self) -> Spec:
        grace = self.settings.chatjobs_grace_seconds + GRACE_SECONDS
        return Spec(
            "worker",
            [sys.executable, "worker.py"],
            self._service_environment(),
            self._worker_polls,
            grace_seconds=grace,
        )

    def gateway(self) -> Spec:
        port, environment = self._ports["gateway"], self._service_environment()
        return Spec("gateway", [sys.executable, "-m", "gateway"], environment, lambda pid: accepts(port, pid))

    async def _worker_polls(self, pid: int) -> bool:
        from dispatch.temporal import polls
        from domain.names import COMPLETIONS_QUEUE

        with contextlib.suppress(ChatJobsError):
            return await polls(await self.client(), COMPLETIONS_QUEUE, pid)
        return False

    def _service_environment(self) -> dict[str, str]:
        found = _environment() | {
            "TEMPORAL_ADDRESS": str(self.endpoints["temporal"]),
            "CHATJOBS_DATA_DIR": str(self._data.path),
            "CHATJOBS_PORT": str(self._ports["gateway"]),  # for the worker, too, which sends no webhook there
            "CHATJOBS_TEMPORAL_UI": self.settings.chatjobs_temporal_ui,
            "CHATJOBS_WEBHOOK_DENY": ",".join(
                [*(f"{HOST}:{port}" for port in self._ports.values()), *self.settings.chatjobs_webhook_deny]
            ),
        }
        if not self.settings.webhook_secret:
            found["WEBHOOK_SECRET"] = webhook_secret(self._data)
        if self.simulated:
            found |= {"MISTRAL_API_KEY": "simulated", "MISTRAL_SERVER_URL": str(self.endpoints["simulator"])}
            found |= {"CHATJOBS_CONTINUATION": "prefix"} if self.settings.chatjobs_continuation == "auto" else {}
            around_proxy = ",".join(filter(None, (HOST, found.get("no_proxy") or found.get("NO_PROXY"))))
            found |= {"NO_PROXY": around_proxy, "no_proxy": around_proxy}
        return found


def _environment() -> dict[str, str]:
    """The environment without settings for other Temporal servers: an API key would turn on TLS for ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    return kept | {"TEMPORAL_CONFIG_FILE": os.devnull, "PYTHONUNBUFFERED": "1"}


def webhook_secret(data: DataDirectory) -> str:
    """The signing secret of a data directory; created at the first call."""
    path = data.path / "webhook_secret"
    if not path.exists():
        write_whole(path, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() + "\n", mode=0o600)
    return path.read_text().strip()


# ---------------------------------------------------------------------------------------------------- running


async def supervise(stack: LocalStack, data: DataDirectory, console: Console) -> None:
    """Run everything until a signal. Raises ChatJobsError if something does not start."""
    endpoints = data.path / "endpoints.json"
    endpoints.unlink(missing_ok=True)  # left by a run that was killed
    supervisor = Supervisor(data, console)
    async with supervisor.until_signal():
        await bring_up(stack, supervisor)
        write_whole(endpoints, json.dumps(stack.endpoints, indent=2) + "\n")
        await show(stack, console)
        ui = stack.endpoints["temporalUi"]
        console.line(f"\n{example(stack.gateway_url)}")
        console.line(f"\nready    {stack.gateway_url}  (Temporal UI {ui}); Ctrl-C stops everything")
        await asyncio.Event().wait()
    endpoints.unlink(missing_ok=True)
    console.line("stopped")


def example(url: str) -> str:
    """A command to paste, with the gateway's port."""
    body = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
    return f"Try it:  curl -N {url}/api/chat/stream -H 'Content-Type: application/json' -d '{body}'"


async def bring_up(stack: LocalStack, supervisor: Supervisor) -> None:
    """Start the children; the worker once Temporal and the simulator are ready."""
    started = [supervisor.start(stack.temporal()), supervisor.start(stack.gateway())]
    if stack.simulated:
        started.append(supervisor.start(stack.simulator()))
    await asyncio.sleep(0)  # lets their tasks begin
    from local import sample_chat  # noqa: F401 - a slow import, made while the children start

    for child in started:
        await child.ready()
    await supervisor.start(stack.worker()).ready()


async def show(stack: LocalStack, console: Console) -> None:
    """Run the sample chat: always with the simulator, which costs nothing, else only on an empty store."""
    from local.sample_chat import sample_chat

    try:
        await sample_chat(stack.settings, await stack.client(), console, only_first=not stack.simulated)
    except ChatJobsError as error:
        console.line(f"The sample chat did not work: {error}")


def introduce(stack: LocalStack, data: DataDirectory, console: Console) -> None:
    console.line(f"chatjobs {stack.gateway_url}  (the page and the API; up in some seconds)\n")
    console.line(f"Data is in {data.path}, the logs of all processes in {data.path / 'logs'}")
    if stack.simulated:
        console.line("MISTRAL_API_KEY is not set: answers come from a simulator, NOT from Mistral")
    if not stack.settings.webhook_secret:
        console.line(f"WEBHOOK_SECRET is not set: webhooks are signed with the one in {data.path / 'webhook_secret'}")
    console.line("Until the first `starter.py keys add` only this machine may call, without a key")
    for line in receivers(stack.settings, stack.own_ports):
        console.line(line)
    if "TEMPORAL_ADDRESS" in os.environ:
        console.line("TEMPORAL_ADDRESS is set and not used: this runs a Temporal server of its own")


def receivers(settings: Settings, own_ports: Sequence[int]) -> list[str]:
    """The allowed receivers of webhooks, in words."""
    from domain.webhook_urls import FIRST_USER_PORT, HTTP_PORTS, PORTS

    def listed(ports: Iterable[int]) -> str:
        return " or ".join(map(str, sorted(ports)))

    http = f"http and https, port {listed(PORTS | HTTP_PORTS)}"
    https = f"https, port {listed(PORTS)} (CHATJOBS_WEBHOOK_HTTP=true allows http, too, and port {listed(HTTP_PORTS)})"
    allowed, denied = (
        ", ".join(given) or "none" for given in (settings.chatjobs_webhook_allow, settings.chatjobs_webhook_deny)
    )
    return [
        f"Webhooks may go to public host names by {http if settings.chatjobs_webhook_http else https}",
        "  while there is no key also to this machine (127.0.0.1, ::1, localhost) by http and https, any port from "
        f"{FIRST_USER_PORT}",
        f"  and to the hosts and networks in CHATJOBS_WEBHOOK_ALLOW by http and https, any port: {allowed}",
        f"  but never to this service's own ports: {', '.join(map(str, own_ports))}; nor to CHATJOBS_WEBHOOK_DENY: "
        f"{denied}",
    ]


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser("python -m local", description=__doc__)
    found.add_argument("--end-with-parent", action="store_true", help="stop when the starting process ends (Linux)")
    found.add_argument("simulator", nargs="*", help="options of the simulator, after --, such as: -- --rate 20:20")
    return found.parse_args()


def read_settings() -> Settings:
    from pydantic import ValidationError

    from domain.settings import Settings, problems

    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(f"Correct these settings: {problems(error)}") from None


def run() -> None:
    """Run until a signal. Raises ChatJobsError if that is not possible."""
    if sys.version_info < OLDEST_PYTHON:
        raise ConfigurationError(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}")
    given = arguments()
    if given.end_with_parent:
        end_with_parent()
    settings = read_settings()
    data, console = DataDirectory(settings.chatjobs_data_dir), Console()
    data.claim()
    stack = LocalStack(settings, data, given.simulator)
    introduce(stack, data, console)
    asyncio.run(supervise(stack, data, console))


def main() -> int:
    logging.disable(logging.WARNING)  # this process writes to its Console, its children to logs
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # answers have more characters than some terminals
    try:
        run()
    except ChatJobsError as error:
        sys.stderr.write(f"standalone: {error}\n")
        return 1
    except KeyboardInterrupt:  # before the first child
        return 0
    return 0
