"""Webhook secrets of tenants: made, listed, rotated while a delivery is being retried."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

import starter
from chatjobs.errors import InvalidSignature
from chatjobs.webhooks import verify, verify_legacy
from storage.engine.database import Database
from storage.engine.schema import webhook_secrets
from storage.keys import SecretStore, fingerprint_of
from tests.support.factories import make_body
from tests.support.receiver import Answer, Received, receiver
from tests.support.service import Service, service
from tests.support.stack import WEBHOOK_SECRET, stack

DAY = timedelta(hours=24)


@pytest.fixture
def secrets(database: Database) -> SecretStore:
    return SecretStore(database)


async def time_passes(database: Database, span: timedelta) -> None:
    """For the secrets: everything that was done to them was done so much earlier."""
    earlier = {c: webhook_secrets.c[c] - span // timedelta(microseconds=1) for c in ("created_at", "signs_until")}
    async with database.write() as connection:
        await connection.execute(update(webhook_secrets).values(earlier))


async def test_the_old_secret_signs_for_a_day_more(secrets: SecretStore, database: Database) -> None:
    """Newest first; each rotation ends one, and a second one within the day does not lengthen it."""
    assert await secrets.secrets_of("acme") == []
    _, first = await secrets.rotate("acme")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", first)
    await time_passes(database, timedelta(hours=1))
    _, second = await secrets.rotate("acme")
    assert await secrets.secrets_of("acme") == [second, first]
    await time_passes(database, DAY - timedelta(minutes=1))
    _, third = await secrets.rotate("acme")
    assert await secrets.secrets_of("acme") == [third, second, first]
    await time_passes(database, timedelta(minutes=1))
    assert await secrets.secrets_of("acme") == [third, second]
    await time_passes(database, DAY)
    assert await secrets.secrets_of("acme") == [third]


async def test_secrets_are_their_tenants_and_shown_once(secrets: SecretStore) -> None:
    made, plain = await secrets.rotate("acme")
    await secrets.rotate("other")
    assert await secrets.secrets_of("acme") == [plain]
    (listed,) = await secrets.list("acme")
    assert listed == made
    assert (listed.fingerprint, len(listed.fingerprint)) == (fingerprint_of(plain), 12)
    assert {one.tenant for one in await secrets.list()} == {"acme", "other"}
    assert plain not in repr(await secrets.list())


async def test_of_rotations_at_once_one_is_the_newest(secrets: SecretStore) -> None:
    await asyncio.gather(*(secrets.rotate("acme") for _ in range(5)))
    listed = await secrets.list("acme")
    assert len(listed) == 5
    assert [one.signs_until is None for one in listed] == [True, False, False, False, False]


# ------------------------------------------------------------------------------------ a delivery that is retried


def signed_by(request: Received, secret: str) -> bool:
    try:
        verify(request.body, request.headers, secrets=secret, now=datetime.now(UTC))
    except InvalidSignature:
        return False
    return True


async def test_rotated_while_retrying_either_secret_verifies(tmp_path: Path) -> None:
    """The receiver is down, the secret changes, the same delivery comes again: with both signatures, on the same bytes.

    A tenant without a secret has its delivery wait, and the default tenant's is the setting's.
    """
    with (
        stack(tmp_path, env={"CHATJOBS_WEBHOOK_ALLOW": "127.0.0.0/8"}) as running,
        receiver() as hooks,
    ):
        hooks.answer("/acme", [Answer(500), Answer(200)])
        async with service(running) as here:
            store = SecretStore(here.database)
            _, old = await store.rotate("acme")
            await submitted(here, "acme", hooks.url("/acme"))
            await submitted(here, "default", hooks.url("/default"))
            bare = await submitted(here, "bare", hooks.url("/bare"))
            (first,) = await hooks.arrived(path="/acme")
            _, new = await store.rotate("acme")
            _, second = await hooks.arrived(2, path="/acme", timeout=30)
            (default,) = await hooks.arrived(path="/default")
            assert [signed_by(first, secret) for secret in (old, new, WEBHOOK_SECRET)] == [True, False, False]
            assert [signed_by(second, secret) for secret in (old, new, WEBHOOK_SECRET)] == [True, True, False]
            assert signed_by(default, WEBHOOK_SECRET)
            assert verify_legacy(second.body, second.headers, secrets=new).data.status == "completed"
            assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
            (waiting,) = (await here.ended(bare)).deliveries
            assert waiting.status == "pending"
            assert hooks.requests("/bare") == []
        logs = "".join(process.log.read_text() for process in running.processes)
        assert not any(secret in logs for secret in (old, new, old[6:], new[6:]))


async def submitted(here: Service, tenant: str, url: str) -> str:
    accepted = await here.intake.accept(make_body(callback=url), tenant=tenant)
    await here.intake.start(accepted)
    return accepted.job_id


# --------------------------------------------------------------------------------------- the command line


def test_secrets_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATJOBS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("CHATJOBS_DATABASE_URL", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = starter.main(["secrets", *arguments])
        return code, *capsys.readouterr()

    code, out, err = call("rotate")
    assert (code, out) == (2, "")
    assert "Tenant default signs with WEBHOOK_SECRET: put the new secret in front of the old one" in err
    code, out, err = call("rotate", "--tenant", "acme")
    first = out.strip()
    assert (code, first[:6]) == (0, "whsec_")
    assert "shown this once" in err
    code, out, err = call("rotate", "--tenant", "acme", "--json")
    second = json.loads(out)
    code, out, err = call("list", "--tenant", "acme", "--json")
    newest, older = json.loads(out)["secrets"]
    assert newest == {name: value for name, value in second.items() if name != "secret"}
    assert older["fingerprint"] == fingerprint_of(first)
    left = datetime.fromisoformat(older["signsUntil"]) - datetime.now(UTC)
    assert DAY - timedelta(minutes=1) < left <= DAY
    code, shown, err = call("list")
    assert fingerprint_of(first) in shown
    assert not any(secret in text for secret in (first, second["secret"]) for text in (shown, out, err))
