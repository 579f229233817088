"""`starter.py doctor --live`: how the real API continues an answer that was cut, by some small calls.

One call shows what the server sends. Then the server is measured as a worker with ``auto`` measures it in the
background (providers/mistral/probe.py), and the result is stored for the workers. In the way that was found, the first
answer is continued and its form examined, and then some answers are cut, continued and compared
(activities/continuation_check.py). A server that does not continue gets one line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from activities.continuation_check import (
    HANDOVERS,
    TOKENS_PER_CALL,
    CheckLimits,
    ContinuationCheck,
)
from chatjobs.contracts import Channel, ChatRequest
from chatjobs.errors import ChatJobsError
from cli.doctor.checks import Finding, Status, database_exists
from dispatch import measuring, server_knowledge
from dispatch.temporal import in_daemon_thread
from domain.continuing import NEVER, Drops, Practice, Way, server_name
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.ports import Allowance, Finish, ModelEvent, TextDelta
from domain.seams import WRONG, SeamOutcome, overlap
from domain.settings import Settings
from domain.trust import JudgedSeam, Judgement, Trust
from providers.mistral.chat import MistralChat, expected_echo
from providers.mistral.probe import Measurement
from storage.engine.database import SCHEMA_VERSION, Database

MODEL = "mistral-small-latest"
PROMPT = "Count from one to a hundred in English words, separated by commas. No other words."
FIRST_TOKENS, MORE_TOKENS = 80, 60
CUT_CHARACTERS = 96
"""Six times the length at which an echo is certain (SURE in providers/mistral/echo.py)."""
CALL_SECONDS = 30.0
DATABASE_SECONDS = 5.5
CHANCE_CHARACTERS = 8
"""A shorter overlap may be chance."""
FORM_CALLS, FORM_TOKENS = 18, 2400
"""Of a model, without the answers that are judged: two, and at most twelve that measure the server."""

NOT_CONTINUED = "the server does not go on with a text"
KEY_REFUSED = (401, 403)

EchoKind = Literal["whole", "pieces", "none", "differing"]


@dataclass
class Received:
    """What one call received. ``first`` is the time to the first token in seconds."""

    pieces: list[str] = field(default_factory=list)
    first: float | None = None
    allowance: Allowance | None = None
    finish: Finish | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def bound(names: Sequence[str], calls: int) -> str:
    """What the calls cost at most; printed before the first one."""
    judged = calls * len(names) + HANDOVERS * len(_pairs(names))
    count = FORM_CALLS * len(names) + judged
    tokens = FORM_TOKENS * len(names) + TOKENS_PER_CALL * judged
    cost = f"{tokens / 10_000:.1f} cents at a dollar for a million tokens"
    return f"--live makes at most {count} calls of {', '.join(names)}: at most {tokens} tokens together, {cost}."


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each model with those that come after it, which is the order of ``fallbackModels``."""
    return [(first, second) for at, first in enumerate(names) for second in names[at + 1 :]]


async def examined(settings: Settings, names: Sequence[str], limits: CheckLimits) -> AsyncIterator[Finding | Judgement]:
    """The findings about the models, and the judgements that they are made of. A refusal is a finding, too."""
    key = settings.mistral_api_key
    if key is None:
        yield Finding("live", "problem", "there is no key to call with", "set MISTRAL_API_KEY")
        return
    try:
        model = MistralChat(key.get_secret_value(), settings.mistral_server_url, idle_connections=1, practice=None)
    except ValueError as error:
        yield Finding("live", "problem", str(error), "correct it")
        return
    limits = limits._replace(pause=1 / settings.mistral_requests_per_second)
    examination = LiveExamination(settings, model, limits, several=len(names) > 1)
    try:
        for name in names:
            async for found in examination.of(name):
                yield found
            if examination.refused:
                return
        for first, second in _pairs(names):
            async for found in examination.handover(first, second):
                yield found
    finally:
        await model.aclose()


class LiveExamination:
    """Examines the models of one server, one after the other."""

    def __init__(self, settings: Settings, model: MistralChat, limits: CheckLimits, *, several: bool) -> None:
        """``several``: there are several models, so that findings have to say of which they are."""
        self.refused = False
        """The server refuses the key, or asks to slow down: no other model is called."""
        self._settings = settings
        self._several = several
        self._model = model
        self._limits = limits
        self._check = ContinuationCheck(model, limits)
        self._practices: dict[str, Practice] = {}
        self._server = server_name(settings.mistral_server_url)

    async def of(self, name: str) -> AsyncIterator[Finding | Judgement]:
        """The findings about one model. What refuses ends them."""
        try:
            first = await received(self._model.stream(_request(name, FIRST_TOKENS)), cut=CUT_CHARACTERS)
            if not up_to_a_space(first.text).strip():
                yield Finding("live", "problem", f"{name}: the answer had no text to be continued", "try again")
                return
            practice = await self._measured(name)
            yield self._named(await _continuing(self._settings, name, practice), name)
            for finding in await self._form(name, first, practice):
                yield self._named(finding, name)
            if practice == NEVER:  # one line has said all of it; programs get a verdict all the same
                yield Judgement(name, ended=NOT_CONTINUED, continues=False, asked=not self._used(name))
            elif practice is not None and self._limits.calls:
                judgement = await self._check.judged(name)
                yield judgement
                for finding in self._findings(judgement):
                    yield finding
        except TimeoutError:
            yield Finding("live", "problem", f"{name}: a call took more than {CALL_SECONDS:g} s", "try again later")
        except UpstreamRateLimited as error:
            self.refused = True
            wait = "" if error.retry_after is None else f" in {error.retry_after:.0f} s"
            yield Finding("live", "problem", f"{name}: {error.message}", f"try again{wait}; nothing more was called")
        except UpstreamError as error:
            self.refused = error.http_status in KEY_REFUSED
            fix = "see the finding about the key" if self.refused else "see whether the server has this model"
            more = "" if self.refused else " of it"
            yield Finding("live", "problem", f"{name}: {error.message}", f"{fix}; nothing more{more} was called")

    async def handover(self, first: str, second: str) -> AsyncIterator[Finding | Judgement]:
        """How the second model goes on with what the first one said; nothing if one of them had no verdict."""
        if self._limits.calls and all(self._practices.get(one, NEVER) != NEVER for one in (first, second)):
            judgement = await self._check.handover(first, second)
            yield judgement
            for finding in self._findings(judgement):
                yield finding

    async def _measured(self, name: str) -> Practice | None:
        """How the server continues; None if a call had no answer. Raises UpstreamRefused, UpstreamRateLimited."""
        try:
            practice = await Measurement(self._model, name, self._limits.pause).practice()
        except (UpstreamRefused, UpstreamRateLimited):
            raise
        except (UpstreamError, TimeoutError):
            return None
        self._practices[name] = practice
        self._model.learn(self._practices)
        return practice

    def _used(self, name: str) -> bool:
        """Whether workers ask in the way that was measured; by the settings they may ask in another one."""
        assumed = server_knowledge.assumed(self._settings)
        return assumed is None or assumed.way == self._practices.get(name, NEVER).way

    def _named(self, finding: Finding, name: str) -> Finding:
        return finding._replace(found=f"{name}: {finding.found}") if self._several else finding

    async def _form(self, name: str, first: Received, practice: Practice | None) -> list[Finding]:
        """How the answer continues in the way that was measured: its echo, its joint, its numbers.

        Raises UpstreamError, TimeoutError.
        """
        if practice is None or practice == NEVER:
            return [_rate(first), _first_tokens(first)]
        text = up_to_a_space(first.text)
        more = _request(name, MORE_TOKENS)
        second = await received(self._model.stream(more, text, raw=True))
        echo, own = without_echo(more, text, second.pieces, practice)
        return findings_of(first, second, text, echo, own, practice)

    def _findings(self, judgement: Judgement) -> list[Finding]:
        """A line for each seam that is not as it should be, and one with the verdict."""
        subject = judgement.model if judgement.other is None else f"{judgement.other} → {judgement.model}"
        seams = [_seam(subject, one) for one in judgement.seams if _is_remarkable(one, judgement)]
        status, fix = VERDICTS[judgement.trust]
        verdict = f"{subject} at {self._server}: {judgement.words}"
        if not self._used(judgement.model):
            status, fix = "problem" if status == "problem" else "warning", "set CHATJOBS_CONTINUATION=auto"
            setting = self._settings.chatjobs_continuation
            verdict += f"; so with auto: CHATJOBS_CONTINUATION={setting} does not use this way"
        name = "live: trust" if judgement.other is None else "live: handover"
        return [*seams, Finding(name, status, verdict, fix)]


VERDICTS: dict[Trust, tuple[Status, str]] = {
    Trust.TRUST: ("ok", ""),
    Trust.CARE: ("warning", "look at the seams above; where wording matters, set onInterrupt to restart"),
    Trust.NONE: (
        "problem",
        "set onInterrupt to restart for jobs of this model (or CHATJOBS_CONTINUATION=none for all)",
    ),
    Trust.STARTS_OVER: ("warning", "none needed; nothing is glued, and interrupted answers are paid for again"),
    Trust.UNKNOWN: ("warning", "try again, with more --calls or more --seconds"),
}


def _is_remarkable(seam: JudgedSeam, judgement: Judgement) -> bool:
    usual = {SeamOutcome.EQUAL, SeamOutcome.UNDECIDED}
    if judgement.other is not None:
        usual |= {SeamOutcome.OTHER, SeamOutcome.WANDERS}
    return seam.outcome not in usual


def _seam(subject: str, seam: JudgedSeam) -> Finding:
    status: Status = "problem" if seam.outcome in WRONG else "warning"
    equal = f" after {seam.equal} characters" if seam.outcome is SeamOutcome.WANDERS else ""
    shown = f"…{seam.before!r} | {seam.after!r}…" if seam.after else f"…{seam.before!r} |"
    return Finding("live: seam", status, f"{subject}, {seam.task}, cut {seam.spot}: {seam.outcome}{equal}: {shown}")


def described(server: str, judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON, for programs."""
    return {
        "server": server,
        "model": judgement.model,
        "textOf": judgement.other,
        "verdict": judgement.trust,
        "words": judgement.words,
        "continued": judgement.comparable,
        "equal": judgement.count(SeamOutcome.EQUAL),
        "wrong": judgement.wrong,
        "startedOver": judgement.resets,
        "controls": judgement.controls._asdict(),
        "ended": judgement.ended,
        "seams": [seam._asdict() for seam in judgement.seams],
    }


def _request(name: str, tokens: int) -> ChatRequest:
    message = {"role": "user", "content": PROMPT}
    return ChatRequest.parse({"model": name, "messages": [message], "temperature": 0, "max_tokens": tokens})


async def received(events: AsyncGenerator[ModelEvent, None], *, cut: int | None = None) -> Received:
    """Read a stream to its end, or to ``cut`` characters. Raises UpstreamError, TimeoutError."""
    found, began, length = Received(), time.monotonic(), 0
    async with asyncio.timeout(CALL_SECONDS), aclosing(events):
        async for event in events:
            match event:
                case TextDelta(channel=Channel.CONTENT, text=text):
                    found.first = time.monotonic() - began if found.first is None else found.first
                    found.pieces.append(text)
                    length += len(text)
                case Allowance():
                    found.allowance = event
                case Finish():
                    found.finish = event
            if cut is not None and length >= cut:
                break
    return found


def up_to_a_space(text: str) -> str:
    """The beginning of a text up to and with its last space, which is where continuing is most fragile."""
    head, space, _ = text[:CUT_CHARACTERS].rstrip(" ").rpartition(" ")
    return head + space or text


def without_echo(request: ChatRequest, text: str, pieces: Sequence[str], practice: Practice) -> tuple[EchoKind, str]:
    """The kind of echo, and the text that the service would take for the continuation."""
    echo, own = expected_echo(request, text, practice), list[str]()
    if echo is None:
        raise AssertionError("a continued text has an expected echo")
    events: list[ModelEvent] = [*(TextDelta(Channel.CONTENT, piece) for piece in pieces), Finish("stop")]
    try:
        for event in events:
            taken = [event] if echo.decided else echo.take(event)
            own += [one.text for one in taken if isinstance(one, TextDelta)]
    except UpstreamInterrupted:
        return "differing", ""
    sent, _ = practice.divided(text)
    if not "".join(pieces).startswith(sent):
        return "none", "".join(own)
    return "whole" if pieces[0].startswith(sent) else "pieces", "".join(own)


# -------------------------------------------------------------------------------------------------- findings


def findings_of(
    first: Received, second: Received, text: str, echo: EchoKind, own: str, practice: Practice
) -> list[Finding]:
    """The findings about an answer that was continued in the way of ``practice``."""
    findings = [_echo(echo)]
    if echo != "differing":
        findings += [_joint(text, own), _space(text, second.text, echo, practice)]
    return [*findings, _usage(second), _rate(first, second), _first_tokens(first, second)]


def _echo(kind: EchoKind) -> Finding:
    words = {
        "whole": "the prefix came back whole, in one piece, and was taken off",
        "pieces": "the prefix came back in pieces, and was taken off",
        "none": "the prefix did not come back",
    }
    if kind == "differing":
        found = "the prefix came back with changes: answers cannot be continued"
        return Finding("live: echo", "problem", found, "set onInterrupt to restart or fail, and report this")
    return Finding("live: echo", "ok", words[kind])


def _joint(text: str, own: str) -> Finding:
    if not own:
        return Finding("live: joint", "warning", "nothing came behind the prefix", "try again")
    again = overlap(text, own)
    if again >= CHANCE_CHARACTERS or text[: 4 * CHANCE_CHARACTERS] in own:
        found = f"the continuation says again what was there: …{text[-40:]!r} then {own[:40]!r}…"
        return Finding("live: joint", "problem", found, "set onInterrupt to restart, and report this")
    return Finding("live: joint", "ok", f"no overlap; does it read on? …{text[-40:]}|{own[:40]}…")


def _space(text: str, raw: str, echo: EchoKind, practice: Practice) -> Finding:
    """Whether the model repeats the space that was removed before sending."""
    sent, dropped = practice.divided(text)
    if not dropped:
        return Finding("live: space", "ok", "all of the text was sent, with the space at its end")
    rest = raw if echo == "none" else raw[len(sent) :]
    if rest.startswith(dropped):
        return Finding("live: space", "ok", "the space that was not sent came again, and was taken off")
    return Finding("live: space", "ok", f"the space that was not sent did not come again: {rest[:12]!r}")


def _usage(received: Received) -> Finding:
    finish = received.finish
    if finish is None or finish.usage is None:
        return Finding("live: usage", "warning", "the stream's end had no usage", "tokens of jobs are estimated")
    usage = finish.usage
    found = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens in the last chunk, finish reason {finish.reason}"
    if usage.completion_tokens > MORE_TOKENS:
        fix = f"completion_tokens ({usage.completion_tokens}) counts more than max_tokens ({MORE_TOKENS}); report this"
        return Finding("live: usage", "warning", found, fix)
    return Finding("live: usage", "ok", found)


def _rate(*calls: Received) -> Finding:
    allowance = next((one.allowance for one in reversed(calls) if one.allowance is not None), None)
    if allowance is None:
        found = "no x-ratelimit headers: lanes keep to MISTRAL_REQUESTS_PER_SECOND alone"
        return Finding("live: rate limit", "ok", found)
    values = [
        f"{name.replace('_', ' ')} {value:,.0f}" for name, value in allowance._asdict().items() if value is not None
    ]
    return Finding("live: rate limit", "ok", f"headers: {', '.join(values)}")


def _first_tokens(first: Received, *more: Received) -> Finding:
    times = [f"{one.first * 1000:.0f} ms" for one in (first, *more) if one.first is not None]
    status: Status = "ok" if len(times) == 1 + len(more) else "warning"
    return Finding(
        "live: first token", status, f"after {' and '.join(times)}; {len(first.pieces)} pieces up to the cut"
    )


# ------------------------------------------------------------------------------------------------ continuing

METHODS = {
    Way.PREFIX: "prefix: true",
    Way.CONTINUE_FINAL_MESSAGE: "continue_final_message",
    Way.ASSISTANT: "an assistant's message at the end",
}
ECHOES = {True: "repeats it first", False: "does not repeat it", None: "repeats it at times"}
EFFECTS = {
    Drops.NOTHING: "its model sees all of it: interrupted answers go on from their last character",
    Drops.SPACES: "its model does not see spaces at the end: interrupted answers go on, but one that was cut behind a"
    " space starts over (reset) unless the model says the space again",
    Drops.ALL: "its model does not see whitespace at the end: interrupted answers go on, but one that was cut behind"
    " some starts over (reset) unless the model says it again",
}


async def _continuing(settings: Settings, name: str, practice: Practice | None) -> Finding:
    """How the server continues a text, as it was measured, and what that means for interrupted answers."""
    if practice is None:
        found = "a call that measures how the server continues a text had no answer"
        return Finding("live: continuing", "warning", found, "try again; what was known of it before still holds")
    status, found, fix = meaning(practice, server_knowledge.assumed(settings), settings.chatjobs_continuation)
    return Finding("live: continuing", status, f"{found}; {await _remembered(settings, name, practice)}", fix)


def meaning(practice: Practice, assumed: Practice | None, setting: str) -> tuple[Status, str, str]:
    """Status, words and advice for a measurement, given what the settings assume."""
    if practice.way is Way.NONE:
        found = "the server does not go on with a text that breaks off"
        if assumed not in (None, NEVER):
            glued = (
                f"{found}, and CHATJOBS_CONTINUATION={setting} asks it to: a new answer would be glued to the old one"
            )
            return "problem", glued, "set CHATJOBS_CONTINUATION=none"
        return "warning", f"{found}: interrupted answers start over (reset)", "none needed; nothing is glued"
    continues = f"the server goes on with a text ({METHODS[practice.way]}) and {ECHOES[practice.echoes]}"
    found = f"{continues}; {EFFECTS[practice.drops]}"
    if assumed is not None and assumed.way != practice.way:
        unused = f"{found}. CHATJOBS_CONTINUATION={setting} does not use that"
        return "warning", unused, "set CHATJOBS_CONTINUATION=auto"
    return "ok", found, ""


async def _remembered(settings: Settings, name: str, practice: Practice) -> str:
    """Store a measurement for the workers, which read it every half minute. Returns the outcome in words."""
    try:
        # In another thread, as waiting for SQLite would block the event loop.
        return await in_daemon_thread(lambda: asyncio.run(_keep(settings, name, practice)))
    except TimeoutError:
        return "not remembered, since the database does not answer"
    except ChatJobsError as error:
        return f"not remembered: {error.message}"


async def _keep(settings: Settings, name: str, practice: Practice) -> str:
    """Raises ConfigurationError, StorageError, TimeoutError."""
    if not database_exists(settings.database_url):
        return "not remembered, since there is no database yet"
    database = Database.as_it_is(settings.database_url)
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            if await database.version() != SCHEMA_VERSION:
                return "not remembered, since the database has another schema"
            await measuring.remember(server_knowledge.store(settings, database), name, practice)
    finally:
        await database.close()
    return f"remembered for {name}"
