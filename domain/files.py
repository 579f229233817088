"""Files of Mistral's files API: the values that cross rooms."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

BATCH: Final = "batch"
"""The purpose of a file: the only one that something here reads."""
BATCH_REQUEST: Final = "batch_request"
BATCH_RESULT: Final = "batch_result"
BATCH_ERROR: Final = "batch_error"
UPLOADED: Final = "upload"
MADE_HERE: Final = "mistral"
"""The source of a file that nobody uploaded, as Mistral calls it."""
JSONL: Final = "application/jsonl"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose content is about to arrive."""

    tenant: str
    filename: str
    mimetype: str = JSONL
    source: str = UPLOADED


@dataclass(frozen=True, slots=True)
class FileEnd:
    """What is known of a file once its content is there. ``size`` in bytes; ``expires_at`` None: with the retention."""

    size: int
    num_lines: int
    sha256: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file. ``size``, in bytes, is None for results that were not measured since they last changed; ``batch_job``:
    the id of the job whose results these are; None for a file with a content of its own."""

    file_id: str
    tenant: str
    filename: str
    sample_type: str
    source: str
    mimetype: str
    visibility: str
    size: int | None
    num_lines: int | None
    batch_job: str | None
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class FileFilter:
    """The files to list; None is any. ``search``: part of a name, without case."""

    sample_types: Collection[str] | None = None
    sources: Collection[str] | None = None
    mimetypes: Collection[str] | None = None
    search: str | None = None


def new_file_id() -> str:
    """A UUID, as Mistral's documentation of its API has it; some clients parse it as one."""
    return str(uuid.uuid4())
