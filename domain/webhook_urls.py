"""Which webhook URLs are accepted, and which addresses may be called for them.

Pure: no name is looked up and nothing is sent. A URL is checked twice: by ``WebhookPolicy.check`` when it is submitted,
and by ``WebhookPolicy.denial`` for every address of its host before it is called. Forms that libraries read differently
(``127.1``, ``example.com\\@127.0.0.1``, full-width digits) are refused. No reason repeats the input or has an address:
a tenant must not learn from it what the network looks like.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

import idna

from chatjobs.contracts import ChatRequest
from chatjobs.errors import ConfigurationError, WebhookUrlRefused
from domain.errors import WebhookAddressDenied

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_CHARACTERS = 2_048
MAX_HOST_CHARACTERS = 253
DEFAULT_PORTS = {"https": 443, "http": 80}
PORTS = frozenset({443, 8443})
HTTP_PORTS = frozenset({80, 8080})
"""Ports that are allowed besides PORTS if plain http is."""
FIRST_USER_PORT = 1024
LOCALHOST = "localhost"
LOW_PORT = "receivers on this machine are called at ports from 1024; the host in CHATJOBS_WEBHOOK_ALLOW lifts that"
OPENS = "the host in CHATJOBS_WEBHOOK_ALLOW lifts the rules for names, addresses, http and ports"


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, text.split()))


NOT_PUBLIC = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24"
    " 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24"
    " 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"
    " 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3ffe::/16 3fff::/20"
)
"""IANA's special-purpose registries, and Azure's metadata service at a public address.

Not ``ipaddress.is_global``, which calls multicast, NAT64, 6to4 and fec0::/10 global (Python 3.11)."""
PUBLIC_V6 = IPv6Network("2000::/3")
"""The only global unicast addresses that IANA has assigned."""
NEVER = _networks(
    "169.254.0.0/16 fe80::/10"  # link-local, where most clouds have their metadata services
    " fd00:ec2::/32 fd20:ce::/32 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32"  # AWS Google Alibaba Azure Oracle
    " 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 ::/128 ff00::/8"  # "this host", multicast, broadcast
    " ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 2002::/16 2001::/32"  # IPv4 in disguise: any of these
)
"""Networks that no operator's list can open."""
METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog"})
PRIVATE_SUFFIXES = (
    *(".localhost", ".localdomain", ".local", ".internal", ".intranet", ".lan", ".corp", ".home", ".private"),
    *(".home.arpa", ".onion"),
)

_URL = re.compile(r"(?i)(?P<scheme>https?)://(?P<authority>[^/?]*)(?P<rest>.*)")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>.*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LISTED_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
"""A label that may have underscores, as the names of a compose file's containers do."""
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Target(NamedTuple):
    """A URL's parts. ``host`` is in lower case, without brackets and trailing dot; ``rest`` begins with a slash."""

    scheme: str
    host: str
    address: Address | None
    """The host, if it is an address."""
    port: int
    rest: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.rest}"


class Destination(NamedTuple):
    """A host or a network, at one port or (None) at all of them."""

    host: str | Network
    port: int | None

    def matches(self, host: str, address: Address | None, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if isinstance(self.host, str):
            return self.host == host
        return address is not None and address in self.host


@dataclass(frozen=True)
class WebhookPolicy:
    """The operator's rules for webhook URLs.

    ``allow``: exact host names, addresses and CIDRs for which names without a dot, private names and addresses, plain
    http and any port are accepted (``parse_allow`` makes it from text). Link-local addresses and metadata services
    stay closed. ``allow_http``: plain http everywhere. ``ip_literals``: public addresses in place of a host name.
    ``loopback``: receivers on 127.0.0.0/8, ::1 and localhost, at ports from 1024. ``ports``: accepted besides 443 and
    8443. ``own_hosts``: names of this service, which may not call itself. ``deny``: ``host``, ``host:port``, address,
    ``address:port`` or CIDR of servers that must not be reached although their network is allowed (Temporal, the
    database). Raises ConfigurationError for an invalid ``allow``.
    """

    allow: tuple[str, ...] = ()
    allow_http: bool = False
    loopback: bool = False
    own_hosts: tuple[str, ...] = ()
    ip_literals: bool = False
    ports: tuple[int, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self._allowed, self._denied

    @cached_property
    def _allowed(self) -> frozenset[str | Network]:
        return frozenset(map(_allowed, self.allow))

    @cached_property
    def _allowed_networks(self) -> tuple[Network, ...]:
        return tuple(one for one in self._allowed if not isinstance(one, str))

    @cached_property
    def _denied(self) -> tuple[Destination, ...]:
        own = (Destination(host.lower().removesuffix("."), None) for host in self.own_hosts)
        return (*own, *map(_endpoint, self.deny))

    def check(self, url: str) -> str:
        """The URL in its normal form, the only one to be stored and called.

        Raises WebhookUrlRefused with the reason; its subclass WebhookAddressDenied if the reason is the address.
        """
        target = _parsed(url, self._allowed)
        if target.address is None:
            self._check_name(target)
        else:
            self._check_address(target, target.address)
        if not self._opened(target.host, target.address, target.port):
            self._check_scheme_and_port(target)
        return target.url

    def denial(self, host: str, address: Address, port: int, *, own: bool = False) -> str | None:
        """The reason for which this address of a URL's host may not be called; None if it may. ``own``: it is one of
        this machine's."""
        if _within(address, NEVER):
            return "link-local and multicast addresses, metadata services and IPv4 within IPv6 are never called"
        if self._is_denied(host, address, port):
            return "this is a part of the service itself, which no setting opens"
        if self._opened(host, address, port):
            return None
        if own:
            return f"this is an address of the service itself; {OPENS}"
        if self._at_low_port(host, port):
            return LOW_PORT
        return None if _public(address) else f"private, local and reserved addresses are not called; {OPENS}"

    def _check_name(self, target: Target) -> None:
        if target.host in METADATA_NAMES:
            raise WebhookUrlRefused("metadata services are never called")
        if self._is_denied(target.host, None, target.port):
            raise WebhookAddressDenied("the host and port are a part of the service itself, which no setting opens")
        if self._opened(target.host, None, target.port):
            return
        if self._at_low_port(target.host, target.port):
            raise WebhookUrlRefused(LOW_PORT)
        if "." not in target.host or target.host.endswith(PRIVATE_SUFFIXES):
            raise WebhookUrlRefused(f"the host must have a public name, such as hooks.example.com; {OPENS}")

    def _check_address(self, target: Target, address: Address) -> None:
        if reason := self.denial(target.host, address, target.port):
            raise WebhookAddressDenied(reason)
        if not self.ip_literals and not self._opened(target.host, address, target.port):
            raise WebhookUrlRefused(f"the host must be a name, not an address; {OPENS}")

    def _check_scheme_and_port(self, target: Target) -> None:
        if target.scheme == "http" and not self.allow_http:
            raise WebhookUrlRefused("the URL must begin with https://; CHATJOBS_WEBHOOK_HTTP=true allows plain http")
        allowed = PORTS.union(self.ports, HTTP_PORTS if self.allow_http else ())
        if target.port not in allowed:
            raise WebhookUrlRefused(f"the port must be one of {', '.join(map(str, sorted(allowed)))}; {OPENS}")

    def _at_low_port(self, host: str, port: int) -> bool:
        return self.loopback and _is_local(host) and port < FIRST_USER_PORT

    def _is_denied(self, host: str, address: Address | None, port: int) -> bool:
        return any(endpoint.matches(host, address, port) for endpoint in self._denied)

    def _opened(self, host: str, address: Address | None, port: int) -> bool:
        """Whether the operator has lifted the rules for a destination."""
        if host in self._allowed or (address is not None and _within(address, self._allowed_networks)):
            return True
        local = _is_local(host) and (address is None or address.is_loopback)
        return self.loopback and local and port >= FIRST_USER_PORT


def checked(request: ChatRequest, policy: WebhookPolicy) -> ChatRequest:
    """A request with its webhook's URL in normal form. Raises WebhookUrlRefused."""
    changes: dict[str, Any] = {}
    if request.callback:
        changes["callback"] = policy.check(request.callback)
    if request.webhook:
        changes["webhook"] = request.webhook.model_copy(update={"url": policy.check(request.webhook.url)})
    return request.model_copy(update=changes) if changes else request


def parse_allow(text: str) -> tuple[str, ...]:
    """``WebhookPolicy.allow`` from a comma-separated text. Raises ConfigurationError, which says what to correct."""
    entries = tuple(filter(None, (entry.strip().lower() for entry in text.split(","))))
    for entry in entries:
        _allowed(entry)
    return entries


# -------------------------------------------------------------------------------------------------- parsing URLs


def _parsed(url: str, allowed: Container[str | Network]) -> Target:
    """A URL's parts. ``allowed`` are the names to which the rule for labels does not apply.

    Raises WebhookUrlRefused for an invalid URL, and for one that libraries read differently."""
    if len(url) > MAX_URL_CHARACTERS:
        raise WebhookUrlRefused(f"the URL may have {MAX_URL_CHARACTERS} characters")
    if not url.isascii():
        raise WebhookUrlRefused("the URL must be ASCII; write the host name in punycode (xn--…) and escape the path")
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url or "#" in url:
        raise WebhookUrlRefused("the URL may have no spaces, control characters, backslashes and no fragment")
    match = _URL.fullmatch(url)
    if match is None:
        raise WebhookUrlRefused("the URL must begin with https:// and a host name")
    scheme, rest = match["scheme"].lower(), match["rest"]
    host, address, port = _authority(match["authority"], allowed)
    return Target(scheme, host, address, port or DEFAULT_PORTS[scheme], rest if rest[:1] == "/" else f"/{rest}")


def _authority(text: str, allowed: Container[str | Network]) -> tuple[str, Address | None, int | None]:
    """The host, its address if it is one, and the port if there is one."""
    if "@" in text or "%" in text:
        raise WebhookUrlRefused("the URL may have no user name, password or escapes before its path")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise WebhookUrlRefused("the URL must name a host and at most one port")
    port = None if match["port"] is None else _port(match["port"])
    if match["v6"]:
        v6 = _ipv6(match["v6"])
        return str(v6), v6, port
    host = match["name"].lower().removesuffix(".")
    labels = host.split(".") if host in allowed else _labels(host)
    v4 = _ipv4(host) if _NUMBER.fullmatch(labels[-1]) else None
    return host, v4, port


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65_535:
        raise WebhookUrlRefused("the port must be a number from 1 to 65535")
    return int(text)


def _ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError:
        raise WebhookUrlRefused("the host is not an IPv6 address") from None


def _ipv4(host: str) -> IPv4Address:
    """An address of four decimal numbers. Others (``127.1``, ``0x7f000001``, ``0177.0.0.1``) are names to some
    libraries, and are refused."""
    try:
        return IPv4Address(host)  # refuses leading zeros and anything but four decimal numbers
    except ValueError:
        raise WebhookUrlRefused("an IPv4 address must be four decimal numbers without leading zeros") from None


def _labels(host: str) -> list[str]:
    """The labels of a host name. Raises WebhookUrlRefused unless each is letters, digits and hyphens (RFC 1123) and
    punycode is valid."""
    labels = host.split(".")
    if len(host) > MAX_HOST_CHARACTERS or not all(map(_LABEL.fullmatch, labels)):
        exception = "; a name with an underscore must be listed in CHATJOBS_WEBHOOK_ALLOW" if "_" in host else ""
        raise WebhookUrlRefused(f"the host must be labels of letters, digits and hyphens, up to 63 each{exception}")
    try:
        for label in labels:
            if label.startswith("xn--"):
                idna.ulabel(label)
    except (idna.IDNAError, UnicodeError):
        raise WebhookUrlRefused("the host is not valid punycode") from None
    return labels


# -------------------------------------------------------------------------------------- addresses and the lists


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _public(address: Address) -> bool:
    if address.version == 6 and address not in PUBLIC_V6:
        return False
    return not _within(address, NOT_PUBLIC)


def _is_local(host: str) -> bool:
    """Whether a URL's host is this machine, by name or address."""
    if host == LOCALHOST:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _allowed(entry: str) -> str | Network:
    """A host name or network of the operator's list. Raises ConfigurationError, which says what to write."""
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        return _allowed_name(entry)
    if ip_address(entry.partition("/")[0]) != network.network_address:
        raise ConfigurationError(f"CHATJOBS_WEBHOOK_ALLOW: {entry!r} has bits beyond its prefix; write {network}")
    if any(network.version == never.version and network.subnet_of(never) for never in NEVER):  # type: ignore[arg-type]
        raise ConfigurationError(
            f"CHATJOBS_WEBHOOK_ALLOW: webhooks are never sent to {network}, which is link-local, metadata or reserved"
        )
    return network


def _allowed_name(entry: str) -> str:
    labels = entry.split(".")
    if not all(map(_LISTED_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise ConfigurationError(
            f"CHATJOBS_WEBHOOK_ALLOW: {entry!r} is neither a host name nor a CIDR; write hooks.internal or 10.0.0.0/8"
        )
    return entry


def _endpoint(entry: str) -> Destination:
    host, separator, port = entry.lower().rpartition(":")
    if separator and port.isdigit() and (":" not in host or host.endswith("]")):
        return Destination(_host(host), int(port))
    return Destination(_host(entry.lower()), None)


def _host(text: str) -> str | Network:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return text
