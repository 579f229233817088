"""The version of the service, and the id of a worker's build."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

VERSION: Final = "0.1.0"
"""That of pyproject.toml, which a container image does not have."""
ROOT: Final = Path(__file__).parent.parent
ROOMS: Final = ("activities", "chatjobs", "dispatch", "domain", "providers", "storage", "workflows")
"""Those that a worker imports."""
SOURCES: Final = ("worker.py", "requirements.lock", *(f"{room}/**/*.py" for room in ROOMS))


@cache
def build_id(root: Path = ROOT) -> str:
    """``0.1.0-3f9c2d41e0ab``: the version, and a digest of the worker's source files and pinned packages.

    The same code has the same id on every machine, in a checkout and in an image. The Temporal UI shows it with each
    workflow task. The SDK's default, a digest of the bytecode of all imported modules, takes some 0.3 s of CPU.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{VERSION}-{digest.hexdigest()[:12]}"
