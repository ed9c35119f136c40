"""Which senders get a notice of a delay, and which not, because mail is about to leave; a test's clock."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from elemta.address import Address
from elemta.delivery import DeliveryScheduler, DeliverySettings, Retries
from elemta.delivery.destinations import Destinations
from elemta.delivery.expiry import ExpiryScanner
from elemta.outcome import Outcome, Status
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings
from tests.support.post import Hop, Post, reactor

SETTINGS = DeliverySettings("me.example", Retries((60.0,), expire=100_000.0), warn_after=1000.0)
# Mail of an older start, that nothing has looked at yet, waits in the destination without a name.
DESTINATION = ""


class Quiet(Post):
    """Mail that is late, and nothing that carries it."""

    def __init__(self, directory: Path, spool: Spool) -> None:
        super().__init__(directory, spool)
        self.now = time.time()
        self.destinations = Destinations(lambda destination: 20, 100)
        self.aging = ExpiryScanner(spool, self.destinations, SETTINGS)

    async def send_late(self, messages: int) -> None:
        for _ in range(messages):
            await self.send("bob@example.com", received_at=self.now - 2000.0)

    async def told_at(self, now: float) -> int:
        """How many notices there are after a walk at this time."""
        await self.aging.walk(now, lambda: True)
        return len(await self.bounces())

    async def load(self) -> None:
        """Look into the spool for what is due."""
        wanted = self.destinations.wanted(self.now)
        for found in await self.spool.due(self.now, wanted, self.destinations.known(wanted)):
            self.destinations.loaded(found, self.now)


@pytest_twisted.async_yield_fixture
async def quiet(tmp_path: Path) -> AsyncIterator[Quiet]:
    spool = await Spool.open(SpoolSettings(tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor))
    yield Quiet(tmp_path, spool)
    await spool.close()
    await deferLater(reactor, 0)


@ensureDeferred
async def test_after_a_start_what_may_leave_is_given_a_minute_before_its_sender_hears_of_a_delay(
    quiet: Quiet,
) -> None:
    await quiet.send_late(30)
    quiet.aging.started(quiet.now)
    quiet.destinations.due_at(DESTINATION, 0.0)
    assert await quiet.told_at(quiet.now + 1) == 0
    await quiet.load()
    waiting = quiet.destinations.waiting
    assert 0 < waiting < 30
    assert await quiet.told_at(quiet.now + 59) == 0
    # Now the line is too long; those that are at its head leave next.
    assert await quiet.told_at(quiet.now + 61) == 30 - waiting


@ensureDeferred
async def test_a_destination_that_has_not_been_looked_into_yet_is_about_to_be(quiet: Quiet) -> None:
    await quiet.send_late(3)
    quiet.destinations.due_at(DESTINATION, 0.0)
    assert await quiet.told_at(quiet.now) == 0
    wanted = quiet.destinations.wanted(quiet.now)
    # While the spool is being asked.
    assert await quiet.told_at(quiet.now) == 0
    quiet.destinations.not_loaded(wanted, quiet.now + 60)
    assert await quiet.told_at(quiet.now) == 3


@ensureDeferred
async def test_mail_for_a_destination_that_is_down_gets_no_such_grace(quiet: Quiet) -> None:
    await quiet.send_late(3)
    quiet.aging.started(quiet.now)
    quiet.destinations.due_at(DESTINATION, 0.0)
    down = Outcome("Q", Address("bob", "example.com"), Status.DEFERRED, "refused", "", "", quiet.now)
    quiet.destinations.block(DESTINATION, quiet.now + 600, down)
    assert await quiet.told_at(quiet.now + 1) == 3


@ensureDeferred
async def test_what_expires_together_is_given_up_in_few_commits(quiet: Quiet) -> None:
    await quiet.send_late(120)
    commits: list[int] = []
    apply = quiet.spool._store.apply
    quiet.spool._store.apply = lambda operations: (  # type: ignore[method-assign]
        commits.append(len(operations)) or apply(operations)  # type: ignore[func-returns-value]
    )
    down = Outcome("Q", Address("bob", "example.com"), Status.DEFERRED, "refused", "", "", quiet.now)
    quiet.destinations.block(DESTINATION, quiet.now + 1e6, down)
    await quiet.aging.walk(quiet.now + 200_000, lambda: True)
    reports = await quiet.bounces()
    assert len(reports) == 100 == sum("Status: 5.4.7" in report for report in reports)
    assert await quiet.queued() == []
    assert len(commits) < 60


class Threaded(Clock):
    """A clock of the test's, with the reactor's threads."""

    getThreadPool = staticmethod(reactor.getThreadPool)
    callFromThread = staticmethod(reactor.callFromThread)


class Unlisted:
    """A spool that does not say yet which destinations there are, and counts the scans for old mail."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.listed: Deferred[None] = Deferred()
        self.walks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    async def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        await self.listed
        return []

    async def older(self, *args: Any, **kwargs: Any) -> Any:
        self.walks += 1
        return await self._spool.older(*args, **kwargs)


@ensureDeferred
async def test_it_can_be_started_again_after_a_stop(quiet: Quiet) -> None:
    hop = Hop()
    route = await quiet.listen(hop)
    delivery = quiet.start(route)
    for messages in (1, 2, 3):
        await quiet.send("bob@example.com")
        await quiet.until(lambda messages=messages: len(hop.messages) == messages)
        await delivery.stopService()
        await quiet.until(lambda: not hop.sessions)
        delivery.startService()
    await delivery.stopService()
    await quiet.stop()


@ensureDeferred
async def test_nobody_is_told_of_a_delay_before_it_is_known_what_may_leave(quiet: Quiet) -> None:
    clock = Threaded()
    clock.advance(quiet.now)
    queue = Unlisted(quiet.spool)
    delivery = DeliveryScheduler(Runtime.of(clock), queue, (), SETTINGS)
    delivery.startService()
    try:
        clock.pump([SETTINGS.poll] * 50)
        assert queue.walks == 0
        queue.listed.callback(None)
        clock.pump([SETTINGS.poll] * 2)
        await quiet.until(lambda: queue.walks)
    finally:
        await delivery.stopService()


@ensureDeferred
async def test_mail_behind_attempts_that_do_not_end_is_reported_and_given_up(quiet: Quiet) -> None:
    await quiet.send_late(30)
    quiet.destinations.due_at(DESTINATION, 0.0)
    await quiet.load()
    under_way = 0
    while quiet.destinations.take(quiet.now, 100) is not None:
        under_way += 1
    waiting = quiet.destinations.waiting
    assert under_way > 0
    assert waiting > 0
    # Those in memory are the next ones, as long as an attempt may end soon.
    assert await quiet.told_at(quiet.now + 299) == 30 - under_way - waiting
    assert await quiet.told_at(quiet.now + 301) == 30 - under_way
    await quiet.aging.walk(quiet.now + 200_000, lambda: True)
    assert len(await quiet.queued()) == under_way
    assert any("the next hop does not confirm" in " ".join(each.split()) for each in await quiet.bounces())
