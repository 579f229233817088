"""Uploaded files and results, on disk: memory does not grow with them."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final, Literal

BLOCK: Final = 64 * 1024
MAX_FILE_BYTES: Final = 512 * 1024 * 1024
"""Mistral's limit (docs.mistral.ai, "Known limitations")."""


class Content:
    """Bytes from ``start`` on in an open temporary file, which the operating system removes with the process."""

    def __init__(self, holder: IO[bytes], start: int, length: int) -> None:
        self._holder = holder  # closed, and thereby removed, with the last reference to it
        self._start = start
        self.length = length

    def blocks(self) -> Iterator[bytes]:
        at = 0
        while block := os.pread(self._holder.fileno(), min(BLOCK, self.length - at), self._start + at):
            yield block
            at += len(block)

    def lines(self) -> Iterator[bytes]:
        """The lines without their ends; empty ones are left out."""
        rest = b""
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from filter(bytes.strip, whole)
        if rest.strip():
            yield rest


class Spool:
    """A temporary file that is being written."""

    def __init__(self) -> None:
        self.holder: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as its Content
        self.length = 0

    def write(self, data: bytes) -> None:
        self.holder.write(data)
        self.length += len(data)

    def content(self, start: int = 0, length: int | None = None) -> Content:
        self.holder.flush()
        return Content(self.holder, start, self.length if length is None else length)


@dataclass(frozen=True)
class StoredFile:
    """One file. ``available``: when its content can be read, by the monotonic clock."""

    name: str
    content: Content
    sample_type: Literal["batch_request", "batch_result", "batch_error"]
    num_lines: int
    source: Literal["upload", "mistral"] = "upload"
    available: float = 0
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_available(self) -> bool:
        return time.monotonic() >= self.available

    def as_json(self) -> dict[str, Any]:
        """The file as Mistral shows it (``mistralai.client.models.FileSchema``)."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.content.length,
            "created_at": self.created,
            "filename": self.name,
            "purpose": "batch",
            "sample_type": self.sample_type,
            "num_lines": self.num_lines,
            "mimetype": "application/jsonl",
            "source": self.source,
            "signature": None,
            "expires_at": None,
            "visibility": "workspace",
        }


class FileStore:
    """The files of one process, in the order of their creation."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> StoredFile:
        self._files[file.id] = file
        return file

    def get(self, file_id: str) -> StoredFile | None:
        return self._files.get(file_id)

    def remove(self, file_id: str) -> bool:
        return self._files.pop(file_id, None) is not None

    def newest_first(self) -> list[StoredFile]:
        return list(reversed(self._files.values()))
