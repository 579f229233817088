"""What a schedule may say: cron expressions, intervals, and what is refused with which reason."""

from __future__ import annotations

from typing import Any

import pytest

from chatjobs.contracts import ScheduleRequest, parse
from chatjobs.errors import InvalidRequest

ANY: dict[str, Any] = {"request": {"messages": []}}


def problem(**fields: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(ScheduleRequest, {**ANY, **fields})
    (found,) = caught.value.problems
    return found.pointer, found.message


@pytest.mark.parametrize(
    "expression",
    [
        *("@daily", "@hourly", "@weekly", "@monthly", "@yearly", "@annually", "@midnight"),
        *("* * * * *", "0 2 * * *", "*/15 * * * *", "5,35 8-18 * * mon-fri", "0 0 1 jan,JULY *", "0 0 29 2 *"),
        *("1/5 * * * *", "1-30/7 * * * *", "0 0 * * 7", "0 0 * * Sunday", "00 08 * * *"),
    ],
)
def test_cron_expressions(expression: str) -> None:
    assert parse(ScheduleRequest, {**ANY, "cron": expression}).cron == expression


def test_blanks_between_the_fields_do_not_count() -> None:
    assert parse(ScheduleRequest, {**ANY, "cron": " 0  2 *\t* * "}).cron == "0 2 * * *"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "must have five fields"),
        ("0 2 * *", "it has 4"),
        ("0 0 2 * * *", "it has 6"),
        ("0 2 * * *  # nightly", "it has 7"),
        ("CRON_TZ=UTC 0 2 * * *", "it has 6"),
        ("@every 15m", "give every"),
        ("@DAILY", "must be one of"),
        ("60 * * * *", "has a value for the minute that is not from 0 to 59"),
        ("* 24 * * *", "has a value for the hour that is not from 0 to 23"),
        ("0 0 0 * *", "has a value for the day of the month that is not from 1 to 31"),
        ("0 0 * 13 *", "has a value for the month that is not from 1 to 12 or a name in English"),
        ("0 0 * * 8", "has a value for the day of the week that is not from 0 to 7"),
        ("0 0 * * moon", "has a value for the day of the week that is not from 0 to 7"),
        ("0 0 * * fri-mon", "has a range for the day of the week whose end is before its beginning"),
        ("*/0 * * * *", "has a step for the minute that is not from 1 to 59"),
        ("*/100 * * * *", "has a step for the minute that is not from 1 to 59"),
        ("0 0 L * *", "has a value for the day of the month that is not from 1 to 31"),
        ("? * * * *", "has a value for the minute that is no number, range, step or list of these"),
        ("0 0 * * 1#2", "has a value for the day of the week that is no number"),
        ("1,,2 * * * *", "has a value for the minute that is no number"),
        ("*-5 * * * *", "has a value for the minute that is no number"),
        ("0 0 31 2,4,6 *", "names a day that none of its months has"),
    ],
)
def test_cron_expressions_that_are_refused(expression: str, why: str) -> None:
    pointer, message = problem(cron=expression)
    assert pointer == "/cron"
    assert why in message


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *((1, 1), (90, 90), ("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)),
        *(("PT15M", 900), ("PT1H30M", 5_400), ("P1D", 86_400), ("P1DT12H", 129_600), ("PT45S", 45)),
    ],
)
def test_intervals(given: int | str, seconds: int) -> None:
    assert parse(ScheduleRequest, {**ANY, "every": given}).every == seconds


@pytest.mark.parametrize("given", ["", "15", "15 m", "m", "P", "PT", "P1M", "1.5h", "PT0.5S", "-15m", "１５m"])
def test_intervals_that_are_refused(given: str) -> None:
    assert problem(every=given) == ("/every", 'must be whole seconds, or a length of time such as "15m" or "PT15M"')


@pytest.mark.parametrize(
    ("fields", "pointer", "why"),
    [
        ({"every": 0}, "/every", "must be at least 1"),
        ({"every": "400d"}, "/every", "must be at most 31622400"),
        ({"every": 1.5}, "/every", "must be a whole number"),
        ({"every": True}, "/every", "must be a whole number"),
        ({}, "", "must have cron or every, one of them"),
        ({"cron": "@daily", "every": 60}, "", "must have cron or every, one of them"),
        ({"cron": "@daily", "batch": {}}, "", "must have request or batch, one of them"),
        ({"every": 60, "timezone": "Europe/Berlin"}, "", "must have no timezone with every"),
        ({"cron": "@daily", "overlap": "skipp"}, "/overlap", "did you mean skip?"),
        ({"cron": "@daily", "catchupSeconds": 9}, "/catchupSeconds", "must be at least 10"),
        ({"cron": "@daily", "id": "a b"}, "/id", "must match the pattern"),
        ({"cron": "@daily", "id": "x" * 65}, "/id", "must match the pattern"),
        ({"cron": "@daily", "zone": "UTC"}, "/zone", "is not a known field"),
    ],
)
def test_other_things_that_are_refused(fields: dict[str, Any], pointer: str, why: str) -> None:
    found = problem(**fields)
    assert found[0] == pointer
    assert why in found[1]
