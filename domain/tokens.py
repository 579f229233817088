"""Estimates of the tokens of a model's text that its server has not counted. Pure.

Servers report the count at the end of an answer, which an interrupted one does not have. Estimates are made from the
text, the number of its deltas, and calls of the same model that were counted (``Sample``):

- most servers send each token as a delta of its own. If the samples show it, or nothing contradicts it, deltas are
  tokens. A delta of several words contradicts it; in scripts without blanks, each character may be a token;
- a server that puts a fixed number of tokens in each delta (vLLM's ``--stream-interval``) is recognised by its samples;
- else the estimate is a share of ``ceiling``, as large as in samples of the same script; without samples, all of it.

An estimate is to be high rather than low: it is subtracted from ``max_tokens``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final, NamedTuple

MOST_PER_DELTA: Final = 64
"""The largest fixed number of tokens per delta that is recognised."""
HIDDEN_PER_EMOJI: Final = 3
"""An emoji has up to four bytes, each of which may be a token; only the last of them has text."""
LONG_ENOUGH: Final = 8
"""The fewest deltas of a sample whose surplus of tokens can be explained by tokens without text."""
MARGIN: Final = 1.0
"""A share that was measured over n tokens may be larger elsewhere by this divided by the square root of n."""

BYTES_PER_TOKEN: Final = 3.5
"""Of a request's JSON: English text has four bytes in a token, and scripts of three bytes per character about one."""
TOKENS_PER_FILE: Final = 1_500
"""An image has some hundred to some thousand tokens, whatever its bytes."""
_FILE_MARK: Final = ";base64,"
_FILES: Final = re.compile(r'"data:[^"]*"')
_MAX_TOKENS: Final = re.compile(r'(?<!\\)"max_tokens":(\d{1,10})')
"""Inside a text, quotes have a backslash before them."""

_WORDS: Final = re.compile(r"[^\W\d_]+")
_BLANKS: Final = re.compile(r"\s+")
_UNITS: Final = re.compile(r"\w+|[^\w\s]+|\n+|[^\S\n]{2,}|\t")
_DENSE: Final = (
    *((0x3000, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000)),
    *((0xAC00, 0xD7B0), (0xF900, 0xFB00), (0xFF00, 0xFFF0)),
)
"""Kana, ideographs, Hangul and their marks: written without blanks, about a token for a character."""
_FIRST_EMOJI: Final = 0x2190


@dataclass(frozen=True, slots=True)
class Sample:
    """A counted call: ``tokens`` of ``text``, which came in ``deltas``."""

    tokens: int
    deltas: int
    text: str


class RequestSize(NamedTuple):
    """The tokens of a request, estimated without reading it. ``answer``: its ``max_tokens``; None without one."""

    prompt: int = 0
    answer: int | None = None


def request_size(body: str) -> RequestSize:
    """The size of a request, by its JSON as it is stored: a token for so many bytes, and some hundred for each file or
    image that is part of it."""
    text, files = _FILES.subn("", body) if _FILE_MARK in body else (body, 0)
    found = _MAX_TOKENS.search(text)
    prompt = ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN) + files * TOKENS_PER_FILE
    return RequestSize(prompt, int(found[1]) if found else None)


@dataclass(frozen=True, slots=True)
class Estimate:
    """``tokens``: an upper bound, as far as is known. ``sure``: each delta was a token, or the server counted."""

    tokens: int
    sure: bool


def emoji_count(text: str) -> int:
    """The number of emoji and the like, which may be several tokens in one delta."""
    return 0 if text.isascii() else sum(map(_is_emoji, text))


def _is_emoji(character: str) -> bool:
    number = ord(character)
    return number >= _FIRST_EMOJI and not character.isalnum() and not _is_dense(number)


def dense(text: str) -> int:
    """The number of characters of scripts without blanks."""
    return 0 if text.isascii() else sum(_is_dense(ord(character)) for character in text)


def _is_dense(number: int) -> bool:
    return any(start <= number < end for start, end in _DENSE)


def ceiling(text: str) -> int:
    """An upper bound for nearly every text in a large vocabulary: a token for a word, and one for every three letters
    more; one for each digit, mark and line break, each run of other blanks but one before a word, and each character of
    scripts without blanks; four for each emoji, and two for every other mark beyond ASCII."""
    found = 0
    words = list(_WORDS.finditer(text))
    for word in words:
        found += _of_word(word[0])
    rest = _WORDS.sub("", text)
    for run in _BLANKS.findall(rest):
        found += run.count("\n") + run.count("\t") + (1 if len(run) > 1 and run.strip("\n\t") else 0)
    return found + sum(_of_character(character) for character in rest if not character.isspace())


def _of_word(word: str) -> int:
    if word.isascii():
        return 1 + (len(word) - 1) // 3
    close = dense(word)
    others = [len(character.encode(errors="replace")) for character in word if not _is_dense(ord(character))]
    return close + (1 + (sum(size if size < 3 else 2 * size for size in others) - 1) // 3 if others else 0)


def _of_character(character: str) -> int:
    if character.isascii() or _is_dense(ord(character)):
        return 1
    return 1 + HIDDEN_PER_EMOJI if _is_emoji(character) else 2


def of_delta(delta: str, words: int) -> int:
    """The tokens of one delta if nothing else is known of the server. ``words`` is the number of its words: no token
    extends over a blank into another word."""
    if words > 1:
        return max(words, ceiling(delta))
    if delta.isalnum() and delta.isascii():
        return 1
    units = len(_UNITS.findall(delta))  # a word is one token, and the mark behind it another
    return max(1, units, dense(delta)) + emoji_count(delta) * HIDDEN_PER_EMOJI


def estimated(text: str, deltas: int, samples: Sequence[Sample], most: int | None = None) -> Estimate:
    """The tokens of ``text``, which came in ``deltas``. ``most``: the sum of ``of_delta`` if the deltas are known."""
    if not deltas:
        return Estimate(0, sure=True)
    bursts = len(text.split()) > deltas or (most is None and _is_crowded(text, deltas, samples))  # words share a delta
    if samples and _are_single(samples):
        hidden = _hidden(text, samples)
        if any(one.tokens > one.deltas + 1 for one in samples):  # else they had few tokens in many deltas
            return Estimate(max(deltas, len(_UNITS.findall(text)), dense(text)) + hidden, sure=False)
        if not bursts:
            return Estimate(deltas + hidden, sure=not hidden and all(one.tokens >= one.deltas - 1 for one in samples))
        return Estimate(max(deltas, ceiling(text) if most is None else most), sure=False)
    if not samples:
        return _unknown(text, deltas, most, bursts=bursts)
    return Estimate(max(deltas, _by_samples(text, deltas, samples)), sure=False)


def _is_crowded(text: str, deltas: int, samples: Sequence[Sample]) -> bool:
    """Whether there are more words and marks than the deltas can have held if they were tokens. In code a token may be
    a mark and a word (``(self``), or several marks: samples whose deltas were tokens show how many of them one held."""
    units = len(_UNITS.findall(text))
    if units <= deltas or not samples or not _are_single(samples):
        return units > deltas
    share = max(len(_UNITS.findall(one.text)) / max(one.deltas, 1) for one in samples)
    return units > deltas * max(share, 1.0) * (1 + MARGIN / sqrt(deltas))


def _unknown(text: str, deltas: int, most: int | None, *, bursts: bool) -> Estimate:
    """The estimate if nothing is known of the server but this text."""
    if most is None:
        by_characters = dense(text) + len(_WORDS.findall(text)) if dense(text) else 0
        most = ceiling(text) if bursts else max(deltas, by_characters) + emoji_count(text) * HIDDEN_PER_EMOJI
    return Estimate(max(deltas, most), sure=most <= deltas)


def _are_single(samples: Iterable[Sample]) -> bool:
    """Whether in all samples every token with text was a delta."""
    return all(map(_is_single, samples))


def _is_single(sample: Sample) -> bool:
    """Whether every token with text was a delta. The end of the answer may count as a token too. A short sample with
    more tokens than that proves nothing."""
    if sample.tokens <= sample.deltas:
        return True
    explicable = sample.deltas + 1 + HIDDEN_PER_EMOJI * emoji_count(sample.text)
    enough = sample.deltas >= LONG_ENOUGH and len(sample.text.split()) <= sample.deltas
    return enough and sample.tokens <= explicable


def _hidden(text: str, samples: Iterable[Sample]) -> int:
    """The tokens of emoji that have no text of their own."""
    found, known = emoji_count(text), [one for one in samples if emoji_count(one.text)]
    if not found or not known:
        return found * HIDDEN_PER_EMOJI
    share = max(max(one.tokens - one.deltas, 0) / emoji_count(one.text) for one in known)
    likely = share * (1 + MARGIN / sqrt(sum(emoji_count(one.text) for one in known)))
    return ceil(found * min(likely, HIDDEN_PER_EMOJI))


def _by_samples(text: str, deltas: int, samples: Sequence[Sample]) -> int:
    """The estimate if deltas hold several tokens."""
    is_dense = 2 * dense(text) > len(text)
    shares = [one for one in samples if (2 * dense(one.text) > len(one.text)) == is_dense]  # mostly of the same script
    tokens = sum(one.tokens for one in shares)
    by_text = ceiling(text)
    if tokens:
        share = max(one.tokens / max(ceiling(one.text), 1) for one in shares)
        by_text = ceil(by_text * share * (1 + MARGIN / sqrt(tokens)))
    regular = set.intersection(*(regular_sizes(one.tokens, one.deltas) for one in samples))
    if regular:
        # A delta with only the first bytes of an emoji has no text and was not counted.
        unseen = HIDDEN_PER_EMOJI * emoji_count(text) if min(regular) <= HIDDEN_PER_EMOJI else 0
        least, most = min(regular) * (deltas - 1), max(regular) * deltas
        return (most if len(regular) == 1 else min(most, max(by_text, least))) + unseen
    ratio = max(one.tokens / max(one.deltas, 1) for one in samples)
    return max(by_text, ceil(deltas * ratio * (1 + MARGIN / sqrt(max(tokens, 1)))))


def regular_sizes(tokens: int, deltas: int) -> set[int]:
    """The possible numbers of tokens in each delta but the last, or in each but the first, which then has one.

    The end of the answer may count as a token.
    """
    return {size for size in range(1, MOST_PER_DELTA + 1) if deltas in _numbers_of_deltas(tokens, size)}


def _numbers_of_deltas(tokens: int, size: int) -> set[int]:
    return {
        ceil(tokens / size),
        ceil((tokens - 1) / size),
        1 + ceil((tokens - 1) / size),
        1 + ceil((tokens - 2) / size),
    }
