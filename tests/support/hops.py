"""Next hops on loopback that speak TLS, count their connections and do what a test says."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from elemta.address import Address
from elemta.envelope import MailParameters, Recipient
from elemta.smtp.client_commands import ClientTransaction
from tests.support.certificates import CertificateFiles

reactor: Any = _reactor
CONTENT = b"Subject: x\r\n\r\n.hello\r\n"
CLOSE = b"<close>"
# Ports that are tried until one is free at several addresses.
_TRIES = 50


def message(*recipients: str, size: int = len(CONTENT)) -> ClientTransaction:
    """A transaction for ``local@example.com`` each; one for bob without any."""
    people = tuple(Recipient(Address(local, "example.com")) for local in recipients or ("bob",))
    return ClientTransaction(Address("a", "b.example"), people, MailParameters(), size)


async def open_content() -> BinaryIO:
    return io.BytesIO(CONTENT)


async def read(content: BinaryIO) -> bytes:
    return content.read(65536)


@implementer(IOpenSSLServerConnectionCreator)
class Secured:
    """What a server's TLS is made with; without a certificate it knows no TLS that a peer speaks."""

    def __init__(self, files: CertificateFiles | None) -> None:
        self.context = SSL.Context(SSL.TLS_METHOD)
        if files is None:
            self.context.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
            self.context.set_max_proto_version(SSL.TLS1_2_VERSION)
        else:
            self.context.use_certificate_chain_file(str(files.certificate))
            self.context.use_privatekey_file(str(files.key))

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        return SSL.Connection(self.context, None)


@dataclass
class SecureHop(Factory):
    """A server for whole commands. ``replies`` are by verb, a list is used up first; ``tls`` is its own."""

    tls: Any = None
    offers: tuple[bytes, ...] = ()
    replies: dict[bytes, bytes | list[bytes]] = field(default_factory=dict)
    on_session: Callable[[SecureSession], None] | None = None
    heard: list[bytes] = field(default_factory=list)
    secure: list[bool] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    sessions: list[SecureSession] = field(default_factory=list)
    connections: int = 0
    most: int = 0

    def buildProtocol(self, addr: object) -> SecureSession:
        return SecureSession(self)

    def reply(self, verb: bytes, default: bytes) -> bytes:
        reply = self.replies.get(verb, default)
        if isinstance(reply, list):
            return reply.pop(0) if reply else default
        return reply

    @property
    def verbs(self) -> list[bytes]:
        return [line.split(b" ")[0].upper() for line in self.heard]


class SecureSession(Protocol):
    def __init__(self, hop: SecureHop) -> None:
        self.hop = hop
        self.buffer = b""
        self.in_data = False
        self.is_secure = False

    def connectionMade(self) -> None:
        self.hop.connections += 1
        self.hop.sessions.append(self)
        self.hop.most = max(self.hop.most, len(self.hop.sessions))
        if self.hop.on_session is not None:
            self.hop.on_session(self)
        self.say(b"", b"220 hop\r\n")

    def connectionLost(self, reason: object = None) -> None:
        self.hop.sessions.remove(self)

    def say(self, verb: bytes, default: bytes) -> bytes:
        reply = self.hop.reply(verb, default)
        if reply == CLOSE:
            self.transport.abortConnection()
        else:
            self.transport.write(reply)
        return reply

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = b"\r\n.\r\n" if self.in_data else b"\r\n"
            head, found, rest = self.buffer.partition(end)
            if not found:
                return
            self.buffer = rest
            if self.in_data:
                self.in_data = False
                self.hop.messages.append(head + b"\r\n")
                self.say(b".", b"250 2.0.0 ok\r\n")
            else:
                self.command(head)

    def command(self, line: bytes) -> None:
        verb = line.split(b" ")[0].upper()
        self.hop.heard.append(line)
        self.hop.secure.append(self.is_secure)
        offers = [b"hop", *self.hop.offers]
        if self.hop.tls is not None and not self.is_secure:
            offers.append(b"STARTTLS")
        hello = b"".join(b"250-%s\r\n" % each for each in offers[:-1]) + b"250 %s\r\n" % offers[-1]
        default = {
            b"EHLO": hello,
            b"DATA": b"354 go\r\n",
            b"QUIT": b"221 bye\r\n",
            b"STARTTLS": b"220 go\r\n",
            b"AUTH": b"235 2.7.0 ok\r\n",
        }.get(verb, b"250 ok\r\n")
        reply = self.say(verb, default)
        if verb == b"STARTTLS" and reply.startswith(b"220") and self.hop.tls is not None:
            self.is_secure = True
            self.transport.startTLS(self.hop.tls)
        self.in_data = verb == b"DATA" and reply.startswith(b"354")
        if verb == b"QUIT":
            self.transport.loseConnection()


class Harbour:
    """Where hops listen as long as a test lasts."""

    def __init__(self) -> None:
        self._ports: list[Any] = []
        self._closed: list[socket.socket] = []

    async def listen(self, hop: Factory, address: str = "127.0.0.1", port: int = 0) -> int:
        endpoint = TCP6ServerEndpoint if ":" in address else TCP4ServerEndpoint
        listening = await endpoint(reactor, port, interface=address).listen(hop)
        self._ports.append(listening)
        return int(listening.getHost().port)

    async def listen_at_one_port(self, hops: Mapping[str, Factory]) -> int:
        """A port at which each of these addresses has its own hop.

        A port that is free at one address may be taken at the next: then another one is looked for.
        """
        (first, hop), *others = hops.items()
        for _ in range(_TRIES):
            port = await self.listen(hop, first)
            opened = 1
            try:
                for address, other in others:
                    await self.listen(other, address, port)
                    opened += 1
            except CannotListenError:
                for _ in range(opened):
                    await maybeDeferred(self._ports.pop().stopListening)
            else:
                return port
        raise AssertionError("no port is free at all of these addresses")

    def closed_port(self) -> int:
        """A port without a listener. It is bound, so that nothing else gets it meanwhile."""
        closed = socket.socket()
        self._closed.append(closed)
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])

    async def listen_unix(self, hop: Factory, path: Path) -> str:
        self._ports.append(await UNIXServerEndpoint(reactor, str(path)).listen(hop))
        return str(path)

    async def close(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for closed in self._closed:
            closed.close()
