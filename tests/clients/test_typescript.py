"""The types of the JavaScript client, and its package: what TypeScript, npm and Node make of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from chatjobs import errors
from chatjobs.errors import ChatJobsError
from tests.clients import generated
from tests.clients.generated import CLIENT
from tests.support.needs import program
from tests.support.npm import installed
from tests.support.snippets import snippets
from tests.unit.test_house import below

HERE = Path(__file__).parent
REMEDY = "run: python -m tests.clients.generated --types"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm packages of the tests."""
    return installed(tmp_path_factory.mktemp("npm"), "the client's types are not checked", source=HERE / "node")


def node(*arguments: str, cwd: Path) -> str:
    command = [program("node"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", generated.FILES)
def test_what_is_made_of_the_contracts_is_up_to_date(name: str) -> None:
    """A new field of a job is in both clients."""
    assert (CLIENT / name).read_text() == generated.FILES[name](), REMEDY


@pytest.mark.long
def test_the_types_are_those_of_the_sources(modules: Path, tmp_path: Path) -> None:
    """TypeScript checks the sources by their JSDoc, strictly, and makes the declarations that are committed."""
    generated.write_types(modules, tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.glob("*.d.ts")}
    committed = {path.name: path.read_text() for path in (CLIENT / "types").iterdir()}
    assert made == {name: text for name, text in committed.items() if name in made}, REMEDY
    sources = {path.stem for path in (CLIENT / "src").glob("*.js")}
    assert {path.name.removesuffix(".d.ts") for path in (CLIENT / "types").iterdir()} == sources | {"contracts"}


@pytest.fixture(scope="module")
def project(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the packed client."""
    home = tmp_path_factory.mktemp("project")
    command = [program("npm"), "pack", str(CLIENT), "--json", "--pack-destination", str(home)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=True, timeout=60)
    packed = json.loads(done.stdout)
    with tarfile.open(home / packed[0]["filename"]) as archive:
        archive.extractall(home / "node_modules", filter="data")
    (home / "node_modules" / "package").rename(home / "node_modules" / "chatjobs")
    for name in ("@types", "undici-types", "csstype", "typescript", "react", "react-dom", "scheduler"):
        (home / "node_modules" / name).symlink_to(modules / "node_modules" / name)
    (home / "package.json").write_text('{"type": "module", "private": true}')
    return home


@pytest.mark.long
def test_the_package_has_what_it_should_have(project: Path) -> None:
    home = project / "node_modules" / "chatjobs"
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    sources = {f"src/{path.name}" for path in (CLIENT / "src").iterdir()}
    types = {f"types/{path.name}" for path in (CLIENT / "types").iterdir()}
    assert found == {"package.json", "README.md", "LICENSE"} | sources | types
    assert "dependencies" not in json.loads((home / "package.json").read_text())
    assert (home / "LICENSE").read_text() == (CLIENT.parent.parent / "LICENSE").read_text()


@pytest.mark.long
def test_the_package_works_in_an_empty_project(project: Path) -> None:
    script = """
      import { ChatJobs } from "chatjobs";
      await new ChatJobs("http://127.0.0.1:9").get("a/b").catch((error) => console.log(error.name));
    """
    assert node("--input-type=module", "-e", script, cwd=project) == "JobNotFound\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("libraries", "types"),
    [(["ES2022", "DOM", "DOM.Iterable", "DOM.AsyncIterable"], []), (["ES2022"], ["node"])],
    ids=["browser", "node"],
)
def test_a_sample_that_uses_everything_has_its_types(project: Path, libraries: list[str], types: list[str]) -> None:
    """Under ``strict``, with the package's own declarations checked, too."""
    shutil.copy(HERE / "sample.ts", project / "sample.ts")
    options = {"noEmit": True, "strict": True, "target": "ES2022", "module": "NodeNext"}
    settings = {"compilerOptions": {**options, "lib": libraries, "types": types}, "files": ["sample.ts"]}
    (project / "tsconfig.json").write_text(json.dumps(settings))
    node("node_modules/typescript/bin/tsc", "-p", ".", cwd=project)


def test_the_sample_uses_everything() -> None:
    sample = (HERE / "sample.ts").read_text()
    script = """
      import * as all from "./src/index.js";
      const jobs = new all.ChatJobs("http://x");
      const of = (one) => Object.getOwnPropertyNames(Object.getPrototypeOf(one)).filter((n) => n !== "constructor");
      console.log(JSON.stringify([...Object.keys(all), ...of(jobs), ...of(jobs.batches), ...of(jobs.schedules)]));
    """
    names = json.loads(node("--input-type=module", "-e", script, cwd=CLIENT))
    assert [name for name in names if name not in sample] == []


def test_the_errors_are_those_of_the_python_client(tmp_path: Path) -> None:
    """Names, codes, kinds and messages."""
    script = """
      import * as all from "./src/errors.js";
      const facts = (kind) => [kind.code, Object.getPrototypeOf(kind).name, kind.usualMessage, kind.prototype.name];
      console.log(JSON.stringify(Object.fromEntries(Object.entries(all).map(([name, kind]) => [name, facts(kind)]))));
    """
    found = json.loads(node("--input-type=module", "-e", script, cwd=CLIENT))
    ours: list[type[Exception]] = [
        ChatJobsError,
        *(one for one in below(ChatJobsError) if one.__module__ == errors.__name__),
    ]
    assert found == {one.__name__: facts(one) for one in ours}


def facts(kind: type[Exception]) -> list[str | None]:
    """The code, the kind, the message and the name of an error."""
    above = kind.__bases__[0].__name__.replace("Exception", "Error")
    return [getattr(kind, "code"), above, kind.__doc__, kind.__name__]  # noqa: B009 -- only our errors have one


def test_examples_of_the_readme_parse(tmp_path: Path) -> None:
    """tests/clients/test_service.py runs those of docs/client.md."""
    for number, code in enumerate(snippets("../clients/typescript/README.md", "js")):
        (tmp_path / f"{number}.mjs").write_text(code)
        node("--check", str(tmp_path / f"{number}.mjs"), cwd=tmp_path)
