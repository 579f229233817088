"""The words of a text, as the search for jobs knows them, and those of a query. The same on every database.

A word is a run of letters and digits, without case and accents. Scripts that are written without spaces (Chinese,
Japanese, Thai and the like; Korean, too) have no such words: every character of them is one, and so is every pair of
neighbours. A query for a part of such a text asks for its pairs, wherever they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

MOST_CHARACTERS = 65_536
"""Of a prompt, and of an answer, that are searched."""
LONGEST_WORD = 40
"""Longer words are cut: what is longer is mostly no word."""
MOST_WORDS = 32
"""Of a query; further ones are ignored."""
SHORTEST_BEGINNING = 4
"""Characters of a query's last word that may be the beginning of others; fewer would begin too many."""
PREVIEW_CHARACTERS = 120
ACCENTS = 200
"""The combining class from which on a mark is an accent (Unicode, 4.3); others change the letter, as in kana."""

RUN = re.compile(r"[^\W_]+")
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"  # East Asia
)
PIECE = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")
IS_UNSPACED = re.compile(f"[{UNSPACED}]")


class Query(NamedTuple):
    """Words that all have to be there. ``begins``: where no job has the last one, words that begin with it do, too,
    because it may not be typed to its end."""

    words: tuple[str, ...]
    begins: bool = False

    def matches(self, found: Collection[str]) -> bool:
        """Whether a text with these words matches."""
        known = set(found)
        *others, last = self.words
        if not known.issuperset(others):
            return False
        return last in known or (self.begins and any(word.startswith(last) for word in known))


def words(text: str) -> set[str]:
    """The words of a text's first MOST_CHARACTERS characters."""
    plain = _plain(text[:MOST_CHARACTERS])
    if plain.isascii():
        return {run[:LONGEST_WORD] for run in RUN.findall(plain)}
    return {word for run in RUN.findall(plain) for piece in PIECE.findall(run) for word in _indexed(piece)}


def _indexed(piece: str) -> Iterator[str]:
    if IS_UNSPACED.match(piece):
        yield from piece
        yield from (piece[place : place + 2] for place in range(len(piece) - 1))
    else:
        yield piece[:LONGEST_WORD]


def query(text: str) -> Query:
    """The query that a caller's text means; without a letter or digit it has no words, and finds nothing."""
    plain = _plain(text[:MOST_CHARACTERS])
    pieces = [piece for run in RUN.findall(plain) for piece in PIECE.findall(run)]
    found = tuple(dict.fromkeys(word for piece in pieces for word in _asked(piece)))
    last = pieces[-1] if pieces else ""
    typing = len(last) >= SHORTEST_BEGINNING and plain.endswith(last) and not IS_UNSPACED.match(last)
    return Query(found[:MOST_WORDS], begins=typing and len(found) <= MOST_WORDS and found[-1] == last)


def _asked(piece: str) -> Iterator[str]:
    if IS_UNSPACED.match(piece) and len(piece) > 1:
        yield from (piece[place : place + 2] for place in range(len(piece) - 1))
    else:
        yield piece[:LONGEST_WORD]


def _plain(text: str) -> str:
    """A text without case and accents."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFC", "".join(one for one in apart if unicodedata.combining(one) < ACCENTS))


# ------------------------------------------------------------------------------------------------- requests


def prompt_text(request: dict[str, Any]) -> str:
    """The text of a request's messages: of a long conversation, the newest MOST_CHARACTERS characters."""
    found: list[str] = []
    size = 0
    for message in reversed(request["messages"]):
        found.append(_text(message))
        size += len(found[-1])
        if size >= MOST_CHARACTERS:
            break
    return "\n".join(reversed(found))[-MOST_CHARACTERS:]


def preview(request: dict[str, Any]) -> str | None:
    """The first PREVIEW_CHARACTERS characters of a request's last user message; None if it has no text."""
    for message in reversed(request["messages"]):
        if message.get("role") == "user":
            return _text(message)[:PREVIEW_CHARACTERS] or None
    return None


def _text(message: dict[str, Any]) -> str:
    """The text parts of a message as it is stored (``ChatRequest`` as JSON)."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
