"""The measurement of how a server continues a given text, with a few short calls.

Each call gives the model a list that breaks off within a word or a number, and requests a few tokens more. A server
that continues begins with the rest of the word. One that ignores the request starts a new answer, which does not begin
with the rest of a word; it may repeat the list, but cannot reach its end in so few tokens. All calls of a way have to
agree.

JSON is a matter of its own: a server that decodes under a grammar often begins it with the first new token, and its
answer begins again with a brace (vLLM and llama.cpp keep the state of a grammar over generated tokens only; Mistral's
documentation does not say). So each response format is measured as well, with a document that breaks off.

At most three calls per way, three about whitespace and two per response format: about a hundred tokens each.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from chatjobs.contracts import Channel, ChatRequest, Usage
from domain.continuing import NEVER, USUAL, Drops, Practice, Way
from domain.errors import UpstreamError, UpstreamRefused
from domain.ports import Finish, TextDelta
from providers.mistral.chat import MistralChat

CALL_SECONDS: Final = 30.0
MOST_TOKENS: Final = 8
"""Far fewer than any of the lists has."""
MOST_CHARACTERS: Final = 64
WAYS: Final = (Way.PREFIX, Way.CONTINUE_FINAL_MESSAGE, Way.ASSISTANT)
NOT_TAKEN: Final = (400, 422)
"""The statuses with which servers refuse an unknown message or field."""


class Probe(NamedTuple):
    """``list`` breaks off; ``rest`` is its continuation."""

    prompt: str
    list: str
    rest: str


PROBES: Final = (
    Probe("Say the four colours again and again.", "violet, crimson, ochre, teal, " * 4 + "violet, crim", "son, ochre"),
    Probe("Count on.", ", ".join(map(str, range(4001, 4015))) + ", 40", "15, 4016"),
    Probe("Say the four fruits again and again.", "walnut, fig, quince, medlar, " * 4 + "wal", "nut, fig"),
)
JSON_PROBES: Final = (
    Probe(
        "Count on, in a JSON object with the list numbers.",
        '{"numbers": [' + ", ".join(map(str, range(4001, 4015))) + ", 40",
        "15, 4016",
    ),
    Probe(
        "Say the four colours again and again, in a JSON object with the list colours.",
        '{"colours": [' + '"violet", "crimson", "ochre", "teal", ' * 4 + '"violet", "crim',
        'son"',
    ),
)
FORMATS: Final = ("json_object", "json_schema")
LISTS: Final = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "colours": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}
"""The schema of the documents in JSON_PROBES."""
SPACES: Final = " " * 12
LINES: Final = "\n\n\t\n\n"


class ProbeAnswer(NamedTuple):
    """The beginning of an answer, and its usage if the server reported it."""

    text: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Calls of one model. ``pause``: seconds between them."""

    chat: MistralChat
    model: str
    pause: float = 0

    async def practice(self, assumed: Practice | None = None) -> Practice:
        """How the server continues; NEVER if no way works. ``assumed``: all of it but the formats.

        Raises UpstreamError, or TimeoutError if a call had no answer: then nothing is known.
        """
        if assumed is not None:
            return replace(assumed, formats=await self._formats(assumed))
        for way in WAYS:
            try:
                found = await self._continues(way)
            except UpstreamRefused as error:
                if error.http_status not in NOT_TAKEN:
                    raise
                continue
            if found is not None:
                return replace(found, drops=await self._drops(found), formats=await self._formats(found))
        return NEVER

    async def _formats(self, found: Practice) -> frozenset[str]:
        """The response formats with which the server continues as it does with text."""
        return frozenset([form for form in FORMATS if await self._continues_json(found, form)])

    async def _continues_json(self, found: Practice, form: str) -> bool:
        for probe in JSON_PROBES:
            try:
                answer = await self._answer_to(probe.prompt, probe.list, found.way, form=form)
            except UpstreamRefused as error:
                if error.http_status not in NOT_TAKEN:
                    raise
                return False
            echoes = answer.text.startswith(probe.list)
            if found.echoes not in (None, echoes) or not answer.text.removeprefix(probe.list).startswith(probe.rest):
                return False
        return True

    async def _continues(self, way: Way) -> Practice | None:
        echoed = set[bool]()
        for probe in PROBES:
            answer = await self._answer_to(probe.prompt, probe.list, way)
            echoes = answer.text.startswith(probe.list)
            if not answer.text.removeprefix(probe.list).startswith(probe.rest):
                return None
            echoed.add(echoes)
        return Practice(way, Drops.NOTHING, echoes=echoed.pop() if len(echoed) == 1 else None)

    async def _drops(self, found: Practice) -> Drops:
        """The whitespace that the server drops, by the prompt tokens that it counts."""
        try:
            bare, spaces, lines = [await self._prompt_tokens(found.way, end) for end in ("", SPACES, LINES)]
        except UpstreamRefused:  # some templates fail where a message ends with whitespace
            return Drops.ALL
        if not bare or not spaces or not lines:
            return USUAL[found.way].drops
        if lines <= bare:
            return Drops.ALL
        return Drops.NOTHING if spaces > bare else Drops.SPACES

    async def _prompt_tokens(self, way: Way, end: str) -> int | None:
        probe = PROBES[0]
        usage = (await self._answer_to(probe.prompt, probe.list + end, way, tokens=1)).usage
        return usage.prompt_tokens if usage else None

    async def _answer_to(
        self, prompt: str, text: str, way: Way, tokens: int = MOST_TOKENS, form: str | None = None
    ) -> ProbeAnswer:
        await asyncio.sleep(self.pause)
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": tokens}
        request = ChatRequest.parse(body | ({"response_format": _response_format(form)} if form else {}))
        events = self.chat.stream(request, text, raw=True, practice=Practice(way, Drops.NOTHING))
        pieces, length, usage = list[str](), 0, None
        async with asyncio.timeout(CALL_SECONDS), aclosing(events):
            async for event in events:
                match event:
                    case TextDelta(channel=Channel.CONTENT, text=piece):
                        pieces.append(piece)
                        length += len(piece)
                    case Finish():
                        usage = event.usage
                if length > len(text) + MOST_CHARACTERS:
                    break
        return ProbeAnswer("".join(pieces), usage)


def _response_format(form: str) -> dict[str, Any]:
    if form == "json_object":
        return {"type": form}
    return {"type": form, "json_schema": {"name": "lists", "schema": LISTS, "strict": False}}


async def measured(
    chat: MistralChat, model: str, *, pause: float = 0, assumed: Practice | None = None
) -> Practice | None:
    """How the server continues; None if it did not answer. ``assumed``: all of it but the response formats."""
    try:
        return await Measurement(chat, model, pause).practice(assumed)
    except (UpstreamError, TimeoutError):
        return None
