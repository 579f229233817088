"""Sessions and stream tokens: signed values that the caller keeps and that are valid as long as their key is."""

from __future__ import annotations

import base64
import hmac
import re
from datetime import datetime

SECRET_NAME = "tickets"  # noqa: S105 - the name under which all gateways find the secret in the database
SESSION = "session"
STREAM = "stream"
FILE = "file"
FORM = re.compile(r"([A-Za-z0-9_]{1,32})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class SignedTokens:
    """A ticket is ``<key id>.<expiry in unix seconds>.<HMAC-SHA256 in base64url>``.

    The signature also covers a kind and a subject, such as the job whose stream the ticket opens.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, kind: str, key_id: str, expires_at: datetime, subject: str = "") -> str:
        expires = str(int(expires_at.timestamp()))
        return f"{key_id}.{expires}.{self._signature(kind, key_id, expires, subject)}"

    def key_id(self, kind: str, ticket: str, at: datetime, subject: str = "") -> str | None:
        """The id of a ticket's key; None if signature, kind or subject do not match, or it has expired."""
        found = FORM.fullmatch(ticket)
        if found is None:
            return None
        key_id, expires, signature = found.groups()
        genuine = hmac.compare_digest(signature, self._signature(kind, key_id, expires, subject))
        return key_id if genuine and at.timestamp() < int(expires) else None

    def _signature(self, kind: str, key_id: str, expires: str, subject: str) -> str:
        signed = "\n".join((kind, key_id, expires, subject)).encode("utf-8", "surrogatepass")
        return base64.urlsafe_b64encode(hmac.digest(self._secret, signed, "sha256")).decode().rstrip("=")
