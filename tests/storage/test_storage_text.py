"""The normaliser: what is stored, and counted, whatever was streamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.text import REPLACEMENT, Normaliser, clean, clean_json

HIGH, LOW = "\ud83d", "\ude00"
characters = st.sampled_from(["a", "é", "😀", "\0", "\n", HIGH, LOW, "\ud800", "\udfff", REPLACEMENT, "\U0010ffff"])
texts = st.lists(characters, max_size=8).map("".join)


def normalised(*pieces: str) -> str:
    normaliser = Normaliser()
    return "".join(map(normaliser.feed, pieces)) + normaliser.end()


@given(st.lists(texts, max_size=8))
def test_where_a_stream_is_cut_makes_no_difference(pieces: list[str]) -> None:
    assert normalised(*pieces) == clean("".join(pieces))


@given(texts)
def test_what_comes_out_can_be_stored_anywhere(text: str) -> None:
    stored = clean(text)
    assert stored.encode().decode() == stored
    assert "\0" not in stored
    assert clean(stored) == stored


@pytest.mark.parametrize(
    ("pieces", "stored"),
    [
        (["a", "", "b"], "ab"),
        ([HIGH, LOW], "😀"),
        (["a" + HIGH, "", LOW + "b"], "a😀b"),
        ([HIGH], REPLACEMENT),
        ([HIGH, "a"], REPLACEMENT + "a"),
        ([HIGH, HIGH, LOW], REPLACEMENT + "😀"),
        ([LOW, HIGH], REPLACEMENT * 2),
        (["a\0b"], f"a{REPLACEMENT}b"),
    ],
)
def test_halves_wait_for_their_pair(pieces: list[str], stored: str) -> None:
    assert normalised(*pieces) == stored


def test_a_held_half_is_not_given_out_early() -> None:
    normaliser = Normaliser()
    assert normaliser.feed("a" + HIGH) == "a"
    assert normaliser.feed(LOW) == "😀"
    assert normaliser.end() == ""


def test_json_is_cleaned_throughout() -> None:
    value = {f"k{HIGH}": ["a\0", {"n": 1, "b": True, "x": None}], "t": ("😀",)}
    assert clean_json(value) == {
        f"k{REPLACEMENT}": [f"a{REPLACEMENT}", {"n": 1, "b": True, "x": None}],
        "t": ["😀"],
    }
