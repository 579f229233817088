"""Answers that are JSON: those to a repair of an answer, and servers whose grammar begins with the first new token."""

from __future__ import annotations

from simulator.calls import ChatCall
from simulator.faults import Script, read_directive


def repair_script(call: ChatCall) -> Script | None:
    """The script of a call that repairs an answer: its last user message has no directive, and follows the answer to
    one whose directive has ``repairs``. Raises DirectiveError."""
    users = [message for message in call.messages if message.role == "user"]
    for message in reversed(users[:-1]):
        script = read_directive(message.text)
        if script is not None and script.repairs:
            said = [message.text for message in call.messages if message.role == "assistant"]
            texts = [script.text, *(repair.text for repair in script.repairs)]
            wrong = next((text for text in reversed(said[: len(said) - (call.trailing is not None)])), None)
            place = texts.index(wrong) if wrong in texts else 0
            return script.repairs[min(place, len(script.repairs) - 1)]
    return None


def begins_again(call: ChatCall, script: Script) -> bool:
    """Whether the answer begins with its first token although it continues a prefix."""
    return call.wants_json and script.json_prefix == "begins_again"
