"""Administration over HTTP: keys, secrets, limits of lanes, settings; by a real gateway on a real database."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from domain.errors import LastAdminKey, NotAdmin
from domain.roles import Role
from storage.engine.database import Database
from storage.engine.migrate import upgrade
from storage.keys import ApiKey, KeyAdmin, KeyStore
from storage.rate_limits.limiter import Limiter
from tests.support.factories import make_body
from tests.support.gateway import Gateway, alone, gateway
from tests.support.stack import Stack

FOREIGN = {"Origin": "https://evil.example"}
LANE = "0a1b2c3d:mistral-small"
SECRET_WORDS = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


# --------------------------------------------------------------------------------------------------- storage


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


async def test_a_change_of_a_role_is_news(keys: KeyStore) -> None:
    """Each one, also back to what it was."""
    key, _ = await keys.add(tenant="acme")
    assert key.role is Role.WRITE
    news = await keys.changed(None)
    assert news is not None
    for role in (Role.ADMIN, Role.READ, Role.ADMIN):
        assert (await keys.change(key.id, role=role)).role is role
        later = await keys.changed(news[0])
        assert later is not None
        assert [one.role for one in later[1]] == [role]
        news = later
    assert await keys.changed(news[0]) is None


async def test_admins_that_demote_each_other_at_once_leave_one(keys: KeyStore) -> None:
    """On both stores, in whatever order the transactions come."""
    for _ in range(5):
        one, other = [(await keys.add(tenant="acme", role=Role.ADMIN))[0] for _ in range(2)]
        results = await asyncio.gather(
            keys.change(one.id, role=Role.READ, by=KeyAdmin("acme", other.id)),
            keys.revoke(other.id, by=KeyAdmin("acme", one.id)),
            return_exceptions=True,
        )
        done = [result for result in results if isinstance(result, ApiKey)]
        assert len(done) == 1, results
        assert [type(result) for result in results if isinstance(result, Exception)] in ([NotAdmin], [LastAdminKey])
        for key in (one, other):
            await keys.revoke(key.id)


async def test_a_key_that_was_demoted_does_not_raise_itself(keys: KeyStore) -> None:
    """Though a gateway may not have noticed so far, and let the call through."""
    other, _ = await keys.add(tenant="acme", role=Role.ADMIN)
    demoted, _ = await keys.add(tenant="acme", role=Role.ADMIN)
    await keys.change(demoted.id, role=Role.WRITE, by=KeyAdmin("acme", other.id))
    mine = KeyAdmin("acme", demoted.id)
    for attempt in (
        lambda: keys.change(demoted.id, role=Role.ADMIN, by=mine),
        lambda: keys.add(tenant="acme", role=Role.ADMIN, by=mine),
        lambda: keys.revoke(other.id, by=mine),
    ):
        with pytest.raises(NotAdmin):
            await attempt()


async def test_keys_that_have_expired_take_no_place(keys: KeyStore) -> None:
    """Not in the memory of gateways, however many were made, and not in a list that has not room for all."""
    staying, _ = await keys.add(tenant="acme", role=Role.ADMIN)
    over = datetime.now(UTC) - timedelta(seconds=1)
    expired = [(await keys.add(tenant="acme", expires_at=over))[0] for _ in range(3)]
    news = await keys.changed(None)
    assert news is not None
    assert [key.id for key in news[1]] == [staying.id]
    assert [key.id for key in await keys.list("acme", limit=2)] == [expired[-1].id, staying.id]
    assert len(await keys.list("acme")) == 4


async def test_keys_from_before_roles_may_write(empty_database_url: str) -> None:
    """A database of the version before is migrated, and what its keys could do goes on."""
    old = Database.as_it_is(empty_database_url)
    async with old.write() as connection:
        await connection.run_sync(lambda sync: upgrade(sync, "0017"))
        added = "INSERT INTO api_keys (id, tenant, name, digest, created_at) VALUES ('key_old', 'acme', 'old', 'd', 1)"
        await connection.execute(text(added))
    await old.close()
    database = await Database.open(empty_database_url)
    try:
        [key] = await KeyStore(database).list()
        assert (key.id, key.role) == ("key_old", Role.WRITE)
        assert (await KeyStore(database).change(key.id, role=Role.ADMIN)).role is Role.ADMIN
    finally:
        await database.close()


# -------------------------------------------------------------------------------------------------- over HTTP


@dataclass
class Admins:
    """A gateway with an admin of the tenant acme and one of the operator's tenant."""

    client: httpx2.AsyncClient
    store: KeyStore
    limiter: Limiter
    admin: ApiKey
    plain: str
    operator: dict[str, str]
    log: Callable[[], str]

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.plain)

    async def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return await self.client.request(method, path, headers=self.headers, **options)

    async def made(self, **fields: Any) -> dict[str, Any]:
        answer = await self.call("POST", "/api/keys", json=fields)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {"WEBHOOK_SECRET": SECRET_WORDS, "CHATJOBS_RETENTION_DAYS": "12.5"}
    with alone(tmp_path_factory.mktemp("administration"), env) as stack:
        yield stack
        sys.stdout.write(stack.news())


@pytest.fixture(scope="module")
def door(built: Stack) -> Gateway:
    return gateway(built)


@asynccontextmanager
async def opened(built: Stack, door: Gateway) -> AsyncIterator[Admins]:
    database = await Database.open(built.database_url)
    try:
        store = KeyStore(database)
        for old in await store.list():
            await store.revoke(old.id)
        _, operator = await store.add(tenant="default", role=Role.ADMIN)
        admin, plain = await store.add(tenant="acme", role=Role.ADMIN, name="admin")
        async with door.client() as client:
            limiter = Limiter(database, per_second=10)
            yield Admins(client, store, limiter, admin, plain, bearer(operator), door.process.output)
    finally:
        await database.close()


@pytest.fixture
async def admins(built: Stack, door: Gateway) -> AsyncIterator[Admins]:
    async with opened(built, door) as found:
        yield found


async def test_a_key_is_shown_once_and_works_at_once(admins: Admins) -> None:
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = await admins.made(name="ci", role="read", expiresAt=until)
    plain = made.pop("key")
    assert plain.startswith("cj_")
    assert (made["name"], made["role"], made["state"], made["current"]) == ("ci", "read", "valid", False)
    assert (await admins.client.get("/api/jobs", headers=bearer(plain))).status_code == 200
    listed = (await admins.call("GET", "/api/keys")).json()["keys"]
    assert [one["id"] for one in listed[:2]] == [made["id"], admins.admin.id]
    assert listed[0] == made
    assert listed[1]["current"]
    changed = await admins.call("PATCH", f"/api/keys/{made['id']}", json={"role": "write", "name": "ci 2"})
    assert changed.json() == made | {"role": "write", "name": "ci 2"}
    started = await admins.client.post("/api/jobs", json=make_body(), headers=bearer(plain))
    assert started.status_code == 202, "the gateway that changed it knows at once"
    for _ in range(2):
        assert (await admins.call("DELETE", f"/api/keys/{made['id']}")).status_code == 204
    assert (await admins.client.get("/api/jobs", headers=bearer(plain))).status_code == 401
    everything = [(await admins.call("GET", path)).text for path in ("/api/keys", "/api/settings", "/api/secrets")]
    assert not [text for text in [*everything, admins.log()] if plain[3:] in text or admins.plain[3:] in text]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"role": "root"}, "/role"),
        ({"name": "n" * 129}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "/expiresAt"),
        ({"expiresAt": 4102444800}, "/expiresAt"),
        ({"expiresAt": "9999-12-31T23:59:59-23:00"}, "/expiresAt"),
        ({"expires_in": 3}, "/expires_in"),
        ([], ""),
    ],
)
async def test_a_key_that_cannot_be_made_is_422_with_the_place(admins: Admins, body: Any, pointer: str) -> None:
    answer = await admins.call("POST", "/api/keys", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    assert len(await admins.store.list("acme")) == len((await admins.call("GET", "/api/keys")).json()["keys"])


async def test_bodies_are_bounded_and_json(admins: Admins) -> None:
    for method, path in (("POST", "/api/keys"), ("PATCH", f"/api/keys/{admins.admin.id}")):
        large = await admins.call(method, path, json={"name": "n" * 20_000})
        assert large.status_code == 413
        wrong = await admins.call(method, path, content=b"{", params={})
        assert wrong.status_code == 415
    empty = await admins.call("PATCH", f"/api/keys/{admins.admin.id}", json={})
    assert empty.status_code == 422
    assert (await admins.call("GET", "/api/keys", params={"tenant": "other"})).status_code == 422


async def test_the_last_admin_key_stays(admins: Admins) -> None:
    """Not by revoking, not by demoting; a second admin makes both possible, one that has expired does not."""
    mine = f"/api/keys/{admins.admin.id}"
    await admins.store.add(tenant="acme", role=Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for answer in (await admins.call("DELETE", mine), await admins.call("PATCH", mine, json={"role": "write"})):
        assert (answer.status_code, answer.json()["code"]) == (409, "last_admin_key")
        assert "another key" in answer.json()["detail"]
    renamed = await admins.call("PATCH", mine, json={"name": "still admin"})
    assert (renamed.status_code, renamed.json()["role"]) == (200, "admin")
    await admins.made(role="admin")
    demoted = await admins.call("PATCH", mine, json={"role": "read"})
    assert (demoted.status_code, demoted.json()["role"]) == (200, "read")
    raised = await admins.call("PATCH", mine, json={"role": "admin"})
    assert (raised.status_code, raised.json()["code"]) == (403, "role_required")


async def test_another_tenants_keys_are_not_there(admins: Admins) -> None:
    theirs, _ = await admins.store.add(tenant="other", name="theirs")
    listed = (await admins.call("GET", "/api/keys")).json()["keys"]
    assert theirs.id not in [one["id"] for one in listed]
    for method, options in (("PATCH", {"json": {"role": "read"}}), ("DELETE", {})):
        for key_id in (theirs.id, "key_nobody", "%00"):
            answer = await admins.call(method, f"/api/keys/{key_id}", **options)
            assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")
    assert (await admins.store.list("other"))[0] == theirs


async def test_the_pages_cookie_manages_keys_from_its_own_origin_only(admins: Admins) -> None:
    login = await admins.client.post("/api/session", json={"key": admins.plain})
    assert login.json()["role"] == "admin"
    cookie = {"Cookie": login.headers["set-cookie"].partition(";")[0]}
    for headers in (FOREIGN, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
        answer = await admins.client.post("/api/keys", json={"role": "admin"}, headers=cookie | headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    own = {"Origin": str(admins.client.base_url).rstrip("/")}
    assert (await admins.client.post("/api/keys", json={}, headers=cookie | own)).status_code == 201


async def test_secrets_are_rotated_and_listed_by_fingerprint(admins: Admins) -> None:
    first = await admins.call("POST", "/api/secrets")
    second = await admins.call("POST", "/api/secrets")
    assert (first.status_code, second.status_code) == (201, 201)
    old, new = first.json(), second.json()
    assert new["fingerprint"] == hashlib.sha256(new["secret"].encode()).hexdigest()[:12]
    listed = (await admins.call("GET", "/api/secrets")).json()
    assert [one["id"] for one in listed["secrets"][:2]] == [new["id"], old["id"]]
    assert listed["inEnvironment"] is None
    assert listed["secrets"][0]["signsUntil"] is None
    left = datetime.fromisoformat(listed["secrets"][1]["signsUntil"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    shown = (await admins.call("GET", "/api/secrets")).text + admins.log()
    assert new["secret"] not in shown
    assert old["secret"] not in shown


async def test_the_operators_secret_is_in_the_environment(admins: Admins) -> None:
    listed = await admins.client.get("/api/secrets", headers=admins.operator)
    assert listed.json() == {"secrets": [], "inEnvironment": 1}
    rotated = await admins.client.post("/api/secrets", headers=admins.operator)
    assert (rotated.status_code, rotated.json()["code"]) == (409, "secret_in_environment")
    assert "WEBHOOK_SECRET" in rotated.json()["detail"]


async def test_settings_show_what_runs_and_no_secret(admins: Admins, built: Stack) -> None:
    shown = await admins.call("GET", "/api/settings")
    found = shown.json()
    values = {one["variable"]: (one["value"], one["unit"]) for one in found["environment"]}
    assert values["CHATJOBS_RETENTION_DAYS"] == (12.5, "days")
    assert values["CHATJOBS_MAX_BODY_BYTES"] == (8 * 1024 * 1024, "bytes")
    assert values["CHATJOBS_WEBHOOK_HTTP"][0] in (True, False)
    assert (found["tenant"], found["operator"], found["database"]) == ("acme", False, "sqlite")
    for secret in (SECRET_WORDS, admins.plain, built.database_url):
        assert secret not in shown.text


async def test_limits_are_the_operators_and_hold_for_all(admins: Admins) -> None:
    """Another tenant's admin is told why not, and does not see lanes that its jobs do not use."""
    await admins.limiter.set_limits(LANE, {"per_second": 3.0})
    wanted = {"perSecond": 2.5, "atOnce": 7, "tokensPerMinute": 1_000}
    path = f"/api/lanes/{LANE}/limits"
    refused = await admins.call("PUT", path, json=wanted)
    assert (refused.status_code, refused.json()["code"]) == (403, "operators_only")
    assert (await admins.call("GET", "/api/settings")).json()["lanes"] == []

    async def put(json: Any, lane: str = path) -> httpx2.Response:
        return await admins.client.put(lane, json=json, headers=admins.operator)

    set_to = (await put(wanted)).json()
    assert {name: set_to[name] for name in ("lane", "perSecondSet", "atOnce", "tokensPerMinuteSet")} == {
        "lane": LANE,
        "perSecondSet": 2.5,
        "atOnce": 7,
        "tokensPerMinuteSet": 1_000,
    }
    lanes = (await admins.client.get("/api/settings", headers=admins.operator)).json()["lanes"]
    assert lanes == [set_to]
    [lane] = await admins.limiter.lanes()
    assert (lane.per_second, lane.at_once, lane.tokens_per_minute) == (2.5, 7, 1_000)
    for wrong, pointer in (
        ({"perSecond": 0}, "/perSecond"),
        ({"atOnce": 1.5}, "/atOnce"),
        ({"tokensPerMinute": "9"}, "/tokensPerMinute"),
        ({"more": 1}, "/more"),
    ):
        answer = await put(wrong)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert (await put({"atOnce": 1}, "/api/lanes/nobody/limits")).status_code == 404
    await admins.limiter.record_success(LANE, per_minute=60)
    kept = (await put(wanted | {"atOnce": None})).json()
    assert (kept["perSecondSeen"], kept["atOnce"]) == (1.0, None), "what the headers said stays"
    cleared = (await put({})).json()
    assert (cleared["perSecondSet"], cleared["tokensPerMinuteSet"]) == (None, None)


# ---------------------------------------------------------------------------------------------- without keys


async def test_the_first_key_is_an_admins(tmp_path: Path) -> None:
    """Whoever closes the service must be able to open it to others."""
    with alone(tmp_path, {"CHATJOBS_CORS_ORIGINS": "https://app.example"}) as stack:
        door = gateway(stack)
        async with door.client() as client:
            assert (await client.get("/api/keys")).json() == {"keys": []}
            for body, pointer in (
                ({}, "/role"),
                ({"role": "admin", "expiresAt": "2999-01-01T00:00:00Z"}, "/expiresAt"),
            ):
                answer = await client.post("/api/keys", json=body)
                assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
            listed = {"Origin": "https://app.example"}
            theirs = await client.post("/api/keys", json={"role": "admin"}, headers=listed)
            assert theirs.status_code == 403, "a listed origin's page uses the service, and does not close it"
            assert (await client.post("/api/jobs", json=make_body(), headers=listed)).status_code == 202
            first = await client.post("/api/keys", json={"role": "admin"})
            assert first.status_code == 201
            assert (await client.get("/api/keys")).status_code == 401
            headers = bearer(first.json()["key"])
            assert (await client.post("/api/keys", json={}, headers=headers)).status_code == 201
