"""Signing and verifying webhooks. No network, no clock, no environment: the time is an argument.

The rules are those of the Standard Webhooks specification 1.0.0
(https://www.standardwebhooks.com), symmetric scheme: HMAC-SHA256 over ``<id>.<timestamp>.<body>``, sent as
``v1,<base64>``, several separated by spaces while secrets rotate.

The package ``standardwebhooks`` computes the signature itself. This module does the rest, because the package reads the
clock itself, raises ValueError, binascii.Error or UnicodeDecodeError for malformed headers in place of its own error,
ignores characters of a secret that are not base64, and accepts only base64 secrets.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pydantic_core import from_json
from standardwebhooks import Webhook

from chatjobs.contracts import BatchWebhookEvent, WebhookEvent, WireModel, read_json
from chatjobs.errors import InvalidSecret, InvalidSignature

E = TypeVar("E", bound=WireModel)

WEBHOOK_ID = "webhook-id"
WEBHOOK_TIMESTAMP = "webhook-timestamp"
WEBHOOK_SIGNATURE = "webhook-signature"
LEGACY_SIGNATURE = "x-webhook-signature"
LEGACY_TIMESTAMP = "x-webhook-timestamp"
SECRET_PREFIX = "whsec_"  # noqa: S105 -- the specification's mark of a base64 secret, not a secret
SHORTEST_KEY = 16
"""Fewest bytes of a key that was decoded from base64 without ``whsec_``: a shorter text that is base64 is a word."""
TOLERANCE = timedelta(minutes=5)
"""Largest difference of ``webhook-timestamp`` from the receiver's clock, as in the specification's libraries."""


def sign(
    body: bytes, *, webhook_id: str, timestamp: datetime, body_timestamp: str, secrets: str | Sequence[str]
) -> dict[str, str]:
    """The headers of one try to deliver ``body``, a JSON document in UTF-8.

    ``timestamp`` is the time of this try, aware; ``body_timestamp`` is the body's own ``timestamp``, RFC 3339.
    ``secrets`` are newest first: each adds a ``v1`` signature, the newest alone makes ``x-webhook-signature``.
    Raises InvalidSecret, and ValueError if ``timestamp`` is naive or ``body`` is not UTF-8.
    """
    keys = _keys(secrets)
    seconds = int(_seconds(timestamp))
    return {
        "content-type": "application/json",
        WEBHOOK_ID: webhook_id,
        WEBHOOK_TIMESTAMP: str(seconds),
        WEBHOOK_SIGNATURE: " ".join(_signature(key, webhook_id, seconds, body) for key in keys),
        LEGACY_SIGNATURE: _legacy_signature(keys[0], body),
        LEGACY_TIMESTAMP: body_timestamp,
    }


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *,
    secrets: str | Sequence[str],
    now: datetime,
    tolerance: timedelta = TOLERANCE,
) -> WebhookEvent:
    """The event in ``body``, if one of ``secrets`` signed it within ``tolerance`` of ``now`` (aware).

    ``body`` must be the bytes as they were received, ``headers`` may be in any case. Of the two timestamps only
    ``webhook-timestamp`` is signed and checked. Use ``webhook-id`` to drop a second delivery of the same event. Raises
    InvalidSignature for any fault of the message, InvalidSecret, and ValueError if ``now`` is naive.
    """
    _authenticate(body, headers, secrets, now, tolerance)
    return _event(WebhookEvent, body)


def verify_any(
    body: bytes,
    headers: Mapping[str, str],
    *,
    secrets: str | Sequence[str],
    now: datetime,
    tolerance: timedelta = TOLERANCE,
) -> WebhookEvent | BatchWebhookEvent:
    """``verify`` for a URL that gets the webhooks of batches, too."""
    _authenticate(body, headers, secrets, now, tolerance)
    if _is_of_a_batch(body):
        return _event(BatchWebhookEvent, body)
    return _event(WebhookEvent, body)


def _authenticate(
    body: bytes, headers: Mapping[str, str], secrets: str | Sequence[str], now: datetime, tolerance: timedelta
) -> None:
    """Raises InvalidSignature, InvalidSecret, ValueError."""
    keys = _keys(secrets)
    sent = _lower_case(headers)
    webhook_id = _header(sent, WEBHOOK_ID)
    seconds = _fresh(_header(sent, WEBHOOK_TIMESTAMP), _seconds(now), tolerance)
    offered = _header(sent, WEBHOOK_SIGNATURE).split(" ")
    try:
        expected = [_signature(key, webhook_id, seconds, body) for key in keys]
    except UnicodeError:
        raise InvalidSignature("the body or the webhook-id is not UTF-8") from None
    if not any(_same(mine, theirs) for mine in expected for theirs in offered):
        raise InvalidSignature(f"no v1 signature in {WEBHOOK_SIGNATURE} matches; check the secret and the raw body")


def verify_legacy(body: bytes, headers: Mapping[str, str], *, secrets: str | Sequence[str]) -> WebhookEvent:
    """The event in ``body``, if one of ``secrets`` made its ``x-webhook-signature`` (hex HMAC-SHA256 of the body).

    For receivers that read only the headers ``x-webhook-*``. Their signature has no time: a recorded message verifies
    for ever, so prefer ``verify``. Raises InvalidSignature and InvalidSecret.
    """
    keys = _keys(secrets)
    offered = _header(_lower_case(headers), LEGACY_SIGNATURE)
    if not any(_same(_legacy_signature(key, body), offered) for key in keys):
        raise InvalidSignature(f"{LEGACY_SIGNATURE} does not match; check the secret and the raw body")
    return _event(WebhookEvent, body)


# ---------------------------------------------------------------------------------------------- secrets


def _keys(secrets: str | Sequence[str]) -> list[bytes]:
    """The HMAC keys of one or more secrets, in their order. Raises InvalidSecret."""
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise InvalidSecret("there is no webhook secret")
    return keys


def check_secret(secret: str) -> None:
    """Raises InvalidSecret if a secret cannot sign."""
    _key(secret)


def read_otherwise(secret: str) -> str | None:
    """Advice for the receiver of a secret that looks like base64 but has no ``whsec_``; None for any other secret.

    This service signs with the UTF-8 bytes of its text; the libraries of Standard Webhooks decode it as base64, get
    another key, and refuse every webhook. The advice does not contain the secret.
    """
    if secret.startswith(SECRET_PREFIX):
        return None
    try:
        decoded = _base64(secret)
    except ValueError:
        return None
    if len(decoded) < SHORTEST_KEY:
        return None
    return (
        f"looks like base64 without whsec_: this service signs with the {len(secret)} bytes of its text, a Standard "
        f"Webhooks library decodes it to {len(decoded)} other bytes and refuses the signature; write whsec_ before it "
        "here and at the receiver, or give the library whsec_ and the base64 of the text"
    )


def _key(secret: str) -> bytes:
    """The HMAC key of a secret: ``whsec_…`` is base64 as in the specification, any other text its UTF-8 bytes."""
    try:
        key = _base64(secret.removeprefix(SECRET_PREFIX)) if secret.startswith(SECRET_PREFIX) else secret.encode()
    except ValueError:  # not base64, or half of a surrogate pair
        raise InvalidSecret from None
    if not key:
        raise InvalidSecret
    return key


def _base64(text: str) -> bytes:
    """The bytes of a base64 text. Padding may be missing, as in the specification's libraries; other characters may not
    be there. Raises ValueError."""
    bare = text.rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


# -------------------------------------------------------------------------------------------- signatures


def _signature(key: bytes, webhook_id: str, seconds: int, body: bytes) -> str:
    """A signature, ``v1,<base64>``. Raises UnicodeError if the body or the id is not UTF-8."""
    moment = datetime.fromtimestamp(seconds, UTC)  # the package reads an aware time in another zone as UTC
    return Webhook(key).sign(webhook_id, moment, body.decode())


def _legacy_signature(key: bytes, body: bytes) -> str:
    return hmac.digest(key, body, "sha256").hex()


def _same(mine: str, theirs: str) -> bool:
    """Whether two signatures are equal, as sent and in constant time: decoded, several spellings of one would match."""
    return theirs.isascii() and hmac.compare_digest(mine, theirs)  # raises TypeError for other text


# ---------------------------------------------------------------------------------- headers, time, event


def _lower_case(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _header(sent: Mapping[str, str], name: str) -> str:
    if not (value := sent.get(name)):
        raise InvalidSignature(f"the header {name} is missing")
    return value


def _fresh(timestamp: str, now: float, tolerance: timedelta) -> int:
    """``webhook-timestamp`` as unix seconds, if it is within ``tolerance`` of ``now``: digits without a leading zero.

    Raises InvalidSignature.
    """
    if not re.fullmatch("[1-9][0-9]{0,10}", timestamp):
        raise InvalidSignature(f"{WEBHOOK_TIMESTAMP} is not a time in unix seconds")
    age = now - int(timestamp)
    if abs(age) > tolerance.total_seconds():
        raise InvalidSignature(f"{WEBHOOK_TIMESTAMP} is too {'old' if age > 0 else 'new'}; check this machine's clock")
    return int(timestamp)


def _seconds(moment: datetime) -> float:
    """A time as unix seconds. Raises ValueError for a naive time, which would be read as this machine's local time."""
    if moment.utcoffset() is None:
        raise ValueError("the time must be aware, as datetime.now(UTC) is")
    return moment.timestamp()


def _is_of_a_batch(body: bytes) -> bool:
    try:
        found = from_json(body)
    except ValueError:
        return False
    return isinstance(found, dict) and str(found.get("event", "")).startswith("batch.")


def _event(model: type[E], body: bytes) -> E:
    """The event in a body whose signature is valid; fields of a newer service are dropped. Raises InvalidSignature."""
    try:
        return read_json(model, body)
    except ValueError:
        raise InvalidSignature("the signature is valid, but the body is not an event that this version knows") from None
