"""HTTP as strangers speak it, to a real gateway: what it refuses, what it cuts off, what it outlives."""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import pairwise

import httpx2
import psutil
import pytest

from drill.processes import wait_until
from gateway.serving.server import TOLD_EVERY_SECONDS
from tests.support.gateway import Gateway, alone, gateway
from tests.support.raw_client import Reply, connected, exchange, received, request
from tests.support.stack import Stack

HEALTHZ = request("GET", "/healthz")
TO_JOBS = ("/api/jobs", "Content-Type: application/json")
JOB = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with alone(tmp_path_factory.mktemp("http")) as stack:
        yield stack


@pytest.fixture(scope="module")
def door(built: Stack) -> Iterator[Gateway]:
    started = gateway(built)
    yield started
    assert "Traceback" not in started.process.output()


@pytest.fixture(autouse=True)
def _logs(built: Stack) -> Iterator[None]:
    yield
    sys.stdout.write(built.news())


REFUSED: dict[str, tuple[int, bytes]] = {
    "B109 length and chunked": (
        400,
        request("POST", "/api/jobs", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    ),
    "B109 chunked and length": (
        400,
        request("POST", "/api/jobs", "Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
    ),
    "two lengths": (400, request("POST", "/api/jobs", "Content-Length: 5", "Content-Length: 6")),
    "a negative length": (400, request("POST", "/api/jobs", "Content-Length: -1")),
    "another coding": (400, request("POST", "/api/jobs", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "chunked in HTTP/1.0": (400, b"POST /api/jobs HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a chunk without a length": (400, request("POST", "/api/jobs", "Transfer-Encoding: chunked") + b"zz\r\n"),
    "B110 no Host": (400, b"GET /healthz HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, request("GET", "/healthz", "Host: b.example")),
    "a Host that is none": (400, request("GET", "/healthz", host="a b")),
    "B112 NUL in a header": (400, request("GET", "/healthz", "X-A: a\0b")),
    "a bare line feed in a header": (400, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
    "a folded header": (400, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
    "a space before the colon": (400, b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n"),
    "B115 URI of 70 KB": (414, request("GET", "/healthz?" + "a" * 70_000)),
    "URI of 8 KB and a byte": (414, request("GET", "/" + "a" * 8_192)),
    "B116 101 headers": (431, request("GET", "/healthz", *(f"X-{number}: 1" for number in range(100)))),
    "headers of 17 KB": (431, request("GET", "/healthz", *(f"X-{number}: {'a' * 1_000}" for number in range(17)))),
    "one header of 300 KB": (431, request("GET", "/healthz", f"X: {'a' * 300_000}")),
    "one header that never ends": (431, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 400_000),
    "B118 another host's URL": (400, request("GET", "http://other.example/healthz")),
    "another port": (400, request("GET", "http://127.0.0.1:1/healthz")),
    "CONNECT": (400, request("CONNECT", "127.0.0.1:443")),
    "a method nobody knows": (400, request("FROB", "/healthz")),
    "TLS": (400, bytes.fromhex("16030100c8010000c40303") + b"\0" * 60),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "garbage": (400, b"\r\n\x80\xff\r\n\r\n"),
    "a URI that is not ASCII": (400, b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "sent"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(door: Gateway, status: int, sent: bytes) -> None:
    """At once, as a problem, and the connection is over."""
    reply = exchange(door.url, sent)
    assert (reply.status, reply.closed) == (status, True), reply
    assert reply.code
    assert reply.seconds < 1
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert b"aaaa" not in reply.body


TAKEN = {
    "HTTP/1.0 without Host": b"GET /healthz HTTP/1.0\r\n\r\n",
    "its own URL": request("GET", "http://127.0.0.1/healthz"),
    "99 headers": request("GET", "/healthz", *(f"X-{number}: 1" for number in range(99))),
    "the upgrade that Java asks for": request("GET", "/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
}


@pytest.mark.parametrize("sent", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken(door: Gateway, sent: bytes) -> None:
    assert exchange(door.url, sent).status == 200


def test_an_upgrade_with_a_body(door: Gateway) -> None:
    """It is ignored, the body is not."""
    headers = ("Connection: Upgrade", "Upgrade: h2c", "Content-Type: application/json")
    assert exchange(door.url, request("POST", "/api/jobs", *headers, body=JOB)).status == 202


def test_an_early_answer_arrives(door: Gateway) -> None:
    """The body is refused by its type, while it is still on its way; the answer is not lost in a reset."""
    head = request("POST", "/api/jobs", "Content-Type: text/plain", "Content-Length: 8000000")
    reply = exchange(door.url, head + b"x" * 8_000_000)
    assert (reply.status, reply.code, reply.closed) == (415, "unsupported_media_type", True)


def test_a_body_is_asked_for_once_it_is_wanted(door: Gateway) -> None:
    """Expect: 100-continue; a refusal comes before the body."""
    head = request(
        "POST", "/api/jobs", "Content-Length: 99999999", "Content-Type: application/json", "Expect: 100-continue"
    )
    assert exchange(door.url, head).status == 413
    head = request(
        "POST", "/api/jobs", f"Content-Length: {len(JOB)}", "Content-Type: application/json", "Expect: 100-continue"
    )
    with connected(door.url) as connection:
        connection.sendall(head)
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(JOB)
        assert received(connection, time.monotonic()).status == 202


def test_requests_in_a_row(door: Gateway) -> None:
    """Pipelined: answered in their order; one that is not HTTP ends the connection."""
    with connected(door.url) as connection:
        connection.sendall(HEALTHZ * 50 + request("GET", "/nothing", "Connection: close"))
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    answers = data.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 50 + [b"404"]


def test_too_many_requests_in_a_row(door: Gateway) -> None:
    """What is sent all at once is not kept without a limit."""
    with connected(door.url) as connection:
        connection.sendall(HEALTHZ * 1_000)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"HTTP/1.1 400 " in data or data.count(b"HTTP/1.1 200 ") < 1_000
    assert exchange(door.url, HEALTHZ).status == 200


def test_a_reader_who_leaves_is_noticed(door: Gateway) -> None:
    """Also one who has sent another request behind that for the stream."""
    with httpx2.Client(base_url=door.url, trust_env=False) as http:
        job_id = http.post("/api/jobs", json=json.loads(JOB)).json()["jobId"]
        with connected(door.url) as connection:
            connection.sendall(request("GET", f"/api/jobs/{job_id}/events") + HEALTHZ)
            assert b"200 OK" in connection.recv(65536)
            assert open_streams(http) == 1
        deadline = time.monotonic() + 5
        while open_streams(http):
            assert time.monotonic() < deadline


def open_streams(http: httpx2.Client) -> int:
    lines = http.get("/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("chatjobs_open_streams "))))


def test_what_is_too_slow(door: Gateway) -> None:
    """B107, B113: 408 after ten seconds; whoever says nothing at all is let go. Meanwhile 1,000 idle connections keep
    nobody from being served (B119)."""
    with ThreadPoolExecutor(4) as pool, ExitStack() as closing:
        idle = [closing.enter_context(connected(door.url)) for _ in range(1_000)]
        slow = [
            pool.submit(exchange, door.url, request("POST", *TO_JOBS, "Content-Length: 500") + b"{", patience=20),
            pool.submit(exchange, door.url, request("POST", *TO_JOBS, "Transfer-Encoding: chunked"), patience=20),
            pool.submit(dripped, door.url, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 60),
            pool.submit(dripped, door.url, request("POST", *TO_JOBS, "Content-Length: 500"), b"x" * 60),
        ]
        begin = time.monotonic()
        assert [exchange(door.url, HEALTHZ).status for _ in range(20)] == [200] * 20
        assert time.monotonic() - begin < 2
        for reply in (future.result() for future in slow):
            assert (reply.status, reply.code, reply.closed) == (408, "request_timeout", True)
            assert 9 < reply.seconds < 12
        for one in idle:
            one.settimeout(5)
            assert one.recv(1) == b"", "an idle connection is still open"


def readable(connection: socket.socket, seconds: float) -> bool:
    """Not select(2), which knows no file descriptor above 1,023."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(seconds * 1_000))


def dripped(url: str, sent: bytes, rest: bytes = b"") -> Reply:
    """A few bytes, and one more each quarter of a second, until there is an answer."""
    begin = time.monotonic()
    with connected(url) as connection:
        first, drops = (sent, rest) if rest else (sent[:10], sent[10:])
        connection.sendall(first)
        for place in range(len(drops)):
            if readable(connection, 0.25):
                break
            connection.sendall(drops[place : place + 1])
        return received(connection, begin)


def test_connections_have_a_limit(built: Stack) -> None:
    """503 for those above, who are told so; the others go on."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))"
    start = "from gateway.__main__ import main; main()"
    process = built.run("small", "-c", f"{limit}; {start}", ready="gateway listening on")
    url = json.loads(process.wait_for_log("gateway listening on"))["url"]
    few: list[socket.socket] = []
    try:
        few = [connected(url) for _ in range(100)]
        for one in few:  # each has begun a second request when it has its first answer
            one.sendall(HEALTHZ + HEALTHZ[:-2])
            assert received(one, time.monotonic()).status == 200
        reply = exchange(url, b"")
        assert (reply.status, reply.code, reply.closed) == (503, "too_many_connections", True)
        few[0].sendall(HEALTHZ[-2:])
        assert received(few[0], time.monotonic()).status == 200
        assert exchange(url, HEALTHZ).status == 200, "one that is idle now makes room"
    finally:
        for connection in few:
            connection.close()
        process.kill()


ENDLESS = """
import asyncio, sys
from starlette.responses import Response
from gateway.routes import health
from gateway.__main__ import main

class Endless(Response):
    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            async with asyncio.timeout(0.5):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

@health.router.get("/endless", response_model=None)
async def endless() -> Response:
    return Endless()

sys.exit(main())
"""


def test_a_reader_that_takes_nothing_is_cut_off(built: Stack) -> None:
    """A TimeoutError of a stream ends its connection at once: closing would wait for the reader to take the rest."""
    process = built.run("endless", "-c", ENDLESS, ready="gateway listening on")
    url = json.loads(process.wait_for_log("gateway listening on"))["url"]
    with connected(url) as connection:
        connection.sendall(request("GET", "/endless"))
        process.wait_for_log("answer_broken_off", timeout=20)
        rest = list(iter(lambda: connection.recv(1 << 20), b""))  # what the kernel had, and the end
        assert not rest[-1].endswith(b"0\r\n\r\n"), "nobody may take it for complete"
    assert exchange(url, HEALTHZ).status == 200
    assert "Traceback" not in process.output()
    process.kill()


# ------------------------------------------------------------------------------------------------- HTTP/1.0


def old(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    return request(method, target, *headers, body=body).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


ONE_POINT_0 = {
    "an answer": (200, old("GET", "/healthz")),
    "one that would keep the connection": (200, old("GET", "/healthz", "Connection: keep-alive")),
    "a page": (200, old("GET", "/")),
    "figures": (200, old("GET", "/metrics")),
    "nothing there": (404, old("GET", "/nothing")),
    "no such method": (405, old("DELETE", "/healthz")),
    "no content": (204, old("OPTIONS", "/healthz")),
    "a job": (202, old("POST", "/api/jobs", "Content-Type: application/json", body=JOB)),
    "a job with an expectation": (
        202,
        old("POST", "/api/jobs", "Content-Type: application/json", "Expect: 100-continue", body=JOB),
    ),
    "a body refused early": (
        413,
        old("POST", "/api/jobs", "Content-Type: application/json", "Content-Length: 99999999"),
    ),
}


@pytest.mark.parametrize(("status", "sent"), ONE_POINT_0.values(), ids=ONE_POINT_0.keys())
def test_http_1_0(door: Gateway, status: int, sent: bytes) -> None:
    """No chunks, no interim responses; the connection ends after the answer, and says so."""
    with connected(door.url) as connection:
        connection.settimeout(30)
        connection.sendall(sent)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].split()[1] == str(status).encode()
    assert b"connection: close" in lines
    assert not any(line.startswith(b"transfer-encoding") for line in lines)
    lengths = [int(line.split()[1]) for line in lines if line.startswith(b"content-length")]
    assert lengths in ([len(body)], [] if status == 204 else None)


def test_an_answer_to_http_1_0_that_breaks_off_is_reset(built: Stack) -> None:
    """Where the body ends with the connection, the end of a broken one must not look the same."""
    process = built.run("endless-1.0", "-c", ENDLESS, ready="gateway listening on")
    url = json.loads(process.wait_for_log("gateway listening on"))["url"]
    with connected(url) as connection:
        connection.sendall(old("GET", "/endless"))
        process.wait_for_log("answer_broken_off", timeout=20)
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: connection.recv(1 << 20), b""))
    process.kill()


def test_few_files_and_many_idle_connections(built: Stack) -> None:
    """``ulimit -n 64``: the idle ones make room, the database can still be written, and log and CPU stay small."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    process = built.run(
        "tiny", "-c", f"{limit}; from gateway.__main__ import main; main()", ready="gateway listening on"
    )
    url = json.loads(process.wait_for_log("gateway listening on"))["url"]
    with ExitStack() as closing:
        _ = [closing.enter_context(connected(url)) for _ in range(100)]
        before, begin = psutil.Process(process.pid).cpu_times().user, time.monotonic()
        for _ in range(20):
            assert exchange(url, HEALTHZ).status == 200
            assert exchange(url, request("POST", *TO_JOBS, body=JOB)).status == 202
        spent, passed = psutil.Process(process.pid).cpu_times().user - before, time.monotonic() - begin
    assert spent < max(1.0, passed / 3)
    output = process.output()
    assert "Traceback" not in output
    assert output.count("out_of_files") <= 1
    process.kill()


NO_FILES = """
import asyncio, os, resource, sys
from gateway.routes import health
from gateway.serving import server
from gateway.__main__ import main

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
server.TOLD_EVERY_SECONDS = 3.0
handle, held, began, held_by = server._LoopExceptionHandler.handle, [], [], []

def seen(self, loop, context):
    os.write(2, b"no file for a connection\\n")
    began.append(loop.time())
    handle(self, loop, context)
    while held and loop.time() > began[0] + 4:
        os.close(held.pop())

server._LoopExceptionHandler.handle = seen

async def take_all():
    while not began or asyncio.get_running_loop().time() <= began[0] + 4:  # a connection that ends gives a file back
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            await asyncio.sleep(0.01)

@health.router.post("/take")
async def take() -> None:
    held_by.append(asyncio.create_task(take_all()))

sys.exit(main())
"""


def test_that_no_files_are_left_is_told_now_and_then(built: Stack) -> None:
    """Each second asyncio tries again to take the connection that waits; the log says so once in a while. Here: 3 s."""
    assert TOLD_EVERY_SECONDS == 60
    process = built.run("no-files", "-c", NO_FILES, ready="gateway listening on")
    url = json.loads(process.wait_for_log("gateway listening on"))["url"]
    assert exchange(url, request("POST", "/take", "Content-Length: 0")).status == 200
    assert wait_until(lambda: psutil.Process(process.popen.pid).num_fds() >= 128, timeout=30)
    # The kernel has this connection until there are files again.
    assert httpx2.get(f"{url}/healthz", trust_env=False, timeout=60).status_code == 200
    output = process.output()
    lines = [json.loads(line) for line in output.splitlines() if '"out_of_files"' in line]
    times = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert len(times) >= 2
    assert output.count("no file for a connection") > len(times)
    assert all(later - before > timedelta(seconds=2.9) for before, later in pairwise(times)), times
    assert "Traceback" not in output
    process.kill()
