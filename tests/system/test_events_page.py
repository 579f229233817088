"""docs/events.md: its examples run, against a real service and a real receiver; the command line does the same."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

import starter
from chatjobs.client import AsyncChatJobs
from chatjobs.contracts import FeedEventType
from chatjobs.errors import EndpointNotFound, InvalidRequest, StreamBroken, WebhookUrlRefused
from chatjobs.webhooks import verify
from tests.support.factories import make_body
from tests.support.gateway import Gateway, gateway
from tests.support.needs import lacking
from tests.support.receiver import Receiver, receiver
from tests.support.snippets import output, snippets
from tests.support.stack import ROOT, Stack, free_port, stack, wait_until

pytestmark = pytest.mark.long

SECRET = "a secret of the endpoint"


@dataclass(frozen=True)
class Running:
    stack: Stack
    door: Gateway
    hooks: Receiver

    def environment(self, directory: Path, path: str) -> dict[str, str]:
        """What the examples read; each has its own path of the receiver."""
        return {
            "CHATJOBS_URL": self.door.url,
            "PLACE": str(directory / "place"),
            "HOOK": self.hooks.url(path),
            "HOOK_SECRET": SECRET,
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }

    def job(self, **fields: Any) -> dict[str, Any]:
        """A job that has ended."""
        with httpx2.Client(base_url=self.door.url, trust_env=False, timeout=40) as client:
            answer = client.post("/api/jobs", json=make_body(**fields), headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def last_id(self) -> str:
        """The id of the newest event, which must be a terminal one by now."""
        query = {"after": "0", "limit": "1000"}
        with httpx2.Client(base_url=self.door.url, trust_env=False, timeout=40) as client:
            found = client.get("/api/events", params=query).json()["events"]
        assert found[-1]["event"] == "chat.completed"
        return str(found[-1]["id"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    env = {"CHATJOBS_PORT": str(free_port())}
    with receiver() as hooks, stack(tmp_path_factory.mktemp("events"), env=env) as started:
        yield Running(started, gateway(started), hooks)


def shell(code: str, env: dict[str, str]) -> str:
    if shutil.which("curl") is None:
        lacking("curl")
    path = {"PATH": "/usr/bin:/bin:/usr/local/bin"}
    done = subprocess.run(["/bin/sh", "-ec", code], env=env | path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def listening(code: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_listener_that_is_killed_goes_on(running: Running, tmp_path: Path) -> None:
    """With the event after the last one that it has processed; also a gateway that is killed loses none."""
    (code,) = snippets("events.md", "python listen")
    env = running.environment(tmp_path, "/unused")
    jobs = [running.job(metadata={"order": "1"})["jobId"]]
    with listening(code, env) as first:
        seen = lines_of(first, 1)
        jobs.append(running.job()["jobId"])
        seen += lines_of(first, 1)
        place = running.last_id()
        assert wait_until(lambda: (tmp_path / "place").read_text() == place)
        first.kill()
    jobs.append(running.job()["jobId"])
    with listening(code, env) as second:
        seen += lines_of(second, 1)
        running.door.process.restart()
        jobs.append(running.job()["jobId"])
        seen += lines_of(second, 1)
        place = running.last_id()
        assert wait_until(lambda: (tmp_path / "place").read_text() == place)
        second.kill()
    assert seen[0] == f"chat.completed {jobs[0]} {{'order': '1'}}"
    assert [line.split()[1] for line in seen] == jobs


def test_the_pages_of_the_example(running: Running, tmp_path: Path) -> None:
    running.job()
    (code,) = snippets("events.md", "sh pages")
    printed = shell(code.replace("\n", "; echo\n"), _env(running, tmp_path))
    first, second = [json.loads(line) for line in printed.split("\n") if line]
    assert [event["id"] for event in first["events"]] == ["1", "2"]
    assert first["next"] == "2"
    assert second["events"][0]["event"] == "chat.completed"
    (shown,) = snippets("events.md", "json")
    assert json.loads(shown)["events"][0].keys() == second["events"][0].keys() - {"batchId"}


def _env(running: Running, directory: Path) -> dict[str, str]:
    return running.environment(directory, "/unused")


def test_the_stream_of_the_example(running: Running, tmp_path: Path) -> None:
    running.job()
    (code,) = snippets("events.md", "sh stream")
    for_a_while = code.replace("-sN", "-sN -m 2").replace("event-stream'", "event-stream' || true")
    seen = shell(for_a_while, _env(running, tmp_path))
    assert seen.startswith("retry: 1000\nevent: ready\nid: 0\n")
    assert "event: chat.created\nid: 1\ndata: {" in seen


def test_an_endpoint_gets_all_jobs(running: Running, tmp_path: Path) -> None:
    """Within a moment, signed with its secret; not those that it does not want."""
    (code,) = snippets("events.md", "python endpoint")
    env = running.environment(tmp_path, "/python")
    assert output(code, env=env) == f"{env['HOOK']} ['chat.completed', 'chat.failed'] True\n"
    jobs = [running.job(model="mistral-small-latest")["jobId"] for _ in range(3)]
    began = time.monotonic()
    posts = running.hooks.wait_for(3, path="/python")
    assert time.monotonic() - began < 10
    events = [verify(post.body, post.headers, secrets=SECRET, now=datetime.now(UTC)) for post in posts]
    assert {event.data.job_id for event in events} == set(jobs)


def test_endpoints_with_curl(running: Running, tmp_path: Path) -> None:
    (code,) = snippets("events.md", "sh endpoint")
    env = running.environment(tmp_path, "/curl")
    added, listed, deleted = shell(code.replace("\ncurl", "\necho\ncurl"), env).split("\n")[:3]
    assert json.loads(added)["events"] == ["chat.failed", "batch.completed"]
    assert {one["url"]: one["events"] for one in json.loads(listed)["endpoints"]}[env["HOOK"]] is not None
    assert deleted == ""


async def test_the_client(running: Running) -> None:
    """Listens from now on; refuses what cannot be right before it calls."""
    async with AsyncChatJobs(running.door.url) as jobs:
        async with jobs.listen(types=[FeedEventType.COMPLETED], timeout=60) as events:
            following = asyncio.ensure_future(anext(aiter(events)))
            while not following.done():  # it begins whenever it is connected
                await asyncio.to_thread(running.job)
            event = await following
            assert event.event is FeedEventType.COMPLETED
            assert events.last_event_id == event.id
        with pytest.raises(StreamBroken):
            jobs.listen("x")
        with pytest.raises(ValueError, match=r"chat\.done"):
            jobs.listen(types=["chat.done"])
        with pytest.raises(InvalidRequest, match="events"):
            await jobs.add_endpoint("https://receiver.example/", [])
        with pytest.raises(InvalidRequest, match="secret"):
            await jobs.add_endpoint("https://receiver.example/", secret="whsec_not base64")
        with pytest.raises(WebhookUrlRefused):
            await jobs.add_endpoint("http://169.254.169.254/latest")
        with pytest.raises(EndpointNotFound):
            await jobs.delete_endpoint("https://nobody.example/")
        assert not [one for one in await jobs.endpoints() if "nobody" in one.url]


def call(running: Running, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as changed:
        for name, value in running.stack.env.items():
            changed.setenv(name, value)
        return (starter.main(list(arguments)), *capfd.readouterr())


def test_the_command_line(running: Running, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = running.hooks.url("/cli")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    given = ("--event", "chat.completed", "--secret-file", str(tmp_path / "secret"))
    added = call(running, capfd, "endpoints", "add", url, *given)
    assert added == (0, f"{url} added: chat.completed\n", "")
    changed = call(running, capfd, "endpoints", "add", url, "--json")
    assert json.loads(changed[1])["ownSecret"] is True
    assert len(json.loads(changed[1])["events"]) == 7
    assert SECRET not in changed[1]
    job = running.job()
    (post,) = running.hooks.wait_for(1, path="/cli")
    assert verify(post.body, post.headers, secrets=SECRET, now=datetime.now(UTC)).data.job_id == job["jobId"]
    assert "all jobs, 7 events" in call(running, capfd, "endpoints")[1]
    assert call(running, capfd, "webhooks", "test", url)[0] == 0
    tested = running.hooks.wait_for(2, path="/cli")[1]
    assert verify(tested.body, tested.headers, secrets=SECRET, now=datetime.now(UTC))
    wanted = ("--after", "0", "--event", "chat.completed", "--count", "1", "--json")
    code, out, err = call(running, capfd, "listen", *wanted)
    assert (code, json.loads(out)["event"], err) == (0, "chat.completed", "")
    assert "chat.created" in call(running, capfd, "listen", "--after", "0", "--count", "1", "--all")[1]
    assert call(running, capfd, "listen", "--after", "99999999")[0] == 2
    assert call(running, capfd, "listen", "--event", "chat.done")[0] == 2
    removed = call(running, capfd, "endpoints", "remove", url)
    assert removed[:2] == (0, f"{url} removed; 0 deliveries to it given up\n")
    assert call(running, capfd, "endpoints", "remove", url)[0] == 2
    assert call(running, capfd, "endpoints", "add", "http://169.254.169.254/")[0] == 2
