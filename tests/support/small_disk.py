"""A disk of a few megabytes, and a way to fill it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.needs import lacking


@contextmanager
def small_disk(directory: Path, megabytes: int = 3) -> Iterator[Path]:
    """Mounted at a new directory until the end of the block. The test is skipped where that is not allowed."""
    directory.mkdir()
    options = ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", directory)
    mounted = subprocess.run(options, capture_output=True)
    if mounted.returncode:
        lacking("root", "it mounts a small disk")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def filled(disk: Path) -> Path:
    """A file that takes all the space there is."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast
