"""A fault anywhere between the next hop's last word and the record of it loses and doubles nothing."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from twisted.logger import LogEvent

from elemta.delivery import Retries, queue_scans
from elemta.delivery.routes import Route
from elemta.envelope import Client, MailParameters, Notify
from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, SpoolSettings, Submission
from tests.support.faults import Fault, Name, Observed
from tests.support.post import TRACE, Hop, HopSession, Post, reactor, recipient

KINDS: tuple[Callable[[str], Exception], ...] = (
    ValueError,
    KeyError,
    lambda text: UnicodeDecodeError("ascii", b"\xff", 0, 1, text),
    RecursionError,
    MemoryError,
    OSError,
    AssertionError,
    CancelledError,
)
NAMES = (
    "ValueError",
    "KeyError",
    "UnicodeError",
    "RecursionError",
    "MemoryError",
    "OSError",
    "AssertionError",
    "CancelledError",
)
PATIENCE = 4.0
RETRY = 0.03
# How long a fault stays that stays: several retry periods.
STAYS = 5 * RETRY
# What every fault to order says.
ORDERED = "ordered in "
# What the reactor calls: a fault there is to the next hop and to us as if the connection had been lost. The
# others are called by a timer, on a busy machine each time.
OUTERMOST = {
    ("delivery/client_protocol.py", "NextHopConnection.dataReceived"),
    ("delivery/scheduler.py", "DeliveryScheduler._watch"),
    ("delivery/queue_scans.py", "AgeScan.go_on"),
}


class WatchedHop(Hop):
    """A next hop that says when it has said its last word about a message that is watched."""

    said: Callable[[], None] = staticmethod(lambda: None)

    def buildProtocol(self, addr: object) -> HopSession:
        return WatchedSession(self)


class WatchedSession(HopSession):
    def say(self, verb: str, default: bytes) -> bytes:
        answer = super().say(verb, default)
        if verb == "." and b"watched" in self.hop.messages[-1]:
            assert isinstance(self.hop, WatchedHop)
            self.hop.said()
        return answer


@dataclass
class Place:
    """A post with one next hop."""

    post: Post
    hop: WatchedHop
    route: Route
    number: int = 0
    marks: list[str] = field(default_factory=list)

    async def send(self, what: str) -> str:
        """Have a message accepted, as a client that tries again does."""
        self.number += 1
        mark = f"{what} {self.number}."
        people = (
            replace(recipient("bob@example.com"), notify=Notify.SUCCESS),
            recipient("eve@example.com"),
        )
        until = time.monotonic() + PATIENCE
        while True:
            writer = self.post.spool.begin()
            writer.write(f"Subject: s\r\n\r\n{mark}\r\n".encode())
            submission = Submission(
                self.post.sender, people, MailParameters(), Client(session_id="S"), TRACE, time.time()
            )
            try:
                await self.post.spool.commit(writer, submission)
            except Exception:
                if time.monotonic() > until:
                    raise
                await deferLater(reactor, 0.01)
            else:
                self.marks.append(mark)
                return mark

    def copies(self) -> Counter[str]:
        return Counter(message.decode().rpartition("\r\n\r\n")[2].strip() for message in self.hop.messages)

    async def until(self, true: Callable[[], object], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if true():
                return True
            await deferLater(reactor, 0.002)
        return False

    async def waiting(self) -> dict[str, MessageState]:
        # A page of the usual length is full of notices on hold before long.
        return {
            each.queue_id: each.state for each in await self.post.spool.list(limit=100_000) if each.sender
        }

    async def is_over(self) -> dict[str, MessageState]:
        """What is in the queue when nothing moves there any more: nothing, or what is on hold."""
        until = time.monotonic() + PATIENCE
        while True:
            left = await self.waiting()
            if all(state is MessageState.HOLD for state in left.values()) or time.monotonic() > until:
                return left
            await deferLater(reactor, 0.004)


@pytest.fixture(autouse=True)
def listed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_scans, "_LIST_DESTINATIONS_EVERY", 0.3)


@pytest_twisted.async_yield_fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = await make(tmp_path / "first")
    yield made
    await close(made)


async def make(directory: Path, **hop: Any) -> Place:
    directory.mkdir(exist_ok=True)
    settings = SpoolSettings(
        directory / "spool", minimum_free=0, first_reopen=0.02, longest_reopen=0.05, refresh=0.1
    )
    spool = await Spool.open(settings, runtime=Runtime.of(reactor))
    post = Post(directory, spool)
    post.settings = replace(post.settings, retries=Retries((RETRY,)), poll=0.05, grace=0.2)
    watched = WatchedHop(**hop)
    route = await post.listen(watched)
    post.start(route)
    return Place(post, watched, route)


async def close(place: Place) -> None:
    await place.post.stop()
    await place.post.spool.close()
    await deferLater(reactor, 0)


async def path_of(place: Place) -> tuple[list[Name], set[Name]]:
    """The functions that are called between the last word and the end of the attempt; and which defer."""
    await place.send("first")
    assert not await place.is_over()
    found: set[Name] = set()
    observed = Observed(place.post.spool._threads.commit.start)
    place.hop.said = observed.start
    delivery = place.post.delivery
    assert delivery is not None
    for count in range(4):
        observed.called.clear()
        observed.install()
        await place.send("watched")
        assert await place.until(lambda: observed.on and not delivery._under_way, PATIENCE)
        observed.stop()
        assert not await place.is_over()
        # What comes by a timer now and then is not on the way.
        found = found & set(observed.called) if count else set(observed.called)
    place.hop.said = lambda: None
    return sorted(found - OUTERMOST), set(observed.deferring)


async def meet(place: Place, fault: Fault, *, stays: float = 0.0) -> str:
    """Have a message delivered with a fault behind the last word, among others; what is wrong then."""
    place.hop.messages.clear()
    place.marks.clear()

    def arm() -> None:
        fault.armed = True

    await place.send("other")
    place.hop.said = arm
    try:
        await place.send("watched")
        delivery = place.post.delivery
        assert delivery is not None
        if not await place.until(lambda: fault.armed, PATIENCE):
            return "the next hop never had it"
        if stays:
            await place.until(lambda: False, stays)
        else:
            await place.until(lambda: fault.fired or not delivery._under_way, 1.0)
    finally:
        fault.end()
        place.hop.said = lambda: None
    await place.send("after")
    left = await place.is_over()
    copies = place.copies()
    most = 2 if stays else 1
    wrong = [f"{mark}: {copies[mark]} copies" for mark in place.marks if copies[mark] > most]
    missing = [mark for mark in place.marks if not copies[mark]]
    if len(missing) > len(left):
        wrong.append(f"lost: {missing}")
    if any(state is not MessageState.HOLD for state in left.values()) or (left and not stays):
        wrong.append(f"left: {left}")
    return "; ".join(wrong)


async def run_table(
    place: Place, tmp_path: Path, kinds: Callable[[int], list[int]], *, stays: float = 0.0
) -> None:
    called, deferring = await path_of(place)
    assert len(called) > 60
    wrong, met = [], 0
    at = place
    started = time.monotonic()
    for count, name in enumerate(called):
        for which in kinds(count):
            for deferred in (False, True) if name in deferring else (False,):
                error = partial(KINDS[which], f"{ORDERED}{name}")
                fault = Fault(name, error, 10**6 if stays else 1, deferred=deferred)
                if not fault.possible:
                    continue
                said = await meet(at, fault, stays=stays)
                met += bool(fault.fired)
                if said:
                    print("WRONG", said, "fired", fault.fired, flush=True)
                    wrong.append(f"{name} {NAMES[which]} deferred={deferred}: {said}, fired {fault.fired}")
                # What a fault left on hold is no part of the next one.
                if said or await at.waiting():
                    if at is not place:
                        await close(at)
                    at = await make(tmp_path / f"again{count}-{which}-{deferred}")
    if at is not place:
        await close(at)
    print(f"{len(called)} functions, {met} faults met in {time.monotonic() - started:.0f} s")
    assert not wrong, "\n".join(wrong)
    assert met > 60


@ensureDeferred
async def test_a_fault_on_the_way_to_the_record_sends_nothing_twice(place: Place, tmp_path: Path) -> None:
    await run_table(place, tmp_path, lambda count: [count % len(KINDS)])


@pytest.mark.campaign
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=NAMES)
@pytest.mark.parametrize("stays", [0.0, STAYS], ids=["once", "stays"])
@ensureDeferred
async def test_every_fault_of_every_kind(
    place: Place, tmp_path: Path, kind: int, stays: float, unhandled_errors: list[LogEvent]
) -> None:
    await run_table(place, tmp_path, lambda _: [kind], stays=stays)
    if stays:
        # Where what handles faults is itself broken for so long, nothing is left that could handle them.
        gc.collect()
        unhandled_errors[:] = [event for event in unhandled_errors if not is_ordered(event)]


def is_ordered(event: LogEvent) -> bool:
    """Whether an unhandled error is a fault to order, or the line that Twisted puts before one."""
    failure = event.get("log_failure")
    return failure is None or ORDERED in str(failure.value)
