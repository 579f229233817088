"""The official OpenAI clients as processes of their own, for Python and for Node.

    with python_client(url) as openai:
        response = openai.call("responses.create", model=MODEL, input="Hello", background=True)
        for event in openai.events("responses.retrieve", response["id"], stream=True):
            ...

Both take the same calls (clients/openai_bridge.py, node/openai_bridge.mjs). That for Python validates whatever it gets
against the client's types.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.needs import program
from tests.support.stack import ROOT

HERE = Path(__file__).parent
PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"
"""`make .venv/clients/made` brings it: the clients from PyPI have an environment of their own."""


class ClientError(Exception):
    """The exception that a client raised. ``name`` is its class, ``status`` that of the answer, if there was one."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        super().__init__(line["message"])
        self.name: str = line["error"]
        self.status: int | None = line.get("status")
        self.code: str | None = line.get("code")
        self.param: str | None = line.get("param")
        self.message: str = line["message"]
        self.body: Any = line.get("body")


@dataclass
class OpenAIClient:
    """A client of a gateway. ``url`` may be changed, as to that of a proxy."""

    process: subprocess.Popen[str]
    url: str
    key: str | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    """The last line of the last call: its result, and what the client makes of it."""

    def call(self, method: str, *args: str, headers: Mapping[str, str] | None = None, **params: Any) -> Any:
        """The result of a call. Raises ClientError."""
        for _ in self.events(method, *args, headers=headers, **params):
            pass
        return self.answer["result"]

    def events(
        self,
        method: str,
        *args: str,
        headers: Mapping[str, str] | None = None,
        stop_after: int | None = None,
        **params: Any,
    ) -> Iterator[dict[str, Any]]:
        """The events of a streamed call, all of them or only so many. Raises ClientError."""
        call = {"method": method, "args": args, "params": params, "headers": headers or {}, "stop_after": stop_after}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"url": f"{self.url}/v1", "key": self.key, **call}) + "\n")
        self.process.stdin.flush()
        while True:
            read = self.process.stdout.readline()
            assert read, f"the client ended: {self.process.wait(10)}"
            line = json.loads(read)
            if "event" not in line:
                break
            yield line["event"]
        self.answer = line
        if "error" in line:
            raise ClientError(line)


@contextmanager
def python_client(url: str) -> Iterator[OpenAIClient]:
    with _client([str(PYTHON), str(HERE / "clients" / "openai_bridge.py")], url) as client:
        yield client


@contextmanager
def node_client(url: str, home: Path) -> Iterator[OpenAIClient]:
    """``home``: a copy of node/ with its packages (tests/support/npm.py)."""
    with _client([program("node"), str(home / "openai_bridge.mjs")], url) as client:
        yield client


@contextmanager
def _client(command: Sequence[str], url: str) -> Iterator[OpenAIClient]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    ) as process:
        try:
            yield OpenAIClient(process, url)
        finally:
            process.kill()
