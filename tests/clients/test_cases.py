"""One table of cases, run against the Python and the JavaScript client: both make the same of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.clients.cases import CASES, CONFIGURATIONS, KEY, Case
from tests.clients.drivers import Driver, JavaScript, Python, call
from tests.support.raw_http import Visit, raw_server

pytestmark = pytest.mark.long

IN_WORDS_OF_ITS_OWN = {"ServiceUnavailable", "TimeoutError", "TypeError", "ValueError", "RangeError"}
"""Errors whose message may differ: it names the library's error."""


@pytest.fixture(scope="module")
def javascript() -> Iterator[JavaScript]:
    driver = JavaScript()
    yield driver
    driver.close()


def matches(expected: Any, found: Any) -> bool:
    """Whether all that is expected is there: of objects the fields named, of lists every element."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and matches(one, found[name]) for name, one in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(matches, expected, found))
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    return bool(expected == found)


def sent(visit: Visit, name: str) -> Any:
    method, target, _ = visit.head.split("\r\n")[0].split(" ")
    match name:
        case "path":
            return f"{method} {urlsplit(target).path}"
        case "query":
            return dict(parse_qsl(urlsplit(target).query))
        case "body":
            return visit.body.decode()
        case _:
            return visit.headers.get(name)


async def outcomes(driver: Driver, case: Case) -> list[dict[str, Any]]:
    """What the client makes of the case, and checks of what it sent."""
    async with raw_server(*case.replies) as server:
        found = await driver.run(server.url, case.options, list(case.calls))
    for name, values in case.sent.items():
        assert [sent(visit, name) for visit in server.visits] == values
    if case.visits is not None:
        assert len(server.visits) == case.visits
    return found


def comparable(value: Any) -> Any:
    """An outcome without words that differ."""
    if isinstance(value, list):
        return [comparable(one) for one in value]
    if isinstance(value, dict):
        if "error" in value and not value.get("values", True):  # one client says it before the first value is asked for
            value = {name: one for name, one in value.items() if name != "values"}
        own = value.get("name") in IN_WORDS_OF_ITS_OWN
        return {name: comparable(one) for name, one in value.items() if not (own and name == "message")}
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_both_clients_make_the_same_of_it(case: Case, javascript: JavaScript) -> None:
    ours, theirs = await outcomes(Python(), case), await outcomes(javascript, case)
    assert matches(list(case.outcomes), ours), f"Python: {json.dumps(ours)}"
    assert matches(list(case.outcomes), theirs), f"JavaScript: {json.dumps(theirs)}"
    assert comparable(theirs) == comparable(ours)


@pytest.mark.parametrize(("url", "options"), CONFIGURATIONS)
async def test_what_cannot_work_is_said_at_once(url: str, options: dict[str, Any], javascript: JavaScript) -> None:
    for driver in (Python(), javascript):
        (found,) = await driver.run(url, options, [call("get", "job_1")])
        assert found["error"]["name"] == "ConfigurationError"
        assert KEY not in json.dumps(found)


def test_each_case_has_a_name_of_its_own() -> None:
    names = sorted(case.name for case in CASES)
    assert [name for name, other in pairwise(names) if name == other] == []
    assert len(CASES) > 200
