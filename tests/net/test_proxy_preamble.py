"""What stands before a session where a load balancer speaks first, with a clock that stands still."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from twisted.logger import LogEvent

from elemta.config import ListenerTLS
from elemta.net.factory import RefusalProtocol
from elemta.net.protocol import ESMTPProtocol
from elemta.net.proxy import ProxyPreamble
from elemta.net.timeouts import PROXY_HEADER_SECONDS
from tests.net.conftest import Client, Place

HEADER = b"PROXY TCP4 203.0.113.9 198.51.100.1 1111 25\r\n"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


@pytest.fixture
def place(place: Place) -> Place:
    place.listener = replace(place.listener, proxy_protocol_from=(ip_network("192.0.2.0/24"),))
    return place


def session_of(client: Client) -> object:
    """The protocol that has the transport now."""
    return client.transport.protocol  # type: ignore[attr-defined]


def test_nothing_is_said_before_the_header_and_the_session_is_the_clients(place: Place) -> None:
    client = place.connect()
    assert isinstance(client.protocol, ProxyPreamble)
    assert client.said() == []
    assert client.send(HEADER) == ["220 mx.test ESMTP Elemta"]
    session = session_of(client)
    assert isinstance(session, ESMTPProtocol)
    assert str(session.facts.client_ip) == "203.0.113.9"
    # Where the client connected, which is the load balancer.
    assert (str(session.facts.server_ip), session.facts.server_port) == ("198.51.100.1", 25)
    assert session.facts.hostname == "mx.test"
    assert list(place.registry.connections) == [session]
    client.protocol = session


def test_a_header_that_does_not_come_is_waited_for_five_seconds(place: Place) -> None:
    client = place.connect()
    place.pass_time(PROXY_HEADER_SECONDS - 1)
    client.send(HEADER[:-1])
    assert not client.transport.aborted
    place.pass_time(1)
    assert client.transport.aborted
    assert client.said() == []
    client.protocol.connectionLost()
    assert not place.registry.connections


def test_who_waits_for_a_header_takes_a_place(place: Place) -> None:
    place.registry.max_connections = 1
    waiting = place.connect()
    assert isinstance(place.connect().protocol, RefusalProtocol)
    waiting.protocol.connectionLost()
    assert isinstance(place.connect().protocol, ProxyPreamble)


def test_a_header_that_comes_during_a_drain_is_answered_by_421(place: Place) -> None:
    client = place.connect()
    late = place.connect()
    place.registry.drain()
    assert client.send(HEADER) == ["421 4.3.2 Service shutting down, try again later"]
    place.pass_time(1)
    assert late.transport.aborted


def test_bad_octets_are_logged_without_being_repeated(place: Place, events: list[LogEvent]) -> None:
    client = place.connect()
    assert client.send(b"PROXY TCP4 evil evil evil evil\r\n") == []
    assert client.transport.disconnecting
    assert client.send(HEADER) == []
    (record,) = [event for event in events if event.get("event") == "proxy.refused"]
    assert "evil" not in str(record["reason"])
    assert record["peer"] == "192.0.2.1"


def test_a_balancers_own_check_is_asked_about_nobody(place: Place) -> None:
    client = place.connect()
    said = client.send(LOCAL)
    assert said == ["220 mx.test ESMTP Elemta"]
    assert place.policy.asked == []
    client.protocol = session_of(client)
    assert client.send(b"EHLO check.test\r\n")[0].startswith("250")
    assert client.send(b"QUIT\r\n") == ["221 2.0.0 mx.test closing connection"]
    assert place.policy.asked == []
    client.lose()
    assert place.policy.told == []
    assert (place.counted.checks, place.counted.answered) == (["mx"], [])


def test_a_balancers_own_check_hears_of_a_drain_and_is_nobodys_refused_connection(
    place: Place, events: list[LogEvent]
) -> None:
    place.registry.drain()
    assert place.connect().send(LOCAL) == ["421 4.3.2 Service shutting down, try again later"]
    assert (place.counted.checks, place.counted.refused) == (["mx"], [])
    assert [event.get("event") for event in events] == []


def test_behind_a_balancer_stalled_handshakes_are_counted_by_client(place: Place) -> None:
    place.listener = replace(place.listener, tls=ListenerTLS.IMPLICIT)
    place.registry.max_connections_per_ip = 1
    first, second, other = (place.connect() for _ in range(3))
    first.send(HEADER)
    second.send(HEADER)
    other.send(HEADER.replace(b"113.9", b"113.8"))
    assert isinstance(session_of(first), ESMTPProtocol)
    assert isinstance(session_of(second), RefusalProtocol)
    assert isinstance(session_of(other), ESMTPProtocol)
    for client in (first, other):
        client.protocol = session_of(client)
