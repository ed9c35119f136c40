"""The threads of the verification: bounded, and their ends are known."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults

from elemta.auth.fair_queue import Claim
from elemta.auth.threads import HashingThreads
from elemta.errors import CredentialsUnavailable
from elemta.runtime import Runtime

ANYBODY = Claim("192.0.2.0/24")


class Gate:
    """A verification that ends when the gate opens."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def pass_through(self) -> str | None:
        return "through" if self.event.wait(10) else None


def saying(said: list[str], word: str) -> Callable[[], str | None]:
    """A verification that leaves its word behind."""

    def verification() -> str | None:
        said.append(word)
        return word

    return verification


@ensureDeferred
async def test_beyond_the_queue_a_verification_is_local_trouble_at_once() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads, threads=2, queue=3)  # type: ignore[arg-type]
    threads.start()
    gate = Gate()
    taken = [threads.run(gate.pass_through, ANYBODY) for _ in range(5)]
    with pytest.raises(CredentialsUnavailable, match="5 passwords wait"):
        threads.run(gate.pass_through, ANYBODY)
    gate.event.set()
    assert await gatherResults(taken) == ["through"] * 5
    assert await threads.run(lambda: "room again", ANYBODY) == "room again"
    await threads.stop()


@ensureDeferred
async def test_stopping_finishes_what_was_taken_and_takes_nothing_more() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads)  # type: ignore[arg-type]
    threads.start()
    gate = Gate()
    taken = threads.run(gate.pass_through, ANYBODY)
    reactor.callLater(0.01, gate.event.set)  # type: ignore[attr-defined]
    await threads.stop()
    assert taken.called
    assert await taken == "through"
    with pytest.raises(CredentialsUnavailable, match="not running"):
        threads.run(gate.pass_through, ANYBODY)


@ensureDeferred
async def test_a_job_that_nobody_waits_for_any_more_is_skipped() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads, threads=1)  # type: ignore[arg-type]
    threads.start()
    gate = Gate()
    ran: list[str] = []
    first = threads.run(gate.pass_through, ANYBODY)
    second = threads.run(saying(ran, "computed for nobody"), ANYBODY)
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    gate.event.set()
    await first
    await threads.stop()
    assert ran == []


@ensureDeferred
async def test_an_exception_in_the_thread_comes_back() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads)  # type: ignore[arg-type]
    threads.start()
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: str(1 // 0), ANYBODY)
    await threads.stop()


@ensureDeferred
async def test_starting_and_stopping_twice_does_no_harm() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads)  # type: ignore[arg-type]
    await threads.stop()
    threads.start()
    threads.start()
    await threads.stop()
    await threads.stop()


@ensureDeferred
async def test_what_gives_way_to_another_network_is_local_trouble_and_the_other_is_verified() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads, threads=1, queue=2)  # type: ignore[arg-type]
    threads.start()
    gate = Gate()
    said: list[str] = []
    running = threads.run(gate.pass_through, ANYBODY)
    oldest = threads.run(saying(said, "oldest"), ANYBODY)
    newest = threads.run(saying(said, "newest"), ANYBODY)
    other = threads.run(saying(said, "other"), Claim("198.51.100.0/24"))
    with pytest.raises(CredentialsUnavailable, match="3 passwords wait"):
        await newest
    gate.event.set()
    await gatherResults([running, oldest, other])
    assert sorted(said) == ["oldest", "other"]
    await threads.stop()


@ensureDeferred
async def test_a_job_that_leaves_the_queue_leaves_its_place_to_another() -> None:
    threads = HashingThreads(Runtime.of(reactor).threads, threads=1, queue=1)  # type: ignore[arg-type]
    threads.start()
    gate = Gate()
    running = threads.run(gate.pass_through, ANYBODY)
    threads.run(gate.pass_through, ANYBODY).addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    after = threads.run(lambda: "after", ANYBODY)
    gate.event.set()
    assert await gatherResults([running, after]) == ["through", "after"]
    await threads.stop()
