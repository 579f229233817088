"""The header Retry-After: both of its forms, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatjobs.retry_after import retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        (" 5 ", 5),
        ("007", 7),
        (" 7 ", 7),
        ("1.5", 1.5),
        ("1000000000000", 1e12),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60),
        ("Friday, 02-Jan-26 03:05:05 GMT", 60),
        ("Fri Jan  2 03:05:05 2026", 60),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60),
        ("Fri, 02 Jan 2026 03:04:05 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251_634_977_754),
    ],
)
def test_both_forms_of_retry_after(header: str, seconds: float) -> None:
    """RFC 9110 §10.2.3, with the three date formats of §5.6.7."""
    assert retry_after({"retry-after": header}, NOW) == seconds


JUNK = [
    "",
    " ",
    "abc",
    "-1",
    "-5.5",
    "1e12",
    "+5",
    "5s",
    "5, 10",
    "٥",
    "9" * 400,
    "nan",
    "inf",
    "tomorrow",
]
JUNK += ["Fri, 32 Jan 2026 03:05:05 GMT", "Fri, 02 Foo 2026 03:05:05 GMT", "Fri, 02 Jan 99999 03:05:05 GMT", "\x00"]


@pytest.mark.parametrize("header", JUNK, ids=repr)
def test_junk_is_no_retry_after(header: str) -> None:
    assert retry_after({"retry-after": header}, NOW) is None


@settings(max_examples=300, deadline=None)
@given(st.text() | st.from_regex(r"[A-Z][a-z]{2},? ?[0-9]{1,3}.[A-Za-z]{3}.[0-9]{1,6} [0-9:]{1,9} ?[-+A-Z0-9]{0,6}"))
def test_any_retry_after_is_a_time_to_wait_or_nothing(header: str) -> None:
    seconds = retry_after({"retry-after": header}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_date_counts_from_the_servers_own_clock() -> None:
    """Ours may differ from it by hours."""
    headers = {"retry-after": "Fri, 02 Jan 2026 03:05:05 GMT", "date": "Fri, 02 Jan 2026 03:05:00 GMT"}
    assert retry_after(headers, NOW) == 5
    assert retry_after({}, NOW) is None
