"""`starter.py doctor --live`: how the real API continues an answer that was cut, by a few small calls.

Two calls cut an answer and continue it. Then the server is measured as a worker with ``auto`` measures it in the
background (providers/mistral/probe.py), and the result is stored for the workers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from chatjobs.contracts import Channel, ChatRequest
from chatjobs.errors import ChatJobsError
from cli.doctor.checks import Finding, Status, database_exists
from dispatch import measuring, server_knowledge
from dispatch.temporal import in_daemon_thread
from domain.continuing import NEVER, Drops, Practice, Way
from domain.errors import UpstreamError, UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.ports import Allowance, Finish, ModelEvent, TextDelta
from domain.settings import Settings
from providers.mistral.chat import MistralChat, expected_echo
from providers.mistral.probe import NOT_TAKEN, measured
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


def bound(name: str) -> str:
    """What the calls cost at most; printed before the first one."""
    return f"--live makes at most 14 calls of {name}: at most 2000 tokens together, less than a cent."


async def examined(settings: Settings, name: str = MODEL) -> list[Finding]:
    """The findings about the model ``name``. A refusal by Mistral is a finding, too."""
    key = settings.mistral_api_key
    if key is None:
        return [Finding("live", "problem", "there is no key to call with", "set MISTRAL_API_KEY")]
    try:
        model = MistralChat(key.get_secret_value(), settings.mistral_server_url, idle_connections=1)
    except ValueError as error:
        return [Finding("live", "problem", str(error), "correct it")]
    try:
        return [*await _cut_and_continued(model, name), await _continuing(settings, model, name)]
    except TimeoutError:
        return [Finding("live", "problem", f"a call took more than {CALL_SECONDS:g} s", "try again later")]
    except UpstreamRateLimited as error:
        wait = "" if error.retry_after is None else f" in {error.retry_after:.0f} s"
        return [Finding("live", "problem", error.message, f"try again{wait}; nothing more was called")]
    except UpstreamError as error:
        return [Finding("live", "problem", error.message, "see the finding about the key; nothing more was called")]
    finally:
        await model.aclose()


async def _cut_and_continued(model: MistralChat, name: str) -> list[Finding]:
    """Raises UpstreamError, TimeoutError."""
    first = await received(model.stream(_request(name, FIRST_TOKENS)), cut=CUT_CHARACTERS)
    text = up_to_a_space(first.text)
    if not text.strip():
        return [Finding("live", "problem", "the answer had no text to be continued", "try again")]
    more = _request(name, MORE_TOKENS)
    try:
        second = await received(model.stream(more, text, raw=True))
    except UpstreamRefused as error:
        if error.http_status not in NOT_TAKEN:
            raise
        found = f"the server refuses a message with prefix: true: {error.message}"
        return [Finding("live: echo", "warning", found, "see how it continues, below"), _rate(first)]
    return findings_of(first, second, text, *without_echo(more, text, second.pieces))


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


def without_echo(request: ChatRequest, text: str, pieces: Sequence[str]) -> tuple[EchoKind, str]:
    """The kind of echo, and the text that the service would take for the continuation."""
    echo, own = expected_echo(request, text), list[str]()
    if echo is None:
        raise AssertionError("a continued text has an expected echo")
    events: list[ModelEvent] = [*(TextDelta(Channel.CONTENT, piece) for piece in pieces), Finish("stop")]
    try:
        for event in events:
            taken = [event] if echo.decided else echo.take(event)
            own += [one.text for one in taken if isinstance(one, TextDelta)]
    except UpstreamInterrupted:
        return "differing", ""
    sent = text.rstrip(" ")
    if not "".join(pieces).startswith(sent):
        return "none", "".join(own)
    return "whole" if pieces[0].startswith(sent) else "pieces", "".join(own)


# -------------------------------------------------------------------------------------------------- findings


def findings_of(first: Received, second: Received, text: str, echo: EchoKind, own: str) -> list[Finding]:
    findings = [_echo(echo)]
    if echo != "differing":
        findings += [_joint(text, own), _space(text, second.text, echo)]
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


def overlap(text: str, own: str) -> int:
    """The length of the longest end of ``text`` that ``own`` begins with."""
    return max((n for n in range(1, min(len(text), len(own)) + 1) if text.endswith(own[:n])), default=0)


def _space(text: str, raw: str, echo: EchoKind) -> Finding:
    """Whether the model repeats the space that was removed before sending."""
    sent = text.rstrip(" ")
    if sent == text:
        return Finding("live: space", "ok", "the text so far has no space at its end to try it with")
    rest = raw if echo == "none" else raw[len(sent) :]
    if rest.startswith(" "):
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


def _first_tokens(first: Received, second: Received) -> Finding:
    times = [f"{one.first * 1000:.0f} ms" for one in (first, second) if one.first is not None]
    status: Status = "ok" if len(times) == 2 else "warning"
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


async def _continuing(settings: Settings, model: MistralChat, name: str) -> Finding:
    """Measure how the server continues a text, and what that means for interrupted answers."""
    practice = await measured(model, name, pause=1 / settings.mistral_requests_per_second)
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
