"""Text in storable form: the same characters, and so the same positions, on SQLite and on Postgres."""

from __future__ import annotations

from typing import Any

REPLACEMENT = "\ufffd"


class Normaliser:
    """Makes the pieces of a stream storable: joins split characters and replaces invalid ones. One per channel.

    A high surrogate at the end of a piece waits for the next one, because JSON may spread an astral character over
    two deltas (RFC 8259, section 7). Lone surrogates (not encodable in UTF-8) and NUL (refused by Postgres) become
    U+FFFD.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The storable text of the held character and ``text``; may be empty."""
        if not self._held and text.isascii() and "\0" not in text:
            return text
        text = self._held + text
        self._held = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return _clean(text[: len(text) - len(self._held)])

    def end(self) -> str:
        """The text that is left at the end of the stream."""
        held, self._held = self._held, ""
        return REPLACEMENT if held else ""


def _clean(text: str) -> str:
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", REPLACEMENT)


def clean(text: str) -> str:
    """A complete text in storable form."""
    return text if text.isascii() and "\0" not in text else _clean(text)


def clean_json(value: Any) -> Any:
    """A JSON value with all of its texts, keys too, in storable form."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return value
