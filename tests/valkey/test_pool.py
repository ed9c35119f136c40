"""When connections are opened again, and when calls are given up, by a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from elemta.runtime import Runtime
from elemta.valkey.address import ServerAddress, ValkeyLogin
from elemta.valkey.calls import CallDeadlines, ValkeyCall
from elemta.valkey.pool import ConnectionOptions, ServerPool
from elemta.valkey.silence import Silence


def refuse(reactor: Any) -> None:
    """Every connection that is being opened now is refused."""
    while reactor.tcpClients:
        _, _, factory, _, _ = reactor.tcpClients.pop()
        factory.clientConnectionFailed(None, Failure(Refused()))


def pauses(reactor: Any, tries: int) -> list[float]:
    """The pauses before so many tries of a pool whose server is never there."""
    pool = ServerPool(
        ServerAddress("192.0.2.1", 6379),
        ConnectionOptions(Runtime.of(reactor), ValkeyLogin()),
        lambda _: None,
        size=1,
    )
    pool.start()
    found = []
    for _ in range(tries):
        refuse(reactor)
        (timer,) = reactor.getDelayedCalls()
        found.append(timer.getTime() - reactor.seconds())
        reactor.advance(found[-1])
    pool.stop()
    assert not reactor.getDelayedCalls()
    return found


def test_tries_are_never_more_than_a_second_apart_and_at_random_moments_within_it() -> None:
    many = [pauses(MemoryReactorClock(), 50) for _ in range(20)]
    late = [pause for each in many for pause in each[10:]]
    assert max(late) <= 1.0
    assert max(late) > 0.9  # by chance not so: once in 10^36 runs
    assert min(late) < 0.1
    assert max(each[0] for each in many) <= 0.05  # the first one at once, nearly
    assert len(set(late)) == len(late)


def test_a_pool_says_why_it_has_no_connection() -> None:
    reactor = MemoryReactorClock()
    pool = ServerPool(
        ServerAddress("2001:db8::1", 6379),
        ConnectionOptions(Runtime.of(reactor), ValkeyLogin()),
        lambda _: None,
    )
    pool.start()
    assert str(pool.trouble) == "not connected to [2001:db8::1]:6379"
    refuse(reactor)
    assert str(pool.trouble).startswith("no connection to [2001:db8::1]:6379: Connection was refused")
    pool.stop()


def test_a_connection_that_is_not_there_within_a_second_is_given_up() -> None:
    reactor = MemoryReactorClock()
    pool = ServerPool(
        ServerAddress("192.0.2.1", 6379),
        ConnectionOptions(Runtime.of(reactor), ValkeyLogin()),
        lambda _: None,
        size=1,
    )
    pool.start()
    assert [timeout for _, _, _, timeout, _ in reactor.tcpClients] == [1.0]
    pool.stop()


class Book:
    """Calls with deadlines, and the times at which they were missed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.missed: list[tuple[float, ValkeyCall]] = []
        self.deadlines = CallDeadlines(self.clock, self._miss)

    def call(self, seconds: float) -> ValkeyCall:
        silence = Silence(self.clock, lambda servers: None, lambda: None)
        call = ValkeyCall(b"", None, None, lambda call, error: None, silence, prompt=True)
        self.deadlines.add(call, seconds)
        return call

    def _miss(self, call: ValkeyCall) -> None:
        self.missed.append((round(self.clock.seconds(), 3), call))
        call.deferred = None


def test_each_call_is_given_up_at_its_own_deadline() -> None:
    book = Book()
    first, patient = book.call(0.05), book.call(1.0)
    book.clock.advance(0.02)
    second = book.call(0.05)
    book.clock.pump([0.0005] * 2100)
    assert [call for _, call in book.missed] == [first, second, patient]
    assert [at for at, _ in book.missed] == pytest.approx([0.05, 0.07, 1.0], abs=0.002)
    assert not book.clock.getDelayedCalls()


def test_answered_calls_cost_no_timer_and_nobody_gives_them_up() -> None:
    book = Book()
    for n in range(1000):
        book.call(0.05).replied(n)
        book.clock.advance(0.001)
        assert len(book.clock.getDelayedCalls()) <= 1
    last = book.call(0.05)
    book.clock.pump([0.01] * 20)
    assert [call for _, call in book.missed] == [last]
    assert not book.clock.getDelayedCalls()


def test_a_reply_behind_the_deadline_is_dropped() -> None:
    book = Book()
    call = book.call(0.05)
    book.clock.advance(0.06)
    call.replied(b"late")
    assert call.deferred is None


def test_a_reply_that_came_while_this_process_was_busy_is_read_before_its_deadline_is_judged() -> None:
    book = Book()
    call = book.call(0.05)
    # What a reactor does after a turn that took too long: the timers that are due, then the sockets.
    book.clock.callLater(0.06, call.replied, b"there all the time")
    book.clock.advance(0.2)
    assert not book.missed


def test_a_command_that_left_late_because_this_process_was_busy_has_time_to_be_answered() -> None:
    book = Book()
    answered, silent = book.call(0.05), book.call(0.05)
    book.clock.advance(0.3)
    # Only now is it sent.
    book.clock.advance(0.009)
    answered.replied(b"within a fifth of the deadline")
    assert not book.missed
    book.clock.advance(0.001)
    assert [call for _, call in book.missed] == [silent]


def test_no_timer_stays_when_it_is_stopped() -> None:
    book = Book()
    book.call(0.05)
    book.call(1.0)
    book.deadlines.stop()
    assert not book.clock.getDelayedCalls()
