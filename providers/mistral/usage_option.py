"""OpenAI's ``stream_options``, with which most servers have to be asked for the usage of a streamed answer."""

from __future__ import annotations

from typing import Final

from chatjobs.contracts import ChatRequest, JsonObject
from domain.continuing import Practice, Way, is_mistral
from domain.ports import Finish
from providers.mistral.errors import ErrorAnswer

STREAM_OPTIONS: Final = "stream_options"
INCLUDE_USAGE: Final[JsonObject] = {STREAM_OPTIONS: {"include_usage": True}}
REFUSALS: Final = (400, 422)
"""The statuses with which servers refuse an unknown parameter."""
MOST_MODELS: Final = 1000
"""The models of which something is remembered."""


class UsageOption:
    """Whether calls ask for the usage, by model.

    Mistral's own server reports usage unasked and refuses the parameter (422, ``extra_forbidden``). Most others report
    usage in a stream only if they are asked (vLLM, llama.cpp, Ollama, LM Studio, LiteLLM). So Mistral is never asked. A
    server that is said to continue with ``prefix`` is taken for one of Mistral's kind, and asked only once an answer
    came without usage; any other one is asked at once.

    Not every server names what it refuses, and a refusal that names the parameter may only repeat a request that is
    wrong for another reason. So, until a model was seen to take the parameter, a refused call is made again without it;
    if that is taken, the model is not asked again in this process. Behind a gateway models differ.
    """

    def __init__(self, server_url: str | None, practice: Practice | None) -> None:
        self._never = is_mistral(server_url)
        self._at_once = practice is None or practice.way is not Way.PREFIX
        self._known: dict[str, bool] = {}
        self._taken: set[str] = set()

    def asks(self, request: ChatRequest) -> bool:
        """Whether a call for ``request`` asks. A caller's own ``stream_options`` are sent as they are."""
        if self._never or STREAM_OPTIONS in request.extra:
            return False
        return self._known.get(request.model, self._at_once)

    def may_be_refused(self, request: ChatRequest, error: ErrorAnswer) -> bool:
        """Whether the server may have refused the parameter, so that the call is worth making without it."""
        if error.status not in REFUSALS:
            return False
        return request.model not in self._taken or STREAM_OPTIONS.encode() in error.body

    def refused(self, request: ChatRequest) -> None:
        """Take note of a call that was refused with the parameter and taken without it."""
        self._taken.discard(request.model)
        self._note(request.model, asks=False)

    def taken(self, request: ChatRequest) -> None:
        """Take note of a call that was taken with the parameter."""
        if request.model not in self._taken:
            if len(self._taken) >= MOST_MODELS:
                self._taken.clear()
            self._taken.add(request.model)

    def note(self, request: ChatRequest, finish: Finish) -> None:
        """Take note of an answer that is whole."""
        if finish.usage is None and STREAM_OPTIONS not in request.extra and request.model not in self._known:
            self._note(request.model, asks=True)

    def _note(self, model: str, *, asks: bool) -> None:
        if len(self._known) >= MOST_MODELS:
            self._known.clear()
        self._known[model] = asks
