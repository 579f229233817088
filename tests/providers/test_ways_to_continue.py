"""Servers that continue a text in their own ways, or not at all: an interrupted answer is never glued.

The simulator speaks as each kind of server. What is assumed of a server comes from the setting; what is not assumed is
measured once, and remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from temporalio.client import Client

from chatjobs.contracts import Channel, ChatRequest, Job, JobStatus
from chatjobs.errors import InvalidRequest
from dispatch import measuring, server_knowledge
from dispatch.measuring import MeasuringPace
from dispatch.server_knowledge import PrefixRule
from domain.continuing import AS_MISTRAL, NEVER, USUAL, VERSION, Drops, Practice, Way
from domain.ports import Continuing
from domain.settings import Settings
from domain.timings import Timings
from domain.values import Cursor
from providers.mistral.chat import MOST_TO_MEASURE, MistralChat
from providers.mistral.probe import FORMATS, JSON_PROBES, MOST_TOKENS, PROBES, measured
from storage.continuations import ContinuationStore, MeasuredPractice
from storage.engine.database import Database
from storage.engine.schema import continuations
from storage.transcript.reader import TranscriptReader
from tests.support.fakes import PATIENCE
from tests.support.gateway import alone, gateway
from tests.support.house import House, house
from tests.support.simulator_process import SimulatorProcess, prompt, simulator

pytestmark = pytest.mark.long

COMPLETED = JobStatus.COMPLETED
WAYS = (Way.PREFIX, Way.CONTINUE_FINAL_MESSAGE, Way.ASSISTANT)
TEXT = " ".join(f"word{number}" for number in range(40))
NO_FORMATS: frozenset[str] = frozenset()
STEADY = Timings(longest_failure_pause_seconds=0.01)
"""Pauses do not grow."""
Submit = Callable[..., Awaitable[tuple[Job, str | None, str]]]


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorProcess]:
    with simulator() as running:
        yield running


@pytest.fixture
async def submit(client: Client, sqlite: Database, sim: SimulatorProcess) -> AsyncIterator[Submit]:
    """Run a job under a practice and a script: the job, why its text was dropped, and its message."""
    async with AsyncExitStack() as closing:

        async def run(practice: Practice | None, script: dict[str, Any], **fields: Any) -> tuple[Job, str | None, str]:
            model = MistralChat("a key", sim.url, practice=practice)
            closing.push_async_callback(model.aclose)
            async with house(client, sqlite, model=model, timings=STEADY) as here:
                message = prompt("go on", **script)
                job = await asyncio.wait_for(followed(here, message, **fields), PATIENCE)
                return job, await reset_of(here.reader, job), message

        yield run


async def followed(here: House, message: str, **fields: Any) -> Job:
    """The job at its end, whose reader has the stored text."""
    job_id = await here.submit(message, **fields)
    seen = await here.watched(job_id)
    job = await here.ended(job_id)
    assert seen.texts[Channel.CONTENT] == job.content
    return job


async def reset_of(reader: TranscriptReader, job: Job) -> str | None:
    if job.epoch == 1:
        return None
    return (await reader.read(Cursor(job.job_id, 1, 1))).reset_reason


def cut(after: int) -> dict[str, Any]:
    return {"kind": "cut", "after": after}


# ------------------------------------------------------------------------------------------------------ ways


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_continues(submit: Submit, sim: SimulatorProcess, way: Way) -> None:
    """Of the server that wants it; nothing is said twice, and no reader notices."""
    job, reset, message = await submit(USUAL[way], {"text": TEXT, "continues": way.value, "faults": [cut(20), cut(5)]})
    assert (job.status, job.content, reset) == (COMPLETED, TEXT, None)
    assert sum(call["tokens_sent"] for call in sim.requests(message)) == len(sim.answer(message)["tokens"])


@pytest.mark.parametrize("continues", ["never", "continue_final_message", "assistant"])
@pytest.mark.parametrize("practice", [None, NEVER], ids=["unproven", "never"])
async def test_a_server_that_is_not_known_to_continue_starts_over(
    submit: Submit, sim: SimulatorProcess, continues: str, practice: Practice | None
) -> None:
    """It is not asked to continue, and readers are told why their text goes."""
    script = {"text": TEXT, "continues": continues, "faults": [cut(20), cut(5)]}
    job, reset, message = await submit(practice, script)
    assert (job.status, job.content) == (COMPLETED, TEXT)
    assert reset == ("unproven" if practice is None else "no_continuation")
    assert [call["prefix"] for call in sim.requests(message)] == [None, None, None]


async def test_a_server_that_is_not_known_to_continue_has_one_segment(submit: Submit, sim: SimulatorProcess) -> None:
    script = {"text": TEXT, "continues": "never"}
    job, reset, message = await submit(None, script, max_tokens=10, maxSegments=3)
    assert (job.status, reset, len(sim.requests(message))) == (JobStatus.INCOMPLETE, None, 1)


OWN = {"role": "assistant", "content": "I said: ", "prefix": True}


@pytest.mark.parametrize("way", WAYS)
async def test_the_callers_own_prefix_is_sent_as_each_server_wants_it(
    submit: Submit, sim: SimulatorProcess, way: Way
) -> None:
    message = prompt("own", text=TEXT, continues=way.value, faults=[cut(10)])
    job, reset, _ = await submit(USUAL[way], {}, messages=[{"role": "user", "content": message}, OWN])
    head = "".join(sim.answer(message)["tokens"][:10])
    assert (job.content, reset) == (TEXT, None)
    assert [call["prefix"] for call in sim.requests(message)] == ["I said:", f"I said: {head}"]


async def test_a_prefix_that_the_server_is_not_known_to_continue(submit: Submit, sim: SimulatorProcess) -> None:
    """It goes as the caller wrote it; interrupted, the whole request is sent again."""
    message = prompt("own", text=TEXT, continues="never", faults=[cut(10)])
    job, reset, _ = await submit(None, {}, messages=[{"role": "user", "content": message}, OWN])
    assert (job.content, reset) == (TEXT, "unproven")
    assert [call["prefix"] for call in sim.requests(message)] == ["I said: "] * 2


async def test_a_prefix_that_the_server_does_not_continue_fails_without_a_call(
    submit: Submit, sim: SimulatorProcess
) -> None:
    """The model would answer something else, and nobody would know; a trailing message of the user is no matter."""
    message = prompt("own", text=TEXT, continues="never")
    job, _, _ = await submit(NEVER, {}, messages=[{"role": "user", "content": message}, OWN])
    assert (job.status, job.error and job.error.code) == (JobStatus.FAILED, "prefix_not_continued")
    assert job.error is not None
    assert (job.error.retryable, job.attempts, sim.requests(message)) == (False, (), [])
    assert (await submit(NEVER, {"text": TEXT, "continues": "never"}))[0].status is COMPLETED


@pytest.mark.parametrize(
    ("setting", "found", "refused"),
    [
        ("none", None, True),
        ("prefix", None, False),
        ("auto", None, False),
        ("auto", MeasuredPractice("mistral-small-latest", "none", "nothing", None), True),
        ("auto", MeasuredPractice("mistral-small-latest", "continue_final_message", "all", False), False),
        ("auto", MeasuredPractice("another-model", "none", "nothing", None), False),
    ],
)
async def test_a_prefix_is_refused_when_it_is_submitted(
    database: Database, setting: Any, found: MeasuredPractice | None, refused: bool
) -> None:
    """As far as it is known by then that the server does not continue, with the place of the field and what to do."""
    settings = Settings(chatjobs_continuation=setting, mistral_server_url="http://127.0.0.1:8000")
    if found is not None:
        known = server_knowledge.store(settings, database)
        assert await known.begin(found.model)
        await known.end(found)
    rule = PrefixRule(settings, database)
    user = {"role": "user", "content": "Go on"}
    await rule.check(ChatRequest.parse({"messages": [user]}))
    request = ChatRequest.parse({"messages": [user, OWN]})
    if not refused:
        await rule.check(request)
        return
    with pytest.raises(InvalidRequest) as caught:
        await rule.check(request)
    (problem,) = caught.value.problems
    assert problem.pointer == "/messages/1/prefix"
    assert "leave the message out" in problem.message


async def test_the_gateway_says_where_the_prefix_is_and_what_to_do(tmp_path: Path) -> None:
    """As a problem of the field, before there is a job."""
    with alone(tmp_path, {"CHATJOBS_CONTINUATION": "none"}) as stack:
        async with gateway(stack).client() as http:
            user = {"role": "user", "content": "Go on"}
            refused = await http.post("/api/jobs", json={"messages": [user, OWN]})
            (problem,) = refused.json()["errors"]
            assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")
            assert problem["pointer"] == "/messages/1/prefix"
            assert "leave the message out" in problem["message"]
            assert (await http.get("/api/jobs")).json()["jobs"] == []
            assert (await http.post("/api/jobs", json={"messages": [user]})).status_code == 202


# ------------------------------------------------------------------------------------------------ whitespace

INDENTED = ["def f(x):\n", "    if x:\n", "        ", "return", " 1"]
SEAMS: dict[str, tuple[list[str], int, str, str | None]] = {
    "C1": (INDENTED, 3, "    return 1", None),
    "C2": (INDENTED, 3, "\n\ndef g():\n", None),
    "C3": (["I", " like", " cats", " "], 4, ", dogs and birds.", None),
    "end": (["I", " like", " cats", " "], 4, "", None),
    "less": (["{\n", '  "a":', " {\n", "    ", '"b": 1}}'], 4, "  }\n}", None),
    "again": (INDENTED, 3, "        return 2", "def f(x):\n    if x:\n        return 2"),
    "more": (INDENTED, 3, "          return 2", "def f(x):\n    if x:\n          return 2"),
    "word": (["The", " sun", " sets"], 2, " rises", "The sun rises"),
}


@pytest.mark.parametrize("echo", ["whole", "pieces", "none"])
@pytest.mark.parametrize("seam", SEAMS)
async def test_what_was_shown_is_said_again_or_the_answer_starts_over(submit: Submit, seam: str, echo: str) -> None:
    """The end is what was shown and what the model said after the text that it was sent; else it starts over."""
    pieces, after, continuation, whole = SEAMS[seam]
    script = {"pieces": pieces, "faults": [cut(after)], "continuation": continuation, "echo": echo}
    job, reset, _ = await submit(AS_MISTRAL, script)
    expected = ("".join(pieces), "refused") if whole is None else (whole, None)
    assert (job.status, job.content, reset) == (COMPLETED, *expected)


WHITE: dict[str, list[str]] = {
    "newlines": ["A", " list", ":\n", "\n", "- one", "\n", "- two"],
    "tabs": ["if x {\n", "\t", "\t", "go()\n", "}"],
    "table": ["| a", " | b", " |\n", "| ", "1", " | ", "2", " |"],
    "YAML": ["a:\n", "  ", "b:\n", "    ", "- 1", "\n", "    - 2"],
    "Unicode": ["1", "\u00a0", "000", "\u2003", "km", "\u3000", "\n", "\u00a0 ", "end"],
    "CRLF": ["one\r\n", "\r\n", "  ", "two"],
}


@pytest.mark.parametrize("way", WAYS)
async def test_text_cut_after_any_whitespace(client: Client, sqlite: Database, sim: SimulatorProcess, way: Way) -> None:
    """A model that says the same again goes on, wherever it is cut, on every kind of server."""
    model = MistralChat("a key", sim.url, practice=USUAL[way])
    async with house(client, sqlite, model=model, timings=STEADY, chatjobs_concurrency=50) as here:

        async def cut_at(pieces: list[str], after: int) -> None:
            script = {"pieces": pieces, "continues": way.value, "faults": [cut(after), cut(1)]}
            job = await followed(here, prompt("white", **script))
            assert (job.status, job.content, job.epoch) == (COMPLETED, "".join(pieces), 1)

        await asyncio.gather(*(cut_at(one, after) for one in WHITE.values() for after in range(1, len(one))))
    await model.aclose()


# --------------------------------------------------------------------------------------------------- measuring


@pytest.fixture
async def chat(sim: SimulatorProcess) -> AsyncIterator[MistralChat]:
    """A client that knows nothing of its server."""
    sim.forget()
    model = MistralChat("a key", sim.url, practice=None)
    yield model
    await model.aclose()
    sim.drop_scripts()


def knows_lists(sim: SimulatorProcess, continues: str, **script: Any) -> None:
    """The model of the simulator says what the lists of the measurement go on with, as a real model does."""
    for probe in PROBES:
        sim.script(match=probe.prompt, text=probe.list + probe.rest + ", and so on", continues=continues, **script)


@pytest.mark.parametrize(
    ("continues", "script", "found"),
    [
        ("prefix", {}, Practice(Way.PREFIX, Drops.NOTHING, echoes=True)),
        ("prefix", {"echo": "none"}, Practice(Way.PREFIX, Drops.NOTHING, echoes=False)),
        ("prefix", {"usage": False}, Practice(Way.PREFIX, Drops.SPACES, echoes=True)),
        ("continue_final_message", {}, Practice(Way.CONTINUE_FINAL_MESSAGE, Drops.NOTHING, echoes=False)),
        ("continue_final_message", {"usage": False}, Practice(Way.CONTINUE_FINAL_MESSAGE, Drops.ALL, echoes=False)),
        # Its first way that works: it ignores the flag.
        ("assistant", {}, Practice(Way.PREFIX, Drops.NOTHING, echoes=False)),
        ("never", {}, NEVER),
        ("prefix", {"echo": "differing"}, NEVER),
    ],
)
async def test_what_is_measured(
    chat: MistralChat, sim: SimulatorProcess, continues: str, script: dict[str, Any], found: Practice
) -> None:
    """How each kind of server continues. One that opens a new answer, or says the list again, does not."""
    knows_lists(sim, continues, **script)
    found = found if found is NEVER else replace(found, formats=NO_FORMATS)
    assert await measured(chat, "mistral-small-latest") == found
    calls = sim.requests()
    assert 3 <= len(calls) <= 3 * len(WAYS) + 2 + len(FORMATS)
    assert all(call["parameters"]["max_tokens"] <= MOST_TOKENS for call in calls)
    assert all(call["parameters"]["temperature"] == 0 for call in calls)


def knows_json(sim: SimulatorProcess, **script: Any) -> None:
    """The same for the documents of the measurement."""
    for probe in JSON_PROBES:
        sim.script(match=probe.prompt, text=f"{probe.list}{probe.rest}]}}", **script)


BOTH = frozenset(FORMATS)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ({}, BOTH),
        ({"json_prefix": "begins_again"}, NO_FORMATS),
        ({"echo": "none"}, NO_FORMATS),
        ({"echo": "pieces"}, BOTH),
        ({"continuation": "{"}, NO_FORMATS),
        ({"continuation": '{"numbers": [15, 4016'}, NO_FORMATS),
        ({"continuation": ""}, NO_FORMATS),
        ({"faults": [{"kind": 400}], "repeat_last": True}, NO_FORMATS),
    ],
)
async def test_which_json_is_continued(
    chat: MistralChat, sim: SimulatorProcess, script: dict[str, Any], found: frozenset[str]
) -> None:
    """A grammar that begins with the first new token, another echo than that of text, and a refusal show in a call."""
    knows_lists(sim, "prefix")
    knows_json(sim, continues="prefix", **script)
    practice = await measured(chat, "mistral-small-latest")
    assert practice == Practice(Way.PREFIX, Drops.NOTHING, echoes=True, formats=found)
    asked = [call for call in sim.requests() if "response_format" in call["parameters"]]
    assert len(FORMATS) <= len(asked) <= len(FORMATS) * len(JSON_PROBES)
    assert all(call["parameters"]["max_tokens"] <= MOST_TOKENS for call in asked)


async def test_a_server_that_fails_with_json_is_not_measured(chat: MistralChat, sim: SimulatorProcess) -> None:
    knows_lists(sim, "prefix")
    knows_json(sim, faults=[{"kind": 503}], repeat_last=True)
    assert await measured(chat, "mistral-small-latest") is None


async def test_json_is_measured_once_an_answer_was_interrupted(
    client: Client, sqlite: Database, sim: SimulatorProcess
) -> None:
    """Of a server whose way is assumed: nothing before, and then only that. The first answer starts over; later ones
    continue, also after a restart of the worker."""
    sim.forget()
    knows_json(sim, continues="prefix")
    settings = Settings(mistral_server_url=sim.url, chatjobs_continuation="prefix", mistral_requests_per_second=1_000)
    model = MistralChat("a key", sim.url, practice=AS_MISTRAL)
    wanted = {"response_format": {"type": "json_object"}}
    script = {"text": '{"a": "one two three four five six"}', "faults": [cut(8)]}
    informed = asyncio.create_task(measuring.keep_informed(settings, sqlite, model, measured))
    async with house(client, sqlite, model=model, timings=STEADY) as here:
        first = await followed(here, prompt("first", **script), **wanted)
        assert await reset_of(here.reader, first) == "response_format"
        async with asyncio.timeout(PATIENCE):
            while model.continuing(first.model, "json_object") is not Continuing.KNOWN:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        second = await followed(here, prompt("second", **script), **wanted)
    assert (second.content, second.epoch) == (script["text"], 1)
    assert model.practice(first.model) == replace(AS_MISTRAL, formats=BOTH)
    assert not [call for call in sim.requests() if call["prompt"] in {probe.prompt for probe in PROBES}]
    informed.cancel()
    await asyncio.gather(informed, return_exceptions=True)
    await model.aclose()
    again = await server_knowledge.remembered(server_knowledge.store(settings, sqlite))
    assert again == {first.model: replace(AS_MISTRAL, formats=BOTH)}
    sim.drop_scripts()


@pytest.mark.parametrize("json_prefix", ["continues", "begins_again"])
async def test_json_cut_after_any_token(
    client: Client, sqlite: Database, sim: SimulatorProcess, json_prefix: str
) -> None:
    """The end is the document, wherever it is cut; a server that is not known to continue JSON is not asked to."""
    formats = BOTH if json_prefix == "continues" else None
    model = MistralChat("a key", sim.url, practice=replace(AS_MISTRAL, formats=formats))
    pieces = [
        "{\n",
        '  "',
        "a",
        '":',
        " ",
        "[",
        "1",
        ",",
        "  ",
        "2",
        "]",
        ",\n",
        "\t",
        '"b c',
        " ",
        '": "',
        " ",
        '"',
        "\n",
        "}",
    ]
    async with house(client, sqlite, model=model, timings=STEADY, chatjobs_concurrency=50) as here:

        async def cut_at(after: int, echo: str) -> None:
            script = {"pieces": pieces, "echo": echo, "json_prefix": json_prefix, "faults": [cut(after), cut(1)]}
            job = await followed(here, prompt("json", **script), response_format={"type": "json_object"})
            assert (job.status, job.content) == (COMPLETED, "".join(pieces))
            assert "schema_mismatch" not in [attempt.outcome for attempt in job.attempts]

        await asyncio.gather(*(cut_at(after, echo) for after in range(1, len(pieces)) for echo in ("whole", "none")))
    await model.aclose()


@pytest.mark.parametrize("said", ["4001, 4002, 4003", "4015, 4016, 4017", "Sure! 15, 4016", "", "15"])
async def test_nothing_else_passes_for_a_continuation(chat: MistralChat, sim: SimulatorProcess, said: str) -> None:
    for probe in PROBES:
        sim.script(match=probe.prompt, text=probe.list + probe.rest)
    sim.script(match=PROBES[1].prompt, continuation=said)
    assert await measured(chat, "mistral-small-latest") == NEVER


@pytest.mark.parametrize("fault", [{"kind": 503}, {"kind": 401}, {"kind": 429}, {"kind": "cut"}])
async def test_a_server_that_does_not_answer_is_not_measured(
    chat: MistralChat, sim: SimulatorProcess, fault: dict[str, Any]
) -> None:
    for probe in PROBES:
        sim.script(match=probe.prompt, faults=[fault], repeat_last=True)
    assert await measured(chat, "mistral-small-latest") is None
    assert len([call for call in sim.requests() if call["status"] != 422]) == 1  # 422: the refusal of stream_options


async def test_a_model_is_measured_once(chat: MistralChat, sim: SimulatorProcess, database: Database) -> None:
    """By whichever worker is first; the others are told. Until then an answer would start over."""
    knows_lists(sim, "continue_final_message")
    settings = Settings(mistral_server_url=sim.url, mistral_requests_per_second=1_000)
    other = MistralChat("a key", sim.url, practice=None)
    tasks = [asyncio.create_task(measuring.keep_informed(settings, database, one, measured)) for one in (chat, other)]
    assert chat.continuing("mistral-small-latest") is Continuing.UNPROVEN
    await sim.wait("four fruits", requests=1, ended=True)
    calls = await settled(settings, database, sim)
    other.request_measurement("mistral-small-latest")
    async with asyncio.timeout(PATIENCE):
        while {one.continuing("mistral-small-latest") for one in (chat, other)} != {Continuing.KNOWN}:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await other.aclose()
    assert len(sim.requests()) == calls
    found = Practice(Way.CONTINUE_FINAL_MESSAGE, Drops.NOTHING, echoes=False, formats=NO_FORMATS)
    assert chat.practice("mistral-small-latest") == found
    assert chat.continuing("another-model") is Continuing.UNPROVEN


async def test_names_that_are_no_models_are_not_measured_for_ever(sim: SimulatorProcess) -> None:
    """They come from requests: nothing repeats them for long, and they keep no real model waiting."""
    clock = [0.0]
    pace = MeasuringPace(lambda: clock[0])
    assert pace.allows("ghost")
    assert [pace.failed("ghost") for _ in range(4)] == [True, True, False, False]
    assert (pace.allows("ghost"), pace.allows("real")) == (False, True)
    clock[0] += measuring.AGAIN_SECONDS
    assert pace.allows("ghost")
    for _ in range(measuring.MOST_AN_HOUR):
        pace.began()
    assert not pace.allows("real")
    clock[0] += 3601
    assert pace.allows("real")
    model = MistralChat("a key", sim.url, practice=None)
    for number in range(10 * MOST_TO_MEASURE):
        model.request_measurement(f"ghost-{number}")
    assert len(await model.models_to_measure(1)) == MOST_TO_MEASURE
    await model.aclose()


async def settled(settings: Settings, database: Database, sim: SimulatorProcess) -> int:
    """The number of calls, once the measurement is stored."""
    async with asyncio.timeout(PATIENCE):
        while not await server_knowledge.remembered(server_knowledge.store(settings, database)):  # noqa: ASYNC110 - nor here
            await asyncio.sleep(0.02)
    return len(sim.requests())


async def test_only_one_may_begin_a_measurement(database: Database) -> None:
    """Of a server, a model and a version; a new version of the measurement begins anew."""
    store = ContinuationStore(database, "http://one.example", VERSION)
    assert [await store.begin("a"), await store.begin("a"), await store.begin("b")] == [True, False, True]
    assert await ContinuationStore(database, "http://two.example", VERSION).begin("a")
    assert await ContinuationStore(database, "http://one.example", VERSION + 1).begin("a")
    await store.forget("a")
    assert await store.begin("a")
    assert await store.measured() == []


async def test_the_measurement_of_a_worker_that_died_is_begun_again(database: Database) -> None:
    """After ten minutes without a result; one that has a result is not."""
    store = ContinuationStore(database, "http://one.example", VERSION)
    for model in ("died", "ended"):
        assert await store.begin(model)
    await store.end(MeasuredPractice("ended", "prefix", "nothing", True))
    async with database.write("fast") as connection:
        await connection.execute(update(continuations).values(asked_at=continuations.c.asked_at - 601 * 1_000_000))
    assert [await store.begin(model) for model in ("ended", "died", "died")] == [False, True, False]


@pytest.mark.parametrize(
    ("setting", "url", "found"),
    [
        ("auto", None, AS_MISTRAL),
        ("auto", "https://api.mistral.ai", AS_MISTRAL),
        ("auto", "http://127.0.0.1:8000", None),
        ("prefix", "http://127.0.0.1:8000", AS_MISTRAL),
        ("assistant", None, USUAL[Way.ASSISTANT]),
        ("continue_final_message", "http://vllm:8000", USUAL[Way.CONTINUE_FINAL_MESSAGE]),
        ("none", None, NEVER),
    ],
)
def test_what_the_settings_say(setting: Any, url: str | None, found: Practice | None) -> None:
    assert server_knowledge.assumed(Settings(chatjobs_continuation=setting, mistral_server_url=url)) == found


async def test_a_measurement_refines_what_the_setting_says() -> None:
    """The same way, seen to give the model all whitespace; another way is not taken against the setting."""
    fixed = MistralChat("a key", "http://127.0.0.1:1", practice=USUAL[Way.ASSISTANT])
    fine = Practice(Way.ASSISTANT, Drops.NOTHING, echoes=False)
    fixed.learn({"a": fine, "b": AS_MISTRAL})
    assert (fixed.practice("a"), fixed.practice("b")) == (fine, USUAL[Way.ASSISTANT])
    await fixed.aclose()


@pytest.mark.parametrize(("setting", "url"), [("auto", None), ("prefix", "http://127.0.0.1:1")])
async def test_what_the_doctor_has_measured_is_learned_under_every_setting(
    database: Database, setting: Any, url: str | None
) -> None:
    """Of Mistral's own server as well, which nobody measures unasked."""
    settings = Settings(chatjobs_continuation=setting, mistral_server_url=url)
    fine = Practice(Way.PREFIX, Drops.NOTHING, echoes=True)
    await measuring.remember(server_knowledge.store(settings, database), "a", fine)
    model = MistralChat("a key", url, practice=server_knowledge.assumed(settings))
    assert model.practice("a") == AS_MISTRAL
    learning = asyncio.create_task(measuring.keep_informed(settings, database, model, measured))
    async with asyncio.timeout(PATIENCE):
        while model.practice("a") != fine:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
    assert model.practice("b") == AS_MISTRAL
    learning.cancel()
    await asyncio.gather(learning, return_exceptions=True)
    await model.aclose()
