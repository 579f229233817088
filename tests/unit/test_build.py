"""The build id that Temporal keeps of a worker: the same for the same code, another one for other code."""

from __future__ import annotations

import re
from pathlib import Path

from domain.build import VERSION, build_id


def test_the_id_has_the_version_and_a_digest() -> None:
    assert re.fullmatch(re.escape(VERSION) + "-[0-9a-f]{12}", build_id())


def test_the_same_code_elsewhere_has_the_same_id(tmp_path: Path) -> None:
    assert build_id(tree(tmp_path / "here", "a = 1")) == build_id(tree(tmp_path / "there", "a = 1"))


def test_other_code_has_another_id(tmp_path: Path) -> None:
    """Also where its length is the same."""
    assert build_id(tree(tmp_path / "old", "a = 1")) != build_id(tree(tmp_path / "new", "a = 2"))


def tree(root: Path, code: str) -> Path:
    (root / "domain").mkdir(parents=True)
    (root / "domain" / "one.py").write_text(code)
    return root
