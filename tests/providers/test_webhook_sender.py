"""Posting to strangers: one POST, bounded in time and memory, told as an answer and never as an exception."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx2
import psutil
import pytest

from domain.errors import WebhookAddressDenied
from domain.ports import BUSY, WebhookResponse, WebhookSender
from domain.timings import Timings
from domain.webhook_urls import WebhookPolicy
from providers.webhooks.sender import MAX_READ_BYTES, PATIENCE_SECONDS, PER_RECEIVER, HttpWebhookSender
from tests.support.raw_http import plain, raw_server
from tests.support.receiver import Answer, Receiver, client_tls, gzip_bomb, receiver, server_tls

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BODY = b'{"event":"chat.completed"}'
HEADERS = {"content-type": "application/json", "webhook-id": "whe_1"}


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
async def sender() -> AsyncIterator[HttpWebhookSender]:
    async with HttpWebhookSender() as made:
        yield made


@pytest.fixture
async def hasty() -> AsyncIterator[HttpWebhookSender]:
    """A sender that gives up after half a second."""
    async with HttpWebhookSender(timings=Timings(webhook_total_seconds=0.5)) as made:
        yield made


async def post(sender: WebhookSender, url: str) -> WebhookResponse:
    return await sender.post(url, headers=HEADERS, body=BODY)


async def answered(sender: WebhookSender, hooks: Receiver, answer: Answer) -> WebhookResponse:
    hooks.answer("/hook", answer)
    return await post(sender, hooks.url("/hook"))


# -------------------------------------------------------------------------------------------- the request


async def test_the_request_is_what_was_given(sender: HttpWebhookSender, hooks: Receiver) -> None:
    answer = await post(sender, hooks.url("/hook?a=1"))
    (seen,) = await hooks.arrived(path="/hook")
    assert (seen.method, seen.target, seen.body) == ("POST", "/hook?a=1", BODY)
    assert dict(seen.headers) | HEADERS == seen.headers
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["connection"] == "close"
    assert answer.delivered
    assert answer == WebhookResponse(answer.latency_ms, status_code=200, response="ok")
    assert 0 <= answer.latency_ms < 5_000


async def test_nothing_is_kept_between_calls(sender: HttpWebhookSender, hooks: Receiver) -> None:
    """No cookie comes back, no connection is used twice, none is left open."""
    hooks.answer("/hook", Answer(headers={"set-cookie": "a=1; Path=/", "connection": "keep-alive"}))
    for _ in range(3):
        assert (await post(sender, hooks.url("/hook"))).delivered
    seen = hooks.requests()
    assert [one.connection for one in seen] == [1, 2, 3]
    assert not any("cookie" in one.headers for one in seen)
    assert await _all_closed(hooks.port)


async def _all_closed(port: int) -> bool:
    """Whether this process soon has no established connection to a port (a transport closes one turn later)."""
    for _ in range(50):
        remotes = [one.raddr for one in psutil.Process().net_connections("tcp") if one.status == "ESTABLISHED"]
        if not any(remote.port == port for remote in remotes):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_the_environment_has_no_say(
    sender: HttpWebhookSender, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies of the environment could reach what the sender must not; credentials of a URL are not for sending."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_closed_port()}")
    async with HttpWebhookSender() as made_now:
        for one in (sender, made_now):
            assert (await post(one, hooks.url("/hook", host="user:password@127.0.0.1"))).delivered
    assert not any("authorization" in seen.headers for seen in hooks.requests())


async def test_many_at_once(sender: HttpWebhookSender, hooks: Receiver) -> None:
    """More than have a place at once: as long as it goes on, the rest waits a moment."""
    hooks.answer("/hook", Answer(delay=0.2))
    started = time.monotonic()
    answers = await asyncio.gather(*(post(sender, hooks.url("/hook")) for _ in range(16)))
    assert all(one.delivered for one in answers)
    assert time.monotonic() - started < 3


async def test_a_receiver_that_does_not_answer_takes_eight_places(sender: HttpWebhookSender, hooks: Receiver) -> None:
    """The others are turned away, soon and then at once, and nobody else notices."""
    hooks.answer("/dead", Answer(delay=60))
    dead = [asyncio.create_task(post(sender, hooks.url("/dead"))) for _ in range(100)]
    try:
        with receiver() as good:
            answers = await asyncio.gather(*(post(sender, good.url("/hook")) for _ in range(30)))
            assert all(one.delivered for one in answers)
        turned_away = [await one for one in dead[PER_RECEIVER:]]
        assert {one.error for one in turned_away} == {BUSY}
        assert len(hooks.requests("/dead")) == PER_RECEIVER == 8
        started = time.monotonic()
        assert (await post(sender, hooks.url("/dead"))).error == BUSY
        assert time.monotonic() - started < PATIENCE_SECONDS / 2
    finally:
        for one in dead:
            one.cancel()
        await asyncio.gather(*dead, return_exceptions=True)
    hooks.answer("/dead", Answer())
    assert (await post(sender, hooks.url("/dead"))).delivered, "its places are free again"


# --------------------------------------------------------------------------------------------- the status


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_2xx_is_success(sender: HttpWebhookSender, hooks: Receiver, status: int) -> None:
    answer = await answered(sender, hooks, Answer(status, body=b""))
    assert answer.delivered
    assert (answer.status_code, answer.error, answer.response) == (status, None, "")


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503, 599])
async def test_another_status_is_a_failure_without_an_error(
    sender: HttpWebhookSender, hooks: Receiver, status: int
) -> None:
    """The status says it all; ``error`` is for tries that never got one."""
    answer = await answered(sender, hooks, Answer(status, body=b"no, thanks"))
    assert not answer.delivered
    assert (answer.status_code, answer.error, answer.response) == (status, None, "no, thanks")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(sender: HttpWebhookSender, hooks: Receiver, status: int) -> None:
    answer = await answered(sender, hooks, Answer(status, headers={"location": hooks.url("/metadata")}))
    assert not answer.delivered
    assert (answer.status_code, answer.error) == (status, "redirect")
    assert not hooks.requests("/metadata")


@pytest.mark.parametrize(("header", "expected"), [("0", 0), ("5", 5), ("1000000000000", 1e12), ("abc", None)])
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_reported(
    sender: HttpWebhookSender, hooks: Receiver, status: int, header: str, expected: float | None
) -> None:
    answer = await answered(sender, hooks, Answer(status, headers={"retry-after": header}))
    assert answer.retry_after == expected


async def test_a_date_to_retry_after_counts_from_the_receivers_own_clock(
    sender: HttpWebhookSender, hooks: Receiver
) -> None:
    """Which may be a year behind ours."""
    raw = (
        b"HTTP/1.1 503 Busy\r\nDate: Wed, 01 Jan 2025 00:00:00 GMT\r\n"
        b"Retry-After: Wed, 01 Jan 2025 00:02:00 GMT\r\n\r\n"
    )
    assert (await answered(sender, hooks, Answer(raw=raw))).retry_after == 120


async def test_switching_protocols_is_no_success(hasty: HttpWebhookSender, hooks: Receiver) -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    assert not (await answered(hasty, hooks, Answer(raw=raw))).delivered


# -------------------------------------------------------------------------------------- hostile receivers


async def test_the_total_is_15_seconds(sender: HttpWebhookSender) -> None:
    assert Timings().webhook_total_seconds == 15


async def test_a_silent_receiver_times_out(hasty: HttpWebhookSender, hooks: Receiver) -> None:
    began = time.monotonic()
    answer = await answered(hasty, hooks, Answer(delay=60))
    assert (answer.status_code, answer.error, answer.response) == (None, "timeout", None)
    assert time.monotonic() - began >= 0.5, (
        "the total counts from before the wait for a connection, the latency after it"
    )
    assert 400 < answer.latency_ms < 5_000


async def test_the_headers_have_a_time_of_their_own(hooks: Receiver) -> None:
    assert Timings().webhook_headers_seconds == 10
    async with HttpWebhookSender(timings=Timings(webhook_headers_seconds=0.3)) as sender:
        answer = await answered(sender, hooks, Answer(raw=b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000, drip=0.05))
        assert (answer.error, answer.latency_ms < 2_500) == ("timeout", True)
        answer = await answered(sender, hooks, Answer(body=b"x" * 20, drip=0.05))
    assert (answer.delivered, answer.latency_ms > 500) == (True, True), "the body has the rest of the total"


async def test_headers_that_drip_time_out(hasty: HttpWebhookSender, hooks: Receiver) -> None:
    """Every byte comes in time; all together do not."""
    answer = await answered(hasty, hooks, Answer(raw=b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000, drip=0.05))
    assert answer.error == "timeout"
    assert answer.latency_ms < 5_000


@pytest.mark.parametrize(("status", "delivered"), [(200, True), (500, False)])
async def test_a_body_that_drips_ends_with_the_time(
    hasty: HttpWebhookSender, hooks: Receiver, status: int, delivered: bool
) -> None:
    """The status decides, and what came of the body is kept."""
    began = time.monotonic()
    answer = await answered(hasty, hooks, Answer(status, body=b"x" * 1_000, drip=0.05))
    assert (answer.delivered, answer.status_code, answer.error) == (delivered, status, None)
    assert answer.response
    assert set(answer.response) == {"x"}
    assert time.monotonic() - began >= 0.5, (
        "the total counts from before the wait for a connection, the latency after it"
    )
    assert 400 < answer.latency_ms < 5_000
    assert await _all_closed(hooks.port)


@pytest.mark.parametrize("status", [200, 500])
async def test_a_reset_after_the_status_changes_nothing(
    sender: HttpWebhookSender, hooks: Receiver, status: int
) -> None:
    answer = await answered(sender, hooks, Answer(status, body=b"partial", reset=True))
    assert (answer.delivered, answer.status_code, answer.error) == (status == 200, status, None)


async def test_an_endless_body_costs_16_kilobytes(sender: HttpWebhookSender, hooks: Receiver) -> None:
    answer, peak = await _traced(sender, hooks, Answer(body=b"y" * 1_000, endless=True))
    assert answer.delivered
    assert answer.response == "y" * 1_024
    assert answer.latency_ms < 5_000
    assert peak < 5_000_000
    assert await _all_closed(hooks.port)


async def test_a_gzip_bomb_is_not_opened(sender: HttpWebhookSender, hooks: Receiver) -> None:
    bomb = gzip_bomb()
    assert 200_000 < len(bomb) < 400_000
    answer, peak = await _traced(sender, hooks, Answer(body=bomb, headers={"content-encoding": "gzip"}))
    assert answer.delivered
    assert answer.response
    assert "zzz" not in answer.response
    assert peak < 5_000_000


async def _traced(sender: HttpWebhookSender, hooks: Receiver, answer: Answer) -> tuple[WebhookResponse, int]:
    """The answer, and the most bytes that were allocated meanwhile (the receiver's own included)."""
    tracemalloc.start()
    try:
        return await answered(sender, hooks, answer), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_no_more_than_16_kilobytes_are_taken() -> None:
    """Whatever the size of the pieces in which a transport hands them over."""
    taken: list[int] = []

    class Stream(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for _ in range(100):
                taken.append(1_000)
                yield b"z" * 1_000

    sender = HttpWebhookSender(httpx2.MockTransport(lambda _: httpx2.Response(200, stream=Stream())))
    assert (await post(sender, "http://receiver.example/")).delivered
    assert MAX_READ_BYTES <= sum(taken) < MAX_READ_BYTES + 1_000


async def test_what_is_kept_of_an_answer_is_printable_and_short(sender: HttpWebhookSender, hooks: Receiver) -> None:
    answer = await answered(sender, hooks, Answer(500, body=b"a\x00b\x1b[31m\xff\r\n c" + b"d" * 5_000))
    assert answer.response
    assert answer.response.startswith("a�b�[31m� cddd")
    assert answer.response.isprintable()
    assert len(answer.response) <= 1_024


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(silent=True), "protocol_error"),
        (Answer(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "protocol_error"),
        (Answer(raw=b"HTTP/1.1 9999 \r\n\r\n"), "protocol_error"),
        (Answer(raw=b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4_000), "protocol_error"),
        (Answer(raw=b"", reset=True), "connection_lost"),
    ],
    ids=[
        "closed without an answer",
        "not HTTP",
        "no such status",
        "interim answers",
        "reset without an answer",
    ],
)
async def test_an_answer_that_is_none(sender: HttpWebhookSender, hooks: Receiver, answer: Answer, error: str) -> None:
    got = await answered(sender, hooks, answer)
    assert (got.status_code, got.error) == (None, error)


async def test_endless_interim_answers_are_cut_off(hasty: HttpWebhookSender, hooks: Receiver) -> None:
    answer = await answered(hasty, hooks, Answer(raw=b"HTTP/1.1 103 Early Hints\r\n\r\n", endless=True))
    assert answer.error == "protocol_error"
    assert answer.latency_ms < 5_000


async def test_cancelling_closes_the_connection(sender: HttpWebhookSender, hooks: Receiver) -> None:
    """A cancel from outside is not a failed try: it goes up."""
    hooks.answer("/hook", Answer(delay=60))
    task = asyncio.create_task(post(sender, hooks.url("/hook")))
    await hooks.arrived()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _all_closed(hooks.port)


# ------------------------------------------------------------------------------------ names and addresses


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_nobody_there(sender: HttpWebhookSender) -> None:
    answer = await post(sender, f"http://127.0.0.1:{_closed_port()}/hook")
    assert (answer.status_code, answer.error) == (None, "connect_error")


async def test_a_name_that_does_not_resolve(sender: HttpWebhookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is replaced, since a machine without network may take its time to say so."""
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    assert (await post(sender, "http://receiver.invalid/")).error == "dns_error"


STRANGE = ["", "hook", "/hook", "http:", "http://", "http:///hook", "ftp://127.0.0.1/", "mailto:a@b", "http://[::1"]
STRANGE += ["http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://127.0.0.1:-1/", "http://a..b/", "http://.:1/"]
STRANGE += [f"http://{'a' * 64}.invalid/", f"http://{'a.' * 200}invalid/", "http://xn--a.invalid/", "http://xn--/"]
STRANGE += ["http://\ud800/", "http://127.0.0.1/\ud800", "http://127.0.0.1/\r\nx: y", "http://127.0.0.1\x00/", "\x00"]


@pytest.mark.parametrize("url", STRANGE, ids=lambda url: repr(url)[:40])
async def test_a_strange_url_is_an_answer(sender: HttpWebhookSender, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What is refused when a job is submitted must not break the sender either."""
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    answer = await post(sender, url)
    assert answer.status_code is None
    assert answer.error in ("invalid_url", "dns_error", "connect_error")


async def test_a_header_that_cannot_be_sent_is_an_answer(sender: HttpWebhookSender, hooks: Receiver) -> None:
    for value in ("é", "\ud800", "a\r\nb: c"):
        answer = await sender.post(hooks.url(), headers={"webhook-id": value}, body=BODY)
        assert answer.error
    assert not hooks.requests()


async def test_a_transport_may_refuse_an_address() -> None:
    """The seam for the guard against server-side request forgery."""

    class Guarded(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise WebhookAddressDenied(f"{request.url.host} is a private address")

    answer = await post(HttpWebhookSender(Guarded()), "http://10.0.0.1/")
    assert (answer.status_code, answer.error) == (None, "address_denied: 10.0.0.1 is a private address")


# ---------------------------------------------------------------------------------------------------- TLS


async def tls_post(server: ssl.SSLContext, host: str = "localhost") -> WebhookResponse:
    """One POST to a receiver with this side of TLS, by a sender that trusts the tests' authority."""
    async with HttpWebhookSender(tls=client_tls()) as sender:
        with receiver(tls=server) as hooks:
            answer = await post(sender, hooks.url("/hook", host=host))
            assert len(hooks.requests()) == answer.delivered
            return answer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_good_certificate(host: str) -> None:
    assert (await tls_post(server_tls("valid"), host)).delivered


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        ("expired", "certificate has expired"),
        ("wrong-host", "Hostname mismatch, certificate is not valid for 'localhost'."),
        ("self-signed", "self-signed certificate"),
    ],
)
async def test_a_bad_certificate_is_named(certificate: str, reason: str) -> None:
    answer = await tls_post(server_tls(certificate))
    assert (answer.status_code, answer.error) == (None, f"tls_error: {reason}")


async def test_an_unknown_authority_is_named(sender: HttpWebhookSender) -> None:
    """The sender as it is made for work trusts the operating system's authorities, not those of the tests."""
    with receiver(tls=server_tls("valid")) as hooks:
        answer = await post(sender, hooks.url("/hook"))
    assert answer.error == "tls_error: unable to get local issuer certificate"


async def test_tls_1_0_is_too_old() -> None:
    """How a server says no differs: with an alert, by closing, by a reset. The reason names TLS in any case."""
    server = server_tls("valid")
    with pytest.deprecated_call():
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1
    for _ in range(5):
        error = (await tls_post(server)).error
        assert error
        assert error.startswith("tls_error: ")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(b"HTTP/1.1 400 \r\n\r\n", "wrong version number"), (b"", "the connection was closed during the handshake")],
)
async def test_https_to_a_port_without_tls(sender: HttpWebhookSender, reply: bytes, reason: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        got = await post(sender, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert (got.status_code, got.error) == (None, f"tls_error: {reason}")


async def test_a_handshake_without_an_answer_times_out() -> None:
    """A port that accepts and says nothing does not get the whole time."""
    async with HttpWebhookSender(timings=Timings(webhook_tls_seconds=0.3)) as sender:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            answer = await post(sender, f"https://127.0.0.1:{mute.getsockname()[1]}/")
    assert answer.error == "timeout"
    assert answer.latency_ms < 2_500


# ---------------------------------------------------------------------------------- the receiver itself


async def test_the_receiver_answers_by_its_script(sender: HttpWebhookSender, hooks: Receiver) -> None:
    hooks.answer("/hook", [Answer(500), Answer(503), Answer(204, body=b"")])
    statuses = [(await post(sender, hooks.url("/hook?n=1"))).status_code for _ in range(4)]
    assert statuses == [500, 503, 204, 204]
    assert (await post(sender, hooks.url("/other"))).status_code == 200
    assert len(await hooks.arrived(4, path="/hook")) == 4
    assert len(hooks.wait_for(5)) == 5


def test_the_receiver_says_what_it_waited_for(hooks: Receiver) -> None:
    with pytest.raises(TimeoutError, match=r"1 requests to /hook; seen: \[\]"):
        hooks.wait_for(path="/hook", timeout=0.05)


async def test_the_receiver_can_go_down_and_come_back(sender: HttpWebhookSender) -> None:
    with receiver() as first:
        port = first.port
        assert (await post(sender, first.url())).delivered
    assert (await post(sender, first.url())).error == "connect_error"
    with receiver(port=port) as second:
        assert (await post(sender, second.url())).delivered
    assert not [thread for thread in threading.enumerate() if thread.name == "receiver"]


def test_a_taken_port_is_an_error() -> None:
    with receiver() as first, pytest.raises(OSError, match="in use"), receiver(port=first.port):
        pass


# ------------------------------------------------------------------------ answers that a strict parser refuses

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"Content-Length: 2\r\n\r\nok"
MALFORMED = {
    "a header without a colon": OK + b"what is this\r\n" + BODY,
    "a header without a name": OK + b": x\r\n" + BODY,
    "a blank in a name": OK + b"My Header: x\r\n" + BODY,
    "a blank before the colon": OK + b"X : x\r\n" + BODY,
    "a control character in a value": OK + b"X: a\x01\x00b\r\n" + BODY,
    "bytes that are not ASCII": OK + "X-\u00fc: \u00e9\r\n".encode() + b"Y: \xff\xfe\r\n" + BODY,
    "a folded header": OK + b"X: a\r\n  b\r\n" + BODY,
    "a folded first line": OK + b"  b\r\n" + BODY,
    "bare line feeds": (OK + b"X: a\r\n" + BODY).replace(b"\r\n", b"\n"),
    "one length, said again": OK + b"Content-Length: 2, 2\r\n" + BODY,
    "two lengths that differ": OK + b"Content-Length: 1\r\n" + BODY,
    "a length that is no number": OK + b"Content-Length: two\r\n\r\nok",
    "a negative length": OK + b"Content-Length: -1\r\n\r\nok",
    "a length and chunks": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
    "a chunk that is too short": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\noklahoma\r\n0\r\n\r\n",
    "an endless chunk line": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100_000,
    "an unknown coding": OK + b"Transfer-Encoding: secret\r\n\r\nok",
    "no reason": b"HTTP/1.1 200\r\n" + BODY,
    "a reason that is not ASCII": b"HTTP/1.1 200 \xc3\xa0 la carte\xff\r\n" + BODY,
    "another version": b"HTTP/2 200\r\n" + BODY,
    "blank lines before it": b"\r\n\r\n" + OK + BODY,
    "interim answers before it": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nbad line\r\n\r\n" + OK + BODY,
    "200 KB of headers": OK + b"x: " + b"y" * 200_000,
    "the end within the headers": OK + b"X: a",
    "the end after the status": b"HTTP/1.1 200 ",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_the_status_decides_whatever_is_wrong_with_the_rest(
    sender: HttpWebhookSender, hooks: Receiver, raw: bytes
) -> None:
    """Delivered, at once, by one request."""
    got = await answered(sender, hooks, Answer(raw=raw))
    assert (got.status_code, got.error) == (200, None)
    assert got.latency_ms < 3_000
    assert len(hooks.requests()) == 1


async def test_a_head_that_never_ends_is_a_status_all_the_same(hasty: HttpWebhookSender, hooks: Receiver) -> None:
    got = await answered(hasty, hooks, Answer(raw=OK + b"X: 1\r\n", silent=False, endless=True))
    assert (got.status_code, got.error) == (200, None)


async def test_other_statuses_are_read_as_leniently(sender: HttpWebhookSender, hooks: Receiver) -> None:
    """With the Retry-After that stands among illegal lines."""
    raw = b"HTTP/1.1 503 Busy\r\nbad line\r\nRetry-After : 7\r\n\xff\r\n\r\n"
    got = await answered(sender, hooks, Answer(raw=raw))
    assert (got.status_code, got.error, got.retry_after) == (503, None, 7)


GARBAGE = (
    b"hello\r\n",
    b"<html>ok</html>",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 020 OK\r\n\r\n",
    b"HTTP",
    b"\r\n" * 50_000,
)


@pytest.mark.parametrize("raw", [*GARBAGE, b"HTTP/1.1 20", b"HTTP/1.1 200", b"http/1.1 200 OK\r\n\r\n", b"x" * 500_000])
async def test_what_has_no_status_is_a_failure(sender: HttpWebhookSender, hooks: Receiver, raw: bytes) -> None:
    got = await answered(sender, hooks, Answer(raw=raw))
    assert (got.status_code, got.error) == (None, "protocol_error")


# --------------------------------------------------------------------------------------------- request targets

TARGETS = [
    "/hook?",
    "/hook?a={b}&c={}",
    "/{tenant}/x",
    "/%7Euser/%2f/%e2%82%ac/%41",
    "/a//b/../c/./d",
    "/x?sig=a%2Bb%3D&next=https://b.example/?q=1",
    "/x?a=b+c&d='e'&f=\"g\"&h=<i>|j^k`",
    "/x;v=1?[]=1&y[0]=%5B%5D",
    "/%zz?%",
    "?bare=1",
    "",
    "/" + "a" * 1_500,
]


@pytest.mark.parametrize("target", TARGETS)
async def test_the_request_target_is_byte_identical(target: str) -> None:
    """Through the policy, which keeps path and query as they are, to a receiver that takes bytes."""
    async with raw_server(plain("200 OK")) as server, HttpWebhookSender(policy=WebhookPolicy(loopback=True)) as sender:
        got = await sender.post(server.url + target, headers={}, body=b"{}")
    assert (got.status_code, got.error) == (200, None)
    sent = server.visits[0].head.split("\r\n")[0]
    assert sent == f"POST {target if target.startswith('/') else '/' + target} HTTP/1.1"
