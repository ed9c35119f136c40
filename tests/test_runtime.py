"""The clocks, the randomness and the threads that parts get, and their doubles."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock, LoopingCall

from elemta.runtime import ProcessRuntime, Runtime, SteadyWall
from elemta.spool import Spool, SpoolSettings
from tests.spool.mail import put
from tests.support.runtime import SimulatedReactor, runtime_of, simulated_runtime


def test_a_reactor_calls_by_the_monotonic_clock_when_the_time_of_day_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reactor = SelectReactor()
    runtime = Runtime.system(reactor)
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
    assert abs(runtime.monotonic() - reactor.seconds()) < 1.0


def test_what_is_known_of_time_comes_from_the_system() -> None:
    runtime = Runtime.system(SelectReactor())
    assert runtime.wall is time.time
    assert runtime.monotonic is time.monotonic
    assert runtime.since_boot() >= time.monotonic() - 1.0


def test_one_clock_is_both_in_tests() -> None:
    clock = Clock()
    clock.advance(7)
    runtime = Runtime.of(clock)
    assert (runtime.monotonic(), runtime.wall()) == (7, 7)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_steady_date_goes_on_until_it_is_told_to_follow(step: float) -> None:
    monotonic, wall = Clock(), Clock()
    wall.advance(1_000_000)
    steady = SteadyWall(runtime_of(monotonic, wall=wall.seconds))
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


@pytest.mark.parametrize("step", [-3600.0, -2.0, -0.5, 0.0, 0.5, 3600.0])
def test_a_steady_date_says_how_much_it_is_ahead(step: float) -> None:
    monotonic, wall = Clock(), Clock()
    steady = SteadyWall(runtime_of(monotonic, wall=wall.seconds))
    wall.rightNow += step
    assert steady.ahead == (-step if step < -1 else 0.0)


def test_a_steady_date_follows_a_time_of_day_that_is_ahead_for_an_hour_on_end() -> None:
    monotonic, wall = Clock(), Clock()
    steady = SteadyWall(runtime_of(monotonic, wall=wall.seconds))

    def let_pass(seconds: int) -> None:
        for _ in range(seconds // 60):
            steady.follow_what_lasts()
            for clock in (monotonic, wall):
                clock.advance(60)
        steady.follow_what_lasts()

    wall.rightNow += 86_400
    let_pass(3540)
    assert steady.behind == 86_400
    # It was wrong.
    wall.rightNow -= 86_400
    let_pass(60)
    wall.rightNow += 7200
    let_pass(3540)
    assert steady.behind == 7200
    let_pass(60)
    assert steady.behind == 0
    # It is never put back.
    wall.rightNow -= 7200
    let_pass(7200)
    assert steady.ahead == 7200


def queue_ids(directory: Path, seed: int) -> list[str]:
    """The ids of the partition and of three messages, in a spool without threads."""
    clock = SimulatedReactor()
    clock.advance(1_700_000_000.0)
    spool = turned(
        clock,
        Spool.open(SpoolSettings(directory, minimum_free=0), runtime=simulated_runtime(clock, seed=seed)),
    )
    envelopes = [turned(clock, put(spool, b"x" * size)) for size in (1, 1000, 300_000)]
    turned(clock, spool.close())
    partition = (directory / "p0" / "id").read_text()
    return [partition, *(envelope.queue_id for envelope in envelopes)]


def turned(clock: Clock, work: Any) -> Any:
    """What comes of the work, after as many turns of the reactor as it takes; no time passes."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    for _ in range(100):
        clock.advance(0)
    (result,) = results
    return result


def test_two_spools_with_one_seed_are_the_same_and_start_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    one, two, other = (queue_ids(tmp_path / str(n), seed) for n, seed in enumerate((1, 1, 2)))
    assert one == two
    assert not set(one) & set(other)
    assert threading.active_count() == before


def test_work_for_threads_is_done_in_the_turn_of_the_reactor_and_in_order() -> None:
    clock = SimulatedReactor()
    threads = simulated_runtime(clock).threads
    pool, ordered = threads.pool("pool", 2), threads.ordered("ordered")
    done: list[object] = []
    pool.start()
    for number in range(3):
        pool.call(lambda number=number: number).addCallback(done.append)
    ordered.start(done.append, "told")
    failed = ordered.call(lambda: 1 // 0)
    assert done == []
    clock.advance(0)
    assert done == [0, 1, 2, "told"]
    failed.addErrback(lambda failure: done.append(failure.type))
    assert done[-1] is ZeroDivisionError


def test_what_is_drawn_for_ids_is_the_systems_and_never_seeded_by_others() -> None:
    random.seed(1)
    first = Runtime.of(Clock()).token(16)
    random.seed(1)
    assert Runtime.of(Clock()).token(16) != first
    assert isinstance(Runtime.of(Clock()).randomness, random.SystemRandom)
    assert isinstance(ProcessRuntime.of_system().randomness, random.SystemRandom)


def test_a_command_needs_no_reactor() -> None:
    program = (
        "import sys, elemta.ctl.sendmail; print([name for name in sys.modules if name.startswith('twisted')])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
