"""``python -m gateway``: the gateway process. It logs its URL once it accepts connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AsyncExitStack

from chatjobs.errors import ConfigurationError
from domain import programs
from domain.process_exit import exit_now
from domain.settings import Settings
from domain.timings import Timings
from gateway.app import create_app
from gateway.dependencies import open_dependencies
from gateway.serving.server import BACKLOG, Listener, served
from providers.mistral.from_settings import mistral_models
from providers.webhooks.sender import HttpWebhookSender

log = logging.getLogger("gateway")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = Listener(fileno=socket.create_server((host, port), family=family, backlog=BACKLOG).detach())
        # Connections inherit it. asyncio sets it too, but not for a listener made this way (its proto is 0); without
        # it the second write of a response waits 40 ms for the acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ConfigurationError(
            f"The gateway cannot listen on {host}:{port} ({error.strerror}); change CHATJOBS_HOST or CHATJOBS_PORT"
        ) from None


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Answer until ``stop`` is set. Raises ChatJobsError."""
    async with AsyncExitStack() as stack:
        timings = Timings()
        models = await stack.enter_async_context(mistral_models(settings))
        opening = open_dependencies(
            settings, lambda rules: HttpWebhookSender(policy=rules, timings=timings), models=models, timings=timings
        )
        parts = await stack.enter_async_context(opening)
        parts.access.require_keys_or_loopback()
        listener = listen(settings.chatjobs_host, settings.chatjobs_port)
        await stack.enter_async_context(served(create_app(parts), parts.open_streams, listener))
        programs.freeze_imports()
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("gateway listening on %s", url, extra={"action": "gateway_ready", "url": url})
        await stop.wait()
        log.info("gateway stops", extra={"action": "gateway_stops", "streams": len(parts.open_streams)})


def main() -> int:
    return programs.run("gateway", serve)


if __name__ == "__main__":
    exit_now(main())
