"""Mistral's files API with Mistral's client: what is uploaded comes back, for its tenant alone; nothing else stays."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from sqlalchemy import func, select

from storage.engine.database import Database
from storage.engine.schema import file_chunks, files
from storage.files.uploads import FileUploads
from storage.keys import KeyStore
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import Stack

pytestmark = pytest.mark.long

PATIENCE = 60.0
LIMIT = 4 * 1024 * 1024
MEGABYTE = 1024 * 1024
LINES = b'{"custom_id": "0", "body": {"messages": []}}\n\n{"custom_id": "1"}'
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
BOUNDARY = "boundary-of-the-form"
FORM = {"Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"'}
NEVER = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def entrance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    """A gateway without Temporal or workers: files need neither."""
    with alone(tmp_path_factory.mktemp("files"), {"CHATJOBS_MAX_FILE_BYTES": str(LIMIT)}) as built:
        yield built, gateway(built)


@pytest.fixture
def mistral(entrance: tuple[Stack, Gateway]) -> Iterator[Mistral]:
    with Mistral(api_key="any", server_url=entrance[1].url) as client:
        yield client
    sys.stdout.write(entrance[0].news())


@pytest.fixture
async def http(entrance: tuple[Stack, Gateway]) -> AsyncIterator[httpx2.AsyncClient]:
    async with entrance[1].client() as client:
        yield client


def uploaded(mistral: Mistral, content: bytes = LINES, name: str = "in.jsonl", **fields: Any) -> Any:
    return mistral.files.upload(file={"file_name": name, "content": content}, **({"purpose": "batch"} | fields))


def downloaded(mistral: Mistral, file_id: str) -> bytes:
    return bytes(mistral.files.download(file_id=file_id).read())


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FILE = part("file", LINES, '; filename="in.jsonl"')
PURPOSE = part("purpose", b"batch")


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url)
    try:
        yield database
    finally:
        await database.close()


async def rows(database: Database) -> tuple[int, int]:
    """Files and pieces, seen or not."""
    async with database.read() as connection:
        found = await connection.scalar(select(func.count()).select_from(files))
        pieces = await connection.scalar(select(func.count()).select_from(file_chunks))
    return int(found or 0), int(pieces or 0)


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(PATIENCE):
        while not await look():  # noqa: ASYNC110 - rows do not say when they change
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------------------------------- what clients do


def test_an_uploaded_file_is_described_and_comes_back(mistral: Mistral) -> None:
    before = int(time.time())
    file = uploaded(mistral, name="Größe 🌊.jsonl")
    assert UUID.fullmatch(file.id)
    assert (file.object, file.purpose, file.sample_type, file.source) == ("file", "batch", "batch_request", "upload")
    assert (file.size_bytes, file.num_lines, file.filename) == (len(LINES), 3, "Größe 🌊.jsonl")
    assert (file.mimetype, file.visibility) == ("application/jsonl", "workspace")
    assert file.expires_at == file.created_at + 30 * 24 * 3600, "the retention"
    assert before <= file.created_at <= time.time()
    shown = mistral.files.retrieve(file_id=file.id)
    assert shown.model_dump() == file.model_dump() | {"deleted": False}
    assert downloaded(mistral, file.id) == LINES


def test_what_is_asked_beside_the_file_is_done(mistral: Mistral) -> None:
    file = uploaded(mistral, visibility="workspace", expiry=2)
    assert file.expires_at - file.created_at in (7199, 7200)


async def test_any_bytes_come_back(http: httpx2.AsyncClient) -> None:
    """Also those that begin like the end of the form, cut anywhere, in more than one stored piece."""
    content = (bytes(range(256)) + f"\r\n--{BOUNDARY[:-1]}\r\n--\r".encode()) * 4_000
    body = form(PURPOSE, part("file", content, '; filename="f"'))
    answer = await http.post("/v1/files", content=in_pieces(body, 1_013), headers=FORM)
    found = (await http.get(f"/v1/files/{answer.json()['id']}/content")).content
    assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()


def test_a_deleted_file_is_gone(mistral: Mistral) -> None:
    file = uploaded(mistral)
    gone = mistral.files.delete(file_id=file.id)
    assert (gone.id, gone.object, gone.deleted) == (file.id, "file", True)
    for call in (mistral.files.retrieve, mistral.files.download, mistral.files.delete):
        assert refusal(partial(call, file_id=file.id))[0] == 404


def test_the_list_has_pages_and_filters(mistral: Mistral) -> None:
    mark = f"list-{time.monotonic_ns()}"
    ids = [uploaded(mistral, name=f"{mark}-{number}.jsonl").id for number in range(5)]
    pages = [mistral.files.list(search=mark, page=page, page_size=2) for page in range(4)]
    assert [[file.id for file in page.data] for page in pages] == [ids[:2:-1], ids[2:0:-1], ids[:1], []]
    assert [page.total for page in pages] == [5] * 4
    assert mistral.files.list(search=mark, include_total=False).total is None

    def total(**filters: Any) -> Any:
        return mistral.files.list(search=mark, **filters).total

    assert total(purpose="batch", source=["upload", "mistral"], sample_type=["batch_request"]) == 5
    assert total(purpose="ocr") == total(source=["repository"]) == total(sample_type=["batch_error"]) == 0
    assert total(mimetypes=["application/jsonl"]) == 5
    assert total(mimetypes=["text/csv"]) == 0


def test_a_signed_url_needs_no_key(mistral: Mistral) -> None:
    url = mistral.files.get_signed_url(file_id=uploaded(mistral).id, expiry=1).url
    assert httpx2.get(url, trust_env=False).content == LINES


# ---------------------------------------------------------------------------------------- what is refused


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    """The status and the message of a refusal, which has Mistral's form."""
    with pytest.raises(SDKError) as caught:
        call()
    error = json.loads(caught.value.body)
    assert error["object"] == "error"
    return caught.value.status_code, error["message"]


@pytest.mark.parametrize("purpose", ["fine-tune", "ocr", "agentic_safety", None])
def test_a_file_that_nothing_here_reads_is_refused(mistral: Mistral, purpose: str | None) -> None:
    status, message = refusal(lambda: uploaded(mistral, purpose=purpose))
    assert status == 422
    assert "purpose" in message
    assert "batch" in message


def test_an_empty_file_is_refused(mistral: Mistral) -> None:
    assert refusal(lambda: uploaded(mistral, b"")) == (
        422,
        "The request is not valid; correct the fields named and send it again: "
        "file: is empty; write a JSON object into each line",
    )


def test_a_file_that_is_too_large_is_refused(mistral: Mistral) -> None:
    assert uploaded(mistral, b"x" * LIMIT).size_bytes == LIMIT
    status, message = refusal(lambda: uploaded(mistral, b"x" * (LIMIT + 1)))
    assert status == 413
    assert str(LIMIT) in message


@pytest.mark.parametrize("file_id", [NEVER, "none", "%00", NEVER.upper(), "..%2Fjobs"])
@pytest.mark.parametrize("end", ["", "/content", "/url"])
async def test_an_id_that_is_none_is_not_found(http: httpx2.AsyncClient, file_id: str, end: str) -> None:
    answer = await http.get(f"/v1/files/{file_id}{end}")
    assert answer.status_code == 404, answer.text


FORMS: dict[str, tuple[bytes, int]] = {
    "no file": (form(PURPOSE), 422),
    "no purpose": (form(FILE), 422),
    "a file without a name": (form(part("file", LINES), PURPOSE), 422),
    "two files": (form(FILE, FILE, PURPOSE), 422),
    "a wrong expiry": (form(FILE, PURPOSE, part("expiry", b"-1")), 422),
    "a wrong visibility": (form(FILE, PURPOSE, part("visibility", b"user")), 422),
    "a field that is long": (form(PURPOSE, part("other", b"x" * 5_000), FILE), 413),
    "no end": (FILE + PURPOSE, 400),
    "no form": (b"hello", 400),
    "nothing": (b"", 400),
    "a field without a name": (FILE + b"--" + BOUNDARY.encode() + b"\r\n\r\nx\r\n" + form(PURPOSE), 400),
    "many fields": (form(*[part("other", b"x")] * 200, FILE, PURPOSE), 400),
    "a header that is long": (form(part("file", LINES, "; x=" + "y" * 10_000)), 400),
}


@pytest.mark.parametrize(("body", "status"), FORMS.values(), ids=FORMS.keys())
async def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    entrance: tuple[Stack, Gateway], http: httpx2.AsyncClient, body: bytes, status: int
) -> None:
    async with opened(entrance[0].database_url) as database:
        before = await rows(database)
        answer = await http.post("/v1/files", content=body, headers=FORM)
        assert answer.status_code == status, answer.text
        assert answer.json()["object"] == "error"
        await until(lambda: same(rows(database), before))


async def test_the_cursor_of_another_api_is_refused(http: httpx2.AsyncClient) -> None:
    """OpenAI's client would take each answer for the next page, and read for ever."""
    assert (await http.get("/v1/files", params={"limit": 1})).status_code == 200
    assert (await http.get("/v1/files", params={"after": NEVER})).status_code == 422


async def same(found: Awaitable[Any], wanted: Any) -> bool:
    return bool(await found == wanted)


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_the_form_may_be_cut_anywhere_and_have_any_order(http: httpx2.AsyncClient, size: int) -> None:
    other = part("other", b"ignored")
    for body in (form(FILE, other, PURPOSE), form(PURPOSE, FILE, other)):
        answer = await http.post("/v1/files", content=in_pieces(body, size), headers=FORM)
        assert answer.status_code == 200, answer.text
        assert (await http.get(f"/v1/files/{answer.json()['id']}/content")).content == LINES


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary="])
async def test_another_type_of_body_is_refused(http: httpx2.AsyncClient, kind: str) -> None:
    answer = await http.post("/v1/files", content=form(FILE, PURPOSE), headers={"Content-Type": kind})
    assert answer.status_code == 415, answer.text


# ------------------------------------------------------------------------------------------------ tenants


async def keys_of(database_url: str, tenants: Sequence[str]) -> list[str]:
    async with opened(database_url) as database:
        return [(await KeyStore(database).add(tenant=tenant))[1] for tenant in tenants]


def test_a_file_is_for_its_tenant_alone(tmp_path: Path) -> None:
    with alone(tmp_path) as built:
        mine, others = asyncio.run(keys_of(built.database_url, ["acme", "other"]))
        door = gateway(built)
        with Mistral(api_key=mine, server_url=door.url) as acme, Mistral(api_key=others, server_url=door.url) as other:
            file = uploaded(acme)
            calls = (other.files.retrieve, other.files.download, other.files.delete, other.files.get_signed_url)
            for call in calls:
                assert refusal(partial(call, file_id=file.id))[0] == 404
            assert other.files.list().total == 0
            url = acme.files.get_signed_url(file_id=file.id).url
            assert httpx2.get(url, trust_env=False).content == LINES
            second = uploaded(acme).id
            for wrong in (
                url.replace(file.id, second),
                url[:-1] + ("A" if url[-1] != "A" else "B"),
                url.partition("?")[0],
            ):
                assert httpx2.get(wrong, trust_env=False).status_code == 401
            with Mistral(api_key="cj_wrong", server_url=door.url) as nobody:
                assert refusal(lambda: uploaded(nobody))[0] == 401
            assert acme.files.list().total == 2


# -------------------------------------------------------------------------------------- uploads that break


@asynccontextmanager
async def under_way(door: Gateway, database: Database) -> AsyncIterator[asyncio.Task[Any]]:
    """An upload of which some pieces are stored, and that goes on for ever."""

    async def endless() -> AsyncIterator[bytes]:
        yield PURPOSE + f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
        while True:
            yield b"x" * 64 * 1024
            await asyncio.sleep(0.01)

    before = await rows(database)
    async with door.client() as http:
        sending = asyncio.create_task(http.post("/v1/files", content=endless(), headers=FORM))
        await until(lambda: more(rows(database), before))
        yield sending
        sending.cancel()
        await asyncio.wait([sending])


async def more(found: Awaitable[tuple[int, int]], before: tuple[int, int]) -> bool:
    return (await found)[1] > before[1] + 1


async def test_an_upload_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    with alone(tmp_path) as built:
        door = gateway(built)
        async with opened(built.database_url) as database:
            async with under_way(door, database) as sending:
                sending.cancel()
            await until(lambda: same(rows(database), (0, 0)))


async def test_an_upload_whose_gateway_is_killed_is_no_file_and_is_removed_later(tmp_path: Path) -> None:
    with alone(tmp_path) as built:
        door = gateway(built)
        async with opened(built.database_url) as database:
            async with under_way(door, database):
                door.process.kill()
            assert (await rows(database))[0] == 1
            again = gateway(built, "gateway-2")
            async with Mistral(api_key="any", server_url=again.url) as mistral:
                assert (await mistral.files.list_async()).total == 0
                kept = await mistral.files.upload_async(file={"file_name": "f", "content": LINES}, purpose="batch")
            uploads = FileUploads(database)
            assert await uploads.discard_abandoned() == 0  # the sweeper's own patience is an hour
            assert await uploads.discard_abandoned(timedelta(0)) == 1
            assert await rows(database) == (1, 1)
            assert kept.size_bytes == len(LINES)


def resident(pid: int, name: str) -> int:
    """Bytes of memory: ``VmRSS`` now, ``VmHWM`` at the most so far."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("megabytes", [100])
async def test_memory_is_flat_while_a_large_file_comes_and_goes(
    database_url: str, tmp_path: Path, megabytes: int
) -> None:
    """And while it is read again; others are answered meanwhile."""
    line = json.dumps({"body": {"messages": [{"role": "user", "content": "x" * 960}]}}).encode() + b"\n"
    block = line * (MEGABYTE // len(line))

    async def body() -> AsyncIterator[bytes]:
        yield PURPOSE + f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
        for _ in range(megabytes):
            yield block
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    with alone(tmp_path, {"CHATJOBS_DATABASE_URL": database_url}) as built:
        door = gateway(built)
        async with door.client() as http:
            await http.post("/v1/files", content=form(FILE, PURPOSE), headers=FORM)
            before = resident(door.process.pid, "VmRSS")
            async with watching(door) as slowest:
                answer = await http.post("/v1/files", content=body(), headers=FORM, timeout=300)
                assert answer.status_code == 200, answer.text
                assert answer.json()["bytes"] == megabytes * len(block)
                assert answer.json()["num_lines"] == megabytes * block.count(b"\n")
                size = 0
                async with http.stream("GET", f"/v1/files/{answer.json()['id']}/content", timeout=300) as response:
                    async for piece in response.aiter_bytes():
                        size += len(piece)
                assert size == megabytes * len(block)
            assert resident(door.process.pid, "VmHWM") - before < 20 * MEGABYTE
            assert max(slowest) < 1.0


@asynccontextmanager
async def watching(door: Gateway) -> AsyncIterator[list[float]]:
    """The seconds that another client's requests take meanwhile."""
    taken: list[float] = []

    async def ask() -> None:
        async with door.client() as http:
            while True:
                began = time.monotonic()
                await http.get("/v1/files?page_size=1")
                taken.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    try:
        yield taken
        assert len(taken) > 3
    finally:
        asking.cancel()
        await asyncio.wait([asking])
