"""Implementations of the activities' ports that a test drives, and gates to stop the service where a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar, cast

from chatjobs.contracts import Channel, ChatRequest, Usage, WebhookEvent
from chatjobs.webhooks import verify
from domain.ports import Continuing, Finish, ModelEvent, TextDelta, WebhookResponse
from domain.values import Claim, FinishRecord, JobHandle
from domain.webhook_body import webhook_body
from storage.engine.database import Database
from storage.jobs.accept import AcceptStore
from storage.jobs.attempts import AttemptStore
from storage.jobs.seals import SealStore
from storage.jobs.store import JobStore
from storage.transcript.writer import JobWriter, TranscriptWriter

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds that a test waits for anything; far more than it needs."""
SECRET = "a secret for tests"


async def eventually(look: Callable[[], Awaitable[T]]) -> T:
    """The first true answer of ``look``. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while not (answer := await look()):  # noqa: ASYNC110 - what it looks at is in another process, mostly
            await asyncio.sleep(0.02)
    return answer


class Gate:
    """A place where the service waits until the test lets it go on."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def pass_through(self) -> None:
        self._reached.set()
        await self._opened.wait()

    async def reached(self) -> None:
        """The service is there."""
        async with asyncio.timeout(PATIENCE):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()


Step = ModelEvent | Exception | Gate | float
"""Of a scripted answer: an event, an error, a place to wait, or seconds to sleep."""

USAGE = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
STOP = Finish("stop", USAGE)


def text(*pieces: str) -> list[Step]:
    return [TextDelta(Channel.CONTENT, piece) for piece in pieces]


HELLO: Sequence[Step] = [*text("Hello ", "there"), STOP]


def rest(script: Sequence[Step], said: str) -> Iterator[Step]:
    """A script without the text that was said already, if it says that and more; else it is what follows it."""
    whole = "".join(step.text for step in script if isinstance(step, TextDelta))
    if whole == said or not whole.startswith(said):
        said = ""
    for step in script:
        if not isinstance(step, TextDelta):
            yield step
        elif len(step.text) > len(said):
            yield step._replace(text=step.text[len(said) :])
        said = said[len(step.text) :] if isinstance(step, TextDelta) else said


class ScriptedModel:
    """A ChatModel with a script per call; the last one repeats. Without scripts it says hello."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = list(scripts) or [HELLO]
        self.requests: list[ChatRequest] = []
        self.continued: list[str | None] = []
        """Of each call, the text that it should go on from."""
        self.open_streams = 0

    @property
    def calls(self) -> int:
        return len(self.requests)

    def script(self, request: ChatRequest) -> Sequence[Step]:
        """Of the call that begins."""
        return self.scripts[min(self.calls, len(self.scripts) - 1)]

    def lane(self, model: str) -> str:
        return f"scripted:{model}"

    def continuing(self, model: str, form: str = "text") -> Continuing:
        return Continuing.KNOWN

    def unsent(self, request: ChatRequest, text: str) -> str:
        return ""

    async def stream(self, request: ChatRequest, continue_from: str | None = None) -> AsyncGenerator[ModelEvent, None]:
        script = self.script(request)
        self.requests.append(request)
        self.continued.append(continue_from)
        self.open_streams += 1
        try:
            for step in rest(script, continue_from or ""):
                if isinstance(step, Gate):
                    await step.pass_through()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.open_streams -= 1


class PromptedModel(ScriptedModel):
    """A ChatModel with scripts by the user's words, one for each call about them; it says hello to all others."""

    def __init__(self, scripts: Mapping[str, Sequence[Sequence[Step]]]) -> None:
        super().__init__()
        self.by_words = scripts

    def script(self, request: ChatRequest) -> Sequence[Step]:
        scripts = self.by_words.get(words(request), self.scripts)
        return scripts[min(self.calls_about(words(request)), len(scripts) - 1)]

    def prompts(self) -> list[str]:
        """The words of all calls, in order."""
        return [words(request) for request in self.requests]

    def calls_about(self, prompt: str) -> int:
        return sum(words(request) == prompt for request in self.requests)


def words(request: ChatRequest) -> str:
    """The text of a request's first message."""
    return str(request.messages[0].content)


class Post(NamedTuple):
    """What a receiver got."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    at: datetime

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> WebhookEvent:
        """The event, its signature checked."""
        return verify(self.body, self.headers, secrets=SECRET, now=self.at)


OK = WebhookResponse(latency_ms=1, status_code=200)


def answered(status: int, **fields: Any) -> WebhookResponse:
    return WebhookResponse(latency_ms=1, status_code=status, **fields)


class ScriptedSender:
    """A WebhookSender with an answer per POST, in order; the last one repeats. A gate waits, then takes the next."""

    def __init__(self, *answers: WebhookResponse | Gate | Exception) -> None:
        self.answers = list(answers) or [OK]
        self.posts: list[Post] = []

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
        self.posts.append(Post(url, headers, body, datetime.now(UTC)))
        while True:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, WebhookResponse):
                return answer
            if isinstance(answer, Exception):
                raise answer
            await answer.pass_through()


class Gates(dict[str, Gate]):
    """Gates by the name of their place; a place without one is passed."""

    async def at(self, place: str) -> None:
        if place in self:
            await self[place].pass_through()

    async def around(self, name: str, work: Any) -> Any:
        """Do ``work`` between the places "before NAME" and "after NAME"."""
        try:
            await self.at(f"before {name}")
        except asyncio.CancelledError:
            work.close()
            raise
        result = await work
        await self.at(f"after {name}")
        return result


class GatedAccepts(AcceptStore):
    gates = Gates()

    async def accept(self, *args: Any, **kwargs: Any) -> JobHandle:
        return cast(JobHandle, await self.gates.around("accept", super().accept(*args, **kwargs)))


class GatedAttempts(AttemptStore):
    gates = Gates()

    async def claim(self, *args: Any, **kwargs: Any) -> Claim:
        return cast(Claim, await self.gates.around("claim", super().claim(*args, **kwargs)))


class GatedSeals(SealStore):
    gates = Gates()

    async def seal(self, *args: Any, **kwargs: Any) -> Any:
        return await self.gates.around("seal", super().seal(*args, **kwargs))


class GatedJobs(JobStore):
    """A job store with the places "before accept", "after accept", and the same for claim and seal."""

    def __init__(self, database: Database, gates: Gates) -> None:
        super().__init__(database)
        self.acceptance, self.attempts, self.seals = stores = (
            GatedAccepts(database),
            GatedAttempts(database),
            GatedSeals(database, webhook_body),
        )
        for store in stores:
            store.gates = gates


class GatedTranscript(TranscriptWriter):
    """A transcript writer with the place "after finish": the end is durable, and nobody knows yet."""

    gates = Gates()

    def open(self, claim: Claim, stale: Callable[[], bool] = lambda: False) -> JobWriter:
        job_writer = _GatedJobWriter(self, claim, stale)
        job_writer.gates = self.gates
        return job_writer


class _GatedJobWriter(JobWriter):
    gates = Gates()

    async def finish(self, record: FinishRecord) -> None:
        await super().finish(record)
        await self.gates.at("after finish")
