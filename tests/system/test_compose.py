"""docker-compose.yml, Dockerfile and .env.example say what is so; and what they start works together.

No image is pulled here. What the containers run is started as plain processes instead: from the copied files, with the
commands, the shell and the wiring that stand in the files, on a real Postgres and a real Temporal.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import yaml
from temporalio.client import Client

from chatjobs.nexus import ENDPOINT
from domain.names import JOBS_QUEUE, SEARCH_ATTRIBUTES
from domain.settings import Settings
from gateway.serving.server import GRACE_SECONDS
from local import temporal_server as devserver
from tests.support.factories import make_body
from tests.support.fakes import PATIENCE, eventually
from tests.support.gateway import Gateway, gateway
from tests.support.needs import lacking
from tests.support.postgres import Postgres
from tests.support.simulator_process import prompt
from tests.support.stack import ROOT, Stack, free_port, stack
from tests.support.temporal_server import binary, temporal_server

pytestmark = pytest.mark.long

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("gateway", "worker")
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
SETTINGS = {name.upper() for name in Settings.model_fields}
TEMPORAL_CLIENT = {"TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"}
NOT_IN_THE_IMAGE = {"drill", "local"}
"""`starter.py drill` breaks a stack of its own, with a Temporal that the image does not have; imported for it only."""
INSTRUCTIONS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of a kind in the Dockerfile."""
    return [arguments for found, arguments in INSTRUCTIONS if found == name]


def seconds(duration: str) -> float:
    amount, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]  # fails the test
    return float(amount) * {"s": 1, "m": 60}[unit]


# -------------------------------------------------------------------------------------------- the compose file


def test_docker_reads_it(tmp_path: Path) -> None:
    """Where Docker Compose is there to ask."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        lacking("docker compose")
    (tmp_path / "env").write_text(
        "".join(f"{name}={value or 'filled-in'}\n" for name, value in EXAMPLE.items()), encoding="utf-8"
    )
    command = [docker, "compose", "--env-file", str(tmp_path / "env"), "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    """And none has a default, so that what runs is what stands there."""
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)(?::\?[^}]+)?\}", TEXT))
    assert used == set(EXAMPLE)
    assert ":-" not in "".join(re.findall(r"(?<!\$)\$\{[^}]*\}", TEXT))


def test_every_setting_is_one() -> None:
    for name in OURS:
        assert set(SERVICES[name]["environment"]) <= SETTINGS | TEMPORAL_CLIENT, name
    assert {name for name in EXAMPLE if name.startswith("CHATJOBS_")} <= SETTINGS | {"CHATJOBS_VERSION"}


def test_the_example_is_valid_once_it_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the values that stand in the compose file itself."""
    given = EXAMPLE | {"MISTRAL_API_KEY": "key", "POSTGRES_PASSWORD": "password", "WEBHOOK_SECRET": "one,two"}
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for service in OURS:
        for name, value in SERVICES[service]["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{([A-Z_]+)[^}]*\}", lambda found: given[found[1]], str(value)))
    settings = Settings()
    assert settings.database_url == "postgresql://chatjobs:password@postgres:5432/chatjobs"
    assert (settings.chatjobs_concurrency, len(settings.webhook_secret)) == (20, 2)
    assert settings.chatjobs_retention_days > int(EXAMPLE["TEMPORAL_RETENTION"].removesuffix("d"))


def test_versions_are_pinned() -> None:
    """Each to one release, the same one for Temporal's server and its tools; and to that one which is tested here."""
    pinned = [name for name in EXAMPLE if name.endswith("_IMAGE")]
    assert all(re.fullmatch(r"[a-z/]+(-tools)?:\d+\.\d+\.?\d*[a-z0-9.-]*", EXAMPLE[name]) for name in pinned)
    assert ":latest" not in TEXT + "".join(EXAMPLE.values())
    server, tools = (EXAMPLE[f"TEMPORAL_{name}_IMAGE"].split(":")[1] for name in ("SERVER", "ADMIN_TOOLS"))
    version = subprocess.run([binary("temporal"), "--version"], capture_output=True, text=True, check=True).stdout
    assert server == tools
    assert f"Server {server}" in version
    assert f"ARG PYTHON_IMAGE={EXAMPLE['PYTHON_IMAGE']}" in (ROOT / "Dockerfile").read_text()
    assert {service["image"].split(":")[0] for name, service in SERVICES.items() if name in OURS} == {"chatjobs"}
    others = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert {re.findall(r"\$\{([A-Z_]+)", image)[0] for image in others} == set(pinned) - {"PYTHON_IMAGE"}


def test_no_secret_is_baked_in() -> None:
    """Secrets are empty in the example, required where nothing works without, and no build ever sees them."""
    secrets = ("MISTRAL_API_KEY", "POSTGRES_PASSWORD", "WEBHOOK_SECRET")
    assert [EXAMPLE[name] for name in secrets] == ["", "", ""]
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|PWD|SECRET|API_KEY|DATABASE_URL", name):
                assert "${" in str(value), name
        assert not any(secret in str(service.get("build")) for secret in secrets)
    assert ".env" not in (ROOT / ".dockerignore").read_text().replace("environment", "")


def test_the_worker_can_be_scaled_and_hands_over_before_it_is_killed() -> None:
    worker = SERVICES["worker"]
    assert {"container_name", "ports"} & set(worker) == set()
    grace = float(worker["environment"]["CHATJOBS_GRACE_SECONDS"])
    assert seconds(worker["stop_grace_period"]) > grace + 10
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > GRACE_SECONDS + 5


def test_ours_run_without_root_and_cannot_write() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["deploy"]["resources"]["limits"]["memory"]
    assert instructions("USER") == ["10001:10001"]


def test_only_the_door_may_be_opened_to_others() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway", "temporal", "temporal-ui"}
    assert EXAMPLE["GATEWAY_PUBLISHED"].startswith("127.0.0.1:")
    for name in ("temporal", "temporal-ui"):
        assert all(port.startswith("127.0.0.1:") for port in published[name])
    inside = SERVICES["gateway"]["environment"]["CHATJOBS_PORT"]
    assert published["gateway"] == [f"${{GATEWAY_PUBLISHED:?copy .env.example to .env}}:{inside}"]
    assert instructions("EXPOSE") == [inside]
    assert f":{inside}/healthz" in instructions("HEALTHCHECK")[0]
    assert EXAMPLE["CHATJOBS_TEMPORAL_UI"].endswith(published["temporal-ui"][0].split(":")[1])


def test_what_starts_after_what() -> None:
    """Nothing waits for the gateway, which waits for its first key; and no chain of waiting closes."""

    def waits_for(name: str) -> dict[str, str]:
        return {other: found["condition"] for other, found in SERVICES[name].get("depends_on", {}).items()}

    ready = {"postgres": "service_healthy", "temporal-namespace": "service_completed_successfully"}
    assert waits_for("gateway") == waits_for("worker") == ready
    assert waits_for("temporal") == {"temporal-schema": "service_completed_successfully"}
    left = {name: set(waits_for(name)) for name in SERVICES}
    for name, others in left.items():
        assert "gateway" not in others, name
        for other, condition in waits_for(name).items():
            assert condition != "service_healthy" or "healthcheck" in SERVICES[other]
    while left:
        startable = {name for name, others in left.items() if not others & set(left)}
        assert startable, f"these wait for one another: {left}"
        left = {name: others for name, others in left.items() if name not in startable}


def test_the_server_is_tuned_as_on_one_machine() -> None:
    """Names of dynamic settings are not checked by anybody else: the server ignores what it does not know."""
    (config,) = SERVICES["temporal"]["configs"]
    assert config["target"] == SERVICES["temporal"]["environment"]["DYNAMIC_CONFIG_FILE_PATH"]
    dynamic = yaml.safe_load(COMPOSE["configs"][config["source"]]["content"])
    assert dynamic["matching.enableFairness"] == [{"value": True}]
    known = " ".join(devserver.command(Path("x"), port=1))
    for name, [entry] in dynamic.items():
        assert f"{name}={json.dumps(entry['value'])}" in known
    local = set(re.findall(r"((?:frontend|history|matching)\.\w+)=", known))
    # Several machines need the partitions of a task queue.
    assert local - set(dynamic) == {setting.partition("=")[0] for setting in devserver.ONE_PARTITION}


async def test_the_namespace_job_does_its_work_and_may_run_again(tmp_path: Path) -> None:
    """Its shell, on a real server that has neither the namespace nor the search attributes."""
    (script,) = SERVICES["temporal-namespace"]["command"]
    entry = SERVICES["temporal-namespace"]["entrypoint"]
    with temporal_server(tmp_path, search_attributes=False) as server:
        environment = {
            "PATH": f"{Path(binary('temporal')).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "TEMPORAL_ADDRESS": server.address,
            "TEMPORAL_NAMESPACE": "jobs",
            "TEMPORAL_RETENTION": EXAMPLE["TEMPORAL_RETENTION"],
        }
        for _ in range(2):
            done = await asyncio.to_thread(
                subprocess.run,
                [*entry, script.replace("$$", "$")],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        listed = await server.cli("operator", "search-attribute", "list", "--namespace", "jobs")
        assert set(SEARCH_ATTRIBUTES) <= set(listed.split())
        described = await server.cli("operator", "namespace", "describe", "--namespace", "jobs")
        assert "168h0m0s" in described
        endpoints = json.loads(await server.cli("operator", "nexus", "endpoint", "list", "-o", "json"))
        assert [(one["spec"]["name"], one["spec"]["target"]["worker"]) for one in endpoints] == [
            (ENDPOINT, {"namespace": "jobs", "taskQueue": JOBS_QUEUE})
        ]


def test_the_schema_job_is_a_shell_program(tmp_path: Path) -> None:
    """Nobody has its tool here; what it would be called with can be seen."""
    (script,) = SERVICES["temporal-schema"]["command"]
    tool = tmp_path / "temporal-sql-tool"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    command = [*SERVICES["temporal-schema"]["entrypoint"], script.replace("$$", "$")]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    login = "--plugin postgres12 --ep postgres -p 5432 -u chatjobs"
    assert lines[0] == f"{login} --db temporal create"
    assert lines[5] == (
        f"{login} --db temporal_visibility update-schema -d /etc/temporal/schema/postgresql/v12/visibility/versioned"
    )


# ------------------------------------------------------------------------------------------------ the image


def copied() -> list[str]:
    """What the Dockerfile copies from here."""
    return [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]


def test_the_image_has_what_it_imports() -> None:
    """And nothing that the context does not have, by .dockerignore."""
    context = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert set(copied()) == context
    assert all((ROOT / source).exists() for source in copied())
    rooms = {source.removesuffix(".py") for source in copied()}
    local = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    local |= {path.stem for path in ROOT.glob("*.py")}
    for source in copied():
        for path in (ROOT / source).rglob("*.py") if (ROOT / source).is_dir() else [ROOT / source]:
            if path.suffix == ".py":
                assert imported(path) & local <= rooms | NOT_IN_THE_IMAGE, path


def imported(path: Path) -> set[str]:
    """Top-level names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_copied_files_run(tmp_path: Path, postgres_server: Postgres) -> None:
    """Without its first key the gateway says what it lacks; with it, the command and the health check work."""
    home, port = tmp_path / "app", free_port()
    home.mkdir()
    for source in copied():
        place = ROOT / source
        if place.is_dir():
            shutil.copytree(place, home / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, home / source)
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS | TEMPORAL_CLIENT}
    environment = inherited | {
        "CHATJOBS_DATABASE_URL": postgres_server.new_database(),
        "CHATJOBS_HOST": SERVICES["gateway"]["environment"]["CHATJOBS_HOST"],
        "CHATJOBS_PORT": str(port),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=home, env=environment, capture_output=True, text=True, timeout=60
        )

    default = json.loads(instructions("CMD")[-1])
    assert default == SERVICES["gateway"]["command"] == ["python", "-m", "gateway"]
    refused = run(*default[1:])
    assert refused.returncode == 2
    assert "add a key (`starter.py keys add`)" in refused.stderr
    (first_key,) = re.findall(r"run --rm gateway python (.*?)  ", TEXT)
    assert run(*first_key.split()).returncode == 0
    health = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])[1:]
    health[-1] = health[-1].replace(":8000/", f":{port}/")
    with subprocess.Popen([sys.executable, *default[1:]], cwd=home, env=environment, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert any(b"gateway listening on" in line for line in process.stderr)
            assert run(*health).returncode == 0
            module = httpx2.get(f"http://127.0.0.1:{port}/assets/client/index.js", trust_env=False)
            assert module.content == (ROOT / "clients" / "typescript" / "src" / "index.js").read_bytes()
        finally:
            process.terminate()
        assert process.wait(20) == 0
    assert run(*health).returncode == 1
    examined = run("starter.py", "doctor", "--json")
    assert {"database", "versions"} <= {one["check"] for one in json.loads(examined.stdout)["checks"]}
    drilled = run("starter.py", "drill")
    assert (drilled.returncode, drilled.stdout) == (2, "")
    assert drilled.stderr == "starter: the image has no drill; run `make drill` in a checkout of the project\n"
    assert SERVICES["worker"]["command"] == ["python", "worker.py"]
    lacking = run("worker.py")
    assert (lacking.returncode, "MISTRAL_API_KEY is not set" in lacking.stderr) == (2, True)


# ------------------------------------------------------ the same wiring: two gateways and two workers, one Postgres


class Machines(NamedTuple):
    stack: Stack
    a: Gateway
    b: Gateway


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres) -> Iterator[Machines]:
    environment = {"CHATJOBS_PORT": "0", "CHATJOBS_HEARTBEAT_SECONDS": "2"}
    url = postgres_server.new_database()
    with stack(tmp_path_factory.mktemp("compose"), database_url=url, workers=2, env=environment) as started:
        yield Machines(started, gateway(started, "gateway-a"), gateway(started, "gateway-b"))


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "machines" in request.fixturenames:
        sys.stdout.write(request.getfixturevalue("machines").stack.news())


async def frames(http: httpx2.AsyncClient, url: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Event names and data of a stream, to its end."""
    async with asyncio.timeout(PATIENCE), http.stream("GET", url) as response:
        assert response.status_code == 200
        event = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))


async def test_a_workers_death_is_not_seen_at_the_other_gateway(machines: Machines) -> None:
    """Submitted at one gateway, watched at the other, while the worker that has the job is killed with kill -9."""
    words = prompt(tokens=200, tokens_per_second=50)
    client = await machines.stack.connect()
    text, kinds, killed = "", [], None
    async with machines.a.client() as a, machines.b.client() as b:
        url = (await a.post("/api/jobs", json=make_body(words))).headers["Location"]
        async for kind, data in frames(b, f"{url}/events"):
            kinds.append(kind)
            text = "" if kind == "reset" else text + data.get("content", "")
            if killed is None and len(text) > 50:
                killed = await holder(client, url.rpartition("/")[2], machines.stack)
                killed.kill()
        job = (await a.get(url)).json()
    assert killed is not None
    killed.start()
    assert (job["status"], job["content"], kinds[-1]) == ("completed", text, "complete")
    assert text == machines.stack.simulator.answer(words)["text"]
    assert len(job["attempts"]) == 2


async def holder(client: Client, job_id: str, running: Stack) -> Any:
    """The worker's process that streams a job."""
    described = await client.get_workflow_handle(job_id).describe()
    (activity,) = described.raw_description.pending_activities
    pid = int(activity.last_worker_identity.partition("@")[0])
    return next(worker for worker in running.workers if worker.pid == pid)


async def test_a_cancel_at_the_other_gateway(machines: Machines) -> None:
    words = prompt(tokens=2000, tokens_per_second=20)
    async with machines.a.client() as a, machines.b.client() as b:
        url = (await a.post("/api/jobs", json=make_body(words))).headers["Location"]
        await machines.stack.simulator.wait(words, tokens=3)
        assert (await b.post(f"{url}/cancel")).status_code == 202

        async def status() -> bool:
            return bool((await a.get(url)).json()["status"] == "cancelled")

        await eventually(status)
        assert [kind async for kind, _ in frames(a, f"{url}/events")][-1] == "cancelled"


async def test_one_key_at_both_gateways_is_one_job(machines: Machines) -> None:
    """However they come together: one row, one run, one call of the model."""
    words = prompt(tokens=5)
    async with machines.a.client() as a, machines.b.client() as b:
        posts = [
            http.post("/api/jobs", json=make_body(words), headers={"Idempotency-Key": "one"})
            for _ in range(20)
            for http in (a, b)
        ]
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["jobId"] for answer in answers}) == 1
        assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
        ends = [kind async for kind, _ in frames(b, f"{answers[0].headers['Location']}/events")]
    assert ends[-1] == "complete"
    assert len(machines.stack.simulator.requests(words)) == 1
