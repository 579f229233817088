"""A name server for tests: real DNS over UDP on loopback, from a script, and a resolver that asks it.

    with dns_server() as names:
        names.answer("rebind.example", ["8.8.8.8"], ["127.0.0.1"])   # one list per look-up, the last repeats
        sender = HttpWebhookSender(policy=..., resolver=names.resolve)

A name without a script does not exist; a name in ``silent`` is never answered.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSRecord  # type: ignore[import-untyped]

LOOPBACK = "127.0.0.1"


class DnsServer:
    """Made by ``dns_server()``."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.port: int = listening.getsockname()[1]
        self.silent: set[str] = set()
        self.queries: list[tuple[str, str]] = []
        """Name and type of every question, oldest first."""
        self._scripts: dict[str, list[Sequence[str]]] = {}

    def answer(self, name: str, *lookups: Sequence[str]) -> None:
        """The addresses, of both families, that each look-up of a name finds."""
        self._scripts[name] = list(lookups)

    def serve(self) -> None:
        """Until a datagram without a byte arrives."""
        while True:
            question, client = self._socket.recvfrom(4_096)
            if not question:
                return
            asked = DNSRecord.parse(question)
            name, kind = str(asked.q.qname).removesuffix("."), QTYPE[asked.q.qtype]
            self.queries.append((name, kind))
            if name not in self.silent:
                self._socket.sendto(self._reply(asked, name, kind).pack(), client)

    def _reply(self, asked: DNSRecord, name: str, kind: str) -> DNSRecord:
        reply = asked.reply()
        script = self._scripts.get(name)
        if script is None:
            reply.header.rcode = RCODE.NXDOMAIN
            return reply
        number = sum(one == (name, kind) for one in self.queries)
        for address in script[min(number, len(script)) - 1]:
            if (":" in address) == (kind == "AAAA"):
                data = AAAA(address) if ":" in address else A(address)
                reply.add_answer(RR(name, QTYPE.AAAA if ":" in address else QTYPE.A, rdata=data, ttl=0))
        return reply

    async def resolve(self, host: str) -> Sequence[str]:
        """Both kinds of address, as a stub resolver asks for them. Raises gaierror."""
        answers = await asyncio.gather(self._ask(host, "A"), self._ask(host, "AAAA"))
        if any(answer.header.rcode for answer in answers):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [str(record.rdata) for answer in answers for record in answer.rr]

    async def _ask(self, host: str, kind: str) -> DNSRecord:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect((LOOPBACK, self.port))
            await loop.sock_sendall(client, DNSRecord.question(host, kind).pack())
            return DNSRecord.parse(await loop.sock_recv(client, 4_096))


@contextmanager
def dns_server() -> Iterator[DnsServer]:
    """A running name server on a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((LOOPBACK, 0))
        server = DnsServer(listening)
        thread = threading.Thread(target=server.serve, name="dns", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.sendto(b"", (LOOPBACK, server.port))
            thread.join(10)
