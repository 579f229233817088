"""`fallbackModels`: the next model continues the same answer, in its own lane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import update
from temporalio.client import Client
from temporalio.common import SearchAttributeKey

from chatjobs.contracts import BatchStatus, ChatRequest, Job, JobStatus, TextOrigin
from chatjobs.errors import InvalidRequest
from domain.errors import UpstreamInterrupted, UpstreamRateLimited, UpstreamRefused
from domain.ports import MODEL_NOT_FOUND, NO_ALLOWANCE, Continuing, Seam
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.engine.schema import attempts, lanes
from storage.rate_limits.limiter import Limiter
from storage.rate_limits.pauses import PauseStore
from tests.support.batches import submit_batch
from tests.support.factories import make_body
from tests.support.fakes import HELLO, Gate, ScriptedModel, Step, eventually, text
from tests.support.house import QUICK, House, house

pytestmark = pytest.mark.long

COMPLETED, FAILED = JobStatus.COMPLETED, JobStatus.FAILED
FIRST, SECOND, THIRD = "mistral-small-latest", "mistral-medium-latest", "ministral-8b-latest"
CUT = UpstreamInterrupted(code="upstream_cut")
DOWN = UpstreamInterrupted(code="upstream_unavailable", http_status=503)
UNKNOWN = UpstreamRefused(code=MODEL_NOT_FOUND, http_status=404)
FORBIDDEN = UpstreamRefused(code="upstream_unauthorized", http_status=401)
REFUSED = UpstreamRefused(code="upstream_rejected", http_status=400)


class Models(ScriptedModel):
    """Scripts by the model's name, one for each of its calls; the last one repeats."""

    def __init__(self, **scripts: Sequence[Sequence[Step]]) -> None:
        super().__init__()
        self.by_name: Mapping[str, Sequence[Sequence[Step]]] = {
            name: scripts.get(key, [HELLO]) for key, name in (("first", FIRST), ("second", SECOND), ("third", THIRD))
        }

    @property
    def called(self) -> list[str]:
        return [request.model for request in self.requests]

    def script(self, request: ChatRequest) -> Sequence[Step]:
        scripts = self.by_name[request.model]
        return scripts[min(self.called.count(request.model), len(scripts) - 1)]


@pytest.fixture
async def here(client: Client, database: Database) -> AsyncIterator[House]:
    limiter = Limiter(database, per_second=1000, timings=QUICK)
    async with house(client, database, model=Models(), limiter=limiter, timings=QUICK) as running:
        yield running


def script(here: House, **scripts: Sequence[Sequence[Step]]) -> Models:
    models = Models(**scripts)
    assert isinstance(here.model, Models)
    here.model.by_name = models.by_name
    return here.model


async def done(here: House, job_id: str, status: JobStatus) -> Job:
    job = await here.ended(job_id)
    assert job.status is status, job.error
    return job


async def test_an_outage_in_the_middle_of_an_answer(here: House) -> None:
    """The second model goes on from the last character; readers see one answer and no reset."""
    models = script(here, first=[[*text("Hel"), CUT], [DOWN]], second=[[Seam(True), *HELLO]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    watched = await here.watched(job_id)
    await done(here, job_id, COMPLETED)
    job = await here.ended(job_id)
    assert (job.content, watched.resets, job.model) == ("Hello there", 0, SECOND)
    assert models.called == [FIRST, FIRST, FIRST, FIRST, SECOND], "three failures in a row show that it is down"
    assert models.continued == [None, *["Hel"] * 4]
    assert [attempt.model for attempt in job.attempts] == models.called
    assert job.provenance == (
        TextOrigin(start=0, end=3, attempt=1, model=FIRST),
        TextOrigin(start=3, end=11, attempt=5, model=SECOND, seam="confirmed"),
    )
    assert (await here.jobs.queries.request(job_id)).model == FIRST, "a replay begins with the first one again"


@pytest.mark.parametrize("reason", [MODEL_NOT_FOUND, NO_ALLOWANCE])
async def test_a_model_that_the_key_cannot_call_is_left_at_once(here: House, reason: str) -> None:
    models = script(here, first=[[UpstreamRefused(code=reason)]], second=[[UpstreamRefused(code=reason)]])
    job_id = await here.submit(fallbackModels=[SECOND, THIRD], model=FIRST)
    await done(here, job_id, COMPLETED)
    assert models.called == [FIRST, SECOND, THIRD]


async def test_the_last_models_error_is_the_jobs(here: House) -> None:
    models = script(here, first=[[UNKNOWN]], second=[[REFUSED]])
    job_id = await here.submit(fallbackModels=[SECOND, THIRD], model=FIRST)
    await done(here, job_id, FAILED)
    job = await here.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.model, models.called) == ("upstream_rejected", SECOND, [FIRST, SECOND])


async def test_retries_are_used_up_per_model(here: House) -> None:
    """`retry.attempts` failures of the first model, then as many of the second."""
    models = script(here, first=[[*text("Hel"), CUT], [Seam(False), CUT]], second=[[CUT]])
    retry = {"attempts": 2}
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST, retry=retry)
    await done(here, job_id, FAILED)
    job = await here.ended(job_id)
    assert (models.called, job.content) == ([FIRST, FIRST, SECOND, SECOND], "Hel")
    assert job.error is not None
    assert job.error.code == "upstream_cut"


async def test_a_rate_limit_is_waited_for_up_to_fallback_seconds(here: House) -> None:
    models = script(here, first=[[UpstreamRateLimited(retry_after=3)], HELLO])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await done(here, job_id, COMPLETED)
    assert models.called == [FIRST, FIRST]


async def test_a_longer_rate_limit_is_not(here: House) -> None:
    """Neither by the job that was refused nor by those after it, which do not call the first model at all."""
    models = script(here, first=[[UpstreamRateLimited(retry_after=100)], HELLO])
    for message in ("one", "two"):
        await done(here, await here.submit(message, fallbackModels=[SECOND], model=FIRST), COMPLETED)
    assert models.called == [FIRST, SECOND, SECOND]
    impatient = await here.submit("three", fallbackModels=[SECOND], model=FIRST, limits={"fallbackSeconds": 200})
    place = await _queued(here, impatient)
    assert (place, models.called[3:]) == (FIRST, []), "that one waits for the first model"
    await cancel(here, impatient)


async def cancel(here: House, job_id: str) -> Job:
    await here.jobs.seals.request_cancel(job_id)
    await here.intake.send_cancel(job_id)
    return await here.ended(job_id)


async def _queued(here: House, job_id: str) -> str:
    """The model for which a job waits, once it does."""
    limiter = here.parts.limiter
    assert limiter is not None
    async with asyncio.timeout(30):
        while not await limiter.queue_places({job_id}):  # noqa: ASYNC110 - another process may write it
            await asyncio.sleep(0.02)
    return (await here.jobs.queries.get(job_id)).model


async def test_a_model_that_is_down_is_not_called_by_others(here: House) -> None:
    limiter = here.parts.limiter
    assert limiter is not None
    models = script(here, first=[[DOWN]])
    for number in range(3):
        await limiter.record_failure(models.lane(FIRST), f"other-{number}", 1, "down", 60)
    await done(here, await here.submit(fallbackModels=[SECOND], model=FIRST), COMPLETED)
    assert models.called == [SECOND]


async def test_a_pause_of_ours_is_no_outage(here: House) -> None:
    """Somebody has paused the first lane: the job waits, whatever its fallback."""
    pauses = PauseStore(here.parts.database)
    pause = await pauses.pause(lane=here.model.lane(FIRST))
    models = script(here)
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    assert await _queued(here, job_id) == FIRST
    await pauses.resume(pause.pause_id)
    await cancel(here, job_id)
    assert models.called == []


async def test_the_next_models_lane_is_respected(here: House) -> None:
    """Somebody has paused it: the job waits there."""
    await PauseStore(here.parts.database).pause(lane=here.model.lane(SECOND))
    models = script(here, first=[[UNKNOWN]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    assert await _queued(here, job_id) == SECOND
    await cancel(here, job_id)
    assert models.called == [FIRST]


async def test_with_all_models_down_a_job_waits_for_its_own(here: House) -> None:
    limiter = here.parts.limiter
    assert limiter is not None
    models = script(here)
    for name in (FIRST, SECOND):
        for number in range(3):
            await limiter.record_failure(models.lane(name), f"other-{number}", 1, "down", 60)
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    assert await _queued(here, job_id) == FIRST
    await limiter.record_answer(models.lane(SECOND), "other-0")
    await done(here, job_id, COMPLETED)
    assert models.called == [SECOND]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["tools", "JSON"],
)
async def test_tools_and_json_start_over_on_the_next_model(here: House, fields: dict[str, Any]) -> None:
    models = script(here, first=[[*text('{"a'), CUT], [UNKNOWN]], second=[[*text('{"a": 1}'), HELLO[-1]]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST, **fields)
    watched = await here.watched(job_id)
    job = await here.ended(job_id)
    assert (job.content, job.epoch > 1, models.continued[-1], watched.resets > 0) == ('{"a": 1}', True, None, True)
    assert [(origin.attempt, origin.model) for origin in job.provenance] == [(3, SECOND)]
    assert (job.wasted_tokens or 0) > 0


async def test_a_model_that_cannot_continue_starts_over(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    models = script(here, first=[[*text("Hel"), CUT], [UNKNOWN]])

    def continuing(name: str, form: str = "text") -> Continuing:
        return Continuing.KNOWN if name == FIRST else Continuing.UNPROVEN

    monkeypatch.setattr(models, "continuing", continuing)
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    watched = await here.watched(job_id)
    job = await here.ended(job_id)
    assert (job.content, watched.resets, models.continued) == ("Hello there", 1, [None, "Hel", None])


async def test_json_does_not_have_further_models_measured(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another model it starts over in any case, and a measurement is paid for."""
    models, questions = script(here, first=[[*text('{"a": 1}'), HELLO[-1]], HELLO]), list[str]()

    def continuing(name: str, form: str = "text") -> Continuing:
        questions.append(name)
        return Continuing.UNPROVEN

    monkeypatch.setattr(models, "continuing", continuing)
    wanted = {"type": "json_object"}
    job = await here.ended(await here.submit(fallbackModels=[SECOND], model=FIRST, response_format=wanted))
    assert (job.content, SECOND in questions) == ('{"a": 1}', False)
    await here.ended(await here.submit(fallbackModels=[SECOND], model=FIRST))
    assert SECOND in questions


async def test_a_resumed_job_begins_with_its_first_model(here: House) -> None:
    models = script(here, first=[[*text("Hel"), UNKNOWN], HELLO], second=[[FORBIDDEN]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await done(here, job_id, FAILED)
    await here.intake.start(await here.jobs.seals.resume(job_id))
    watched = await here.watched(job_id)
    await here.ended(job_id)
    assert (watched.ends, "".join(watched.texts.values())) == ([COMPLETED], "Hello there")
    assert models.called == [FIRST, SECOND, FIRST]


async def test_items_of_a_batch_change_their_model(here: House) -> None:
    models = script(here, first=[[UNKNOWN]])
    body = {"model": FIRST, "fallbackModels": [SECOND]}
    bodies = [make_body(prompt, **body) for prompt in "abc"]
    batch_id = await submit_batch(here.parts.database, here.client, bodies)
    queries = BatchQueries(here.parts.database)

    async def ended() -> bool:
        return (await queries.get(batch_id)).status is BatchStatus.COMPLETED

    await eventually(ended)
    assert sorted(models.called) == sorted([FIRST, SECOND] * 3)


async def test_a_cancel_during_the_second_models_answer(here: House) -> None:
    gate = Gate()
    script(here, first=[[*text("Hel"), UNKNOWN]], second=[[Seam(False), *text("Hello"), gate]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await here.readable(job_id, 5)
    job = await cancel(here, job_id)
    assert (job.status, job.content) == (JobStatus.CANCELLED, "Hello")
    assert [(one.start, one.end, one.model, one.seam) for one in job.provenance] == [
        (0, 3, FIRST, None),
        (3, 5, SECOND, "unconfirmed"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": FIRST, "fallbackModels": [FIRST]},
        {"model": FIRST, "fallbackModels": [SECOND, SECOND]},
        {"fallbackModels": ["a", "b", "c", "d", "e"]},
        {"fallbackModels": ["not a model"]},
        {"fallbackModels": "a"},
    ],
)
def test_requests_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        ChatRequest.parse({"messages": [{"role": "user", "content": "Hello"}], **fields})


async def test_temporal_lists_the_job_under_its_last_model(here: House) -> None:
    script(here, first=[[UNKNOWN]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await done(here, job_id, COMPLETED)
    described = await here.run(job_id).describe()
    assert described.typed_search_attributes.get(SearchAttributeKey.for_keyword("ChatModel")) == SECOND


async def test_the_length_limit_holds_for_all_models_together(here: House) -> None:
    models = script(here, first=[[*text("one ", "two ", "three "), UNKNOWN]])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST, max_tokens=10)
    await here.ended(job_id)
    assert [request.max_tokens for request in models.requests] == [10, 7]
    assert models.requests[1].fallback_models == (SECOND,)


async def test_a_pause_that_begins_during_a_refused_call_is_waited_for(here: House) -> None:
    """The refusal is short; the rest of the wait is ours."""
    gate, pauses = Gate(), PauseStore(here.parts.database)
    models = script(here, first=[[gate, UpstreamRateLimited(retry_after=2)], HELLO])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await gate.reached()
    pause = await pauses.pause(lane=models.lane(FIRST))
    gate.open()
    assert await _queued(here, job_id) == FIRST
    await pauses.resume(pause.pause_id)
    await cancel(here, job_id)
    assert models.called == [FIRST]


async def test_jobs_of_a_batch_try_a_model_again_that_was_down(here: House) -> None:
    """Also where nothing else calls it: the next model has room for all of them."""
    limiter = here.parts.limiter
    assert limiter is not None
    models = script(here)
    for number in range(3):
        await limiter.record_failure(models.lane(FIRST), f"other-{number}", 1, "down", 0)
    await _over(here, models.lane(FIRST))
    bodies = [make_body(prompt, model=FIRST, fallbackModels=[SECOND]) for prompt in "abc"]
    batch_id = await submit_batch(here.parts.database, here.client, bodies)
    queries = BatchQueries(here.parts.database)

    async def ended() -> bool:
        return (await queries.get(batch_id)).status is BatchStatus.COMPLETED

    await eventually(ended)
    assert FIRST in models.called


async def _over(here: House, lane: str) -> None:
    """The wait after a lane's outage is over: a job may try the model again."""
    async with here.parts.database.write() as connection:
        await connection.execute(update(lanes).where(lanes.c.name == lane).values(open_until=1))


async def test_a_resumed_job_begins_with_its_first_model_although_that_was_down(here: House) -> None:
    limiter = here.parts.limiter
    assert limiter is not None
    models = script(here, second=[[*text("Hel"), FORBIDDEN]])
    for number in range(3):
        await limiter.record_failure(models.lane(FIRST), f"other-{number}", 1, "down", 60)
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await done(here, job_id, FAILED)
    await limiter.record_answer(models.lane(FIRST), "other-0")
    await here.intake.start(await here.jobs.seals.resume(job_id))
    await done(here, job_id, COMPLETED)
    assert models.called == [SECOND, FIRST]


async def test_failures_before_a_resume_are_forgotten(here: House) -> None:
    gate = Gate()
    models = script(here, first=[[*text("Hel"), CUT], [CUT], [gate], [CUT], HELLO])
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    await gate.reached()
    await cancel(here, job_id)
    long_ago = {"started_at": attempts.c.started_at - 100_000_000, "ended_at": attempts.c.ended_at - 100_000_000}
    async with here.parts.database.write() as connection:
        await connection.execute(update(attempts).where(attempts.c.job_id == job_id).values(long_ago))
    await here.intake.start(await here.jobs.seals.resume(job_id))
    await done(here, job_id, COMPLETED)
    assert models.called == [FIRST] * 5


async def test_a_job_does_not_move_to_a_model_that_is_paused(here: House) -> None:
    """Its own one is back sooner than somebody resumes the other."""
    limiter = here.parts.limiter
    assert limiter is not None
    models = script(here)
    pause = await PauseStore(here.parts.database).pause(lane=models.lane(SECOND))
    for number in range(3):
        await limiter.record_failure(models.lane(FIRST), f"other-{number}", 1, "down", 60)
    job_id = await here.submit(fallbackModels=[SECOND], model=FIRST)
    assert await _queued(here, job_id) == FIRST
    await limiter.record_answer(models.lane(FIRST), "other-0")
    await done(here, job_id, COMPLETED)
    assert (models.called, pause.lane) == ([FIRST], models.lane(SECOND))
