"""``python -m simulator``: the process. Prints one line with its address once it accepts calls."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import get_args

import uvicorn

from simulator.app import create_app
from simulator.faults import Continues, Dialect
from simulator.player import BreakableProtocol
from simulator.state import Options

BACKLOG = 4096


def main() -> None:
    arguments = parser().parse_args()
    listener = listen(arguments.host, arguments.port)
    options = Options(
        arguments.first_token,
        arguments.rate,
        arguments.seed,
        arguments.requests_per_minute,
        arguments.continues,
        arguments.batch_seconds,
        arguments.batch_rate,
        arguments.dialect,
    )
    config = uvicorn.Config(
        create_app(options),
        http=BreakableProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # broken connections are intended
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=0,  # open answers end with the process, as at Mistral
        timeout_keep_alive=75,
        backlog=BACKLOG,
    )
    announce(listener, arguments.port_file)
    uvicorn.Server(config).run(sockets=[listener])


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m simulator", description=__doc__)
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=0, help="0 takes a free one")
    found.add_argument("--port-file", type=Path, help="where to write the port, once it listens")
    found.add_argument("--first-token", type=span, default=Options.first_token, help="seconds, LOW:HIGH")
    found.add_argument("--rate", type=span, default=Options.rate, help="tokens per second, LOW:HIGH; 0 is no limit")
    found.add_argument("--seed", type=int, default=Options.seed, help="another seed, other answers")
    found.add_argument("--dialect", choices=get_args(Dialect), default=Options.dialect, help="whose words it uses")
    of_dialect = "what makes it continue a text; by default as servers of the dialect"
    found.add_argument("--continues", choices=get_args(Continues), default=None, help=of_dialect)
    found.add_argument("--requests-per-minute", type=int, help="refuse with 429 what is more")
    found.add_argument("--batch-seconds", type=float, default=Options.batch_seconds, help="before a batch job runs")
    rate = "items of a batch job per second; 0 is no limit"
    found.add_argument("--batch-rate", type=float, default=Options.batch_rate, help=rate)
    return found


def span(text: str) -> tuple[float, float]:
    """``0.3:0.8``, or one number for both ends."""
    low, _, high = text.partition(":")
    ends = float(low), float(high or low)
    if not 0 <= ends[0] <= ends[1]:
        raise argparse.ArgumentTypeError(f"{text}: the lower number comes first, and none is negative")
    return ends


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: from here on, calls wait and are not refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not set it for such listeners
    return listener


def announce(listener: socket.socket, port_file: Path | None) -> None:
    host, port = listener.getsockname()[:2]
    if port_file is not None:
        unfinished = port_file.with_name(f"{port_file.name}.{os.getpid()}")
        unfinished.write_text(f"{port}\n")
        unfinished.replace(port_file)
    sys.stdout.write(f"simulator listening on http://{f'[{host}]' if ':' in host else host}:{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
