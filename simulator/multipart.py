"""The parts of a multipart body (RFC 7578) that was written to a file."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import NamedTuple

from simulator.files import Content, Spool

_BOUNDARY = re.compile(r"multipart/form-data;.*boundary=\"?([^\";]+)", re.IGNORECASE)
_NAME = re.compile(r"\bname=\"([^\"]*)\"")
_FILE_NAME = re.compile(r"filename=\"([^\"]*)\"")


class NotMultipart(ValueError):
    """The body is not multipart/form-data."""


class FormField(NamedTuple):
    """One field of the form; ``file_name`` is None unless the field is a file."""

    name: str
    file_name: str | None
    content: Content

    @property
    def text(self) -> str:
        return b"".join(self.content.blocks()).decode()


def parts(body: Spool, content_type: str) -> dict[str, FormField]:
    """The fields by name; their contents stay where they are. Raises NotMultipart."""
    boundary = _BOUNDARY.match(content_type)
    if boundary is None or not body.length:
        raise NotMultipart("the content type is not multipart/form-data with a boundary")
    body.holder.flush()
    with mmap.mmap(body.holder.fileno(), body.length, access=mmap.ACCESS_READ) as view:
        return {part.name: part for part in _parts(body, view, boundary[1].encode())}


def _parts(body: Spool, view: mmap.mmap, boundary: bytes) -> Iterator[FormField]:
    at = view.find(b"--" + boundary)
    while at >= 0 and view[at + 2 + len(boundary) : at + 4 + len(boundary)] == b"\r\n":
        head_end = view.find(b"\r\n\r\n", at)
        end = view.find(b"\r\n--" + boundary, head_end + 2)
        if head_end < 0 or end < 0:
            raise NotMultipart("a part has no end")
        head = view[at:head_end].decode()
        name, file_name = _NAME.search(head), _FILE_NAME.search(head)
        if name is None:
            raise NotMultipart("a part has no name")
        start = head_end + 4
        yield FormField(name[1], file_name and file_name[1], body.content(start, max(0, end - start)))
        at = end + 2
    if at < 0:
        raise NotMultipart("the body does not end with its boundary")
