"""Sessions on transports of memory, with a clock that stands still, real policies and a real spool."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel
from zope.interface import implementer

from elemta.auth.authenticator import Authenticator
from elemta.config import ListenerConfig, ListenerTLS, OnError, PolicyCommon, ServerConfig, TLSConfig
from elemta.delivery.routes import RouteTable
from elemta.domains import Domains
from elemta.limits import Limiter, LocalStore
from elemta.metrics import NetMetrics
from elemta.net.context import ListenerContext
from elemta.net.factory import ESMTPFactory
from elemta.net.protocol import ESMTPProtocol
from elemta.net.registry import ConnectionRegistry
from elemta.net.submission import SubmissionRules
from elemta.net.tls import ServerCertificate, load_context
from elemta.policy import (
    CONTINUE,
    IConnectPolicy,
    IDataPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IRcptPolicy,
    LoadedPolicy,
    PolicyChain,
)
from elemta.policy.relay_permission import RelayPermission
from elemta.runtime import Runtime
from elemta.smtp.session import SessionSettings
from elemta.smtp.settings import ORDINARY_RECIPIENT
from elemta.spool import Spool
from tests.spool.conftest import counted, open_spool
from tests.spool.mail import FailingDisk
from tests.support.certificates import make_certificate
from tests.support.metrics import record

__all__ = ["counted", "open_spool"]

MESSAGE = b"Subject: x\r\n\r\nx\r\n.\r\n"
#: A KiB of whole lines.
BLOCK = b"0123456789abcdef" * 63 + b"01234567890123\r\n"


def errors(events: Sequence[LogEvent]) -> list[LogEvent]:
    """What would wake an operator at night."""
    return [event for event in events if event.get("log_level") in (LogLevel.error, LogLevel.critical)]


@implementer(
    IConnectPolicy, IHeloPolicy, IMailPolicy, IRcptPolicy, IDataPolicy, IMessagePolicy, IOutcomeObserver
)
class Scripted:
    """A policy that answers what :attr:`answers` has for a stage; a function is called for its answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.told: list[str] = []

    def _answer(self, stage: str) -> Any:
        self.asked.append(stage)
        answer = self.answers.get(stage, CONTINUE)
        return answer() if callable(answer) else answer

    def connected(self, session: Any) -> Any:
        return self._answer("connect")

    def helo(self, session: Any) -> Any:
        return self._answer("helo")

    def mail(self, session: Any, transaction: Any) -> Any:
        return self._answer("mail")

    def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        return self._answer("rcpt")

    def data(self, session: Any, transaction: Any) -> Any:
        return self._answer("data")

    def message(self, session: Any, transaction: Any, message: Any) -> Any:
        return self._answer("message")

    def committed(self, session: Any, transaction: Any) -> None:
        self.told.append("committed")

    def refused(self, session: Any, transaction: Any) -> None:
        self.told.append("refused")

    def disconnected(self, session: Any) -> None:
        self.told.append("disconnected")


class Handle:
    """What OpenSSL would say of a handshake that is done."""

    def get_servername(self) -> bytes | None:
        return None

    def get_protocol_version_name(self) -> str:
        return "TLSv1.3"

    def get_cipher_name(self) -> str:
        return "TLS_AES_256_GCM_SHA384"


class Transport(StringTransport):
    """A connection whose TLS is a flag, and whose reading may be paused and resumed at any time."""

    def __init__(self) -> None:
        super().__init__(lenient=True)
        self.tls = False
        self.half_closed = False
        self.aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def startTLS(self, creator: object) -> None:
        self.tls = True

    def getHandle(self) -> Handle:
        return Handle()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Counted(NetMetrics):
    """Keeps what sessions count, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.handshakes = record(self, "tls_connections")
        self.refused = record(self, "connections_refused")
        self.answered = record(self, "replies")
        self.checks = record(self, "health_checks")
        self.ended = record(self, "session_duration")


class Client:
    """The other end of one connection."""

    def __init__(self, protocol: Any, transport: Transport) -> None:
        self.protocol = protocol
        self.transport = transport

    def send(self, data: bytes) -> list[str]:
        """Send, and give the replies that come at once."""
        self.protocol.dataReceived(data)
        return self.said()

    def said(self) -> list[str]:
        """The lines since the last call."""
        text = self.transport.value().decode("ascii")
        self.transport.clear()
        return text.splitlines()

    def handshake(self) -> list[str]:
        assert self.transport.tls
        self.protocol.handshakeCompleted()
        return self.said()

    def lose(self) -> None:
        """The connection is gone, whichever side ended it."""
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self.transport.connected = False
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def envelope(self) -> list[str]:
        """Greeting, EHLO and an envelope up to 354."""
        self.said()
        self.send(b"EHLO client.test\r\n")
        return self.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n")


async def reply_of(client: Client) -> list[str]:
    """The next replies, which take turns of the reactor and threads of the disk."""
    from twisted.internet import reactor

    for _ in range(1000):
        said = client.said()
        if said:
            return said
        await deferLater(reactor, 0.005)
    raise AssertionError("no reply")


async def spooled(place: Place, message: bytes) -> bytes:
    """The message as it is stored after it was accepted."""
    client = place.connect()
    client.envelope()
    client.protocol.dataReceived(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    (reply,) = await reply_of(client)
    assert reply.startswith("250 "), reply
    with await place.spool.open_content(reply.split()[-1]) as content:
        return content.read()


class Place:
    """A connection registry with one listener."""

    def __init__(self, spool: Spool, certificate: ServerCertificate) -> None:
        self.clock = Clock()
        self.registry = ConnectionRegistry(Runtime.of(self.clock), 100)
        self.registry.closed_with = None
        self.policy = Scripted()
        self.policy_timeout = 5.0
        self.on_error = OnError.DEFER
        self.chain_is_empty = False
        self.spool = spool
        self.counted = Counted()
        self.metrics: NetMetrics = self.counted
        self.server = ServerConfig(
            hostname="mx.test", node_id="mx", command_timeout=300.0, data_timeout=600.0
        )
        self.listener = ListenerConfig(name="mx", endpoint="tcp:0")
        self.certificate = certificate
        self.clients: list[Client] = []
        self.submission: SubmissionRules | None = None

    @property
    def factory(self) -> ESMTPFactory:
        from twisted.internet import reactor

        factory = ESMTPFactory(self.registry, self.listener, self.metrics)
        common = PolicyCommon(timeout=self.policy_timeout, on_error=self.on_error)
        policies = [] if self.chain_is_empty else [LoadedPolicy("scripted", self.policy, common)]
        local = frozenset({"example.com", "example.net", "example.org", "example.test"})
        chain = PolicyChain(policies, self.clock, relay=RelayPermission(Domains(local)))
        factory.context = ListenerContext(
            listener=self.listener,
            server=self.server,
            session=SessionSettings(
                hostname="mx.test",
                max_message_size=64 * 1024 * 1024,
                max_recipients=100_000,
                max_envelope=100_000 * ORDINARY_RECIPIENT,
                normalize_newlines=False,
                starttls=self.listener.tls is ListenerTLS.STARTTLS,
                auth=False,
                auth_needs_tls=True,
                require_auth=False,
                postmaster_domain="example.test",
                implicit_tls=self.listener.tls is ListenerTLS.IMPLICIT,
                max_idle_commands=1_000_000,
                unasked=chain.unasked,
            ),
            chain=chain,
            limiter=Limiter((), LocalStore(self.clock)),
            authenticator=Authenticator((), Runtime.of(reactor)),  # type: ignore[arg-type]
            certificate=self.certificate,
            spool=self.spool,
            routes=RouteTable(()),
            metrics=self.metrics,
            now=lambda: 1_700_000_000.0,
            submission=self.submission,
        )
        return factory

    def connect(self, ip: str = "192.0.2.1", *, factory: ESMTPFactory | None = None) -> Client:
        from twisted.internet.address import IPv4Address, IPv6Address

        kind = IPv6Address if ":" in ip else IPv4Address
        assert ip_address(ip)
        protocol = (factory or self.factory).buildProtocol(kind("TCP", ip, 40000))
        transport = Transport()
        client = Client(protocol, transport)
        self.clients.append(client)
        assert protocol is not None
        protocol.makeConnection(transport)
        return client

    def pass_time(self, seconds: float) -> None:
        """Second by second, with a look at the deadlines after each."""
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.registry.check_deadlines()

    def close(self) -> None:
        for client in self.clients:
            if client.transport.connected and isinstance(client.protocol, ESMTPProtocol):
                client.lose()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    files = make_certificate(tmp_path_factory.mktemp("certificate"))
    context = load_context(TLSConfig(str(files.certificate), str(files.key)))
    assert context is not None
    return ServerCertificate(context)


class StuckDisk(FailingDisk):
    """A disk that writes and syncs bodies when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = threading.Event()
        self.syncs = threading.Event()
        self.writes.set()
        self.syncs.set()

    def write(self, descriptor: int, chunks: Sequence[bytes | bytearray]) -> None:
        self.writes.wait(10)
        super().write(descriptor, chunks)

    def sync_file(self, descriptor: int) -> None:
        self.syncs.wait(10)
        super().sync_file(descriptor)


@pytest.fixture
def disk() -> Iterator[StuckDisk]:
    """The disk below the spool."""
    stuck = StuckDisk()
    yield stuck
    stuck.writes.set()
    stuck.syncs.set()


@pytest.fixture
def place(certificate: ServerCertificate, open_spool: Any, disk: StuckDisk) -> Iterator[Place]:
    """A registry with one listener over a real spool; what of its connections is left ends with the test."""
    spool = pytest_twisted.blockon(Deferred.fromCoroutine(open_spool(disk=disk)))
    made = Place(spool, certificate)
    yield made
    made.close()
