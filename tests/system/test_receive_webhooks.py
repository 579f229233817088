"""docs/receive-webhooks.md: the receivers in it run, and believe only what we signed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from chatjobs.webhooks import read_otherwise, sign
from tests.support.needs import program
from tests.support.snippets import snippets
from tests.support.stack import ROOT, free_port, wait_until

SECRETS = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "a plain secret"]
OTHER = "a secret of somebody else"
BODY = (
    '{"event":"chat.completed","timestamp":"2026-01-02T03:04:05.000000Z","data":{"jobId":"job_1","requestId":"r",'
    '"status":"completed","model":"m","content":"Ça va 🌊","completedAt":"2026-01-02T03:04:05.000000Z","sha256":"00",'
    '"statusUrl":"/api/jobs/job_1"}}'
).encode()


def snippet(language: str) -> str:
    """The one block of code in that language."""
    (found,) = snippets("receive-webhooks.md", language)
    return found


@dataclass(frozen=True)
class Receiver:
    url: str
    log: Path

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        with httpx2.Client(trust_env=False, timeout=10) as client:
            return client.post(self.url, content=body, headers=headers).status_code

    def answers(self) -> bool:
        try:
            return self.post(b"", {}) == 400
        except httpx2.ConnectError:
            return False


def command(language: str, directory: Path, port: int) -> list[str]:
    """``language`` names a block of the page: python, js, or js hmac."""
    if language == "python":
        (directory / "receiver.py").write_text(snippet("python"))
        return [sys.executable, "-m", "uvicorn", "receiver:app", "--port", str(port), "--app-dir", str(directory)]
    (directory / "receiver.mjs").write_text(snippet(language))
    return [program("node"), str(directory / "receiver.mjs")]


@contextmanager
def started(language: str, directory: Path, secrets: Sequence[str] = SECRETS) -> Iterator[Receiver]:
    port, log = free_port(), directory / "receiver.log"
    env = os.environ | {"WEBHOOK_SECRET": ",".join(secrets), "PORT": str(port), "PYTHONPATH": str(ROOT)}
    with (
        log.open("wb") as out,
        subprocess.Popen(command(language, directory, port), env=env, stdout=out, stderr=out) as process,
    ):
        receiver = Receiver(f"http://127.0.0.1:{port}/hooks", log)
        try:
            assert wait_until(receiver.answers, timeout=20, give_up=lambda: process.poll() is not None), log.read_text()
            yield receiver
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["python", "js"])
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with started(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.mark.parametrize("secret", [*SECRETS, "C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "0123456789abcdef" * 4])
def test_a_library_gets_the_same_key_in_the_form_of_the_page(secret: str) -> None:
    """R8: base64 and hex without whsec_ are other bytes for the library than for us."""
    rules: dict[str, Any] = {}
    exec(snippet("python library"), rules)  # noqa: S102 - the page's own code
    assert rules["receiver"](secret).verify(BODY, signed([secret]))
    plain_base64 = read_otherwise(secret) is not None
    if plain_base64:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY, signed([secret]))
    assert plain_base64 == (secret not in SECRETS)
    assert secret not in (read_otherwise(secret) or "")


def signed(secrets: list[str], at: datetime | None = None) -> dict[str, str]:
    now = at or datetime.now(UTC)
    return sign(BODY, webhook_id="whe_1", timestamp=now, body_timestamp="2026-01-02T03:04:05.000000Z", secrets=secrets)


@pytest.mark.parametrize("secrets", [SECRETS[:1], SECRETS[1:], [OTHER, SECRETS[0]]], ids=["whsec_", "plain", "rotated"])
def test_what_we_signed_is_believed(receiver: Receiver, secrets: list[str]) -> None:
    assert receiver.post(BODY, signed(secrets)) == 204
    assert wait_until(lambda: "chat.completed job_1 Ça va 🌊" in receiver.log.read_text())


@pytest.mark.parametrize("minutes", [-6, 6])
def test_what_is_not_fresh_is_refused(receiver: Receiver, minutes: int) -> None:
    assert receiver.post(BODY, signed(SECRETS, datetime.now(UTC) + timedelta(minutes=minutes))) == 400


def test_what_others_signed_is_refused(receiver: Receiver) -> None:
    """Another secret, another body, another id, no signature."""
    good = signed(SECRETS)
    assert receiver.post(BODY, signed([OTHER])) == 400
    assert receiver.post(BODY.replace(b"job_1", b"job_2"), good) == 400
    assert receiver.post(BODY, good | {"webhook-id": "whe_2"}) == 400
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert receiver.post(BODY, {key: value for key, value in good.items() if key != name}) == 400
    assert receiver.post(BODY, good | {"webhook-timestamp": "soon"}) == 400


PLAIN = "6f1d2c3b4a5968778695a4b3c2d1e0f00112233445566778899aabbccddeeff0"
"""As `openssl rand -hex 32` makes it."""


def test_one_secret_for_both_kinds_of_receivers(tmp_path: Path) -> None:
    """A secret without whsec_ is the key as it stands for createHmac(secret); the other receivers of the page, and the
    libraries as the page gives it to them, verify the same message with it."""
    message = signed([PLAIN])
    with started("js hmac", tmp_path, [PLAIN]) as simple:
        assert simple.post(BODY, message) == 204
        assert wait_until(lambda: "chat.completed job_1" in simple.log.read_text())
        assert simple.post(BODY.replace(b"job_1", b"job_2"), message) == 400
        assert simple.post(BODY, signed([OTHER])) == 400
        assert simple.post(BODY, {}) == 400
        assert simple.post(BODY, signed([PLAIN, OTHER])) == 204, "the newest signs"
        assert simple.post(BODY, signed([OTHER, PLAIN])) == 400, "and no other"
    (directory := tmp_path / "standard").mkdir()
    with started("js", directory, [PLAIN]) as standard:
        assert standard.post(BODY, message) == 204
    rules: dict[str, Any] = {}
    exec(snippet("python library"), rules)  # noqa: S102 - the page's own code
    assert rules["receiver"](PLAIN).verify(BODY, message)
