"""Lines of JSON (application/x-ndjson) from a body of any size: memory holds one line and one piece of the body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gateway.problems import HttpProblem

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_LINES = 200
"""Lines that are passed on together."""
MOST_BYTES = 1024 * 1024
"""Bytes of lines that are passed on together, unless a single line has more."""


async def lines(pieces: AsyncIterator[bytes], longest: int) -> AsyncIterator[Sequence[tuple[int, bytes]]]:
    """The lines of a body that comes in pieces, with their numbers, from 1, in groups; blank ones are left out.

    A byte order mark at the beginning is ignored, a line may end in CR LF, and the last one without any. Raises
    HttpProblem (413) for a line of more than ``longest`` bytes.
    """
    group: list[tuple[int, bytes]] = []
    size = number = 0
    rest = bytearray()
    async for piece in pieces:
        *whole, last = piece.split(b"\n")
        if whole:
            whole[0] = bytes(rest) + whole[0]
            rest.clear()
        rest += last
        for line in whole:
            number += 1
            _check(line, number, longest)
            if text := _text(line, number):
                group.append((number, text))
                size += len(text)
            if len(group) >= MOST_LINES or size >= MOST_BYTES:
                yield group
                group, size = [], 0
        _check(rest, number + 1, longest)
    if text := _text(bytes(rest), number + 1):
        group.append((number + 1, text))
    if group:
        yield group


def _text(line: bytes, number: int) -> bytes:
    """A line without the blanks around it, the first one without a byte order mark."""
    return (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip(b" \t\r")


def _check(line: bytes | bytearray, number: int, longest: int) -> None:
    if len(line) > longest:
        raise HttpProblem(413, "body_too_large", f"Line {number} is too long: a line may have {longest} bytes")
