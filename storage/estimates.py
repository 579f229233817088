"""How many tokens a call used that ended before Mistral said so. Rough, and marked as such wherever it is shown."""

from __future__ import annotations

from chatjobs.contracts import ChatRequest, message_text

BYTES_PER_TOKEN = 4
"""Of English text in UTF-8; of other languages it is less, of code too."""
TOKENS_PER_MESSAGE = 4


def prompt_tokens(request: ChatRequest) -> int:
    """Of the messages' text and the tools' descriptions. Images and documents are not counted: nobody can tell."""
    texts = [message_text(message) for message in request.messages]
    texts += [tool.model_dump_json(exclude_none=True) for tool in request.tools or ()]
    length = sum(len(text) if text.isascii() else len(text.encode(errors="replace")) for text in texts)
    return -(-length // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages)
