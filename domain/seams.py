"""The seam of a continued answer: where an answer can be cut, and whether the text behind a cut goes on from it. Pure.

An answer is cut where a worker may have to continue it: between two deltas, never inside one. The uninterrupted answer
to the same request tells what should follow (``compared``); where another model goes on there is no such answer, and
only faults that any reader sees are looked for (``joined``).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, zip_longest
from typing import Final, NamedTuple

LEAST_SAID: Final = 8
"""Characters before a cut: after fewer, an answer that starts over looks like one that goes on."""
LEAST_REST: Final = 8
"""Characters behind a cut that there have to be to compare with."""
SURELY: Final = 8
"""Characters that agree by no chance: an answer that agrees for so long went on from the cut."""
REPEATED: Final = 24
"""Characters of the text so far that come again by no chance, wherever in the continuation they stand."""

_ZWJ: Final = "\u200d"
_JOINING: Final = frozenset((_ZWJ, "\ufe0f", "\u20e3", *map(chr, range(0x1F3FB, 0x1F400))))
"""Code points that belong to the emoji before them: joiner, variation selector, keycap, skin tones (UTS #51)."""


class Spot(StrEnum):
    """The kind of place at which an answer is cut."""

    EMOJI = "inside an emoji"
    INDENTATION = "after an indentation"
    NEWLINE = "after a newline"
    CELL = "in a table cell"
    NUMBER = "in a number"
    WORD = "in a word"
    SPACE = "after a space"
    COMMA = "after a comma"
    WORD_END = "after a word"
    SIGN = "after another sign"


class SeamOutcome(StrEnum):
    """What became of the answer behind a cut."""

    EQUAL = "equal"
    WANDERS = "went on, and later in other words"
    OTHER = "went on in other words at once"
    REPEATS = "said again what was there"
    ANEW = "began anew"
    SPACE = "lost or doubled whitespace"
    ENDED = "ended although there was more to say"
    SCRIPT = "went on in another script"
    FORM = "broke the form of a list or table"
    RESET = "started over"
    """Readers are told (``reset``), and nothing is glued: safe, and paid for twice."""
    UNDECIDED = "not comparable"
    """The uninterrupted answers differ from each other in the same way."""


WRONG: Final = frozenset(
    (SeamOutcome.REPEATS, SeamOutcome.ANEW, SeamOutcome.SPACE, SeamOutcome.ENDED, SeamOutcome.SCRIPT, SeamOutcome.FORM)
)
"""What a reader would take for damage."""


class CutPlace(NamedTuple):
    """A place in the answer number ``answer``: after ``deltas`` of its pieces, ``at`` characters."""

    answer: int
    spot: Spot
    at: int
    deltas: int


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer as it came. ``open``: it was cut off at a length limit, and would have gone on."""

    pieces: tuple[str, ...]
    open: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Comparison(NamedTuple):
    """What a comparison found; ``equal``: characters behind the cut that agree with the uninterrupted answer."""

    outcome: SeamOutcome
    equal: int = 0


# ------------------------------------------------------------------------------------------------ where to cut


def spot(text: str, at: int) -> Spot:
    """The kind of the place before the character ``at``, which has characters on both sides."""
    before, after = text[at - 1], text[at]
    line = text[text.rfind("\n", 0, at) + 1 : at]
    if before == _ZWJ or after in _JOINING:
        return Spot.EMOJI
    if before == "\n":
        return Spot.NEWLINE
    if line.isspace():
        return Spot.INDENTATION
    if line.lstrip().startswith("|"):
        return Spot.CELL
    if before.isdigit() and after.isdigit():
        return Spot.NUMBER
    if before.isalpha() and after.isalpha():
        return Spot.WORD
    if before.isspace():
        return Spot.SPACE
    if before == ",":
        return Spot.COMMA
    return Spot.WORD_END if before.isalnum() else Spot.SIGN


def cuts(answers: Sequence[AnswerText], most: int) -> list[CutPlace]:
    """At most ``most`` places, as many kinds of them in as many of the answers as there are; always the same ones."""
    left = {kind: [_spread(_places(number, answer, kind)) for number, answer in enumerate(answers)] for kind in Spot}
    found, used = list[CutPlace](), Counter[int]()
    while len(found) < most and any(places for of_kind in left.values() for places in of_kind):
        for of_kind in left.values():
            places = min(filter(None, of_kind), key=lambda places: used[places[0].answer], default=None)
            if places is not None:
                used[places[0].answer] += 1
                found.append(places.pop(0))
    return found[:most]


def _places(number: int, answer: AnswerText, kind: Spot) -> list[CutPlace]:
    """All places of a kind in an answer."""
    text = answer.text
    return [
        CutPlace(number, kind, at, deltas)
        for deltas, at in enumerate(accumulate(map(len, answer.pieces)), 1)
        if len(text[:at].strip()) >= LEAST_SAID and len(text) - at >= LEAST_REST and spot(text, at) is kind
    ]


def _spread(places: Sequence[CutPlace]) -> list[CutPlace]:
    """The same places, the middle one first, then the middles of both halves, and so on."""
    if not places:
        return []
    middle = len(places) // 2
    halves = zip_longest(_spread(places[:middle]), _spread(places[middle + 1 :]))
    return [places[middle], *(cut for pair in halves for cut in pair if cut is not None)]


# ---------------------------------------------------------------------------------------------- is it the same


def compared(said: str, rest: AnswerText, own: AnswerText) -> Comparison:
    """Whether ``own`` goes on from ``said`` as ``rest``, the uninterrupted answer, does."""
    expected, found = rest.text, own.text
    same = agreement(expected, found)
    if _is_equal(expected, found, same, rest, own):
        return Comparison(SeamOutcome.EQUAL, same)
    if not found.strip():
        return Comparison(SeamOutcome.ENDED)
    if same >= SURELY:
        return Comparison(SeamOutcome.WANDERS, same)
    if same == len(found):  # it ended within a few characters
        return Comparison(SeamOutcome.ENDED, same)
    if _only_whitespace_differs(expected, found):
        return Comparison(SeamOutcome.SPACE, same)
    if (fault := _said_before(said, found, expected)) is not None:
        return Comparison(fault, same)
    return Comparison(SeamOutcome.WANDERS if same and not _in_a_word(said, found, same) else SeamOutcome.OTHER, same)


def _is_equal(expected: str, found: str, same: int, rest: AnswerText, own: AnswerText) -> bool:
    """Equal as far as both go; an answer that was cut off at its length limit may be the shorter one."""
    if len(expected) == len(found):
        return same == len(found)
    shorter = own if len(found) < len(expected) else rest
    return 0 < same == min(len(expected), len(found)) and shorter.open


def agreement(one: str, other: str) -> int:
    """The number of characters at the beginning of both texts that are the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _only_whitespace_differs(expected: str, found: str) -> bool:
    """The whitespace at the seam is another one, and what follows it is the same."""
    bare, own = expected.lstrip(), found.lstrip()
    return agreement(bare, own) >= min(SURELY, len(bare), len(own))


def _in_a_word(said: str, found: str, at: int) -> bool:
    """Whether the character ``at`` of the continuation is still part of the word at the seam."""
    return (said[-1:] + found[:at]).isalnum()


def _said_before(said: str, found: str, expected: str = "") -> SeamOutcome | None:
    """Whether the continuation repeats the end of the text so far, or its beginning."""
    whole, own = said.lstrip(), found.lstrip()
    head = whole[: min(len(whole), 2 * SURELY)]
    if len(head) >= SURELY and agreement(whole, own) >= len(head) and not expected.lstrip().startswith(head):
        return SeamOutcome.ANEW
    if whole[:REPEATED] in found[: 4 * REPEATED] and len(whole) >= REPEATED and whole[:REPEATED] not in expected:
        return SeamOutcome.ANEW
    if overlap(said, found) >= SURELY > overlap(said, expected):
        return SeamOutcome.REPEATS
    tail = said.rstrip()[-REPEATED:]
    if len(tail) == REPEATED and tail in found and tail not in expected:
        return SeamOutcome.REPEATS
    if said[-1:].islower() and found[:1].isupper() and not expected[:1].isupper():
        return SeamOutcome.ANEW  # in the middle of a word
    return None


def overlap(text: str, own: str) -> int:
    """The length of the longest end of ``text`` that ``own`` begins with."""
    return max((n for n in range(1, min(len(text), len(own)) + 1) if text.endswith(own[:n])), default=0)


# ------------------------------------------------------------------------------------------ by another model


def joined(said: str, rest: AnswerText, own: AnswerText) -> Comparison:
    """Whether ``own``, of another model, goes on from ``said``. ``rest`` is what the first model said.

    There is no answer that it should equal. Only what no model would mean is a fault: text that is said again, a new
    beginning, another script, a broken list or table row.
    """
    found = own.text
    same = agreement(rest.text, found)
    if not found.strip():
        return Comparison(SeamOutcome.ENDED)
    if _is_equal(rest.text, found, same, rest, own):
        return Comparison(SeamOutcome.EQUAL, same)
    if same < SURELY and (fault := _said_before(said, found, rest.text)) is not None:
        return Comparison(fault, same)
    if _script(found) not in (None, _script(said), _script(rest.text)):
        return Comparison(SeamOutcome.SCRIPT, same)
    if _breaks_list(said, found) or _breaks_row(said, found):
        return Comparison(SeamOutcome.FORM, same)
    return Comparison(SeamOutcome.WANDERS if same >= SURELY else SeamOutcome.OTHER, same)


def _script(text: str) -> str | None:
    """The script of most letters, by their Unicode names (LATIN, CYRILLIC, CJK …); None without letters."""
    names = Counter(unicodedata.name(one, "?").split()[0].split("-")[0] for one in text if one.isalpha())
    return names.most_common(1)[0][0] if names else None


_ITEM: Final = re.compile(r"^ *(\d{1,4})[.)] ", re.MULTILINE)


def _breaks_list(said: str, found: str) -> bool:
    """The first numbered item behind the cut is not the one after the last before it."""
    before = [int(one) for one in _ITEM.findall(said)]
    line = said.rpartition("\n")[2]
    after = _ITEM.search(line + found, len(line) if _ITEM.match(line) else 0)
    return len(before) > 1 and after is not None and int(after[1]) != before[-1] + 1


def _breaks_row(said: str, found: str) -> bool:
    """The table's row at the seam has another number of cells than the row before it."""
    *_, above, row = ["", *said.split("\n")]
    row, end, _ = (row + found).partition("\n")
    is_row = above.strip().startswith("|") and row.strip().startswith("|")
    return bool(end) and is_row and row.strip().count("|") != above.strip().count("|")
