"""Where answers are cut, what is made of their continuations, and the verdict: without a model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.seams import (
    LEAST_REST,
    LEAST_SAID,
    SURELY,
    WRONG,
    AnswerText,
    SeamOutcome,
    Spot,
    agreement,
    compared,
    cuts,
    joined,
    overlap,
    spot,
)
from domain.trust import ControlAnswers, JudgedSeam, Judgement, Trust, at_most
from tests.support.check_answers import ANSWERS

PIECES = st.lists(st.text(min_size=1, max_size=6), max_size=40)
TEXTS = st.text(min_size=12, max_size=60).filter(lambda text: text.strip() == text)


def answer(text: str, *, cut_off: bool = False) -> AnswerText:
    return AnswerText((text,), open=cut_off)


def of_words(text: str) -> AnswerText:
    """The text in pieces of three characters."""
    return AnswerText(tuple(text[at : at + 3] for at in range(0, len(text), 3)))


# ------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("a light", "house", Spot.WORD),
        ("a lighthouse", " stood", Spot.WORD_END),
        ("red, ", "blue", Spot.SPACE),
        ("red,", " blue", Spot.COMMA),
        ("one\n", "two", Spot.NEWLINE),
        ("if x:\n  ", "  go()", Spot.INDENTATION),
        ("if x:\n\t", "go()", Spot.INDENTATION),
        ("room 10", "01 is", Spot.NUMBER),
        ("| Dog | 4", "2 |", Spot.CELL),
        ("| Dog |\n", "| Cat |", Spot.NEWLINE),
        ("an astronaut 👩", "‍🚀", Spot.EMOJI),
        ("an astronaut 👩‍", "🚀", Spot.EMOJI),
        ("rain 🌧", "\ufe0f", Spot.EMOJI),
        ("thumbs 👍", "🏽", Spot.EMOJI),
        ("東京は", "晴れ", Spot.WORD),
        ("done.", " So", Spot.SIGN),
    ],
)
def test_the_kind_of_a_place(before: str, after: str, kind: Spot) -> None:
    assert spot(before + after, len(before)) is kind


@settings(deadline=None)
@given(st.lists(PIECES, max_size=4), st.integers(0, 30))
def test_answers_are_cut_between_deltas_only(answers: Sequence[Sequence[str]], most: int) -> None:
    """At different places, always the same ones, with enough text on both sides."""
    given_answers = [AnswerText(tuple(pieces)) for pieces in answers]
    found = cuts(given_answers, most)
    assert found == cuts(given_answers, most)
    assert len(found) <= most
    assert len({(one.answer, one.at) for one in found}) == len(found)
    for one in found:
        cut_answer = given_answers[one.answer]
        said = "".join(cut_answer.pieces[: one.deltas])
        assert len(said) == one.at
        assert len(said.strip()) >= LEAST_SAID
        assert len(cut_answer.text) - one.at >= LEAST_REST


def test_few_cuts_have_many_kinds_and_all_answers() -> None:
    answers = [of_words(text) for text in ANSWERS.values()]
    found = cuts(answers, 12)
    assert len({one.spot for one in found}) >= 9
    assert len({one.answer for one in found}) >= 5
    assert max(Counter(one.spot for one in found).values()) <= 2


# --------------------------------------------------------------------------------------------------- comparison


@settings(deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 60), st.booleans())
def test_what_goes_on_the_same_is_equal(said: str, rest: str, at: int, open_: bool) -> None:
    """Also where one of the two was cut off at a length limit, and only there."""
    whole = answer(rest, cut_off=open_)
    assert compared(said, whole, answer(rest)) == (SeamOutcome.EQUAL, len(rest))
    part = rest[:at]
    if len(part) < len(rest):
        assert compared(said, whole, answer(part, cut_off=True)).outcome is SeamOutcome.EQUAL
        assert compared(said, whole, answer(part)).outcome is not SeamOutcome.EQUAL
        assert compared(said, answer(part, cut_off=True), answer(rest)).outcome is SeamOutcome.EQUAL


@settings(deadline=None)
@given(TEXTS, TEXTS, st.text(max_size=30))
def test_no_agreement_is_wrong(said: str, rest: str, more: str) -> None:
    """An answer that went on for some characters as the uninterrupted one did has read the text."""
    own = rest[:SURELY] + more
    assert compared(said, answer(rest), answer(own)).outcome not in WRONG - {SeamOutcome.ENDED}


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_repetition_is_found(seed: int) -> None:
    """Of the end of the text so far, or of its beginning, at once or behind a few words."""
    rng = random.Random(seed)  # noqa: S311 - letters without a pattern
    said = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=80)).strip() + "x"
    rest = "".join(rng.choices("0123456789", k=60))
    for own, outcome in (
        (said[-10:] + rest, SeamOutcome.REPEATS),
        ("Sure: " + said[-30:] + rest, SeamOutcome.REPEATS),
        (said + rest, SeamOutcome.ANEW),
        ("Sure! Here: " + said + rest, SeamOutcome.ANEW),
        (said[:40], SeamOutcome.ANEW),
    ):
        assert compared(said, answer(rest), answer(own)).outcome is outcome, (said, own)


@pytest.mark.parametrize(
    ("said", "rest", "own", "outcome", "equal"),
    [
        ("The lighthouse stood", " alone on the cliff", "alone on the cliff", SeamOutcome.SPACE, 0),
        ("The lighthouse stood ", "alone on the cliff", " alone on the cliff", SeamOutcome.SPACE, 0),
        ("def f(x):\n        ", "return 1  # it", "    return 1  # it", SeamOutcome.SPACE, 0),
        ("The lighthouse stood", " alone on the cliff", "", SeamOutcome.ENDED, 0),
        ("The lighthouse stood", " alone on the cliff", " al", SeamOutcome.ENDED, 3),
        ("The lighthouse stood", " alone on the cliff", " alone on a cliff", SeamOutcome.WANDERS, 10),
        ("The lighthouse stood", " alone on the cliff", " tall and white", SeamOutcome.WANDERS, 1),
        ("The lighthouse st", "ood alone on the cliff", "ands tall and white", SeamOutcome.OTHER, 0),
        ("The lighthouse st", "ood alone on the cliff", "one tower", SeamOutcome.OTHER, 1),
        ("The lighthouse st", "ood alone on the cliff", "Sure, gladly", SeamOutcome.ANEW, 0),
        ("1, 2, 3, 4, 5, 6, ", "7, 8, 9, 10, 11", "3, 4, 5, 6, 7, 8", SeamOutcome.REPEATS, 0),
        ("red, blue, red, blue, ", "red, blue, red, blue", "red, blue, red, blue", SeamOutcome.EQUAL, 20),
        ("red, blue, red, blue, ", "red, blue, and so on", "red, blue, red, blue", SeamOutcome.WANDERS, 11),
    ],
)
def test_what_a_comparison_finds(said: str, rest: str, own: str, outcome: SeamOutcome, equal: int) -> None:
    assert compared(said, answer(rest), answer(own)) == (outcome, equal)


@pytest.mark.parametrize(
    ("said", "rest", "own", "outcome"),
    [
        ("The lighthouse stood", " alone on the cliff", " alone on the cliff", SeamOutcome.EQUAL),
        ("The lighthouse stood", " alone on the cliff", " there, white and tall", SeamOutcome.OTHER),
        ("The lighthouse stood", " alone on the cliff", " alone on its rock", SeamOutcome.WANDERS),
        ("The lighthouse stood", " alone on the cliff", "The lighthouse stood there", SeamOutcome.ANEW),
        ("Alone, the lighthouse stood", " on the cliff", "lighthouse stood there", SeamOutcome.REPEATS),
        ("The lighthouse stood", " alone on the cliff", " ", SeamOutcome.ENDED),
        ("Привет, мир, сегодня", " хорошая погода", " the weather is fine", SeamOutcome.SCRIPT),
        ("Привет, мир: NASA says", " hello to all", " hello, world", SeamOutcome.OTHER),
        ("1. Apple\n2. Fig\n3. Pe", "ar\n4. Plum", "ach\n4. Lime", SeamOutcome.OTHER),
        ("1. Apple\n2. Fig\n3. Pe", "ar\n4. Plum", "ach\n1. Lime", SeamOutcome.FORM),
        ("1. Apple\n2. Fig\n", "3. Pear", "5. Lime", SeamOutcome.FORM),
        ("1. Apple\n2. Fig\n3", ". Pear", ". Lime", SeamOutcome.OTHER),
        ("| a | b |\n| 1 | ", "2 |\n| 3 | 4 |", "5 |\n| 6 | 7 |", SeamOutcome.OTHER),
        ("| a | b |\n| 1 | ", "2 |\n| 3 | 4 |", "5 | 6 |\n| 7 |", SeamOutcome.FORM),
    ],
)
def test_what_another_model_makes_of_a_text(said: str, rest: str, own: str, outcome: SeamOutcome) -> None:
    assert joined(said, answer(rest), answer(own)).outcome is outcome


def test_overlap_and_agreement() -> None:
    assert (overlap("one, two, ", "two, three"), overlap("one", "two"), overlap("", "a")) == (5, 0, 0)
    assert (agreement("abc", "abd"), agreement("ab", "abc"), agreement("", "a")) == (2, 2, 0)


# ------------------------------------------------------------------------------------------------------ verdict


def judgement(counts: dict[str, int], other: str | None = None) -> Judgement:
    """By the names of outcomes."""
    seams = [
        JudgedSeam("prose", Spot.WORD, SeamOutcome[name], 0, "", "")
        for name, count in counts.items()
        for _ in range(count)
    ]
    return Judgement("m", seams, ControlAnswers(4, 4), other=other)


@pytest.mark.parametrize(
    ("counts", "trust"),
    [
        ({"EQUAL": 12}, Trust.TRUST),
        ({"EQUAL": 6}, Trust.TRUST),
        ({"EQUAL": 5}, Trust.UNKNOWN),
        ({}, Trust.UNKNOWN),
        ({"EQUAL": 11, "WANDERS": 1}, Trust.TRUST),
        ({"EQUAL": 11, "OTHER": 1}, Trust.TRUST),
        ({"EQUAL": 9, "RESET": 3}, Trust.TRUST),
        ({"EQUAL": 10, "OTHER": 2}, Trust.CARE),
        ({"EQUAL": 8, "WANDERS": 4}, Trust.CARE),
        ({"EQUAL": 11, "REPEATS": 1}, Trust.CARE),
        ({"EQUAL": 3, "SPACE": 1}, Trust.CARE),
        ({"EQUAL": 6, "UNDECIDED": 7}, Trust.CARE),
        ({"UNDECIDED": 12}, Trust.UNKNOWN),
        ({"EQUAL": 98, "ANEW": 2}, Trust.NONE),
        ({"EQUAL": 10, "SPACE": 1, "ENDED": 1}, Trust.NONE),
        ({"EQUAL": 6, "OTHER": 6}, Trust.NONE),
        ({"RESET": 12}, Trust.STARTS_OVER),
        ({"RESET": 2}, Trust.UNKNOWN),
        ({"RESET": 10, "EQUAL": 2}, Trust.UNKNOWN),
    ],
)
def test_the_verdict(counts: dict[str, int], trust: Trust) -> None:
    assert judgement(counts).trust is trust


@pytest.mark.parametrize(
    ("counts", "trust"),
    [
        ({"OTHER": 6}, Trust.TRUST),
        ({"EQUAL": 1, "WANDERS": 2}, Trust.TRUST),
        ({"OTHER": 2}, Trust.UNKNOWN),
        ({"OTHER": 5, "SCRIPT": 1}, Trust.CARE),
        ({"OTHER": 4, "FORM": 2}, Trust.NONE),
    ],
)
def test_the_verdict_on_another_models_text(counts: dict[str, int], trust: Trust) -> None:
    """Other words are what another model is there for."""
    assert judgement(counts, "first").trust is trust


def test_the_words_of_a_verdict() -> None:
    """Counts and never percentages of them; a bound where it says something."""
    assert judgement({"EQUAL": 19, "WANDERS": 1}).words == (
        "trust continued answers: 19 of 20 equal the uninterrupted ones, 1 went on, and later in other words"
        " (controls: 4 of 4 the same twice); none wrong (at 95 % certainty fewer than 1 in 7)"
    )
    ended = replace(judgement({"EQUAL": 2, "RESET": 1}), ended="the key is refused").words
    assert ended.startswith(
        "cannot say whether to trust continued answers: 2 of 2 equal the uninterrupted ones, 1 started over"
    )
    assert ended.endswith("none wrong; ended early: the key is refused")
    assert judgement({"OTHER": 4, "EQUAL": 1, "ANEW": 1}, "first").words == (
        "trust answers of first continued by m with care: 5 of 6 without a fault, 1 of them in the same words,"
        " 1 began anew (less certain: only faults are found, as there is no answer to compare with); 1 wrong"
    )
    never = Judgement("m", ended="the server ignores it", continues=False)
    assert (never.trust, never.words) == (
        Trust.STARTS_OVER,
        "continued answers start over: the server ignores it; nothing is glued",
    )


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_the_bound_is_that_of_clopper_and_pearson(of: int, data: st.DataObject) -> None:
    """With nothing found, 1 - 0.05^(1/n); it falls with more places and grows with more found."""
    assert at_most(0, of) == pytest.approx(1 - 0.05 ** (1 / of), abs=1e-6)
    found = data.draw(st.integers(0, of - 1))
    assert found / of < at_most(found, of) < at_most(found + 1, of) <= 1
    assert at_most(found, of + 1) < at_most(found, of) or found == of
