"""What others put on hold ends after ``expire``; what an operator holds does not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import fail
from twisted.internet.task import deferLater

from elemta.address import NULL
from elemta.delivery import Retries
from elemta.delivery import bounces as bounces_module
from elemta.delivery.destinations import Destinations
from elemta.delivery.expiry import ExpiryScanner
from elemta.delivery.routes import HoldRoute
from elemta.envelope import Client, MailParameters, Notify, Recipient
from elemta.errors import SpoolFull
from elemta.runtime import Runtime
from elemta.spool import HoldCause, MessageState, Spool, SpoolSettings, Submission
from tests.support.post import Hop, Post, reactor, recipient

EXPIRE = 100_000.0


class Held(Post):
    """Mail on hold, and time that passes as a test says."""

    def __init__(self, directory: Path, spool: Spool) -> None:
        super().__init__(directory, spool)
        self.settings = replace(self.settings, retries=Retries((60.0,), expire=EXPIRE))
        self.aging = ExpiryScanner(spool, Destinations(lambda destination: 20, 100), self.settings)

    async def walk(self, after: float) -> None:
        await self.aging.walk(time.time() + after, lambda: True)

    async def hold(self, hold: HoldCause, *, sender: Any = None, notify: Notify | None = None) -> str:
        """A message that came in on hold."""
        writer = self.spool.begin()
        writer.write(b"Subject: x\r\n\r\nx\r\n")
        submission = Submission(
            self.sender if sender is None else sender,
            (Recipient(recipient("bob@example.com").address, notify),),
            MailParameters(),
            Client(),
            b"",
            time.time(),
            f"because of {hold.name}",
            hold,
        )
        return (await self.spool.commit(writer, submission)).queue_id


@pytest_twisted.async_yield_fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    spool = await Spool.open(SpoolSettings(tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor))
    yield Held(tmp_path, spool)
    await spool.close()
    await deferLater(reactor, 0)


@pytest.mark.parametrize("hold", HoldCause)
@ensureDeferred
async def test_every_hold_but_an_operators_ends_after_expire(held: Held, hold: HoldCause) -> None:
    queue_id = await held.hold(hold)
    await held.walk(EXPIRE - 10)
    assert await held.queued() == [queue_id]
    await held.walk(EXPIRE + 10)
    assert await held.queued() == ([queue_id] if hold is HoldCause.OPERATOR else [])
    reports = await held.bounces()
    assert len(reports) == hold.tells_sender
    assert all("Status: 5.4.7" in report for report in reports)
    assert not any("because of" in report for report in reports)


@pytest.mark.parametrize("hold", [HoldCause.ROUTE, HoldCause.FAULT])
@ensureDeferred
async def test_nobody_is_told_who_can_not_be_or_wants_to_hear_nothing(held: Held, hold: HoldCause) -> None:
    await held.hold(hold, sender=NULL)
    await held.hold(hold, notify=Notify.NEVER)
    await held.walk(EXPIRE + 10)
    assert await held.spool.list() == []


@ensureDeferred
async def test_more_than_a_page_of_holds_ends_in_one_walk(held: Held) -> None:
    for _ in range(1100):
        await held.hold(HoldCause.QUARANTINE)
    await held.walk(EXPIRE + 10)
    assert (await held.spool.stats()).total == 0


@pytest.mark.parametrize("cares", ["hold", "release"])
@ensureDeferred
async def test_what_an_operator_takes_care_of_does_not_end(held: Held, cares: str) -> None:
    queue_id = await held.hold(HoldCause.QUARANTINE)
    await getattr(held.spool, cares)(queue_id)
    await held.walk(EXPIRE - 10)
    assert await held.queued() == [queue_id]
    if cares == "hold":
        await held.walk(10 * EXPIRE)
        assert await held.queued() == [queue_id]


@ensureDeferred
async def test_a_hold_ends_though_its_sender_can_not_be_told_for_a_fault_of_ours(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(bounces_module, "build_dsn", broken)
    await held.hold(HoldCause.ROUTE)
    other = await held.hold(HoldCause.QUARANTINE)
    await held.walk(EXPIRE + 10)
    assert other not in await held.queued()
    assert len(await held.queued()) == 1
    await held.walk(EXPIRE + 100)
    assert await held.queued() == []


@ensureDeferred
async def test_on_a_full_disk_holds_end_of_which_nobody_is_told(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notice can be queued, and what ends without one is what makes space for them."""
    expired = await held.send("bob@example.com")
    held.aging._destinations.put_back(await queued(held, expired), time.time() + 1e9)
    told = [await held.hold(HoldCause.ROUTE) for _ in range(60)]
    for _ in range(60):
        await held.hold(HoldCause.QUARANTINE)

    def full(*args: Any, **kwargs: Any) -> Any:
        return fail(SpoolFull("the spool's disk is full"))

    commit = held.spool.commit
    monkeypatch.setattr(held.spool, "commit", full)
    for after in (10.0, 100.0):
        with pytest.raises(SpoolFull):
            await held.walk(EXPIRE + after)
    assert sorted(await held.queued()) == sorted([expired, *told])
    monkeypatch.setattr(held.spool, "commit", commit)
    await held.walk(EXPIRE + 200.0)
    assert await held.queued() == []
    assert len(await held.bounces()) == 61


@ensureDeferred
async def test_what_can_not_be_given_up_for_a_fault_of_ours_is_held_and_ends(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_id = await held.send("bob@example.com")
    held.aging._destinations.put_back(await queued(held, queue_id), time.time() + 1e9)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(bounces_module, "build_dsn", broken)
    for after in (10.0, 100.0):
        await held.walk(EXPIRE + after)
    assert "it could not be given up" in ((await held.show(queue_id)).message.hold_reason or "")
    for after in (200.0, 300.0):
        await held.walk(EXPIRE + after)
    assert await held.queued() == []


async def queued(held: Held, queue_id: str) -> Any:
    (found,) = await held.spool.due(time.time(), {"": 10})
    (message,) = found.messages
    assert message.queue_id == queue_id
    return message


@ensureDeferred
async def test_a_notice_that_fails_is_held_and_gone_after_its_time(post: Post) -> None:
    hop = Hop({"RCPT": b"550 5.1.1 no such user\r\n"})
    post.sender = NULL
    post.settings = replace(post.settings, retries=Retries((0.3,), expire=1.5))
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com")
    await post.idle()
    (line,) = await post.spool.list()
    assert (line.queue_id, line.state) == (queue_id, MessageState.UNDELIVERABLE)
    while await post.spool.list():
        await deferLater(reactor, 0.05)
    assert len(hop.heard) == 3 or len(hop.heard) == 4


@ensureDeferred
async def test_what_a_route_holds_goes_back_to_its_sender_after_its_time(post: Post) -> None:
    post.settings = replace(post.settings, retries=Retries((0.3,), expire=1.0))
    post.start(HoldRoute("hold:", frozenset("*")))
    queue_id = await post.send("bob@example.com")
    while not (reports := await post.bounces()):
        await deferLater(reactor, 0.02)
    assert f"X-Elemta-Queue-Id: {queue_id}" in reports[0]
    while queue_id in [line.queue_id for line in await post.spool.list()]:
        await deferLater(reactor, 0.02)
