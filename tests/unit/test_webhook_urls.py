"""Which webhook URLs are accepted when a job is submitted, and in which form; what the operator can open."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatjobs.errors import ConfigurationError, WebhookUrlRefused
from domain.errors import WebhookAddressDenied
from domain.webhook_urls import NEVER, NOT_PUBLIC, WebhookPolicy, parse_allow
from tests.support.hostile_urls import DENIED, FINE, LITERAL, METADATA, OWN_HOST, REFUSED, ROWS, Row

OPEN = WebhookPolicy(allow_http=True, own_hosts=(OWN_HOST,))
"""The widest that needs no list."""
EVERYTHING = parse_allow("0.0.0.0/0, ::/0, metadata.google.internal, localhost")


def verdict(policy: WebhookPolicy, url: str) -> str:
    try:
        policy.check(url)
    except WebhookAddressDenied:
        return DENIED
    except WebhookUrlRefused:
        return REFUSED
    return FINE


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row(row: Row, scheme: str) -> None:
    assert verdict(OPEN, row.url(scheme)) == (REFUSED if row.verdict == LITERAL else row.verdict)
    literals = WebhookPolicy(allow_http=True, own_hosts=(OWN_HOST,), ip_literals=True)
    assert verdict(literals, row.url(scheme)) == (FINE if row.verdict == LITERAL else row.verdict)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_http_is_the_operators_choice(row: Row) -> None:
    """By default nothing is sent in the clear, whatever the host."""
    assert row.number == "U175" or verdict(WebhookPolicy(), row.url("http")) != FINE


@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict in (REFUSED, DENIED)], ids=str)
def test_a_reason_is_for_people_and_repeats_nothing(row: Row) -> None:
    with pytest.raises(WebhookUrlRefused) as caught:
        OPEN.check(row.url("https"))
    assert 20 < len(caught.value.message) < 200
    assert caught.value.code == "webhook_url_refused"
    host = row.text.strip()
    assert len(host) < 4 or host not in caught.value.message


@pytest.mark.parametrize("row", METADATA, ids=str)
def test_no_list_opens_metadata(row: Row) -> None:
    policy = WebhookPolicy(allow=EVERYTHING, allow_http=True, loopback=True, ip_literals=True)
    for scheme in ("http", "https"):
        assert verdict(policy, row.url(scheme)) == row.verdict


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTPS://EXAMPLE.COM/", "https://example.com/"),
        ("https://example.com", "https://example.com/"),
        ("https://Example.com.:443/Path?Query=%41", "https://example.com/Path?Query=%41"),
        ("https://example.com?a=1", "https://example.com/?a=1"),
        ("https://example.com:8443/", "https://example.com:8443/"),
        ("http://example.com:80/", "http://example.com/"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("https://[2606:4700:4700:0:0:0:0:1111]/", "https://[2606:4700:4700::1111]/"),
        ("https://[2606:4700:4700::1111]:8443/a", "https://[2606:4700:4700::1111]:8443/a"),
        ("https://8.8.8.8./", "https://8.8.8.8/"),
    ],
)
def test_one_normal_form(url: str, normal: str) -> None:
    policy = WebhookPolicy(allow_http=True, ip_literals=True)
    assert policy.check(url) == normal
    assert policy.check(normal) == normal


@given(st.text(st.sampled_from("aZ09.-_:/?#@%\\[] \t\n\r。①xn\x00é127"), max_size=40))
def test_what_is_accepted_is_read_the_same_by_the_client(text: str) -> None:
    """Nothing but a refusal is raised, and the client that sends sees the host that was checked."""
    try:
        url = OPEN.check(f"https://{text}")
    except WebhookUrlRefused:
        return
    seen = httpx2.URL(url)
    host = url.removeprefix("https://").partition("/")[0].partition(":")[0]
    assert (seen.raw_host.decode(), seen.userinfo, seen.fragment) == (host, b"", "")


# ------------------------------------------------------------------------------------- what the operator opens


def test_the_list_lifts_name_scheme_port_and_private_range() -> None:
    policy = WebhookPolicy(allow=parse_allow(" Hooks, 10.0.0.0/8 ,fd00::/8,api.internal"))
    for url in ("http://hooks:9000/", "http://10.1.2.3:22/", "https://[fd00::5]:9/", "http://api.internal/"):
        assert policy.check(url) == url
    for url in ("http://hooks.internal:9000/", "http://example.com/", "https://example.com:9000/"):
        assert verdict(policy, url) == REFUSED
    for url in ("http://192.168.0.1/", "https://[fc00::1]/"):
        assert verdict(policy, url) == DENIED


@pytest.mark.parametrize("url", ["http://127.0.0.1:1024/", "http://127.9.9.9:8000/", "https://[::1]:8000/"])
def test_loopback_receivers_where_nothing_is_real(url: str) -> None:
    assert WebhookPolicy(loopback=True).check(url) == url
    assert verdict(OPEN, url) == DENIED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]", "10.0.0.1", "x.localhost"])  # noqa: S104
def test_loopback_opens_no_system_port_and_nothing_else(host: str) -> None:
    policy = WebhookPolicy(loopback=True, allow_http=True)
    assert verdict(policy, f"http://{host}:1023/") != FINE
    assert (verdict(policy, f"http://{host}:1024/") == FINE) == (host in ("127.0.0.1", "localhost", "[::1]"))


def test_a_name_is_not_loopback_for_leading_there() -> None:
    policy = WebhookPolicy(loopback=True)
    assert policy.denial("localhost", ip_address("::1"), 8000) is None
    assert policy.denial("evil.example", ip_address("127.0.0.1"), 8443)
    assert policy.denial("localhost", ip_address("10.0.0.1"), 8000)


def test_what_is_told_to_be_the_services_own_is_denied() -> None:
    """Although its network is allowed."""
    deny = ("10.0.0.5:7233", "10.0.0.6", "database.internal:5432", "[fd00::9]:5432", "temporal:7233", "fd00:1::/64")
    policy = WebhookPolicy(allow=parse_allow("10.0.0.0/8, fd00::/8, temporal"), deny=deny, loopback=True)
    denied = ["10.0.0.5:7233", "10.0.0.6:80", "10.0.0.6:443", "database.internal:5432", "[fd00::9]:5432"]
    for host in [*denied, "temporal:7233", "[fd00:1::7]:1"]:
        assert verdict(policy, f"http://{host}/") == DENIED, host
    for host in ("10.0.0.5:7234", "10.0.0.7:7233", "[fd00::9]:5433", "temporal:9000"):
        assert verdict(policy, f"http://{host}/") == FINE, host
    assert policy.denial("example.com", ip_address("10.0.0.5"), 7233)
    assert not policy.denial("example.com", ip_address("10.0.0.5"), 443)
    assert verdict(WebhookPolicy(loopback=True, deny=("127.0.0.1:7233",)), "http://127.0.0.1:7233/") == DENIED


def test_an_address_of_this_machine_is_denied_unless_it_is_listed() -> None:
    address = ip_address("8.8.8.8")
    assert WebhookPolicy().denial("example.com", address, 443) is None
    assert WebhookPolicy(loopback=True).denial("example.com", address, 443, own=True)
    assert WebhookPolicy(allow=("8.8.8.8",)).denial("example.com", address, 443, own=True) is None
    assert WebhookPolicy(allow=("example.com",)).denial("example.com", address, 443, own=True) is None


@pytest.mark.parametrize("network", NOT_PUBLIC, ids=str)
def test_both_ends_of_every_denied_range(network: object) -> None:
    found = ip_network(str(network))
    for address in (found[0], found[-1]):
        assert WebhookPolicy().denial("example.com", address, 443)
        assert WebhookPolicy(allow=EVERYTHING).denial("x.example", address, 443) is None or _never(str(address))


def _never(address: str) -> bool:
    return any(ip_address(address) in network for network in NEVER)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "9.255.255.255", "223.255.255.255", "2606:4700::1", "2a00::1"]
)
def test_public_addresses_are_called(address: str) -> None:
    assert WebhookPolicy().denial("example.com", ip_address(address), 443) is None


@pytest.mark.parametrize("address", ["1fff::1", "4000::1", "::1", "fc00::1", "::8.8.8.8", "fe80::1%eth0", "ff02::1"])
def test_v6_is_denied_unless_it_is_given_out(address: str) -> None:
    assert WebhookPolicy().denial("example.com", ip_address(address), 443)


@pytest.mark.parametrize("text", ["", " , ,", "hooks", "10.0.0.0/8,fd00::/8", "10.0.0.1,::1,a-b.c", "127.0.0.0/8"])
def test_a_list_that_is_one(text: str) -> None:
    assert parse_allow(text) == tuple(filter(None, (entry.strip() for entry in text.split(","))))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("https://hooks.internal/", "neither a host name nor a CIDR"),
        ("hooks.internal:8080", "neither a host name nor a CIDR"),
        ("*.internal", "neither a host name nor a CIDR"),
        ("10.0.0.0/33", "neither a host name nor a CIDR"),
        ("127.1", "neither a host name nor a CIDR"),
        ("hooks internal", "neither a host name nor a CIDR"),
        ("169.254.0.0/16", "never sent to 169.254.0.0/16"),
        ("fe80::1", "never sent to fe80::1/128"),
        ("168.63.129.16", "never sent to 168.63.129.16/32"),
    ],
)
def test_a_list_that_is_none(text: str, advice: str) -> None:
    """It says what to correct."""
    for make in (parse_allow, lambda one: WebhookPolicy(allow=(one,))):
        with pytest.raises(ConfigurationError, match=advice):
            make(text)


@pytest.mark.parametrize("host", ["my_app", "my_app_1", "_x", "web_1.my_net"])
def test_a_name_with_an_underscore_must_be_listed(host: str) -> None:
    """As docker compose names containers. The list is of exact names."""
    url = f"http://{host}:3000/hook"
    assert WebhookPolicy(allow=parse_allow(host.upper())).check(url) == url
    for policy in (WebhookPolicy(), WebhookPolicy(allow=("other_app",)), WebhookPolicy(allow=("10.0.0.0/8",))):
        with pytest.raises(WebhookUrlRefused, match="underscore must be listed in CHATJOBS_WEBHOOK_ALLOW"):
            policy.check(url)


@pytest.mark.parametrize("host", ["my_app%41", "a@my_app", "my_app..", "my_app,b", "my app", "my_\u00e4pp"])
def test_a_listed_name_opens_nothing_else(host: str) -> None:
    with pytest.raises(WebhookUrlRefused):
        WebhookPolicy(allow=("my_app",)).check(f"http://{host}/hook")
