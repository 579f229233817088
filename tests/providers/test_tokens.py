"""``max_tokens`` across interruptions: an answer gets as many tokens as it may, and never more.

The rules are tried on their own first, over many texts and places to cut; then over the wire, with a simulator whose
tokens are the pieces of its script, in deltas of any size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import Client

from activities import continuation
from activities.token_counts import Counter
from chatjobs.contracts import Channel, ChatRequest, Job, JobStatus, Usage
from domain.ports import Finish, ModelEvent, TextDelta, UsageSoFar
from domain.tokens import Estimate, Sample, ceiling, emoji_count, estimated, regular_sizes
from domain.values import AttemptHistory, Stretch, TextRun
from providers.mistral.chat import MistralChat
from storage.engine.database import Database
from tests.support.fakes import ScriptedModel
from tests.support.house import QUICK, House, house
from tests.support.simulator_process import SimulatorProcess, prompt, simulator

pytestmark = pytest.mark.long

INCOMPLETE = JobStatus.INCOMPLETE
MODEL = "mistral-small-latest"

JAPANESE = list("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。")
TEXTS: dict[str, list[str]] = {
    "words": ["The"] + [f" word{number}" for number in range(40)],
    "trailing blanks": [f"word{number} " for number in range(40)],
    "prose": ["The", " boats", ",", " it", " is", " said", ",", " come", " home", " at", " noon", "."] * 3,
    "japanese": JAPANESE,
    "japanese, longer tokens": ["吾輩", "は", "猫", "である", "。", "名前", "は", "まだ", "無い", "。", "どこ", "で"]
    * 2,
    "emoji": ["Look", ":", *[" \N{WATER WAVE}", " and", " \N{SAILBOAT}", " go"] * 6],
    "emoji in bytes": ["Look", ":", *["", "", "\N{WATER WAVE}", " and", "", "\N{SAILBOAT}", " go"] * 5],
    "code": ["def", " f", "(", "x", "):", "\n", "    ", "if", " x", ":", "\n", "        ", "return", " 1", "\n"] * 2,
}


def deltas(tokens: Sequence[str], size: int) -> list[tuple[str, int]]:
    """The text of each delta, and its tokens; what has no text is not sent."""
    groups = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [("".join(group), len(group)) for group in groups]


def counter_of(sent: Sequence[tuple[str, int]], *, told: bool) -> Counter:
    counter, used = Counter(), 0
    for text, tokens in sent:
        used += tokens
        if text:
            counter.take(text, UsageSoFar(9, used) if told else None)
    return counter


def sample(tokens: Sequence[str], size: int) -> Sample:
    return Sample(len(tokens), sum(bool(text) for text, _ in deltas(tokens, size)), "".join(tokens))


def interrupted(name: str, size: int, cut: int, *, seen: bool = True) -> tuple[int, str, int, int | None]:
    """Tokens, text, deltas and estimate of an attempt that was cut after ``cut`` deltas; unseen: its worker died.

    Tokens without text at its end are none of the answer's: the continued call says them again.
    """
    counter = counter_of(deltas(TEXTS[name], size)[:cut], told=False)
    pieces = TEXTS[name][: size * cut]
    while pieces and not pieces[-1]:
        pieces.pop()
    return len(pieces), "".join(pieces), counter.count, counter.most if seen else None


# --------------------------------------------------------------------------------------------------- estimates

CASES = st.tuples(st.sampled_from(sorted(TEXTS)), st.integers(1, 8), st.integers(1, 41), st.booleans())


@given(CASES)
def test_an_estimate_is_never_too_low(case: tuple[str, int, int, bool]) -> None:
    """Whatever the text, the size of the deltas and the place of the cut; whether somebody saw the deltas or not."""
    name, size, cut, seen = case
    tokens, text, count, most = interrupted(name, size, cut, seen=seen)
    assert estimated(text, count, (), most).tokens >= tokens


@given(CASES)
def test_an_estimate_with_a_sample_of_the_server_is_no_delta_too_high(case: tuple[str, int, int, bool]) -> None:
    """A call that was counted tells how many tokens its server puts in a delta; of any script, in any language."""
    name, size, cut, seen = case
    if "bytes" in name:
        return
    known = [sample(TEXTS["words"] * 3, size), sample(TEXTS["trailing blanks"] * 4, size)]
    tokens, text, count, most = interrupted(name, size, cut, seen=seen)
    found = estimated(text, count, known, most).tokens
    hidden = 3 * emoji_count(text)
    assert tokens <= found < tokens + size + (hidden if size <= 3 else 0)


def test_deltas_that_are_tokens_are_counted_without_knowing_more() -> None:
    for name in ("words", "trailing blanks", "prose", "code"):
        for cut in range(1, len(TEXTS[name])):
            tokens, text, count, most = interrupted(name, 1, cut)
            assert estimated(text, count, (), most) == estimated(text, count, [sample(TEXTS["words"], 1)], most)
            assert estimated(text, count, (), most).tokens == tokens


def test_code_of_a_server_that_sends_each_token_alone_is_not_taken_for_several_in_a_delta() -> None:
    """A token may be two marks and a word, so that a piece of code has more of them than tokens."""
    whole = "class Stack:\n    def __init__(self, max_size):\n        self.stack = []\n\n    def push(self, item):"
    lost = "stack = []\n\n    def push(self, item"  # what a worker that died had stored of its ten deltas
    assert estimated(lost, 10, [Sample(40, 40, whole)]) == Estimate(10, sure=True)
    assert estimated(lost * 2, 10, [Sample(40, 40, whole)]).tokens >= 20, "these deltas held more"


def test_tokens_that_bring_no_text_are_known_from_samples() -> None:
    """An emoji of three tokens in one delta; without a sample it is taken for four."""
    text = TEXTS["emoji in bytes"]
    tokens, part, count, most = interrupted("emoji in bytes", 1, 16)
    assert estimated(part, count, (), most).tokens >= tokens
    found = estimated(part, count, [sample(text, 1)], most)
    assert tokens <= found.tokens <= tokens + 3


@given(st.integers(1, 200), st.integers(1, 16))
def test_the_regular_size_of_deltas_is_found(tokens: int, size: int) -> None:
    """Also where the first delta is a single token, or the end of the answer is counted as one."""
    plain = -(-tokens // size)
    assert size in regular_sizes(tokens, plain)
    assert size in regular_sizes(tokens + 1, plain)
    assert size in regular_sizes(tokens, 1 + -(-(tokens - 1) // size))
    if tokens > 4 * size * size:
        assert len(regular_sizes(tokens, plain)) == 1


@given(st.text(max_size=200))
def test_any_text_has_an_estimate(text: str) -> None:
    counter = Counter()
    for character in text:
        counter.take(character, None)
    assert ceiling(text) >= 0
    assert estimated(text, counter.count, ()).tokens >= counter.count
    assert counter.most >= counter.count


# ---------------------------------------------------------------------------------------------------- counting


@given(CASES)
def test_a_server_that_counts_as_it_goes_is_believed(case: tuple[str, int, int, bool]) -> None:
    name, size, cut, _ = case
    sent = [one for one in deltas(TEXTS[name], size)[:cut] if one[0]]
    counter = counter_of(sent, told=True)
    used = sum(tokens for _, tokens in sent)
    assert (counter.exact, counter.count, counter.most) == (bool(sent), used, used)
    if sent:
        assert counter.usage is not None
        assert (counter.usage.prompt_tokens, counter.usage.completion_tokens) == (9, used)


@pytest.mark.parametrize(
    "told", [[1, None, None], [50, 50, 50], [1, 2, 1], [0, 1, 2], [3, 900, 901], [1, 1, 1, 1, 1, 1, 1]]
)
def test_a_figure_that_is_no_count_is_not_believed(told: list[int | None]) -> None:
    """Provisional, constant, falling, absent, absurd: then deltas are counted."""
    counter = Counter()
    for number in told:
        counter.take("word", None if number is None else UsageSoFar(9, number))
    assert (counter.exact, counter.usage) == (False, None)
    assert len(told) <= counter.most <= 3 * len(told)


def test_what_is_said_again_is_not_counted() -> None:
    counter = Counter()
    counter.skip(UsageSoFar(9, 2))
    counter.take("word", UsageSoFar(9, 3))
    assert (counter.count, counter.exact) == (1, True)


def test_half_a_character_is_no_token_more() -> None:
    counter = Counter()
    for text in ("\ud83c", "\udf0a", "a"):
        counter.take(text, None)
    assert counter.count == 2


# ------------------------------------------------------------------------------------------- whole answers


def play(
    name: str, size: int, cuts: Sequence[int], most: int, *, told: bool, seen: bool, known: Sequence[Sample]
) -> int:
    """How many tokens an answer has whose calls were cut after so many deltas and continued, as an attempt goes about
    it."""
    pieces, stretches, text, topped = TEXTS[name], list[Stretch](), "", False
    request = ChatRequest.parse({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": most})
    calls = iter([*cuts, None, None])
    while True:
        stripped = text.rstrip(" ")
        plan = continuation.CallPlan(request)
        if text:
            past = AttemptHistory(stretches=tuple(stretches), segment_tokens=1)
            piece = TextRun(len(text), Channel.CONTENT, text, 1)
            plan = continuation.plan(request, past, [piece], known, text[len(stripped) :])
        if plan.nothing_left or (limit := plan.sent.max_tokens) is None:
            return new_tokens(pieces, text)
        counter, start, blank, used = Counter(), len(text), text[len(stripped) :], 0
        whole = deltas(rest_of(pieces, stripped)[:limit], size)
        end = next(calls)
        for said, tokens in whole[:end]:
            used += tokens
            new = said if not blank else said[len(blank) :]
            blank = ""
            if not new:
                counter.skip(UsageSoFar(9, used) if told else None)
            elif not plan.is_full(counter):
                counter.take(new, UsageSoFar(9, used) if told else None)
                text += new
        if end is not None:
            exact = counter.count if told else None
            guessed = counter.most if seen and not told else None
            stretches.append(Stretch(start, len(text), counter.count, exact, guessed))
            continue
        stretches.append(Stretch(start, len(text), counter.count, used))
        piece = TextRun(len(text), Channel.CONTENT, text, 1)
        if topped or most - continuation.said(stretches, [piece], known).tokens <= most * 0.02:
            return new_tokens(pieces, text)
        topped = True


def rest_of(pieces: Sequence[str], prefix: str) -> list[str]:
    """The tokens after a prefix; the first may be the rest of a broken one."""
    length = 0
    for place, piece in enumerate(pieces):
        if length == len(prefix):
            return list(pieces[place:])
        if length + len(piece) > len(prefix):
            rest = piece[len(prefix) - length :]
            return [rest, *pieces[place + 1 :]]
        length += len(piece)
    return []


def new_tokens(pieces: Sequence[str], text: str) -> int:
    """How many tokens of the script ``text`` is, which begins as the script does."""
    assert "".join(pieces).startswith(text)
    count = length = 0
    for piece in pieces:
        if length + len(piece) > len(text) or length == len(text):
            break
        count, length = count + 1, length + len(piece)
    return count


def limit_of(name: str) -> int:
    return len(TEXTS[name]) - 4


PLACES = [(name, size, cut) for name in TEXTS for size in range(1, 9) for cut in range(1, len(TEXTS[name]) // size)]


@pytest.mark.parametrize("seen", [True, False])
def test_no_answer_is_longer_than_it_may_be(seen: bool) -> None:
    """Nothing is known of the server: any text, any size of deltas, any place."""
    for name, size, cut in PLACES:
        most = limit_of(name)
        tokens = play(name, size, [cut], most, told=False, seen=seen, known=())
        bytes_without_text = 2
        assert min(size * cut, most) - bytes_without_text <= tokens <= most, (name, size, cut)


SEVERAL_CUTS = st.lists(st.integers(1, 12), min_size=2, max_size=5)


@given(st.sampled_from(sorted(TEXTS)), st.integers(1, 8), SEVERAL_CUTS, st.booleans())
def test_no_answer_is_longer_however_often_it_was_cut(name: str, size: int, cuts: list[int], seen: bool) -> None:
    """Counted by the server as it goes, known from earlier calls, or not known at all."""
    most, sizes = limit_of(name), [sample(TEXTS["words"] * 3, size)]
    assert play(name, size, cuts, most, told=False, seen=seen, known=()) <= most
    if "bytes" not in name:
        assert most - len(cuts) <= play(name, size, cuts, most, told=True, seen=True, known=()) <= most
        assert play(name, size, cuts, most, told=False, seen=seen, known=sizes) <= most


def test_an_answer_of_a_server_that_counts_is_as_long_as_it_may_be() -> None:
    for name, size, cut in PLACES:
        if "bytes" not in name:
            assert play(name, size, [cut], limit_of(name), told=True, seen=True, known=()) == limit_of(name)


def test_an_answer_of_a_known_server_lacks_less_than_a_delta() -> None:
    for name, size, cut in PLACES:
        if "emoji" not in name:
            known = [sample(TEXTS["words"] * 3, size), sample(TEXTS["trailing blanks"] * 4, size)]
            tokens = play(name, size, [cut], limit_of(name), told=False, seen=True, known=known)
            assert limit_of(name) - size < tokens <= limit_of(name), (name, size, cut, tokens)


# ------------------------------------------------------------------------------------------------------- plans


def plan_of(stretch: Stretch, text: str, unsent: str = "", **fields: Any) -> continuation.CallPlan:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50} | fields
    piece = TextRun(len(text), Channel.CONTENT, text, stretch.deltas)
    past = AttemptHistory(stretches=(stretch,), segment_tokens=stretch.deltas)
    return continuation.plan(ChatRequest.parse(body), past, [piece], (), unsent)


def test_a_call_has_room_for_blanks_that_are_said_again() -> None:
    """As many as they may be where each delta is a token, else one; the cap on all tokens comes first."""
    text = "a b  "
    known = plan_of(Stretch(0, 5, 3, most=3), text, "  ")
    assert (known.request.max_tokens, known.room, known.sent.max_tokens) == (47, 2, 49)
    guessed = plan_of(Stretch(0, 5, 1, most=6), text, "  ")
    assert (guessed.request.max_tokens, guessed.room, guessed.sent.max_tokens) == (44, 1, 45)
    capped = plan_of(Stretch(0, 5, 3, most=3), text, "  ", limits={"maxTotalTokens": 90})
    assert capped.sent.max_tokens == min(49, capped.tokens_left or 0)
    assert plan_of(Stretch(0, 5, 60, most=60), text).nothing_left


# -------------------------------------------------------------------------------------------------- on the wire


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


@pytest.fixture
async def here(client: Client, sqlite: Database, sim: SimulatorProcess) -> AsyncIterator[House]:
    model = MistralChat("a key", sim.url)
    async with house(client, sqlite, model=model, timings=QUICK, chatjobs_concurrency=50) as running:
        yield running
    await model.aclose()


async def cut_at(here: House, name: str, size: int, after: int, most: int, **script: Any) -> tuple[Job, int]:
    """A job with ``max_tokens`` whose answer is cut once, and how many tokens it has in the end."""
    pieces = TEXTS[name]
    faults = [{"kind": "cut", "after": after}]
    message = prompt("tokens", pieces=pieces, tokens_per_chunk=size, faults=faults, **script)
    job = await here.ended(await here.submit(message, max_tokens=most))
    assert (job.status, job.finish_reason) == (INCOMPLETE, "length"), job.error
    return job, new_tokens(pieces, job.content or "")


async def calibrated(here: House, size: int) -> None:
    """A job whose answer was not interrupted, of which the server's deltas are known."""
    message = prompt("sample", pieces=TEXTS["words"] * 3, tokens_per_chunk=size)
    assert (await here.ended(await here.submit(message))).status is JobStatus.COMPLETED


@pytest.mark.parametrize("name", [name for name in TEXTS if "bytes" not in name])
async def test_a_server_that_counts_as_it_goes_leaves_no_doubt(here: House, name: str) -> None:
    """Whatever the size of its deltas, the answer has max_tokens tokens: no more and no less."""
    most = limit_of(name)

    async def one(size: int, after: int) -> None:
        job, tokens = await cut_at(here, name, size, after, most, usage="chunks")
        assert tokens == most, (size, after, job.content)
        assert not job.usage_estimated

    await asyncio.gather(*(one(size, after) for size in (1, 3, 8) for after in range(1, most, 9)))


@pytest.mark.parametrize("name", ["words", "trailing blanks", "prose", "code", "japanese"])
async def test_deltas_that_are_tokens_make_the_answer_as_long_as_it_may_be(here: House, name: str) -> None:
    """Cut at every place, of a server of which nothing is known yet; blanks that are said again cost nothing."""
    most = limit_of(name)

    async def one(after: int) -> None:
        job, tokens = await cut_at(here, name, 1, after, most)
        assert tokens == most, (after, job.content)

    await asyncio.gather(*(one(after) for after in range(1, most + 1)))


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("name", ["trailing blanks", "japanese, longer tokens", "code"])
async def test_deltas_of_several_tokens(here: House, name: str, size: int) -> None:
    """Of a server that was seen before: never more than max_tokens, and at most one delta less."""
    await calibrated(here, size)
    most = limit_of(name)

    async def one(after: int) -> None:
        job, tokens = await cut_at(here, name, size, after, most)
        assert most - size <= tokens <= most, (after, tokens, job.content)

    await asyncio.gather(*(one(after) for after in range(1, most, 5)))


@pytest.mark.parametrize("size", [1, 2, 8])
async def test_a_server_of_which_nothing_is_known_is_not_asked_for_too_much(here: House, size: int) -> None:
    """Never more than max_tokens; what the estimate was too high by is asked for once its call was counted."""

    async def one(name: str, after: int) -> None:
        _, tokens = await cut_at(here, name, size, after, limit_of(name))
        assert after <= tokens + size
        assert tokens <= limit_of(name), (name, after, tokens)

    await asyncio.gather(*(one(name, after) for name in TEXTS for after in range(1, limit_of(name), 9)))


async def test_a_limit_that_was_estimated_too_low_is_put_right(here: House, sim: SimulatorProcess) -> None:
    """By one call more, when the continued call has shown how its server counts."""
    job, tokens = await cut_at(here, "japanese, longer tokens", 1, 8, 20)
    assert [attempt.outcome for attempt in job.attempts] == ["upstream_cut", "topped_up", "finished"]
    assert tokens == 20


@pytest.mark.parametrize("fault", [{"kind": 400}, {"kind": 401}, {"kind": "cut", "after": 2}])
async def test_an_answer_is_not_lost_for_the_few_tokens_it_lacks(here: House, fault: dict[str, Any]) -> None:
    """Where the call for the rest is refused, the answer ends at its length limit as it would have without."""
    pieces = TEXTS["japanese, longer tokens"]
    message = prompt("tokens", pieces=pieces, faults=[{"kind": "cut", "after": 8}, None, fault])
    job = await here.ended(await here.submit(message, max_tokens=20))
    assert (job.status, job.finish_reason, job.error) == (INCOMPLETE, "length", None)
    assert 8 < new_tokens(pieces, job.content or "") <= 20


async def test_an_interrupted_call_of_a_server_that_counts_is_in_the_ledger_as_it_said(here: House) -> None:
    job, _ = await cut_at(here, "words", 4, 8, 30, usage="chunks")
    first = job.attempts[0]
    assert (first.outcome, first.estimated, first.usage and first.usage.completion_tokens) == ("upstream_cut", False, 8)


class UpToTheLimit(ScriptedModel):
    """Says as many words as it may, and reports the usage that it is made with."""

    def __init__(self, usage: Usage | None) -> None:
        super().__init__()
        self.usage = usage

    async def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        for number in range(request.max_tokens or 0):
            yield TextDelta(Channel.CONTENT, f" word{number}")
        yield Finish("length", self.usage)


@pytest.mark.parametrize("usage", [None, Usage(prompt_tokens=9), Usage()])
async def test_a_cap_is_recognised_without_a_count(client: Client, sqlite: Database, usage: Usage | None) -> None:
    """The answer ended at limits.maxTotalTokens, and the server counted nothing, or zero."""
    async with house(client, sqlite, model=UpToTheLimit(usage)) as here:
        job = await here.ended(await here.submit(limits={"maxTotalTokens": 100}))
        assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, "max_total_tokens")
