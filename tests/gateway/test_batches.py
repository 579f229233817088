"""Batches over HTTP: uploads of every shape, checked whole; what is asked of a batch; its output and its progress."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from chatjobs.contracts import BatchWebhookEvent
from gateway.serving.bodies import MOST_DEPTH
from storage.engine.database import Database
from storage.engine.schema import batch_items, batches, requests
from storage.keys import KeyStore
from tests.support import migrated
from tests.support.event_reader import reading
from tests.support.factories import make_body
from tests.support.gateway import Gateway, alone, gateway
from tests.support.postgres import Postgres
from tests.support.raw_client import connected
from tests.support.receiver import Receiver, receiver
from tests.support.simulator_process import prompt
from tests.support.stack import WEBHOOK_SECRET, Stack, stack

PATIENCE = 60.0
ENDS = ("completed", "cancelled", "failed")
NDJSON = "application/x-ndjson"
MANY = 100_000
LONGEST_LINE = 64 * 1024
"""The gateway of the uploads has so small a limit that a test need not send megabytes."""
MEGABYTE = 1024 * 1024
LARGE = 1_000 * MEGABYTE


def item(name: str | None = None, words: str = "Hello", **fields: Any) -> bytes:
    """A line without its end."""
    named = {} if name is None else {"custom_id": name}
    return json.dumps({**named, "body": make_body(words, **fields)}).encode()


def upload_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


async def in_pieces(body: bytes, sizes: Sequence[int]) -> AsyncIterator[bytes]:
    """The body cut anywhere, in the middle of lines and of characters."""
    place = number = 0
    while place < len(body):
        size = sizes[number % len(sizes)]
        yield body[place : place + size]
        place, number = place + size, number + 1
        await asyncio.sleep(0)


async def sent(http: httpx2.AsyncClient, body: Any, key: str | None = None, **query: Any) -> httpx2.Response:
    headers = {"Content-Type": NDJSON} | ({"Idempotency-Key": key} if key else {})
    return await http.post("/api/batches", content=body, params=query, headers=headers)


async def begun(http: httpx2.AsyncClient, *lines: bytes, **query: Any) -> str:
    """The id of an accepted batch."""
    answer = await sent(http, upload_of(*lines), **query)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["statusUrl"] == f"/api/batches/{answer.json()['batchId']}"
    return str(answer.json()["batchId"])


# ----------------------------------------------------------------------------------------------- uploads


@pytest.fixture(scope="module")
def entrance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    """A gateway without Temporal or workers: batches are accepted there, and wait."""
    with alone(tmp_path_factory.mktemp("uploads"), {"CHATJOBS_MAX_BODY_BYTES": str(LONGEST_LINE)}) as built:
        yield built, gateway(built)


@pytest.fixture
async def http(entrance: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with entrance[1].client() as client:
        yield client
    sys.stdout.write(entrance[0].news())


@pytest.fixture
async def stored(entrance: tuple[Stack, Gateway]) -> AsyncIterator[Database]:
    database = await Database.open(entrance[0].database_url)
    yield database
    await database.close()


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(PATIENCE):
        while not await look():  # noqa: ASYNC110 - rows and statuses do not say when they change
            await asyncio.sleep(0.02)


async def items_of(database: Database, batch_id: str) -> list[tuple[str, Any]]:
    """The stored items in their order: name and request."""
    query = (
        select(batch_items.c.custom_id, requests.c.body)
        .join(requests, requests.c.job_id == batch_items.c.job_id)
        .where(batch_items.c.batch_id == batch_id)
        .order_by(batch_items.c.number)
    )
    async with database.read() as connection:
        return [(row.custom_id, json.loads(row.body)) for row in await connection.execute(query)]


async def rows(database: Database) -> tuple[int, int, int]:
    """Batches with drafts, items, requests."""
    async with database.read() as connection:
        counts = [
            await connection.scalar(select(func.count()).select_from(t)) for t in (batches, batch_items, requests)
        ]
    return counts[0] or 0, counts[1] or 0, counts[2] or 0


async def listed(http: httpx2.AsyncClient) -> tuple[list[Any], list[Any]]:
    """All batches and all jobs that a caller sees."""
    found = [(await http.get(f"/api/{name}", params={"limit": 200})).json()[name] for name in ("batches", "jobs")]
    return found[0], found[1]


@asynccontextmanager
async def nothing_stays(http: httpx2.AsyncClient, database: Database) -> AsyncIterator[None]:
    """What the block uploads leaves no row, and nothing to see."""
    stored, seen = await rows(database), await listed(http)

    async def as_before() -> bool:
        return await rows(database) == stored

    yield
    await until(as_before)
    assert await listed(http) == seen


THREE = [item("a"), item("b", "Grüße 🌊"), item("c")]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\n".join(THREE) + b"\n", id="plain"),
        pytest.param(b"\n".join(THREE), id="no newline at the end"),
        pytest.param(b"\r\n".join(THREE) + b"\r\n", id="CRLF"),
        pytest.param(b"\xef\xbb\xbf" + b"\n".join(THREE), id="BOM"),
        pytest.param(b"\n\n  \n" + b"\n\t\n \r\n".join(THREE) + b"\n\n\n", id="blank lines"),
        pytest.param(b"\n".join(line.replace(b"{", b" { ").replace(b":", b" : ") for line in THREE), id="blanks"),
    ],
)
@pytest.mark.parametrize("sizes", [(1_000_000,), (1,), (1, 2, 3, 5, 7, 11)], ids=["at once", "by byte", "odd pieces"])
async def test_lines_of_every_shape(
    http: httpx2.AsyncClient, stored: Database, body: bytes, sizes: Sequence[int]
) -> None:
    answer = await sent(http, in_pieces(body, sizes))
    assert answer.status_code == 202, answer.text
    found = await items_of(stored, answer.json()["batchId"])
    assert found == [("a", make_body("Hello")), ("b", make_body("Grüße 🌊")), ("c", make_body("Hello"))]


async def test_lines_of_mistral_and_openai(http: httpx2.AsyncClient, stored: Database) -> None:
    """With ``method`` and ``url`` as in OpenAI's, without a ``custom_id`` as in Mistral's; nulls as if left out."""
    openai = {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions"}
    openai |= {"body": make_body("One", model="mistral-small-latest", max_tokens=1000)}  # type: ignore[dict-item]
    mistral = {"body": make_body("Two", max_tokens=100, temperature=None)}
    batch_id = await begun(http, *(json.dumps(line).encode() for line in (openai, mistral)))
    assert await items_of(stored, batch_id) == [
        ("request-1", make_body("One", model="mistral-small-latest", max_tokens=1000)),
        ("1", make_body("Two", max_tokens=100)),
    ]


async def test_defaults_fill_what_items_lack(http: httpx2.AsyncClient, stored: Database) -> None:
    defaults = {"model": "mistral-large-latest", "max_tokens": 5}
    batch_id = await begun(http, item("a"), item("b", max_tokens=7), defaults=json.dumps(defaults))
    assert [body for _, body in await items_of(stored, batch_id)] == [
        make_body(model="mistral-large-latest", max_tokens=5),
        make_body(model="mistral-large-latest", max_tokens=7),
    ]


async def test_a_body_of_json_says_the_same(http: httpx2.AsyncClient, stored: Database) -> None:
    """The items and the settings of an upload, in one document: one key is one batch for both."""
    settings = {
        "name": "night run",
        "concurrency": 3,
        "webhook": {"url": "https://receiver.example/hook", "events": ["batch.failed"]},
        "lane": "batch",
        "deadline": "2126-01-02T03:04:05Z",
        "defaults": {"max_tokens": 5},
    }
    items = [json.loads(line) for line in THREE]
    key = uuid.uuid4().hex
    whole = await http.post("/api/batches", json={"items": items, **settings}, headers={"Idempotency-Key": key})
    assert whole.status_code == 202, whole.text
    query = {**settings, "webhook": json.dumps(settings["webhook"]), "defaults": json.dumps(settings["defaults"])}
    lines = await sent(http, upload_of(*THREE), key, **query)
    assert (lines.status_code, lines.json().get("batchId")) == (202, whole.json()["batchId"]), lines.text
    shown = (await http.get(whole.json()["statusUrl"])).json()
    assert {name: shown[name] for name in ("name", "concurrency", "lane", "deadline")} == {
        "name": "night run",
        "concurrency": 3,
        "lane": "batch",
        "deadline": "2126-01-02T03:04:05.000000Z",
    }
    assert len(await items_of(stored, whole.json()["batchId"])) == 3


BROKEN = [
    (b'{"body": {"messages": [', "", "JSON"),
    (b"not json", "", "JSON"),
    (b'{"body": {"messages": []}, "body": {}}', "", "twice"),
    (b'{"body": {"messages": [], "top_p": NaN}}', "", "NaN"),
    (b'{"body": ' + b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1) + b"}", "", "nested"),
    (b'{"body": {"messages": [{"role": "user", "content": "\xff"}]}}', "", "UTF-8"),
    (b"[]", "", "object"),
    (b'"text"', "", "object"),
    (b"null", "", "object"),
    (b"{}", "/body", "missing"),
    (b'{"custom_id": "x"}', "/body", "missing"),
    (b'{"custom_id": 7, "body": {}}', "/custom_id", "string"),
    (b'{"custom_id": "", "body": {}}', "/custom_id", "1"),
    (b'{"custom_id": "a\\u0000b", "body": {}}', "/custom_id", ""),
    (item("x", n=2), "/body/n", ""),
    (item("x", colour="red"), "/body/colour", ""),
    (item("x", temperature=9), "/body/temperature", ""),
    (item("x", jobId="job_mine"), "/body/jobId", "left out"),
    (item("x", callback="http://127.0.0.1:1/"), "/body", ""),
    (b'{"custom_id": "x", "method": "GET", "body": {}}', "/method", ""),
    (b'{"custom_id": "x", "url": "/v1/embeddings", "body": {}}', "/url", ""),
    (b'{"custom_id": "x", "colour": 1, "body": {}}', "/colour", ""),
]


@pytest.mark.parametrize(("line", "pointer", "word"), BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("place", [1, 450])
async def test_a_broken_line_is_named_and_nothing_is_started(
    http: httpx2.AsyncClient, stored: Database, line: bytes, pointer: str, word: str, place: int
) -> None:
    """Blank lines count: the number is the one that an editor shows."""
    before = [b"" if number == 2 else item(str(number)) for number in range(place - 1)]
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(*before, line, item("last")))
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["code"] == "validation_failed"
        first = problem["errors"][0]
        assert first["pointer"].startswith(f"/lines/{place}{pointer}")
        assert first["message"].startswith(f"line {place}:")
        assert f"line {place}:" in problem["detail"]
        assert word.lower() in first["message"].lower()
        assert first["message"].count("line ") == 1, "a number within the line is no line of the file"


async def test_many_broken_lines_are_listed_up_to_a_number(http: httpx2.AsyncClient, stored: Database) -> None:
    lines = [b"{}" if number % 3 == 0 else item(str(number)) for number in range(1, 400)]
    async with nothing_stays(http, stored):
        problem = (await sent(http, upload_of(*lines))).json()
    assert [one["pointer"] for one in problem["errors"]] == [f"/lines/{3 * n}/body" for n in range(1, 21)]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 900), (450, 451)])
async def test_two_items_of_one_name_are_both_named(
    http: httpx2.AsyncClient, stored: Database, first: int, second: int
) -> None:
    lines = [item("twin" if number in (first, second) else str(number)) for number in range(1, second + 1)]
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(*lines))
    (found,) = answer.json()["errors"]
    assert (answer.status_code, found["pointer"]) == (422, f"/lines/{second}/custom_id")
    assert f"line {first}" in found["message"]


async def test_a_name_may_be_the_number_of_another_item(http: httpx2.AsyncClient, stored: Database) -> None:
    """The second line has no name, so it is called 1: that clashes as any other does."""
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(item("1"), item()))
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/lines/2/custom_id"]


@pytest.mark.parametrize("body", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n"])
async def test_an_empty_upload(http: httpx2.AsyncClient, stored: Database, body: bytes) -> None:
    async with nothing_stays(http, stored):
        answer = await sent(http, body)
    assert (answer.status_code, answer.json()["errors"][0]["message"]) == (422, "must have at least one item")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"concurrency": 0}, "/concurrency"),
        ({"concurrency": 10_001}, "/concurrency"),
        ({"concurrency": "many"}, "/concurrency"),
        ({"deadline": "2126-01-01T00:00:00Z"}, "/deadline"),
        ({"lane": "batch", "deadline": "soon"}, "/deadline"),
        ({"lane": "fast"}, "/lane"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 257}, "/name"),
        ({"defaults": "{"}, "/defaults"),
        ({"defaults": "[]"}, "/defaults"),
        ({"webhook": "ftp://receiver.example/"}, "/webhook"),
        ({"webhook": '{"url": '}, "/webhook"),
        ({"webhook": '{"url": "https://receiver.example/", "events": ["chat.completed"]}'}, "/webhook/events/0"),
        ({"colour": "red"}, "/colour"),
        ({"custom_id": "x"}, "/custom_id"),
    ],
)
async def test_settings_that_are_not_valid(
    http: httpx2.AsyncClient, stored: Database, query: dict[str, Any], pointer: str
) -> None:
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(*THREE), **query)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("query", [{"concurrency": [1, 2]}, {"name": ["a", "b"]}])
async def test_a_setting_is_given_once(http: httpx2.AsyncClient, query: dict[str, Any]) -> None:
    assert (await sent(http, upload_of(*THREE), **query)).status_code == 422


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://169.254.169.254/latest", "http://[::1]/", "http://10.0.0.1/"]
)
async def test_a_webhook_to_the_inside_is_refused(http: httpx2.AsyncClient, stored: Database, url: str) -> None:
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(*THREE), webhook=url)
        assert (answer.status_code, answer.json()["code"]) == (422, "webhook_url_refused")
        in_json = {"items": [json.loads(line) for line in THREE], "webhook": {"url": url}}
        answer = await http.post("/api/batches", json=in_json)
        assert (answer.status_code, answer.json()["code"]) == (422, "webhook_url_refused")


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/json-seq", "multipart/form-data", "application/x-ndjsonx"]
)
async def test_other_content_types(http: httpx2.AsyncClient, stored: Database, kind: str) -> None:
    async with nothing_stays(http, stored):
        answer = await http.post("/api/batches", content=upload_of(*THREE), headers={"Content-Type": kind})
    assert answer.status_code == 415, answer.text


@pytest.mark.parametrize(
    "kind",
    ["application/x-ndjson", "application/jsonl", "Application/X-NDJSON; charset=utf-8", "application/x-jsonlines"],
)
async def test_names_of_the_content_type(http: httpx2.AsyncClient, kind: str) -> None:
    answer = await http.post("/api/batches", content=upload_of(*THREE), headers={"Content-Type": kind})
    assert answer.status_code == 202, answer.text


async def test_a_compressed_upload_is_refused(http: httpx2.AsyncClient) -> None:
    headers = {"Content-Type": NDJSON, "Content-Encoding": "gzip"}
    assert (await http.post("/api/batches", content=b"x", headers=headers)).status_code == 415


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({}, "/items"),
        ({"items": {}}, "/items"),
        ({"items": []}, "/items"),
        ({"items": [{"body": make_body()}, {"body": {}}]}, "/items/1/body/messages"),
        ({"items": [{"custom_id": "x", "body": make_body()}] * 2}, "/items/1/custom_id"),
        ({"items": [{"body": make_body()}], "colour": 1}, "/colour"),
    ],
)
async def test_a_body_of_json_that_is_not_valid(
    http: httpx2.AsyncClient, stored: Database, body: Any, pointer: str
) -> None:
    async with nothing_stays(http, stored):
        answer = await http.post("/api/batches", json=body)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


async def test_settings_stand_in_one_place(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/api/batches?name=x", json={"items": [{"body": make_body()}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.mark.parametrize("place", [1, 300])
@pytest.mark.parametrize("ended", [True, False], ids=["with an end", "without an end"])
async def test_a_line_that_is_too_long(http: httpx2.AsyncClient, stored: Database, place: int, ended: bool) -> None:
    """It is refused while it arrives, not when it has."""
    before = [item(str(number)) for number in range(place - 1)]
    long = item("long", "x" * LONGEST_LINE)
    async with nothing_stays(http, stored):
        answer = await sent(http, upload_of(*before) + (long + b"\n" if ended else long[:-1]))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert f"Line {place} " in answer.json()["detail"]


async def test_an_upload_that_is_cut_leaves_nothing(
    http: httpx2.AsyncClient, stored: Database, entrance: tuple[Stack, Gateway]
) -> None:
    """Its first thousand items were stored; the end of the body never came."""
    host = entrance[1].url.removeprefix("http://")
    body = upload_of(*(item(str(number)) for number in range(1_000)))
    before, seen = (await rows(stored))[1], await listed(http)

    async def some_are_stored() -> bool:
        return (await rows(stored))[1] >= before + 400

    head = f"POST /api/batches HTTP/1.1\r\nHost: {host}\r\nContent-Type: {NDJSON}\r\n"
    head += f"Content-Length: {2 * len(body)}\r\n\r\n"
    async with nothing_stays(http, stored):
        with connected(entrance[1].url) as connection:
            connection.sendall(head.encode() + body)
            await until(some_are_stored)
            assert await listed(http) == seen


async def test_the_refusal_of_a_large_upload_reaches_the_sender(http: httpx2.AsyncClient, stored: Database) -> None:
    """It is sent long before the upload is over, by a client that reads nothing before it has sent everything."""

    async def large() -> AsyncIterator[bytes]:
        yield b"broken\n" * 200
        for _ in range(LARGE // 60_000):
            yield b"x" * 59_999 + b"\n"

    async with nothing_stays(http, stored):
        answer = await sent(http, large())
        assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)


# ------------------------------------------------------------------------------------------- idempotency


async def test_one_key_is_one_batch(http: httpx2.AsyncClient, stored: Database) -> None:
    """The order of fields and blanks between them do not matter; everything else does."""
    key = uuid.uuid4().hex
    first = await sent(http, upload_of(*THREE), key, name="n")
    before = await rows(stored)
    spaced = upload_of(
        *(json.dumps(dict(reversed(json.loads(line).items())), indent=1).replace("\n", " ").encode() for line in THREE)
    )
    again = await sent(http, spaced, key, name="n")
    assert (again.status_code, again.json()["batchId"]) == (202, first.json()["batchId"])
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    for body, query in (
        (upload_of(*THREE[:2]), {"name": "n"}),
        (upload_of(*reversed(THREE)), {"name": "n"}),
        (upload_of(*THREE, item("d")), {"name": "n"}),
        (upload_of(*THREE), {"name": "other"}),
        (upload_of(*THREE), {}),
    ):
        answer = await sent(http, body, key, **query)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert await rows(stored) == before


async def test_a_broken_line_is_named_under_a_known_key_too(http: httpx2.AsyncClient) -> None:
    key = uuid.uuid4().hex
    assert (await sent(http, upload_of(*THREE), key)).status_code == 202
    answer = await sent(http, upload_of(THREE[0], b"{"), key)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/lines/2")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_parallel_uploads_with_one_key_are_one_batch(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = {}
    if kind == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        env["CHATJOBS_DATABASE_URL"] = migrated.postgres_database(server)
    body, key = upload_of(*(item(str(number)) for number in range(500))), uuid.uuid4().hex
    with alone(tmp_path, env) as built:
        doors = [gateway(built, name) for name in ("one", "two")]
        async with doors[0].client() as one, doors[1].client() as two:
            answers = await asyncio.gather(*(sent(http, body, key) for http in (one, two) * 10))
            assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
            assert len({answer.json()["batchId"] for answer in answers}) == 1
            assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
            assert len((await listed(one))[0]) == 1
        database = await Database.open(built.database_url)
        assert await rows(database) == (1, 500, 500)
        await database.close()


# ------------------------------------------------------------------------------------------------- sizes


def resident(pid: int, field: str) -> int:
    """Bytes of memory: ``VmRSS`` now, ``VmHWM`` at the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.long
async def test_memory_is_flat_while_100_000_lines_arrive(tmp_path: Path) -> None:
    async def lines() -> AsyncIterator[bytes]:
        for first in range(0, MANY, 500):
            yield upload_of(
                *(item(f"item-{number}", f"Describe the number {number}.") for number in range(first, first + 500))
            )

    with alone(tmp_path) as built:
        door = gateway(built)
        async with door.client() as http:
            await begun(http, *(item(str(number)) for number in range(2_000)))
            before = resident(door.process.pid, "VmRSS")
            answer = await http.post("/api/batches", content=lines(), headers={"Content-Type": NDJSON}, timeout=300)
            assert answer.status_code == 202, answer.text
            assert (await http.get(answer.json()["statusUrl"])).json()["counts"]["total"] == MANY
        assert resident(door.process.pid, "VmHWM") - before < 20 * MEGABYTE


# ----------------------------------------------------------------------------------------- a batch's life


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    env = {"CHATJOBS_PORT": "0", "CHATJOBS_WEBHOOK_ALLOW": "127.0.0.1"}
    with stack(tmp_path_factory.mktemp("batches"), env=env) as started:
        yield started, gateway(started)


@pytest.fixture
async def live(running: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with running[1].client() as client:
        yield client
    sys.stdout.write(running[0].news())


async def ended(http: httpx2.AsyncClient, batch_id: str, *statuses: str) -> dict[str, Any]:
    """The batch, once it has one of these statuses: any terminal one, unless given."""
    return await shown(http, batch_id, lambda batch: batch["status"] in (statuses or ENDS))


async def shown(http: httpx2.AsyncClient, batch_id: str, so: Callable[[Any], bool]) -> dict[str, Any]:
    """The batch, once it is so."""
    batch: dict[str, Any] = {}

    async def look() -> bool:
        batch.update((await http.get(f"/api/batches/{batch_id}")).json())
        return so(batch)

    await until(look)
    return batch


async def lines_of(http: httpx2.AsyncClient, batch_id: str, which: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/api/batches/{batch_id}/{which}")
    assert answer.headers["content-type"].startswith(NDJSON)
    assert answer.headers["content-disposition"] == f'attachment; filename="{batch_id}-{which}.jsonl"'
    assert answer.text.endswith("\n") or not answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_batch_from_its_upload_to_its_output(live: httpx2.AsyncClient, running: tuple[Stack, Gateway]) -> None:
    """Answers and errors in the order of the items, each item in one of them; the jobs are in the list of jobs."""
    words = [prompt(tokens=4) for _ in range(12)]
    broken = prompt(faults=[{"kind": 400}], repeat_last=True)
    lines = [*(item(f"n-{number}", text) for number, text in enumerate(words)), item("broken", broken)]
    batch_id = await begun(live, *lines, name="all of it")
    batch = await ended(live, batch_id)
    counts = {"total": 13, "queued": 0, "running": 0, "completed": 12, "failed": 1, "cancelled": 0}
    assert (batch["status"], batch["name"], batch["counts"]) == ("completed", "all of it", counts)
    assert sum(batch["errorsByCode"].values()) == 1
    output, errors = [await lines_of(live, batch_id, which) for which in ("output", "errors")]
    assert [line["custom_id"] for line in output] == [f"n-{number}" for number in range(12)]
    simulator = running[0].simulator
    for line, text in zip(output, words, strict=True):
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        body = line["response"]["body"]
        assert (body["object"], body["choices"][0]["message"]["content"]) == (
            "chat.completion",
            simulator.answer(text)["text"],
        )
    (error,) = errors
    assert (error["custom_id"], error["response"], error["error"]["code"]) == (
        "broken",
        None,
        next(iter(batch["errorsByCode"])),
    )
    jobs = (await live.get("/api/jobs", params={"limit": 200})).json()["jobs"]
    assert {job["jobId"] for job in jobs if job.get("batchId") == batch_id} == {one["id"] for one in (*output, *errors)}


async def test_the_progress_of_a_batch_is_a_stream(live: httpx2.AsyncClient, running: tuple[Stack, Gateway]) -> None:
    """From the state now to the end; after the end, a reader that has it all gets 204."""
    batch_id = await begun(live, *(item(str(n), prompt(tokens=20, tokens_per_second=20)) for n in range(30)))
    url = f"{running[1].url}/api/batches/{batch_id}/events"
    async with reading(url) as stream:
        events = await stream.all()
    states = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == ["progress"] * (len(events) - 1) + ["complete"]
    assert events[-1].id == "1.30.end"
    done = [state["counts"]["completed"] for state in states]
    assert (done == sorted(done), done[-1]) == (True, 30)
    assert len(done) > 2, "it was watched while it ran"
    answer = await live.get(url, headers={"Last-Event-ID": "1.30.end", "Accept": "text/event-stream"})
    assert answer.status_code == 204
    async with reading(url, last_event_id="1.10") as stream:
        assert [event.id for event in await stream.all()] == ["1.30.end"]
    for wrong in ("x", "0.1", "1", "1.2.3"):
        answer = await live.get(url, headers={"Last-Event-ID": wrong, "Accept": "text/event-stream"})
        assert answer.status_code == 400


async def test_pause_resume_and_cancel(live: httpx2.AsyncClient) -> None:
    """A paused batch begins nothing, resumed it goes on, cancelled it ends; each call may be repeated."""
    lines = [item(str(n), prompt(tokens=10, tokens_per_second=20)) for n in range(400)]
    batch_id = await begun(live, *lines, concurrency=4)
    await ended(live, batch_id, "in_progress")
    for _ in range(2):
        answer = await live.post(f"/api/batches/{batch_id}/pause")
        assert (answer.status_code, answer.json()["status"]) == (202, "paused")
    paused = await shown(live, batch_id, lambda batch: batch["counts"]["running"] == 0)
    assert paused["status"] == "paused"
    await asyncio.sleep(1)
    assert (await live.get(f"/api/batches/{batch_id}")).json()["counts"] == paused["counts"]
    for _ in range(2):
        answer = await live.post(f"/api/batches/{batch_id}/resume")
        assert (answer.status_code, answer.json()["status"]) == (202, "in_progress")
    await shown(live, batch_id, lambda batch: batch["counts"] != paused["counts"])
    assert (await live.post(f"/api/batches/{batch_id}/cancel")).status_code == 202
    batch = await ended(live, batch_id)
    counts = batch["counts"]
    assert (batch["status"], counts["queued"], counts["running"]) == ("cancelled", 0, 0)
    assert counts["completed"] + counts["cancelled"] == 400
    assert (await live.post(f"/api/batches/{batch_id}/cancel")).json()["status"] == "cancelled"
    errors = await lines_of(live, batch_id, "errors")
    assert {line["error"]["code"] for line in errors} == {"cancelled"}
    assert len(errors) == counts["cancelled"]


async def test_what_has_ended_is_not_paused(live: httpx2.AsyncClient) -> None:
    batch_id = await begun(live, item("a", prompt()))
    await ended(live, batch_id)
    for what in ("pause", "cancel"):
        answer = await live.post(f"/api/batches/{batch_id}/{what}")
        assert (answer.status_code, answer.json()["code"]) == (409, "batch_finished")


@pytest.fixture(scope="module")
def hooks() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


async def test_the_end_of_a_batch_is_a_webhook(live: httpx2.AsyncClient, hooks: Receiver) -> None:
    """Signed as those of jobs are; its body is an event of the contracts."""
    batch_id = await begun(live, item("a", prompt()), webhook=hooks.url("/batch"), name="announced")
    (received,) = await hooks.arrived(path="/batch")
    event = BatchWebhookEvent.model_validate_json(received.body)
    assert (event.event.value, event.data.batch_id, event.data.name) == ("batch.completed", batch_id, "announced")
    assert event.data.counts.completed == 1
    assert event.data.output_url.endswith(f"/api/batches/{batch_id}/output")
    assert received.headers["webhook-signature"].startswith("v1,")
    assert WEBHOOK_SECRET.encode() not in received.body


async def test_a_webhook_may_want_some_events(live: httpx2.AsyncClient, hooks: Receiver) -> None:
    only = json.dumps({"url": hooks.url("/cancelled"), "events": ["batch.cancelled"]})
    done = await begun(live, item("a", prompt()), webhook=only)
    await ended(live, done)
    stopped = await begun(live, item("a", prompt(faults=[{"kind": "stall"}])), webhook=only)
    await ended(live, stopped, "in_progress")
    await live.post(f"/api/batches/{stopped}/cancel")
    (received,) = await hooks.arrived(path="/cancelled")
    assert (received.json()["event"], received.json()["data"]["batchId"]) == ("batch.cancelled", stopped)


async def test_the_list_has_pages_and_filters(live: httpx2.AsyncClient) -> None:
    ids = [await begun(live, item("a", prompt())) for _ in range(3)]
    for batch_id in ids:
        await ended(live, batch_id)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await live.get("/api/batches", params={"limit": 2, "status": "completed", **cursor})).json()
        seen += [batch["batchId"] for batch in page["batches"]]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert [batch_id for batch_id in seen if batch_id in ids] == ids[::-1]
    assert len(seen) == len(set(seen))
    since = (await live.get(f"/api/batches/{ids[1]}")).json()["createdAt"]
    found = (await live.get("/api/batches", params={"since": since})).json()["batches"]
    assert {batch["batchId"] for batch in found} >= {ids[1], ids[2]}
    assert ids[0] not in {batch["batchId"] for batch in found}
    for query in ({"status": "done"}, {"limit": 0}, {"cursor": "x"}, {"colour": "red"}, {"since": "yesterday"}):
        assert (await live.get("/api/batches", params=query)).status_code in (400, 422), query


# ----------------------------------------------------------------------------------------------- tenants


async def test_a_tenant_sees_its_own_batches(tmp_path: Path) -> None:
    """Those of others are not there, on any route; an idempotency key is one's own."""
    with alone(tmp_path) as built:
        database = await Database.open(built.database_url)
        keys = [(await KeyStore(database).add(tenant=tenant))[1] for tenant in ("acme", "other")]
        await database.close()
        door = gateway(built)
        acme, other = [door.client(headers={"Authorization": f"Bearer {key}"}) for key in keys]
        async with acme, other, door.client() as stranger:
            mine = (await sent(acme, upload_of(*THREE), "a key")).json()["batchId"]
            theirs = (await sent(other, upload_of(*THREE), "a key")).json()["batchId"]
            assert mine != theirs
            assert [batch["batchId"] for batch in (await listed(acme))[0]] == [mine]
            assert [batch["batchId"] for batch in (await listed(other))[0]] == [theirs]
            for method, path in (
                ("GET", ""),
                ("GET", "/output"),
                ("GET", "/errors"),
                ("GET", "/events"),
                ("POST", "/pause"),
                ("POST", "/resume"),
                ("POST", "/cancel"),
            ):
                answer = await other.request(method, f"/api/batches/{mine}{path}")
                unknown = await other.request(method, f"/api/batches/batch_unknown{path}")
                assert (answer.status_code, answer.json()) == (404, unknown.json())
                assert answer.json()["code"] == "batch_not_found"
                assert (await stranger.request(method, f"/api/batches/{mine}{path}")).status_code == 401
            assert (await acme.get(f"/api/batches/{mine}")).json()["status"] == "queued"
            assert (await sent(stranger, upload_of(*THREE))).status_code == 401
