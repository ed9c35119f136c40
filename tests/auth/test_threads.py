"""The threads of the verification: bounded, and their ends are known."""

from __future__ import annotations

import threading

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults

from elemta.auth.threads import HashingThreads
from elemta.errors import CredentialsUnavailable


@ensureDeferred
async def test_beyond_the_queue_a_verification_is_local_trouble_at_once() -> None:
    threads = HashingThreads(reactor, threads=2, queue=3)  # type: ignore[arg-type]
    threads.start()
    gate = threading.Event()
    taken = [threads.run(gate.wait, 10) for _ in range(5)]
    with pytest.raises(CredentialsUnavailable, match="5 passwords wait"):
        threads.run(gate.wait, 10)
    gate.set()
    assert await gatherResults(taken) == [True] * 5
    assert await threads.run(lambda: "room again") == "room again"
    await threads.stop()


@ensureDeferred
async def test_stopping_finishes_what_was_taken_and_takes_nothing_more() -> None:
    threads = HashingThreads(reactor)  # type: ignore[arg-type]
    threads.start()
    gate = threading.Event()
    taken = threads.run(gate.wait, 10)
    reactor.callLater(0.01, gate.set)  # type: ignore[attr-defined]
    await threads.stop()
    assert taken.called
    assert await taken is True
    with pytest.raises(CredentialsUnavailable, match="not running"):
        threads.run(gate.wait)


@ensureDeferred
async def test_a_job_that_nobody_waits_for_any_more_is_skipped() -> None:
    threads = HashingThreads(reactor, threads=1)  # type: ignore[arg-type]
    threads.start()
    gate = threading.Event()
    ran: list[str] = []
    first = threads.run(gate.wait, 10)
    second = threads.run(ran.append, "computed for nobody")
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    gate.set()
    await first
    await threads.stop()
    assert ran == []


@ensureDeferred
async def test_an_exception_in_the_thread_comes_back() -> None:
    threads = HashingThreads(reactor)  # type: ignore[arg-type]
    threads.start()
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    await threads.stop()


@ensureDeferred
async def test_starting_and_stopping_twice_does_no_harm() -> None:
    threads = HashingThreads(reactor)  # type: ignore[arg-type]
    await threads.stop()
    threads.start()
    threads.start()
    await threads.stop()
    await threads.stop()
