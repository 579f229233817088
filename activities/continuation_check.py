"""Sees how a model's server continues answers: cuts some, continues them as an attempt does, and compares.

Each prompt is answered twice without interruption, at temperature 0 and with a fixed seed: where these two answers
differ, the server is not deterministic, and a continuation that differs shows nothing (``SeamOutcome.UNDECIDED``).
Then the answers are cut between two deltas, and continued by the request that activities/continuation.py plans for an
interrupted job: the same prefix, the same echo, the same reduced ``max_tokens``.

Nothing is retried. A refusal of the key, a rate limit or the time limit ends the check with what was seen until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from activities import continuation
from chatjobs.contracts import Channel, ChatRequest
from domain.errors import UpstreamError, UpstreamRefused
from domain.estimates import prompt_tokens
from domain.ports import ChatModel, Continuing, Finish, TextDelta
from domain.seams import AnswerText, Comparison, CutPlace, SeamOutcome, agreement, compared, cuts, joined
from domain.text import Normaliser
from domain.tokens import Sample
from domain.trust import NO_CONTROLS, ControlAnswers, JudgedSeam, Judgement
from domain.values import AttemptHistory, Stretch, TextRun

CALLS: Final = 20
"""Calls for a model by default; those of the uninterrupted answers are among them."""
CALLS_PER_TASK: Final = 5
"""Two without interruption, and on average three places."""
HANDOVERS: Final = 6
"""Calls for a pair of models."""
CHECK_SECONDS: Final = 180.0
CALL_SECONDS: Final = 30.0
MOST_TOKENS: Final = 64
"""Of an answer: enough for a few lines of each kind."""
MOST_CHARACTERS: Final = 4_000
"""Of an answer whose server does not keep to ``max_tokens``; what follows is not read. Nor is it beyond twice as many
deltas as there may be tokens, of which the first half is judged."""
TOKENS_PER_CALL: Final = 300
"""At most: a prompt of a hundred, an answer so far, and the rest of it."""
UNKNOWN_SERVER: Final = "the server is not known to go on with a text"
SEED: Final = 7_001
SHOWN: Final = 24
"""Characters on each side of a seam in a report."""
_OTHERWISE: Final = (SeamOutcome.WANDERS, SeamOutcome.OTHER, SeamOutcome.ENDED)


class CheckTask(NamedTuple):
    """A prompt of one kind."""

    name: str
    prompt: str


TASKS: Final = (
    CheckTask("prose", "Tell me a story about a lighthouse keeper, her dog, and a storm."),
    CheckTask("code", "Write a Python class Stack with push, pop, and a loop that prints all items. Only code."),
    CheckTask(
        "script",
        "Write this text again, exactly as it is, and nothing else: Привет, мир! 👩‍🚀 Сегодня в Лионе 23 °C, "
        "завтра дождь 🌧️. 東京は晴れです。 La famille 👨‍👩‍👧 va à la plage 🏖️.",
    ),
    CheckTask(
        "table", "Write a Markdown table of six animals with the columns Animal, Legs and Sound. Only the table."
    ),
    CheckTask("list", "List eight fruits as a numbered list, with a few words about each."),
    CheckTask("numbers", "Count from 9995 to 10030, separated by commas. Only the numbers."),
    CheckTask("JSON", "Write JSON for a person with name, age, address and three hobbies, indented. Only JSON."),
)
"""In this order: those that tell most come first, where not all are asked."""


class CheckLimits(NamedTuple):
    """``calls`` of each model, for at most ``seconds``, with ``pause`` seconds between two; ``call_seconds`` each."""

    calls: int = CALLS
    seconds: float = CHECK_SECONDS
    pause: float = 0
    call_seconds: float = CALL_SECONDS


USUAL_LIMITS: Final = CheckLimits()


class CheckEnded(Exception):
    """No more calls are made, for a reason in words."""


class Heard(NamedTuple):
    """What one call brought. ``tokens``: of its answer, as the server counted them; None if it did not."""

    answer: AnswerText
    tokens: int | None


@dataclass
class TaskAnswers:
    """A task's uninterrupted answers."""

    task: CheckTask
    first: Heard
    second: Heard

    @property
    def same(self) -> bool:
        one, other = self.first.answer, self.second.answer
        return agreement(one.text, other.text) == max(len(one.text), len(other.text))


@dataclass
class ContinuationCheck:
    """Checks models, one after the other; the answers of those that were checked are kept for handovers.

    The way in which the server continues has to be a measured one (providers/mistral/probe.py): a server that ignores a
    prefix and, at temperature 0, says the same answer again cannot be told from one that repeats the prefix first.
    """

    model: ChatModel
    limits: CheckLimits = USUAL_LIMITS
    _answers: dict[str, list[TaskAnswers]] = field(default_factory=dict)
    _seeded: dict[str, bool] = field(default_factory=dict)
    _left: int = 0
    _until: float = 0

    async def judged(self, name: str) -> Judgement:
        """How the model ``name`` continues its own answers. Calls nothing if the server is not known to continue."""
        self._begin(self.limits.calls)
        if self.model.continuing(name) is not Continuing.KNOWN:
            return Judgement(name, ended=UNKNOWN_SERVER, continues=False)
        seams, found, ended = list[JudgedSeam](), self._answers.setdefault(name, []), ""
        try:
            for task in TASKS[: max(1, self.limits.calls // CALLS_PER_TASK)]:
                found.append(TaskAnswers(task, await self._whole(name, task), await self._whole(name, task)))
            places = cuts([one.first.answer for one in found], self._left)
            if not places:
                raise CheckEnded("the answers came in one piece or were too short to be cut")
            for place in places:
                seams += await self._seam(name, found[place.answer], place)
        except CheckEnded as end:
            ended = str(end)
        return Judgement(
            name, seams, ControlAnswers(sum(one.same for one in found), len(found)) if found else NO_CONTROLS, ended
        )

    async def handover(self, first: str, second: str) -> Judgement:
        """How the model ``second`` continues the answers of ``first``, which was checked before."""
        self._begin(HANDOVERS)
        found, seams, ended = self._answers.get(first, []), list[JudgedSeam](), ""
        if self.model.continuing(second) is not Continuing.KNOWN:
            return Judgement(second, ended=UNKNOWN_SERVER, other=first, continues=False)
        try:
            for place in cuts([one.first.answer for one in found], HANDOVERS):
                seams += await self._seam(second, found[place.answer], place, other=True)
        except CheckEnded as end:
            ended = str(end)
        return Judgement(second, seams, ended=ended or ("" if found else f"{first} gave no answer"), other=first)

    def _begin(self, calls: int) -> None:
        self._left, self._until = calls, asyncio.get_running_loop().time() + self.limits.seconds

    # ------------------------------------------------------------------------------------------------ answers

    async def _whole(self, name: str, task: CheckTask) -> Heard:
        """An uninterrupted answer. Without a seed, if the server refuses one. Raises CheckEnded."""
        try:
            try:
                return await self._heard(self._request(name, task))
            except UpstreamRefused as error:
                if error.http_status not in (400, 422) or not self._seeded.get(name, True):
                    raise
                self._seeded[name] = False
                return await self._heard(self._request(name, task))
        except UpstreamError as error:
            raise CheckEnded(error.message) from None

    def _request(self, name: str, task: CheckTask) -> ChatRequest:
        message = {"role": "user", "content": task.prompt}
        seed = {"random_seed": SEED} if self._seeded.get(name, True) else {}
        return ChatRequest.parse(
            {"model": name, "messages": [message], "temperature": 0, "max_tokens": MOST_TOKENS, **seed}
        )

    async def _heard(self, request: ChatRequest, continue_from: str | None = None) -> Heard:
        """One call, to its end or a limit. Raises CheckEnded, UpstreamError."""
        clock = asyncio.get_running_loop().time
        if self._left <= 0:
            raise CheckEnded("the calls are used up")
        self._left -= 1
        await asyncio.sleep(min(self.limits.pause, max(0, self._until - clock())))
        most = min(self.limits.call_seconds, self._until - clock())
        try:
            async with asyncio.timeout(most):
                return await self._read(request, continue_from)
        except TimeoutError:
            if clock() >= self._until:
                raise CheckEnded(f"{self.limits.seconds:g} s were over") from None
            raise CheckEnded(f"a call took more than {self.limits.call_seconds:g} s") from None

    async def _read(self, request: ChatRequest, continue_from: str | None) -> Heard:
        """Raises UpstreamError."""
        normaliser, pieces, length = Normaliser(), list[str](), 0
        async with aclosing(self.model.stream(request, continue_from)) as events:
            async for event in events:
                match event:
                    case TextDelta(channel=Channel.CONTENT, text=text):
                        pieces.append(normaliser.feed(text))
                        length += len(text)
                    case Finish(reason=reason, usage=usage):
                        pieces.append(normaliser.end())
                        tokens = usage.completion_tokens if usage and usage.completion_tokens else None
                        return Heard(AnswerText(_filled(pieces), open=reason == "length"), tokens)
                if length > MOST_CHARACTERS or len(pieces) > 2 * MOST_TOKENS:
                    break
        return Heard(AnswerText(_filled(pieces)[:MOST_TOKENS], open=True), None)

    # -------------------------------------------------------------------------------------------------- seams

    async def _seam(
        self, name: str, answers: TaskAnswers, place: CutPlace, *, other: bool = False
    ) -> Sequence[JudgedSeam]:
        """Continue an answer from a place; nothing if it is taken to be at its length limit. Raises CheckEnded."""
        whole = answers.first.answer
        said, rest = _divided(whole, place.at)
        planned = self._plan(self._request(name, answers.task), said, place.deltas, answers.first)
        if planned.nothing_left:
            return []
        own, why = AnswerText(()), ""
        try:
            own = (await self._heard(planned.sent, planned.continue_from)).answer
        except UpstreamError as error:
            if not continuation.starts_over(error):
                raise CheckEnded(error.message) from None
            seam, why = Comparison(SeamOutcome.RESET), error.message
        else:
            seam = joined(said, rest, own) if other else _judged(answers, said, rest, own)
        shown = said[-SHOWN:], own.text[:SHOWN]
        return [JudgedSeam(answers.task.name, place.spot, seam.outcome, seam.equal, *shown, why)]

    def _plan(self, request: ChatRequest, said: str, deltas: int, whole: Heard) -> continuation.CallPlan:
        """The call of a worker whose answer was interrupted after ``said``."""
        runs = [TextRun(len(said), Channel.CONTENT, said, deltas)]
        past = AttemptHistory(stretches=(Stretch(0, len(said), deltas),), total_tokens=prompt_tokens(request) + deltas)
        samples = [] if whole.tokens is None else [Sample(whole.tokens, len(whole.answer.pieces), whole.answer.text)]
        return continuation.plan(request, past, runs, samples, self.model.unsent(request, said))


def _judged(answers: TaskAnswers, said: str, rest: AnswerText, own: AnswerText) -> Comparison:
    """The finding on a continuation. Where the server says something else each time, other words show nothing."""
    found = compared(said, rest, own)
    if answers.same:
        return found
    second = answers.second.answer
    if second.text.startswith(said):
        again = compared(said, _divided(second, len(said))[1], own)
        found = max(found, again, key=lambda one: (one.outcome is SeamOutcome.EQUAL, one.equal))
    return Comparison(SeamOutcome.UNDECIDED, found.equal) if found.outcome in _OTHERWISE else found


def _divided(answer: AnswerText, at: int) -> tuple[str, AnswerText]:
    """The text before a place, and the answer's rest."""
    return answer.text[:at], replace(answer, pieces=(answer.text[at:],))


def _filled(pieces: Sequence[str]) -> tuple[str, ...]:
    return tuple(piece for piece in pieces if piece)
