"""llmock (PyPI) as the model: it speaks Mistral's routes, breaks answers on request and judges the client that it saw.

It is installed into an environment of its own (``make .venv/upstreams/made``), since it brings an event loop with it
that the gateway would take up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.support.needs import lacking
from tests.support.stack import ROOT, Process, free_port

BINARY = ROOT / ".venv" / "upstreams" / "bin" / "llmock"


class LLMock:
    def __init__(self, root: str) -> None:
        self._http = httpx2.Client(base_url=root, trust_env=False, timeout=20)
        self.server_url = f"{root}/mistral"

    def close(self) -> None:
        self._http.close()

    def script(self, model: str, *behaviours: dict[str, Any]) -> None:
        """What the next calls of this model get: see llmock's "The faults"."""
        matched = [{"match": {"model": model}, **behaviour} for behaviour in behaviours]
        self._http.post("/_llmock/scenario", json={"behaviors": matched}).raise_for_status()

    def calls(self, model: str | None = None) -> list[dict[str, Any]]:
        """All calls, or those of one model, in order: ``seq``, ``started_at``, ``status``, ``fault``, ``body`` …"""
        found = self._http.get("/_llmock/requests").raise_for_status().json()["requests"]
        return [call for call in found if model in (None, call["model"])]

    def verdict(self) -> list[dict[str, Any]]:
        """What this server holds against the client: ``code``, ``severity`` …"""
        return list(self._http.get("/_llmock/verdict").raise_for_status().json()["findings"])

    def answer(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer as one message, asked for directly: what a stream of it has to add up to."""
        answered = self._http.post("/mistral/v1/chat/completions", json={"model": model, **body})
        return dict(answered.raise_for_status().json()["choices"][0]["message"])

    def wait(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._http.get("/health").raise_for_status()
                return
            except httpx2.HTTPError:
                assert time.monotonic() < deadline, "llmock does not answer"
                time.sleep(0.05)


@contextmanager
def llmock(directory: Path) -> Iterator[LLMock]:
    """A running server, until the end of the block."""
    if not BINARY.exists():
        lacking("llmock", "make .venv/upstreams/made installs it")
    port = free_port()
    command = [str(BINARY), "serve", "--host", "127.0.0.1", "--port", str(port), "--stream-chunk-delay-ms", "10"]
    process = Process("llmock", command, env={"PATH": "/usr/bin:/bin"}, log=directory / "llmock.log", ready="")
    process.start(wait=False)
    server = LLMock(f"http://127.0.0.1:{port}")
    try:
        server.wait()
        yield server
    finally:
        server.close()
        process.kill()
        sys.stdout.write(process.output()[-2000:])
