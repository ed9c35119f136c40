"""A fault anywhere between the next hop's last word and the record of it causes no second copy."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from elemta.delivery import Retries
from elemta.delivery.routes import Route
from elemta.envelope import Client, MailParameters, Notify
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings, Submission
from tests.support.faults import Faults, Name
from tests.support.post import TRACE, Hop, HopSession, Post, reactor, recipient

KINDS: tuple[type[Exception], ...] = (ValueError, MemoryError)
PATIENCE = 4.0
# What the reactor calls: a fault there is to the next hop and to us as if the connection had been lost.
OUTERMOST = {("delivery/client_protocol.py", "NextHopConnection.dataReceived")}


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
    """A post with one next hop, and faults in it."""

    post: Post
    hop: WatchedHop
    route: Route
    faults: Faults
    number: int = 0

    async def send(self, what: str) -> str:
        await self.post.until(lambda: self.post.spool.settled)
        self.number += 1
        writer = self.post.spool.begin()
        mark = f"{what} {self.number}."
        writer.write(f"Subject: s\r\n\r\n{mark}\r\n".encode())
        people = (
            replace(recipient("bob@example.com"), notify=Notify.SUCCESS),
            recipient("eve@example.com"),
        )
        now = time.time()
        submission = Submission(
            self.post.sender, people, MailParameters(), Client(session_id="S"), TRACE, now
        )
        await self.post.spool.commit(writer, submission)
        return mark

    def copies(self) -> Counter[str]:
        return Counter(message.decode().rpartition("\r\n\r\n")[2].strip() for message in self.hop.messages)

    async def is_over(self, *, watched: bool = False) -> bool:
        """Whether all mail left the queue in time, but for notices."""
        until = time.monotonic() + PATIENCE
        # Meanwhile not by any function of ours: that may be the one that raises.
        while watched and time.monotonic() < until:
            at_work = self.post.delivery is not None and self.post.delivery._under_way
            if self.faults.fired or (self.faults.armed and not at_work):
                break
            await deferLater(reactor, 0.002)
        self.faults.disarm()
        while time.monotonic() < until:
            if not await self.post.queued():
                return True
            await deferLater(reactor, 0.004)
        return False


@pytest_twisted.async_yield_fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = await make(tmp_path)
    yield made
    await close(made)


async def make(directory: Path, **hop: Any) -> Place:
    directory.mkdir(exist_ok=True)
    settings = SpoolSettings(
        directory / "spool", minimum_free=0, first_reopen=0.02, longest_reopen=0.05, refresh=0.1
    )
    spool = await Spool.open(settings, runtime=Runtime.of(reactor))
    post = Post(directory, spool)
    post.settings = replace(post.settings, retries=Retries((0.05,)), poll=0.05, grace=0.2)
    watched = WatchedHop(**hop)
    route = await post.listen(watched)
    faults = Faults(spool._threads.commit.start)
    watched.said = faults.arm
    post.start(route)
    return Place(post, watched, route, faults)


async def close(place: Place) -> None:
    place.faults.disarm()
    await place.post.stop()
    await place.post.spool.close()
    await deferLater(reactor, 0)


async def watch(place: Place) -> str:
    """Send a message, and let what happens after the next hop's last word about it be noted or fail."""
    faults = place.faults
    faults.fired = False
    faults.install()
    mark = await place.send("watched")
    if not await place.is_over(watched=True):
        return "it did not leave the queue"
    faults.disarm()
    copies = place.copies()
    if copies[mark] != 1:
        return f"copies: {copies[mark]}"
    return ""


# What is called when the record is there, to start the next attempt.
SCHEDULER = {
    f"delivery/{name}.py"
    for name in ("destination", "destinations", "expiry", "router", "routes", "scheduler")
}


async def path_of(place: Place) -> list[Name]:
    """The functions that are called between the last word and the end of the attempt."""
    await place.send("first")
    assert await place.is_over()
    found: set[Name] = set()
    for count in range(4):
        place.faults.called.clear()
        assert await watch(place) == ""
        # What comes by a timer now and then is not on the way.
        found = found & set(place.faults.called) if count else set(place.faults.called)
    return sorted(name for name in found - OUTERMOST if name[0] not in SCHEDULER)


# Its own logs of what is injected still count as errors at the teardown, and a commit may meet a spool that
# is just being opened anew: until the test separates both it is run by hand.
@pytest.mark.skipif("ELEMTA_TEST_FAULTS" not in os.environ, reason="run with ELEMTA_TEST_FAULTS=1")
@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
@ensureDeferred
async def test_a_fault_in_any_function_on_the_way_to_the_record_sends_nothing_twice(
    place: Place, kind: type[Exception], tmp_path: Path
) -> None:
    called = await path_of(place)
    assert len(called) > 60
    wrong = []
    at = place
    for count, name in enumerate(called):
        at.faults.target, at.faults.error = name, kind(f"in {name}")
        if said := await watch(at):
            wrong.append(f"{name}: {said}, fired {at.faults.fired}")
            if len(wrong) > 5:
                break
            if at is not place:
                await close(at)
            at = await make(tmp_path / f"again{count}")
    if at is not place:
        await close(at)
    assert not wrong, "\n".join(wrong)
