"""The dialects of other servers of Mistral's models: the same scripted answer, as each of them writes it.

Sources: vLLM, ``vllm/entrypoints/openai/chat_completion/serving.py`` and ``protocol.py`` (August 2026); Ollama,
``middleware/openai.go`` and ``openai/openai.go`` (September 2026); llama.cpp, ``tools/server/server-context.cpp`` and
``server-common.cpp``, and the answers of its build 11549, which ``tests/upstreams/test_llamacpp.py`` runs. None of them
has rate limits, refuses fields that it does not know, or reports usage in a stream unasked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from simulator import refusals, wire
from simulator.calls import KNOWN_MODELS, ChatCall
from simulator.faults import Continues, Dialect, FrameStyle, Status, StreamError
from simulator.generation import CallPiece, Piece, References, Text, Thinking
from simulator.refusals import Headers, Refusal, of_json
from simulator.wire import FrameWriter, Usage

CONTEXT_TOKENS: Final = 200_000
"""A prompt of more tokens is refused, by the servers that refuse one."""
_CONTEXT: Final = (
    "This model's maximum context length is {most} tokens. However, your request has {tokens} input tokens."
)


class OpenAiFrames(FrameWriter):
    """What the chunks of the three servers have in common."""

    reasoning: ClassVar = "reasoning"
    fingerprint: ClassVar[str | None] = None
    merges_end: ClassVar = False
    """The last piece of an answer that reached its limit is in the chunk with the finish reason."""

    def __init__(self, answer_id: str, model: str, created: int, framing: FrameStyle) -> None:
        super().__init__(f"chatcmpl-{answer_id}", model, created, framing)
        if self.fingerprint is not None:
            self._chunk["system_fingerprint"] = self.fingerprint

    def piece(self, piece: Piece, *, as_list: bool, nameless: bool, used: Usage | None = None) -> list[bytes]:
        return [self._chunk_of(delta, used=used) for delta in self._deltas(piece)]

    def text(self, text: str, *, as_list: bool = False) -> bytes:
        return self._chunk_of({"content": text})

    def last(self, reason: str, used: Usage | None) -> bytes:
        """The chunk with the finish reason, and the one with the usage, which has no choice."""
        return self._chunk_of({"content": ""}, reason) + self.usage(used)

    def end_with(self, piece: Piece, reason: str, used: Usage | None) -> bytes:
        """The chunk with the last piece and the finish reason, and the usage."""
        (delta,) = self._deltas(piece)
        return self._chunk_of(delta, reason) + self.usage(used)

    def usage(self, used: Usage | None) -> bytes:
        return b"" if used is None else self._document({**self._chunk, "choices": [], "usage": used})

    def error(self, fault: StreamError) -> bytes:
        return self._document({"error": self.error_object(500, fault.message, fault.type)})

    @staticmethod
    def error_object(status: int, message: str, type_: str | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        match piece:
            case Text(text):
                return [{"content": part} for part in self._parts(text)]
            case Thinking(text):
                return [{self.reasoning: text}]
            case CallPiece():
                return [{"tool_calls": [_call(piece)]}]
            case References():
                return []  # these servers have no parts

    def _chunk_of(self, delta: dict[str, Any], reason: str | None = None, *, used: Usage | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, **self._choice(reason), "finish_reason": reason}
        return self._document({**self._chunk, "choices": [choice], **({} if used is None else {"usage": used})})

    def _choice(self, reason: str | None) -> dict[str, Any]:
        return {}

    def _document(self, document: dict[str, Any]) -> bytes:
        return self.data(wire.json_bytes(document).decode())


def _call(piece: CallPiece) -> dict[str, Any]:
    """A piece of a call: the first has id, type and name, the others have arguments."""
    if piece.id is None:
        return {"index": piece.call, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"id": f"call_{piece.id}", "type": "function", "index": piece.call, "function": function}


class VllmFrames(OpenAiFrames):
    """vLLM: a chunk with the role first; null fields in each choice; ``stop_reason`` at the end; ``[DONE]`` also after
    an error. Newer versions have ``reasoning`` in place of ``reasoning_content``."""

    merges_end = True

    def role(self) -> bytes:
        return self._chunk_of({"role": "assistant", "content": ""})

    def _choice(self, reason: str | None) -> dict[str, Any]:
        return {"logprobs": None, "token_ids": None} | ({} if reason is None else {"stop_reason": None})

    def usage(self, used: Usage | None) -> bytes:
        if used is None:
            return b""
        more = {"usage": used, "system_fingerprint": "vllm-0.30.0-simulated"}
        return self._document({**self._chunk, "choices": [], **more})

    def error(self, fault: StreamError) -> bytes:
        return super().error(fault) + self.done()

    @staticmethod
    def error_object(status: int, message: str, type_: str | None = None) -> dict[str, Any]:
        kinds = {400: "BadRequestError", 404: "NotFoundError"}
        usual = kinds.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        return {"message": message, "type": usual, "param": None, "code": status}


class OllamaFrames(OpenAiFrames):
    """Ollama: no chunk with the role alone, but the role and a content in each; calls whole, in one chunk; the usage
    repeats the last chunk without its choice. An error after the headers is lost: an empty chunk, then the end."""

    fingerprint = "fp_ollama"

    def role(self) -> bytes:
        return b""

    def error(self, fault: StreamError) -> bytes:
        return self._document({**self._chunk, "model": "", "choices": [self._empty(None)]})

    @staticmethod
    def error_object(status: int, message: str, type_: str | None = None) -> dict[str, Any]:
        kinds = {400: "invalid_request_error", 404: "not_found_error"}
        return {"message": message, "type": kinds.get(status, "api_error"), "param": None, "code": None}

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": "", **delta} for delta in super()._deltas(piece)]

    def last(self, reason: str, used: Usage | None) -> bytes:
        return self._document({**self._chunk, "choices": [self._empty(reason)]}) + self.usage(used)

    @staticmethod
    def _empty(reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": reason}


class LlamaCppFrames(OpenAiFrames):
    """llama.cpp: a chunk with the role and a null content first, an empty delta at the end, and ``timings`` in the last
    chunk, which is that with the usage if it was asked for. An error ends the stream without ``[DONE]``."""

    reasoning = "reasoning_content"
    fingerprint = "b11549-simulated"
    timings: ClassVar = {"cache_n": 0, "prompt_n": 4, "prompt_ms": 1.5, "predicted_n": 3, "predicted_ms": 2.5}

    def role(self) -> bytes:
        return self._chunk_of({"role": "assistant", "content": None})

    def last(self, reason: str, used: Usage | None) -> bytes:
        choice = {"index": 0, "delta": {}, "finish_reason": reason}
        if used is None:
            return self._document({**self._chunk, "choices": [choice], "timings": self.timings})
        usage = {**self._chunk, "choices": [], "usage": used, "timings": self.timings}
        return self._document({**self._chunk, "choices": [choice]}) + self._document(usage)

    @staticmethod
    def error_object(status: int, message: str, type_: str | None = None) -> dict[str, Any]:
        kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
        kinds |= {503: "unavailable_error"}
        return {"code": status, "message": message, "type": kinds.get(status, "server_error")}


class Server:
    """How one kind of server answers. This one is Mistral's."""

    frames: type[FrameWriter] = FrameWriter
    continues: Continues = "prefix"
    owner: str = "mistralai"
    forbids_unknown_fields: bool = True
    has_allowance: bool = True
    """It has rate limits, and says so in headers."""

    def headers(self, answer_id: str) -> Headers:
        return {"mistral-correlation-id": answer_id}

    def reports_usage(self, call: ChatCall) -> bool:
        return True

    def counts_in_chunks(self, call: ChatCall) -> bool:
        """Whether each chunk has the usage so far."""
        return False

    def echoes(self, call: ChatCall) -> bool:
        """Whether a continued message is repeated first."""
        return call.message_is_prefix

    def calls_are_whole(self) -> bool:
        return False

    def refusal(self, call: ChatCall) -> Refusal | None:
        if call.stream_options and call.continues == "prefix":
            return refusals.no_stream_options()
        found = call.refusal()
        return None if found is None else refusals.error(400, *found)

    def status(self, fault: Status) -> Refusal:
        return refusals.of_fault(fault)

    def message(self, pieces: Iterable[Piece], *, echo: str, as_list: bool) -> dict[str, Any]:
        """The pieces of an answer as one message."""
        return wire.message(pieces, echo=echo, as_list=as_list)


class OtherServer(Server):
    """What servers other than Mistral's have in common."""

    frames: type[OpenAiFrames] = OpenAiFrames
    forbids_unknown_fields = False
    has_allowance = False
    unknown_model: tuple[int, str] = (404, "The model `{model}` does not exist.")

    def headers(self, answer_id: str) -> Headers:
        return {}

    def reports_usage(self, call: ChatCall) -> bool:
        return not call.stream or (call.stream_options or {}).get("include_usage") is True

    def echoes(self, call: ChatCall) -> bool:
        return False

    def refusal(self, call: ChatCall) -> Refusal | None:
        if not KNOWN_MODELS.fullmatch(call.model):
            status, words = self.unknown_model
            return self.error(status, words.format(model=call.model))
        wrong = self.wrong(call)
        return None if wrong is None else self.error(400, wrong)

    def wrong(self, call: ChatCall) -> str | None:
        """Why the request is refused."""
        return None

    def error(self, status: int, message: str) -> Refusal:
        return of_json(status, {"error": self.frames.error_object(status, message)})

    def status(self, fault: Status) -> Refusal:
        refusal = refusals.of_fault(fault)
        if fault.status < 400 or fault.body is not None:
            return refusal
        message = fault.message or str(json.loads(refusal.body).get("message", "Something is off."))
        return self.error(fault.status, message)._replace(headers=refusal.headers)

    def message(self, pieces: Iterable[Piece], *, echo: str, as_list: bool) -> dict[str, Any]:
        found = list(pieces)
        text = echo + "".join(piece.text for piece in found if isinstance(piece, Text))
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thoughts := "".join(piece.text for piece in found if isinstance(piece, Thinking)):
            message[self.frames.reasoning] = thoughts
        if calls := wire.whole_calls(found):
            message["tool_calls"] = [{"type": "function"} | call for call in calls]
        return message


class Vllm(OtherServer):
    frames = VllmFrames
    continues = "continue_final_message"
    owner = "vllm"

    def counts_in_chunks(self, call: ChatCall) -> bool:
        return self.reports_usage(call) and (call.stream_options or {}).get("continuous_usage_stats") is True

    def echoes(self, call: ChatCall) -> bool:
        return call.echo is True and call.prefix is not None

    def wrong(self, call: ChatCall) -> str | None:
        if call.continue_final_message and call.add_generation_prompt is not False:
            return "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        if call.stream_options and not call.stream:
            return "Stream options can only be defined when `stream=True`."
        if call.prompt_tokens > CONTEXT_TOKENS:
            return _CONTEXT.format(most=CONTEXT_TOKENS, tokens=call.prompt_tokens)
        return None


class Ollama(OtherServer):
    """Whether it continues depends on the model's template: ``--continues never`` is one that ends each message."""

    frames = OllamaFrames
    continues = "assistant"
    owner = "library"
    unknown_model = (404, "model '{model}' not found")

    def calls_are_whole(self) -> bool:
        return True


class LlamaCpp(OtherServer):
    """``llama-server`` as a router of models: with one model it answers whatever the name."""

    frames = LlamaCppFrames
    continues = "assistant"
    owner = "llamacpp"
    unknown_model = (400, "model '{model}' not found")

    def headers(self, answer_id: str) -> Headers:
        return {"server": "llama.cpp"}

    def refusal(self, call: ChatCall) -> Refusal | None:
        if call.prompt_tokens <= CONTEXT_TOKENS:
            return super().refusal(call)
        words = f"request ({call.prompt_tokens} tokens) exceeds the available context size ({CONTEXT_TOKENS} tokens)"
        found = {"code": 400, "message": f"{words}, try increasing it", "type": "exceed_context_size_error"}
        return of_json(400, {"error": found | {"n_prompt_tokens": call.prompt_tokens, "n_ctx": CONTEXT_TOKENS}})

    def wrong(self, call: ChatCall) -> str | None:
        if call.continue_final_message and call.add_generation_prompt:
            return "Cannot set both add_generation_prompt and continue_final_message to true."
        if call.trailing is not None:
            if [message.role for message in call.messages[-2:]] == ["assistant", "assistant"]:
                return "Cannot have 2 or more assistant messages at the end of the list."
            if (call.chat_template_kwargs or {}).get("enable_thinking") is True:
                return "Assistant response prefill is incompatible with enable_thinking."
        return None


SERVERS: Final[dict[Dialect, Server]] = {
    "mistral": Server(),
    "vllm": Vllm(),
    "ollama": Ollama(),
    "llamacpp": LlamaCpp(),
}
