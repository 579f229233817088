"""The files of the page, as a browser asks for them; and the parts of others among them."""

from __future__ import annotations

import hashlib
import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from gateway.page.files import CLIENT, FOLDER, FOLDERS, POLICY, TYPES
from tests.support.gateway import alone, gateway

VENDOR = FOLDER / "vendor"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with alone(tmp_path_factory.mktemp("page")) as stack:
        yield gateway(stack).url


def test_parts_of_others_are_what_they_were() -> None:
    """Each has a row with version, licence and sum in vendor/README.md, and is that file."""
    rows = re.findall(
        r"^\| `([^`]+)` \|[^|]+\| ([\d.]+) \| ([^|]+) \| `([0-9a-f]{64})` \|$",
        (VENDOR / "README.md").read_text(),
        re.MULTILINE,
    )
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    assert {name: digest for name, _, _, digest in rows} == {
        name: digest for name, digest in sums.items() if Path(name).suffix in TYPES
    }


@pytest.mark.parametrize("file", ["index.html", "docs.html"])
def test_the_document_runs_nothing_of_its_own(file: str) -> None:
    """The policy would stop it: no script, style or handler inside the HTML, and nothing from elsewhere."""
    document = (FOLDER / file).read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", document)
    assert re.findall(r'(?:src|href)="(?!/assets/)', document) == []


@pytest.mark.parametrize("path", sorted([*FOLDER.glob("*.js"), *CLIENT.glob("*.js")]), ids=lambda path: path.name)
def test_no_module_makes_markup_of_text(path: Path) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|eval\(", path.read_text()
    )


@pytest.mark.parametrize(
    ("path", "file"),
    [
        *((path, "index.html") for path in ("/", "/jobs/job_1", "/batches", "/batches/batch_1")),
        ("/docs", "docs.html"),
    ],
)
def test_the_document_and_its_headers(url: str, path: str, file: str) -> None:
    """One document for every view, and one for the reference, which nobody may frame and no text may run in."""
    answer = httpx2.get(f"{url}{path}", trust_env=False)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / file).read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_every_asset_has_its_type_and_tag(url: str) -> None:
    files = [(place, folder, path) for place, folder in FOLDERS.items() for path in folder.rglob("*")]
    served = [one for one in files if one[2].suffix in TYPES and one[2].suffix != ".html"]
    assert {"app.js", "client.js"} <= {path.name for _, _, path in served}
    with httpx2.Client(base_url=url, trust_env=False) as client:
        for place, folder, path in served:
            answer = client.get(f"/assets/{place}{path.relative_to(folder).as_posix()}")
            assert (answer.status_code, answer.content) == (200, path.read_bytes())
            assert answer.headers["content-type"] == TYPES[path.suffix]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert re.fullmatch(r'"[0-9a-f]{32}"', answer.headers["etag"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_the_page_calls_by_the_client(path: Path) -> None:
    """It opens no connections of its own; api.js watches the client's for a session that has ended."""
    source = path.read_text()
    assert not re.search(r"\b(EventSource|XMLHttpRequest|WebSocket|sendBeacon)\b", source)
    assert len(re.findall(r"\bfetch\(", source)) == (path.name in ("api.js", "snippets.js"))  # the latter in a text


@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", {}', "*"])
def test_whoever_has_a_file_gets_304(url: str, tags: str) -> None:
    with httpx2.Client(base_url=url, trust_env=False) as client:
        etag = client.get("/assets/app.js").headers["etag"]
        again = client.get("/assets/app.js", headers={"If-None-Match": tags.format(etag)})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        changed = client.get("/assets/app.js", headers={"If-None-Match": '"other"'})
        assert changed.status_code == 200


@pytest.mark.parametrize("path", ["/", "/jobs/job_1", "/docs", "/assets/style.css"])
def test_head_is_get_without_the_body(url: str, path: str) -> None:
    with httpx2.Client(base_url=url, trust_env=False) as client:
        head, whole = client.head(path), client.get(path)
    names = ("content-length", "content-type", "etag")
    assert head.status_code == 200
    assert head.content == b""
    assert {name: head.headers[name] for name in names} == {name: whole.headers[name] for name in names}


@pytest.mark.parametrize(
    "path",
    [
        "/assets/",
        "/assets/nothing.js",
        "/assets/index.html",
        "/assets/docs.html",
        "/redoc",
        "/docs/oauth2-redirect",
        "/assets/vendor/README.md",
        "/assets/vendor/LICENSE-htm.txt",
        "/assets/client/../package.json",
        "/assets/client/package.json",
        "/assets/../page.py",
        "/assets/../../settings.py",
        "/assets/%2e%2e/page.py",
        "/assets/..%2fpage.py",
        "/assets/vendor/../../page.py",
        "/assets//etc/passwd",
        "/assets/%2fetc%2fpasswd",
        "/assets/app.js%00.css",
        "/assets/..\\page.py",
    ],
)
def test_nothing_else_is_served(url: str, path: str) -> None:
    """Sent as it stands: a client library would tidy it up first."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 404
        assert b"import" not in answer.read()
    finally:
        connection.close()
