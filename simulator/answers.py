"""The text of answers: pure functions, with the same result for the same seed.

A token is a word or a part of one with the space before it, as in a tokeniser; joined, the tokens are the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from random import Random

_TOKEN = re.compile(r" ?[^\W_]{1,8}| ?[^\w\s]|\s+|_")

_TIMES = (
    "At dawn", "Before the market opens", "Late in the afternoon", "On clear days", "After the rain", "Every Thursday",
    "In the first week of March", "When the wind turns", "Towards midnight", "Between two trains",
)  # fmt: skip
_WHO = (
    "the lighthouse keeper", "the café owner", "an old cartographer", "our neighbour Zoë", "the last ferry",
    "a naïve young gull", "the clockmaker's daughter", "the harbour pilot", "a cat named Señor", "the baker on the rue",
)  # fmt: skip
_DOES = (
    "counts the boats", "writes the weather in a blue ledger", "carries coffee across the square", "mends a red sail",
    "waits for the second bell", "reads yesterday's letters", "hums an unfinished song", "sweeps the doorstep",
    "redraws the map of the bay", "trades a joke for a loaf of bread",
)  # fmt: skip
_WHERE = (
    "along the quay", "under the plane trees", "behind the crêperie", "by the open window", "on the stone bridge",
    "near the fish stalls", "at the end of the pier", "beside the warm oven", "in the long shadow of the church",
)  # fmt: skip
_ENDS = (
    "and nobody hurries", "as if there were time enough", "which is how the day begins", "for the tide has no calendar",
    "and the whole street listens", "because someone always does", "until the lamps come on", "and that is plenty",
)  # fmt: skip
_WORDS = {"time": _TIMES, "who": _WHO, "does": _DOES, "where": _WHERE, "end": _ENDS}
_SIGNS = ("🌊", "⛵", "🥐", "🐈", "🕯️", "🌤️")
_SENTENCES = ("{time}, {who} {does} {where}", "{who} {does} {where}, {end}", "{time}, {who} {does} — {end}")


def tokenise(text: str) -> list[str]:
    """The tokens of a text, which joined are the text again."""
    return _TOKEN.findall(text)


def prose(seed: str) -> Iterator[str]:
    """Sentences without end, token by token."""
    rng = Random(seed)  # noqa: S311 - the same text each time is the purpose
    words = {slot: _shuffled(rng, choices) for slot, choices in _WORDS.items()}
    for number in count(1):
        yield from tokenise(_sentence(rng, words) + ("\n\n" if number % 4 == 0 else " "))


def whole_sentences(tokens: Iterable[str], at_least: int) -> Iterator[str]:
    """Tokens up to the first full stop from number ``at_least`` on."""
    for number, token in enumerate(tokens, 1):
        yield token
        if token == "." and number >= at_least:  # noqa: S105 - a full stop, not a secret
            return


def _shuffled(rng: Random, choices: Sequence[str]) -> Iterator[str]:
    """The choices in random order without end; each comes once before any comes again."""
    while True:
        yield from rng.sample(choices, len(choices))


def _sentence(rng: Random, words: Mapping[str, Iterator[str]]) -> str:
    sentence = rng.choice(_SENTENCES).format(**{slot: next(choices) for slot, choices in words.items()})
    sign = f" {rng.choice(_SIGNS)}" if rng.random() < 1 / 6 else ""
    return f"{sentence[0].upper()}{sentence[1:]}{sign}."


def until_stop(tokens: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Tokens up to the first complete stop sequence, which is left out, also if it spans tokens."""
    reach = max(map(len, stops), default=0) - 1
    held: list[str] = []  # tokens that may contain the beginning of a stop sequence
    for token in tokens:
        held.append(token)
        text = "".join(held)
        if ends := [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]:
            yield from first_characters(held, min(ends)[1])
            return
        while held and len(text) - len(held[0]) >= reach:
            text = text[len(held[0]) :]
            yield held.pop(0)
    yield from held


def first_characters(tokens: Iterable[str], length: int) -> Iterator[str]:
    """The tokens of the first ``length`` characters; the last one may be cut."""
    for token in tokens:
        if length <= 0:
            return
        yield token[:length]
        length -= len(token)


def overlap(text: str, prefix: str) -> int:
    """The number of characters at the beginning of ``text`` that an assistant's prefix ends with.

    The whole prefix, if the text begins with it; else the longest such overlap, as a caller's own words may precede the
    text in the prefix.
    """
    if not text or text.startswith(prefix):
        return len(prefix) if text else 0
    at = prefix.find(text[0])
    while at >= 0 and not text.startswith(prefix[at:]):
        at = prefix.find(text[0], at + 1)
    return len(prefix) - at if at >= 0 else 0


def resume(tokens: Iterable[str], prefix: str) -> tuple[int, Iterator[str]]:
    """The number of tokens in the prefix, and the tokens after it; the first may be the rest of a cut one."""
    source, head, length = iter(tokens), list[str](), 0
    while length < len(prefix) and (token := next(source, None)) is not None:
        head.append(token)
        length += len(token)
    known = overlap("".join(head), prefix)
    for number, token in enumerate(head):
        if len(token) > known:
            return number, chain([token[known:]], head[number + 1 :], source)
        known -= len(token)
    return len(head), source


def echo(prefix: str, style: str) -> list[str]:
    """The texts of the frames in which an answer repeats the prefix it continues.

    ``whole``: one; ``pieces``: token by token; ``none``; ``differing``: one, with an extra character in the middle.
    """
    if not prefix or style == "none":
        return []
    if style == "pieces":
        return tokenise(prefix)
    half = len(prefix) // 2
    return [f"{prefix[:half]}≠{prefix[half:]}" if style == "differing" else prefix]
