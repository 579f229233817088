"""Mistral's files and batch jobs with Mistral's JavaScript client, whose schemas check every answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.needs import program

pytestmark = pytest.mark.long


def test_a_batch_job_from_its_upload_to_its_end(door: Gateway, node_home: Path) -> None:
    command = [program("node"), "batch_jobs.mjs", door.url]
    done = subprocess.run(command, cwd=node_home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["file"]["numLines"], found["file"]["sizeBytes"]) == (20, len(found["input"]))
    assert found["shown"] == found["file"] | {"deleted": False}
    assert found["url"] == found["input"]
    job = found["job"]
    assert (job["status"], job["succeededRequests"], job["metadata"]) == ("SUCCESS", 20, {"order": "42"})
    answers = [json.loads(line) for line in found["output"].splitlines()]
    assert [one["custom_id"] for one in answers] == [f"item-{number}" for number in range(20)]
    assert all(one["response"]["status_code"] == 200 for one in answers)
    assert [one["custom_id"] for one in found["inline"]] == ["item-0", "item-1", "item-2"]
    assert found["refused"]["status"] == "FAILED"
    assert "line 1" in found["refused"]["errors"][0]["message"]
    assert (found["files"], found["jobs"], found["cancelled"]) == (2, 1, "SUCCESS")
    assert [one["deleted"] for one in found["deleted"]] == [True, True]
    assert [one["status"] for one in found["failures"]] == [404, 404, 404, 422, 422]
