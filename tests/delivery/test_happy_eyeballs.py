"""Which address of a host is connected to: in memory, by a clock of the test's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from elemta.delivery.happy_eyeballs import HappyEyeballs, NextHopUnreachableError, alternating

SIX, SIX_B = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
FOUR, FOUR_B = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


class Course:
    """A race and the attempts to connect that it made."""

    def __init__(self, *addresses: Any) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.addresses = list(addresses)
        self.won: list[Any] = []
        self.lost: list[Failure] = []
        self.race = HappyEyeballs(
            self.reactor, self.addresses, 25, self._make, timeout=30.0, head_start=0.25
        ).run()
        self.race.addCallbacks(self.won.append, self.lost.append)

    def _make(self, address: Any) -> Any:
        protocol: Any = Protocol()
        protocol.address = address
        return protocol

    @property
    def tried(self) -> list[str]:
        return [client[0] for client in self.reactor.tcpClients]

    def connect(self, number: int) -> None:
        self.reactor.tcpClients[number][2].buildProtocol(None).connectionMade()

    def refuse(self, number: int) -> None:
        self.reactor.tcpClients[number][2].clientConnectionFailed(None, Failure(Refused("refused")))


def test_the_first_address_that_answers_in_its_head_start_is_the_only_one_tried() -> None:
    course = Course(SIX, FOUR)
    assert course.tried == ["2001:db8::1"]
    course.reactor.advance(0.2)
    course.connect(0)
    course.reactor.advance(60)
    assert course.tried == ["2001:db8::1"]
    assert course.won[0].address == SIX
    assert course.addresses == [FOUR]
    assert not course.reactor.getDelayedCalls()


def test_an_address_that_is_silent_loses_to_the_next_after_the_head_start() -> None:
    course = Course(SIX, FOUR)
    course.reactor.advance(0.3)
    assert course.tried == ["2001:db8::1", "192.0.2.1"]
    course.connect(1)
    assert course.won[0].address == FOUR
    # It was not tried to the end: it may serve when the winner has no use for us.
    assert course.addresses == [SIX]
    assert not course.reactor.getDelayedCalls()


def test_an_address_that_refuses_has_no_head_start() -> None:
    course = Course(SIX, FOUR)
    course.refuse(0)
    assert course.tried == ["2001:db8::1", "192.0.2.1"]
    course.connect(1)
    assert course.won[0].address == FOUR
    assert course.addresses == []


def test_when_all_have_refused_each_says_why() -> None:
    course = Course(SIX, FOUR)
    course.refuse(0)
    course.refuse(1)
    (failure,) = course.lost
    assert failure.check(NextHopUnreachableError)
    assert "2001:db8::1: " in str(failure.value)
    assert "192.0.2.1: " in str(failure.value)
    assert not course.reactor.getDelayedCalls()


def test_all_addresses_together_have_an_end() -> None:
    course = Course(SIX, FOUR, SIX_B, FOUR_B)
    course.reactor.pump([0.3] * 10)
    assert len(course.tried) == 4
    assert not course.lost
    course.reactor.advance(60)
    assert course.lost[0].check(NextHopUnreachableError)
    assert "within 60 s" in str(course.lost[0].value)
    assert course.addresses == []


def test_a_race_can_be_called_off() -> None:
    course = Course(SIX, FOUR)
    course.reactor.advance(0.3)
    course.race.cancel()
    assert course.lost[0].check(CancelledError)
    assert not course.reactor.getDelayedCalls()


def test_ipv6_comes_first_and_the_kinds_take_turns() -> None:
    assert alternating([FOUR, FOUR_B, SIX, SIX_B]) == [SIX, FOUR, SIX_B, FOUR_B]
    assert alternating([FOUR, FOUR_B]) == [FOUR, FOUR_B]


@given(st.lists(st.ip_addresses(), max_size=30))
def test_a_bounded_number_of_addresses_is_tried_each_once(addresses: list[Any]) -> None:
    order = alternating(addresses)
    assert len(order) == min(len(addresses), 8)
    assert set(order) <= set(addresses)
    if any(address.version == 6 for address in addresses):
        assert order[0].version == 6
