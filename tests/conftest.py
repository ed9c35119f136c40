"""What every test gets: a hypothesis profile that CI can rely on, and a look at what the test left behind.

pytest-twisted sees neither a dirty reactor (a delayed call, a port or a connection that stays) nor a Deferred
whose failure was not handled. Both would be a leak in production, so both fail the test that made them.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from elemta.metric_registry import _Counter, _Gauge, _Histogram
from elemta.runtime.fast_logger import FastLogger
from tests.support.deadline import pytest_runtest_teardown, pytest_timeout_set_timer

__all__ = ["pytest_runtest_teardown", "pytest_timeout_set_timer"]

settings.register_profile("fast", max_examples=60, deadline=None)
settings.register_profile(
    "ci", max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "fast")

# Half a minute and more each on a busy machine, about the longest first.
_LONG = (
    "adoption/test_adoption.py",
    "daemon/test_life.py",
    "mailout/test_kill_while_delivering.py",
    "durability/test_kill.py",
    "cluster/test_bound.py",
    "cluster/test_outages.py",
    "daemon/test_hostile_clients.py",
    "daemon/test_start.py",
    "multinode/test_balance.py",
    "multinode/test_failures.py",
    "durability/test_disk.py",
    "delivery/test_hostile_hops.py",
    "daemon/test_relaying.py",
    "cluster/test_valkey_cluster.py",
    "house/test_packaging.py",
    "policy/test_example_package.py",
    "mailout/test_exchangers.py",
    "mailout/test_smuggling.py",
    "daemon/test_valkey.py",
    "daemon/test_operator.py",
    "interop/test_corpus.py",
    "mailout/test_flood.py",
    "adoption/test_lease.py",
    "monitoring/test_dashboards.py",
    "daemon/test_limits.py",
    "spool/test_kill.py",
    "daemon/test_plugins.py",
)

# Turns of the reactor that a connection gets to notice that it was closed, 5 ms each.
_PATIENCE = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long: one process runs a whole file, and none is to be alone at the end."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    """What is logged."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


@pytest.fixture(autouse=True, scope="module")
def _only_this_modules_garbage() -> None:
    """What was imported and kept by now stays: a collection after a test looks at newer objects only.

    All that earlier modules left would take more than a third of the time of all tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that a test makes says for the whole process whether records of connections are wanted."""
    monkeypatch.setattr(FastLogger, "wants_debug", FastLogger.wants_debug)


@pytest.fixture(autouse=True)
def _clean_reactor() -> Iterator[None]:
    """Fails a test that leaves timers, sockets or subprocesses in the reactor."""
    from twisted.internet import reactor

    before = _in_reactor(reactor)
    yield
    for _ in range(_PATIENCE):
        left = _in_reactor(reactor) - before
        if not left:
            return
        pytest_twisted.blockon(deferLater(reactor, 0.005))
    words = [f"  {thing!r}" for thing in left]
    for thing in left:
        _throw_out(thing, reactor)
    pytest.fail("the test left this in the reactor:\n" + "\n".join(words), pytrace=False)


@pytest.fixture(autouse=True)
def _unhandled_errors() -> Iterator[list[LogEvent]]:
    """Fails a test with an unhandled failure of a Deferred, or an exception under the reactor."""
    unhandled: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        # What Elemta reports on purpose has an event name; Twisted's last resort has none.
        if event.get("log_level") is LogLevel.critical and "event" not in event:
            unhandled.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield unhandled
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
    if unhandled:
        pytest.fail("\n".join(_words(event) for event in unhandled), pytrace=False)


@pytest.fixture
def unhandled_errors(_unhandled_errors: list[LogEvent]) -> list[LogEvent]:
    """For a test that wants one: the errors not handled so far. The test clears what it expected."""
    return _unhandled_errors


@pytest.fixture(autouse=True, scope="session")
def _elsewhere_counted() -> Iterator[list[str]]:
    """The metrics of Elemta's own that another thread than the reactor's has counted: they take no lock."""
    found: list[str] = []

    def watched(method: Any) -> Any:
        def count(metric: Any, *args: Any, **kwargs: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                found.append(f"{metric._name} in {threading.current_thread().name}")
            method(metric, *args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for kind, names in ((_Counter, ("inc",)), (_Gauge, ("inc", "dec")), (_Histogram, ("observe",))):
            for name in names:
                patch.setattr(kind, name, watched(getattr(kind, name)))
        yield found


@pytest.fixture(autouse=True)
def _counted_by_the_reactor(_elsewhere_counted: list[str]) -> Iterator[None]:
    """Fails a test in which another thread counted without a lock."""
    _elsewhere_counted.clear()
    yield
    if _elsewhere_counted:
        pytest.fail("counted without a lock: " + ", ".join(sorted(set(_elsewhere_counted))), pytrace=False)


@pytest.fixture
def elsewhere_counted(_elsewhere_counted: list[str]) -> list[str]:
    """For a test that wants one: what another thread counted so far. The test clears what it expected."""
    return _elsewhere_counted


def _in_reactor(reactor: Any) -> set[Any]:
    timers = {call for call in reactor.getDelayedCalls() if call.active()}
    sockets = set(reactor.getReaders()) | set(reactor.getWriters())
    # The reactor's own pipes for signals and for threads; the first subprocess of a run makes one.
    return timers | (sockets - getattr(reactor, "_internalReaders", set()))


def _throw_out(thing: Any, reactor: Any) -> None:
    """So that the next test starts clean and is not blamed."""
    if hasattr(thing, "cancel"):
        thing.cancel()
        return
    reactor.removeReader(thing)
    reactor.removeWriter(thing)
    for close in ("stopListening", "abortConnection", "loseConnection"):
        if hasattr(thing, close):
            getattr(thing, close)()
            return


def _words(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return f"{formatEvent(event)}\n{failure.getTraceback() if failure is not None else ''}"
