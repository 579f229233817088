"""The command line, as a program of its own, against a real Temporal, a real worker and the simulator."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

import starter
from cli.groups import INTERRUPTED
from tests.support.simulator_process import prompt
from tests.support.stack import OURS, ROOT, Stack, free_port, stack

PROGRAM = [sys.executable, "starter.py"]
PATIENCE = 60
LIBRARY_WORDS = re.compile(r"Value error|Input should|Invalid value|--help|: /:|valid (integer|number)|argument\(s\)")
HEAVY = ("sqlalchemy", "temporalio", "alembic", "pydantic", "rich", "chatjobs.contracts")
TYPED_IN = {"cli", "cli.arguments", "cli.groups", "cli.running"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("starter")) as started:
        yield started


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "running" in request.fixturenames:
        sys.stdout.write(request.getfixturevalue("running").news())


class Outcome:
    """What a run of the program left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def json(self) -> Any:
        return json.loads(self.out)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def error(self) -> Any:
        return json.loads(self.err)["error"]


def run(running: Stack, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
    """The program in a process of its own."""
    environment = {**running.env, **(env or {})}
    done = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=PATIENCE
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


Call = Callable[..., Outcome]


@pytest.fixture
def call(running: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The program in this process, which saves the time of its imports: ``call("list", TEMPORAL_ADDRESS="…")``."""

    def called(*arguments: str, **environment: str) -> Outcome:
        with monkeypatch.context() as changed:
            for name, value in (running.env | environment).items():
                changed.setenv(name, value)
            return Outcome(starter.main(arguments), *capfd.readouterr())

    return called


@contextmanager
def begun(running: Stack, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program while it runs, its output in pipes."""
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=running.env, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------ what is typed in


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "starter.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {name for name in imported if name.startswith(HEAVY)}
    ours = {name for name in imported if name.partition(".")[0] == "cli" and not name.startswith("cli.commands")}
    assert ours == TYPED_IN
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command"),
        (["start"], "a prompt or --file"),
        (["start", "hi", "--file", "x.json"], "a prompt or --file"),
        (["start", "--file", "no-such-file.json"], "No such file"),
        (["start", "--file", "pyproject.toml"], "is not JSON"),
        (["start", "--file", "x.json", "--system", "s"], "--system goes with a prompt"),
        (["start", "hi", "--direct", "--idempotency-key", "k"], "--direct"),
        (["chat", "hi", "--metadata", "novalue"], "KEY=VALUE"),
        (["chat", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["replay", "job_1", "--set", "temperature=hot"], "not JSON"),
        (["replay", "job_1", "--set", "messages=@no-such-file.json"], "No such file"),
        (["replay", "job_1", "--set", "messages=@pyproject.toml"], "is not JSON"),
        (["watch", "job_1", "--from", "12"], "EPOCH.POSITION"),
        (["list", "--status", "lost"], "--status must be one of queued"),
        (["list", "--status", "complete"], "did you mean completed?"),
        (["list", "--stauts", "failed"], "did you mean --status?"),
        (["lst"], "did you mean list?"),
        (["keys", "ad"], "did you mean add?"),
        (["--json", "list"], "--json goes after the command"),
        (["list", "--limit", "x"], "--limit must be a whole number"),
        (["list", "--limit", "0"], "--limit must be at least 1"),
        (["list", "--json=1"], "--json takes no value"),
        (["chat"], "PROMPT is missing; usage: starter.py chat [OPTIONS] PROMPT"),
        (["chat", "why", "me"], "Unexpected argument: me; put a prompt of several words in quotes"),
        (["list", "--since", "yesterday"], "neither a time"),
        (["list", "failed"], "Unexpected argument: failed; did you mean --status failed?"),
        (["webhook", "test"], "did you mean webhooks?"),
        (["webhooks", "test"], "URL is missing; usage: starter.py webhooks test [OPTIONS] URL"),
    ],
)
def test_mistyped_is_2_and_says_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert starter.main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    assert not LIBRARY_WORDS.search(told), told
    assert starter.main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "usage"
    assert words in error["message"]


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("chat -", 2, "starter: standard input is empty\n"),
        ("start --file -", 2, "starter: standard input is empty\n"),
        ("--help", 0, ""),
    ],
)
def test_a_stream_that_was_closed_is_an_empty_one(command: str, code: int, told: str) -> None:
    """``<&-`` and ``>&-`` of the shell: Python then has no such stream at all."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *PROGRAM, *command.split()],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (code, told)


def test_output_that_cannot_be_written_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, "-h"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (1, "starter: the output cannot be written: No space left on device\n")


def test_help_that_nobody_reads_is_no_error() -> None:
    with subprocess.Popen([*PROGRAM, "-h"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (0, b"")


def test_ctrl_c_while_it_starts_leaves_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *PROGRAM[1:], "list"],
        stderr=subprocess.PIPE,
        pipesize=4096,  # it cannot get far ahead of who reads its lines
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stderr is not None
        while "asyncio" not in process.stderr.readline():  # it has begun to import
            continue
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode in (-signal.SIGINT, INTERRUPTED)
    assert "Traceback" not in told


@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_screen(columns: int) -> None:
    done = subprocess.run(
        [*PROGRAM, "list", "-h"], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": str(columns)}
    )
    assert max(map(len, done.stdout.splitlines())) <= columns


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["keys"], ["limits", "-h"], ["list", "--help"]])
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert starter.main(arguments) == 0
    told = capsys.readouterr()
    assert told.out.startswith("Usage: starter.py")
    assert told.err == ""


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert starter.main(["--version"]) == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"chatjobs {project['version']}\n"


# ------------------------------------------------------------------------------------------------------ chat


def test_chat_writes_exactly_the_answer(running: Stack, tmp_path: Path) -> None:
    """Also to a file that has something already."""
    question = prompt("exactly", tokens=30)
    with (tmp_path / "answer").open("w") as file:
        file.write("before\n")
        file.flush()
        done = subprocess.run(
            [*PROGRAM, "chat", question], stdout=file, stderr=subprocess.PIPE, cwd=ROOT, env=running.env, check=False
        )
    assert (tmp_path / "answer").read_text() == f"before\n{running.simulator.answer(question)['text']}"
    assert re.fullmatch(r"starter: job job_\w+\n", done.stderr.decode())
    assert done.returncode == 0


def test_an_answer_that_starts_over_replaces_what_the_file_has(running: Stack, tmp_path: Path) -> None:
    question = prompt("again", reasoning="one two three four five six", tokens=5, faults=[{"kind": "cut", "after": 3}])
    with (tmp_path / "answer").open("a") as file:
        file.write("before\n")
        file.flush()
        command = [*PROGRAM, "chat", "--reasoning", question]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, cwd=ROOT, env=running.env, timeout=PATIENCE)
    whole = running.simulator.answer(question)
    assert (tmp_path / "answer").read_text() == f"before\n{whole['reasoning']}\n\n{whole['text']}"
    assert "the answer starts over" in done.stderr.decode()


def test_json_lines_are_the_events_on_the_wire(running: Stack) -> None:
    question = prompt("events", tokens=40, reasoning="let me think")
    outcome = run(running, "chat", question, "--json", "--max-tokens", "20")
    first, *middle, last = outcome.events()
    texts = {"content": "", "reasoning": ""}
    for number, event in enumerate(middle):
        assert (event["event"], event["data"]["index"]) == ("chunk", number)
        texts[event["data"]["channel"]] += event["data"]["content"]
        assert event["id"] == f"1.{sum(map(len, texts.values()))}"
    assert (first["event"], first["id"], first["data"]["attempt"]) == ("start", "1.0", 1)
    assert (last["event"], last["data"]["status"]) == ("complete", "incomplete")
    assert last["id"] == f"{middle[-1]['id']}.end"
    assert texts["reasoning"] == "let me think"
    assert outcome.code == 0
    assert json.loads(outcome.err)["notice"] == f"job {first['data']['jobId']}"


def test_a_failed_job_is_1_and_says_what_to_do(running: Stack, call: Call) -> None:
    told = run(running, "chat", prompt("refused", faults=[{"kind": 400}]))
    job = told.err.splitlines()[0].split()[-1]
    assert (told.code, told.out) == (1, "")
    assert f"starter.py replay {job}" in told.err
    events = call("watch", job, "--json")
    assert (events.code, events.events()[-1]["event"]) == (1, "error")
    shown = call("show", job)
    assert (shown.code, "starter.py replay" in shown.out, "400" in shown.out) == (0, True, True)


def test_a_closed_pipe_ends_the_watcher_not_the_job(running: Stack, call: Call) -> None:
    with begun(running, "chat", prompt("pipe", tokens=200, tokens_per_second=200)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        job = process.stderr.readline().split()[-1]
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""
    assert call("watch", job).code == 0


# ------------------------------------------------------------------------------- start, show, list, replay


def test_start_prints_the_id_and_show_tells_everything(running: Stack, call: Call) -> None:
    question = prompt("shown", tokens=7)
    command = ("start", question, "--metadata", "order=42", "--model", "open-mistral-nemo", "--wait")
    job = run(running, *command).out.strip()
    assert re.fullmatch(r"job_\w+", job)
    page = call("show", job).out
    for words in (job, "completed", "open-mistral-nemo", "order=42", "attempts", f"/workflows/{job}", "answer"):
        assert words in page
    whole = call("show", job, "--json").json()
    assert (whole["jobId"], whole["status"], len(whole["attempts"])) == (job, "completed", 1)
    assert whole["content"] in page
    assert call("show", "job_that_is_not").code == 2


def failed_code(call: Call, job_id: str) -> str:
    return str(call("show", job_id, "--json").json()["error"]["code"])


def test_list_searches_words(call: Call) -> None:
    """The moment that a job has ended, without a gateway that keeps the index."""
    word = f"w{time.time_ns()}"
    job = call("start", "--wait", f"{word} {prompt(tokens=2)}").out.strip()
    (found,) = call("list", "--json", "--search", word).json()["jobs"]
    assert (found["jobId"], found["preview"][: len(word)]) == (job, word)


def test_list_filters(call: Call) -> None:
    mark = f"mark={time.time_ns()}"
    prompts = (prompt(tokens=2), prompt(faults=[{"kind": 400}]))
    jobs = [call("start", "--wait", words, "--metadata", mark).out.strip() for words in prompts]
    everything = call("list", "--json", "--metadata", mark, "--since", "1h").json()["jobs"]
    assert [job["jobId"] for job in everything] == jobs[::-1]
    failed = call("list", "--metadata", mark, "--status", "failed").out
    assert jobs[1] in failed
    assert jobs[0] not in failed
    code = failed_code(call, jobs[1])
    for option in (["--error-code", code], ["--error-code", code, "--status", "failed"]):
        assert [job["jobId"] for job in call("list", "--json", "--metadata", mark, *option).json()["jobs"]] == jobs[1:]
    for option in (["--replay-of", jobs[0]], ["--batch", "none"], ["--search", f"no{mark}"]):
        assert call("list", "--json", "--metadata", mark, *option).json()["jobs"] == []
    none = call("list", "--metadata", mark, "--until", "2020-01-01")
    assert (none.code, none.out) == (0, "")


def test_a_conversation(running: Stack, call: Call) -> None:
    """Replies have the messages before them and the first one's model, also straight through Temporal; they are listed
    with it."""
    first = call("start", "--wait", prompt(tokens=2), "--model", "mistral-large-latest").out.strip()
    question = prompt(tokens=3)
    second = call("start", "--wait", question, "--reply-to", first).out.strip()
    (request,) = running.simulator.requests(question)
    assert ([one["role"] for one in request["messages"]], request["model"]) == (
        ["user", "assistant", "user"],
        "mistral-large-latest",
    )
    direct = call("start", "--direct", "--wait", "--json", prompt(tokens=2), "--reply-to", second).json()
    assert (direct["previousJobId"], direct["thread"], direct["model"]) == (second, first, "mistral-small-latest")
    chat = call("chat", prompt(tokens=2), "--reply-to", second, "--model", "codestral-latest")
    assert chat.code == 0, chat.err
    listed = call("list", "--json", "--thread", first).json()["jobs"]
    assert [job["model"] for job in listed] == [
        "codestral-latest",
        "mistral-small-latest",
        "mistral-large-latest",
        "mistral-large-latest",
    ]
    shown = call("show", second).out
    assert re.search(rf"replies to +{first}", shown)
    refused = call("start", "hi", "--reply-to", "job_of_nobody", "--json")
    assert refused.error()["code"] == "job_not_found"


def test_a_delayed_job_says_when_it_starts(running: Stack, call: Call) -> None:
    job_id = call("start", "later", "--start-at", "2h").out.strip()
    job = call("show", job_id, "--json").json()
    assert (job["status"], job["startedAt"]) == ("queued", None)
    starts = datetime.fromisoformat(job["startAt"])
    assert timedelta(hours=1.9) < starts - datetime.now(UTC) < timedelta(hours=2.1)
    local = starts.astimezone()
    assert f"not before {local:%Y-%m-%d %H:%M:%S}" in call("show", job_id).out
    listed = call("list", "--status", "queued").out
    assert f"at {local:%m-%d %H:%M:%S}" in listed
    with begun(running, "watch", job_id) as watcher:
        said(watcher, f"waiting: it starts at {local:%Y-%m-%d %H:%M:%S}", 1)
    assert call("cancel", job_id).out == f"{job_id} cancelled\n"
    early = call("start", "later", "--start-at", "2020-01-01T00:00Z")
    assert (early.code, early.out) == (2, "")
    assert "must be a time to come" in early.err


def test_replay_asks_again_with_changes(call: Call) -> None:
    first = call("start", "--wait", prompt("original", tokens=9), "--metadata", "kept=yes").out.strip()
    command = ("replay", first, "--max-tokens", "3", "--set", "temperature=0.5", "--wait", "--json")
    replayed = call(*command).json()
    assert (replayed["replayOf"], replayed["metadata"], replayed["status"]) == (first, {"kept": "yes"}, "incomplete")
    assert replayed["jobId"] != first
    assert call("replay", "job_that_is_not").code == 2


def test_a_replay_has_messages_from_a_file(call: Call, tmp_path: Path) -> None:
    """Any field can be read from a file, or from standard input; null takes one away."""
    first = call("start", "--wait", prompt("original", tokens=3), "--temperature", "0.5").out.strip()
    file, words = tmp_path / "messages.json", prompt("another", tokens=3)
    file.write_text(json.dumps([{"role": "user", "content": words}]))
    replayed = call(
        "replay", first, "--set", f"messages=@{file}", "--set", "temperature=null", "--wait", "--json"
    ).json()
    assert (replayed["replayOf"], replayed["preview"]) == (first, words[:120])


def test_an_empty_list_says_what_to_do(call: Call) -> None:
    call("start", "--wait", prompt("something", tokens=3))
    found = call("list", "--search", "nowordlikethis", "--since", "1h", "--batch", "batch_none")
    assert (found.code, found.out) == (0, "")
    assert "no job matches; each of the words must be there" in found.err
    assert "Leave out or change --search, --batch, --since" in found.err
    assert call("list", "--search", "nowordlikethis", "--json").json() == {"jobs": []}


def test_the_priority_of_a_request_reaches_temporal(running: Stack, call: Call, tmp_path: Path) -> None:
    """Of jobs that the command line starts, and of their replays: the workflow has the priority of the request."""

    async def priority_of(job_id: str) -> int:
        client = await Client.connect(running.env["TEMPORAL_ADDRESS"])
        described = await client.get_workflow_handle(job_id).describe()
        return described.raw_description.workflow_execution_info.priority.priority_key

    file = tmp_path / "request.json"
    messages = [{"role": "user", "content": prompt("urgent", tokens=2)}]
    file.write_text(json.dumps({"messages": messages, "priority": 1}))
    urgent = call("start", "--wait", "--file", str(file)).out.strip()
    replayed = call("replay", urgent, "--wait").out.strip()
    usual = call("start", "--wait", prompt("usual", tokens=2)).out.strip()
    assert [asyncio.run(priority_of(job_id)) for job_id in (urgent, replayed, usual)] == [1, 1, 3]


def test_a_request_from_a_file_and_one_key_one_job(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": prompt("file", tokens=3)}]}))
    command = ("start", "--file", str(file), "--json", "--idempotency-key", f"key-{time.time_ns()}")
    first, second = (call(*command, "--model", "ministral-3b-latest").json() for _ in range(2))
    assert first["jobId"] == second["jobId"]
    assert first["model"] == "ministral-3b-latest"
    other = call(*command)
    assert (other.code, other.error()["code"]) == (2, "idempotency_mismatch")


def test_direct_passes_the_request_through_temporal(running: Stack, call: Call) -> None:
    question = prompt("direct", tokens=4)
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    outcome = call("start", "--direct", "--wait", "--json", question, CHATJOBS_DATABASE_URL=nowhere)
    assert outcome.json()["content"] == running.simulator.answer(question)["text"]
    assert call("show", outcome.json()["jobId"]).code == 0
    assert call("start", "--direct", "--wait", prompt(faults=[{"kind": 400}])).code == 1
    invalid = call("start", "--direct", "secret words", "--temperature", "9", "--json")
    assert (invalid.code, invalid.error()["errors"][0]["pointer"]) == (2, "/temperature")
    assert "secret words" not in invalid.err


# --------------------------------------------------------------------------------------- watching, leaving


def test_ctrl_c_detaches_and_watching_goes_on_from_there(running: Stack) -> None:
    question = prompt("leave", tokens=60, faults=[{"kind": "stall", "after": 10, "seconds": 2.5}])
    with begun(running, "chat", question, "--json") as process:
        assert process.stdout is not None
        lines: list[dict[str, Any]] = []
        while len(lines) < 2:
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
    lines += [json.loads(line) for line in out.splitlines()]
    job = lines[0]["data"]["jobId"]
    assert f"starter.py watch {job}" in json.loads(err.splitlines()[-1])["notice"]
    rest = run(running, "watch", job, "--from", lines[-1]["id"])
    seen = "".join(line["data"]["content"] for line in lines[1:])
    assert (rest.code, seen + rest.out) == (0, running.simulator.answer(question)["text"])


def test_a_cancelled_job_is_1_for_its_watcher(running: Stack, call: Call) -> None:
    with begun(running, "chat", prompt("stop", faults=[{"kind": "stall", "after": 3}])) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        job = process.stderr.readline().split()[-1]
        assert process.stdout.read(1)
        assert call("cancel", job).out == f"{job} in_progress, asked to cancel\n"
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "cancelled" in err) == (1, True)
    again = call("cancel", job, "--json")
    assert (again.code, again.json()["status"]) == (0, "cancelled")
    finished = call("start", "--wait", prompt(tokens=1)).out.strip()
    assert call("cancel", finished).code == 2


def test_a_position_from_another_epoch_gets_the_whole_answer(running: Stack, call: Call) -> None:
    question = prompt("epochs", tokens=5)
    job = call("start", "--wait", question).out.strip()
    first, second, _ = call("watch", job, "--from", "7.3", "--json").events()
    assert (first["event"], first["id"]) == ("reset", "1.0")
    assert second["data"]["content"] == running.simulator.answer(question)["text"]


class Screen:
    """The program on a terminal."""

    def __init__(self, running: Stack, *arguments: str, columns: int) -> None:
        self.text = ""
        inherited = {name: value for name, value in running.env.items() if name not in ("COLUMNS", "LINES")}
        environment = {**inherited, "TERM": "xterm-256color"}
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:  # the child is the program from here on
            os.chdir(ROOT)
            os.execve(sys.executable, [*PROGRAM, *arguments], environment)  # noqa: S606 - no shell is wanted
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_for(self, words: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(words, self.text)):
            assert self._read(deadline), f"{words!r} did not appear in {self.text!r}"
        return found

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def end(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            continue
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        if not select.select([self._terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            os.kill(self.pid, signal.SIGKILL)
            return False
        try:
            self.text += os.read(self._terminal, 65_536).decode(errors="replace")
        except OSError:  # how Linux says that the other end is closed
            return False
        return True

    def close(self) -> None:
        os.close(self._terminal)


@contextmanager
def screen(running: Stack, *arguments: str, columns: int = 80) -> Iterator[Screen]:
    shown = Screen(running, *arguments, columns=columns)
    try:
        yield shown
    finally:
        shown.close()


def test_a_screen_shows_progress_and_ctrl_c_detaches(running: Stack) -> None:
    question = prompt(
        "screen", tokens=40, tokens_per_second=200, faults=[{"kind": "stall", "after": 20, "seconds": 2.5}]
    )
    with screen(running, "chat", question) as shown:
        job = shown.wait_for(r"job (job_\w+)")[1]
        shown.wait_for(r"in progress · 20 tokens · [\d.]+ tokens/s · first token [\d.]+ s")
        shown.press(b"\x03")
        shown.wait_for(f"starter.py watch {job}")
        assert shown.end() == 130
    with screen(running, "watch", job) as shown:
        shown.wait_for(r"completed · 40 tokens · [\d.]+ tokens/s · first token [\d.]+ s")
        assert shown.end() == 0


def test_on_a_narrow_screen_a_row_is_a_block_of_lines(running: Stack, call: Call) -> None:
    """No id is broken, so that it can be copied."""
    job = call("start", "--wait", prompt("narrow", tokens=2), "--metadata", "a=b").out.strip()
    with screen(running, "list", "--limit", "1", columns=40) as shown:
        assert shown.end() == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.text)
    lines = [line.rstrip() for line in plain.splitlines()]
    assert job in lines
    assert re.search(r"^status +completed *\r?$", plain, re.MULTILINE)
    assert max(map(len, lines)) <= 40
    with screen(running, "list", "--limit", "1", columns=80) as wide:
        assert wide.end() == 0
    assert re.search(rf"{job} .*completed", re.sub(r"\x1b\[[0-9;]*m", "", wide.text))


def test_an_answer_cannot_control_the_screen(running: Stack, call: Call) -> None:
    question = prompt("escape", pieces=["safe", "\x1b]0;retitled\x07", "\x9b2J", " end"])
    job = call("start", "--wait", question).out.strip()
    with screen(running, "show", job) as shown:
        assert shown.end() == 0
    with screen(running, "watch", job) as watched:
        assert watched.end() == 0
    assert "\x1b]0" not in shown.text + watched.text
    assert "\x9b" not in shown.text + watched.text
    assert "\x1b]0;retitled\x07" in call("watch", job).out


# ------------------------------------------------------------------------------------- what is not reachable


def test_without_temporal_a_job_is_durable_and_starts_later(call: Call) -> None:
    """Here Temporal is only unreachable for the program; the worker's sweeper starts the job."""
    nowhere = f"127.0.0.1:{free_port()}"
    outcome = call("start", "--json", prompt("later", tokens=3), TEMPORAL_ADDRESS=nowhere)
    assert (outcome.code, outcome.json()["status"]) == (0, "queued")
    assert "the job is stored and will be started" in json.loads(outcome.err)["notice"]
    watched = call("chat", prompt("later", tokens=3), TEMPORAL_ADDRESS=nowhere)
    assert (watched.code, "the job is stored and will be started" in watched.err) == (0, True)
    assert call("watch", outcome.json()["jobId"]).code == 0


def test_unreachable_is_3(running: Stack, call: Call) -> None:
    direct = call("start", "--direct", "hi", "--json", TEMPORAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert (direct.code, direct.error()["code"]) == (3, "temporal_unavailable")
    url = f"postgresql://me:sesame@127.0.0.1:{free_port()}/nowhere"
    listed = run(running, "list", env={"CHATJOBS_DATABASE_URL": url})
    assert (listed.code, "sesame" in listed.err, "is it running?" in listed.err) == (3, False, True)


def test_to_look_in_the_wrong_directory_leaves_nothing_there(call: Call, tmp_path: Path) -> None:
    listed = call("list", CHATJOBS_DATA_DIR=str(tmp_path))
    assert (listed.code, "make run" in listed.err) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_wrong_is_named(call: Call) -> None:
    for name in ("CHATJOBS_CONCURRENCY", "CHATJOBS_DATABASE_URL"):
        wrong = call("list", **{name: "sesame"})
        assert (wrong.code, name in wrong.err.upper(), "sesame" in wrong.err) == (2, True, False)


def test_a_running_service_is_found_through_its_data_directory(
    running: Stack, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"gateway": None, "temporal": running.temporal_address, "temporalUi": "http://127.0.0.1:4242"}
    (tmp_path / "endpoints.json").write_text(json.dumps(places))
    monkeypatch.delitem(running.env, "TEMPORAL_ADDRESS")
    found = call("start", prompt(tokens=1), "--json", CHATJOBS_DATA_DIR=str(tmp_path))
    assert found.err == ""
    assert found.json()["temporalUrl"].startswith("http://127.0.0.1:4242/")


COMMANDS = [
    ("chat", "hi"),
    ("start", "hi"),
    ("start", "--direct", "--wait", "hi"),
    ("watch", "job_1"),
    ("show", "job_1"),
    ("list",),
    ("cancel", "job_1"),
    ("delete", "job_1"),
    ("replay", "job_1"),
    ("resume", "job_1"),
    ("redeliver", "job_1"),
    ("endpoints",),
    ("webhooks", "test", "http://127.0.0.1:9999/"),
    ("keys", "list"),
    ("secrets", "list"),
    ("limits", "list"),
]


@pytest.fixture
def bare(running: Stack, tmp_path: Path) -> dict[str, str]:
    """An environment that says nothing of any service."""
    env = {name: value for name, value in running.env.items() if not name.startswith(OURS)}
    return env | {"CHATJOBS_DATA_DIR": str(tmp_path / "data")}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_where_no_service_runs_a_command_says_so(
    command: tuple[str, ...], bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Whatever listens at Temporal's usual port is not asked; nothing is made."""
    in_bare(bare, monkeypatch)
    monkeypatch.setattr("socket.socket", None)  # nothing is dialled
    began = time.monotonic()
    code, told = starter.main(command), capfd.readouterr()
    assert (code, told.out) == (3, "")
    assert time.monotonic() - began < 2
    assert told.err.startswith("starter: No service runs here")
    assert "make run" in told.err
    assert "TEMPORAL_ADDRESS" in told.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("keys", "add"), ("limits", "set", "0a1b2c3d:x", "5")], ids=" ".join)
def test_administration_before_the_first_start_wants_a_named_directory(
    command: tuple[str, ...], bare: dict[str, str], tmp_path: Path
) -> None:
    """The gateway wants a key before it listens to the network: then the directory or the database is set."""
    unnamed = {name: value for name, value in bare.items() if name != "CHATJOBS_DATA_DIR"}
    program = [sys.executable, str(ROOT / "starter.py"), *command]
    refused = subprocess.run(program, cwd=tmp_path, env=unnamed, capture_output=True, text=True, timeout=PATIENCE)
    assert (refused.returncode, "No service runs here" in refused.stderr) == (3, True)
    assert list(tmp_path.iterdir()) == []
    named = subprocess.run(program, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=PATIENCE)
    assert (named.returncode, [one.name for one in tmp_path.iterdir()]) == (0, ["data"])


def in_bare(bare: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    for name, value in bare.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("command", COMMANDS[:3], ids=" ".join)
def test_a_service_that_was_killed_is_told_from_one_that_runs(
    command: tuple[str, ...], running: Stack, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Another Temporal may have its port by now."""
    directory = Path(bare["CHATJOBS_DATA_DIR"])
    directory.mkdir()
    (directory / "endpoints.json").write_text(json.dumps({"temporal": running.temporal_address}))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    (directory / "lock").write_text(f"{dead.pid}\n")
    in_bare(bare, monkeypatch)
    code, told = starter.main(command), capfd.readouterr()
    assert (code, told.out) == (3, "")
    assert "it was killed" in told.err
    assert sorted(one.name for one in directory.iterdir()) == ["endpoints.json", "lock"]


def test_servers_that_are_away_are_named(running: Stack, tmp_path: Path) -> None:
    port, directory = free_port(), {"CHATJOBS_DATA_DIR": str(tmp_path)}
    temporal = run(running, "start", "--direct", "hi", env={"TEMPORAL_ADDRESS": f"127.0.0.1:{port}"})
    assert (temporal.code, temporal.err.startswith(f"starter: Temporal is not reachable at 127.0.0.1:{port} (")) == (
        3,
        True,
    )
    database = run(running, "chat", "hi", env={"CHATJOBS_DATABASE_URL": f"postgresql://a:sesame@127.0.0.1:{port}/x"})
    assert (database.code, f"not reachable at 127.0.0.1:{port}" in database.err) == (3, True)
    missing = run(running, "start", "hi", env=directory)
    assert (missing.code, "There is no database at" in missing.err) == (3, True)
    assert list(tmp_path.iterdir()) == []
    wrong = run(running, "start", "--direct", "hi", env={"TEMPORAL_ADDRESS": "nonsense:port"})
    assert (wrong.code, "TEMPORAL_ADDRESS must be host:port" in wrong.err) == (2, True)


def test_a_silent_server_is_not_waited_for(running: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        direct = run(running, "start", "--direct", "hi", env={"TEMPORAL_ADDRESS": where})
    assert (direct.code, f"What listens at {where} does not answer as Temporal does" in direct.err) == (3, True)


# ------------------------------------------------------------------------------------ what one waits for


def said(process: subprocess.Popen[str], words: str, times: int) -> None:
    """Wait until standard error has had a line with these words so often."""
    assert process.stderr is not None
    seen: list[str] = []
    while sum(words in line for line in seen) < times:
        line = process.stderr.readline()
        assert line, f"{words!r} was not said {times} times: {seen}"
        seen.append(line)


def test_why_nothing_comes_is_said_again_and_again(running: Stack) -> None:
    """Without a worker, with one again, and without Temporal; standard output has the answer and nothing else."""
    question = prompt("patience", tokens=3)
    (worker,) = running.workers
    worker.stop()
    try:
        with begun(running, "chat", question) as process:
            said(process, "waiting: no worker", times=2)
            running.temporal.kill()
            said(process, "waiting: Temporal", times=2)
            running.temporal.start()
            worker.start()
            out, _ = process.communicate(timeout=PATIENCE)
            assert (process.returncode, out) == (0, running.simulator.answer(question)["text"])
    finally:
        if not running.temporal.running:
            running.temporal.start()
        if not worker.running:
            worker.start()


def test_a_silent_model_is_said(running: Stack) -> None:
    stalled = [{"kind": "stall", "after": 2, "seconds": 20}]
    with begun(running, "chat", prompt("silence", tokens=4, faults=stalled), "--json") as process:
        said(process, "waiting: a worker has the job; the model has not sent anything", times=2)
        out, _ = process.communicate(timeout=PATIENCE)
    assert {json.loads(line)["event"] for line in out.splitlines()} == {"start", "chunk", "complete"}


def test_short_lived_clients_end_in_order(running: Stack) -> None:
    """A Temporal client that is left to the interpreter's exit can abort it."""
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda n: run(running, "start", prompt(str(n), tokens=1)), range(8)))
    assert {(outcome.code, outcome.err) for outcome in outcomes} == {(0, "")}
