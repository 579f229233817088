"""What strangers send to a real gateway: the answer each must get, soon, without an echo or a traceback."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from domain.names import new_job_id
from tests.support.gateway import Gateway, gateway
from tests.support.raw_client import exchange, request
from tests.support.stack import Stack, stack, wait_until

SECRET = "xyzzy-echo"
"""In every body: no answer and no log may have it."""
LIMIT = 8 * 1024 * 1024
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}]}
JSON = "application/json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("bad"), env={"CHATJOBS_PORT": "0"}) as started:
        yield started


@pytest.fixture(scope="module")
def door(running: Stack) -> Iterator[Gateway]:
    started = gateway(running)
    yield started
    log = started.process.output()
    assert "Traceback" not in log
    assert SECRET not in log
    assert not any(json.loads(line).get("status", 0) == 500 for line in log.splitlines() if line.startswith("{"))


@pytest.fixture(scope="module")
def http(door: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=door.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _logs(running: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(running.news())


def posted(http: httpx2.Client, body: bytes, kind: str = JSON, **headers: str) -> httpx2.Response:
    begin = time.monotonic()
    answer = http.post("/api/jobs", content=body, headers={"Content-Type": kind, **headers})
    assert time.monotonic() - begin < 1
    return answer


def assert_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["status"], found["code"]) == (status, code)
    assert SECRET not in answer.text
    assert len(answer.content) < 20_000
    return found


def body(**fields: Any) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


def with_text(text: bytes, field: bytes = b"temperature") -> bytes:
    return b'{"messages":[{"role":"user","content":"xyzzy-echo"}],"' + field + b'":' + text + b"}"


NOT_JSON = {
    "B01 empty": b"",
    "B02 a word": b"hello",
    "B04 two documents": body() + body(),
    "B05 trailing comma": body()[:-1] + b",}",
    "B07 byte order mark": b"\xef\xbb\xbf" + body(),
    "B08 UTF-16": body().decode().encode("utf-16"),
    "B10 overlong": with_text(b'"\xc0\x80"', b"model"),
    "surrogates as bytes": with_text(b'"\xed\xa0\x80"', b"model"),
    "B11 control character": with_text(b'"a\x01b"', b"model"),
    "B12 half a pair in a message": body().replace(b"xyzzy", b"\\ud800"),
    "B13 half a pair in metadata": with_text(b'{"k":"\\udc00"}', b"metadata"),
    "B14 half a pair in a key": with_text(b'{"\\ud83d":"v"}', b"metadata"),
    "B16 Infinity": with_text(b"Infinity"),
    "-Infinity": with_text(b"-Infinity"),
    "B17 NaN": with_text(b'{"k":NaN}', b"metadata"),
    "B19 1e999": with_text(b"1e999"),
    "-1e999": with_text(b"-1e999"),
    "5,000 digits": with_text(b"9" * 5_000),
    "B20 a key twice": with_text(b'0.1,"temperature":0.2'),
    "a key twice, written differently": with_text(b'0.1,"temp\\u0065rature":0.2'),
    "B22 nesting 1,000": with_text(b"[" * 1_000 + b"]" * 1_000),
    "nesting 65": with_text(b"[" * 64 + b"]" * 64),
    "nesting 100 beside others": with_text(b"[[]," * 100 + b"1" + b"]" * 100),
    "B23 2,000,000 brackets": b"[" * 2_000_000,
}


@pytest.mark.parametrize("sent", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_strict_json(http: httpx2.Client, sent: bytes) -> None:
    assert_problem(posted(http, sent), 400, "invalid_json")


def test_what_is_json_after_all(http: httpx2.Client) -> None:
    """A pair of surrogates is a character, and nesting has room."""
    sent = body(tools=[{"type": "function", "function": {"name": "f", "parameters": nested(50)}}])
    assert posted(http, sent.replace(b"xyzzy", b"\\ud83d\\ude00")).status_code == 202


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


TOO_LARGE = {
    "B26 one byte more": body().ljust(LIMIT + 1),
    "B28 30 MB": body().ljust(30_000_000),
    "B29 500,000 metadata keys": body(metadata={str(number): "v" for number in range(500_000)}),
    "2,000,000 values": body(stop=[[]] * 2_000_000),
    "200,000 parts": body(messages=[{"role": "user", "content": [{"type": "text", "text": 1}] * 200_000}]),
}


@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_bodies_that_are_too_large(door: Gateway, sent: bytes) -> None:
    """Also while it is still being sent, with and without a length."""
    head = request("POST", "/api/jobs", f"Content-Type: {JSON}", f"Content-Length: {len(sent)}")
    chunked = request("POST", "/api/jobs", f"Content-Type: {JSON}", "Transfer-Encoding: chunked")
    for whole in (head + sent, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent)):
        reply = exchange(door.url, whole)
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert SECRET.encode() not in reply.body


def test_the_largest_body(http: httpx2.Client) -> None:
    """To the byte; and others are served while it is read."""
    assert posted(http, body().ljust(LIMIT)).status_code == 202


WRONG_TYPES = {
    "B25 gzip": {"Content-Encoding": "gzip"},
    "B31 text": {"kind": "text/plain"},
    "B32 form": {"kind": "application/x-www-form-urlencoded"},
    "B34 UTF-16": {"kind": "application/json; charset=utf-16"},
    "B35 jsonx": {"kind": "application/jsonx"},
    "none": {"kind": ""},
    "two": {"kind": "application/json, text/plain"},
}


@pytest.mark.parametrize("headers", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_media_types(http: httpx2.Client, headers: dict[str, str]) -> None:
    assert_problem(posted(http, body(), **headers), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", 'APPLICATION/JSON;charset="UTF-8"', "application/json ;charset=utf-8"]
)
def test_media_types_that_are_taken(http: httpx2.Client, kind: str) -> None:
    assert posted(http, body(), kind).status_code == 202


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA = {"name": "s", "schema": {"description": "x" * 65 * 1024}}
NOT_VALID: dict[str, tuple[str, bytes]] = {
    "B37 null": ("", b"null"),
    "B38 a string": ("", b'"x"'),
    "a string of brackets": ("", b'"' + b"[" * 100_000 + b'"'),
    "B40 model of 65 characters": ("/model", body(model="m" * 65)),
    "B41 model with a path": ("/model", body(model="../x")),
    "B43 no messages": ("/messages", body(messages=[])),
    "B44 1,001 messages": ("/messages", body(messages=user(SECRET) * 1_001)),
    "B46 empty content": ("", body(messages=user(""))),
    "B47 blank content": ("", body(messages=user("  \n"))),
    "B50 over 2,000,000 characters": ("", body(messages=user("x" * 1_000_001) * 2)),
    "B52 temperature -0.1": ("/temperature", body(temperature=-0.1)),
    "B53 max_tokens 0": ("/max_tokens", body(max_tokens=0)),
    "B55 max_tokens 5.5": ("/max_tokens", body(max_tokens=5.5)),
    "B56 max_tokens as a string": ("/max_tokens", body(max_tokens="5")),
    "B58 max_tokens 5.0": ("/max_tokens", body(max_tokens=5.0)),
    "B59 max_tokens 2**64": ("/max_tokens", body(max_tokens=2**64)),
    "B61 unknown message field": ("/messages/0/colour", body(messages=[{**user(SECRET)[0], "colour": 1}])),
    "unknown field": ("/colour", body(colour=SECRET)),
    "B62 17 metadata keys": ("/metadata", body(metadata={str(number): "v" for number in range(17)})),
    "B64 metadata value of 513": ("/metadata/k", body(metadata={"k": "v" * 513})),
    "B65 the assistant last": ("", body(messages=[*user(SECRET), {"role": "assistant", "content": SECRET}])),
    "B67 two tools of one name": ("", body(tools=[TOOL, TOOL])),
    "B68 schema over 64 KB": (
        "/response_format",
        body(response_format={"type": "json_schema", "json_schema": SCHEMA}),
    ),
    "B70 17 stops": ("/stop", body(stop=["x"] * 17)),
    "B74 line break in id": ("/id", body(id=f"a\r\n{SECRET}: b")),
    "B74 line break in jobId": ("/jobId", body(jobId="a\n")),
    "B74 line break in callback": ("/callback", body(callback="https://a.example/\r\nx")),
    "5,000 wrong messages": ("/messages", body(messages=[5] * 5_000)),
    "18,000 unknown fields": ("/f0", body(**{f"f{number}": 1 for number in range(18_000)})),
    "a long unknown name": ("/" + "n" * 199, body(**{"n" * 100_000: 1})),
}


@pytest.mark.parametrize(("pointer", "sent"), NOT_VALID.values(), ids=NOT_VALID.keys())
def test_what_is_not_valid(http: httpx2.Client, pointer: str, sent: bytes) -> None:
    found = assert_problem(posted(http, sent), 422, "validation_failed")
    pointers = [error["pointer"] for error in found["errors"]]
    assert pointer in pointers or any(p.startswith(f"{pointer}/") for p in pointers if pointer), pointers


@pytest.mark.parametrize("path", ["a%00b", "%0d%0aX:y", "%zz", "%ff", "nobody", "%2e%2e", "a%2Fb"])
@pytest.mark.parametrize("rest", ["", "/events", "/request"])
def test_ids_that_are_nobodys(door: Gateway, path: str, rest: str) -> None:
    """B85."""
    reply = exchange(door.url, request("GET", f"/api/jobs/{path}{rest}"))
    assert (reply.status, reply.code in ("job_not_found", "not_found")) == (404, True)
    assert reply.seconds < 1
    assert "x" not in reply.headers


@pytest.mark.parametrize("path", ["a%00b", "%ff", "nobody"])
@pytest.mark.parametrize(("method", "rest"), [("POST", "/cancel"), ("POST", "/replay"), ("DELETE", "")])
def test_ids_that_cannot_be_changed(door: Gateway, path: str, method: str, rest: str) -> None:
    reply = exchange(door.url, request(method, f"/api/jobs/{path}{rest}", "Content-Length: 0"))
    assert (reply.status, reply.code) == (404, "job_not_found")


def test_a_long_id(door: Gateway) -> None:
    """B86."""
    reply = exchange(door.url, request("GET", f"/api/jobs/{'a' * 10_000}"))
    assert (reply.status, reply.code, reply.closed) == (414, "uri_too_long", True)


QUERIES = {
    "nothing=1": "/nothing",
    "stat=failed": "/stat",
    f"metadata.k=1&{SECRET[:3]}=1": "/xyz",
    "status=perhaps": "/status",
    "status=failed&status=completed": "/status",
    "limit=0": "/limit",
    "limit=1001": "/limit",
    "limit=x": "/limit",
    "limit=": "/limit",
    "since=yesterday": "/since",
    "since=2026-01-01T00:00:00": "/since",
    "model=%00": "/model",
    "model=a%20b": "/model",
    "q=": "/q",
    "errorCode=": "/errorCode",
    f"errorCode={'e' * 65}": "/errorCode",
    "replayOf=a%20b": "/replayOf",
    "batchId=%00": "/batchId",
    "thread=a%20b": "/thread",
    "threads=job_1": "/threads",
    "metadata.=1": "/metadata",
    f"metadata.k={'v' * 513}": "/metadata",
    "&".join(f"metadata.{number}=1" for number in range(17)): "/metadata",
}


@pytest.mark.parametrize(("query", "pointer"), QUERIES.items(), ids=[query[:40] for query in QUERIES])
def test_query_parameters(http: httpx2.Client, query: str, pointer: str) -> None:
    found = assert_problem(http.get(f"/api/jobs?{query}"), 422, "validation_failed")
    assert pointer in [error["pointer"] for error in found["errors"]]


@pytest.mark.parametrize("cursor", ["x", "!", "%00", "MTIzIA", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5IGpvYg", "LTEgam9i"])
def test_cursors(http: httpx2.Client, cursor: str) -> None:
    assert_problem(http.get(f"/api/jobs?cursor={cursor}"), 400, "bad_cursor")


@pytest.mark.parametrize(
    "query",
    [
        "metadata.k=%00",
        "metadata.k=%ff",
        "since=0001-01-01T00:00:00Z",
        "until=9999-12-31T23:59:59-23:00",
        "q=a&since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59-23:00",
        "q=%22%28%29%2A%00%3A%5E-",
        "q=%F0%9F%98%80",
        "q=%ff%fe",
        "q=a%20AND%20NOT%20%22b%22%20NEAR%28c%29",
        f"q={'word%20' * 800}",
        f"q={'%E6%9D%B1' * 500}",
    ],
)
def test_strange_filters_find_nothing_or_everything(http: httpx2.Client, query: str) -> None:
    assert http.get(f"/api/jobs?{query}").status_code == 200


@pytest.fixture(scope="module")
def finished(http: httpx2.Client) -> str:
    answer = http.post("/api/jobs", json=HELLO, headers={"Prefer": "wait=30"})
    assert answer.json()["status"] == "completed"
    return str(answer.json()["jobId"])


def test_event_ids(http: httpx2.Client, door: Gateway, finished: str) -> None:
    """B88, B89, B91, B94."""
    url = f"/api/jobs/{finished}/events"
    assert_problem(http.get(url, headers={"Last-Event-ID": "abc"}), 400, "bad_event_id")
    assert_problem(http.get(f"{url}?lastEventId=1.-1"), 400, "bad_event_id")
    reply = exchange(door.url, request("GET", url, "Last-Event-ID: \xe9\xff"))
    assert (reply.status, reply.code) == (400, "bad_event_id")
    future = http.get(url, headers={"Last-Event-ID": "7.99"}).text
    assert "event: reset" in future
    assert "event: complete" in future
    assert_problem(http.get(url, headers={"Accept": JSON}), 406, "not_acceptable")


def test_head_of_a_stream(http: httpx2.Client, finished: str) -> None:
    """B95: the head that GET would have, and no stream; the connection can be used again."""
    for path, status in ((finished, 200), ("nobody", 404)):
        answer = http.head(f"/api/jobs/{path}/events")
        assert (answer.status_code, answer.content) == (status, b"")
    assert http.head(f"/api/jobs/{finished}/events").headers["content-type"].startswith("text/event-stream")
    got, headed = http.get(f"/api/jobs/{finished}"), http.head(f"/api/jobs/{finished}")
    assert headed.headers["content-length"] == got.headers["content-length"]


def test_deleted_content(http: httpx2.Client) -> None:
    """B92."""
    job_id = http.post("/api/jobs", json=HELLO, headers={"Prefer": "wait=30"}).json()["jobId"]
    assert http.delete(f"/api/jobs/{job_id}").status_code == 204
    for rest in ("/events", "/request"):
        assert_problem(http.get(f"/api/jobs/{job_id}{rest}"), 410, "content_deleted")


@pytest.mark.parametrize("key", ["", "k" * 256, "\xe9", "a\x01b", "a\tb"])
def test_idempotency_keys(door: Gateway, key: str) -> None:
    """B98."""
    sent = request("POST", "/api/jobs", f"Content-Type: {JSON}", f"Idempotency-Key: {key}", body=body())
    reply = exchange(door.url, sent)
    assert reply.status == 400
    assert reply.code in ("bad_idempotency_key", "bad_request")


def test_two_idempotency_keys(door: Gateway) -> None:
    keys = ("Idempotency-Key: a", "Idempotency-Key: b")
    reply = exchange(door.url, request("POST", "/api/jobs", f"Content-Type: {JSON}", *keys, body=body()))
    assert (reply.status, reply.code) == (400, "bad_request")


def test_the_same_key_again(http: httpx2.Client) -> None:
    """B100, B101, B106."""
    key = new_job_id()
    first = posted(http, b'{"messages":[{"role":"user","content":"hi"}],"temperature":0.5}', **{"Idempotency-Key": key})
    same = posted(
        http, b'{ "temperature":0.5, "messages":[{"content":"hi","role":"user"}] }', **{"Idempotency-Key": key}
    )
    assert (first.status_code, same.status_code) == (202, 202)
    assert same.json()["jobId"] == first.json()["jobId"]
    assert same.headers["idempotency-replayed"] == "true"
    assert_problem(posted(http, body(), **{"Idempotency-Key": key}), 422, "idempotency_mismatch")


async def test_a_hundred_with_one_key(http: httpx2.Client, running: Stack) -> None:
    """B103: one job, one run."""
    key = new_job_id()
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda _: http.post("/api/jobs", json=HELLO, headers={"Idempotency-Key": key}), range(100))
        )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["jobId"] for answer in answers}) == 1
    job_id = answers[0].json()["jobId"]
    ended = wait_until(lambda: http.get(f"/api/jobs/{job_id}").json()["status"] == "completed")
    assert ended
    client = await running.connect()
    assert len([run async for run in client.list_workflows(f'WorkflowId = "{job_id}"')]) == 1


def test_replays(http: httpx2.Client, finished: str) -> None:
    """Without a body, chunked or not, and with one; never with something else."""
    url = f"/api/jobs/{finished}/replay"
    assert http.post(url).status_code == 202
    assert http.post(url, content=iter([b""])).status_code == 202
    assert http.post(url, content=iter([b'{"temperature":', b"1}"]), headers={"Content-Type": JSON}).status_code == 202
    bodies: tuple[object, ...] = ([], "x", 5)
    for wrong in bodies:
        assert_problem(http.post(url, json=wrong), 422, "validation_failed")
    assert_problem(http.post(url, content=b"{", headers={"Content-Type": JSON}), 400, "invalid_json")
    assert_problem(http.post(url, content=b"{}"), 415, "unsupported_media_type")


def test_cancelling_what_has_ended(http: httpx2.Client, finished: str) -> None:
    """B121."""
    assert_problem(http.post(f"/api/jobs/{finished}/cancel"), 409, "job_finished")


def test_cancelling_twice(http: httpx2.Client, running: Stack) -> None:
    """B122."""
    job_id = http.post("/api/jobs", json={**HELLO, "model": "nobody-knows-it"}).json()["jobId"]
    answers = [http.post(f"/api/jobs/{job_id}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]


METHODS = {
    "/api/jobs": "GET, HEAD, OPTIONS, POST",
    "/api/jobs/x": "DELETE, GET, HEAD, OPTIONS",
    "/api/jobs/x/cancel": "OPTIONS, POST",
    "/healthz": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize(("path", "allowed"), METHODS.items())
def test_methods(http: httpx2.Client, path: str, allowed: str) -> None:
    answer = http.request("PATCH", path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_paths_that_are_not_there(http: httpx2.Client) -> None:
    for path in ("/api", "/api/", "/api/jobs/", "/nothing", "/api/jobs/x/y/z"):
        assert_problem(http.get(path), 404, "not_found")


def test_every_answer_is_protected(http: httpx2.Client, finished: str) -> None:
    for path in (f"/api/jobs/{finished}", "/nothing", "/healthz"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert http.get(f"/api/jobs/{finished}").headers["cache-control"] == "no-store"


PLACES = {
    "a comma too many": (b'{\n  "messages": [],\n}', 3, 1),
    "after two lines": (b'{\n"a": 1,\n  "b" 2}', 3, 7),
    "an end too early": (b'{"messages": [', 1, 15),
    "nothing": (b"", 1, 1),
    "a second document": (b"{}\n {}", 2, 2),
    "not UTF-8": (b'{"a":\n"\xff"}', 2, 2),
    "after characters of two bytes": ('{"a": "ü", b}'.encode(), 1, 12),
    "a name twice": (b'{"a": 1,\n "b": {"a": 1}, "a": 2}', 2, 17),
    "a name twice, in an array": (b'[{"a": 1}, {"a": 1, "\\u0061": 2}]', 1, 21),
    "NaN": (b'{"a":\n NaN}', 2, 2),
    "-Infinity": (b'["NaN", -Infinity]', 1, 9),
    "1e999": (b'{"a": 1,\n"b": 1e999}', 2, 6),
    "5,000 digits": (b'{"a": 1,\n"b": ' + b"9" * 5_000 + b"}", 2, 6),
    "half a pair": (b'{"a": "x",\n"b": "\\ud800"}', 2, 6),
    "nested too deep": (b"[\n" + b"[" * 64 + b"]" * 65, 2, 64),
    "nested far too deep": (b'{"a":\n' + b"[" * 30_000 + b"]" * 30_000 + b"}", 2, 64),
}


@pytest.mark.parametrize(("sent", "line", "column"), PLACES.values(), ids=PLACES.keys())
def test_what_is_not_json_is_told_by_line_and_column(http: httpx2.Client, sent: bytes, line: int, column: int) -> None:
    found = assert_problem(posted(http, sent), 400, "invalid_json")
    assert f": line {line}, column {column}: " in found["detail"]


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 1_000_000 + b"\\", b'"' * 200_001, b'[["' * 100_000])
def test_finding_the_place_takes_no_long_time(http: httpx2.Client, tail: bytes) -> None:
    """Each byte is looked at once, also where strings have no end."""
    assert_problem(posted(http, b"[" * 65 + tail), 400, "invalid_json")


UNIONS = {
    "role": ("/messages/0/role", {"messages": [{"role": SECRET, "content": "x"}]}),
    "no role": ("/messages/1/role", {"messages": [*user("x"), {"content": "x"}]}),
    "a role that is no word": ("/messages/0/role", {"messages": [{"role": {"x": 1}, "content": "x"}]}),
    "part": ("/messages/0/content/1/type", {"messages": user([{"type": "text", "text": "x"}, {"type": SECRET}])}),
    "no type of a part": ("/messages/0/content/0/type", {"messages": user([{"text": "x"}])}),
    "part of a thought": (
        "/messages/0/content/0/thinking/0/type",
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": SECRET}]}]}]},
    ),
    "content of a resource": (
        "/messages/0/content/0/content/type",
        {"messages": user([{"type": "resource", "uri": "x", "content": {"type": SECRET}}])},
    ),
    "tool": ("/tools/0/type", {"tools": [{"type": SECRET}]}),
    "no type of a tool": ("/tools/0/type", {"tools": [{"function": {"name": "f", "parameters": {}}}]}),
    "tool choice": ("/tool_choice/type", {"tool_choice": {"type": SECRET, "function": {"name": "f"}}}),
    "word of a tool choice": ("/tool_choice", {"tool_choice": SECRET}),
    "response format": ("/response_format/type", {"response_format": {"type": SECRET}}),
    "prediction": ("/prediction/type", {"prediction": {"type": SECRET}}),
}


@pytest.mark.parametrize(("pointer", "fields"), UNIONS.values(), ids=UNIONS.keys())
def test_a_wrong_kind_is_told_where_it_stands(http: httpx2.Client, pointer: str, fields: dict[str, Any]) -> None:
    found = assert_problem(posted(http, body(**fields)), 422, "validation_failed")
    assert {error["pointer"] for error in found["errors"]} == {pointer}


@pytest.mark.parametrize("count", [1_001, 10_001, 50_000])
def test_too_many_messages_are_counted(http: httpx2.Client, count: int) -> None:
    """Short ones: before the limit of values, which many of them are over, too."""
    found = assert_problem(posted(http, body(messages=user("x") * count)), 422, "validation_failed")
    (error,) = found["errors"]
    assert error["pointer"] == "/messages"
    assert f"must have at most 1000 messages, and has {count};" in error["message"]


def test_a_thousand_messages_are_taken(http: httpx2.Client) -> None:
    assert posted(http, body(messages=user("x") * 1_000)).status_code == 202


def test_too_many_values_are_counted(http: httpx2.Client) -> None:
    found = assert_problem(posted(http, body(guardrails=[{"a": [0] * 30_000}])), 413, "body_too_large")
    assert "may have 20000 values" in found["detail"]
    assert re.search(r"it has 300\d\d$", found["detail"])


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("offset", ["+02:00", "+0530"])
def test_a_plus_that_was_not_escaped(http: httpx2.Client, door: Gateway, name: str, offset: str) -> None:
    """It arrives as a blank. Escaped it works."""
    target = f"/api/jobs?{name}=2026-01-01T00:00:00{offset}"
    reply = exchange(door.url, request("GET", target))
    assert (reply.status, reply.code) == (422, "validation_failed")
    (error,) = json.loads(reply.body)["errors"]
    assert error["pointer"] == f"/{name}"
    assert "%2B" in error["message"]
    assert exchange(door.url, request("GET", target.replace("+", "%2B"))).status == 200


def test_other_times_that_are_none(http: httpx2.Client) -> None:
    for wrong in ("2026-01-01 00:00:00", "2026-01-01T00:00:00", "noon", "2026-13-01T00:00:00Z"):
        (error,) = assert_problem(http.get("/api/jobs", params={"since": wrong}), 422, "validation_failed")["errors"]
        assert (error["pointer"], "%2B" in error["message"], "Z" in error["message"]) == ("/since", False, True)


def test_spellings_of_a_number_are_one_body(http: httpx2.Client) -> None:
    """RFC 8785; two seeds that are one double are still two bodies."""
    key = {"Idempotency-Key": new_job_id()}
    first = posted(http, with_text(b"1"), **key)
    for spelling in (b"1.0", b"1e0", b"10E-1"):
        again = posted(http, with_text(spelling), **key)
        assert (again.json()["jobId"], again.headers["idempotency-replayed"]) == (first.json()["jobId"], "true")
    assert_problem(posted(http, with_text(b"1.1"), **key), 422, "idempotency_mismatch")
    key = {"Idempotency-Key": new_job_id()}
    assert posted(http, with_text(b"9007199254740992", b"random_seed"), **key).status_code == 202
    other = posted(http, with_text(b"9007199254740993", b"random_seed"), **key)
    assert_problem(other, 422, "idempotency_mismatch")


def test_null_is_as_if_absent(http: httpx2.Client) -> None:
    """Also for the key, and in a replay, where it takes a field away."""
    key = {"Idempotency-Key": new_job_id()}
    first = posted(http, body(temperature=0.5), **key)
    nulls = dict.fromkeys(("metadata", "model", "limits", "webhook", "tools", "priority", "onInterrupt", "id"))
    again = posted(http, body(temperature=0.5, **nulls), **key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (202, "true")
    url = first.headers["location"]
    assert set(http.get(f"{url}/request").json()) == {"messages", "temperature"}
    replayed = http.post(f"{url}/replay", json={"temperature": None, "limits": {"totalSeconds": None}, "model": None})
    assert replayed.status_code == 202
    asked = http.get(f"{replayed.headers['location']}/request").json()
    assert asked == {"messages": HELLO["messages"], "limits": {}}
    assert_problem(posted(http, body(messages=None)), 422, "validation_failed")
    assert_problem(posted(http, body(colour=None)), 422, "validation_failed")
