"""Mail that waits for a limit or for a free connection ends like other mail, with a notice to its sender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from elemta.delivery import DeliveryScheduler, Retries
from elemta.delivery.outbound_limits import Permit, Throttled
from elemta.delivery.routes import MaildirRoute, NextHopRoute
from elemta.delivery.transports import Transports
from elemta.envelope import Envelope, Recipient
from elemta.outcome import Attempt, Outcome, ReachedStage, Status
from elemta.runtime import Runtime
from tests.support.post import Hop, Post, reactor


class Closed:
    """A pace at which nothing leaves for an hour."""

    counts = True

    def __init__(self, *, everybody: bool, seconds: float = 3600.0) -> None:
        self.asked = 0
        self._wait = Throttled(seconds, "pace", everybody)

    def acquire(
        self, destination: str, envelope: Envelope, recipients: Sequence[Recipient]
    ) -> Permit | Throttled:
        self.asked += 1
        return self._wait

    def connect(self, destination: str) -> Permit:
        return Permit()

    def done(self, go: Permit, *, sent: bool = True) -> None:
        pass


def start(post: Post, route: NextHopRoute, pace: Any, expire: float) -> DeliveryScheduler:
    post.settings = replace(post.settings, retries=Retries((0.3,), expire=expire, jitter=0.0), warn_after=0.0)
    # A notice to the sender stays where a test can look at it.
    kept = MaildirRoute(
        "maildir:",
        frozenset({"example.org"}),
        template=(str(post.directory / "mail"),),
        create_mailboxes=True,
    )
    delivery = DeliveryScheduler(
        Runtime.of(reactor), post.spool, (kept, route), post.settings, limiter=pace, hooks=post.observer.hooks
    )
    post.delivery = delivery
    delivery.startService()
    return delivery


async def told(post: Post, number: int) -> list[str]:
    """The notices in the sender's mailbox, once there are so many."""
    mailbox = post.directory / "mail" / "new"
    for _ in range(2000):
        if mailbox.is_dir() and len(list(mailbox.iterdir())) >= number:
            return [path.read_text() for path in mailbox.iterdir()]
        await deferLater(reactor, 0.01)
    raise AssertionError("the sender was not told")


async def emptied(post: Post) -> None:
    """Wait until nothing is queued: a notice is in the queue before its message leaves it."""
    for _ in range(2000):
        if await post.queued() == []:
            return
        await deferLater(reactor, 0.01)
    raise AssertionError(f"still queued: {await post.queued()}")


@pytest.mark.parametrize("everybody", [True, False])
@pytest.mark.parametrize("seconds", [0.05, 3600.0])
@ensureDeferred
async def test_what_a_limit_keeps_for_ever_expires_in_time(
    post: Post, everybody: bool, seconds: float
) -> None:
    hop = Hop()
    pace = Closed(everybody=everybody, seconds=seconds)
    start(post, await post.listen(hop), pace, expire=1.0)
    ids = [await post.send(f"bob{number}@example.com") for number in range(12)]
    reports = await told(post, 12)
    assert {report.partition("X-Elemta-Queue-Id: ")[2].split()[0] for report in reports} == set(ids)
    assert all("Status: 5.4.7" in report for report in reports)
    await emptied(post)
    assert hop.messages == []


@ensureDeferred
async def test_what_no_connection_is_free_for_expires_in_time(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def carry(self: Transports, message: Any, ways: Any, taken: Any) -> tuple[Outcome, ...]:
        if message.destination == "maildir:":
            return await carried(self, message, ways, taken)
        everyone = [each.address for each in message.pending]
        return Attempt(message.queue_id, wall=reactor.seconds).same_for_all(
            everyone, Status.DEFERRED, "", "nothing free", reached=ReachedStage.NOTHING_FREE
        )

    carried = Transports.deliver
    monkeypatch.setattr(Transports, "deliver", carry)
    monkeypatch.setattr("elemta.delivery.attempt._NOTHING_FREE", 0.05)
    start(post, await post.listen(Hop()), None, expire=0.5)
    await post.send("bob@example.com")
    (report,) = await told(post, 1)
    assert "Status: 5.4.7" in report
    await emptied(post)
