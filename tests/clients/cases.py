"""One table of cases for all clients: what a service, or a network, does, and what each client makes of it.

A case has the server's replies (raw bytes, or a function; tests/support/raw_http.py), the calls, and their outcomes. An
expected outcome names what matters; both clients' outcomes must also be the same in everything else.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from chatjobs.sse import encode
from chatjobs.webhooks import sign
from tests.clients.drivers import Call, call
from tests.support.raw_http import LAST_PART, STREAM_HEAD, Reply, Visit, head, part, plain, stream

Json = Any


@dataclass(frozen=True)
class Case:
    name: str
    replies: tuple[Reply, ...]
    calls: tuple[Call, ...]
    outcomes: tuple[dict[str, Json], ...]
    """One for each call."""
    options: dict[str, Json] = field(default_factory=dict)
    """Of the client."""
    sent: dict[str, list[Json]] = field(default_factory=dict)
    """The values of headers in the requests, in their order; ``path`` is the target."""
    visits: int | None = None
    """The number of requests."""


def error(name: str, **facts: Json) -> dict[str, Json]:
    return {"error": {"name": name, **facts}}


# ---------------------------------------------------------------------------------------------- documents

KEY = "key_that_nobody_may_see"
CREATED = "2026-01-02T03:04:05.000000Z"
JOB = {"jobId": "job_1", "requestId": "r", "status": "completed", "model": "m", "createdAt": CREATED}
NULLS = """
startedAt completedAt content reasoning toolCalls finishReason usage error sha256 replayOf batchId scheduleId
temporalUrl
"""
WHOLE_JOB: Json = {
    **JOB,
    **dict.fromkeys(NULLS.split()),
    "usageEstimated": False,
    "epoch": 1,
    "position": 0,
    "metadata": {},
    "attempts": [],
    "deliveries": [],
    "replays": [],
}
"""What a client makes of JOB: with the defaults of all fields."""
ACCEPTED = {"jobId": "j", "requestId": "r", "status": "queued", "statusUrl": "", "eventsUrl": "", "cancelUrl": ""}
ACCEPTED |= {"temporalUrl": ""}
BATCH = {"batchId": "b", "status": "completed", "createdAt": CREATED, "counts": {"total": 1, "completed": 1}}
BATCH_ACCEPTED = {
    "batchId": "b",
    "status": "queued",
    "statusUrl": "",
    "eventsUrl": "",
    "outputUrl": "",
    "errorsUrl": "",
}
SCHEDULE = {"id": "s", "cron": "@daily", "paused": False, "createdAt": CREATED, "updatedAt": CREATED, "pending": False}
ENDPOINT = {"url": "http://x/", "status": "ok", "failures": 0, "successes": 3}
PAUSE = {"pauseId": "p", "reason": "", "pausedAt": CREATED, "pausedBy": "operator"}
LANE = {"lane": "l", "perSecond": 5.5, "running": 0, "waiting": 0, "waitingBy": [], "pauses": [PAUSE], "down": False}
OK = plain("200 OK", JOB)


def problem(status: str, code: str, *, headers: str = "", **fields: Any) -> bytes:
    reply = plain(status, {"code": code, "detail": "Told so"} | fields, content_type="application/problem+json")
    return reply.replace(b"\r\n", f"\r\n{headers}".encode(), 1) if headers else reply


def frames(*events: tuple[str, str | None, str]) -> bytes:
    return b"".join(encode(*event) for event in events)


def told(content: str, event_id: str, channel: str = "content") -> tuple[str, str, str]:
    data = {"content": content, "channel": channel, "index": 0, "tokenCount": 1}
    return ("chunk", event_id, json.dumps(data))


ABCD = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
"""The SHA-256 of "abcd"."""
START = (
    "start",
    "1.0",
    json.dumps({"jobId": "job_1", "requestId": "r", "model": "m", "attempt": 1} | {"timestamp": CREATED}),
)
FIRST = frames(told("ab", "1.2"))
END = ("complete", "1.4.end", f'{{"status":"completed","sha256":"{ABCD}"}}')
TAIL = frames(told("cd", "1.4"), END)
REST = stream(TAIL)
RETRY = b"retry: 1000\n\n"
SEEN = [{"type": "chunk", "content": "ab"}, {"type": "chunk", "content": "cd"}, {"type": "complete", "sha256": ABCD}]
ALL = {"values": SEEN, "last_event_id": "1.4.end"}
"""What a reader of "abcd" has."""


async def silent(visit: Visit) -> None:
    """A connection that is dead, and does not say so."""
    await visit.send(STREAM_HEAD, part(FIRST))
    await visit.gone.wait()


async def silent_from_the_start(visit: Visit) -> None:
    await visit.gone.wait()


async def drip(visit: Visit) -> None:
    """An answer that never ends, a byte at a time."""
    await visit.send(head(content_length="1000000"))
    while True:
        await visit.send(b" ")
        await asyncio.sleep(0.05)


async def endless(visit: Visit) -> None:
    await visit.send(STREAM_HEAD)
    while True:
        await visit.send(part(b"data: " + b"x" * 10_000))


async def slow(visit: Visit) -> None:
    """Comments keep it open for longer than a silence."""
    await visit.send(STREAM_HEAD, part(FIRST))
    for _ in range(4):
        await asyncio.sleep(0.15)
        await visit.send(part(b": keep-alive\n\n"))
    await visit.send(part(TAIL), LAST_PART)


def broken_off(*pieces: bytes) -> Reply:
    """A reply that ends with its connection."""

    async def reply(visit: Visit) -> None:
        await visit.send(*pieces)
        visit.writer.close()

    return reply


def in_bytes(data: bytes) -> Reply:
    """A stream of which each byte is a piece."""

    async def reply(visit: Visit) -> None:
        await visit.send(STREAM_HEAD, *(part(data[at : at + 1]) for at in range(len(data))), LAST_PART)

    return reply


# -------------------------------------------------------------------------------------------------- calls

GET = call("get", "job_1")
STREAM = call("stream", "job_1")


def getting(name: str, *replies: Reply, outcome: dict[str, Json], **more: Any) -> Case:
    return Case(f"get: {name}", replies, (GET,), (outcome,), **more)


def streaming(
    name: str, *replies: Reply, outcome: dict[str, Json] = ALL, ids: list[Json] | None = None, **more: Any
) -> Case:
    sent = {} if ids is None else {"last-event-id": ids}
    return Case(f"stream: {name}", replies, (STREAM,), (outcome,), sent=sent, **more)


PROBLEMS = [
    getting("401", problem("401 Unauthorized", "unauthorized"), outcome=error("Unauthorized", message="Told so")),
    getting("401 of a proxy", plain("401 Unauthorized", b"<html>"), outcome=error("Unauthorized")),
    getting("404", problem("404 Not Found", "job_not_found"), outcome=error("JobNotFound", code="job_not_found")),
    getting("404 of a proxy", plain("404 Not Found", b"<html>"), outcome=error("ApiError", status=404)),
    getting("taken", problem("409 Conflict", "job_id_taken"), outcome=error("JobIdConflict", code="job_id_conflict")),
    *(
        getting(code, problem("409 Conflict", code), outcome=error(name, code=code, message="Told so"))
        for code, name in {
            "batch_finished": "BatchFinished",
            "batch_not_found": "BatchNotFound",
            "content_deleted": "ContentDeleted",
            "delivery_not_found": "DeliveryNotFound",
            "endpoint_not_found": "EndpointNotFound",
            "idempotency_mismatch": "IdempotencyMismatch",
            "job_finished": "JobFinished",
            "job_running": "JobRunning",
            "nothing_to_resume": "NothingToResume",
            "pause_not_found": "PauseNotFound",
            "schedule_not_found": "ScheduleNotFound",
            "webhook_url_refused": "WebhookUrlRefused",
        }.items()
    ),
    getting(
        "a known code without words",
        plain("409 Conflict", {"code": "job_finished", "detail": 5}),
        outcome=error("JobFinished", message="The job has ended and can no longer be changed."),
    ),
    getting(
        "413",
        problem("413 Content Too Large", "body_too_large"),
        outcome=error("ApiError", status=413, reason="body_too_large", message="Told so"),
    ),
    getting(
        "422 with problems",
        problem(
            "422 Unprocessable", "validation_failed", errors=[{"pointer": "/model", "message": "no"}, {"pointer": 5}, 7]
        ),
        outcome=error("InvalidRequest", problems=[["/model", "no"], ["", "is not valid"]]),
    ),
    getting(
        "422 without problems",
        problem("422 Unprocessable", "validation_failed", errors="?"),
        outcome=error("InvalidRequest", problems=[["", "Told so"]]),
    ),
    getting("500", problem("500 Internal Server Error", "internal"), outcome=error("ApiError", reason="internal")),
    getting(
        "500 with a list", plain("500 Internal Server Error", b"[]"), outcome=error("ApiError", reason="api_error")
    ),
    getting("500 with nothing", plain("500 Internal Server Error"), outcome=error("ApiError", status=500)),
    getting("302", plain("302 Found", location="http://127.0.0.1:1/"), outcome=error("ApiError", status=302), visits=1),
    getting("307", plain("307 Temporary Redirect", location="/"), outcome=error("ApiError", status=307), visits=1),
    getting(
        "long words with line breaks",
        problem("500 Internal Server Error", "internal", detail="a\n\tb\x07" + "é" * 600),
        outcome=error("ApiError", message="a b\ufffd" + "é" * 495 + "…"),
    ),
]

DOCUMENTS = [
    getting("a job", OK, outcome={"value": WHOLE_JOB}, visits=1),
    getting("a field of a newer service", plain("200 OK", JOB | {"new": 1}), outcome={"value": WHOLE_JOB}),
    getting(
        "further counters of usage",
        plain("200 OK", JOB | {"usage": {"prompt_tokens": 1, "cached": 5}}),
        outcome={"value": {"usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 0, "cached": 5}}},
    ),
    getting(
        "a failed job",
        plain("200 OK", JOB | {"status": "failed", "error": {"code": "c", "message": "m"}}),
        outcome={"value": {"error": {"code": "c", "message": "m", "retryable": False}}},
    ),
    *(
        getting(name, plain("200 OK", body), outcome=error("ApiError", status=None), visits=1)
        for name, body in {
            "a page": b"<html>",
            "nothing": b"",
            "a list": b"[]",
            "null": b"null",
            "cut JSON": b'{"jobId": "job_1"',
            "JSON twice": json.dumps(JOB).encode() * 2,
            "a number as the id": json.dumps(JOB | {"jobId": 5}).encode(),
            "no id": json.dumps({name: value for name, value in JOB.items() if name != "jobId"}).encode(),
            "an unknown status": json.dumps(JOB | {"status": "asleep"}).encode(),
            "a time without zone": json.dumps(JOB | {"createdAt": "2026-01-02T03:04:05"}).encode(),
            "no time": json.dumps(JOB | {"createdAt": "today"}).encode(),
            "text as a count": json.dumps(JOB | {"epoch": "1"}).encode(),
            "half a count": json.dumps(JOB | {"epoch": 1.5}).encode(),
            "metadata that is a list": json.dumps(JOB | {"metadata": ["a"]}).encode(),
            "metadata with a number": json.dumps(JOB | {"metadata": {"a": 1}}).encode(),
            "null for a list": json.dumps(JOB | {"attempts": None}).encode(),
            "not UTF-8": json.dumps(JOB).encode()[:-1] + b', "content": "\xff"}',
            "half a surrogate pair": json.dumps(JOB)[:-1].encode() + b', "content": "\\ud800"}',
            "NaN": json.dumps(JOB)[:-1].encode() + b', "usage": {"total_tokens": NaN}}',
        }.items()
    ),
    getting(
        "compressed", plain("200 OK", b"x", content_encoding="gzip"), outcome=error("ApiError", status=200), visits=1
    ),
    getting("named as not compressed", plain("200 OK", JOB, content_encoding="identity"), outcome={"value": WHOLE_JOB}),
]

REPEATED = [
    *(
        getting(f"{status} passes", plain(status), broken_off(), OK, outcome={"value": WHOLE_JOB}, visits=3)
        for status in ("502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Too Many")
    ),
    getting(
        "a body that is cut", broken_off(head(content_length="90"), b"{"), OK, outcome={"value": WHOLE_JOB}, visits=2
    ),
    getting("no HTTP at all", broken_off(b"hello\r\n\r\n"), OK, outcome={"value": WHOLE_JOB}, visits=2),
    getting(
        "a pause that is too long",
        problem("503 Service Unavailable", "storage_unavailable", headers="Retry-After: 30\r\n"),
        outcome=error(
            "ServiceUnavailable", status=503, reason="storage_unavailable", retry_after=30, message="Told so"
        ),
        options={"timeout": 5},
        visits=1,
    ),
    *(
        getting(
            f"Retry-After {header!r}",
            problem(
                "503 Service Unavailable",
                "busy",
                headers=f"Date: Fri, 02 Jan 2026 03:04:05 GMT\r\nRetry-After: {header}\r\n",
            ),
            outcome=error("ServiceUnavailable", retry_after=seconds),
            options={"timeout": 0.3},
        )
        for header, seconds in {
            "7": 7,
            "1.5": 1.5,
            "99999999": 60,
            "1" * 400: None,
            "-1": None,
            "abc": None,
            "1 s": None,
            "": None,
            "Fri, 02 Jan 2026 03:04:15 GMT": 10,
            "Fri, 02 Jan 2026 03:04:15 -0000": 10,
            "Friday, 02-Jan-26 03:04:15 GMT": 10,
            "Fri Jan  2 03:04:15 2026": 10,
            "Fri, 02 Jan 2026 04:04:15 +0100": 10,
            "Fri, 02 Jan 2020 03:04:15 GMT": 0,
            "Fri, 32 Jan 2026 03:04:15 GMT": None,
            "2026-01-02T03:04:15Z": None,
        }.items()
    ),
    getting(
        "no end of 503",
        plain("503 Service Unavailable"),
        outcome=error("ServiceUnavailable", status=503, reason="service_unavailable"),
        options={"timeout": 0.2},
    ),
    getting(
        "no answer", silent_from_the_start, outcome=error("ServiceUnavailable"), options={"timeout": 0.3}, visits=1
    ),
    getting(
        "silence, then an answer", silent_from_the_start, OK, outcome={"value": WHOLE_JOB}, options={"silence": 0.2}
    ),
    getting("an endless answer", drip, outcome=error("ServiceUnavailable"), options={"timeout": 0.3}, visits=1),
    getting(
        "a large answer",
        plain("200 OK", b"x" * 200_000),
        outcome=error("ResponseTooLarge", code="response_too_large"),
        options={"max_response_bytes": 100_000},
        visits=1,
    ),
    getting(
        "a large answer of unknown length",
        endless,
        outcome=error("ResponseTooLarge"),
        options={"max_response_bytes": 100_000},
        visits=1,
    ),
    getting(
        "a large error",
        plain("500 Internal Server Error", b"x" * 200_000),
        outcome=error("ResponseTooLarge"),
        options={"max_response_bytes": 100_000},
    ),
]

AWAY: dict[str, Reply] = {
    "503": plain("503 Service Unavailable"),
    "502": plain("502 Bad Gateway", b"<html>"),
    "504": plain("504 Gateway Timeout"),
    "500": plain("500 Internal Server Error"),
    "429": plain("429 Too Many Requests"),
    "408": plain("408 Request Timeout"),
    "425": plain("425 Too Early"),
    "a page": plain("200 OK", b"<html>", content_type="text/html"),
    "204": head("204 No Content"),
    "no answer": silent_from_the_start,
    "no HTTP": broken_off(b"?"),
}
"""What a reader gets while the service is away."""
STREAMS = [
    streaming("whole", stream(RETRY, frames(START), FIRST, TAIL), outcome={"values": [{"type": "start"}, *SEEN]}),
    streaming(
        "all events",
        stream(
            frames(
                ("queued", None, '{"position":2,"expectedStartAt":null}'),
                START,
                told("ab", "1.2", "reasoning"),
                ("reset", "2.0", '{"attempt":2,"reason":"restart"}'),
                told("abcd", "2.4"),
                ("complete", "2.4.end", f'{{"status":"incomplete","sha256":"{ABCD}","usage":{{"total_tokens":3}}}}'),
            )
        ),
        outcome={
            "values": [
                {"type": "queued", "position": 2, "expectedStartAt": None, "reason": "rate_limit"},
                {"type": "start", "jobId": "job_1", "attempt": 1, "timestamp": CREATED},
                {"type": "chunk", "content": "ab", "channel": "reasoning", "index": 0, "tokenCount": 1},
                {"type": "reset", "attempt": 2, "reason": "restart"},
                {"type": "chunk", "content": "abcd", "channel": "content"},
                {
                    "type": "complete",
                    "status": "incomplete",
                    "totalTokens": None,
                    "toolCalls": None,
                    "usage": {"total_tokens": 3},
                },
            ],
            "last_event_id": "2.4.end",
        },
    ),
    streaming(
        "a failure",
        stream(frames(("error", "1.0.end", '{"code":"c","message":"m","retryable":true}'))),
        outcome={"values": [{"type": "error", "code": "c", "retryable": True}], "last_event_id": "1.0.end"},
    ),
    streaming(
        "a cancellation",
        stream(frames(("cancelled", "1.0.end", '{"sha256":"0"}'))),
        outcome={"values": [{"type": "cancelled", "status": "cancelled", "usage": None}]},
    ),
    streaming(
        "byte by byte",
        in_bytes(
            b"\xef\xbb\xbf"
            + frames(told("é🌊", "1.2"), told("—", "1.3"))
            + frames(("complete", "1.3.end", '{"status":"completed","sha256":"0"}'))
        ),
        outcome={"values": [{"content": "é🌊"}, {"content": "—"}, {"type": "complete"}]},
    ),
    streaming("CRLF", stream(FIRST.replace(b"\n", b"\r\n"), TAIL.replace(b"\n", b"\r\n"))),
    streaming("CRLF byte by byte", in_bytes((FIRST + TAIL).replace(b"\n", b"\r\n"))),
    streaming("CR", stream(FIRST.replace(b"\n", b"\r"), TAIL.replace(b"\n", b"\r"))),
    streaming("CR byte by byte", in_bytes((FIRST + TAIL).replace(b"\n", b"\r"))),
    streaming("a BOM", stream(b"\xef\xbb\xbf" + FIRST, TAIL)),
    streaming("a BOM in the middle", stream(FIRST, b"\xef\xbb\xbf" + TAIL), REST, ids=[None, "1.2"]),
    streaming("comments and unknown fields", stream(b": hello\n:\nfoo: bar\nfoo\n\n", FIRST, b":\n\n", TAIL)),
    streaming("data in several lines", stream(FIRST, TAIL.replace(b'data: {"content"', b'data: {\ndata: "content"'))),
    streaming("no blank after the colon", stream(FIRST.replace(b": ", b":", 3), TAIL)),
    streaming("an event without data", stream(b"event: chunk\nid: 9.9\n\n", FIRST, TAIL)),
    streaming("an event without id", stream(frames(("chunk", None, "?")), FIRST, TAIL)),
    streaming("an id with NUL", stream(FIRST, b"id: 7\x00\n" + TAIL)),
    streaming("an unknown event at its place", stream(FIRST, frames(("news", "1.2", "?")), TAIL)),
    streaming("an unknown event from elsewhere", stream(FIRST, frames(("news", "3.7", "?")), TAIL)),
    streaming(
        "a second start",
        stream(frames(START), FIRST, frames(START), TAIL),
        outcome={"values": [{"type": "start"}, *SEEN]},
    ),
    streaming("what follows the end is not read", stream(FIRST, TAIL, FIRST)),
    # broken connections
    *(
        streaming(name, reply, REST, ids=[None, "1.2"], options={"silence": 0.3})
        for name, reply in {
            "cut": broken_off(STREAM_HEAD + part(FIRST)),
            "closed": stream(FIRST),
            "cut in an event": broken_off(STREAM_HEAD + part(FIRST) + part(b"event: chunk\nid: 1.4\ndata: {")),
            "cut in a character": broken_off(STREAM_HEAD + part(FIRST) + part(b"event: chunk\nid: 1.3\ndata: \xc3")),
            "silent": silent,
        }.items()
    ),
    *(
        streaming(f"{name}, then all", reply, stream(RETRY, FIRST, TAIL), ids=[None, None], options={"silence": 0.3})
        for name, reply in AWAY.items()
    ),
    streaming("keep-alives", slow, ids=[None], options={"silence": 0.4, "patience": 0.4}),
    streaming(
        "patience ends",
        plain("503 Service Unavailable"),
        outcome=error("ServiceUnavailable", status=503) | {"values": []},
        options={"patience": 0.2},
    ),
    streaming(
        "patience ends after an event",
        broken_off(STREAM_HEAD + part(FIRST)),
        plain("503 Service Unavailable"),
        outcome=error("ServiceUnavailable") | {"values": SEEN[:1], "last_event_id": "1.2"},
        options={"patience": 0.2},
    ),
    Case(
        "stream: a timeout",
        (silent,),
        (call("stream", "job_1", timeout=0.3),),
        (error("TimeoutError", code=None) | {"values": SEEN[:1]},),
    ),
    *(
        streaming(f"given up: {name}", reply, outcome=error(kind) | {"values": []}, visits=1)
        for name, reply, kind in [
            ("400", problem("400 Bad Request", "bad_event_id"), "ApiError"),
            ("401", problem("401 Unauthorized", "unauthorized"), "Unauthorized"),
            ("404", problem("404 Not Found", "job_not_found"), "JobNotFound"),
            ("410", problem("410 Gone", "content_deleted"), "ContentDeleted"),
            ("406", problem("406 Not Acceptable", "not_acceptable"), "ApiError"),
            ("301", plain("301 Moved", location="http://127.0.0.1:1/"), "ApiError"),
        ]
    ),
    streaming("a large problem", plain("400 Bad Request", b"x" * 100_000), outcome=error("ResponseTooLarge")),
    Case(
        "stream: nothing follows an end",
        (head("204 No Content"),),
        (call("stream", "job_1", last_event_id="1.4.end"),),
        ({"values": [], "last_event_id": "1.4.end"},),
        sent={"last-event-id": ["1.4.end"]},
    ),
    Case(
        "stream: goes on after an id",
        (REST,),
        (call("stream", "job_1", last_event_id="1.2"),),
        ({"values": SEEN[1:], "last_event_id": "1.4.end"},),
        sent={"last-event-id": ["1.2"]},
    ),
    *(
        Case(f"stream: {text!r} is no id", (), (call("stream", "job_1", last_event_id=text),), (error("StreamBroken"),))
        for text in ("abc", "0.1", "1", "1.2.fin", "1.2 ", "-1.2", "1.2\n", "9999999999.1", "１.2")
    ),
    # streams that do not fit together
    streaming("a gap is asked for again", stream(FIRST, frames(told("d", "1.4"), END)), REST, ids=[None, "1.2"]),
    streaming("a repetition is asked for again", stream(FIRST, FIRST), REST, ids=[None, "1.2"]),
    streaming("an end too early is asked for again", stream(FIRST, frames(END)), REST, ids=[None, "1.2"]),
    streaming(
        "positions are code points",
        stream(frames(told("🌊", "1.2"))),
        REST,
        outcome={"values": [{"content": "🌊"}, *SEEN[1:]]},
        ids=[None, "1.2"],
    ),
    streaming(
        "never fits",
        stream(frames(told("d", "1.4")), frames(told("f", "1.6"))),
        outcome=error("StreamBroken") | {"values": [{"content": "d"}]},
        visits=3,
    ),
    *(
        streaming(f"hostile data: {name}", stream(FIRST, frames(("chunk", event_id, data))), REST, ids=[None, "1.2"])
        for name, event_id, data in [
            ("no JSON", "1.4", "{"),
            ("a list", "1.4", "[]"),
            ("null", "1.4", "null"),
            ("a number for text", "1.4", '{"content":5,"channel":"content","index":0,"tokenCount":1}'),
            ("an unknown channel", "1.4", '{"content":"cd","channel":"secret","index":0,"tokenCount":1}'),
            ("no channel", "1.4", '{"content":"cd","index":0,"tokenCount":1}'),
            ("half a surrogate pair", "1.3", '{"content":"\\ud800","channel":"content","index":0,"tokenCount":1}'),
            ("no id of a job", "x", '{"content":"cd","channel":"content","index":0,"tokenCount":1}'),
            ("epoch 0", "0.4", '{"content":"cd","channel":"content","index":0,"tokenCount":1}'),
        ]
    ),
    streaming(
        "a name of Object's", stream(FIRST, frames(("constructor", "1.2", "{}"), ("__proto__", "1.2", "{}")), TAIL)
    ),
    streaming(
        "an endless event",
        endless,
        outcome=error("ResponseTooLarge") | {"values": []},
        options={"max_event_bytes": 100_000},
    ),
    streaming(
        "an endless event of lines",
        stream(b"data: x\n" * 1000),
        outcome=error("ResponseTooLarge"),
        options={"max_event_bytes": 1000},
    ),
    streaming("an event as large as may be", stream(FIRST, TAIL), options={"max_event_bytes": 120}),
]

ANSWERS = [
    Case("answer: the text", (stream(FIRST, TAIL),), (call("answer", "job_1"),), ({"value": "abcd"},)),
    Case(
        "answer: without the reasoning",
        (
            stream(
                frames(told("zz", "1.2", "reasoning"), told("abcd", "1.6")),
                frames(("complete", "1.6.end", f'{{"status":"completed","sha256":"{ABCD}"}}')),
            ),
        ),
        (call("answer", "job_1"),),
        ({"value": "abcd"},),
    ),
    Case(
        "answer: after a reset",
        (
            stream(
                FIRST,
                frames(
                    ("reset", "2.0", '{"attempt":2,"reason":"restart"}'),
                    told("abcd", "2.4"),
                    ("complete", "2.4.end", f'{{"status":"completed","sha256":"{ABCD}"}}'),
                ),
            ),
        ),
        (call("answer", "job_1"),),
        ({"value": "abcd"},),
    ),
    Case(
        "answer: another text than the stored one",
        (stream(FIRST, frames(("complete", "1.2.end", '{"status":"completed","sha256":"0"}'))),),
        (call("answer", "job_1"),),
        (error("StreamBroken"),),
    ),
    Case(
        "answer: too long",
        (stream(FIRST, TAIL),),
        (call("answer", "job_1"),),
        (error("ResponseTooLarge"),),
        options={"max_response_bytes": 3},
    ),
    Case(
        "answer: of a failed job",
        (
            stream(
                frames(
                    (
                        "error",
                        "1.0.end",
                        '{"code":"queue_timeout","message":"m","retryable":true,"cause":{"code":"paused","message":"p"}}',
                    )
                )
            ),
        ),
        (call("answer", "job_1"),),
        (error("JobFailed", reason="queue_timeout", retryable=True, cause="paused", message="m", code="job_failed"),),
    ),
    Case(
        "answer: of a cancelled job",
        (stream(frames(("cancelled", "1.0.end", '{"sha256":"0"}'))),),
        (call("answer", "job_1"),),
        (error("JobFailed", reason="cancelled", retryable=False, cause=None),),
    ),
    Case("wait: the job is ended", (OK,), (call("wait", "job_1"),), ({"value": WHOLE_JOB},), visits=1),
    Case(
        "wait: the job runs",
        (plain("200 OK", JOB | {"status": "queued"}), stream(FIRST, TAIL), OK),
        (call("wait", "job_1"),),
        ({"value": WHOLE_JOB},),
        visits=3,
    ),
    Case(
        "wait: deleted meanwhile",
        (plain("200 OK", JOB | {"status": "in_progress"}), problem("410 Gone", "content_deleted"), OK),
        (call("wait", "job_1"),),
        ({"value": WHOLE_JOB},),
        visits=3,
    ),
    Case(
        "wait: a timeout",
        (plain("200 OK", JOB | {"status": "queued"}), silent),
        (call("wait", "job_1", timeout=0.3),),
        (error("TimeoutError"),),
    ),
]

NO_ID = ("", "..", "a/b", "ä", "x?y=z", "a" * 129, "job_1\n")
SUBMITTED = plain("202 Accepted", ACCEPTED)
WHOLE_ACCEPTED = {"value": ACCEPTED | {"replayOf": None}}
ASKED_ON = '{"messages":[{"role":"user","content":"And then?"}],"previousJobId":"job_1","model":"m","max_tokens":5}'
SIXTH = {"id": "6", "event": "chat.created", "jobId": "job_1", "status": "queued", "metadata": {}, "revision": 1}
EXPIRED = problem("410 Gone", "events_expired")


def happened(number: int, name: str = "chat.created") -> tuple[str, str, str]:
    """An event of the feed of all jobs."""
    status = {"chat.created": "queued", "chat.failed": "failed"}[name]
    facts = {"id": str(number), "event": name, "timestamp": CREATED, "jobId": "job_1", "requestId": "r", "model": "m"}
    return (name, str(number), json.dumps(facts | {"status": status}))


CALLS = [
    *(
        Case(f"{do}: {text!r} is no id", (), (call(do, text),), (error("JobNotFound"),))
        for text in NO_ID
        for do in ("get", "cancel", "delete", "replay", "resume", "wait", "answer", "deliveries", "redeliver")
    ),
    *(
        Case(f"stream: {text!r} is no id of a job", (), (call("stream", text),), (error("JobNotFound"),))
        for text in NO_ID
    ),
    *(
        Case(f"{do}: {text!r} is no id", (), (call(do, text),), (error(kind),))
        for do, kind in [
            ("batches.get", "BatchNotFound"),
            ("batches.cancel", "BatchNotFound"),
            ("batches.watch", "BatchNotFound"),
            ("batches.wait", "BatchNotFound"),
            ("end_pause", "PauseNotFound"),
            ("schedules.get", "ScheduleNotFound"),
            ("schedules.delete", "ScheduleNotFound"),
        ]
        for text in NO_ID
    ),
    Case("redeliver: no id of a delivery", (), (call("redeliver", "job_1", "a/b"),), (error("DeliveryNotFound"),)),
    Case(
        "submit",
        (SUBMITTED,),
        (call("submit", "Hi", max_tokens=5),),
        (WHOLE_ACCEPTED,),
        sent={
            "path": ["POST /api/jobs"],
            "content-type": ["application/json"],
            "authorization": [None],
            "body": ['{"messages":[{"role":"user","content":"Hi"}],"max_tokens":5}'],
        },
    ),
    Case(
        "submit: messages and a key",
        (SUBMITTED,),
        (call("submit", [{"role": "user", "content": "é🌊"}], idempotency_key="k 1", jobId="j"),),
        (WHOLE_ACCEPTED,),
        options={"api_key": KEY},
        sent={
            "idempotency-key": ["k 1"],
            "authorization": [f"Bearer {KEY}"],
            "body": ['{"messages":[{"role":"user","content":"é🌊"}],"jobId":"j"}'],
        },
    ),
    Case(
        "submit: repetitions have one key",
        (plain("503 Service Unavailable"), broken_off(), SUBMITTED),
        (call("submit", "Hi", idempotency_key="k"),),
        (WHOLE_ACCEPTED,),
        sent={"idempotency-key": ["k", "k", "k"]},
    ),
    Case(
        "submit: the same key for another request",
        (problem("422 Unprocessable", "idempotency_mismatch"),),
        (call("submit", "Hi", idempotency_key="k"),),
        (error("IdempotencyMismatch"),),
        visits=1,
    ),
    Case(
        "submit: half a surrogate pair",
        (),
        (call("submit", "\ud800"),),
        (error("InvalidRequest", code="validation_failed"),),
    ),
    Case(
        "ask",
        (SUBMITTED, OK),
        (call("ask", "Hi", idempotency_key="k"),),
        ({"value": WHOLE_JOB},),
        sent={"path": ["POST /api/jobs", "GET /api/jobs/j"]},
    ),
    Case(
        "cancel",
        (plain("202 Accepted", {"jobId": "j", "status": "in_progress"}),),
        (call("cancel", "j"),),
        ({"value": "in_progress"},),
        sent={"path": ["POST /api/jobs/j/cancel"]},
    ),
    Case(
        "delete",
        (head("204 No Content"), problem("410 Gone", "content_deleted")),
        (call("delete", "j"), call("delete", "j")),
        ({"value": None}, {"value": None}),
        sent={"path": ["DELETE /api/jobs/j"] * 2},
    ),
    Case(
        "replay",
        (SUBMITTED,),
        (call("replay", "j", model="m", max_tokens=None, idempotency_key="k"),),
        (WHOLE_ACCEPTED,),
        sent={"path": ["POST /api/jobs/j/replay"], "body": ['{"model":"m","max_tokens":null}']},
    ),
    Case(
        "replay: without changes",
        (SUBMITTED,),
        (call("replay", "j", idempotency_key="k"),),
        (WHOLE_ACCEPTED,),
        sent={"body": [""], "content-type": [None]},
    ),
    Case(
        "reply: with the job's model",
        (OK, SUBMITTED),
        (call("reply", "job_1", "And then?", max_tokens=5, idempotency_key="k"),),
        (WHOLE_ACCEPTED,),
        sent={
            "path": ["GET /api/jobs/job_1", "POST /api/jobs"],
            "idempotency-key": [None, "k"],
            "body": ["", ASKED_ON],
        },
    ),
    Case(
        "reply: the job has not ended",
        (OK, problem("409 Conflict", "job_running")),
        (call("reply", "job_1", "And then?"),),
        (error("JobRunning"),),
        visits=2,
    ),
    Case("resume", (SUBMITTED,), (call("resume", "j"),), (WHOLE_ACCEPTED,), sent={"path": ["POST /api/jobs/j/resume"]}),
    Case(
        "replay_all",
        (plain("202 Accepted", BATCH | {"kind": "replay", "phase": "canary"}),),
        (call("replay_all", canary=3, status="failed", overrides={"model": "m"}, idempotency_key="k"),),
        ({"value": {"kind": "replay", "phase": "canary", "name": None, "lane": "live", "errorsByCode": {}}},),
        sent={
            "path": ["POST /api/replays"],
            "idempotency-key": ["k"],
            "body": ['{"canary":3,"filter":{"status":"failed"},"overrides":{"model":"m"}}'],
        },
    ),
    Case(
        "estimate_replay",
        (plain("200 OK", {"count": 2, "skipped": 0, "firstJobIds": ["a", "b"]}),),
        (call("estimate_replay", errorCode="c"),),
        ({"value": {"count": 2, "estimatedTokens": None, "firstJobIds": ["a", "b"]}},),
        sent={"body": ['{"filter":{"errorCode":"c"},"overrides":{},"dryRun":true}']},
    ),
    Case("deliveries", (OK,), (call("deliveries", "job_1"),), ({"value": []},)),
    Case(
        "redeliver",
        (plain("202 Accepted", {"count": 2}),),
        (call("redeliver", "j"), call("redeliver", "j", "whe_1")),
        ({"value": 2}, {"value": 2}),
        sent={"path": ["POST /api/jobs/j/redeliver", "POST /api/jobs/j/deliveries/whe_1/redeliver"]},
    ),
    Case(
        "test_webhook",
        (plain("200 OK", {"delivered": True, "latencyMs": 5}),),
        (call("test_webhook", "http://x/"),),
        ({"value": {"delivered": True, "statusCode": None, "latencyMs": 5, "error": None}},),
        sent={"path": ["POST /api/webhooks/test"], "body": ['{"url":"http://x/"}']},
    ),
    Case(
        "endpoints",
        (plain("200 OK", {"endpoints": [ENDPOINT]}),),
        (call("endpoints"),),
        ({"value": [{"url": "http://x/", "status": "ok", "failingSince": None}]},),
    ),
    Case(
        "enable_endpoint",
        (plain("200 OK", ENDPOINT), problem("404 Not Found", "endpoint_not_found")),
        (call("enable_endpoint", "http://x/"), call("enable_endpoint", "http://y/")),
        ({"value": {"url": "http://x/"}}, error("EndpointNotFound")),
        sent={"path": ["POST /api/endpoints/enable"] * 2},
    ),
    Case(
        "add_endpoint",
        (plain("201 Created", ENDPOINT | {"events": ["chat.failed"]}), problem("409 Conflict", "too_many_endpoints")),
        (call("add_endpoint", "http://x/", events=["chat.failed"]), call("add_endpoint", "http://y/")),
        ({"value": {"url": "http://x/", "events": ["chat.failed"], "ownSecret": False}}, error("TooManyEndpoints")),
        sent={
            "path": ["POST /api/endpoints"] * 2,
            "body": ['{"events":["chat.failed"],"url":"http://x/"}', '{"url":"http://y/"}'],
        },
    ),
    Case(
        "delete_endpoint",
        (head("204 No Content"), problem("404 Not Found", "endpoint_not_found")),
        (call("delete_endpoint", "http://x/"), call("delete_endpoint", "http://x/")),
        ({"value": None}, error("EndpointNotFound")),
        sent={"path": ["DELETE /api/endpoints"] * 2, "body": ['{"url":"http://x/"}'] * 2},
    ),
    Case(
        "listen: each event once, over connections that break off, until the reader is too far behind",
        (
            stream(frames(("ready", "5", "{}"))),
            stream(frames(happened(6))),
            stream(frames(("chat.unheard", "8", "{}"), happened(7), happened(9, "chat.failed"))),
            EXPIRED,
        ),
        (call("listen", types=["chat.created", "chat.failed"]),),
        (error("EventsExpired") | {"values": [SIXTH, {"id": "9", "event": "chat.failed"}], "last_event_id": "9"},),
        sent={
            "path": ["GET /api/events"] * 4,
            "query": [{"types": "chat.created,chat.failed"}] * 4,
            "last-event-id": [None, "5", "6", "9"],
        },
    ),
    Case(
        "listen: after an event",
        (stream(frames(happened(6))), EXPIRED),
        (call("listen", after=0),),
        (error("EventsExpired") | {"values": [SIXTH]},),
        sent={"query": [{}, {}], "last-event-id": ["0", "6"]},
    ),
    Case(
        "listen: an event that is none",
        (stream(frames(("chat.created", "6", "{}"))),),
        (call("listen"),),
        (error("StreamBroken") | {"values": []},),
        visits=3,
    ),
    *(
        Case(f"listen: {text!r} is no id", (), (call("listen", after=text),), (error("StreamBroken"),))
        for text in ("1.2", "-1")
    ),
    Case(
        "lanes",
        (plain("200 OK", {"lanes": [LANE]}),),
        (call("lanes"),),
        ({"value": [{"lane": "l", "perSecond": 5.5, "pauses": [{"pauseId": "p", "mayResume": True}]}]},),
    ),
    Case(
        "pause",
        (plain("201 Created", PAUSE),),
        (call("pause", tenant="acme", reason="why"),),
        ({"value": {"pauseId": "p", "lane": None}},),
        sent={"body": ['{"tenant":"acme","reason":"why"}']},
    ),
    Case("pauses", (plain("200 OK", {"pauses": [PAUSE]}),), (call("pauses"),), ({"value": [{"pauseId": "p"}]},)),
    Case(
        "end_pause",
        (head("204 No Content"),),
        (call("end_pause", "p"),),
        ({"value": None},),
        sent={"path": ["DELETE /api/pauses/p"]},
    ),
    Case(
        "list",
        (plain("200 OK", {"jobs": [JOB], "nextCursor": "n"}), plain("200 OK", {"jobs": [JOB]})),
        (call("list", status="failed", metadata={"a b": "é&"}, search="two words", page_size=1),),
        ({"values": [WHOLE_JOB, WHOLE_JOB]},),
        sent={
            "query": [
                {"status": "failed", "q": "two words", "limit": "1", "metadata.a b": "é&"},
                {"status": "failed", "q": "two words", "limit": "1", "metadata.a b": "é&", "cursor": "n"},
            ]
        },
    ),
    Case(
        "list: a conversation",
        (plain("200 OK", {"jobs": [JOB | {"thread": "job_0", "previousJobId": "job_0"}]}),),
        (call("list", thread="job_0"),),
        ({"values": [WHOLE_JOB | {"thread": "job_0", "previousJobId": "job_0"}]},),
        sent={"query": [{"thread": "job_0", "limit": "100"}]},
    ),
    Case(
        "list: in circles",
        (plain("200 OK", {"jobs": [JOB], "nextCursor": "again"}),),
        (call("list"),),
        (error("ApiError") | {"values": [WHOLE_JOB] * 2},),
        visits=2,
    ),
    Case(
        "schedules.create",
        (plain("201 Created", SCHEDULE),),
        (call("schedules.create", {"messages": [{"role": "user", "content": "Hi"}]}, id="s", cron="@daily"),),
        ({"value": {"id": "s", "cron": "@daily", "every": None, "overlap": "skip", "nextRuns": []}},),
        sent={"path": ["POST /api/schedules"]},
    ),
    Case(
        "schedules",
        (
            plain("200 OK", SCHEDULE),
            plain("200 OK", SCHEDULE),
            plain("200 OK", SCHEDULE),
            plain("202 Accepted", SCHEDULE),
            head("204 No Content"),
        ),
        (
            call("schedules.get", "s"),
            call("schedules.pause", "s"),
            call("schedules.resume", "s"),
            call("schedules.trigger", "s"),
            call("schedules.delete", "s"),
        ),
        ({"value": {"id": "s"}},) * 4 + ({"value": None},),
        sent={
            "path": [
                "GET /api/schedules/s",
                "POST /api/schedules/s/pause",
                "POST /api/schedules/s/resume",
                "POST /api/schedules/s/trigger",
                "DELETE /api/schedules/s",
            ]
        },
    ),
    Case(
        "schedules.list",
        (
            plain("200 OK", {"schedules": [SCHEDULE], "nextCursor": "s"}),
            plain("200 OK", {"schedules": [], "nextCursor": "s"}),
        ),
        (call("schedules.list"),),
        (error("ApiError") | {"values": [{"id": "s"}]},),
        visits=2,
    ),
]


def line(number: int) -> dict[str, Json]:
    return {"id": f"job_{number}", "custom_id": str(number), "response": {"status_code": 200, "body": {"n": number}}}


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps(line(number)).encode() + b"\n" for number in numbers)


def progress(name: str, event_id: str, done: int, status: str = "in_progress") -> tuple[str, str, str]:
    state = {"batchId": "b", "status": status, "counts": {"total": 2, "completed": done}}
    return (name, event_id, json.dumps(state))


OUTPUT_HEAD = head(content_type="application/x-ndjson", transfer_encoding="chunked")
OUTPUT = [line(number) | {"error": None} for number in (1, 2, 3)]
BATCHES = [
    Case(
        "batches.submit",
        (plain("202 Accepted", BATCH_ACCEPTED),),
        (
            call(
                "batches.submit",
                ["Hi", {"custom_id": "b", "body": {"messages": []}}],
                name="n",
                idempotency_key="k",
                defaults={"model": "m"},
            ),
        ),
        ({"value": BATCH_ACCEPTED},),
        sent={
            "query": [{"name": "n", "defaults": '{"model":"m"}'}],
            "idempotency-key": ["k"],
            "content-type": ["application/x-ndjson"],
            "body": [
                '{"body":{"messages":[{"role":"user","content":"Hi"}]}}\n{"custom_id":"b","body":{"messages":[]}}\n'
            ],
        },
    ),
    Case(
        "batches.submit: again",
        (plain("503 Service Unavailable"), broken_off(), plain("202 Accepted", BATCH_ACCEPTED)),
        (call("batches.submit", ["Hi"], idempotency_key="k"),),
        ({"value": BATCH_ACCEPTED},),
        sent={"idempotency-key": ["k"] * 3},
    ),
    Case(
        "batches.submit: a broken line",
        (
            problem(
                "422 Unprocessable", "validation_failed", errors=[{"pointer": "/lines/1/body", "message": "is missing"}]
            ),
        ),
        (call("batches.submit", ["Hi"]),),
        (error("InvalidRequest", problems=[["/lines/1/body", "is missing"]]),),
        visits=1,
    ),
    Case(
        "batches.submit: no JSON",
        (plain("202 Accepted", BATCH_ACCEPTED),),
        (call("batches.submit", ["Hi", "\ud800"]),),
        (error("InvalidRequest", problems=[["/lines/2", "has a value that JSON does not have"]]),),
    ),
    Case(
        "batches.submit: settings that are too long",
        (),
        (call("batches.submit", ["Hi"], defaults={"stop": "x" * 7000}),),
        (
            error(
                "InvalidRequest",
                problems=[
                    [
                        "",
                        "all settings may have 6144 bytes in the URL of an upload, not "
                        "7034; put "
                        "long defaults into the items",
                    ]
                ],
            ),
        ),
    ),
    Case(
        "batches.get",
        (plain("200 OK", BATCH),),
        (call("batches.get", "b"),),
        (
            {
                "value": BATCH
                | {
                    "counts": {"total": 1, "queued": 0, "running": 0, "completed": 1, "failed": 0, "cancelled": 0},
                    "revision": 1,
                    "lane": "live",
                    "kind": "batch",
                    "errorsByCode": {},
                }
            },
        ),
    ),
    Case(
        "batches.list",
        (plain("200 OK", {"batches": [BATCH]}),),
        (call("batches.list", status="completed"),),
        ({"values": [{"batchId": "b"}]},),
        sent={"query": [{"limit": "100", "status": "completed"}]},
    ),
    Case(
        "batches: changes",
        (
            plain("202 Accepted", {"batchId": "b", "status": "paused", "statusUrl": ""}),
            problem("409 Conflict", "batch_finished"),
        ),
        (call("batches.pause", "b"), call("batches.cancel", "b")),
        ({"value": "paused"}, error("BatchFinished")),
        sent={"path": ["POST /api/batches/b/pause", "POST /api/batches/b/cancel"]},
    ),
    Case(
        "batches.watch",
        (
            stream(frames(progress("progress", "1.0", 0), progress("progress", "1.1", 1))),
            stream(
                frames(
                    progress("progress", "1.1", 1),
                    ("news", "1.1", "?"),
                    progress("complete", "1.2.end", 2, "completed"),
                )
            ),
        ),
        (call("batches.watch", "b"),),
        (
            {
                "values": [{"counts": {"completed": 0}}, {"counts": {"completed": 1}}, {"status": "completed"}],
                "last_event_id": "1.2.end",
            },
        ),
        sent={"last-event-id": [None, "1.1"]},
    ),
    Case(
        "batches.wait",
        (
            plain("200 OK", BATCH | {"status": "queued"}),
            stream(frames(progress("complete", "1.2.end", 2, "completed"))),
            plain("200 OK", BATCH),
        ),
        (call("batches.wait", "b"),),
        ({"value": {"status": "completed"}},),
        visits=3,
    ),
    Case(
        "batches.output",
        (OUTPUT_HEAD + part(lines(1, 2)[:70]) + part(lines(1, 2)[70:]) + part(lines(3)) + LAST_PART,),
        (call("batches.output", "b"),),
        ({"values": OUTPUT},),
        visits=1,
    ),
    Case(
        "batches.output: cut between and within lines",
        (
            broken_off(OUTPUT_HEAD + part(lines(1))),
            broken_off(OUTPUT_HEAD + part(lines(1, 2) + b'{"id": "jo')),
            OUTPUT_HEAD + part(lines(1, 2, 3)) + LAST_PART,
        ),
        (call("batches.output", "b"),),
        ({"values": OUTPUT},),
        visits=3,
    ),
    Case(
        "batches.output: the last line is gone",
        (broken_off(OUTPUT_HEAD + part(lines(1))), OUTPUT_HEAD + part(lines(2)) + LAST_PART),
        (call("batches.output", "b"),),
        (error("StreamBroken") | {"values": OUTPUT[:1]},),
    ),
    Case(
        "batches.output: of a proxy that is away, and then no batch",
        (plain("502 Bad Gateway"), problem("404 Not Found", "batch_not_found")),
        (call("batches.output", "b"),),
        (error("BatchNotFound"),),
        visits=2,
    ),
    Case(
        "batches.output: a line without end",
        (OUTPUT_HEAD + part(b"x" * 2000) + part(b"x" * 2000),),
        (call("batches.output", "b"),),
        (error("ResponseTooLarge"),),
        options={"max_response_bytes": 3000},
    ),
    Case(
        "batches.errors: no line of ours",
        (OUTPUT_HEAD + part(b"{}\n") + LAST_PART,),
        (call("batches.errors", "b"),),
        (error("ApiError"),),
    ),
]

MAPS = [
    Case(
        "map",
        (
            SUBMITTED,
            OK,
            problem("422 Unprocessable", "validation_failed", errors=[]),
            SUBMITTED,
            plain("200 OK", JOB | {"status": "failed", "error": {"code": "c", "message": "m"}}),
        ),
        (call("map", ["a", "b", "c"], concurrency=1, idempotency_prefix="p", max_tokens=2),),
        (
            {
                "values": [
                    {"index": 0, "job": WHOLE_JOB, "error": None},
                    {"index": 1, "job": None, "error": {"name": "InvalidRequest"}},
                    {"index": 2, "job": {"status": "failed"}, "error": {"name": "JobFailed", "reason": "c"}},
                ]
            },
        ),
        sent={"idempotency-key": ["p-0", None, "p-1", "p-2", None]},
    ),
    Case(
        "map: too late",
        (SUBMITTED, plain("200 OK", JOB | {"status": "queued"}), silent),
        (call("map", ["a"], timeout=0.3),),
        ({"values": [{"index": 0, "job": None, "error": {"name": "ServiceUnavailable", "reason": "timeout"}}]},),
    ),
    Case("map: one prompt is not many", (), (call("map", "Hello"),), (error("TypeError"),)),
]

# ----------------------------------------------------------------------------------------------- webhooks

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PLAIN_SECRET = "schlüssel, not base64!"
COMPLETED = {
    "event": "chat.completed",
    "timestamp": CREATED,
    "data": {
        "jobId": "j",
        "requestId": "r",
        "status": "completed",
        "model": "m",
        "content": "é🌊",
        "toolCalls": None,
        "finishReason": "stop",
        "usage": None,
        "error": None,
        "completedAt": CREATED,
        "sha256": "0",
        "metadata": {},
        "statusUrl": "/api/jobs/j",
    },
}
BODY = json.dumps(COMPLETED, ensure_ascii=False).encode()
ENDED = {"batchId": "b", "status": "completed", "counts": {"total": 1}, "statusUrl": "", "outputUrl": ""}
BATCH_BODY = json.dumps({"event": "batch.completed", "timestamp": CREATED, "data": ENDED | {"errorsUrl": ""}}).encode()
SPECIFICATION = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
"""The vector in the tests of the specification's own libraries, of the body below with SECRET."""
SPECIFIED_BODY = b'{"test": 2432232314}'
NOT_OURS = "the signature is valid, but the body is not an event that this version knows"


def signed(body: bytes = BODY, *, secrets: str | list[str] = SECRET, webhook_id: str = "whe_1") -> dict[str, str]:
    return sign(body, webhook_id=webhook_id, timestamp=AT, body_timestamp=CREATED, secrets=secrets)


HEADERS = signed()
GOOD = HEADERS["webhook-signature"]


def verifying(
    name: str,
    outcome: dict[str, Json],
    *,
    body: bytes = BODY,
    headers: dict[str, str] = HEADERS,
    secrets: str | list[str] = SECRET,
    **options: Json,
) -> Case:
    given = {"now": AT.isoformat(), **options}
    one = call("verify", base64.b64encode(body).decode(), headers, secrets, **given)
    return Case(f"verify: {name}", (), (one,), (outcome,))


def refused(name: str, **given: Any) -> Case:
    return verifying(name, error("InvalidSignature", code="invalid_signature"), **given)


VALID = {"value": COMPLETED}
UNUSABLE = (
    "",
    "whsec_",
    "whsec_=",
    "whsec_A",
    "whsec_!!!!",
    "whsec_ab cd",
    "whsec_ab-_",
    "whsec_YWI=YWI=",
    "whsec_é",
    "whsec_YWJj\n",
    "\ud800",
)
WEBHOOK_CASES = [
    verifying("what was signed", VALID),
    verifying("headers in any case", VALID, headers={name.title(): value for name, value in HEADERS.items()}),
    verifying("a plain secret", VALID, headers=signed(secrets=PLAIN_SECRET), secrets=PLAIN_SECRET),
    verifying("a secret without padding", VALID, headers=signed(secrets="whsec_YWI="), secrets="whsec_YWI"),
    verifying("while secrets rotate", VALID, headers=signed(secrets=[SECRET, OLD_SECRET]), secrets=OLD_SECRET),
    verifying("with an old secret, too", VALID, headers=signed(secrets=OLD_SECRET), secrets=[SECRET, OLD_SECRET]),
    verifying("beside other versions", VALID, headers=HEADERS | {"webhook-signature": f"v1a,xyz v2,abc {GOOD}"}),
    verifying("at the edge of the tolerance", VALID, now=(AT + timedelta(minutes=5)).isoformat()),
    verifying("with more tolerance", VALID, now=(AT + timedelta(hours=1)).isoformat(), tolerance=3600),
    verifying("legacy", VALID, headers={"X-Webhook-Signature": HEADERS["x-webhook-signature"]}, legacy=True),
    verifying(
        "of a batch", {"value": {"event": "batch.completed"}}, body=BATCH_BODY, headers=signed(BATCH_BODY), any=True
    ),
    verifying("of a job, for any", VALID, any=True),
    verifying(
        "the vector of the specification",
        error("InvalidSignature", message=NOT_OURS),
        body=SPECIFIED_BODY,
        headers=SPECIFICATION,
        now="2021-02-25T15:02:10+00:00",
    ),
    verifying(
        "a batch for verify", error("InvalidSignature", message=NOT_OURS), body=BATCH_BODY, headers=signed(BATCH_BODY)
    ),
    refused("another body", body=BODY.replace(b"completed", b"cancelled")),
    refused("no blank more", body=BODY + b" "),
    refused("another id", headers=HEADERS | {"webhook-id": "whe_2"}),
    refused("another secret", secrets=OLD_SECRET),
    refused("too old", now=(AT + timedelta(minutes=5, seconds=1)).isoformat()),
    refused("too new", now=(AT - timedelta(minutes=5, seconds=1)).isoformat()),
    refused("not UTF-8", body=b"\xff", headers=signed(b"{}")),
    refused("a legacy signature of another body", body=BODY + b" ", legacy=True),
    refused("no legacy signature", headers={}, legacy=True),
    *(
        refused(f"without {name}", headers={other: value for other, value in HEADERS.items() if other != name})
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    ),
    *(
        refused(f"the time {text!r}", headers=HEADERS | {"webhook-timestamp": text})
        for text in ("", "x", "-1", "0", "01767323045", "1767323045.0", " 1767323045", "1767323045\n", "1" * 12, "１")
    ),
    *(
        refused(f"the signature {number}", headers=HEADERS | {"webhook-signature": text})
        for number, text in enumerate(
            [
                "v1,",
                "v1",
                "v2," + GOOD[3:],
                GOOD[:-1],
                GOOD + "=",
                GOOD.lower(),
                GOOD.replace("v1,", "v1, "),
                "v1,é",
                ",",
            ]
        )
    ),
    *(
        verifying(f"the secret {text!r}", error("InvalidSecret", code="invalid_secret"), secrets=text)
        for text in UNUSABLE
    ),
    verifying("no secret", error("InvalidSecret"), secrets=[]),
    verifying("an empty secret beside another", error("InvalidSecret"), secrets=[SECRET, ""]),
]

CONFIGURATIONS = [
    ("ftp://x", {}),
    ("127.0.0.1:8000", {}),
    ("http://x:y", {}),
    ("http://", {}),
    ("http://a b", {}),
    ("http://x", {"api_key": f"{KEY}\n"}),
    ("http://x", {"api_key": ""}),
]
"""Clients that cannot work: ConfigurationError, without the key."""

CASES = [*PROBLEMS, *DOCUMENTS, *REPEATED, *STREAMS, *ANSWERS, *CALLS, *BATCHES, *MAPS, *WEBHOOK_CASES]
