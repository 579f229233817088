"""``python -m gateway``: the gateway process. It logs its URL once it accepts connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from contextlib import AsyncExitStack

from pydantic import ValidationError

from chatjobs.errors import ChatJobsError, ConfigurationError
from domain import logs
from domain.process_exit import exit_now
from domain.settings import Settings, problems
from domain.timings import Timings
from gateway.app import create_app
from gateway.dependencies import opened
from gateway.serving.server import BACKLOG, Listener, served
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


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ChatJobsError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        timings = Timings()
        opening = opened(settings, lambda rules: HttpWebhookSender(policy=rules, timings=timings), timings=timings)
        parts = await stack.enter_async_context(opening)
        parts.access.require_keys_or_loopback()
        listener = listen(settings.chatjobs_host, settings.chatjobs_port)
        await stack.enter_async_context(served(create_app(parts), parts.open_streams, listener))
        # Imported objects live as long as the process; collecting them again and again pauses it for 25 ms each time.
        gc.collect()
        gc.freeze()
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("gateway listening on %s", url, extra={"action": "gateway_ready", "url": url})
        await stop.wait()
        log.info("gateway stops", extra={"action": "gateway_stops", "streams": len(parts.open_streams)})


def main() -> int:
    logs.configure()
    try:
        asyncio.run(serve(Settings()))
    except ChatJobsError as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    except ValidationError as error:
        sys.stderr.write(f"gateway: the settings are not valid: {problems(error)}\n")
        return 2
    return 0


if __name__ == "__main__":
    exit_now(main())
