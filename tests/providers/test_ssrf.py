"""Webhooks reach no address that they may not: not by its spelling, not by a name, not by a change of mind.

What must not be called is really there: a trap listens on every address of this machine and has to stay untouched.
"""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import httpcore2
import psutil
import pytest

from domain.errors import WebhookAddressDenied
from domain.ports import BUSY, WebhookResponse
from domain.timings import Timings
from domain.webhook_urls import WebhookPolicy
from providers.webhooks import network_guard as guard
from providers.webhooks.network_guard import GuardedNetwork, SystemResolver, is_own
from providers.webhooks.sender import HttpWebhookSender
from tests.support.dns_server import DnsServer, dns_server
from tests.support.hostile_urls import DENIED, OWN_HOST, REFUSED, ROWS, Row
from tests.support.receiver import Answer, Receiver, client_tls, receiver, server_tls

ELSEWHERE = "127.0.0.2"
"""An address that the tests allow, beside 127.0.0.1, which they do not."""
TLS = client_tls()
"""Made once: it takes longer than a test."""
HASTY = Timings(webhook_resolve_seconds=0.3)
CODES = {REFUSED: "invalid_url", DENIED: "address_denied"}


class Trap:
    """A port on which nobody may ever call, on every address of this machine."""

    def __init__(self, *sockets: socket.socket) -> None:
        self._sockets = sockets
        self.port: int = sockets[0].getsockname()[1]

    def touched(self) -> bool:
        """Whether a connection has arrived; the kernel takes it without us."""
        return bool(select.select(self._sockets, [], [], 0)[0])


@contextmanager
def trap_set() -> Iterator[Trap]:
    with socket.create_server(("", 0)) as v4, socket.socket(socket.AF_INET6) as v6:
        v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        v6.bind(("::", v4.getsockname()[1]))
        v6.listen()
        yield Trap(v4, v6)


@pytest.fixture(scope="module")
def shared_trap() -> Iterator[Trap]:
    with trap_set() as trap:
        yield trap


@pytest.fixture
def trap(shared_trap: Trap) -> Iterator[Trap]:
    yield shared_trap
    assert not shared_trap.touched(), "something was called that may not be"


@pytest.fixture
def names() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver(address=ELSEWHERE) as running:
        yield running


def strict(port: int, **more: object) -> WebhookPolicy:
    """As an operator may have it at most without a list; the trap's port is no reason to refuse."""
    return WebhookPolicy(allow_http=True, own_hosts=(OWN_HOST,), ports=(port,), **more)  # type: ignore[arg-type]


async def nowhere(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


async def post(sender: HttpWebhookSender, url: str) -> WebhookResponse:
    return await sender.post(url, headers={"webhook-id": "whe_1"}, body=b"{}")


def code(answer: WebhookResponse) -> str:
    return (answer.error or "").partition(":")[0]


# ------------------------------------------------------------------------------------------------- every row


@pytest.fixture
async def sender(trap: Trap) -> AsyncIterator[HttpWebhookSender]:
    async with HttpWebhookSender(policy=strict(trap.port), resolver=nowhere, tls=TLS) as made:
        yield made


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict in CODES], ids=str)
async def test_what_is_refused_is_not_called(row: Row, scheme: str, sender: HttpWebhookSender, trap: Trap) -> None:
    """Also where such a URL was stored before the policy was: no look-up, no packet."""
    answer = await post(sender, row.url(scheme, trap.port))
    assert (answer.status_code, code(answer)) == (None, CODES[row.verdict])


@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict == DENIED and row.number < "U125"], ids=str)
async def test_the_network_denies_by_itself(row: Row, trap: Trap) -> None:
    """Whoever hands it an address, without the check of the URL before."""
    host = row.text.strip("[]").removesuffix(".")
    for policy in (strict(trap.port), strict(trap.port, loopback=True, ip_literals=True)):
        network = GuardedNetwork(policy, nowhere)
        port = 1023 if policy.loopback else trap.port
        with pytest.raises(WebhookAddressDenied):
            await network.connect_tcp(host, port)


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_no_row_is_followed_to(scheme: str, trap: Trap) -> None:
    """As the target of a redirect, not even those that could be called."""
    policy = WebhookPolicy(loopback=True, allow_http=True, ip_literals=True)
    tls = server_tls("valid") if scheme == "https" else None
    with receiver(tls=tls) as hooks:
        async with HttpWebhookSender(policy=policy, resolver=nowhere, tls=TLS) as sender:
            for number, row in enumerate(ROWS, 1):
                target = row.url(scheme, trap.port).encode(errors="replace").replace(b"\r", b"").replace(b"\n", b"")
                head = b"HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\nlocation: "
                hooks.answer("/hook", Answer(raw=head + target.replace(b"\x00", b"") + b"\r\n\r\n"))
                answer = await post(sender, hooks.url("/hook"))
                assert (answer.status_code, answer.error) == (307, "redirect"), row
                assert len(hooks.requests()) == number


# ------------------------------------------------------------------------------------------- names and their addresses


@pytest.mark.parametrize(
    "addresses",
    [
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "::1"],
        ["8.8.8.8", "::ffff:808:808"],
        ["127.0.0.1"],
        ["0.0.0.0"],  # noqa: S104 - refused
        ["::"],
        ["169.254.169.254"],
        ["fd00:ec2::254"],
        [*["8.8.8.8"] * 20, "127.0.0.1"],
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_one_denied_address_denies_all(addresses: list[str], scheme: str, names: DnsServer, trap: Trap) -> None:
    names.answer("hooks.example", addresses)
    async with HttpWebhookSender(policy=strict(trap.port), resolver=names.resolve, tls=TLS) as sender:
        answer = await post(sender, f"{scheme}://hooks.example:{trap.port}/")
    assert (answer.status_code, code(answer)) == (None, "address_denied")
    assert not any(address in (answer.error or "") for address in addresses), "a tenant learns no address"


async def test_an_allowed_address_beside_a_denied_one(names: DnsServer, hooks: Receiver) -> None:
    """Both are there, and neither is called."""
    names.answer("hooks.example", [ELSEWHERE, "127.0.0.1"])
    with socket.create_server(("127.0.0.1", hooks.port)) as denied:
        async with HttpWebhookSender(
            policy=strict(hooks.port, allow=(ELSEWHERE,)), resolver=names.resolve, tls=TLS
        ) as sender:
            answer = await post(sender, hooks.url(host="hooks.example"))
        assert (code(answer), hooks.requests(), Trap(denied).touched()) == ("address_denied", [], False)


async def test_rebinding(names: DnsServer, hooks: Receiver) -> None:
    """A name is looked up once per try, and the address that was judged is the one that is called."""
    names.answer("rebind.example", [ELSEWHERE], ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", hooks.port)) as denied:
        async with HttpWebhookSender(
            policy=strict(hooks.port, allow=(ELSEWHERE,)), resolver=names.resolve, tls=TLS
        ) as sender:
            first = await post(sender, hooks.url(host="rebind.example"))
            assert names.queries.count(("rebind.example", "A")) == 1
            second = await post(sender, hooks.url(host="rebind.example"))
        assert not Trap(denied).touched()
    assert (first.delivered, code(second)) == (True, "address_denied")
    (request,) = hooks.requests()
    assert request.headers["host"] == f"rebind.example:{hooks.port}"


async def test_rebinding_the_other_way_round(names: DnsServer, hooks: Receiver) -> None:
    """What is denied now may be right at the next try."""
    names.answer("late.example", ["127.0.0.1"], [ELSEWHERE])
    async with HttpWebhookSender(
        policy=strict(hooks.port, allow=(ELSEWHERE,)), resolver=names.resolve, tls=TLS
    ) as sender:
        answers = [await post(sender, hooks.url(host="late.example")) for _ in range(2)]
    assert [code(answers[0]), answers[1].delivered] == ["address_denied", True]


async def test_a_name_that_does_not_exist(names: DnsServer, trap: Trap) -> None:
    async with HttpWebhookSender(policy=strict(trap.port), resolver=names.resolve, tls=TLS) as sender:
        assert (await post(sender, "https://nobody.example/")).error == "dns_error"
        names.answer("empty.example", [])
        assert (await post(sender, "https://empty.example/")).error == "dns_error"
        names.answer("crowd.example", [f"8.8.8.{number}" for number in range(guard.MAX_ADDRESSES + 1)])
        assert (await post(sender, "https://crowd.example/")).error == "dns_error"


async def test_a_silent_name_server(names: DnsServer) -> None:
    assert Timings().webhook_resolve_seconds == 3
    names.silent.add("mute.example")
    async with HttpWebhookSender(policy=WebhookPolicy(), resolver=names.resolve, tls=TLS, timings=HASTY) as sender:
        answer = await post(sender, "https://mute.example/")
    assert (answer.error, answer.latency_ms < 2_500) == ("dns_error", True)


async def test_an_address_of_this_machine_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public or not."""
    assert [is_own(ip_address(one)) for one in ("127.0.0.1", "::1", "8.8.8.8")] == [True, True, False]
    monkeypatch.setattr(guard, "is_own", lambda address: str(address) == "8.8.8.8")
    with pytest.raises(WebhookAddressDenied, match="service itself"):
        await GuardedNetwork(WebhookPolicy(ip_literals=True)).connect_tcp("8.8.8.8", 443)


def test_every_interface_is_this_machines() -> None:
    found = [one.address for all_of_it in psutil.net_if_addrs().values() for one in all_of_it if one.family in (2, 10)]
    usable = [address for address in found if "%" not in address and not address.startswith(("127.", "fe80:"))]
    assert [address for address in usable if not is_own(ip_address(address))] == []


async def test_the_services_own_parts(names: DnsServer, hooks: Receiver) -> None:
    """Temporal and the database: denied by name, and at their addresses under any other name."""
    names.answer("temporal.example", [ELSEWHERE])
    names.answer("alias.example", [ELSEWHERE])
    deny = (f"temporal.example:{hooks.port}", f"{ELSEWHERE}:{hooks.port}")
    policy = strict(hooks.port, allow=("127.0.0.0/8",), deny=deny)
    async with HttpWebhookSender(policy=policy, resolver=names.resolve, tls=TLS) as sender:
        for host in ("temporal.example", "alias.example", ELSEWHERE):
            assert code(await post(sender, hooks.url(host=host))) == "address_denied"
    assert not hooks.requests()


async def test_loopback_mode(trap: Trap) -> None:
    """Receivers of a person who tries things out; by the operating system's own resolver."""
    policy = WebhookPolicy(loopback=True, deny=(f"127.0.0.1:{trap.port}", f"localhost:{trap.port}"))
    with receiver() as hooks:
        async with HttpWebhookSender(policy=policy, tls=TLS) as sender:
            for host in ("127.0.0.1", "localhost"):
                assert (await post(sender, hooks.url("/hook", host=host))).delivered
                assert code(await post(sender, f"http://{host}:{trap.port}/")) == "address_denied"
            assert code(await post(sender, f"http://127.1:{hooks.port}/")) == "invalid_url"


async def test_a_second_address_is_tried(names: DnsServer, hooks: Receiver) -> None:
    names.answer("two.example", ["127.0.0.3", ELSEWHERE])
    async with HttpWebhookSender(
        policy=strict(hooks.port, allow=("127.0.0.2/31",)), resolver=names.resolve, tls=TLS
    ) as sender:
        assert (await post(sender, hooks.url(host="two.example"))).delivered
        names.answer("none.example", ["127.0.0.3"])
        assert (await post(sender, hooks.url(host="none.example"))).error == "connect_error"


async def test_no_unix_sockets() -> None:
    with pytest.raises(WebhookAddressDenied):
        await GuardedNetwork().connect_unix_socket("/var/run/docker.sock")


# ----------------------------------------------------------------------------------------- the system's resolver


class Lookups:
    """In place of getaddrinfo: waits until it may answer."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.may_answer = threading.Event()

    def __call__(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.hosts.append(host)
        self.may_answer.wait(20)
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lookups]:
    made = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.may_answer.set()


async def test_a_name_is_looked_up_once_at_a_time(lookups: Lookups) -> None:
    """A dead name server costs one thread per name, however many tries there are."""
    resolve = SystemResolver()
    waiting = [asyncio.ensure_future(resolve("slow.example")) for _ in range(100)]
    waiting.append(asyncio.ensure_future(resolve("unknown.example")))
    await asyncio.sleep(0)
    waiting[0].cancel()  # one that gives up takes nothing from the others
    lookups.may_answer.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(lookups.hosts) == ["slow.example", "unknown.example"]
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:100] == [["8.8.8.8"]] * 99
    assert isinstance(results[100], socket.gaierror)
    assert await resolve("slow.example") == ["8.8.8.8"]
    assert len(lookups.hosts) == 3


async def test_too_many_lookups_cost_no_try(lookups: Lookups) -> None:
    async with HttpWebhookSender(policy=WebhookPolicy(), tls=TLS, timings=HASTY) as sender:
        many = [post(sender, f"https://n{number}.example/") for number in range(guard.MAX_LOOKUPS + 1)]
        errors = [answer.error for answer in await asyncio.gather(*many)]
    assert (errors.count("dns_error"), errors.count(BUSY)) == (guard.MAX_LOOKUPS, 1)


# -------------------------------------------------------------------------------------------------------- TLS


async def test_tls_is_with_the_name_at_the_judged_address(names: DnsServer) -> None:
    """SNI, Host and the certificate's name are the URL's; the address is the one that was judged."""
    asked: list[str | None] = []
    server = server_tls("valid")
    server.sni_callback = lambda _, name, __: asked.append(name)
    names.answer("localhost", [ELSEWHERE])
    names.answer("hooks.example", [ELSEWHERE])
    with receiver(tls=server, address=ELSEWHERE) as hooks:
        policy = strict(hooks.port, allow=("localhost", ELSEWHERE))
        async with HttpWebhookSender(policy=policy, resolver=names.resolve, tls=TLS) as sender:
            good = await post(sender, hooks.url(host="LOCALHOST."))
            wrong = await post(sender, hooks.url(host="hooks.example"))
            literal = await post(sender, hooks.url())
    assert (good.delivered, [one.headers["host"] for one in hooks.requests()]) == (True, [f"localhost:{hooks.port}"])
    assert wrong.error == "tls_error: Hostname mismatch, certificate is not valid for 'hooks.example'."
    assert literal.error == f"tls_error: IP address mismatch, certificate is not valid for '{ELSEWHERE}'."
    assert asked == ["localhost", "hooks.example", None]


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [("expired", "certificate has expired"), ("self-signed", "self-signed certificate"), ("wrong-host", "Hostname")],
)
async def test_a_bad_certificate_at_a_judged_address(certificate: str, reason: str, names: DnsServer) -> None:
    names.answer("localhost", [ELSEWHERE])
    with receiver(tls=server_tls(certificate), address=ELSEWHERE) as hooks:
        policy = strict(hooks.port, allow=("localhost",))
        async with HttpWebhookSender(policy=policy, resolver=names.resolve, tls=TLS) as sender:
            answer = await post(sender, hooks.url(host="localhost"))
    assert (answer.error or "").startswith(f"tls_error: {reason}")
    assert not hooks.requests()


async def test_a_handshake_that_is_cancelled_leaves_no_socket() -> None:
    """Closed by us, not by the garbage collector at some time."""
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            stream = await GuardedNetwork().connect_tcp("127.0.0.1", mute.getsockname()[1])
            raw: socket.socket = stream.get_extra_info("socket")
            handshake = asyncio.create_task(stream.start_tls(ssl.create_default_context(), "localhost"))
            accepted, _ = await asyncio.to_thread(mute.accept)
            with accepted:
                assert await asyncio.to_thread(accepted.recv, 1) == b"\x16", "the handshake has begun"
                handshake.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await handshake
                await asyncio.sleep(0)  # a transport closes one turn later
                assert raw.fileno() == -1
    finally:
        gc.enable()


async def test_errors_of_the_connection_are_the_librarys(hooks: Receiver) -> None:
    """The transport above knows how to read them."""
    with receiver(address=ELSEWHERE) as gone:
        port = gone.port
    with pytest.raises(httpcore2.ConnectError):
        await GuardedNetwork().connect_tcp(ELSEWHERE, port)
    stream = await GuardedNetwork().connect_tcp(ELSEWHERE, hooks.port)
    await stream.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert (await stream.read(8)).startswith(b"HTTP/1.1")
    await stream.aclose()
