"""`starter.py doctor`, with everything there, and with one thing after the other missing, wrong, or silent."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import starter
from chatjobs.contracts import Channel
from cli.doctor.checks import differing, file_system
from cli.doctor.live import FIRST_TOKENS, MORE_TOKENS, findings_of, received
from domain.continuing import AS_MISTRAL
from domain.ports import Finish, TextDelta
from providers.mistral.probe import PROBES
from storage.engine.database import SCHEMA_VERSION
from tests.support.check_answers import knows_answers
from tests.support.gateway import gateway
from tests.support.postgres import Postgres
from tests.support.stack import OURS, ROOT, Stack, free_port, stack
from tests.support.temporal_server import temporal_server

KEY = "sk-a-very-private-key-0123456789"
SECRET = "a long and very private webhook secret"
WHOLE_SECONDS = 45.0


class Report:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.findings: list[dict[str, str]] = json.loads(out)["checks"] if out.startswith("{") else []

    def __getitem__(self, check: str) -> tuple[str, str, str]:
        """Status, what was found, and the fix; of the first that is not ok, if there are several."""
        found = [(one["status"], one["found"], one["fix"]) for one in self.findings if one["check"] == check]
        assert found, f"no finding about {check} in {self.findings}"
        return next((one for one in found if one[0] != "ok"), found[0])

    @property
    def problems(self) -> set[str]:
        return {one["check"] for one in self.findings if one["status"] == "problem"}


Call = Callable[..., Report]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"MISTRAL_API_KEY": KEY, "WEBHOOK_SECRET": SECRET, "CHATJOBS_PORT": str(free_port())}
    env |= {"MISTRAL_REQUESTS_PER_SECOND": "1000"}  # there is a pause between the calls of --live
    with stack(tmp_path_factory.mktemp("doctor"), env=env) as started:
        gateway(started)
        yield started


@pytest.fixture
def call(running: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The program in this process: ``call("--live", CHATJOBS_PORT="…")``."""

    def called(*arguments: str, **environment: str) -> Report:
        with monkeypatch.context() as changed:
            for name, value in (running.env | environment).items():
                changed.setenv(name, value)
            report = Report(starter.main(["doctor", "--json", *arguments]), *capfd.readouterr())
        assert not [secret for secret in (KEY, SECRET) if secret in report.out + report.err]
        return report

    return called


@contextmanager
def answering(status: int, body: bytes = b"{}", **headers: str) -> Iterator[str]:
    """A server that gives everybody the same answer; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield int(listener.getsockname()[1])


# --------------------------------------------------------------------------------------------------- all is well


def test_a_service_that_runs_has_no_problem(running: Stack) -> None:
    """As a program of its own, for people; and it says nothing of key and secret."""
    done = subprocess.run(
        [sys.executable, "starter.py", "doctor"], cwd=ROOT, env=running.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Traceback" not in done.stdout
    for words in (
        "takes the key",
        "polling chatjobs: 1, chatjobs-completions: 1",
        "registered",
        "is ready",
        "writable",
    ):
        assert words in done.stdout
    assert KEY not in done.stdout
    assert SECRET not in done.stdout


def test_json_has_every_check(call: Call) -> None:
    report = call()
    assert (report.code, report.problems, json.loads(report.out)["ok"]) == (0, set(), True)
    checks = {one["check"] for one in report.findings}
    assert {"mistral", "clock", "egress", "temporal", "search attributes", "workers", "database"} <= checks
    assert {"database journal", "file system", "disk", "keys", "gateway", "webhook secret", "versions"} <= checks
    assert SCHEMA_VERSION in report["database"][1]


# ----------------------------------------------------------------------------------------- silence is no obstacle


def test_when_everything_hangs_it_is_over_in_time(tmp_path: Path) -> None:
    """Mistral, Temporal, Postgres and the gateway's port take the connection and never answer."""
    with silent() as port:
        env = {
            "HOME": str(tmp_path),
            "CHATJOBS_DATA_DIR": str(tmp_path),
            "MISTRAL_API_KEY": KEY,
            "MISTRAL_SERVER_URL": f"http://127.0.0.1:{port}",
            "TEMPORAL_ADDRESS": f"127.0.0.1:{port}",
            "CHATJOBS_DATABASE_URL": f"postgresql://somebody:hidden@127.0.0.1:{port}/jobs",
            "CHATJOBS_PORT": str(port),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "starter.py", "doctor", "--json"],
            cwd=ROOT,
            env=inherited | env,
            capture_output=True,
            text=True,
            timeout=110,
        )
        took = time.monotonic() - began
    report = Report(done.returncode, done.stdout, done.stderr)
    assert (report.code, report.err) == (1, "")
    assert report.problems == {"mistral", "temporal", "database", "gateway"}
    assert "hidden" not in report.out
    assert took < WHOLE_SECONDS


# ---------------------------------------------------------------------------------------------- one thing is wrong


def test_a_key_that_is_missing_or_refused(call: Call) -> None:
    assert call(MISTRAL_API_KEY="")["mistral"][:2] == ("problem", "MISTRAL_API_KEY is not set")
    assert "blanks around it" in call(MISTRAL_API_KEY=f"{KEY} ")["mistral"][1]
    body = json.dumps({"message": f"No such key {KEY}"}).encode()
    with answering(401, body) as url:
        status, found, fix = call(MISTRAL_SERVER_URL=url)["mistral"]
    assert (status, "refused the API key" in found, "MISTRAL_API_KEY" in fix) == ("problem", True, True)


def test_what_make_run_has_brought(call: Call, tmp_path: Path) -> None:
    """Its simulator, its secret, its port: nothing of them is in the environment."""
    url = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "endpoints.json").write_text(json.dumps({"simulator": "http://127.0.0.1:1", "gateway": url}))
    (tmp_path / "webhook_secret").write_text(SECRET)
    report = call(CHATJOBS_DATA_DIR=str(tmp_path), MISTRAL_API_KEY="", WEBHOOK_SECRET="")
    assert (report["mistral"][0], "NOT from Mistral" in report["mistral"][1]) == ("warning", True)
    assert report["webhook secret"][0] == "ok"
    assert (report["gateway"][0], url in report["gateway"][1]) == ("problem", True)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 1}', b"[" * 100_000])
def test_what_is_not_mistral_is_not_taken_for_it(call: Call, body: bytes) -> None:
    with answering(200, body) as url:
        assert "does not speak as Mistral does" in call(MISTRAL_SERVER_URL=url)["mistral"][1]


def test_a_flood_in_place_of_the_models_is_not_read(call: Call) -> None:
    with answering(200, b"[" + b" " * 6_000_000 + b"]") as url:
        assert "too long" in call(MISTRAL_SERVER_URL=url)["mistral"][1]


def test_mistral_is_not_reachable(call: Call) -> None:
    report = call(MISTRAL_SERVER_URL=f"http://127.0.0.1:{free_port()}")
    assert {"mistral", "egress"} <= report.problems
    report = call(MISTRAL_SERVER_URL="http://nobody.invalid")
    assert {"mistral", "egress"} <= report.problems


def test_a_key_without_the_default_model(call: Call) -> None:
    with answering(200, b'{"data": [{"id": "other"}]}') as url:
        status, found, fix = call(MISTRAL_SERVER_URL=url)["mistral"]
    assert (status, "models: 1" in found) == ("warning", True)
    assert "is not among them" in fix


def test_proxies_are_named_without_their_passwords(call: Call) -> None:
    report = call(
        HTTP_PROXY=f"http://user:hidden@127.0.0.1:{free_port()}", MISTRAL_SERVER_URL="http://api.example", NO_PROXY=""
    )
    status, found, _ = report["egress"]
    assert (status, "HTTP_PROXY" in found, "hidden" in report.out) == ("problem", True, False)


@pytest.mark.parametrize(("off", "status"), [(-120, "warning"), (3600, "problem"), (2, "ok")])
def test_a_clock_that_differs(call: Call, off: int, status: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=off), usegmt=True)
    with answering(200, b'{"data": []}', date=date) as url:
        assert call(MISTRAL_SERVER_URL=url)["clock"][0] == status


def test_temporal_is_not_there(call: Call) -> None:
    status, found, fix = call(TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")["temporal"]
    assert (status, "not reachable" in found, "TEMPORAL_ADDRESS" in fix) == ("problem", True, True)


def test_a_namespace_that_is_not_there(call: Call) -> None:
    status, found, fix = call(TEMPORAL_NAMESPACE="nowhere")["temporal"]
    assert (status, found) == ("problem", "there is no namespace nowhere")
    assert "namespace create --namespace nowhere" in fix


async def test_the_command_that_it_gives_registers_the_search_attributes(tmp_path: Path, call: Call) -> None:
    """And where no worker is, it says so."""
    with temporal_server(tmp_path, search_attributes=False) as server:
        report = await _in_thread(call, TEMPORAL_ADDRESS=server.address)
        status, _, fix = report["search attributes"]
        assert (status, report["workers"][0]) == ("warning", "problem")
        program, *arguments = fix.partition(";")[0].split()
        assert program == "temporal"
        await server.cli(*arguments)
        report = await _in_thread(call, TEMPORAL_ADDRESS=server.address)
        assert report["search attributes"][0] == "ok"


async def _in_thread(call: Call, **environment: str) -> Report:
    return await asyncio.to_thread(lambda: call(**environment))


def test_a_database_that_is_not_there_is_not_made(call: Call, tmp_path: Path) -> None:
    report = call(CHATJOBS_DATA_DIR=str(tmp_path / "new" / "data"))
    assert report["database"][0] == "warning"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "status", "words"),
    [("0001", "warning", "schema 0001"), ("9999", "problem", "newer than this program"), (None, "warning", "empty")],
)
def test_another_schema_is_left_as_it_is(
    call: Call, tmp_path: Path, version: str | None, status: str, words: str
) -> None:
    path = tmp_path / "chatjobs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)" if version else "CREATE TABLE some (a)")
        if version:
            connection.execute("INSERT INTO alembic_version VALUES (?)", (version,))
    connection.close()
    found = call(CHATJOBS_DATABASE_URL=f"sqlite:///{path}")["database"]
    assert (found[0], words in found[1]) == (status, True), found
    with sqlite3.connect(path) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert tables == {"alembic_version" if version else "some"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://user:hidden@there/jobs", "must be sqlite"),
        ("sqlite:///:memory:", "must name a file"),
        ("hidden", "is not a URL"),
        ("postgresql://user:hidden@127.0.0.1:1/jobs", "not available"),
        ("postgresql://user:hidden@nobody.invalid/jobs", "not available"),
    ],
)
def test_a_database_that_cannot_be_used(call: Call, url: str, words: str) -> None:
    report = call(CHATJOBS_DATABASE_URL=url)
    assert (report["database"][0], words in report["database"][1]) == ("problem", True), report["database"]
    assert "hidden" not in report.out


def test_what_is_no_database(call: Call, tmp_path: Path) -> None:
    (tmp_path / "chatjobs.db").write_bytes(b"this is no database, and never was one" * 100)
    assert call(CHATJOBS_DATABASE_URL=f"sqlite:///{tmp_path / 'chatjobs.db'}")["database"][0] == "problem"


def test_postgres_tells_its_version(call: Call, postgres_server: Postgres) -> None:
    report = call(CHATJOBS_DATABASE_URL=postgres_server.new_database())
    assert (report["database"][0], "empty" in report["database"][1]) == ("warning", True)
    assert report["postgres"][0] == "ok"


def test_a_stranger_has_the_gateways_port(call: Call, running: Stack) -> None:
    port = running.simulator.url.rpartition(":")[2]
    assert "is not the gateway" in call(CHATJOBS_PORT=port)["gateway"][1]
    with answering(200, b"<html>" * 50_000) as url:
        assert "is not the gateway" in call(CHATJOBS_PORT=url.rpartition(":")[2])["gateway"][1]


def test_a_gateway_that_is_not_ready(call: Call) -> None:
    body = json.dumps({"detail": "Not available: temporal", "checks": {}}).encode()
    with answering(503, body) as url:
        status, found, _ = call(CHATJOBS_PORT=url.rpartition(":")[2])["gateway"]
    assert (status, "Not available: temporal" in found) == ("problem", True)


def test_the_gateways_port_is_free_or_cannot_be_had(call: Call) -> None:
    assert "the port is free" in call(CHATJOBS_PORT=str(free_port()))["gateway"][1]
    with socket.socket() as bound:  # bound and not listening: refused, and taken
        bound.bind(("127.0.0.1", 0))
        assert "it is taken" in call(CHATJOBS_PORT=str(bound.getsockname()[1]))["gateway"][1]
    assert "takes a free port" in call(CHATJOBS_PORT="0")["gateway"][1]


def test_an_open_door_without_keys(call: Call) -> None:
    status, found, fix = call(CHATJOBS_HOST="::")["keys"]
    assert (status, "keys add" in fix) == ("problem", True), found


@pytest.mark.parametrize(
    ("check", "variables", "status"),
    [
        ("webhook secret", {"WEBHOOK_SECRET": ""}, "warning"),
        ("webhook secret", {"WEBHOOK_SECRET": "short"}, "warning"),
        ("webhook secret", {"WEBHOOK_SECRET": f"{SECRET},whsec_not*base64"}, "problem"),
        ("webhook secret", {"WEBHOOK_SECRET": "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}, "warning"),
        ("webhook secret", {"WEBHOOK_SECRET": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"}, "ok"),
        ("webhook receivers", {"CHATJOBS_WEBHOOK_ALLOW": "10.0.0.0/8,hooks.internal"}, "ok"),
        ("webhook receivers", {"CHATJOBS_WEBHOOK_ALLOW": "0.0.0.0/0"}, "warning"),
        ("webhook receivers", {"CHATJOBS_WEBHOOK_HTTP": "true"}, "warning"),
    ],
)
def test_webhooks(call: Call, check: str, variables: Mapping[str, str], status: str) -> None:
    assert call(**variables)[check][0] == status


def test_settings_that_are_not_valid(call: Call) -> None:
    """The variable is named, its value is not shown, and the rest that needs no settings is looked at."""
    report = call(CHATJOBS_PORT="hidden")
    assert (report.code, report["settings"][0]) == (1, "problem")
    assert "CHATJOBS_PORT" in report["settings"][1]
    assert "temporalio" in report["versions"][1]
    assert "hidden" not in report.out


# --------------------------------------------------------------------------------------------- what tables say


MOUNTS = "/dev/a / ext4 rw 0 0\nserver:/x /mnt/my\\040data nfs4 rw 0 0\ntmpfs /mnt/my\\040data/fast tmpfs rw 0 0\n"


@pytest.mark.parametrize(
    ("directory", "kind"),
    [("/srv", "ext4"), ("/mnt/my data", "nfs4"), ("/mnt/my data/fast/x", "tmpfs"), ("/mnt/my database", "ext4")],
)
def test_the_file_system_of_a_directory(directory: str, kind: str) -> None:
    assert file_system(Path(directory), MOUNTS) == kind
    assert file_system(Path(directory), "") == ""


def test_packages_that_are_not_as_pinned() -> None:
    """A pin for another kind of machine need not be there."""
    lock = "one==1.0 \\\n    --hash=x\ntwo[extra]==2.0 \\\nthree==3 ; sys_platform == 'win32' \\\nfour==4 \\\n"
    there = {"one": "1.0", "two": "2.1"}
    assert differing(lock, there.get) == ["two 2.1 (pinned 2.0)", "four missing (pinned 4)"]


# ------------------------------------------------------------------------------------------------------ live


@pytest.fixture
def scripted(running: Stack) -> Iterator[Callable[..., None]]:
    """Scripts the simulator, for one test: how it continues what doctor asks."""

    def script(**fields: Any) -> None:
        knows_answers(running.simulator, **fields)

    running.simulator.forget()
    yield script
    running.simulator.drop_scripts()


@pytest.mark.parametrize(
    ("echo", "words"),
    [("whole", "came back whole"), ("pieces", "came back in pieces"), ("none", "did not come back")],
)
@pytest.mark.parametrize(("usage", "space"), [(True, "all of the text was sent"), (False, "came again, and was taken")])
def test_live_tells_the_echo(
    call: Call, running: Stack, scripted: Callable[..., None], echo: str, words: str, usage: bool, space: str
) -> None:
    """The cost is told first and kept; the cut is where a space was, and nothing is said twice."""
    scripted(echo=echo, usage=usage)
    report = call("--live")
    assert report.code == 0
    assert report.err == (
        "--live makes at most 38 calls of mistral-small-latest: at most 8400 tokens together,"
        " 0.8 cents at a dollar for a million tokens.\n"
    )
    assert (report["live: echo"][0], words in report["live: echo"][1]) == ("ok", True)
    assert ("in the last chunk" in report["live: usage"][1]) == usage
    assert "requests left" in report["live: rate limit"][1]
    assert report["live: first token"][0] == "ok"
    assert space in report["live: space"][1]
    assert report["live: joint"][0] == "ok"
    assert "trust continued answers: 12 of 12 equal" in report["live: trust"][1]
    first, second = _understood(running)
    assert (first["parameters"]["max_tokens"], second["parameters"]["max_tokens"]) == (FIRST_TOKENS, MORE_TOKENS)
    assert first["prefix"] is None
    assert second["prefix"].endswith(" ") == usage


def _understood(running: Stack) -> list[dict[str, Any]]:
    """The calls about the cut answer, without the one that asked for ``stream_options``, which Mistral refuses."""
    return [call for call in running.simulator.requests("Count from one") if call["status"] != 422]


def test_live_with_an_echo_that_differs(call: Call, running: Stack, scripted: Callable[..., None]) -> None:
    """Such a server does not continue: one line says so, and no finding is made in a way that is not used."""
    scripted(echo="differing")
    report = call("--live", CHATJOBS_CONTINUATION="auto")
    assert (report.code, report["live: continuing"][0]) == (0, "warning")
    checks = {one["check"] for one in report.findings}
    assert not checks & {"live: echo", "live: joint", "live: space", "live: trust"}
    assert len(_understood(running)) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": 401}, "refused the API key"),
        ({"kind": 429, "retry_after": 7}, "slow down"),
        ({"kind": "eof", "after": 3}, "ended"),
    ],
)
def test_live_stops_at_a_refusal(
    call: Call, running: Stack, scripted: Callable[..., None], fault: dict[str, Any], words: str
) -> None:
    scripted(faults=[fault])
    report = call("--live")
    status, found, fix = report["live"]
    assert (report.code, status, words in found) == (1, "problem", True), found
    assert ("in 7 s" in fix) == (fault["kind"] == 429)
    assert len(_understood(running)) == 1


def test_live_without_usage_or_headers(call: Call, scripted: Callable[..., None]) -> None:
    scripted(usage=False)
    assert call("--live")["live: usage"][:2] == ("warning", "the stream's end had no usage")


def test_live_judges_models_and_pairs(call: Call, running: Stack, scripted: Callable[..., None]) -> None:
    """As many as are named, in lines and for programs; the options bound the calls."""
    scripted()
    models = "--model", "mistral-small-latest", "--model", "mistral-large-latest"
    report = call("--live", *models, "--calls", "15", "--seconds", "90")
    trust = json.loads(report.out)["trust"]
    assert [(one["model"], one["textOf"], one["verdict"]) for one in trust] == [
        ("mistral-small-latest", None, "trust"),
        ("mistral-large-latest", None, "trust"),
        ("mistral-large-latest", "mistral-small-latest", "trust"),
    ]
    assert {one["server"] for one in trust} == {running.env["MISTRAL_SERVER_URL"]}
    assert "without a fault" in report["live: handover"][1]
    assert len(running.simulator.requests()) <= 2 * (14 + 15) + 6
    assert "trust" not in json.loads(call("--live", "--calls", "0").out)


def test_live_has_at_most_as_many_models_as_a_job(call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    report = call("--live", *(f"--model=m{number}" for number in range(6)))
    assert (report.code, "at most 5 models" in report.err) == (2, True)


def test_live_without_a_key(call: Call) -> None:
    report = call("--live", MISTRAL_API_KEY="")
    assert report["live"][:2] == ("problem", "there is no key to call with")


@pytest.fixture
def measured(running: Stack) -> Iterator[Callable[[], list[tuple[str, str, bool | None]]]]:
    """What is remembered of a model's continuations: way, drops, echoes; nothing before and after."""

    def rows(query: str) -> list[tuple[str, str, bool | None]]:
        with closing(sqlite3.connect(running.data_dir / "chatjobs.db")) as connection, connection:
            return connection.execute(query).fetchall()

    rows("DELETE FROM continuations")
    yield lambda: rows("SELECT way, drops, echoes FROM continuations WHERE model = 'mistral-small-latest'")
    rows("DELETE FROM continuations")


@pytest.mark.parametrize(
    ("setting", "script", "status", "words", "kept"),
    [
        ("prefix", {}, "ok", "and repeats it first; its model sees all of it", ("prefix", "nothing", 1)),
        ("auto", {"echo": "none"}, "ok", "and does not repeat it", ("prefix", "nothing", 0)),
        ("auto", {"usage": False}, "ok", "does not see spaces at the end", ("prefix", "spaces", 1)),
        ("auto", {"continues": "never"}, "warning", "interrupted answers start over", ("none", "nothing", None)),
        ("prefix", {"continues": "never"}, "problem", "would be glued to the old one", ("none", "nothing", None)),
        (
            "prefix",
            {"continues": "continue_final_message"},
            "warning",
            "CHATJOBS_CONTINUATION=prefix does not use that",
            ("continue_final_message", "nothing", 0),
        ),
        (
            "auto",
            {"continues": "continue_final_message"},
            "ok",
            "(continue_final_message) and does not repeat it",
            ("continue_final_message", "nothing", 0),
        ),
    ],
)
def test_live_measures_how_the_server_continues_and_remembers_it(
    call: Call,
    scripted: Callable[..., None],
    measured: Callable[[], Any],
    setting: str,
    script: dict[str, Any],
    status: str,
    words: str,
    kept: tuple[Any, ...],
) -> None:
    """In one line, with what it means for interrupted answers under the setting; the workers look there, too."""
    scripted(**script)
    report = call("--live", CHATJOBS_CONTINUATION=setting)
    found = report["live: continuing"]
    assert (found[0], words in found[1], "remembered for mistral-small-latest" in found[1]) == (status, True, True), (
        found
    )
    assert bool(found[2]) == (status != "ok")
    assert measured() == [kept]


def test_live_measures_a_server_that_refuses_a_prefix(
    call: Call, running: Stack, scripted: Callable[..., None], measured: Callable[[], Any]
) -> None:
    """Its refusal is no end: other ways are tried, and where none is taken, answers start over."""
    scripted(faults=[{"kind": 422}], repeat_last=True)
    running.simulator.script(match="Count from one")
    report = call("--live", CHATJOBS_CONTINUATION="auto")
    assert (report["live: continuing"][0], report.code) == ("warning", 0)
    assert [one for one in report.findings if one["check"] == "live: echo"] == []
    assert measured() == [("none", "nothing", None)]


def test_a_measurement_that_had_no_answer_changes_nothing(
    call: Call, running: Stack, scripted: Callable[..., None], measured: Callable[[], Any]
) -> None:
    scripted()
    call("--live")
    running.simulator.script(match=PROBES[1].prompt, faults=[{"kind": 503}], repeat_last=True)
    status, found, _ = call("--live")["live: continuing"]
    assert (status, "had no answer" in found) == ("warning", True)
    assert measured() == [("prefix", "nothing", 1)]


def test_a_measurement_without_a_database_is_not_remembered(
    call: Call, scripted: Callable[..., None], tmp_path: Path
) -> None:
    """And to look must not make one."""
    scripted()
    found = call("--live", CHATJOBS_DATA_DIR=str(tmp_path / "new"))["live: continuing"]
    assert (found[0], "no database yet" in found[1]) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


async def test_a_model_that_says_again_what_was_there_is_found_out() -> None:
    """What no simulator does: the continuation begins before the cut, or from the start."""
    text = "one, two, three, four, five, six, seven, eight, nine, "

    async def said(*pieces: str) -> Any:
        for piece in pieces:
            yield TextDelta(Channel.CONTENT, piece)
        yield Finish("stop")

    second = await received(said("eight, nine, ", "ten"))
    for own in (second.text, f"Sure: {text}ten"):
        statuses = {one.check: one.status for one in findings_of(second, second, text, "none", own, AS_MISTRAL)}
        assert statuses["live: joint"] == "problem"
    assert {one.check: one.status for one in findings_of(second, second, text, "none", "ten", AS_MISTRAL)}[
        "live: joint"
    ] == "ok"
