"""Which schemas are accepted, and what an answer is checked for: hostile schemas and answers included."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activities.schema_checks import MOST_HOPELESS, MOST_WAITING, Checked, SchemaChecks
from chatjobs.contracts import ChatRequest, canonical_json
from chatjobs.errors import InvalidRequest
from domain.repairs import MOST_PROBLEM, asked, problem_text
from domain.schema_check import MOST_PROBLEMS, NotJson, check, read
from domain.schemas import MOST_SCHEMAS, PLACE, check_schema, schema_problem
from domain.values import Claim, Repair
from tests.support.factories import make_body

# ------------------------------------------------------------------------------------------------- acceptance

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/node"}}]}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        TREE,
        {"$schema": DRAFT_7, "definitions": {"a": {"type": "string"}}, "items": {"$ref": "#/definitions/a"}},
        {"$schema": "https://example.com/of-a-draft-to-come"},
        {"$id": "https://example.com/own", "items": {"$ref": "https://example.com/own"}},
        {"$anchor": "top", "items": {"$ref": "#top"}},
        {"$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}},
        {"enum": [{"$ref": "#/nowhere"}]},
        {"properties": {"$ref": {"type": "string"}}},
        {"x-parts": {"a": {"type": "string"}}, "items": {"$ref": "#/x-parts/a"}},
        {"format": "no-such-format", "unknownKeyword": 1},
    ],
)
def test_schemas_that_are_accepted(schema: dict[str, Any]) -> None:
    assert schema_problem(schema) is None


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a type that is none": ({"properties": {"a": {"type": "text"}}}, "/properties/a/type", "string"),
    "a limit that is none": ({"minimum": "1"}, "/minimum", "number"),
    "a reference to nothing": ({"items": {"$ref": "#/$defs/a"}}, "/items/$ref", "nothing is fetched"),
    "a remote reference": ({"$ref": "https://example.com/a.json"}, "/$ref", "nothing is fetched"),
    "a file": ({"$ref": "file:///etc/passwd"}, "/$ref", "nothing is fetched"),
    "what is no schema": ({"enum": ["a"], "items": {"$ref": "#/enum/0"}}, "/items/$ref", "an object or a boolean"),
    "itself": ({"$ref": "#"}, "", "never ends"),
    "itself among others": ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "", "never ends"),
    "each other": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}},
        "/$defs",
        "never ends",
    ),
    "a part that is wrong": ({"x": {"type": 1}, "items": {"$ref": "#/x"}}, "/x/type", "string"),
    "a broken expression": ({"pattern": "("}, "/pattern", "regular expression"),
    "a huge expression": ({"pattern": "a{99999999999}"}, "", "too large"),
    "a deep expression": ({"pattern": "(" * 5000 + ")" * 5000}, "", "too deeply"),
    "depth": (nested(185), "", "too deeply"),
    "breadth": ({"allOf": [True] * MOST_SCHEMAS}, "", "more than"),
    "a draft that is no text": ({"$schema": 7}, "/$schema", "draft"),
    "an address that is none": ({"$id": "http://[", "items": {"$ref": "a"}}, "", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schemas_that_are_refused(case: str) -> None:
    """At the place of what is wrong, with words that say what to do."""
    schema, place, words = REFUSED[case]
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(InvalidRequest) as caught:
        check_schema(ChatRequest.parse(make_body(response_format=wanted)))
    (problem,) = caught.value.problems
    assert problem.pointer.startswith(PLACE + place)
    assert words in problem.message


def deep_and_wide(levels: int, width: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"properties": {f"w{number}": {} for number in range(width)}}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


CLASSES = "".join(f"[{chr(133 + number)}-\U0010ffff]" for number in range(1_000))
COSTLY: dict[str, dict[str, Any]] = {
    "names that are looked up again and again": {
        "$id": "https://example.com/a",
        "$defs": {f"d{number}": {"$id": f"d{number}"} for number in range(900)},
        "properties": {f"p{number}": {"$ref": f"d{number}"} for number in range(900)},
    },
    "an anchor": {
        "$defs": {"a": {"$anchor": "a"}},
        "properties": {f"p{number}": {"$ref": "#a"} for number in range(900)},
    },
    "ranges beyond ASCII": {"pattern": f"(?i){CLASSES}"},
    "such ranges in escapes": {"pattern": r"[\u0100-\U0010ffff]" * 2_000},
    "such ranges in many expressions": {
        "patternProperties": {f"(?i)[{chr(133 + number)}-\U0010ffff]": True for number in range(1_500)}
    },
    "values of an older draft, each compared with each": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "enum": [value for number in range(3_000) for value in (number, str(number))],
    },
    "references into each other": {
        "properties": {f"p{level}": {"$ref": "#/x" + "/items" * level} for level in range(80)},
        "x": deep_and_wide(80, 800),
    },
}


@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize("case", COSTLY)
def test_schemas_that_would_hold_up_a_gateway(case: str) -> None:
    """Whether they are accepted or refused, they take no minutes: nothing can stop the thread that reads them."""
    began = time.thread_time()
    schema_problem(COSTLY[case])
    assert time.thread_time() - began < 4


def test_a_schema_that_was_seen_lately_costs_nothing() -> None:
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(400)}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    request = ChatRequest.parse(make_body(response_format=wanted))
    check_schema(request)
    began = time.perf_counter()
    check_schema(request)
    again = time.perf_counter() - began
    canonical_json(schema)
    assert again < 0.02


PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
"""The machine may have much else to do."""
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = st.sampled_from(
    ["$ref", "$id", "$defs", "$schema", "$anchor", "type", "properties", "items", "allOf", "not", "enum", "pattern"]
)
ANY_SCHEMA = st.dictionaries(KEYWORDS, JSON | st.dictionaries(KEYWORDS, JSON, max_size=3), max_size=4)


@PATIENT
@given(ANY_SCHEMA)
def test_any_schema_is_accepted_or_refused(schema: dict[str, Any]) -> None:
    """Never another error, which would be a 500."""
    problem = schema_problem(schema)
    assert problem is None or problem.pointer.startswith(PLACE)


# --------------------------------------------------------------------------------------------------- the check


@PATIENT
@given(JSON)
def test_every_json_value_is_read(value: Any) -> None:
    assert read(json.dumps(value)) == value
    assert read(f" \r\n\t{json.dumps(value, ensure_ascii=False, indent=1)}\n") == value


@PATIENT
@given(JSON, ANY_SCHEMA)
def test_every_answer_gets_a_verdict(value: Any, schema: dict[str, Any]) -> None:
    """Problems of a bounded number and length, which repeat no value of the answer; or none."""
    if schema_problem(schema) is not None:
        return
    verdict = check(json.dumps(schema), json.dumps(value))
    assert verdict["undecided"] is None
    assert len(verdict["problems"]) <= MOST_PROBLEMS
    assert all(len(one["wanted"]) <= 300 for one in verdict["problems"])


@PATIENT
@given(st.text(max_size=60))
def test_every_text_gets_a_verdict(text: str) -> None:
    verdict = check(None, text)
    try:
        right = isinstance(read(text), dict)
    except NotJson:
        right = False
    assert (verdict["problems"] == []) == right


NOT_JSON = {
    "": "is empty",
    "  \n": "is empty",
    "```json\n{}\n```": "code block",
    "{} {}": "Extra data",
    '{"a": NaN}': "NaN",
    "[-Infinity]": "Infinity",
    '{"a": 1, "a": 2}': "same name twice",
    '{"a": {"b": 1, "b": 1}}': "same name twice",
    '["\\ud800"]': "surrogate",
    '{"\\udc00x": 1}': "surrogate",
    '[[{"a": [["\\ud83d"]]}]]': "surrogate",
    "9" * 5_000: "digits",
    "[1e999]": "1.8e308",
    "\ufeff{}": "BOM",
    "{'a': 1}": "is not JSON",
    '{"a": 1,}': "is not JSON",
    '"a\nb"': "is not JSON",
    "\u00a0{}": "is not JSON",
}


@pytest.mark.parametrize("text", NOT_JSON)
def test_what_is_not_json(text: str) -> None:
    (problem,) = check("{}", text)["problems"]
    assert NOT_JSON[text] in problem["words"]
    assert (problem["place"], problem["pointer"]) == ("", "")


@pytest.mark.parametrize("text", ['"\\ud83c\\udf0a"', '"\\\\ud800"', "1e400".replace("400", "300"), "9" * 4_300, "-0"])
def test_what_is_odd_and_json(text: str) -> None:
    assert check("{}", text) == {"problems": [], "undecided": None}


MISMATCHES: list[tuple[dict[str, Any], Any, str, str, str]] = [
    ({"type": "integer"}, "x", "", "must be of type integer", "must be of type integer"),
    ({"type": ["string", "null"]}, 1, "", "must be of type string or null", "must be of type string or null"),
    ({"required": ["a", "b"]}, {"a": 1}, "", "lacks the property b", 'lacks the property "b"'),
    ({"enum": ["x"]}, "secret", "", "is none of the values of enum", 'is none of the values of enum (enum: ["x"])'),
    ({"minimum": 3}, 2, "", "is below the minimum", "is below the minimum (minimum: 3)"),
    (
        {"properties": {"a/b": {"pattern": "^x$"}}},
        {"a/b": "secret"},
        "/a~1b",
        "does not match the pattern",
        'does not match the pattern (pattern: "^x$")',
    ),
    (
        {"properties": {"a": {}}, "additionalProperties": False},
        {"a": 1, "secret": 2},
        "",
        "has a property that the schema does not allow",
        'has a property that the schema does not allow: "secret"',
    ),
    ({"additionalProperties": {"type": "null"}}, {"secret": 1}, "/*", "must be of type null", "must be of type null"),
    ({"items": {"type": "null"}}, [None, 1], "/1", "must be of type null", "must be of type null"),
    ({"properties": {"a": False}}, {"a": "secret"}, "", "is not allowed here", "is not allowed here"),
    ({"uniqueItems": True}, [1, 1], "", "has the same item twice", "has the same item twice"),
    (
        {"anyOf": [{"type": "string"}, {"properties": {"a": {"type": "null"}}}]},
        {"a": 1},
        "/a",
        "type null",
        "type null",
    ),
    ({"$schema": "http://json-schema.org/draft-03/schema#", "properties": {"a": {"required": True}}}, {}, "/a", "", ""),
]


@pytest.mark.parametrize(("schema", "value", "place", "words", "wanted"), MISMATCHES)
def test_what_is_said_of_a_mismatch(schema: Any, value: Any, place: str, words: str, wanted: str) -> None:
    """To the model what is wrong exactly; to everybody else nothing of the answer."""
    problem = check(json.dumps(schema), json.dumps(value))["problems"][0]
    assert problem["place"] == place
    assert words in problem["words"]
    assert wanted in problem["wanted"]
    assert "secret" not in problem["place"] + problem["words"]


def test_places_are_short() -> None:
    """Names may be as long as a schema and stand in each other, and Temporal takes no error of a megabyte."""
    name = "n" * 30_000
    schema = {"properties": {name: {"$ref": "#"}}, "type": "object"}
    deep = json.dumps({name: {name: {name: 1}}})
    (problem,) = check(json.dumps(schema), deep)["problems"]
    assert len(problem["place"]) == len(problem["pointer"]) == 200
    (problem,) = check('{"additionalProperties": {"type": "null"}}', json.dumps({name: 1}))["problems"]
    assert len(problem["pointer"]) == 200


def test_problems_are_few_and_different() -> None:
    schema = {"items": {"type": "null"}}
    problems = check(json.dumps(schema), json.dumps(list(range(1000))))["problems"]
    assert [one["pointer"] for one in problems] == [f"/{place}" for place in range(MOST_PROBLEMS)]
    doubled = {"allOf": [{"type": "null"}] * 30}
    assert len(check(json.dumps(doubled), "1")["problems"]) == 1


# ------------------------------------------------------------------------------------- in a process of its own


@pytest.fixture(scope="module")
def checks() -> Iterator[SchemaChecks]:
    made = SchemaChecks()
    yield made
    made.close()


DOUBLING = {
    "$defs": {f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(40)} | {"d40": {}},
    "$ref": "#/$defs/d0",
}
HOSTILE: dict[str, tuple[Any, str, str]] = {
    "an expression that backtracks": ({"pattern": "^(a+)+$"}, json.dumps("a" * 40 + "!"), "time"),
    "names that backtrack": ({"patternProperties": {"^(a+)+$": {}}}, json.dumps({"a" * 40 + "!": 1}), "time"),
    "references that double": (DOUBLING, "1", "time"),
    "items that are compared with each other": (
        {"uniqueItems": True},
        json.dumps([{"a": number} for number in range(20_000)]),
        "time",
    ),
    "depth": ({}, "[" * 100_000 + "]" * 100_000, "nested"),
    "depth of the schema": ({"items": {"$ref": "#"}}, "[" * 900 + "]" * 900, "nested"),
    "memory": ({}, "[" + "[]," * 15_000_000 + "1]", "length"),
    "a schema that an earlier version accepted": ({"$ref": "https://example.com/a.json"}, "1", "error"),
    "a loop that an earlier version accepted": ({"$ref": "#"}, "1", "nested"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_schemas_and_answers(checks: SchemaChecks, case: str) -> None:
    """Nothing takes for ever, and what is not known counts as no match. Honest answers beside it are checked."""
    schema, text, why = HOSTILE[case]
    began = time.monotonic()
    hostile = asyncio.create_task(checks.check(json.dumps(schema), text))
    beside = [await checks.check('{"type": "object"}', "{}") for _ in range(20)]
    assert beside == [Checked()] * 20
    assert await hostile == Checked(undecided=why)
    assert time.monotonic() - began < 60


@pytest.mark.long
async def test_memory_is_limited(checks: SchemaChecks) -> None:
    """Of the process of the check, which goes on after it."""
    found = await checks.check("{}", "[" + "[]," * 5_000_000 + "1]")
    assert found.undecided in ("memory", "time", None)
    assert (await checks.check("{}", "1")).matches


@pytest.mark.long
async def test_a_schema_that_takes_for_ever_holds_up_no_other(checks: SchemaChecks) -> None:
    """Of many such checks at once, only a few wait; a slow but honest one is made all the same."""
    schema, text = json.dumps({"pattern": "^(a|a)+$"}), json.dumps("a" * 40 + "!")
    assert (await checks.check(schema, text)).undecided == "time"
    many = [asyncio.create_task(checks.check(schema, text)) for _ in range(MOST_HOPELESS + 5)]
    await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
    assert sum(task.done() and task.result().undecided == "busy" for task in many) == 5
    began = time.monotonic()
    assert (await checks.check('{"pattern": "^a+$"}', '"aaa"')).matches
    assert time.monotonic() - began < 1
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


@pytest.mark.long
async def test_tenants_take_turns_among_the_slow_checks(checks: SchemaChecks) -> None:
    """One whose schemas are all different, and all take for ever, keeps another one waiting for a check or two."""
    hostile = [json.dumps({"pattern": f"^(a|a|{number})+$"}) for number in range(MOST_WAITING + 4)]
    text = json.dumps("a" * 40 + "!")
    many = [asyncio.create_task(checks.check(schema, text, "hostile")) for schema in hostile]
    await asyncio.wait(many, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    slow = json.dumps([{"a": number} for number in range(3_000)])
    found = await checks.check('{"uniqueItems": true}', slow, "honest")
    assert found.undecided != "busy"
    assert sum(task.done() for task in many) < len(many) // 2
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


@pytest.mark.parametrize("text", ["\U0001f30a" * 50_000, "\ud83c" * 50_000])
async def test_the_event_loop_goes_on_beside_long_answers(checks: SchemaChecks, text: str) -> None:
    """They are not escaped for the process. (Halves of pairs come from no storage, and break nothing.)"""
    assert (await checks.check("{}", f'"{text}"')).undecided is None


async def test_a_process_that_somebody_ends_is_replaced() -> None:
    checks = SchemaChecks()
    try:
        assert (await checks.check("{}", "1")).matches
        for child in list(checks._children):
            child._process.kill()
            child._process.wait()
        assert (await checks.check("{}", "1")).matches
    finally:
        checks.close()


async def test_the_process_has_no_secrets_and_ends_with_its_parent() -> None:
    """It gets three variables, and reads its input to the end."""
    checks = SchemaChecks()
    try:
        assert (await checks.check("{}", "1")).matches
        (child,) = checks._children
        if sys.platform == "linux":
            environment = Path(f"/proc/{child._process.pid}/environ")
            names = (await asyncio.to_thread(environment.read_bytes)).split(b"\0")
            assert {name.split(b"=")[0] for name in names if name} <= {b"PATH", b"LD_LIBRARY_PATH"}
        assert child._process.stdin is not None
        child._process.stdin.close()
        assert await asyncio.to_thread(child._process.wait, 10) == 0
    finally:
        checks.close()


async def test_an_ordinary_check_is_cheap(checks: SchemaChecks, record_property: Any) -> None:
    """The event loop is busy with it for less than a millisecond."""
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a+$"}}, "required": ["a"]}
    )
    text, count = json.dumps({"a": "a" * 2_000}), 300
    assert (await checks.check(schema, text)).matches
    began, busy = time.perf_counter(), time.thread_time()
    for _ in range(count):
        await checks.check(schema, text)
    busy, took = (time.thread_time() - busy) / count * 1e3, (time.perf_counter() - began) / count * 1e3
    record_property("table", f"a check of 2 KB: {busy:.3f} ms of the event loop, {took:.3f} ms in all")
    assert busy < 1
    assert threading.active_count() < 50


# ------------------------------------------------------------------------------------------------- the repair


def claim(request: ChatRequest, content: str) -> Claim:
    repair = Repair(1, content, "what is wrong")
    return Claim("taken", "job_1", 1, 2, 0, 0, request=request, repair=repair)


def test_what_a_repair_asks() -> None:
    request = ChatRequest.parse(make_body("Hello"))
    sent = asked(claim(request, "wrong"), request).messages
    assert [(message.role, message.content) for message in sent] == [
        ("user", "Hello"),
        ("assistant", "wrong"),
        ("user", "what is wrong"),
    ]
    assert asked(claim(request, " "), request).messages[1].content == "(empty)"
    assert len(str(asked(claim(request, "x" * 200_000), request).messages[1].content)) == 100_000


def test_the_words_of_a_repair_are_bounded() -> None:
    problems = check(json.dumps({"items": {"enum": ["v" * 1_000]}}), json.dumps(["x" * 500] * 50))["problems"]
    said = problem_text(problems, 200_000)
    assert len(said) < MOST_PROBLEM + 500
    assert "only its first" in said
    assert "/0 is none of the values of enum" in said
