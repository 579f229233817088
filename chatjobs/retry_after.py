"""The response header ``Retry-After``: seconds or a date (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, at least 0, finite but not clamped; None if the header is missing or unusable.

    A date counts from the response's own ``Date``, because this machine's clock may differ from the server's; without
    one, from ``now`` (aware). A past date gives 0. ``headers`` has lower-case names, or ignores case.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        seconds = float(value)
        return seconds if math.isfinite(seconds) else None
    until = http_date(value)
    if until is None:
        return None
    return max(0.0, (until - (http_date(headers.get("date", "")) or now)).total_seconds())


def http_date(value: str) -> datetime | None:
    """The time in a header's value, in UTC; None if it is none (RFC 9110, section 5.6.7)."""
    try:
        moment = parsedate_to_datetime(value)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # the asctime form names no zone: it is GMT
        return aware.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):  # as the standard library's date parser may raise
        return None
