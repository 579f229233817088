"""A lane's budget of tokens per minute: reserved before a call from an estimate, settled after it with its usage.

Mistral counts what was really generated, over the last 60 seconds at any moment. So does this: tokens are kept by slots
of some seconds, and a call may start if the slots of the last minute, those of the jobs before it, and its own estimate
fit together. A large request is not overtaken by small ones that would use up what it waits for; one that is larger
than the whole budget starts when nothing of it is used, alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from domain.tokens import RequestSize
from domain.values import Claimant, Reservation
from storage.rate_limits.breaker import SECOND

SLOT = 5 * SECOND
WINDOW = 60 * SECOND
FIRST_TYPICAL = 512
"""Tokens of an answer without ``max_tokens`` in a lane that has not learned yet how long its answers are."""
LEARNED = 0.1
"""The weight of one answer in the typical length."""
SETTLED_FROM = 0.25
"""The part of the budget that has to be used for calls to be settled: each settling costs a transaction."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """The budget of a lane at ``time``: ``limit`` tokens per minute, of which ``spends`` (tokens by slot) are used."""

    limit: int
    spends: dict[int, int]
    typical: int
    time: int

    @classmethod
    def of(cls, lane: Any, time: int) -> TokenBudget | None:
        """Of a row of ``lanes``. None where it has no limit, neither an operator's nor one in the model's headers."""
        limits = [limit for limit in (lane.tokens_set_to, lane.tokens_seen) if limit]
        if not limits:
            return None
        first, last = (time - WINDOW) // SLOT, time // SLOT + 1  # later ones: the clock was set back
        kept = {slot: tokens for slot, tokens in json.loads(lane.token_spends or "[]") if first <= slot <= last}
        return cls(min(limits), kept, lane.typical_answer or FIRST_TYPICAL, time)

    @property
    def used(self) -> int:
        """Tokens of the last minute."""
        return sum(self.spends.values())

    def cost(self, claimant: Claimant) -> int:
        """The estimate of a job's next call."""
        size: RequestSize = claimant.size()
        return size.prompt + (self.typical if size.answer is None else size.answer)

    def free_at(self, cost: int, ahead: int = 0) -> int:
        """When a call of ``cost`` tokens may start, after others that need ``ahead``."""
        left, need = self.used, ahead + cost
        if left + need <= self.limit or not (left or ahead):
            return self.time
        at = self.time
        for slot, tokens in sorted(self.spends.items()):
            left, at = left - tokens, (slot + 1) * SLOT + WINDOW
            if left + need <= self.limit:
                return at
        return at + ahead // self.limit * WINDOW

    def reserved(self, cost: int) -> str:
        """The lane's new ``token_spends``, with a call of ``cost`` that starts now."""
        return _json(_added(self.spends, self.time // SLOT, cost))

    def settled(self, turn: Reservation, prompt: int, answer: int) -> str:
        """The same after a call: its prompt was counted when it began, and its answer at the latest now."""
        spends = dict(self.spends)
        if turn.slot in spends:
            spends[turn.slot] = max(0, spends[turn.slot] - turn.tokens + prompt)
        return _json(_added(spends, self.time // SLOT, answer))

    def told(self, used: float) -> str:
        """The same after the model has told that ``used`` tokens are used: others use the key, too."""
        return _json(_added(self.spends, self.time // SLOT, max(0, int(used) - self.used)))


def learned(typical: int | None, answer: int) -> int:
    """The typical length of an answer, after one more of ``answer`` tokens."""
    return answer if typical is None else round(typical + LEARNED * (answer - typical))


def _added(spends: dict[int, int], slot: int, tokens: int) -> dict[int, int]:
    return {**spends, slot: spends.get(slot, 0) + tokens}


def _json(spends: dict[int, int]) -> str:
    return json.dumps([[slot, tokens] for slot, tokens in sorted(spends.items()) if tokens], separators=(",", ":"))
