"""Structured answers: checked before the job completes, repaired by further calls, or failed with their text kept.

In this process, against a real Temporal and a real database, with the real client of Mistral over the simulator's wire.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from temporalio.client import Client

from chatjobs.contracts import Channel, Job, JobStatus
from chatjobs.errors import InvalidRequest
from domain.continuing import AS_MISTRAL, Drops, Practice, Way
from domain.values import Cursor
from providers.mistral.chat import MistralChat
from storage.batches.queries import BatchQueries
from storage.engine.database import Database
from storage.jobs import repairs
from tests.support.batches import submit_batch
from tests.support.factories import make_body
from tests.support.fakes import PATIENCE, PromptedModel, ScriptedModel, eventually, text
from tests.support.fakes import STOP as END
from tests.support.house import HOOK, QUICK, House, house
from tests.support.simulator_process import SimulatorProcess, prompt, simulator

COMPLETED, FAILED, INCOMPLETE = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.INCOMPLETE
MISMATCH, FINISHED, CUT = "schema_mismatch", "finished", "upstream_cut"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
WANTED = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
RIGHT = '{"city": "Lyon", "people": 520774}'
WRONG = '{"city": "Lyon", "people": "half a million"}'
WORSE = '{"city": "Lyon"}'
PROSE = "Lyon has about half a million people."
PROBLEM = "Your answer is not the JSON"
CONTINUES = Practice(Way.PREFIX, Drops.SPACES, None, frozenset({"json_object", "json_schema"}))


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


@pytest.fixture
async def here(client: Client, database: Database, sim: SimulatorProcess) -> AsyncIterator[House]:
    async for running in served(client, database, sim, AS_MISTRAL):
        yield running


@pytest.fixture
async def continuing(client: Client, sqlite: Database, sim: SimulatorProcess) -> AsyncIterator[House]:
    """The server was seen to continue JSON."""
    async for running in served(client, sqlite, sim, CONTINUES):
        yield running


async def served(client: Client, database: Database, sim: SimulatorProcess, practice: Practice) -> AsyncIterator[House]:
    sim.forget()
    model = MistralChat("a key", sim.url, practice=practice)
    async with house(client, database, model=model, timings=QUICK) as running:
        yield running
    await model.aclose()


async def told(here: House, script: dict[str, Any], **fields: Any) -> tuple[Job, list[str]]:
    """The job at its end, and why a reader from the beginning dropped text. The reader has the stored text."""
    job_id = await here.submit(prompt("city", **script), **{"response_format": WANTED} | fields)
    resets, content, cursor = list[str](), "", Cursor(job_id)
    async with asyncio.timeout(PATIENCE):
        while True:
            piece = await here.reader.wait(cursor)
            if piece.reset:
                resets, content = [*resets, str(piece.reset_reason)], ""
            content += "".join(run.text for run in piece.runs if run.channel is Channel.CONTENT)
            if piece.status.terminal:
                break
            cursor = piece.cursor
    job = await here.ended(job_id)
    assert content == job.content
    return job, resets


def agree(resets: list[str], *reasons: str) -> bool:
    """Whether a reader was told of resets with these reasons, which it learns of together if it is slow."""
    return resets[-1:] == list(reasons[-1:]) and set(resets) <= set(reasons)


def outcomes(job: Job) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


def cut(after: int) -> dict[str, Any]:
    return {"kind": "cut", "after": after}


# ------------------------------------------------------------------------------------------------- the check


@pytest.mark.parametrize("answer", [RIGHT, f"\n  {RIGHT}\n", '{"people":0,"city":"\\ud83c\\udf0a"}'])
async def test_an_answer_that_matches(here: House, answer: str) -> None:
    job, resets = await told(here, {"text": answer})
    assert (job.status, job.content, outcomes(job), resets) == (COMPLETED, answer, [FINISHED], [])


async def test_an_answer_that_does_not_match_is_repaired(here: House, sim: SimulatorProcess) -> None:
    """By one further call with the answer and what is wrong; readers drop the wrong text."""
    job, resets = await told(here, {"text": WRONG, "repairs": [{"text": RIGHT}]})
    assert (job.status, job.content, job.error) == (COMPLETED, RIGHT, None)
    assert (outcomes(job), job.epoch, resets) == ([MISMATCH, FINISHED], 2, [MISMATCH])
    first, repair = sim.requests()
    assert repair["parameters"]["response_format"] == first["parameters"]["response_format"]
    *before, answer, problem = repair["messages"]
    assert before == first["messages"]
    assert (answer["role"], answer["content"]) == ("assistant", WRONG)
    assert problem["role"] == "user"
    assert "/people must be of type integer" in problem["content"]
    assert job.usage is not None
    assert job.usage.prompt_tokens > first["tokens_sent"]


@pytest.mark.parametrize("answer", [PROSE, f"```json\n{RIGHT}\n```", f"{RIGHT} {RIGHT}", '{"city": NaN}', " \n "])
async def test_what_is_not_json(here: House, sim: SimulatorProcess, answer: str) -> None:
    job, resets = await told(here, {"text": answer, "repairs": [{"text": RIGHT}]})
    assert (job.status, job.content, resets) == (COMPLETED, RIGHT, [MISMATCH])
    assert PROBLEM in sim.requests()[-1]["prompt"]


@pytest.mark.parametrize(("answer", "whole"), [("[1]", False), ("{}", True), (PROSE, False), ('{"a": [{}]}', True)])
async def test_any_object(here: House, answer: str, whole: bool) -> None:
    """``json_object`` promises an object."""
    job, _ = await told(here, {"text": answer}, response_format={"type": "json_object"}, maxRepairs=0)
    assert (job.status is COMPLETED, job.content) == (whole, answer)
    assert whole or (job.error and job.error.code == MISMATCH)


async def test_after_the_last_repair_the_job_fails_and_keeps_its_text(here: House, sim: SimulatorProcess) -> None:
    """With the place, and none of the answer's words, in what Temporal and the webhook get to know."""
    script = {"text": WRONG, "repairs": [{"text": PROSE}, {"text": WORSE}]}
    job, resets = await told(here, script, maxRepairs=2, webhook={"url": HOOK})
    assert (job.status, job.content, outcomes(job)) == (FAILED, WORSE, [MISMATCH] * 3)
    assert agree(resets, MISMATCH, MISMATCH)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == (MISMATCH, True)
    assert job.error.message == (
        "The answer is not the JSON that was asked for: it lacks the property people (after 2 repairs)"
    )
    assert len(sim.requests()) == 3
    (post,) = here.sender.posts
    assert post.event.event.value == "chat.failed"
    assert WORSE in json.loads(post.body)["data"]["content"]


async def test_no_repair_at_all(here: House, sim: SimulatorProcess) -> None:
    job, _ = await told(here, {"text": WRONG}, maxRepairs=0)
    assert (job.status, job.content, outcomes(job)) == (FAILED, WRONG, [MISMATCH])
    assert job.error is not None
    assert job.error.message == "The answer is not the JSON that was asked for: /people must be of type integer"
    assert len(sim.requests()) == 1


async def test_nothing_private_reaches_temporal(here: House) -> None:
    """Names that only the answer has are left out of the error."""
    answer = '{"Zacharias Zuse": {"age": "secret"}}'
    schema = {"type": "object", "additionalProperties": {"type": "object", "properties": {"age": {"type": "integer"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "ages", "schema": schema}}
    job, _ = await told(here, {"text": answer}, maxRepairs=0, response_format=wanted)
    assert job.error is not None
    assert job.error.message.endswith(": /*/age must be of type integer")
    assert "Zuse" not in (await here.failure(job.job_id)).message


async def test_what_is_not_checked(here: House) -> None:
    """An answer that was cut off at its length limit, and one that calls tools."""
    job, _ = await told(here, {"text": WRONG}, max_tokens=5)
    assert (job.status, outcomes(job)) == (INCOMPLETE, [FINISHED])
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    job, _ = await told(here, {"tool_calls": [{"name": "weather"}]}, tools=[tool])
    assert (job.status, outcomes(job), len(job.tool_calls or ())) == (COMPLETED, [FINISHED], 1)
    job, _ = await told(here, {"text": PROSE}, response_format={"type": "text"})
    assert job.status is COMPLETED


async def test_the_callers_own_beginning_is_a_part_of_the_document(here: House, sim: SimulatorProcess) -> None:
    """The answer goes on from it, and the repair begins with it again."""
    own = {"role": "assistant", "content": '{"city": "Lyon",', "prefix": True}
    message = prompt("own", text=' "people": "many"}', repairs=[{"text": ' "people": 520774}'}])
    job_id = await here.submit(message, messages=[{"role": "user", "content": message}, own], response_format=WANTED)
    job = await here.ended(job_id)
    assert (job.status, outcomes(job)) == (COMPLETED, [MISMATCH, FINISHED])
    assert json.loads('{"city": "Lyon",' + str(job.content)) == json.loads(RIGHT)
    roles = [message["role"] for message in sim.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]


async def test_the_limit_of_tokens_holds_for_repairs(here: House) -> None:
    """The wrong text is not given up for a repair that may not be made."""
    job, resets = await told(here, {"text": WRONG}, limits={"maxTotalTokens": 450}, maxRepairs=5)
    assert (job.status, job.error and job.error.code, job.content) == (FAILED, "max_total_tokens", WRONG)
    assert resets == []


@pytest.mark.long
async def test_a_check_that_takes_for_ever(here: House) -> None:
    """Ends the job with a code of its own, never with a success; others are checked meanwhile."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    script = {"text": json.dumps({"a": "a" * 40 + "!"})}
    slow = [asyncio.create_task(told(here, script, response_format=wanted)) for _ in range(2)]
    job, _ = await told(here, {"text": RIGHT})
    assert job.status is COMPLETED
    for job, _ in await asyncio.gather(*slow):
        assert (job.status, job.error and job.error.code, job.content) == (
            FAILED,
            "schema_check_failed",
            script["text"],
        )
        assert job.error is not None
        assert job.error.code == "schema_check_failed"
        assert "takes too long" in job.error.message


async def test_a_schema_that_cannot_be_checked_is_refused(here: House) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(InvalidRequest) as caught:
        await here.accept(response_format=wanted)
    (problem,) = caught.value.problems
    assert problem.pointer == "/response_format/json_schema/schema/properties/a/$ref"
    assert "nothing is fetched" in problem.message


# ---------------------------------------------------------------------------------------------- interruptions


async def test_interrupted_everywhere(here: House, sim: SimulatorProcess) -> None:
    """In the wrong answer and in its repair, which starts over with the same words and costs no second repair."""
    script = {"text": WRONG, "faults": [cut(4)], "repairs": [{"text": RIGHT, "faults": [cut(3), {"kind": 503}]}]}
    job, resets = await told(here, script)
    assert (job.status, job.content) == (COMPLETED, RIGHT)
    assert outcomes(job) == [CUT, MISMATCH, CUT, "upstream_unavailable", FINISHED]
    assert agree(resets, "response_format", MISMATCH, "response_format")
    assert job.epoch == 4
    repairs = [call for call in sim.requests() if PROBLEM in call["prompt"]]
    assert len(repairs) == 3
    assert len({json.dumps(call["messages"]) for call in repairs}) == 1


async def test_json_continues_where_the_server_continues_it(continuing: House, sim: SimulatorProcess) -> None:
    """No token is generated twice, in the wrong answer and in its repair."""
    script = {"text": WRONG, "faults": [cut(4)], "repairs": [{"text": RIGHT, "faults": [cut(3), cut(2)]}]}
    job, resets = await told(continuing, script)
    assert (job.status, job.content, resets) == (COMPLETED, RIGHT, [MISMATCH])
    assert outcomes(job) == [CUT, MISMATCH, CUT, CUT, FINISHED]
    generated = sum(call["tokens_sent"] for call in sim.requests())
    assert generated == sum(len(sim.answer(prompt(text=text))["tokens"]) for text in (WRONG, RIGHT))


async def test_segments_of_json(continuing: House) -> None:
    """The joined text is what is checked."""
    job, _ = await told(continuing, {"text": RIGHT}, max_tokens=4, maxSegments=10)
    assert (job.status, job.content) == (COMPLETED, RIGHT)
    assert set(outcomes(job)) == {"segment", FINISHED}
    job, _ = await told(continuing, {"text": WRONG, "repairs": [{"text": RIGHT}]}, max_tokens=4, maxSegments=10)
    assert (job.status, job.content) == (COMPLETED, RIGHT)
    assert outcomes(job).count(MISMATCH) == 1


async def test_policies_hold_for_repairs(continuing: House) -> None:
    script = {"text": WRONG, "repairs": [{"text": RIGHT, "faults": [cut(3)]}]}
    job, resets = await told(continuing, script, onInterrupt="restart")
    assert (job.status, job.content, job.epoch, agree(resets, MISMATCH, "restart")) == (COMPLETED, RIGHT, 3, True)
    job, resets = await told(continuing, script, onInterrupt="fail")
    assert (job.status, job.error and job.error.code, resets) == (FAILED, "interrupted", [MISMATCH])


async def test_half_of_a_pair_at_the_end(client: Client, sqlite: Database) -> None:
    """What is stored is what is checked: the lone half becomes a character behind the document."""
    model = ScriptedModel([*text(RIGHT, "\ud83c"), END], [*text(RIGHT), END])
    async with house(client, sqlite, model=model, timings=QUICK) as here:
        job = await here.ended(await here.submit(response_format=WANTED))
    assert (job.status, job.content, outcomes(job)) == (COMPLETED, RIGHT, [MISMATCH, FINISHED])


# ---------------------------------------------------------------------------------- after the end, and elsewhere


async def test_a_failed_job_that_is_resumed_has_its_repairs_again(client: Client, database: Database) -> None:
    """It begins with a repair of the last answer; a replay begins anew."""
    scripts = [[*text(answer), END] for answer in (WRONG, PROSE, WORSE, RIGHT, RIGHT)]
    async with house(client, database, model=ScriptedModel(*scripts), timings=QUICK) as here:
        job_id = await here.submit(response_format=WANTED)
        assert (await here.ended(job_id)).status is FAILED
        await here.intake.start(await here.jobs.seals.resume(job_id))
        await eventually(lambda: is_completed(here, job_id))
        job = await here.jobs.queries.get(job_id)
        assert (job.content, outcomes(job)) == (RIGHT, [MISMATCH, MISMATCH, MISMATCH, FINISHED])
        asked = [[str(message.content) for message in request.messages] for request in here.model.requests]
        assert [messages[1:2] for messages in asked] == [[], [WRONG], [PROSE], [WORSE]]
        replayed = await here.intake.replay(job_id, tenant="default")
        await here.start(replayed.job_id)
        assert (await here.ended(replayed.job_id)).status is COMPLETED
        assert len(here.model.requests[-1].messages) == 1


async def is_completed(here: House, job_id: str) -> bool:
    return (await here.jobs.queries.get(job_id)).status is COMPLETED


async def test_an_answer_that_was_deleted_leaves_no_wrong_one(client: Client, database: Database) -> None:
    scripts = [[*text(answer), END] for answer in (WRONG, RIGHT)]
    async with house(client, database, model=ScriptedModel(*scripts), timings=QUICK) as here:
        job_id = await here.submit(response_format=WANTED)
        await here.ended(job_id)
        async with database.read() as connection:
            kept = await repairs.latest(connection, job_id)
        assert kept is not None
        assert (kept.epoch, kept.content) == (1, WRONG)
        await here.jobs.seals.delete(job_id, "default")
        async with database.read() as connection:
            assert await repairs.latest(connection, job_id) is None


async def test_items_of_a_batch(client: Client, sqlite: Database) -> None:
    """A slice of a batch makes the repairs of its items, and others are answered meanwhile."""
    scripts = {
        "right": [[*text(RIGHT), END]],
        "wrong": [[*text(WRONG), END], [*text(RIGHT), END]],
        "never": [[*text(WRONG), END]],
    }
    model = PromptedModel(scripts)
    async with house(client, sqlite, model=model, timings=QUICK):
        bodies = [make_body(words, response_format=WANTED) for words in scripts]
        batch_id = await submit_batch(sqlite, client, bodies)
        async with asyncio.timeout(PATIENCE):
            await client.get_workflow_handle(batch_id).result()
        batch = await BatchQueries(sqlite).get(batch_id)
        assert (batch.counts.completed, batch.counts.failed) == (2, 1)
        assert sorted(model.prompts()) == ["never", "never", "right", "wrong", "wrong"]


async def test_a_job_that_goes_on_with_a_conversation(here: House, sim: SimulatorProcess) -> None:
    """The repair comes behind the whole conversation."""
    first, _ = await told(here, {"text": RIGHT})
    second, _ = await told(here, {"text": WRONG, "repairs": [{"text": RIGHT}]}, previousJobId=first.job_id)
    assert (second.status, second.content, second.thread) == (COMPLETED, RIGHT, first.job_id)
    roles = [message["role"] for message in sim.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


async def test_straight_through_temporal(here: House) -> None:
    """The run of a request with a schema that cannot be checked fails at once, without a call."""
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}
    handle = await here.direct({"request": make_body(response_format=wanted)})
    job = await here.ended(handle.id)
    assert (job.status, job.error and job.error.code, job.attempts) == (FAILED, "validation_failed", ())
    handle = await here.direct({"request": make_body(prompt("direct", text=WRONG), response_format=WANTED)})
    job = await here.ended(handle.id)
    assert (job.status, outcomes(job)) == (FAILED, [MISMATCH, MISMATCH])
    assert (await here.failure(handle.id)).type == MISMATCH
