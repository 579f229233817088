"""Canonical JSON, by the vectors of RFC 8785; its numbers also by a real ECMAScript engine."""

from __future__ import annotations

import json
import struct
import subprocess
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatjobs.contracts import earlier_fingerprint, fingerprint
from chatjobs.jcs import canonical, number
from tests.support.needs import program

APPENDIX_B = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
SECTION_3_2_2 = r"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
SECTION_3_2_3 = r"""{
  "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
  "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"
}"""


@pytest.mark.parametrize(("bits", "text"), APPENDIX_B.items())
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    assert number(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        canonical([value])


def test_the_sample_of_the_rfc() -> None:
    """Section 3.2.4 has it as bytes."""
    wanted = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(json.loads(SECTION_3_2_2)) == wanted.encode()


def test_members_are_sorted_by_their_utf_16_code_units() -> None:
    """An emoji, whose code point is the highest, stands before U+FB33."""
    names = list(json.loads(canonical(json.loads(SECTION_3_2_3))))
    assert names == ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]


def test_numbers_are_written_as_a_javascript_engine_writes_them() -> None:
    """10,000 doubles of random bits."""
    script = """
    const view = new DataView(new ArrayBuffer(8));
    let seed = 1n;
    const found = [];
    while (found.length < 10000) {
      seed = (seed * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
      view.setBigUint64(0, seed);
      const value = view.getFloat64(0);
      if (Number.isFinite(value)) found.push([seed.toString(16).padStart(16, "0"), JSON.stringify(value)]);
    }
    console.log(JSON.stringify(found));
    """
    done = subprocess.run([program("node"), "-e", script], capture_output=True, text=True, check=True, timeout=60)
    for bits, text in json.loads(done.stdout):
        assert number(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


SAME = [
    ("1", "1.0", "1e0", "10e-1", "1.00"),
    ("0", "-0", "0.0", "-0.0", "0e5"),
    ("100000000000000000000", "1e20", "100000000000000000000.0"),
    ("1000000000000000000000", "1e21"),
    ("100000000000000000000000", "1e23"),
    ("28194285139529090", "2.819428513952909e16"),
    ("0.1", "1e-1", "0.10"),
    ("9007199254740992", "9007199254740992.0"),
    ('"\\u00e9"', '"\u00e9"'),
    ('{"b":1,"a":[1.0]}', '{ "a" : [ 1 ], "b" : 1e0 }'),
]


@pytest.mark.parametrize("spellings", SAME)
def test_spellings_of_one_value_are_one_body(spellings: tuple[str, ...]) -> None:
    assert len({fingerprint(json.loads(f'{{"x":{one}}}')) for one in spellings}) == 1


DIFFERENT = [
    ("1", "1.5"),
    ("1", "true"),
    ("1", '"1"'),
    ("0", "null"),
    ("9007199254740992", "9007199254740993"),
    ("28194285139529088", "28194285139529090"),
    ("9223372036854775806", "9223372036854775807"),
    ("1" + "0" * 400, "1" + "0" * 399 + "1"),
    ("[1,2]", "[2,1]"),
    ("[]", "{}"),
    ('"\u00e9"', '"e\u0301"'),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_values_that_differ_are_two_bodies(one: str, other: str) -> None:
    assert fingerprint(json.loads(one)) != fingerprint(json.loads(other))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_the_canonical_text_is_its_own_canonical_text(value: object) -> None:
    text = canonical(value)
    assert canonical(json.loads(text)) == text


@given(st.integers(), st.integers())
@example(28194285139529088, 28194285139529090)  # one double
def test_two_integers_never_have_one_text(one: int, other: int) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)
    assert int(Decimal(canonical(one).decode())) == one


def test_most_bodies_have_the_fingerprint_that_they_had() -> None:
    """Gateways of two versions, side by side in a deploy, agree about them."""
    body = {"messages": [{"role": "user", "content": "h\u00e9\n"}], "temperature": 0.5, "max_tokens": 10}
    assert fingerprint(body) == earlier_fingerprint(body)
    assert fingerprint({"temperature": 1.0}) != earlier_fingerprint({"temperature": 1.0})
