"""Failed handshakes in the log: one record each, at a bounded rate, and none of them gets lost uncounted."""

from __future__ import annotations

from ipaddress import ip_address

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from elemta.net.handshake_log import HandshakeLog, reason_of
from elemta.smtp.session_info import SessionInfo


def session(ip: str) -> SessionInfo:
    return SessionInfo(id="s", client_ip=ip_address(ip), client_port=4711, listener="mx")


def failed(events: list[LogEvent]) -> list[LogEvent]:
    return [event for event in events if event.get("event") == "tls.handshake_failed"]


def test_reasons_are_openssls_own_words_or_who_ended_the_connection() -> None:
    error = SSL.Error([("SSL routines", "", "no shared cipher"), ("SSL routines", "", "again")])
    assert reason_of(Failure(error)) == "no shared cipher; again"
    assert reason_of(Failure(SSL.Error())) == "OpenSSL gives no reason"
    assert reason_of(Failure(SSL.Error([]))) == "OpenSSL gives no reason"
    assert reason_of(Failure(ConnectionDone())) == "the client closed the connection"
    assert "this server ended" in reason_of(Failure(ConnectionAborted()))


def test_one_client_gets_ten_records_at_once_and_then_one_in_six_seconds(events: list[LogEvent]) -> None:
    clock = Clock()
    log = HandshakeLog(clock.seconds)
    for _ in range(100):
        log.failed(session("192.0.2.1"), b"", Failure(ConnectionDone()))
    assert len(failed(events)) == 10
    log.failed(session("192.0.2.2"), b"", Failure(ConnectionDone()))
    assert len(failed(events)) == 11, "another client has its own"
    assert failed(events)[-1]["left_out"] == 90
    clock.advance(6.1)
    for _ in range(5):
        log.failed(session("192.0.2.1"), b"", Failure(ConnectionDone()))
    assert len(failed(events)) == 12
    assert "left_out" not in failed(events)[-1]


def test_an_ipv6_network_is_one_client(events: list[LogEvent]) -> None:
    log = HandshakeLog(Clock().seconds)
    for number in range(100):
        log.failed(session(f"2001:db8::{number:x}"), b"", Failure(ConnectionDone()))
    assert len(failed(events)) == 10


def test_a_flood_from_everywhere_is_five_records_a_second_and_the_others_are_counted(
    events: list[LogEvent],
) -> None:
    clock = Clock()
    log = HandshakeLog(clock.seconds)
    attempts = 0
    for second in range(60):
        for number in range(200):
            address = f"10.{second}.{number}.1"
            log.failed(session(address), b"", Failure(ConnectionDone()))
            attempts += 1
        clock.advance(1)
    written = failed(events)
    assert 100 + 59 * 5 - 2 <= len(written) <= 100 + 60 * 5
    clock.advance(10)
    log.failed(session("192.0.2.1"), b"", Failure(ConnectionDone()))
    assert len(written) + 1 + sum(event.get("left_out", 0) for event in failed(events)) == attempts + 1
