"""The site that `make docs` builds from the pages: no broken link, and nothing from other hosts."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import pages
from tests.support.needs import lacking
from tests.support.stack import ROOT

pytestmark = pytest.mark.long

LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)")
IMPORTED = re.compile(r"(?:@import\s*|url\()\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def built(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("mkdocs") is None:
        lacking("mkdocs", "the site was not built")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_site(tmp_path: Path) -> None:
    """A strict build succeeds, has each page, and no page, script or style sheet loads anything from another host."""
    done = built(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert {path.with_suffix(".html").name for path in pages() if path.name != "README.md"} <= names
    assert "index.html" in names
    foreign = {
        (path.name, url)
        for path in (tmp_path / "site").rglob("*.*")
        if path.suffix in (".html", ".css")
        for url in (LOADED if path.suffix == ".html" else IMPORTED).findall(path.read_text())
    }
    assert foreign == set()


@pytest.mark.parametrize("target", ["nowhere.md", "../nowhere.py", "start.md#nowhere"])
def test_a_broken_link_fails_the_build(tmp_path: Path, target: str) -> None:
    """To a page, to a file outside docs/, to a heading."""
    for name in ("docs/site_hooks.py", "mkdocs.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "docs" / "start.md").write_text("# Start\n")
    index = tmp_path / "docs" / "README.md"
    index.write_text("# Index\n\n## Begin\n\n[start](start.md)\n")
    options = ("--config-file", str(tmp_path / "mkdocs.yml"))
    done = built(tmp_path / "sound", *options)
    assert done.returncode == 0, done.stderr
    index.write_text(f"{index.read_text()}\n[broken]({target})\n")
    done = built(tmp_path / "broken", *options)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
