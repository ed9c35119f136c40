"""What sessions hold in memory is counted as Python takes it, and bounded, however a client sends it."""

from __future__ import annotations

import gc
import socket
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from elemta.config import ListenerTLS
from elemta.metrics import NetMetrics
from elemta.net.input_flow import MOST_WAITING_INPUT, READ_COMMANDS, READ_COMMANDS_BY_TLS
from elemta.net.proxy import ProxyPreamble
from elemta.policy import CONTINUE
from elemta.smtp.memory import SMALL_ENVELOPE, SessionMemory
from tests.net.conftest import Client, Place
from tests.support.metrics import record
from tests.support.waiting import until

KIB = 1024
SESSIONS = 10
#: Python's overallocation of a bytearray is an eighth; a little is for the objects themselves.
MOST_INPUT = (MOST_WAITING_INPUT + READ_COMMANDS) * 9 // 8 + 512
#: A transport that is just not full, and a batch of replies on top, each with a reply more than it should.
MOST_REPLIES = READ_COMMANDS + 8 * KIB + 2 * KIB

ENVELOPE = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@example.test>\r\n"


@pytest.fixture
def place(place: Place) -> Place:
    """One whose metrics keep no list of what was counted."""
    place.metrics = NetMetrics()
    return place


@dataclass
class Traced:
    """Octets that Python took while something went on."""

    octets: int = 0


@contextmanager
def traced() -> Iterator[Traced]:
    found = Traced()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield found
        gc.collect()
        found.octets = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def in_pieces(octets: int) -> Callable[[bytes], Iterator[bytes]]:
    def cut(data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), octets):
            yield data[at : at + octets]

    return cut


def waiting(place: Place) -> list[Client]:
    """Sessions whose RCPT is with a policy."""
    clients = []
    for _ in range(SESSIONS):
        client = place.connect()
        client.send(b"EHLO client.test\r\n" + ENVELOPE)
        clients.append(client)
    return clients


def feed(client: Client, pieces: Iterator[bytes]) -> None:
    """Send until nothing more is read."""
    for piece in pieces:
        if client.transport.producerState == "paused":
            return
        client.protocol.dataReceived(piece)


@pytest.mark.parametrize(
    ("octets", "data"),
    [
        pytest.param(1, b"NOOP\r\n" * 20_000, id="packets of 1 octet"),
        pytest.param(2, b"NOOP\r\n" * 20_000, id="packets of 2 octets"),
        pytest.param(7, b"RCPT TO:<x@example.test>\r\n" * 20_000, id="packets of 7 octets"),
        pytest.param(READ_COMMANDS, b"NOOP\r\n" * 20_000, id="pipelined commands"),
        pytest.param(3000, b"VRFY " + b"x" * 100_000, id="an endless line"),
    ],
)
def test_input_that_waits_is_counted_as_python_takes_it(place: Place, octets: int, data: bytes) -> None:
    place.policy.answers["rcpt"] = Deferred
    clients = waiting(place)
    idle = place.registry.memory.input
    pieces = list(in_pieces(octets)(data))
    with traced() as took:
        for client in clients:
            feed(client, iter(pieces))
    counted = place.registry.memory.input
    assert counted - idle > SESSIONS * MOST_WAITING_INPUT
    assert took.octets <= counted * 1.25
    assert counted <= SESSIONS * MOST_INPUT
    assert place.registry.waiting_input.taken == counted


def test_half_a_line_keeps_nothing_of_what_came_before_it(place: Place) -> None:
    clients = waiting(place)
    idle = place.registry.memory.input
    with traced() as took:
        for client in clients:
            client.send(b"NOOP\r\n" * 2_000 + b"NOOP half")
    counted = place.registry.memory.input
    assert counted - idle < SESSIONS * 100
    assert took.octets < SESSIONS * KIB
    for client in clients:
        assert client.send(b" of it\r\n") == ["250 2.0.0 OK"]


def test_a_line_that_comes_octet_by_octet_takes_what_it_is_long(place: Place) -> None:
    clients = waiting(place)
    pieces = list(in_pieces(1)(b"NOOP " + b"x" * 2_000))
    with traced() as took:
        for client in clients:
            feed(client, iter(pieces))
    assert took.octets <= place.registry.memory.input * 1.25
    assert place.registry.memory.input < SESSIONS * 3_000


def test_the_header_of_a_proxy_is_counted(place: Place) -> None:
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + (4096).to_bytes(2, "big") + b"x" * 4000
    preambles = []
    with traced() as took:
        for _ in range(SESSIONS):
            client = place.connect()
            client.protocol.connectionLost()
            preamble = ProxyPreamble(
                place.factory.session_for, place.registry, client.protocol.facts.client_ip, 1
            )
            preamble.makeConnection(client.transport)
            preambles.append(preamble)
            for piece in in_pieces(1)(header):
                preamble.dataReceived(piece)
    assert took.octets > SESSIONS * 4_000
    assert place.registry.memory.input == SESSIONS * (len(header) + 33)
    for preamble in preambles:
        preamble.connectionLost()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(["send", "half", "answer", "ask", "lose", "crowd", "read"])
        ),
        max_size=40,
    )
)
def test_whatever_happens_nothing_stays_counted(place: Place, steps: list[tuple[int, str]]) -> None:
    questions: list[Deferred[Any]] = []

    def ask() -> Deferred[Any]:
        questions.append(Deferred(lambda _: None))
        return questions[-1]

    place.policy.answers["rcpt"] = ask
    clients = [place.connect() for _ in range(4)]
    for number, step in steps:
        client = clients[number]
        if not client.transport.connected:
            continue
        if step == "send":
            client.send(b"NOOP\r\n" * 700)
        elif step == "half":
            client.send(b"NOO")
        elif step == "ask":
            client.send(b"\r\nEHLO c.test\r\n" + ENVELOPE)
        elif step == "answer" and questions and not questions[-1].called:
            questions.pop().callback(CONTINUE)
        elif step == "crowd":
            place.registry.waiting_input.limit = 0 if place.registry.waiting_input.limit else 10**9
        elif step == "read":
            client.protocol.pauseProducing()
            client.protocol.resumeProducing()
        elif step == "lose":
            client.lose()
    assert place.registry.waiting_input.taken >= 0
    for client in clients:
        if client.transport.connected:
            client.lose()
    assert place.registry.waiting_input.taken == 0
    assert place.registry.memory == SessionMemory()
    place.registry.waiting_input.limit = 10**9


def test_when_all_hold_much_a_session_that_waits_is_read_no_more(place: Place) -> None:
    place.policy.answers["rcpt"] = Deferred
    greedy, modest, busy = waiting(place)[:3]
    place.registry.waiting_input.limit = 2 * KIB
    modest.send(b"NOOP\r\n")
    assert modest.transport.producerState == "producing"
    greedy.send(b"NOOP\r\n" * 400)
    modest.send(b"NOOP\r\n")
    assert greedy.transport.producerState == modest.transport.producerState == "paused"
    # A line that is not whole yet waits for nothing here, and nor does one that is answered at once.
    busy.lose()
    place.policy.answers["rcpt"] = CONTINUE
    busy = place.connect()
    busy.said()
    busy.send(b"EHLO c.te")
    assert busy.transport.producerState == "producing"
    assert busy.send(b"st\r\n" + ENVELOPE)[-1] == "250 2.1.5 Recipient OK"
    greedy.lose()
    assert place.registry.waiting_input.taken < 2 * KIB


def test_a_client_that_does_not_read_gets_no_further_command_executed(place: Place) -> None:
    client = place.connect()
    client.said()
    client.protocol.pauseProducing()
    assert client.send(b"EHLO client.test\r\n" * 100) == []
    client.protocol.resumeProducing()
    assert len(client.said()) == 900


def test_replies_are_bounded_while_answers_come_late(place: Place) -> None:
    """Thirty octets of reply for one of a command: the input waits, not the output."""
    answers: list[Deferred[Any]] = []

    def late() -> Deferred[Any]:
        answers.append(Deferred())
        return answers[-1]

    client = place.connect()
    client.said()
    place.policy.answers["helo"] = late
    client.send(b"EHLO a\r\n" * 1000)
    client.protocol.pauseProducing()
    while answers:
        answers.pop().callback(CONTINUE)
    # The one that was asked about is answered; no other is asked about.
    assert len(client.said()) == 9
    client.protocol.resumeProducing()
    while answers:
        answers.pop().callback(CONTINUE)
    assert len(client.said()) == 999 * 9


class Listening:
    """A real socket for a place, with small buffers in the kernel."""

    def __init__(self, place: Place) -> None:
        from twisted.internet import reactor

        self.place = place
        self.reactor: Any = reactor
        # A clock of the test would do in this turn of the reactor what belongs into the next.
        place.registry.pause = lambda seconds: deferLater(reactor, seconds)  # type: ignore[method-assign]
        self.port = self.reactor.listenTCP(0, place.factory, interface="127.0.0.1")
        self.port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port.getHost().port))
        sock.setblocking(False)
        self.sockets.append(sock)
        return sock

    async def flood(self, data: bytes, seconds: float = 0.5) -> None:
        """Send on every connection what goes."""
        for _ in range(int(seconds / 0.01)):
            for sock in self.sockets:
                with suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    sock.send(data)
            await self.turn()

    async def turn(self) -> None:
        await deferLater(self.reactor, 0.01)

    async def start_tls(self) -> None:
        """The handshake of an implicit listener, on every connection."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        wrapped = [context.wrap_socket(sock, do_handshake_on_connect=False) for sock in self.sockets]
        for sock in wrapped:
            while True:
                with suppress(ssl.SSLWantReadError):
                    sock.do_handshake()
                    break
                await self.turn()
        self.sockets = list(wrapped)

    async def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        await self.port.stopListening()
        await until(lambda: not self.place.registry.connections)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("command", [b"NOOP\r\n", b"EHLO a\r\n", b"HELP\r\n"])
@ensureDeferred
async def test_unread_replies_are_counted_as_python_takes_them(
    place: Place, command: bytes, tls: bool
) -> None:
    if tls:
        place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    listening = Listening(place)
    for _ in range(SESSIONS):
        listening.connect()
    await until(lambda: len(place.registry.connections) == SESSIONS)
    if tls:
        await listening.start_tls()
    await deferLater(listening.reactor, 0.05)
    with traced() as took:
        # One command a packet, and then as many as go.
        await listening.flood(command, 0.3)
        await listening.flood(command * 2000, 1.0)
    memory = place.registry.memory
    await listening.close()
    assert memory.replies > SESSIONS * (READ_COMMANDS_BY_TLS if tls else READ_COMMANDS)
    # An idle session's objects are made before; what the reactor keeps for a reader or writer is not counted.
    assert took.octets <= (memory.replies + memory.input) * 1.25 + SESSIONS * KIB
    assert memory.replies <= SESSIONS * MOST_REPLIES
    assert memory.input <= SESSIONS * MOST_INPUT


def test_the_envelopes_of_a_place_share_its_budget_and_give_it_back(place: Place) -> None:
    told = record(place.metrics, "messages_deferred")
    place.registry.envelopes.limit = 40 * KIB
    clients = [place.connect() for _ in range(3)]
    for client in clients:
        client.said()
        client.send(b"EHLO client.test\r\n")
        said = client.send(ENVELOPE + b"RCPT TO:<b@example.test>\r\n" * 100)
        assert said[-1] == "452 4.3.1 Insufficient memory, try again later"
    assert set(told) == {("rcpt", "memory")}
    assert place.registry.memory.envelopes == place.registry.envelopes.taken <= 40 * KIB + 3 * SMALL_ENVELOPE
    clients[0].send(b"RSET\r\n")
    clients[1].send(b"QUIT\r\n")
    for client in clients:
        client.lose()
    assert place.registry.envelopes.taken == 0


def test_what_policies_add_to_an_envelope_is_counted(place: Place) -> None:
    class Adds(type(place.policy)):  # type: ignore[misc]
        def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
            transaction.add_header("X-Long", "x " * 1000)
            for number in range(10):
                transaction.add_recipient(f"more{number}@example.test")
            transaction.remove_recipient("more1@example.test")
            return CONTINUE

    place.policy = Adds()
    client = place.connect()
    client.said()
    client.send(b"EHLO client.test\r\n" + ENVELOPE)
    transaction = client.protocol._session.transaction
    assert len(transaction.recipients) == 10
    assert place.registry.envelopes.taken == transaction.memory.held > 2 * KIB + 2000 + 9 * 200
    client.lose()
    assert place.registry.envelopes.taken == 0
