"""Our HTTP/1.1 transport, against a server that sends exact bytes."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from providers.mistral.transport import EXCHANGE, HIGH_WATER, StreamTransport
from tests.support.raw_http import Reply, Visit, head, part, plain, raw_server

CERTS = Path(__file__).parent.parent / "support" / "certs"


@asynccontextmanager
async def client(
    *, idle_seconds: float = 30, ca: str | None = None, timeout: float | None = 5
) -> AsyncIterator[httpx2.AsyncClient]:
    tls = ssl.create_default_context(cafile=CERTS / ca if ca else None)
    transport = StreamTransport(tls, idle_connections=2, idle_seconds=idle_seconds)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout) as http:
        yield http


def chunked(*bodies: bytes) -> bytes:
    return head(transfer_encoding="chunked") + b"".join(map(part, bodies))


async def answered(*replies: Reply) -> tuple[int, bytes]:
    async with raw_server(*replies) as server, client() as http:
        response = await http.post(server.url, content=b"hello")
        return response.status_code, response.content


RESPONSES = {
    "length": (plain("200 OK", b"hello"), b"hello"),
    "chunks": (chunked(b"he", b"llo") + b"0\r\n\r\n", b"hello"),
    "chunk extensions and trailers": (
        head(transfer_encoding="chunked") + b"5;a=b\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"hello",
    ),
    "until the end": (head(connection="close") + b"hello", b"hello"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nhello", b"hello"),
    "interim responses": (head("100 Continue") + head("103 Early Hints", link="</x>") + plain("200 OK", b"x"), b"x"),
    "no body": (plain("200 OK"), b""),
}


@pytest.mark.parametrize(("reply", "body"), RESPONSES.values(), ids=RESPONSES)
@pytest.mark.parametrize("cut", [False, True], ids=["at once", "byte by byte"])
async def test_reads_every_kind_of_body(reply: bytes, body: bytes, cut: bool) -> None:
    async def slowly(visit: Visit) -> None:
        await visit.send(*[reply[i : i + 1] for i in range(len(reply))])
        if b"connection: close" in reply:
            visit.writer.close()
        await asyncio.sleep(0.01)

    assert await answered(slowly if cut else reply) == (200, body)


async def test_headers_are_those_of_the_response() -> None:
    reply = head("103 Early Hints", link="</x>") + plain("404 Not Found", b"x", x_one="1", X_ONE="2")
    async with raw_server(reply) as server, client() as http:
        response = await http.get(server.url)
    assert (response.status_code, response.headers["x-one"], "link" in response.headers) == (404, "1, 2", False)


BROKEN = {
    "cut in the length": plain("200 OK", b"hello")[:-1],
    "cut between chunks": chunked(b"he"),
    "no chunk size": chunked(b"he") + b"zz\r\n",
    "no HTTP": b"220 smtp ready\r\n",
    "switching protocols": head("101 Switching Protocols", upgrade="x", connection="upgrade"),
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
async def test_a_broken_response_is_a_transport_error(reply: bytes) -> None:
    async def broken(visit: Visit) -> None:
        await visit.send(reply)
        visit.writer.close()

    with pytest.raises(httpx2.RemoteProtocolError):
        await answered(broken)


@pytest.mark.parametrize("begin", [head()[:-2] + b"x: ", chunked(b"x") + b"0\r\nx: ", chunked(b"x") + b"5;"])
async def test_what_is_no_body_may_have_64_kb(begin: bytes) -> None:
    """Headers, trailers and chunk extensions without end."""

    async def endless(visit: Visit) -> None:
        await visit.send(begin)
        while True:
            await visit.send(b"y" * 8_192)

    with pytest.raises(httpx2.RemoteProtocolError, match="too large"):
        await asyncio.wait_for(answered(endless), 5)


async def test_a_closed_connection_is_not_used_again() -> None:
    """The server may close an idle connection at any time, or say that it will."""
    replies = [plain("200 OK", b"1"), plain("200 OK", b"2", connection="close"), plain("200 OK", b"3")]
    async with raw_server(*replies) as server, client() as http:
        for _ in range(2):
            await http.post(server.url)
        await http.post(server.url)
        server.visits[-1].writer.close()
        await asyncio.sleep(0.05)
        await http.post(server.url)
    assert [visit.connection for visit in server.visits] == [0, 0, 1, 2]


async def closes(visit: Visit) -> None:
    visit.writer.close()


async def resets(visit: Visit) -> None:
    visit.writer.transport.abort()


async def begins(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200")
    visit.writer.close()


@pytest.mark.parametrize("close", [closes, resets])
async def test_a_request_on_a_connection_that_was_just_closed_is_sent_again(close: Reply) -> None:
    """As llama.cpp closes each after a stream, without a word. Once, on a new connection."""
    async with raw_server(plain("200 OK", b"1"), close, plain("200 OK", b"2")) as server, client() as http:
        assert [(await http.post(server.url, content=b"x")).content for _ in range(2)] == [b"1", b"2"]
    assert [(visit.connection, visit.body) for visit in server.visits] == [(0, b"x"), (0, b"x"), (1, b"x")]


@pytest.mark.parametrize("close", [closes, resets])
async def test_a_new_connection_that_is_closed_is_an_error(close: Reply) -> None:
    async with raw_server(plain("200 OK"), close, close) as server, client() as http:
        await http.post(server.url)
        with pytest.raises(httpx2.TransportError):
            await http.post(server.url)
    assert [visit.connection for visit in server.visits] == [0, 0, 1]


async def test_a_response_that_has_begun_is_not_asked_for_again() -> None:
    async with raw_server(plain("200 OK"), begins, plain("200 OK")) as server, client() as http:
        await http.post(server.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.post(server.url)
    assert [visit.connection for visit in server.visits] == [0, 0]


async def test_idle_connections_close_after_a_while_and_are_few() -> None:
    async with raw_server(plain("200 OK")) as server, client(idle_seconds=0.1) as http:
        await asyncio.gather(*(http.post(server.url) for _ in range(4)))
        await asyncio.sleep(0.05)
        assert [visit.gone.is_set() for visit in server.visits].count(False) == 2
        await asyncio.sleep(0.2)
        assert all(visit.gone.is_set() for visit in server.visits)


STRAY = plain("200 OK", b"stray")


async def stray_at_once(visit: Visit) -> None:
    await visit.send(plain("200 OK", b"1") + STRAY)


async def stray_later(visit: Visit) -> None:
    await visit.send(plain("200 OK", b"1"))
    asyncio.get_running_loop().call_later(0.01, visit.writer.write, STRAY)


@pytest.mark.parametrize("reply", [stray_at_once, stray_later])
async def test_what_nobody_asked_for_ends_the_connection(reply: Reply) -> None:
    """Else it would pass for the answer to the next request."""
    async with raw_server(reply, plain("200 OK", b"2")) as server, client() as http:
        assert (await http.post(server.url)).content == b"1"
        await asyncio.sleep(0.05)
        assert (await http.post(server.url)).content == b"2"
    assert [visit.connection for visit in server.visits] == [0, 1]


async def test_an_unread_response_costs_little_memory() -> None:
    """The socket is left alone while nobody takes what came; then everything comes, in order."""
    pieces = [bytes([i % 251]) * 10_000 for i in range(3_000)]

    async def much(visit: Visit) -> None:
        await visit.send(head(transfer_encoding="chunked"), *map(part, pieces), b"0\r\n\r\n")

    async with raw_server(much) as server, client(timeout=20) as http, http.stream("POST", server.url) as response:
        await asyncio.sleep(0.2)
        assert response.extensions[EXCHANGE]._size <= 2 * HIGH_WATER
        assert server.visits[0].sent < sum(map(len, pieces))
        assert await response.aread() == b"".join(pieces)


async def test_time_limits_are_httpx2s() -> None:
    async def slow(visit: Visit) -> None:
        await visit.send(head(transfer_encoding="chunked"))
        await asyncio.sleep(30)

    async with raw_server(slow) as server, client(timeout=0.1) as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.post(server.url)


async def test_a_header_cannot_hold_another() -> None:
    async with raw_server(plain("200 OK")) as server, client() as http:
        with pytest.raises(httpx2.LocalProtocolError):
            await http.post(server.url, headers={"x-a": "b\r\nx-c: d"})
        with pytest.raises(httpx2.UnsupportedProtocol):
            await http.post("ftp://127.0.0.1/")
    assert server.visits == []


async def test_a_host_that_cannot_be_found_is_a_connect_error() -> None:
    async with client() as http:
        for host in ("host.invalid", "a" * 64 + ".example"):
            with pytest.raises(httpx2.ConnectError):
                await http.post(f"http://{host}/")


@pytest.mark.parametrize(
    ("certificate", "ca", "trusted"),
    [
        ("valid.pem", "ca.pem", True),
        ("valid.pem", None, False),
        ("expired.pem", "ca.pem", False),
        ("wrong-host.pem", "ca.pem", False),
        ("self-signed.pem", "ca.pem", False),
    ],
)
async def test_certificates_are_checked(certificate: str, ca: str | None, trusted: bool) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(CERTS / certificate)
    body = b"x" * 300_000
    reply = chunked(body[:100], body[100:]) + b"0\r\n\r\n"
    async with raw_server(reply, tls=server_side) as server, client(ca=ca) as http:
        if trusted:
            assert [(await http.post(server.url)).content for _ in range(2)] == [body, body]
            assert {visit.connection for visit in server.visits} == {0}
        else:
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await http.post(server.url)


async def test_nothing_is_left_open() -> None:
    """Warnings are errors here: an unclosed transport would say so when it is collected."""
    async with raw_server(plain("200 OK", b"x")) as server, client() as http:
        await http.post(server.url)
        async with http.stream("POST", server.url):
            pass
    gc.collect()
