"""Keeps the house in order, where import-linter cannot: it refuses single modules (worker.py) as roots."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from chatjobs import contracts, errors
from chatjobs.errors import ChatJobsError
from domain import errors as server_errors
from domain.settings import Settings
from tests.support.needs import lacking
from tests.support.order import LONGEST_FIRST

ROOT = Path(__file__).parent.parent.parent
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
SERVICE = [room for room in ROOMS if room != "bench"]
HALL = {"worker", "starter"}
REGISTRY_HOSTS = [
    # In pieces, so that this file does not name them either.
    ".".join(pieces)
    for pieces in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("debian", "org"))
]

PUBLIC_NAMES = """
AssistantMessage Attempt AudioPart Backoff Batch BatchAccepted BatchCounts BatchEventType BatchItem BatchOutcome
BatchPage BATCH_PRIORITY BatchProgress BatchRequest BatchSettings BatchStatus BatchWebhook BatchWebhookEvent
CancelledEvent canonical_json Channel ChatRequest ChatResult checked_fingerprint ChunkEvent CompleteEvent
COMPLETIONS_URL Content ContentPart Cost CustomId DEFAULT_MODEL Delivery DeliveryTry DocumentUrlPart earlier_fingerprint
Endpoint EndpointEvent EndpointList EndpointRequest EndpointStatus ErrorCause ErrorEvent FeedEvent FeedEvents
FeedEventType FilePart fingerprint Function FunctionCall FunctionName
FunctionTool HostedTool HttpUrl ImageUrl ImageUrlPart Job JobAccepted JobError JOB_ID JobId JobOutcome JobPage JobStart
JobStatus JsonObject JsonSchema Lane LaneList LaneWaiting Limits Many MAX_CONCURRENCY MAX_INLINE_RESULT_BYTES
MAX_MESSAGES MAX_METADATA MAX_PROBLEMS MAX_SCHEMA_BYTES MAX_TEXT_CHARACTERS MAX_WEBHOOK_CONTENT_BYTES Message
message_text Metadata MetadataKey MetadataValue Milliseconds ModelName OURS OutputError OutputLine OutputResponse parse
Pause PauseList PauseRequest PlacedPart Prediction QueuedEvent QueuePlace QueueReason read_json Redelivering Redelivery
ReferencePart ReplayEstimate ReplayFilter ReplayRequest RequestId ResetEvent ResourceLinkPart ResourcePart
ResponseFormat Retry rfc3339 Schedule SCHEDULE_ID ScheduleId ScheduleNote ScheduleOverlap SchedulePage ScheduleRequest
ScheduleRun ScheduleTiming Seconds SignedInt64 StartEvent StopSequence StreamEvent SystemMessage TextOrigin TextPart
ThinkingPart Timestamp TokenCount Tool ToolCall ToolChoice ToolMessage ToolReferencePart too_many_messages Usage
UserMessage USUAL_PRIORITY validated Webhook WebhookData WebhookEvent WebhookEventType WebhookTest WebhookTestEvent
WireModel without_nulls WorkflowStatus
"""

NOT_OF_THE_SERVICE = {"CHATJOBS_URL", "CHATJOBS_API_KEY", "CHATJOBS_SCREENSHOTS", "CHATJOBS_VERSION"}
"""Documented variables that the examples of the client, a test and the compose file read."""


def imports(path: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (ROOT / folder).rglob("*.py")


def project_files() -> list[Path]:
    """Every file that is, or will be, part of the repository."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        lacking("a git work tree", "which files belong to the project is not known otherwise")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_room_is_under_contract() -> None:
    """A new room has to be added to the contracts in pyproject.toml."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert sorted(linter["root_packages"]) == ROOMS


def test_every_file_is_in_a_room() -> None:
    """Only the two programs that one runs stand in the hall."""
    assert set(MODULES) == HALL


@pytest.mark.parametrize("program", sorted(HALL))
def test_a_program_is_read_at_once(program: str) -> None:
    assert len((ROOT / f"{program}.py").read_text().splitlines()) < 175


def test_nothing_imports_a_program() -> None:
    """What two of them need has a place of its own."""
    everything = [*sources(*SERVICE), *ROOT.glob("*.py")]
    assert {str(path): found for path in everything if (found := imports(path) & HALL)} == {}


def test_only_the_provider_knows_the_vendor() -> None:
    knowing = {path.parent for path in [*sources(*SERVICE), *ROOT.glob("*.py")] if "mistralai" in imports(path)}
    assert knowing == {ROOT / "providers" / "mistral"}


def test_the_package_of_words_runs_nothing_when_imported() -> None:
    """Workflow code imports it inside the sandbox: chatjobs/__init__.py is a docstring and nothing else."""
    body = ast.parse((ROOT / "chatjobs" / "__init__.py").read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.Module(body, [])), "its docstring is what there should be"


def test_no_file_names_a_registry() -> None:
    """Many teams install from a mirror of their own."""
    naming = {}
    for path in project_files():
        text = path.read_text(errors="ignore")
        if hosts := [host for host in REGISTRY_HOSTS if host in text]:
            naming[str(path.relative_to(ROOT))] = hosts
    assert naming == {}


def test_the_locks_agree() -> None:
    """What is tested is what runs: every pin of the service stands in the other lock, too."""
    service, dev = (set(pins(ROOT / name)) for name in ("requirements.lock", "requirements-dev.lock"))
    assert service <= dev


def pins(lock: Path) -> list[str]:
    return re.findall(r"^[a-z0-9].*?(?= \\$)", lock.read_text(), flags=re.MULTILINE)


def test_every_error_is_documented() -> None:
    """Each has a docstring, which is its message, and its place in the tree at the top of its module."""
    for module in (errors, server_errors):
        found = [child for child in below(ChatJobsError) if child.__module__ == module.__name__]
        assert [c.__name__ for c in found if not c.__dict__.get("__doc__")] == []
        assert "\n".join([ChatJobsError.__name__, *branches(ChatJobsError, module), ""]) in (module.__doc__ or "")


def test_every_setting_is_in_the_readme() -> None:
    """The table of settings has a row for each variable, which begins with its default where that is a number."""
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    assert sorted(rows) == sorted(defaults)
    numbers = {name: str(default) for name, default in defaults.items() if type(default) in (int, float)}
    assert {name: rows[name].split()[0] for name in numbers} == numbers


def test_every_documented_variable_is_read() -> None:
    known = {name.upper() for name in Settings.model_fields} | NOT_OF_THE_SERVICE
    pages = [path for path in project_files() if path.suffix == ".md" or path.name == ".env.example"]
    named = {
        str(path): set(re.findall(r"\b(?:CHATJOBS|MISTRAL|WEBHOOK)_[A-Z_]+\b", path.read_text())) for path in pages
    }
    assert {path: unknown for path, names in named.items() if (unknown := names - known)} == {}


def branches(parent: type[Exception], module: ModuleType, margin: str = "") -> Iterator[str]:
    """The errors of a module, and what they are kinds of, as `tree` would draw them."""
    here = [
        child
        for child in parent.__subclasses__()
        if any(one.__module__ == module.__name__ for one in [child, *below(child)])
    ]
    for child in here:
        last = child is here[-1]
        yield f"{margin}{'└' if last else '├'}── {child.__name__}"
        yield from branches(child, module, margin + ("    " if last else "│   "))


def below(parent: type[Exception]) -> list[type[Exception]]:
    return [one for child in parent.__subclasses__() for one in (child, *below(child))]


def test_public_names() -> None:
    """Other services import these: removing a name breaks them, adding one is a promise."""
    assert sorted(contracts.__all__) == sorted(PUBLIC_NAMES.split())
    assert [name for name in contracts.__all__ if not hasattr(contracts, name)] == []


def test_contracts_bring_no_network() -> None:
    """Workflow code imports them, and the workflow sandbox refuses HTTP clients."""
    heavy = {"httpx2", "nexusrpc", "standardwebhooks", "ssl"}
    loaded = f"import sys, chatjobs.contracts; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def undocumented(tree: ast.Module, where: str) -> Iterator[str]:
    """The public classes, functions and methods without a docstring; the module itself, too."""
    if not ast.get_docstring(tree):
        yield where
    definitions = [(where, node) for node in tree.body]
    for inside, node in definitions:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        name = f"{inside}:{node.name}"
        if not ast.get_docstring(node):
            yield name
        if isinstance(node, ast.ClassDef):
            definitions += [(name, inner) for inner in node.body]


@pytest.mark.parametrize("path", sorted(sources("chatjobs")), ids=lambda path: path.stem)
def test_everything_public_of_the_package_has_a_docstring(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text()), path.name)) == []


def test_a_missing_docstring_would_be_found() -> None:
    """The test above can fail."""
    tree = ast.parse("class A:\n  def b(self): ...\n  def _c(self): ...\nasync def d(): ...\n")
    assert list(undocumented(tree, "m")) == ["m", "m:A", "m:d", "m:A:b"]


DETERMINISTIC = {
    "asyncio": {"FIRST_COMPLETED", "CancelledError", "Task", "create_task", "shield"},
    "contextlib": {"contextmanager", "suppress"},
    "datetime": {"timedelta"},
    "random": {"Random"},
}
"""What workflows use of modules that could also tell the time, roll dice or reach out. Others: whole, see below."""
HARMLESS = {
    "__future__",
    "pydantic",
    "pydantic_core",
    "collections",
    "functools",
    "inspect",
    "typing",
    "temporalio",
    "chatjobs",
    "domain",
    "activities",
    "workflows",
}


def foreign_uses(path: Path) -> set[str]:
    """``module.name`` of everything that a workflow file takes from a module that is not harmless."""
    tree = ast.parse(path.read_text())
    uses = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in DETERMINISTIC
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            uses |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            uses |= {f"{name.name}.{name.asname or ''}" for name in node.names if name.name not in DETERMINISTIC}
    return {use for use in uses if use.partition(".")[0] not in HARMLESS}


@pytest.mark.parametrize("path", sorted(sources("workflows")), ids=lambda path: path.name)
def test_workflows_use_nothing_that_a_replay_would_not_repeat(path: Path) -> None:
    """Neither clocks nor dice nor ids nor the outside, but for what Temporal makes deterministic."""
    allowed = {f"{module}.{name}" for module, names in DETERMINISTIC.items() for name in names}
    assert foreign_uses(path) <= allowed


def test_a_clock_in_a_workflow_would_be_found(tmp_path: Path) -> None:
    """The test above can fail."""
    path = tmp_path / "bad.py"
    path.write_text("import asyncio\nimport time\nfrom datetime import datetime\nasyncio.to_thread(print)\n")
    assert foreign_uses(path) == {"time.", "datetime.datetime", "asyncio.to_thread"}


ONE_DEFINITION = {
    "the id of a job": ("A-Za-z0-9_-]{1,128}", "chatjobs/contracts/base.py"),
    "the id of an event": (r"\.end)?", "chatjobs/sse.py"),
}


@pytest.mark.parametrize(("pattern", "place"), ONE_DEFINITION.values(), ids=ONE_DEFINITION.keys())
def test_one_pattern_is_written_once(pattern: str, place: str) -> None:
    """Rooms that wrote it anew have disagreed about it; the simulator may not import the service."""
    product = [*sources(*(room for room in ROOMS if room != "simulator")), *ROOT.glob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in product if pattern in path.read_text()] == [place]


def replaced_times(source: str) -> list[str]:
    """The constants, by their names times, to which a test gives another value: by ``setattr`` or an assignment."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and "setattr" in ast.unparse(node.func):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append(node.attr)
    return [name for name in found if TIME.fullmatch(name)]


def test_no_test_replaces_a_time_constant() -> None:
    """A time that a test shortens is a field of domain/timings.py, and the test passes its own value."""
    tests = {str(path.relative_to(ROOT)): replaced_times(path.read_text()) for path in sources("tests")}
    assert {path: names for path, names in tests.items() if names} == {}


def test_a_replaced_time_constant_would_be_found() -> None:
    """The test above can fail."""
    bad = """
monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 0.05)
patch.setattr("storage.rate_limits.queueing.LOOK_SECONDS", 0.05)
setattr(worker, "RETRY_PAUSES", (0.1,))
failures.LONGEST_PAUSE = 1
monkeypatch.setattr(reader, "READERS_PER_LOOK", 3)
"""
    assert sorted(replaced_times(bad)) == [
        "HEARTBEAT_SECONDS",
        "LONGEST_PAUSE",
        "RETRY_PAUSES",
        "storage.rate_limits.queueing.LOOK_SECONDS",
    ]


def test_the_files_that_begin_first_are_there() -> None:
    assert set(LONGEST_FIRST) <= {path.name for path in sources("tests")}
    assert len(set(LONGEST_FIRST)) == len(LONGEST_FIRST)


HOPS = re.compile(r"`([\w/]+\.py):(?:(\w+)\.)?(\w+)`")


def test_every_link_leads_somewhere() -> None:
    """Of the documents: to files and folders of the repository."""
    broken = [
        (str(path.relative_to(ROOT)), target)
        for path in project_files()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_the_listed_hops_are_there() -> None:
    """docs/paths.md names a function of each file; one that was renamed is found."""
    hops = HOPS.findall((ROOT / "docs" / "paths.md").read_text())
    assert len(hops) == 20
    for path, _, name in hops:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, (path, name)


# The layout of the house. It comes last: the tests above are details.

LAYOUT = {
    "activities": (),
    "bench": (),
    "chatjobs": ("contracts",),
    "cli": ("commands", "doctor"),
    "dispatch": (),
    "domain": (),
    "drill": (),
    "gateway": ("auth", "page", "routes", "serving", "v1"),
    "local": (),
    "providers": ("mistral", "webhooks"),
    "simulator": (),
    "storage": ("batches", "engine", "events", "files", "jobs", "rate_limits", "transcript", "webhooks"),
    "workflows": (),
}
"""The rooms and their folders of Python modules. A new one is added here, to the import contracts and to the README."""


def test_the_layout() -> None:
    """Rooms and folders are those of the layout, every module is in one of them, and the tour names every room."""
    folders = {
        room: tuple(
            sorted(path.parent.name for path in (ROOT / room).glob("*/__init__.py") if path.parent.name != "migrations")
        )
        for room in ROOMS
    }
    assert folders == LAYOUT
    assert set(MODULES) == HALL
    tour = (ROOT / "README.md").read_text()
    assert [room for room in LAYOUT if f"{room}/" not in tour] == []


def test_one_name_is_one_class() -> None:
    """A reader who searches for a class finds one."""
    places: dict[str, list[str]] = {}
    for path in [*sources(*ROOMS), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


TIME = re.compile(r"(.*\.)?_?([A-Z0-9]+_)*(SECONDS|PAUSES?|TIMEOUTS?|THROTTLE|WAIT|DELAY|INTERVAL|AFTER)(_SECONDS)?")
