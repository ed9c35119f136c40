"""What a next hop refuses for the way of sending is sent in another way, in the same attempt, over real
sockets; and what was seen of it is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred

from elemta.address import Address
from elemta.config import AddressFamily, RouteTLS
from elemta.delivery.connection_terms import ConnectionTerms, read_authorities
from elemta.delivery.connections import Connections
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.settings import DeliverySettings
from elemta.envelope import MailParameters
from elemta.errors import ConfigError
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientTimeouts
from elemta.smtp.client_commands import Features
from tests.support.certificates import make_certificate
from tests.support.hops import CLOSE, Harbour, Secured, SecureHop, message, open_content, reactor, read

SETTINGS = DeliverySettings(
    "me.example", connect_timeout=5.0, head_start=1.0, deadlines=ClientTimeouts(hello=0.3)
)
FOUR, SIX = ip_address("127.0.0.1"), ip_address("::1")
DELIVERED, DEFERRED, FAILED = Status.DELIVERED, Status.DEFERRED, Status.FAILED
NAME = "mx.example.test"


class Quay(Harbour):
    """Connections and where they lead: to one host at one port, by IPv4 and perhaps by IPv6."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = Connections(reactor, SETTINGS, read, DeliveryMetrics())

    async def send(
        self, port: int, *recipients: str, addresses: tuple[Any, ...] = (FOUR,), **terms: Any
    ) -> list[Status]:
        return [
            outcome.status for outcome in await self.outcomes(port, *recipients, addresses=addresses, **terms)
        ]

    async def outcomes(
        self, port: int, *recipients: str, addresses: tuple[Any, ...] = (FOUR,), **terms: Any
    ) -> tuple[Outcome, ...]:
        hop = NextHop("example.com", (Candidate(NAME, port, addresses),), tls=RouteTLS.NONE, route="r")
        return await self.connections.send(replace(hop, **terms), message(*recipients), open_content)


@pytest_twisted.async_yield_fixture
async def quay(tmp_path: Path) -> AsyncIterator[Quay]:
    """Its sockets end before ``tmp_path`` does, where some of them are."""
    quay = Quay()
    yield quay
    await quay.connections.stop()
    await quay.close()


# BDAT


@pytest.mark.parametrize("reply", [b"500 what\r\n", b"502 5.5.1 no\r\n", b"503 5.5.1 no\r\n"])
@ensureDeferred
async def test_where_bdat_is_offered_and_not_known_the_message_goes_by_data_in_the_same_attempt(
    quay: Quay, reply: bytes
) -> None:
    hop = SecureHop(offers=(b"CHUNKING",), replies={b"BDAT": reply})
    port = await quay.listen(hop)
    assert await quay.send(port, "ann", "bob") == [DELIVERED, DELIVERED]
    assert (len(hop.messages), hop.connections) == (1, 2)
    # It is remembered: the next message goes by DATA at once.
    quay.connections.pool.drain()
    assert await quay.send(port) == [DELIVERED]
    assert (len(hop.messages), hop.verbs.count(b"BDAT")) == (2, 1)


@pytest.mark.parametrize("end", [CLOSE, b"451 4.3.0 no\r\n", b"421 4.3.0 bye\r\n", b"550 5.7.1 no\r\n"])
@ensureDeferred
async def test_behind_the_end_of_a_message_nothing_is_tried_again(quay: Quay, end: bytes) -> None:
    hop = SecureHop(replies={b".": end})
    port = await quay.listen(hop)
    assert await quay.send(port) == [FAILED if end[:1] == b"5" else DEFERRED]
    assert (len(hop.messages), hop.connections) == (1, 1)


@ensureDeferred
async def test_where_data_is_refused_too_that_counts(quay: Quay) -> None:
    hop = SecureHop(offers=(b"CHUNKING",), replies={b"BDAT": b"500 what\r\n", b"DATA": b"554 5.7.1 no\r\n"})
    assert await quay.send(await quay.listen(hop)) == [FAILED]
    assert hop.connections == 2


@ensureDeferred
async def test_a_host_that_is_gone_before_it_was_tried_by_data_leaves_the_message_deferred(
    quay: Quay,
) -> None:
    hello = [b"250-hop\r\n250 CHUNKING\r\n", b"421 4.3.2 busy\r\n"]
    hop = SecureHop(replies={b"BDAT": b"500 what\r\n", b"EHLO": hello})
    assert await quay.send(await quay.listen(hop)) == [DEFERRED]
    assert hop.messages == []


@ensureDeferred
async def test_over_a_unix_socket_too(quay: Quay, tmp_path: Path) -> None:
    hop = SecureHop(offers=(b"CHUNKING",), replies={b"BDAT": b"502 what\r\n"})
    path = await quay.listen_unix(hop, tmp_path / "s")
    sent = await quay.connections.send(NextHop("s", path=path, route="r"), message(), open_content)
    assert [outcome.status for outcome in sent] == [DELIVERED]


@ensureDeferred
async def test_another_way_over_ipv6_says_nothing_about_ipv4(quay: Quay) -> None:
    six = SecureHop(offers=(b"CHUNKING",), replies={b"BDAT": b"502 what\r\n"})
    port = await both(quay, six, four := SecureHop())
    assert await quay.send(port, addresses=(SIX, FOUR)) == [DELIVERED]
    quay.connections.pool.drain()
    assert await quay.send(port, addresses=(SIX, FOUR)) == [DELIVERED]
    assert (six.connections, four.connections) == (3, 0)


@ensureDeferred
async def test_without_bdat_and_then_by_ipv4(quay: Quay) -> None:
    six = SecureHop(
        offers=(b"CHUNKING",), replies={b"BDAT": b"502 what\r\n", b"DATA": b"550 5.7.25 no PTR record\r\n"}
    )
    port = await both(quay, six, four := SecureHop())
    assert await quay.send(port, "ann", "bob", addresses=(SIX, FOUR)) == [DELIVERED, DELIVERED]
    assert (six.connections, four.connections, len(four.messages)) == (2, 1, 1)


# Parameters and keywords


@ensureDeferred
async def test_a_parameter_that_was_refused_is_not_sent_to_that_host_again(quay: Quay) -> None:
    hop = SecureHop(offers=(b"SIZE 1000",), replies={b"MAIL": [b"555 5.5.4 SIZE?\r\n", b"250 ok\r\n"]})
    port = await quay.listen(hop)
    assert await quay.send(port) == [DELIVERED]
    quay.connections.pool.drain()
    assert await quay.send(port) == [DELIVERED]
    assert [line for line in hop.heard if line.startswith(b"MAIL")] == [
        b"MAIL FROM:<a@b.example> SIZE=22",
        b"MAIL FROM:<a@b.example>",
        b"MAIL FROM:<a@b.example>",
    ]
    quay.connections.reconfigure(SETTINGS)
    assert await quay.send(port) == [DELIVERED]
    assert b"MAIL FROM:<a@b.example> SIZE=22" in hop.heard[-4:]


@ensureDeferred
async def test_offers_that_the_route_ignores_are_not_used(quay: Quay) -> None:
    hop = SecureHop(offers=(b"SIZE 1000", b"CHUNKING", b"STARTTLS"))
    terms = ConnectionTerms(ignored=frozenset({"SIZE", "CHUNKING", "STARTTLS"}))
    assert await quay.send(await quay.listen(hop), terms=terms, tls=RouteTLS.MAY) == [DELIVERED]
    assert hop.verbs[:4] == [b"EHLO", b"MAIL", b"RCPT", b"DATA"]
    assert b"MAIL FROM:<a@b.example>" in hop.heard


# STARTTLS


@pytest.mark.parametrize(
    ("reply", "connections"),
    [
        (b"454 4.7.0 not now\r\n", 1),
        (b"502 5.5.1 what\r\n", 1),
        (b"571 5.7.1 no\r\n", 1),
        (b"421 4.7.0 bye\r\n", 2),
        (CLOSE, 2),
        (b"", 2),
        (b"what?\r\n", 2),
    ],
)
@ensureDeferred
async def test_a_host_that_refuses_its_own_starttls_gets_the_message_in_the_clear(
    quay: Quay, reply: bytes, connections: int
) -> None:
    hop = SecureHop(offers=(b"STARTTLS",), replies={b"STARTTLS": reply})
    port = await quay.listen(hop)
    assert await quay.send(port, tls=RouteTLS.MAY) == [DELIVERED]
    assert hop.connections == connections
    # It is not asked again for a while.
    quay.connections.pool.drain()
    assert await quay.send(port, tls=RouteTLS.MAY) == [DELIVERED]
    assert hop.verbs.count(b"STARTTLS") == 1
    # Where TLS is required it is asked, and gets nothing.
    assert await quay.send(port, tls=RouteTLS.REQUIRE) == [DEFERRED]
    assert len(hop.messages) == 2


# Recipients


@ensureDeferred
async def test_the_number_of_recipients_that_a_host_takes_is_remembered(quay: Quay) -> None:
    people = [f"r{number}" for number in range(6)]
    replies = [b"250 ok\r\n"] * 2 + [b"452 4.5.3 too many\r\n"] * 4
    hop = SecureHop(offers=(b"PIPELINING",), replies={b"RCPT": replies})
    port = await quay.listen(hop)
    assert await quay.send(port, *people) == [DELIVERED] * 6
    assert (len(hop.messages), hop.connections) == (3, 1)
    quay.connections.pool.drain()
    assert await quay.send(port, *people) == [DELIVERED] * 6
    assert (len(hop.messages), hop.verbs.count(b"RCPT")) == (6, 16)


# IPv6, then IPv4


async def both(quay: Quay, six: SecureHop, four: SecureHop) -> int:
    """A port at which one listens by IPv6 and the other by IPv4."""
    return await quay.listen_at_one_port({"127.0.0.1": four, "::1": six})


@pytest.mark.parametrize("verb", [b"MAIL", b"RCPT", b"DATA", b"."])
@ensureDeferred
async def test_what_is_refused_by_policy_over_ipv6_goes_by_ipv4(quay: Quay, verb: bytes) -> None:
    six = SecureHop(replies={verb: b"550-5.7.1 no PTR record\r\n550 5.7.1 for this address\r\n"})
    port = await both(quay, six, four := SecureHop())
    sent = await quay.outcomes(port, addresses=(SIX, FOUR))
    assert [outcome.status for outcome in sent] == [DELIVERED]
    assert "127.0.0.1" in sent[0].next_hop
    assert (six.connections, four.connections, len(four.messages)) == (1, 1, 1)
    # The next one goes there at once.
    quay.connections.pool.drain()
    assert await quay.send(port, addresses=(SIX, FOUR)) == [DELIVERED]
    assert (six.connections, four.connections) == (1, 2)


@ensureDeferred
async def test_only_those_that_were_refused_go_by_ipv4(quay: Quay) -> None:
    six = SecureHop(replies={b"RCPT": [b"250 ok\r\n", b"550 5.7.26 no\r\n", b"550 5.1.1 unknown\r\n"]})
    port = await both(quay, six, four := SecureHop())
    sent = await quay.outcomes(port, "ann", "bob", "cat", addresses=(SIX, FOUR))
    assert [outcome.status for outcome in sent] == [DELIVERED, DELIVERED, FAILED]
    assert [b"bob" in line for line in four.heard if line.startswith(b"RCPT")] == [True]
    assert ["127.0.0.1" in outcome.next_hop for outcome in sent] == [False, True, False]


@pytest.mark.parametrize(
    ("reply", "addresses", "family"),
    [
        (b"550 5.1.1 unknown\r\n", (SIX, FOUR), AddressFamily.ANY),
        (b"550 no\r\n", (SIX, FOUR), AddressFamily.ANY),
        (b"450 4.7.1 later\r\n", (SIX, FOUR), AddressFamily.ANY),
        (b"550 5.7.1 no\r\n", (SIX,), AddressFamily.ANY),
        (b"550 5.7.1 no\r\n", (SIX, FOUR), AddressFamily.IPV6),
    ],
)
@ensureDeferred
async def test_another_refusal_or_a_host_without_ipv4_is_asked_once(
    quay: Quay, reply: bytes, addresses: tuple[Any, ...], family: AddressFamily
) -> None:
    port = await both(quay, SecureHop(replies={b"RCPT": reply}), four := SecureHop())
    terms = ConnectionTerms(family=family)
    status = FAILED if reply.startswith(b"5") else DEFERRED
    assert await quay.send(port, addresses=addresses, terms=terms) == [status]
    assert four.connections == 0


@ensureDeferred
async def test_a_refusal_over_ipv6_stands_where_ipv4_refuses_too_or_is_not_there(quay: Quay) -> None:
    refusal = {b"RCPT": b"550 5.7.1 no\r\n"}
    port = await both(quay, SecureHop(replies=refusal), SecureHop(replies=refusal))
    assert await quay.send(port, addresses=(SIX, FOUR)) == [FAILED]
    port = await quay.listen(SecureHop(replies=refusal), "::1")
    assert await quay.send(port, addresses=(SIX, FOUR)) == [FAILED]
    busy = SecureHop(replies={b"": b"421 4.3.2 busy\r\n"})
    port = await both(quay, SecureHop(replies=refusal), busy)
    assert await quay.send(port, addresses=(SIX, FOUR)) == [DEFERRED]


# Which addresses


@pytest.mark.parametrize(
    ("family", "first"),
    [
        (AddressFamily.ANY, 6),
        (AddressFamily.PREFER_IPV4, 4),
        (AddressFamily.IPV4, 4),
        (AddressFamily.IPV6, 6),
    ],
)
@ensureDeferred
async def test_the_family_of_a_route_is_used(quay: Quay, family: AddressFamily, first: int) -> None:
    port = await both(quay, six := SecureHop(), four := SecureHop())
    terms = ConnectionTerms(family=family)
    assert await quay.send(port, addresses=(SIX, FOUR), terms=terms) == [DELIVERED]
    assert (six.connections, four.connections) == ((1, 0) if first == 6 else (0, 1))


@pytest.mark.parametrize(("family", "only"), [(AddressFamily.IPV4, SIX), (AddressFamily.IPV6, FOUR)])
@ensureDeferred
async def test_no_address_of_another_family_is_used(quay: Quay, family: AddressFamily, only: Any) -> None:
    port = await both(quay, six := SecureHop(), four := SecureHop())
    sent = await quay.outcomes(port, addresses=(only,), terms=ConnectionTerms(family=family))
    assert (sent[0].status, sent[0].enhanced) == (DEFERRED, "4.4.1")
    assert f'address_family = "{family}"' in sent[0].text
    assert (six.connections, four.connections) == (0, 0)


@ensureDeferred
async def test_a_connection_comes_from_the_source_of_its_family(quay: Quay) -> None:
    peers: list[str] = []
    hop = SecureHop(on_session=lambda session: peers.append(session.transport.getPeer().host))
    port = await both(quay, hop, hop)
    terms = ConnectionTerms(source=(ip_address("127.0.0.9"),))
    assert await quay.send(port, terms=terms) == [DELIVERED]
    quay.connections.pool.drain()
    assert await quay.send(port, addresses=(SIX,), terms=terms) == [DELIVERED]
    assert peers == ["127.0.0.9", "::1"]
    # Another source is another connection.
    assert await quay.send(port) == [DELIVERED]
    assert peers[2:] == ["127.0.0.1"]


# Twisted leaves the socket that it could not bind to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ensureDeferred
async def test_a_source_that_is_no_address_of_this_host_defers_and_says_so(quay: Quay) -> None:
    port = await quay.listen(hop := SecureHop())
    terms = ConnectionTerms(source=(ip_address("192.0.2.7"),))
    sent = await quay.outcomes(port, terms=terms)
    assert (sent[0].status, sent[0].enhanced) == (DEFERRED, "4.4.1")
    assert "bind" in sent[0].text
    assert hop.connections == 0


# TLS from the first byte, and authorities


class ImplicitHop(SecureHop):
    """TLS from the first byte."""

    def buildProtocol(self, addr: object) -> Any:
        session = super().buildProtocol(addr)
        connected = session.connectionMade

        def begin() -> None:
            session.transport.startTLS(self.tls)
            session.is_secure = True
            connected()

        session.connectionMade = begin
        return session


def trusting(path: Path) -> ConnectionTerms:
    return ConnectionTerms(authorities=read_authorities(str(path), "route[1].ca"))


@pytest.mark.parametrize("tls", [RouteTLS.IMPLICIT, RouteTLS.REQUIRE])
@ensureDeferred
async def test_a_route_trusts_the_authorities_of_its_file_and_no_others(
    quay: Quay, tmp_path: Path, tls: RouteTLS
) -> None:
    files = make_certificate(tmp_path, NAME)
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", NAME)
    hop = (ImplicitHop if tls is RouteTLS.IMPLICIT else SecureHop)(tls=Secured(files))
    port = await quay.listen(hop)
    assert await quay.send(port, tls=tls, terms=trusting(files.certificate)) == [DELIVERED]
    assert hop.secure[-1]
    for terms in (trusting(other.certificate), ConnectionTerms()):
        sent = await quay.outcomes(port, tls=tls, terms=terms)
        assert (sent[0].status, sent[0].enhanced) == (DEFERRED, "4.7.5")
    assert len(hop.messages) == 1


@ensureDeferred
async def test_with_implicit_tls_the_certificate_has_to_be_that_of_the_host(
    quay: Quay, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path, "another.example.test")
    hop = ImplicitHop(tls=Secured(files))
    terms = trusting(files.certificate)
    assert await quay.send(await quay.listen(hop), tls=RouteTLS.IMPLICIT, terms=terms) == [DEFERRED]
    assert hop.heard == []


@ensureDeferred
async def test_with_implicit_tls_a_server_that_speaks_in_the_clear_gets_nothing(quay: Quay) -> None:
    hop = SecureHop()
    sent = await quay.outcomes(await quay.listen(hop), tls=RouteTLS.IMPLICIT)
    assert sent[0].status is DEFERRED
    assert b"MAIL" not in hop.verbs
    assert hop.messages == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "has no certificate in PEM"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "its certificate 1 can't be read",
        ),
        (b"x" * (4 * 1024 * 1024 + 1), "is longer than 4194304 octets"),
    ],
)
def test_a_file_without_authorities_is_a_fault(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_authorities(str(path), "route[1].ca")
    (fault,) = raised.value.faults
    assert (fault.place, fault.key, fault.problem) == (str(path), "route[1].ca", problem)


# What is remembered


def test_what_was_seen_of_a_place_is_forgotten_after_a_while() -> None:
    now = [100.0]
    memory = HopMemory(lambda: now[0], 60.0)
    place, other = ("mx", 25), ("mx", 587)
    memory.refuses(place, "CHUNKING")
    memory.refuses(place, "SIZE")
    memory.takes_recipients(place, 10)
    memory.took_by_ipv4(place)
    memory.offers(place, Features())
    memory.offers(other, Features({"SMTPUTF8": ""}))
    assert memory.refused(place) == {"CHUNKING", "SIZE"}
    assert (memory.most_recipients(place), memory.prefers_ipv4(place)) == (10, True)
    assert (memory.lacks_smtputf8(place), memory.lacks_smtputf8(other)) == (True, False)
    assert (memory.refused(other), memory.most_recipients(other)) == (frozenset(), 0)
    now[0] = 161.0
    assert memory.refused(place) == frozenset()
    assert (memory.most_recipients(place), memory.prefers_ipv4(place)) == (0, False)
    assert not memory.lacks_smtputf8(place)


def test_what_is_remembered_is_bounded() -> None:
    memory = HopMemory(lambda: 0.0, 60.0)
    for number in range(5000):
        place = (f"mx{number}", 25)
        memory.refuses(place, "SIZE")
        memory.takes_recipients(place, 1)
        memory.took_by_ipv4(place)
        memory.offers(place, Features())
    assert all(len(each) == 4096 for each in memory._all)
    assert memory.refused(("mx4999", 25)) == {"SIZE"}


# SMTPUTF8


@ensureDeferred
async def test_an_address_that_a_host_cannot_take_fails_and_the_others_are_delivered(quay: Quay) -> None:
    hop = SecureHop(offers=(b"8BITMIME",))
    port = await quay.listen(hop)
    transaction = message("ann", "jösé")
    transaction = replace(transaction, parameters=MailParameters(smtputf8=True), utf8_header=True)
    candidate = Candidate(NAME, port, (FOUR,))
    sent = await quay.connections.send(
        NextHop("h", (candidate,), tls=RouteTLS.NONE, route="r"), transaction, open_content
    )
    assert [(each.status, each.enhanced) for each in sent] == [(DELIVERED, "2.0.0"), (FAILED, "5.6.7")]
    assert b"MAIL FROM:<a@b.example> BODY=8BITMIME" in hop.heard
    assert Address("jösé", "example.com") == sent[1].recipient
