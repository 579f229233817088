"""Webhook URLs that try to reach what they must not, or that two readers read differently; some harmless ones."""

from __future__ import annotations

from typing import NamedTuple

OWN_HOST = "chat.example.com"
REFUSED, DENIED, FINE, LITERAL = "refused", "denied", "fine", "literal"
"""Refused by the syntax, denied by the address, accepted, and accepted where addresses are (else refused)."""


class Row(NamedTuple):
    """``text`` is a whole URL if it has ``SCHEME`` in it or is marked so, else what stands after ``https://``."""

    number: str
    text: str
    verdict: str
    whole: bool = False

    def url(self, scheme: str, port: int | None = None) -> str:
        """``port`` is added where the text is a host and nothing else."""
        if self.whole or "SCHEME" in self.text:
            return self.text.replace("SCHEME", scheme)
        return f"{scheme}://{self.text}{f':{port}' if port and self.bare else ''}/"

    @property
    def bare(self) -> bool:
        """A host and nothing else."""
        if self.whole or "SCHEME" in self.text:
            return False
        return self.text.endswith("]") or not any(c in self.text for c in ":/?#[")

    def __str__(self) -> str:
        return f"{self.number} {self.text[:40]!r}"


def _rows(verdict: str, **texts: str) -> list[Row]:
    return [Row(number, text, verdict) for number, text in texts.items()]


LOOPBACK = [
    *_rows(DENIED, U01="127.0.0.1", U05="0.0.0.0", U14="127.0.0.1.", U16="127.255.255.254"),  # noqa: S104 - refused
    *_rows(REFUSED, U02="127.1", U04="0", U07="0x7f000001", U08="0x7f.0.0.1", U10="017700000001", U11="0177.0.0.1"),
    *_rows(REFUSED, U13="00000177.0.0.1", U17="4294967297", U19="1.2.3.4.5", U20="1.2.3"),
]
UNICODE = [
    *_rows(REFUSED, U22="①②⑦.⓪.⓪.①", U23="127。0。0。1", U25="１２７.0.0.1", U26="ⓛocalhost", U28="bücher.example"),
    *_rows(REFUSED, U29="faß.de", U31="раураl.com", U34="xn--a", U34b="xn--a.example", U35="xn--", U35b="xn--.example"),
    *_rows(FINE, U32="xn--bcher-kva.example", U32b="xn--fa-hia.de"),
]
CONFUSION = [
    *_rows(
        REFUSED, U37="%6c%6f%63alhost", U38="example.com%2eevil.com", U40="127.0.0.1%09", U41="example.com%40127.0.0.1"
    ),
    *_rows(REFUSED, U43="example.com:80@127.0.0.1", U44="127.0.0.1:80@example.com", U46="example.com\\@127.0.0.1"),
    *_rows(REFUSED, U47="127.0.0.1\\@example.com", U49="127.0.0.1%2f@example.com", U50="example.com#@127.0.0.1"),
    *_rows(REFUSED, U53="user@:443", U55="example.com;127.0.0.1", U56="example.com,127.0.0.1"),
    *_rows(FINE, U52="example.com/?@127.0.0.1"),
]
V6 = [
    *_rows(DENIED, U58="[::]", U59="[0:0:0:0:0:0:0:1]", U61="[::ffff:7f00:1]", U62="[::ffff:8.8.8.8]"),
    *_rows(
        DENIED, U64="[::ffff:0:127.0.0.1]", U65="[64:ff9b::7f00:1]", U67="[64:ff9b:1::a00:1]", U68="[2002:7f00:1::]"
    ),
    *_rows(DENIED, U70="[fe80::1]", U73="[fc00::1]", U74="[fec0::1]", U76="[2001:db8::1]", U77="[3fff::1]"),
    *_rows(DENIED, U79="[100::1]", U80="[2001:20::1]"),
    *_rows(REFUSED, U71="[fe80::1%25eth0]", U82="[::1", U83="::1", U85="[v1.127.0.0.1]"),
    *_rows(LITERAL, U86="[2606:4700:4700::1111]"),
]
METADATA = [
    *_rows(DENIED, U88="169.254.170.2", U88b="169.254.169.254", U94="[::ffff:a9fe:a9fe]", U95="[fd00:ec2::254]"),
    *_rows(DENIED, U97="100.100.100.200", U98="168.63.129.16", U98b="[fd20:ce::254]", U98c="192.0.0.192"),
    *_rows(REFUSED, U89="2852039166", U91="0251.0376.0251.0376", U92="169.254.43518", U100="metadata.google.internal"),
]
"""No operator's list opens these."""
RANGES = [
    *_rows(DENIED, U101="10.0.0.1", U101b="192.168.0.1", U101c="172.16.0.1", U103="172.31.255.255", U106="100.64.0.1"),
    *_rows(DENIED, U109="192.0.2.1", U110="198.51.100.1", U112="192.88.99.1", U113="224.0.0.1", U115="255.255.255.255"),
    *_rows(DENIED, U116="0.1.2.3", U117="198.18.0.1", U117b="203.0.113.9", U117c="240.0.0.1"),
    *_rows(LITERAL, U104="172.32.0.1", U107="100.128.0.1"),
]
NAMES = [
    *_rows(REFUSED, U118="LOCALHOST", U119="localhost.", U121="localhost.localdomain", U122="ip6-localhost"),
    *_rows(REFUSED, U124="x.internal", U124b="x.local", U124c="x.home.arpa", U124d="x.onion", U124e="X.LOCALHOST"),
    *_rows(DENIED, U125=OWN_HOST, U125b=f"{OWN_HOST.upper()}."),
]
PORTS = [
    *_rows(REFUSED, U134="example.com:0", U136="example.com:-1", U137="example.com:80a", U139="example.com:22"),
    *_rows(REFUSED, U139b="example.com:25", U139c="example.com:6379", U139d="example.com:7233", U140="example.com:"),
    *_rows(REFUSED, U140b="example.com:99999", U140c="example.com:0443", U140d="example.com:443:443", U140e="[::1]443"),
    *_rows(FINE, U141="example.com:8443", U141b="example.com:443"),
]
SHAPE = [
    *_rows(REFUSED, U142="SCHEME:///example.com", U143="SCHEME:example.com", U146="SCHEME://", U148="SCHEME://?"),
    *_rows(REFUSED, U149="SCHEME://.", U149b="SCHEME://example.com..", U151=".example.com", U152="example..com"),
    *_rows(REFUSED, U154="-example.com", U154b="example-.com", U155="exam_ple.com", U157=f"{'a.' * 126}com"[-254:]),
    *_rows(REFUSED, U157b=f"{'a' * 64}.com", U158="SCHEME://example.com/" + "a" * 2_049),
    Row("U145", "//example.com", REFUSED, whole=True),
    Row("U145b", "", REFUSED, whole=True),
    Row("U145c", "example.com", REFUSED, whole=True),
]
CONTROL = [
    *_rows(
        REFUSED,
        U160="example.com/\r\nx: y",
        U160b="example.com/\n",
        U161="exam\tple.com",
        U163=" SCHEME://example.com/",
    ),
    *_rows(
        REFUSED, U163b="SCHEME://example.com/ ", U163c="SCHEME://example.com/\n", U164="example.com ", U165="a\x00.com"
    ),
    *_rows(REFUSED, U165b="example.com/\ud800", U165c="example.com/é"),
    Row("U166", "file:///etc/passwd", REFUSED, whole=True),
    Row("U167", "gopher://example.com/", REFUSED, whole=True),
    Row("U169", "dict://example.com:11211/", REFUSED, whole=True),
    Row("U170", "unix:/var/run/docker.sock", REFUSED, whole=True),
    Row("U172", "data:text/plain,x", REFUSED, whole=True),
    Row("U173", "javascript:alert(1)", REFUSED, whole=True),
    Row("U175", "HTTPS://EXAMPLE.COM/", FINE, whole=True),
]
ROWS = [*LOOPBACK, *UNICODE, *CONFUSION, *V6, *METADATA, *RANGES, *NAMES, *PORTS, *SHAPE, *CONTROL]
