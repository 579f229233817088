"""The call that repairs an answer that is not the JSON that it was to be: what the model is asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chatjobs.contracts import AssistantMessage, ChatRequest, UserMessage
from domain.continuing import own_prefix
from domain.outcomes import AttemptOutcome
from domain.schema_check import Mismatch
from domain.values import Claim

MOST_SHOWN: Final = 100_000
"""Characters of a wrong answer that the model is shown again."""
EMPTY: Final = "(empty)"
"""Stands for a blank answer: an assistant's message must have content."""
MOST_PROBLEM: Final = 2_000
"""Characters of what is wrong."""


def reset_reason(claim: Claim) -> str | None:
    """Why the text so far is discarded, if it is a wrong answer that the attempt repairs."""
    is_wrong = claim.repair is not None and claim.repair.epoch == claim.epoch
    return AttemptOutcome.SCHEMA_MISMATCH.value if is_wrong else None


def asked(claim: Claim, request: ChatRequest) -> ChatRequest:
    """What the model is asked: ``request``, or the repair of its answer. The caller's own beginning of the answer stays
    at the end."""
    repair = claim.repair
    if repair is None:
        return request
    own = request.messages[-1:] if isinstance(request.messages[-1], AssistantMessage) else ()
    wrong = (own_prefix(request) + repair.content)[:MOST_SHOWN]
    before = request.messages[: len(request.messages) - len(own)]
    exchange = (AssistantMessage(content=wrong if wrong.strip() else EMPTY), UserMessage(content=repair.problem))
    return request.model_copy(update={"messages": (*before, *exchange, *own)})


def problem_text(problems: Sequence[Mismatch], length: int) -> str:
    """What is wrong with an answer of ``length`` characters, for the model."""
    lines = [f"- {one['pointer'] or 'the whole answer'} {one['wanted']}" for one in problems]
    said = "\n".join(lines)
    said = said if len(said) <= MOST_PROBLEM else f"{said[: MOST_PROBLEM - 1]}…"
    shown = f" (only its first {MOST_SHOWN} characters are repeated above)" if length > MOST_SHOWN else ""
    return (
        f"Your answer is not the JSON that was asked for{shown}. What is wrong, by JSON pointer:\n{said}\n"
        "Answer again with the whole corrected JSON and nothing else: no explanation, no code block."
    )
