"""A short run of every fuzz target: the whole corpus, and changes of it. ``make fuzz`` takes longer and sees more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = {name: [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] for name in TARGETS}


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize(
    ("target", "file"), [(name, path.name) for name in TARGETS for path in (CORPUS / name).iterdir()]
)
def test_the_corpus(target: str, file: str) -> None:
    """Also what was once found by fuzzing."""
    TARGETS[target]((CORPUS / target / file).read_bytes())


@st.composite
def changed(draw: st.DrawFn, target: str) -> bytes:
    """An input of the corpus with a part replaced, by bytes or by a part of another input."""
    data, other = draw(st.sampled_from(INPUTS[target])), draw(st.sampled_from(INPUTS[target]))
    start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
    first, last = sorted((draw(st.integers(0, len(other))), draw(st.integers(0, len(other)))))
    return data[:start] + draw(st.one_of(st.binary(max_size=8), st.just(other[first:last]))) + data[end:]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changes_of_the_corpus(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(changed(target)))
