"""How far continued answers of a model can be trusted, by what became of a few of them. Pure.

The numbers are small, so they are told as counts; a share is only told as a bound that holds at 95 % certainty
(``at_most``: Clopper and Pearson's, the places taken as independent).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import comb
from typing import Final, NamedTuple

from domain.seams import WRONG, SeamOutcome, Spot

LEAST_PLACES: Final = 6
"""Continued answers for a verdict: after five, if none was wrong, almost half of all could still be."""
LEAST_HANDOVERS: Final = 3
"""The same for text that another model goes on with, where the verdict promises less."""
DOUBT: Final = 0.05
"""One minus the certainty of a bound."""


class Trust(StrEnum):
    """The verdict on continued answers of a model at a server."""

    TRUST = "trust"
    CARE = "trust with care"
    NONE = "do not trust"
    STARTS_OVER = "starts over"
    """Interrupted answers are not continued, and so nothing is glued."""
    UNKNOWN = "cannot say"


class JudgedSeam(NamedTuple):
    """One answer that was cut and continued. ``before`` and ``after``: some characters of both sides of the seam."""

    task: str
    spot: Spot
    outcome: SeamOutcome
    equal: int
    before: str
    after: str
    why: str = ""


class ControlAnswers(NamedTuple):
    """Uninterrupted answers that were asked for twice: how many of them were the same both times."""

    equal: int = 0
    total: int = 0


_HEADS: Final = {
    Trust.TRUST: "trust {}",
    Trust.CARE: "trust {} with care",
    Trust.NONE: "do not trust {}",
    Trust.STARTS_OVER: "{} start over",
    Trust.UNKNOWN: "cannot say whether to trust {}",
}
NO_CONTROLS: Final = ControlAnswers()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a model's continued answers. ``ended``: why there were not more; empty if there were all.

    ``other``: the model whose text was continued, if it is another one. ``continues``: the server is known to go on
    with a text; if not, no interrupted answer is continued, and none was tried. ``asked``: the settings have it asked
    all the same, which glues a new answer to the old one.
    """

    model: str
    seams: Sequence[JudgedSeam] = ()
    controls: ControlAnswers = NO_CONTROLS
    ended: str = ""
    other: str | None = None
    continues: bool = True
    asked: bool = False

    def count(self, *outcomes: SeamOutcome) -> int:
        return sum(one.outcome in outcomes for one in self.seams)

    @property
    def wrong(self) -> int:
        return self.count(*WRONG)

    @property
    def resets(self) -> int:
        return self.count(SeamOutcome.RESET)

    @property
    def comparable(self) -> int:
        """Answers that went on, and that could be compared."""
        return len(self.seams) - self.count(SeamOutcome.RESET, SeamOutcome.UNDECIDED)

    @property
    def trust(self) -> Trust:
        """The verdict.

        A second wrong seam is no misjudgement, and a wrong seam is damage that nobody is told of: two of them are too
        many, in however many. Other words are no damage, since a model may say it so; but where half of the answers
        go on otherwise from the first character, the model has probably not read the text.
        """
        n, unsure = self.comparable, self.count(SeamOutcome.OTHER)
        if not self.continues:
            return Trust.NONE if self.asked else Trust.STARTS_OVER
        if self.wrong > 1 or (n >= LEAST_HANDOVERS and 2 * unsure >= n and self.other is None):
            return Trust.NONE
        if self.resets and self.resets >= LEAST_HANDOVERS and not n:
            return Trust.STARTS_OVER
        if n < (LEAST_PLACES if self.other is None else LEAST_HANDOVERS):
            return Trust.CARE if self.wrong else Trust.UNKNOWN
        if self.wrong or self._much_differs:
            return Trust.CARE
        return Trust.TRUST

    @property
    def _much_differs(self) -> bool:
        """More than a quarter in other words, more than one from the first character, or most are not comparable."""
        if self.other is not None:
            return False
        unsure = self.count(SeamOutcome.OTHER)
        differ = unsure + self.count(SeamOutcome.WANDERS)
        return unsure > 1 or 4 * differ > self.comparable or self.count(SeamOutcome.UNDECIDED) > self.comparable

    @property
    def words(self) -> str:
        """The verdict and its reasons, in one line."""
        subject = "continued answers" if self.other is None else f"answers of {self.other} continued by {self.model}"
        head = _HEADS[self.trust].format(subject)
        if not self.continues:
            outcome = "by the settings it is asked all the same" if self.asked else "nothing is glued"
            return f"{head}: {self.ended}; {outcome}"
        text = f"{head}: {self._counts} {self._compared_with}"
        if self.comparable:
            text += f"; {self._wrong_words}"
        return f"{text}; ended early: {self.ended}" if self.ended else text

    @property
    def _counts(self) -> str:
        kinds = Counter(one.outcome for one in self.seams if one.outcome is not SeamOutcome.EQUAL)
        same, n = self.count(SeamOutcome.EQUAL), self.comparable
        counts = f"{same} of {n} equal the uninterrupted ones"
        if self.other is not None:  # other words are what another model is there for
            del kinds[SeamOutcome.WANDERS], kinds[SeamOutcome.OTHER]
            counts = f"{n - self.wrong} of {n} without a fault, {same} of them in the same words"
        parts = [f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
        return ", ".join([counts, *parts])

    @property
    def _compared_with(self) -> str:
        if self.other is not None:
            return "(less certain: only faults are found, as there is no answer to compare with)"
        return f"(controls: {self.controls.equal} of {self.controls.total} the same twice)"

    @property
    def _wrong_words(self) -> str:
        most = at_most(self.wrong, self.comparable)
        bound = f" (at 95 % certainty fewer than 1 in {int(1 / most)})" if most <= 0.5 else ""
        return f"{self.wrong or 'none'} wrong{bound}"


def at_most(found: int, of: int, doubt: float = DOUBT) -> float:
    """The upper bound of a share of which ``found`` were seen in ``of`` (Clopper and Pearson, one-sided)."""
    if found >= of:
        return 1.0
    low, high = found / of, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most_seen(found, of, middle) > doubt else (low, middle)
    return high


def _at_most_seen(found: int, of: int, share: float) -> float:
    """The probability of seeing at most ``found`` in ``of`` where the share is ``share``."""
    return sum(comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(found + 1))
