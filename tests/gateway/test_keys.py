"""Keys, cookies, stream tokens; and without keys, this machine only. Against real gateways and a real database."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

import starter
from domain.errors import KeyNotFound
from gateway.auth.access import COOKIE, STREAM_TOKEN_LASTS
from gateway.auth.origins import is_loopback
from gateway.auth.signed_tokens import SESSION, STREAM, SignedTokens
from storage.engine.database import Database
from storage.engine.schema import api_keys
from storage.keys import ApiKey, KeyStore, digest_of, shared_secret
from tests.support.factories import accepted, make_body, make_store
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import ROOT, Stack

WITHIN_SECONDS = 2.0
"""A key that is revoked is refused, and a first key asked for."""
STREAMS_WITHIN_SECONDS = 5.0
FOREIGN = {"Origin": "https://evil.example"}


# --------------------------------------------------------------------------------------------------- storage


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


async def test_a_key_is_kept_as_a_digest_only(keys: KeyStore, database: Database) -> None:
    """256 bits behind a prefix; what the database has is of no use to a thief."""
    key, plain = await keys.add(tenant="acme", name="ci")
    assert plain.startswith("cj_")
    assert len(plain) == 3 + 43
    assert await keys.find(digest_of(plain)) == key
    assert await keys.find(digest_of(plain + "x")) is None
    async with database.read() as connection:
        row = (await connection.execute(select(api_keys))).one()
    assert plain[3:] not in str(tuple(row))
    assert key.digest not in repr(key)


async def test_keys_are_listed_newest_first_also_when_they_are_over(keys: KeyStore) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    first, _ = await keys.add(tenant="acme", expires_at=past)
    second, _ = await keys.add(tenant="other", name="späte \U0001f511\0")
    assert [key.id for key in await keys.list()] == [second.id, first.id]
    assert [key.id for key in await keys.list("acme")] == [first.id]
    assert second.name == "späte \U0001f511\ufffd"
    assert not first.valid(datetime.now(UTC))
    assert first.valid(past - timedelta(seconds=1))


async def test_revoking_again_changes_nothing(keys: KeyStore) -> None:
    key, _ = await keys.add(tenant="acme")
    revoked = await keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert await keys.revoke(key.id) == revoked
    for nobody in ("key_nobody", "a\0b"):
        with pytest.raises(KeyNotFound):
            await keys.revoke(nobody)


async def test_news_of_keys_come_once(keys: KeyStore) -> None:
    empty = await keys.changed(None)
    assert empty is not None
    assert (empty[1], await keys.configured()) == ([], False)
    key, _ = await keys.add(tenant="acme")
    added = await keys.changed(empty[0])
    assert added is not None
    assert added[1] == [key]
    assert await keys.changed(added[0]) is None
    await keys.revoke(key.id)
    revoked = await keys.changed(added[0])
    assert revoked is not None
    assert revoked[1] == []
    assert await keys.configured(), "the last key is gone, and the door must not open"


async def test_gateways_that_start_together_share_one_secret(database: Database, database_url: str) -> None:
    other = await Database.open(database_url)
    try:
        found = await asyncio.gather(*(shared_secret(one, "tickets") for one in (database, other) * 5))
    finally:
        await other.close()
    assert len(set(found)) == 1
    assert len(found[0]) == 32
    assert await shared_secret(database, "another") != found[0]


# --------------------------------------------------------------------------------------------------- tickets


def test_a_ticket_is_good_for_one_purpose_and_time() -> None:
    signed_tokens, at = SignedTokens(b"s" * 32), datetime(2026, 1, 1, tzinfo=UTC)
    ticket = signed_tokens.issue(STREAM, "key_1", at + timedelta(seconds=60), "acme\njob_1")
    assert signed_tokens.key_id(STREAM, ticket, at, "acme\njob_1") == "key_1"
    assert signed_tokens.key_id(STREAM, ticket, at + timedelta(seconds=60), "acme\njob_1") is None
    assert signed_tokens.key_id(STREAM, ticket, at, "acme\njob_2") is None
    assert signed_tokens.key_id(SESSION, ticket, at, "acme\njob_1") is None
    assert SignedTokens(b"t" * 32).key_id(STREAM, ticket, at, "acme\njob_1") is None
    key_id, expires, signature = ticket.split(".")
    for forged in ("", ticket + "x", f"key_2.{expires}.{signature}", f"{key_id}.9{expires}.{signature}", f"{ticket}\n"):
        assert signed_tokens.key_id(STREAM, forged, at, "acme\njob_1") is None


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")),
        *((name, False) for name in ("0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.evil.example", "")),  # noqa: S104
        ("2130706433", False),
    ],
)
def test_what_is_loopback(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


# ------------------------------------------------------------------------------------- a gateway with keys


class Door:
    """A gateway, and its database as the command line has it."""

    def __init__(self, stack: Stack, gateway: Gateway, database: Database) -> None:
        self.stack = stack
        self.gateway = gateway
        self.keys = KeyStore(database)
        self.jobs = make_store(database)
        self.plain: list[str] = []

    async def key(self, tenant: str = "acme", expires_at: datetime | None = None) -> tuple[ApiKey, dict[str, str]]:
        """A new key, and the headers to send it with."""
        key, plain = await self.keys.add(tenant=tenant, expires_at=expires_at)
        self.plain.append(plain)
        return key, bearer(plain)

    def client(self, **options: Any) -> httpx2.AsyncClient:
        return self.gateway.client(**options)

    def log(self) -> str:
        return self.gateway.process.output()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def opened(stack: Stack, found: Gateway | None = None) -> AsyncIterator[Door]:
    database = await Database.open(stack.database_url)
    try:
        yield Door(stack, found or gateway(stack), database)
    finally:
        await database.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gateway]]:
    with alone(tmp_path_factory.mktemp("keys"), {"CHATJOBS_PUBLIC_URL": "https://jobs.example"}) as stack:
        yield stack, gateway(stack)


@pytest.fixture
async def door(shared: tuple[Stack, Gateway]) -> AsyncIterator[Door]:
    """A gateway that has keys."""
    async with opened(*shared) as door:
        await door.key()
        async with door.client() as client:
            await soon(lambda: refused(client))
        yield door
        sys.stdout.write(door.stack.news())


@pytest.fixture
async def open_door(tmp_path: Path) -> AsyncIterator[Door]:
    """A gateway without keys."""
    with alone(tmp_path) as stack:
        async with opened(stack) as door:
            yield door


async def soon(look: Callable[[], Awaitable[bool]], *, within: float = WITHIN_SECONDS) -> None:
    """Ask again and again. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not await look():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.02)


async def refused(client: httpx2.AsyncClient, **options: Any) -> bool:
    return (await client.get("/api/jobs", **options)).status_code == 401


async def read_to_the_end(response: httpx2.Response) -> None:
    async for _ in response.aiter_raw():
        pass


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(door: Door) -> None:
    _, expired = await door.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked_key, revoked = await door.key()
    await door.keys.revoke(revoked_key.id)
    _, good = await door.key()
    plain = good["Authorization"].split()[1]
    wrong: list[dict[str, str]] = [
        {},
        expired,
        revoked,
        bearer("cj_" + "A" * 43),
        bearer("A" * 10_000),
        bearer(plain + "A"),
        bearer(plain[:-1]),
        bearer(f"{plain} {plain}"),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {plain}"},
        {"Authorization": plain},
        {"Authorization": f"Bearer{plain}"},
    ]
    async with door.client() as client:
        answers = [await client.get("/api/jobs", headers=headers) for headers in wrong]
        names = ("key", "api_key", "access_token", "token", "authorization")
        answers += [await client.get("/api/jobs", params={name: plain}) for name in names]
        answers.append(await client.get("/api/jobs/job_1/events", params={"token": plain}))
        assert (await client.get("/api/jobs", headers=good)).status_code == 200
        assert (await client.get("/api/jobs", headers={"Authorization": f"bearer  {plain}"})).status_code == 200
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["code"] == "unauthorized"


async def test_whatever_is_wrong_with_a_key_it_takes_as_long(door: Door) -> None:
    """Medians over 1,000 requests of each kind, in turns on one connection, lie within a millisecond."""
    _, expired = await door.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked_key, revoked = await door.key()
    await door.keys.revoke(revoked_key.id)
    kinds = [expired, revoked, bearer("cj_" + "A" * 43), {"Authorization": "Bearer"}]
    heads = [request_head(kind) for kind in kinds]
    times: list[list[float]] = [[] for _ in kinds]
    host, _, port = door.gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(1_000):
        for kind, head in enumerate(heads):
            times[kind].append(await timed(reader, writer, head))
    writer.close()
    medians = [statistics.median(each) for each in times]
    assert max(medians) - min(medians) < 0.001, medians


def request_head(headers: dict[str, str]) -> bytes:
    lines = ["GET /api/jobs HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def timed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> float:
    """Seconds until a 401 was there as a whole."""
    began = time.perf_counter()
    writer.write(head)
    answer = await reader.readuntil(b"\r\n\r\n")
    ended = time.perf_counter() - began
    assert answer.startswith(b"HTTP/1.1 401")
    length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))
    return ended


async def test_a_key_works_as_soon_as_it_is_there(door: Door) -> None:
    async with door.client() as client:
        for _ in range(3):
            _, headers = await door.key()
            assert (await client.get("/api/jobs", headers=headers)).status_code == 200


async def test_a_key_that_is_revoked_or_expires_is_refused_and_its_streams_are_closed(door: Door) -> None:
    """Other keys' streams stay open."""
    revoked, first = await door.key()
    _, second = await door.key(expires_at=datetime.now(UTC) + timedelta(seconds=1))
    _, other = await door.key()
    path = f"/api/jobs/{await accepted(door.jobs, tenant='acme')}/events"
    async with (
        door.client() as client,
        client.stream("GET", path, headers=first) as mine,
        client.stream("GET", path, headers=second) as brief,
        client.stream("GET", path, headers=other) as theirs,
    ):
        staying = asyncio.create_task(read_to_the_end(theirs))
        await door.keys.revoke(revoked.id)
        async with asyncio.timeout(STREAMS_WITHIN_SECONDS):
            await asyncio.gather(read_to_the_end(mine), read_to_the_end(brief))
        assert await refused(client, headers=first)
        assert await refused(client, headers=second)
        assert not staying.done()
        staying.cancel()
        await asyncio.wait({staying})


# --------------------------------------------------------------------------------------------- stream tokens


async def test_a_stream_token_opens_one_stream_and_nothing_else(door: Door) -> None:
    key, headers = await door.key()
    job_id, another = await accepted(door.jobs, tenant="acme"), await accepted(door.jobs, tenant="acme")
    async with door.client() as client:
        answer = await client.post(f"/api/jobs/{job_id}/stream-token", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        token = {"token": answer.json()["token"]}
        lasts = datetime.fromisoformat(answer.json()["expiresAt"]) - datetime.now(UTC)
        assert STREAM_TOKEN_LASTS - timedelta(seconds=10) < lasts <= STREAM_TOKEN_LASTS
        async with client.stream("GET", f"/api/jobs/{job_id}/events", params=token) as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
        for method, path in (
            ("GET", f"/api/jobs/{another}/events"),
            ("GET", f"/api/jobs/{job_id}"),
            ("GET", "/api/jobs"),
            ("POST", f"/api/jobs/{job_id}/cancel"),
            ("POST", f"/api/jobs/{job_id}/stream-token"),
        ):
            assert (await client.request(method, path, params=token)).status_code == 401, path
        forged = {"token": token["token"].replace(key.id, (await door.key())[0].id)}
        assert (await client.get(f"/api/jobs/{job_id}/events", params=forged)).status_code == 401
        await door.keys.revoke(key.id)

        async def over() -> bool:
            async with client.stream("GET", f"/api/jobs/{job_id}/events", params=token) as stream:
                return stream.status_code == 401

        await soon(over)


async def test_tickets_of_one_gateway_are_good_at_another(door: Door) -> None:
    """And a key that one of them has never seen."""
    _, headers = await door.key()
    job_id = await accepted(door.jobs, tenant="acme")
    other = gateway(door.stack, "gateway-2")
    async with door.client() as here, other.client() as there:
        token = (await here.post(f"/api/jobs/{job_id}/stream-token", headers=headers)).json()["token"]
        async with there.stream("GET", f"/api/jobs/{job_id}/events", params={"token": token}) as stream:
            assert stream.status_code == 200
        cookie = await logged_in(here, headers)
        assert (await there.get("/api/jobs", headers=cookie)).status_code == 200
    other.process.stop()


# -------------------------------------------------------------------------------------------------- sessions


async def logged_in(client: httpx2.AsyncClient, key: dict[str, str]) -> dict[str, str]:
    """The headers of a page that exchanged its key for a cookie. (Clients here keep none: they are https only.)"""
    answer = await client.post("/api/session", json={"key": key["Authorization"].split()[1]})
    assert answer.status_code == 200, answer.text
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


async def test_a_page_exchanges_a_key_for_a_cookie(door: Door) -> None:
    key, headers = await door.key()
    async with door.client() as client:
        nobody = {"tenant": None, "role": None, "authenticated": False, "keysRequired": True}
        somebody = {"tenant": "acme", "role": "write", "authenticated": True, "keysRequired": True}
        assert (await client.get("/api/session")).json() == nobody
        answer = await client.post("/api/session", json={"key": headers["Authorization"].split()[1]})
        assert answer.json() == somebody
        name, *flags = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Secure", "Path=/"} <= set(flags)
        assert name.startswith(f"{COOKIE}={key.id}.")
        assert door.plain[-1][3:] not in name
        cookie = {"Cookie": name}
        assert (await client.get("/api/session", headers=cookie)).json() == somebody
        assert (await client.post("/api/jobs", json=make_body(), headers=cookie)).status_code == 202
        bye = await client.delete("/api/session", headers=cookie)
        assert bye.status_code == 204
        assert f'{COOKIE}=""' in bye.headers["set-cookie"]
        assert "Max-Age=0" in bye.headers["set-cookie"]
        await door.keys.revoke(key.id)
        await soon(lambda: refused(client, headers=cookie))
        assert (await client.get("/api/session", headers=cookie)).json() == nobody


async def test_nobody_logs_in_without_a_key(door: Door) -> None:
    async with door.client() as client:
        for body, status in (
            ({"key": "cj_" + "A" * 43}, 401),
            ({"key": ""}, 401),
            ({"key": 1}, 422),
            ({}, 422),
            ([], 422),
            ({"key": "x", "more": "y"}, 422),
            ({"key": "A" * 5_000}, 413),
        ):
            answer = await client.post("/api/session", json=body)
            assert (answer.status_code, "set-cookie" in answer.headers) == (status, False), body
        for cookie in ("", "x", "none.9999999999." + "A" * 43):
            assert await refused(client, headers={"Cookie": f"{COOKIE}={cookie}"})


async def test_another_origins_page_cannot_use_a_cookie(door: Door) -> None:
    """The browser sends it where SameSite is not enough: from another port, or another name of the same site."""
    _, headers = await door.key()
    own = httpx2.URL(door.gateway.url)
    async with door.client() as client:
        cookie = await logged_in(client, headers)

        async def start(**more: str) -> int:
            return (await client.post("/api/jobs", json=make_body(), headers=cookie | more)).status_code

        assert await start(Origin=door.gateway.url) == 202
        assert await start(Origin="https://jobs.example") == 202, "CHATJOBS_PUBLIC_URL"
        foreign = (
            "https://evil.example",
            "null",
            "http://127.0.0.1:1",
            f"http://localhost:{own.port}",
            "https://",
            "x",
        )
        for origin in foreign:
            assert await start(Origin=origin) == 403, origin
        assert await start(**{"Sec-Fetch-Site": "same-site"}) == 403
        assert await start(**{"Sec-Fetch-Site": "same-origin"}) == 202
        login = await client.post("/api/session", json={"key": door.plain[-1]}, headers=FOREIGN)
        assert (login.status_code, login.json()["code"]) == (403, "origin_not_allowed")
        assert (await client.delete("/api/session", headers=FOREIGN)).status_code == 403
        ours = await client.post("/api/jobs", json=make_body(), headers=headers | FOREIGN)
        assert ours.status_code == 202, "who has the key itself may come from anywhere"


# ---------------------------------------------------------------------------------------------- without keys


async def test_without_keys_this_machine_is_let_in_by_its_own_names(open_door: Door) -> None:
    """A name that somebody else made lead here is refused, and so are other origins' pages. Until there is a key."""
    port = httpx2.URL(open_door.gateway.url).port
    async with open_door.client() as client:
        session = await client.get("/api/session")
        assert session.json() == {
            "tenant": "default",
            "role": "admin",
            "authenticated": True,
            "keysRequired": False,
        }
        for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
            assert (await client.get("/api/jobs", headers={"Host": host})).status_code == 200, host
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example"):
            answer = await client.get("/api/jobs", headers={"Host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed"), host
        for origin in ("https://evil.example", "null", f"http://localhost:{port}", "http://127.0.0.1"):
            for path in ("/api/jobs", "/api/session"):
                answer = await client.get(path, headers={"Origin": origin})
                assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed"), origin
        started = await client.post("/api/jobs", json=make_body(), headers={"Origin": open_door.gateway.url})
        assert started.status_code == 202
        wrong = await client.get("/api/jobs", headers=bearer("cj_" + "A" * 43))
        assert wrong.status_code == 401, "who sends a key means somebody else than anybody"
        await open_door.key()
        await soon(lambda: refused(client))


async def test_the_first_key_closes_the_door(open_door: Door) -> None:
    """It counts as its own tenant's at once; who came without is refused, and streams without a key are closed."""
    job_id = await accepted(open_door.jobs)
    async with open_door.client() as client, client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        first, headers = await open_door.key("acme")
        assert (await client.get("/api/session", headers=headers)).json()["tenant"] == "acme"
        assert await refused(client)
        async with asyncio.timeout(STREAMS_WITHIN_SECONDS):
            await read_to_the_end(stream)
        await open_door.keys.revoke(first.id)
        await soon(lambda: refused(client, headers=headers))
        assert await refused(client), "a key that is gone does not open the door again"


async def test_without_keys_it_does_not_listen_to_the_network(tmp_path: Path) -> None:
    """One line says what to do; with a key it starts."""
    with alone(tmp_path, {"CHATJOBS_HOST": "0.0.0.0"}) as stack:  # noqa: S104
        refusing = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "gateway"], cwd=ROOT, env=stack.env, capture_output=True, text=True
        )
        assert refusing.returncode == 2
        complaint = refusing.stderr.splitlines()[-1]
        assert complaint.startswith("gateway: Without keys the gateway listens on loopback only; add a key")
        assert "Traceback" not in refusing.stderr
        assert "listening" not in refusing.stderr
        database = await Database.open(stack.database_url)
        await KeyStore(database).add(tenant="acme")
        await database.close()
        async with httpx2.AsyncClient(trust_env=False) as client:
            url = gateway(stack).url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            assert (await client.get(f"{url}/api/jobs")).status_code == 401


# --------------------------------------------------------------------------------------- the command line


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("CHATJOBS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("CHATJOBS_DATABASE_URL", raising=False)

    def called(*arguments: str) -> tuple[int, str, str]:
        code = starter.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return called


def test_keys_by_the_command_line(call: Callable[..., tuple[int, str, str]]) -> None:
    """A script gets the key and nothing else on standard output; lists and errors never show it again."""
    code, out, err = call("keys", "list")
    assert code == 3, "looking must not make a database in the wrong place"
    code, out, err = call("keys", "add", "--tenant", "acme", "--name", "ci", "--expires", "30d")
    plain = out.strip()
    assert (code, out.count("\n"), plain[:3]) == (0, 1, "cj_")
    assert "It is the first" in err
    code, out, err = call("keys", "add", "--json")
    second = json.loads(out)
    assert (second["tenant"], second["expiresAt"], err) == ("default", None, "")
    code, out, err = call("keys", "list", "--json")
    newest, oldest = json.loads(out)["keys"]
    assert newest == {name: value for name, value in second.items() if name != "key"}
    assert (oldest["tenant"], oldest["name"], oldest["state"]) == ("acme", "ci", "valid")
    left = datetime.fromisoformat(oldest["expiresAt"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    code, shown, err = call("keys", "list", "--tenant", "acme")
    assert oldest["id"] in shown
    assert second["id"] not in shown
    assert call("keys", "revoke", oldest["id"])[0] == 0
    code, out, err = call("keys", "revoke", second["id"])
    assert (code, out) == (0, f"{second['id']} revoked\n")
    assert "no valid key is left" in err
    assert not any(secret in text for secret in (plain, second["key"]) for text in (shown, err, out))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keys", "revoke", "key_nobody"], "no key with this id"),
        (["keys", "add", "--expires", "2020-01-01T00:00Z"], "must be a time to come"),
        (["keys", "add", "--expires", "tomorrow"], "neither a time"),
        (["keys", "add", "--expires", "9999-12-31T23:59:59-23:00"], "neither a time"),
        (["list", "--since", "999999d"], "neither a time"),
        (["keys", "add", "--tenant", "a b"], "must be 1 to 128 letters"),
        (["keys", "add", "--name", "n" * 129], "at most 128 printable"),
    ],
)
def test_mistyped_is_2_and_says_what_is_wrong(
    call: Callable[..., tuple[int, str, str]], arguments: list[str], words: str
) -> None:
    assert call("keys", "add")[0] == 0
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in err


# ----------------------------------------------------------------------------------------------------- at last


async def test_the_log_has_no_key(door: Door) -> None:
    """Whatever was done with keys in this file, by header, body or query."""
    _, headers = await door.key()
    plain = door.plain[-1]
    async with door.client() as client:
        cookie = await logged_in(client, headers)
        await client.get("/api/jobs", params={"key": plain, "token": plain})
        await client.post("/api/session", json={"key": plain, "more": 1})
        await client.get(f"/api/{plain}")
    log = door.log()
    assert "session_opened" in log
    assert "cj_" not in log
    assert cookie["Cookie"].partition("=")[2] not in log
