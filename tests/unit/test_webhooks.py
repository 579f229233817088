"""Webhooks are signed as the Standard Webhooks specification says, and nothing else verifies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given, settings
from hypothesis import strategies as st

from chatjobs.contracts import (
    BatchEventType,
    BatchWebhookEvent,
    JobStatus,
    Usage,
    WebhookData,
    WebhookEvent,
    WebhookEventType,
    rfc3339,
)
from chatjobs.errors import InvalidSecret, InvalidSignature
from chatjobs.webhooks import sign, verify, verify_any, verify_legacy
from tests.support.npm import NODE, installed

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PLAIN_SECRET = "schlüssel, not base64!"


def make_event(content: str = "Hello there, général Kenobi…") -> WebhookEvent:
    data = WebhookData(
        job_id="job_1",
        request_id="req-1",
        status=JobStatus.COMPLETED,
        model="mistral-small-latest",
        content=content,
        usage=Usage(prompt_tokens=5, completion_tokens=9, total_tokens=14),
        completed_at=NOW,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        status_url="/api/jobs/job_1",
    )
    return WebhookEvent(event=WebhookEventType.COMPLETED, timestamp=NOW, data=data)


def make_body(**changes: Any) -> bytes:
    """An event's body; ``changes`` replace fields of it."""
    return json.dumps(json.loads(make_event().model_dump_json()) | changes).encode()


def signed(
    body: bytes, *, webhook_id: str = "whe_1", at: datetime = NOW, secrets: str | list[str] = SECRET
) -> dict[str, str]:
    return sign(body, webhook_id=webhook_id, timestamp=at, body_timestamp=rfc3339(NOW), secrets=secrets)


BODY = make_event().model_dump_json().encode()
HEADERS = signed(BODY)
GOOD = HEADERS["webhook-signature"].removeprefix("v1,")


# ------------------------------------------------------------------------------------------------ signing


def test_the_specification_vector() -> None:
    """The vector in the tests of the specification's own libraries."""
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signed(b'{"test": 2432232314}', webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", at=at)
    assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_headers_of_a_try() -> None:
    """Exactly the six headers of the wire; the seed's are the hex HMAC of the body and the body's own time."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    assert set(HEADERS) == {
        "content-type",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "x-webhook-signature",
        "x-webhook-timestamp",
    }
    assert HEADERS["content-type"] == "application/json"
    assert HEADERS["x-webhook-signature"] == hmac.new(key, BODY, hashlib.sha256).hexdigest()
    assert HEADERS["x-webhook-timestamp"] == json.loads(BODY)["timestamp"]


def test_a_time_in_another_zone_signs_as_the_same_moment() -> None:
    """The package alone would sign the wall clock of the zone as if it were UTC."""
    assert signed(BODY, at=NOW.astimezone(timezone(timedelta(hours=9)))) == HEADERS


def test_every_secret_signs_newest_first() -> None:
    headers = signed(BODY, secrets=[SECRET, OLD_SECRET])
    each = [signed(BODY, secrets=[secret])["webhook-signature"] for secret in (SECRET, OLD_SECRET)]
    assert headers["webhook-signature"] == " ".join(each)
    assert headers["x-webhook-signature"] == HEADERS["x-webhook-signature"]


def test_a_plain_secret_is_its_utf8_bytes() -> None:
    expected = hmac.new(PLAIN_SECRET.encode(), b"whe_1.1767323045." + BODY, hashlib.sha256).digest()
    headers = signed(BODY, secrets=PLAIN_SECRET)
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()


def test_base64_padding_may_be_missing() -> None:
    padded = "whsec_" + base64.b64encode(b"seventeen bytes!!").decode()
    assert padded.endswith("=")
    assert signed(BODY, secrets=padded.rstrip("=")) == signed(BODY, secrets=padded)


UNUSABLE = ["whsec_", "whsec_=", "whsec_A", "whsec_!!!!", "whsec_ab cd", "whsec_ab-_", "whsec_YWI=YWI="]
UNUSABLE += ["whsec_YWJj\n", "whsec_é"]


@pytest.mark.parametrize(
    "secrets",
    ["", [], [SECRET, ""], "\ud800", *UNUSABLE],
    ids=repr,
)
def test_an_unusable_secret_is_refused(secrets: str | list[str]) -> None:
    """Also what the package would take by skipping the characters that are not base64."""
    with pytest.raises(InvalidSecret):
        signed(BODY, secrets=secrets)
    with pytest.raises(InvalidSecret):
        verify(BODY, HEADERS, secrets=secrets, now=NOW)
    with pytest.raises(InvalidSecret):
        verify_legacy(BODY, HEADERS, secrets=secrets)


def test_naive_times_are_refused() -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="aware"):
        signed(BODY, at=naive)
    with pytest.raises(ValueError, match="aware"):
        verify(BODY, HEADERS, secrets=SECRET, now=naive)


# ---------------------------------------------------------------------------------------------- verifying


def test_what_was_signed_comes_back_as_the_event() -> None:
    assert verify(BODY, HEADERS, secrets=SECRET, now=NOW) == make_event()


BATCH_BODY = json.dumps(
    {
        "event": "batch.completed",
        "timestamp": rfc3339(NOW),
        "data": {
            "batchId": "batch_1",
            "status": "completed",
            "counts": {"total": 3, "completed": 3},
            "statusUrl": "/api/batches/batch_1",
            "outputUrl": "/api/batches/batch_1/output",
            "errorsUrl": "/api/batches/batch_1/errors",
            "fieldOfANewerService": 1,
        },
    }
).encode()


def test_the_event_of_a_batch_comes_back() -> None:
    """Where it is expected: who expects jobs alone is told, and not given something else."""
    event = verify_any(BATCH_BODY, signed(BATCH_BODY), secrets=SECRET, now=NOW)
    assert isinstance(event, BatchWebhookEvent)
    assert (event.event, event.data.batch_id, event.data.counts.completed) == (BatchEventType.COMPLETED, "batch_1", 3)
    assert verify_any(BODY, HEADERS, secrets=SECRET, now=NOW) == make_event()
    with pytest.raises(InvalidSignature):
        verify(BATCH_BODY, signed(BATCH_BODY), secrets=SECRET, now=NOW)
    for body in (BATCH_BODY + b" ", BODY):
        with pytest.raises(InvalidSignature):
            verify_any(body, signed(BATCH_BODY), secrets=SECRET, now=NOW)
    for body in (b"[]", b"x", b'{"event": 7}', b'{"event": "batch.completed"}'):
        with pytest.raises(InvalidSignature):
            verify_any(body, signed(body), secrets=SECRET, now=NOW)


def test_header_names_may_be_in_any_case() -> None:
    assert verify(BODY, {name.title(): value for name, value in HEADERS.items()}, secrets=SECRET, now=NOW)


@pytest.mark.parametrize("known", [SECRET, OLD_SECRET, [OLD_SECRET, PLAIN_SECRET]])
def test_while_secrets_rotate_either_verifies(known: str | list[str]) -> None:
    headers = signed(BODY, secrets=[SECRET, OLD_SECRET])
    assert verify(BODY, headers, secrets=known, now=NOW)


def test_a_secret_of_someone_else_does_not_verify() -> None:
    with pytest.raises(InvalidSignature, match="no v1 signature"):
        verify(BODY, HEADERS, secrets=[OLD_SECRET, PLAIN_SECRET], now=NOW)


def test_signatures_of_other_versions_are_passed_over() -> None:
    """The list of the specification's own tests: other versions and other secrets around the good one."""
    others = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="
    headers = HEADERS | {"webhook-signature": f"{others} v1a,{GOOD} v1,{GOOD} {others}"}
    assert verify(BODY, headers, secrets=SECRET, now=NOW)


@pytest.mark.parametrize("seconds", [-300, -299, 0, 299, 300])
def test_five_minutes_either_way_are_fine(seconds: int) -> None:
    assert verify(BODY, HEADERS, secrets=SECRET, now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize(("seconds", "why"), [(301, "old"), (-301, "new"), (10**9, "old"), (300.001, "old")])
def test_more_than_five_minutes_are_not(seconds: float, why: str) -> None:
    with pytest.raises(InvalidSignature, match=f"too {why}"):
        verify(BODY, HEADERS, secrets=SECRET, now=NOW + timedelta(seconds=seconds))


def test_the_tolerance_may_be_chosen() -> None:
    later = NOW + timedelta(hours=1)
    assert verify(BODY, HEADERS, secrets=SECRET, now=later, tolerance=timedelta(hours=2))


MISSING = [{name: ""} for name in ("webhook-id", "webhook-timestamp", "webhook-signature")]
TIMESTAMPS = ["abc", "-1", "1e9", "1767323045.0", " 1767323045", "1767323045 ", "+1767323045", "01767323045"]
TIMESTAMPS += ["1_767_323_045", "0x6957", "nan", "inf", "9" * 20, "9" * 5_000, "١٧٦٧٣٢٣٠٤٥", "\ud800", "\x00"]
SIGNATURES = [GOOD, "v1", "v1,", ",", " ", "v1,é", "v1,\ud800", f"V1,{GOOD}", f"v2,{GOOD}", f"v1a,{GOOD}"]
SIGNATURES += [f"v1,{GOOD}\n", f"v1,{GOOD},", f"v1,v1,{GOOD}", f"v1,{GOOD.rstrip('=')}", f"v1,{GOOD}=", "v1,A"]
SIGNATURES += [f"v1,{base64.b64decode(GOOD).hex()}", "v1,A " * 10_000]


@pytest.mark.parametrize(
    "changes",
    [
        *MISSING,
        *({"webhook-timestamp": value} for value in TIMESTAMPS),
        *({"webhook-signature": value} for value in SIGNATURES),
        *({"webhook-id": value} for value in ["whe_2", "whe_1 ", "\ud800", "é", "\x00", "whe_1.1767323045"]),
    ],
    ids=repr,
)
def test_a_hostile_header_is_an_invalid_signature(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidSignature):
        verify(BODY, HEADERS | changes, secrets=SECRET, now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    with pytest.raises(InvalidSignature, match=f"{name} is missing"):
        verify(BODY, {k: v for k, v in HEADERS.items() if k != name}, secrets=SECRET, now=NOW)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", BODY + b" ", BODY[:-1], BODY.replace(b"job_1", b"job_2")])
def test_another_body_is_an_invalid_signature(body: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verify(body, HEADERS, secrets=SECRET, now=NOW)
    with pytest.raises(InvalidSignature):
        verify_legacy(body, HEADERS, secrets=SECRET)


NO_EVENTS = [b"", b"{", b"null", b"[]", b"1", b'"text"', b"{}", b"NaN", b"[" * 50_000, b'{"event": "\\ud800"}']
NO_EVENTS += [make_body(event="chat.exploded"), make_body(timestamp="yesterday"), make_body(data=None)]


@pytest.mark.parametrize("body", NO_EVENTS, ids=lambda body: repr(body[:24]))
def test_a_signed_body_that_is_no_event_says_so(body: bytes) -> None:
    """Whoever reads the error learns that secret and clock are right."""
    with pytest.raises(InvalidSignature, match="the signature is valid, but the body is not an event"):
        verify(body, signed(body), secrets=SECRET, now=NOW)


def test_fields_of_a_newer_service_are_ignored() -> None:
    data = json.loads(BODY)["data"]
    newer = data | {
        "cost": 1,
        "usage": data["usage"] | {"cached": 2},
        "error": {"code": "c", "message": "m", "help": "h"},
    }
    body = make_body(data=newer, version=2)
    event = verify(body, signed(body), secrets=SECRET, now=NOW)
    assert event.data.content == make_event().data.content
    assert event.data.error is not None
    assert event.data.error.code == "c"


def test_usage_counters_that_we_pass_on_are_kept() -> None:
    """Reading leniently must not drop what the contract keeps on purpose."""
    data = json.loads(BODY)["data"]
    body = make_body(data=data | {"usage": data["usage"] | {"prompt_audio_seconds": 3}})
    usage = verify(body, signed(body), secrets=SECRET, now=NOW).data.usage
    assert usage is not None
    assert usage.model_extra == {"prompt_audio_seconds": 3}


def test_the_seed_headers_alone_verify() -> None:
    headers = {"X-Webhook-Signature": HEADERS["x-webhook-signature"]}
    assert verify_legacy(BODY, headers, secrets=[OLD_SECRET, SECRET]) == make_event()


@pytest.mark.parametrize("signature", ["", "é", "00" * 32, HEADERS["x-webhook-signature"].upper(), GOOD])
def test_a_wrong_seed_signature_does_not(signature: str) -> None:
    with pytest.raises(InvalidSignature):
        verify_legacy(BODY, {"x-webhook-signature": signature}, secrets=SECRET)


# ---------------------------------------------------------------------------------------------- properties

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
plain_secrets = texts.filter(lambda text: text and not text.startswith("whsec_"))
base64_secrets = st.binary(min_size=1, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode())
secrets_lists = st.lists(plain_secrets | base64_secrets, min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    secrets=secrets_lists,
    webhook_id=texts.filter(bool),
    content=texts,
    late=st.integers(-300, 300),
    data=st.data(),
)
def test_every_round_trip_verifies(
    secrets: list[str], webhook_id: str, content: str, late: int, data: st.DataObject
) -> None:
    event = make_event(content)
    body = event.model_dump_json().encode()
    headers = signed(body, webhook_id=webhook_id, secrets=secrets)
    known = data.draw(st.sampled_from(secrets))
    assert verify(body, headers, secrets=known, now=NOW + timedelta(seconds=late)) == event
    assert verify_legacy(body, headers, secrets=secrets[0]) == event


@settings(max_examples=200, deadline=None)
@given(part=st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "body"]), data=st.data())
def test_any_changed_byte_fails(part: str, data: st.DataObject) -> None:
    sent = {name: value.encode() for name, value in HEADERS.items()} | {"body": BODY}
    place = data.draw(st.integers(0, len(sent[part]) - 1))
    mask = data.draw(st.integers(1, 255))
    sent[part] = sent[part][:place] + bytes([sent[part][place] ^ mask]) + sent[part][place + 1 :]
    body = sent.pop("body")
    with pytest.raises(InvalidSignature):
        verify(body, {name: value.decode("latin-1") for name, value in sent.items()}, secrets=SECRET, now=NOW)


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=50) | st.just(BODY),
    headers=st.fixed_dictionaries({name: st.text() | st.just(HEADERS[name]) for name in HEADERS}),
)
def test_whatever_comes_it_is_an_event_or_our_error(body: bytes, headers: dict[str, str]) -> None:
    with suppress(InvalidSignature):
        assert verify(body, headers, secrets=SECRET, now=NOW) == make_event()


# -------------------------------------------------------------------------------------- the other libraries


def test_the_python_package_verifies_what_we_sign() -> None:
    headers = signed(BODY, at=datetime.now(UTC), secrets=[OLD_SECRET, SECRET])
    assert standardwebhooks.Webhook(SECRET).verify(BODY, headers) == json.loads(BODY)


def test_we_verify_what_the_python_package_signs() -> None:
    signature = standardwebhooks.Webhook(SECRET).sign("whe_1", NOW, BODY.decode())
    assert verify(BODY, HEADERS | {"webhook-signature": signature}, secrets=SECRET, now=NOW)


Verified = Callable[[str, Mapping[str, str], bytes], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def node_verify(tmp_path_factory: pytest.TempPathFactory) -> Verified:
    """tests/support/node/verify.mjs with its one dependency, installed once from the lock file into a copy."""
    home = installed(tmp_path_factory.mktemp("node"), "verification by the npm package was not tested")

    def run(secret: str, headers: Mapping[str, str], body: bytes) -> subprocess.CompletedProcess[str]:
        message = json.dumps({"secret": secret, "headers": dict(headers), "body": body.decode()})
        command = ["node", "verify.mjs"]
        return subprocess.run(command, cwd=home, input=message, capture_output=True, text=True, timeout=20, check=False)

    return run


@pytest.mark.parametrize(
    ("secrets", "known"),
    [([SECRET], SECRET), ([SECRET, OLD_SECRET], OLD_SECRET), ([PLAIN_SECRET, SECRET], PLAIN_SECRET)],
    ids=["one secret", "the old one while secrets rotate", "a plain secret"],
)
def test_the_npm_package_verifies_what_we_sign(node_verify: Verified, secrets: list[str], known: str) -> None:
    done = node_verify(known, signed(BODY, at=datetime.now(UTC), secrets=secrets), BODY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(BODY)


def test_the_npm_package_refuses_a_changed_body(node_verify: Verified) -> None:
    done = node_verify(SECRET, signed(BODY, at=datetime.now(UTC)), BODY.replace(b"job_1", b"job_2"))
    assert done.returncode == 1
    assert "No matching signature found" in done.stderr


def test_the_lock_file_names_no_registry() -> None:
    assert "http" not in (NODE / "package-lock.json").read_text()


def test_importing_it_is_light() -> None:
    """Receivers import it: no HTTP client, no Temporal, no database."""
    script = "import sys, chatjobs.webhooks; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"httpx2", "temporalio", "mistralai", "sqlalchemy", "anyio"} & set(done.stdout.split())
