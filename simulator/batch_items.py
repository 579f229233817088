"""The lines of a batch job: the validation of the input, and the line of the answer to one item."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from simulator import refusals
from simulator.calls import ChatCall
from simulator.faults import DirectiveError, Fault, FinishFault, NoDone, Status
from simulator.refusals import Refusal
from simulator.state import Simulator, describe
from simulator.wire import json_bytes

MAX_LINES: Final = 1_000_000


class Item(BaseModel):
    """One line of an input file; OpenAI's fields ``method`` and ``url`` are accepted."""

    model_config = ConfigDict(extra="forbid")
    custom_id: str | None = None
    body: dict[str, JsonValue]
    method: str | None = None
    url: str | None = None


class Validation:
    """The errors of an input, counted by message as Mistral does (``mistralai.client.models.BatchError``)."""

    def __init__(self, *, needs_model: bool) -> None:
        self._needs_model = needs_model
        self._seen: set[int] = set()  # hashes, which need less memory than the ids
        self._messages: Counter[str] = Counter()
        self.lines = 0

    def take(self, line: bytes) -> None:
        self.lines += 1
        try:
            item = Item.model_validate_json(line)
        except ValidationError as error:
            self._messages[f"Invalid line: {error.errors()[0]['msg']}"] += 1
            return
        if self._needs_model and not item.body.get("model"):
            self._messages["No model: give one to the job, or one in each body"] += 1
        if item.custom_id is not None and hash(item.custom_id) in self._seen:
            self._messages["Duplicate custom_id"] += 1
        self._seen.add(hash(item.custom_id))

    def errors(self) -> list[dict[str, Any]]:
        if not self.lines:
            self._messages["The input file is empty"] += 1
        if self.lines > MAX_LINES:
            self._messages[f"More than {MAX_LINES} lines"] += 1
        return [{"message": message, "count": count} for message, count in self._messages.items()]


class AnswerLine(NamedTuple):
    """One line of an output file, or of an error file if not ``succeeded``."""

    data: bytes
    succeeded: bool


def answered(simulator: Simulator, line: bytes, *, job: str, model: str | None) -> AnswerLine:
    """The line of an item, from the generator of ordinary completions; it is in the log as one request."""
    item = Item.model_validate_json(line)
    body: dict[str, Any] = item.body | ({"model": model} if model else {})
    entry = simulator.log.begin({}, batch=job)
    try:
        call = ChatCall.model_validate(body)
        simulator.serve(call)
        describe(entry, call)
        refusal = _refusal(call, body)
        if refusal is None:
            reply = simulator.attempt(call, entry)
            refusal = _of_fault(reply.fault)
    except ValidationError as error:
        refusal = refusals.invalid(error)
    except DirectiveError as error:
        refusal = refusals.error(400, str(error), "invalid_directive", None)
    simulator.log.described()
    if refusal is not None:
        entry.status = refusal.status
        simulator.log.end(entry, "refused")
        return refused(item.custom_id, refusal)
    document, tokens = reply.document()
    entry.status, entry.tokens_sent = 200, tokens
    simulator.log.end(entry, "finished")
    return AnswerLine(written(item.custom_id, 200, document), succeeded=True)


def failed(line: bytes) -> AnswerLine:
    """The line of an item that an error of the server hit."""
    return refused(Item.model_validate_json(line).custom_id, _broken())


def refused(custom_id: str | None, refusal: Refusal) -> AnswerLine:
    """The line of a refusal, whose body need not be JSON."""
    body = refusal.body
    try:
        json.loads(body)
    except ValueError:
        body = json_bytes(body.decode(errors="replace"))
    return AnswerLine(written(custom_id, refusal.status, body), succeeded=False)


def written(custom_id: str | None, status: int, body: bytes) -> bytes:
    """A line; ``body`` is JSON."""
    head = json_bytes({"id": f"batch-{uuid.uuid4()}", "custom_id": custom_id})[:-1]
    return head + b',"response":{"status_code":%d,"body":%b},"error":null}\n' % (status, body)


def _refusal(call: ChatCall, body: dict[str, Any]) -> Refusal | None:
    if body.get("stream"):
        return refusals.error(400, "Batch requests cannot be streamed", "invalid_request_error", "3000")
    found = call.refusal()
    return None if found is None else refusals.error(400, *found)


def _of_fault(fault: Fault | None) -> Refusal | None:
    """The refusal that a fault of an answer is in a batch; None for a fault that a whole document can have."""
    if isinstance(fault, Status):
        return refusals.of_fault(fault)
    return None if isinstance(fault, FinishFault | NoDone | None) else _broken()


def _broken() -> Refusal:
    return refusals.error(500, "Internal server error", "internal_server_error", "1000")
