"""A gateway as a process of a running stack (tests/support/stack.py), and a client of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.support.stack import Process, Stack

READY = "gateway listening on"


@dataclass(frozen=True)
class Gateway:
    process: Process
    url: str

    def client(self, **options: object) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]


def gateway(stack: Stack, name: str = "gateway", program: str = "gateway") -> Gateway:
    """Start one more gateway; the stack's ``env`` should have CHATJOBS_PORT=0, or a free port to come back to."""
    process = stack.run(name, "-m", program, ready=READY)
    return Gateway(process, json.loads(process.wait_for_log(READY))["url"])


@contextmanager
def alone(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """A stack of which nothing runs yet: for gateways that need their database only. Jobs wait for Temporal there."""
    built = Stack(directory, {"CHATJOBS_PORT": "0"} | dict(env or {}))
    try:
        yield built
    except BaseException:
        sys.stdout.write(built.news())
        raise
    finally:
        built.kill_all()
