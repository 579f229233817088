"""The hash of a request's canonical JSON (RFC 8785), which binds an idempotency key to it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from chatjobs.jcs import canonical


def canonical_json(value: Any) -> bytes:
    """Not RFC 8785: JSON with sorted keys, no spaces, as UTF-8, and numbers as Python writes them.

    Raises ValueError for NaN, Infinity and lone surrogates, which JSON (RFC 8259) does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def fingerprint(body: Any) -> str:
    """SHA-256 (hex) over the canonical JSON (RFC 8785) of a request as it was received, before defaults.

    Raises ValueError and TypeError for what is not JSON.
    """
    return hashlib.sha256(canonical(body)).hexdigest()


def earlier_fingerprint(body: Any) -> str:
    """The fingerprint as it was before numbers were canonical. Stored jobs may have it; new ones do not get it.

    Raises ValueError and TypeError for what is not JSON.
    """
    return hashlib.sha256(canonical_json(body)).hexdigest()
