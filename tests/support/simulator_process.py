"""A simulator in its own process, for tests: ``with simulator() as sim: … sim.url …``."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from drill.processes import ROOT, Running


def directive(script: dict[str, Any] | None = None, /, **fields: Any) -> str:
    """The text that makes a message a script: ``directive(tokens=5, faults=[{"kind": "cut", "after": 2}])``."""
    return f"[[sim {json.dumps((script or {}) | fields)}]]"


def prompt(words: str = "", /, **fields: Any) -> str:
    """A user message that no other test has, with a script if there are fields for one."""
    return " ".join(filter(None, (words, uuid.uuid4().hex, directive(fields) if fields else "")))


class SimulatorProcess:
    """A running simulator. Only ``wait`` takes time, so only it is async."""

    def __init__(self, url: str, process: Running) -> None:
        self.url = url
        self.process = process

    def requests(self, contains: str = "") -> list[dict[str, Any]]:
        """The log entries whose last user message contains the text, oldest first."""
        return list(self._ok("GET", "/sim/requests", contains=contains))

    async def wait(
        self, contains: str = "", *, requests: int = 1, tokens: int = 0, ended: bool = False, timeout: float = 30
    ) -> dict[str, Any]:
        """The log entry of matching request number ``requests``, once it has sent ``tokens`` tokens, or has ended.

        ``timeout`` is in seconds. Raises TimeoutError, which shows the last requests.
        """
        query = {"contains": contains, "requests": requests, "tokens": tokens, "ended": ended, "timeout": timeout}
        status, found = await asyncio.to_thread(self._call, "GET", "/sim/wait", query, None, timeout + 5)
        if status == 408:
            raise TimeoutError(f"no such request within {timeout} s: {query}; {found}")
        assert status == 200, found
        return dict(found)

    def release(self, contains: str) -> None:
        """Answers that are held (``hold`` in their script) go on, where the last user message contains the text."""
        self._ok("POST", "/sim/release", contains=contains)

    def script(self, *, match: str = "", times: int | None = None, **script: Any) -> None:
        """The script of all following requests without a directive whose last user message contains ``match``."""
        self._ok("POST", "/sim/script", {"script": script, "match": match, "times": times})

    def drop_scripts(self) -> None:
        self._ok("DELETE", "/sim/script")

    def batches(self, *, match: str = "", times: int | None = None, **script: Any) -> None:
        """The script (BatchScript) of all following batch jobs whose metadata has a value that contains ``match``."""
        self._ok("POST", "/sim/batches", {"script": script, "match": match, "times": times})

    def drop_batches(self) -> None:
        """Forget the scripts of batch jobs and the faults of calls, and count calls anew."""
        self._ok("DELETE", "/sim/batches")

    def release_batches(self) -> None:
        """Batch jobs that are held (``hold`` in their script) go on."""
        self._ok("POST", "/sim/batches/release")

    def faults(self, call: str, *faults: dict[str, Any] | None) -> None:
        """The faults of the next calls named ``call`` (CallName), one for each; None lets a call pass."""
        self._ok("POST", "/sim/calls", {"call": call, "faults": faults})

    def calls(self) -> dict[str, int]:
        """How many calls of files and batch jobs there were, by name."""
        return dict(self._ok("GET", "/sim/calls"))

    def answer(self, text: str, **parameters: Any) -> dict[str, Any]:
        """What the model would say to a user message: ``text, tokens, reasoning, finish_reason, usage``."""
        body = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": text}]}
        return dict(self._ok("POST", "/sim/answer", body | parameters))

    def forget(self) -> None:
        """Empty the log, and begin each conversation's attempts anew."""
        self._ok("DELETE", "/sim/requests")

    def _ok(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        status, found = self._call(method, path, query, body)
        assert status == 200, found
        return found

    def _call(self, method: str, path: str, query: dict[str, Any], body: Any, timeout: float = 30) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout)
        try:
            target = f"{path}?{urlencode(query)}"
            connection.request(method, target, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@contextmanager
def simulator(**options: Any) -> Iterator[SimulatorProcess]:
    """A simulator process until the end of the block. Options are those of its command line: ``rate="40:80"``.

    Without options it answers at once and as fast as it can.
    """
    options = {"first_token": 0, "rate": 0, "batch_seconds": 0, "batch_rate": 0} | options
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "simulator", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("simulator listening on "), f"the simulator did not start: {line!r}"
            yield SimulatorProcess(line.split()[-1], process)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
