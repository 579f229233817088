"""Estimates of the tokens of a call that ended before Mistral reported them. Rough, and marked as estimated wherever
they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chatjobs.contracts import ChatRequest, ImageUrlPart, message_text

BYTES_PER_TOKEN = 4
"""For English text in UTF-8; other languages and code have fewer."""
TOKENS_PER_MESSAGE = 4
NOT_READ = frozenset({"type", "image_url", "url", "input_audio", "document_url", "file_id", "signature", "detail"})
"""Fields of messages that a model does not read as text."""
CEILING_PER_MESSAGE = 16
"""Control tokens around a message and its role, and those around the whole."""
CEILING_PER_IMAGE = 4_200
"""Tokens of the largest image that Mistral's models read."""
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123))
_BLANKS = b" \t\r\n"
_LEAD_BYTES_OF_TWO = bytes(range(0xC2, 0xE0))


def text_ceiling(text: str) -> int:
    """More tokens than a text is likely to have: one for two letters of a word, for each digit, mark and blank that
    does not precede a word, for each letter of an alphabet with two bytes, and for each byte of anything else."""
    data = text.encode(errors="replace")
    others = data.translate(None, _LETTERS)
    words = len(re.findall(rb"[A-Za-z]+", data))
    marks = others.translate(None, _BLANKS)
    blanks = max(0, len(others) - len(marks) - words)
    double = len(marks) - len(marks.translate(None, _LEAD_BYTES_OF_TWO))
    return -(-(len(data) - len(others) + words) // 2) + blanks + len(marks) - double


def prompt_ceiling(request: ChatRequest) -> int:
    """An upper bound of a prompt's tokens, for limits that must hold. Documents, files and audio do not count: their
    tokens cannot be estimated."""
    schemas = [tool.model_dump_json(exclude_none=True) for tool in request.tools or ()]
    if request.response_format is not None:
        schemas.append(request.response_format.model_dump_json(exclude_none=True, by_alias=True))
    texts = [text for message in request.messages for text in _texts(message.model_dump(exclude={"role"}))]
    contents = [message.content for message in request.messages if not isinstance(message.content, str | None)]
    images = sum(isinstance(part, ImageUrlPart) for content in contents for part in content)
    marks = CEILING_PER_MESSAGE * (len(request.messages) + len(schemas) + 1)
    return sum(map(text_ceiling, [*texts, *schemas])) + images * CEILING_PER_IMAGE + marks


def _texts(value: object, name: str = "") -> Iterator[str]:
    """Every string of a message that a model reads as text."""
    match value:
        case str() if name not in NOT_READ:
            yield value
        case dict():
            for key, one in value.items():
                yield from _texts(one, str(key))
        case list() | tuple():
            for one in value:
                yield from _texts(one, name)


def prompt_tokens(request: ChatRequest) -> int:
    """An estimate for the messages' text and the tools' descriptions. Images and documents do not count: their tokens
    cannot be estimated."""
    texts = [message_text(message) for message in request.messages]
    texts += [tool.model_dump_json(exclude_none=True) for tool in request.tools or ()]
    length = sum(len(text) if text.isascii() else len(text.encode(errors="replace")) for text in texts)
    return -(-length // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages)
