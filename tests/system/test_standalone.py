"""`make run`, for real: what it shows, and that what is killed takes nothing with it and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.operatorservice.v1 import ListNexusEndpointsRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from chatjobs.contracts import Job, JobStatus
from chatjobs.nexus import ENDPOINT
from chatjobs.webhooks import verify
from dispatch.intake import Intake
from dispatch.temporal import pollers
from domain.names import JOBS_QUEUE
from domain.values import Cursor
from drill.processes import Process
from storage.engine.database import Database
from storage.jobs.store import JobStore
from storage.transcript.reader import TranscriptReader
from tests.support.factories import make_body
from tests.support.fakes import eventually
from tests.support.receiver import receiver
from tests.support.simulator_process import prompt, simulator
from tests.support.stack import OURS, ROOT, wait_until

pytestmark = pytest.mark.long

CHILDREN = ("temporal", "simulator", "worker", "gateway")
PATIENCE = 30.0
READY = "ready    http"
SAMPLE_RATE = "150:150"


class Machine:
    """A data directory and the `python -m local` that runs on it, now and then another one."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.data = directory / "data"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | {
            "HOME": str(directory),
            "CHATJOBS_DATA_DIR": str(self.data),
            "CHATJOBS_HEARTBEAT_SECONDS": "1",
            **env,
        }
        self.command = [sys.executable, "-m", "local", "--", "--first-token", "0.01:0.02", "--rate", SAMPLE_RATE]
        self.supervisor = Process("standalone", self.command, env=self.env, log=directory / "output", ready=READY)
        self.started: dict[int, psutil.Process] = {}

    def up(self) -> None:
        """Start, unless it runs already."""
        if not self.supervisor.running:
            self.supervisor.start()
        self.children()

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of starter.py."""
        command = [sys.executable, "starter.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)

    def children(self) -> dict[str, psutil.Process]:
        """The processes now, by their names in the output."""
        found = {}
        for child in psutil.Process(self.supervisor.pid).children(recursive=True):
            self.started[child.pid] = child
            words = " ".join(child.cmdline())
            found[next(name for name in CHILDREN if name in words.removeprefix(sys.executable))] = child
        return found

    def kill_leftovers(self) -> None:
        if self.supervisor.running:
            self.children()
            self.supervisor.kill()
        for process in self.started.values():
            if process.is_running():  # psutil compares start times: never a stranger with the same id
                process.kill()

    def endpoints(self) -> dict[str, str | None]:
        return dict(json.loads((self.data / "endpoints.json").read_text()))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    built = Machine(tmp_path_factory.mktemp("machine"))
    yield built
    built.kill_leftovers()


def gone(*processes: psutil.Process, timeout: float = 20) -> bool:
    return bool(wait_until(lambda: not any(alive(process) for process in processes), timeout=timeout))


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Jobs:
    """A caller's view: submit jobs, see them end."""

    def __init__(self, database: Database, client: Client, reader: TranscriptReader) -> None:
        self.store = JobStore(database)
        self.intake = Intake(jobs=self.store, client=client)
        self.reader = reader

    async def submit(self, text: str) -> str:
        accepted = await self.intake.accept(make_body(text), tenant="default")
        await self.intake.start(accepted)
        return accepted.job_id

    async def streams(self, job_id: str, characters: int = 1) -> None:
        """Wait until so much of the answer is there."""
        async with asyncio.timeout(PATIENCE):
            async for piece in self.reader.follow(Cursor(job_id)):
                if piece.position >= characters:
                    return

    async def ended(self, job_id: str) -> Job:
        async with asyncio.timeout(PATIENCE):
            async for _ in self.reader.follow(Cursor(job_id)):
                pass
        return await self.store.queries.get(job_id)


@asynccontextmanager
async def jobs(machine: Machine) -> AsyncIterator[Jobs]:
    database = await Database.open(f"sqlite:///{machine.data / 'chatjobs.db'}")
    try:
        address = machine.endpoints()["temporal"] or ""
        client = await Client.connect(address, data_converter=pydantic_data_converter)
        async with TranscriptReader(database).running() as reader:
            yield Jobs(database, client, reader)
    finally:
        await database.close()


async def unfinished_job(machine: Machine) -> str:
    """The id of a job whose answer is being streamed and has long to go."""
    async with jobs(machine) as here:
        job_id = await here.submit(prompt(tokens=40, tokens_per_second=20))
        await here.streams(job_id, characters=20)
        return job_id


async def outcome(machine: Machine, job_id: str) -> Job:
    async with jobs(machine) as here:
        return await here.ended(job_id)


# ------------------------------------------------------------------------------------------------ what it shows


def test_it_shows_a_chat_token_by_token_and_is_ready(machine: Machine) -> None:
    machine.supervisor.start(wait=False)
    seen = {""}

    def ready() -> bool:
        seen.add(machine.supervisor.output())
        return any(READY in text for text in seen)

    wait_until(ready, timeout=PATIENCE)
    output = max(seen, key=len)
    assert output.startswith("chatjobs http://127.0.0.1:")
    assert "MISTRAL_API_KEY is not set: answers come from a simulator, NOT from Mistral\n" in output
    assert re.search(r"^job      job_[0-9a-f]{32}$", output, re.MULTILINE), output
    assert "\nstatus   completed\n" in output
    assert re.search(r"^usage    \d+ prompt \+ \d+ completion = \d+ tokens$", output, re.MULTILINE)
    assert re.search(r"^ready ", output, re.MULTILINE)
    assert len(seen) > 10, "the answer did not come piece by piece"


def test_the_links_it_prints_lead_somewhere(machine: Machine) -> None:
    machine.up()
    endpoints = machine.endpoints()
    assert endpoints.keys() == {"gateway", "temporal", "temporalUi", "metrics", "simulator"}
    run = machine.supervisor.wait_for_log("run      ").split()[1]
    assert run.startswith(f"{endpoints['temporalUi']}/namespaces/default/workflows/job_")
    for url in (run, endpoints["metrics"], f"{endpoints['simulator']}/sim/requests", f"{endpoints['gateway']}/healthz"):
        with urllib.request.urlopen(str(url), timeout=20) as answer:  # noqa: S310 - our own addresses
            assert answer.status == 200, url


async def test_other_namespaces_reach_it_through_nexus(machine: Machine) -> None:
    """It has made the endpoint, for which workers poll."""
    machine.up()
    client = await Client.connect(machine.endpoints()["temporal"] or "")
    found = await client.operator_service.list_nexus_endpoints(ListNexusEndpointsRequest(name=ENDPOINT))
    (endpoint,) = found.endpoints
    assert endpoint.spec.target.worker.task_queue == JOBS_QUEUE
    await eventually(lambda: pollers(client, JOBS_QUEUE, TaskQueueType.TASK_QUEUE_TYPE_NEXUS))


def test_the_example_it_prints_works_when_pasted(machine: Machine) -> None:
    machine.up()
    line = machine.supervisor.wait_for_log("Try it:  curl")
    pasted = line.partition("Try it:  ")[2].replace("curl ", "curl --silent --noproxy '*' --max-time 30 ", 1)
    answer = subprocess.run(pasted, shell=True, capture_output=True, text=True, timeout=60)  # noqa: S602 - as people do
    assert "event: complete" in answer.stdout, answer


def test_it_says_where_webhooks_may_go(machine: Machine) -> None:
    machine.up()
    assert "any port from 1024" in machine.supervisor.wait_for_log("while there is no key also to this machine")
    line = machine.supervisor.wait_for_log("but never to this service's own ports")
    for name in ("gateway", "temporalUi", "simulator"):
        assert str(machine.endpoints()[name]).rpartition(":")[2] in line


def test_a_receiver_at_the_gateways_usual_port_is_no_part_of_the_service(tmp_path: Path) -> None:
    """The gateway takes another port where that one is taken; worker and command line judge by the port it took."""
    with receiver() as hooks:
        url = hooks.url("/")
        port = urlsplit(url).port
        machine = Machine(tmp_path, CHATJOBS_PORT=str(port))
        try:
            machine.up()
            gateway = str(machine.endpoints()["gateway"])
            assert urlsplit(gateway).port != port
            job = machine.call("start", prompt(tokens=1), "--callback", url)
            assert job.returncode == 0, job.stderr
            (received,) = hooks.wait_for(1, timeout=PATIENCE)
            assert json.loads(received.body)["data"]["jobId"] == job.stdout.strip()
            tested = machine.call("webhooks", "test", url)
            assert (tested.returncode, tested.stdout.startswith("delivered: ")) == (0, True), tested
            assert verify(
                hooks.requests()[-1].body,
                hooks.requests()[-1].headers,
                secrets=(machine.data / "webhook_secret").read_text().strip(),
                now=datetime.now(UTC),
            )
            refused = machine.call("start", "hi", "--callback", f"{gateway}/")
            assert (refused.returncode, "a part of the service itself" in refused.stderr) == (2, True)
        finally:
            machine.kill_leftovers()


def test_the_secret_it_makes_is_kept_private(machine: Machine) -> None:
    machine.up()
    secret = machine.data / "webhook_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text().startswith("whsec_")


def test_a_second_one_is_refused_and_told_by_whom(machine: Machine) -> None:
    machine.up()
    second = subprocess.run(machine.command, cwd=ROOT, env=machine.env, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"process {machine.supervisor.pid};" in second.stderr
    assert "CHATJOBS_DATA_DIR" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert machine.endpoints(), "the first one was disturbed"


def test_another_directory_gets_other_ports(machine: Machine, tmp_path: Path) -> None:
    """Two of them live side by side, and one that is told to stop in the middle of its start stops."""
    machine.up()
    env = machine.env | {"CHATJOBS_DATA_DIR": str(tmp_path / "data")}
    other = Process("other", machine.command, env=env, log=tmp_path / "output", ready=READY)
    try:
        other.start(wait=False)
        other.wait_for_log("temporal is up")
        served = psutil.Process(other.pid).children()
        ports = {c.laddr.port for child in served for c in child.net_connections() if c.status == psutil.CONN_LISTEN}
        assert int(str(machine.endpoints()["temporal"]).rpartition(":")[2]) not in ports
        assert other.stop() == 0
        assert gone(*served)
    finally:
        other.kill()


# ------------------------------------------------------------------------------------------------ what is killed


@pytest.mark.parametrize("name", CHILDREN)
async def test_a_killed_child_is_started_again(machine: Machine, name: str) -> None:
    machine.up()
    machine.children()[name].kill()
    machine.supervisor.wait_for_log(f"{name} was killed (signal 9)")
    line = machine.supervisor.wait_for_log(f"{name} is up again")
    assert f"(process {machine.children()[name].pid})" in line
    async with jobs(machine) as here:
        assert (await here.ended(await here.submit(prompt()))).status is JobStatus.COMPLETED


async def test_nothing_survives_a_killed_supervisor_but_the_jobs(machine: Machine) -> None:
    machine.up()
    job_id = await unfinished_job(machine)
    children = machine.children()
    assert children.keys() == set(CHILDREN)
    machine.supervisor.kill()
    machine.supervisor.start()  # at once: it waits for what is still dying
    assert gone(*children.values())
    job = await outcome(machine, job_id)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 2)


async def test_jobs_survive_when_all_are_killed(machine: Machine) -> None:
    machine.up()
    job_id = await unfinished_job(machine)
    processes = [psutil.Process(machine.supervisor.pid), *machine.children().values()]
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # children also end with the supervisor, which is killed first
            process.kill()
    machine.supervisor.popen.wait(5)
    assert gone(*processes)
    machine.supervisor.start()
    job = await outcome(machine, job_id)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped(machine: Machine, number: signal.Signals) -> None:
    machine.up()
    children = machine.children()
    assert os.getsid(machine.supervisor.pid) not in {os.getsid(child.pid) for child in children.values()}, (
        "a Ctrl-C in the terminal would reach the children first"
    )
    machine.supervisor.popen.send_signal(number)
    assert machine.supervisor.popen.wait(PATIENCE) == 0
    assert gone(*children.values())
    assert machine.supervisor.output().endswith("stopped\n")
    assert not (machine.data / "endpoints.json").exists()


def test_it_ends_with_make(machine: Machine, tmp_path: Path) -> None:
    """A killed `make` leaves nobody who could press Ctrl-C."""
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", starter, *machine.command[:3], "--end-with-parent", *machine.command[3:]]
    make = Process("make", command, env=machine.env, log=tmp_path / "output", ready=READY)
    machine.kill_leftovers()
    make.start()
    processes = psutil.Process(make.pid).children(recursive=True)
    try:
        assert len(processes) == 1 + len(CHILDREN)
        make.kill()
        assert gone(*processes, timeout=PATIENCE)  # they are stopped in order
    finally:
        for process in processes:
            if process.is_running():
                process.kill()


# --------------------------------------------------------------------------------------- what keeps it from running


def failed(machine: Machine, *arguments: str, **env: str) -> str:
    """The one line that it ends with."""
    command = [sys.executable, "-m", "local", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=machine.env | env, capture_output=True, text=True, timeout=PATIENCE)
    assert found.returncode == 1, found.stdout
    assert len(found.stderr.splitlines()) == 1, found.stderr
    return found.stderr


def test_a_directory_that_cannot_be_written_is_named(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file' / 'data'} cannot be written" in failed(
        machine, CHATJOBS_DATA_DIR=str(tmp_path / "file" / "data")
    )


def test_a_wrong_setting_is_named(machine: Machine) -> None:
    assert "CHATJOBS_CONCURRENCY must be a whole number" in failed(machine, CHATJOBS_CONCURRENCY="many")


def test_a_child_that_cannot_start_is_named_with_its_last_words(machine: Machine, tmp_path: Path) -> None:
    options = ["--", "--rate", "fast"]
    said = failed(machine, *options, CHATJOBS_DATA_DIR=str(tmp_path / "data"))
    assert "simulator does not start: " in said
    assert "invalid span value: 'fast'" in said


def test_a_wrong_key_is_said_clearly_and_is_no_reason_to_stop(tmp_path: Path) -> None:
    """The first chat with a key that Mistral refuses."""
    machine = Machine(tmp_path)
    try:
        with simulator() as mistral:
            mistral.script(faults=[{"kind": 401}], repeat_last=True)
            machine.env |= {"MISTRAL_API_KEY": "wrong", "MISTRAL_SERVER_URL": mistral.url}
            machine.up()
        output = machine.supervisor.output()
        assert "\nstatus   failed\n" in output
        assert re.search(r"^error    .*MISTRAL_API_KEY.*401", output, re.MULTILINE), output
        assert "simulator" not in output
    finally:
        machine.kill_leftovers()
