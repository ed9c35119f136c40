"""The two clocks: what Twisted's reactors measure with, and a date that does not jump."""

from __future__ import annotations

import time

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock, LoopingCall

from elemta.clock import Clocks, SteadyWall, since_boot, system_clocks


def test_a_reactor_calls_by_the_monotonic_clock_when_the_time_of_day_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reactor = SelectReactor()
    clocks = system_clocks(reactor)
    called: list[str] = []
    loop = LoopingCall(called.append, "again")
    loop.clock = reactor
    loop.start(0.01, now=False)
    late = reactor.callLater(0.01, called.append, "once")
    put_back = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: put_back)
    monkeypatch.setattr("twisted.python.runtime.seconds", lambda: put_back)
    until = time.monotonic() + 10.0
    while len(called) < 3 and time.monotonic() < until:
        reactor.iterate(0.01)
    loop.stop()
    assert called[:3] == ["once", "again", "again"] or sorted(called[:3]) == ["again", "again", "once"]
    assert not late.active()
    assert abs(clocks.monotonic() - reactor.seconds()) < 1.0


def test_what_is_known_of_time_comes_from_the_system() -> None:
    clocks = system_clocks(SelectReactor())
    assert clocks.wall is time.time
    assert clocks.monotonic is time.monotonic
    assert since_boot() >= time.monotonic() - 1.0


def test_one_clock_is_both_in_tests() -> None:
    clock = Clock()
    clock.advance(7)
    clocks = Clocks.of(clock)
    assert (clocks.monotonic(), clocks.wall()) == (7, 7)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_steady_date_goes_on_until_it_is_told_to_follow(step: float) -> None:
    monotonic, wall = Clock(), Clock()
    wall.advance(1_000_000)
    steady = SteadyWall(Clocks(monotonic.seconds, wall.seconds))
    for clock in (monotonic, wall):
        clock.advance(5)
    assert steady.seconds() == 1_000_005
    wall.rightNow += step
    assert steady.seconds() == 1_000_005
    assert steady.behind == step
    assert steady.follow() == step
    assert steady.behind == 0
    monotonic.advance(1)
    assert steady.seconds() == 1_000_006 + step
