"""A worker that cannot work says in one line what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import OURS, ROOT, free_port

COMPLETE = {"MISTRAL_API_KEY": "a key for tests", "WEBHOOK_SECRET": "a secret for tests"}
NOBODY = f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ({"MISTRAL_API_KEY": ""}, "MISTRAL_API_KEY is not set"),
        ({"TEMPORAL_ADDRESS": NOBODY}, "is TEMPORAL_ADDRESS right?"),
        ({"CHATJOBS_DATABASE_URL": f"postgresql://user@{NOBODY}/jobs"}, "The database is not available"),
        ({"CHATJOBS_CONCURRENCY": "none"}, "the settings are not valid"),
    ],
)
def test_says_what_is_missing(tmp_path: Path, missing: dict[str, str], hint: str) -> None:
    """Exit code 2 and a hint, no traceback and no secret."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    env = inherited | COMPLETE | {"CHATJOBS_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)} | missing
    ended = subprocess.run(
        [sys.executable, "worker.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert hint in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not any(secret in ended.stderr for secret in COMPLETE.values())
