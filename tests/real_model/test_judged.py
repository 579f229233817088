"""A real model's continued answers, cut and compared as `starter.py doctor --live` does it.

What a model says differs from machine to machine; that its continuations are no damage does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from activities.continuation_check import CheckLimits, ContinuationCheck
from domain.continuing import AS_MISTRAL, Drops, Practice, Way
from domain.seams import SeamOutcome, Spot
from domain.trust import Judgement, Trust
from providers.mistral.chat import MistralChat
from tests.real_model.model import real_model

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.xdist_group("real_model")]

PATIENT = CheckLimits(calls=20, seconds=2000, call_seconds=1000)
WHITE = {Spot.INDENTATION, Spot.NEWLINE, Spot.SPACE}
Check = Callable[[Practice], ContinuationCheck]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_model(tmp_path_factory.mktemp("model")) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def check(url: str) -> AsyncIterator[Check]:
    models: list[MistralChat] = []

    def made(practice: Practice) -> ContinuationCheck:
        models.append(MistralChat("a key", url, practice=practice))
        return ContinuationCheck(models[-1], PATIENT)

    yield made
    for model in models:
        await model.aclose()


def verdict(judgement: Judgement) -> tuple[bool, int, str]:
    """Whether it may be trusted, how much is wrong, and why it has ended; shown where a test fails."""
    return judgement.trust in (Trust.TRUST, Trust.CARE), judgement.wrong, judgement.ended


async def test_a_model_that_sees_all_of_the_text(check: Check) -> None:
    """Nothing starts over, also after indentations; and a second model, which is the same here, goes on with it."""
    checked = check(Practice(Way.PREFIX, Drops.NOTHING, echoes=True))
    judgement = await checked.judged("smollm2")
    assert verdict(judgement) == (True, 0, ""), judgement
    assert judgement.controls == (4, 4)
    assert (judgement.resets, judgement.comparable) == (0, 12)
    assert judgement.count(SeamOutcome.EQUAL) >= 9
    handover = await checked.handover("smollm2", "smollm2-again")
    assert verdict(handover) == (True, 0, ""), handover


async def test_whitespace_that_is_not_sent_starts_over_and_is_not_wrong(check: Check) -> None:
    """As Mistral's server is assumed to drop it. After an indentation this model's answers are never continued."""
    judgement = await check(AS_MISTRAL).judged("smollm2")
    assert verdict(judgement) == (True, 0, ""), judgement
    reset = [one for one in judgement.seams if one.outcome is SeamOutcome.RESET]
    assert {one.spot for one in reset} <= WHITE, judgement
    assert {one.outcome for one in judgement.seams if one.spot is Spot.INDENTATION} <= {SeamOutcome.RESET}, judgement
