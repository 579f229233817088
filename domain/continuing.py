"""How a server continues an assistant's message: what it has to be asked, and what it makes of the text. Pure.

There is no common way. Mistral continues a message with ``prefix: true`` and repeats it first. vLLM continues the last
message with ``continue_final_message: true`` and ``add_generation_prompt: false``, and by default does the opposite
without a word. llama.cpp and others continue any assistant's message that is the last one.

Whitespace at the end of the message is a matter of its own. mistral-common (1.13, ``_encode_normal_content_assistant_
message``) drops spaces, and spaces only, before the model sees the text. Chat templates of Hugging Face often trim all
whitespace. Where the model does not see it, the model says it again, or says something else. So what a server drops,
or may drop, is not sent, and has to come back first (providers/mistral/echo.py). A server that was seen to give all of
the text to the model (providers/mistral/probe.py) gets all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from chatjobs.contracts import AssistantMessage, ChatRequest, message_text

VERSION: Final = 2
"""Of the measurement in providers/mistral/probe.py: raise it to have every server measured again."""
MISTRAL: Final = "https://api.mistral.ai"
_MISTRAL_DOMAIN: Final = "mistral.ai"


class Way(StrEnum):
    """What a server has to be asked so that it continues the last message; ``none``: it is never asked to."""

    PREFIX = "prefix"
    CONTINUE_FINAL_MESSAGE = "continue_final_message"
    ASSISTANT = "assistant"
    NONE = "none"


class Drops(StrEnum):
    """The whitespace at the end of a message that the model does not see."""

    NOTHING = "nothing"
    SPACES = "spaces"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Practice:
    """How one server continues.

    ``echoes``: whether the answer begins with the message; None: not known. ``formats``: the response formats beside
    text whose answers it continues; None: not known. Constrained decoding often begins its grammar with the first new
    token, so that the answer would begin again with an opening brace.
    """

    way: Way
    drops: Drops
    echoes: bool | None = None
    formats: frozenset[str] | None = None

    def divided(self, text: str) -> tuple[str, str]:
        """What of a message is sent, and the whitespace behind it that is not."""
        match self.drops:
            case Drops.NOTHING:
                sent = text
            case Drops.SPACES:
                sent = text.rstrip(" ")
            case Drops.ALL:
                sent = text.rstrip()
        return sent, text[len(sent) :]


AS_MISTRAL: Final = Practice(Way.PREFIX, Drops.SPACES)
NEVER: Final = Practice(Way.NONE, Drops.NOTHING)
USUAL: Final = {
    Way.PREFIX: AS_MISTRAL,
    Way.CONTINUE_FINAL_MESSAGE: Practice(Way.CONTINUE_FINAL_MESSAGE, Drops.ALL),
    Way.ASSISTANT: Practice(Way.ASSISTANT, Drops.ALL),
    Way.NONE: NEVER,
}
"""What is assumed of a server of which only the way is known."""


def own_prefix(request: ChatRequest) -> str:
    """The beginning of the answer in the caller's own last message."""
    last = request.messages[-1]
    return message_text(last) if isinstance(last, AssistantMessage) else ""


def server_name(server_url: str | None) -> str:
    """A server as it is remembered: scheme, host, port and path, without credentials, query and closing slash."""
    parts = urlsplit(server_url or MISTRAL)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme.lower()}://{host}{port}{parts.path.rstrip('/')}"[:512]


def is_mistral(server_url: str | None) -> bool:
    """The address is Mistral's own, such as https://api.mistral.ai."""
    host = urlsplit(server_url or MISTRAL).hostname or ""
    return host == _MISTRAL_DOMAIN or host.endswith("." + _MISTRAL_DOMAIN)
