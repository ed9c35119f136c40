"""A requested success notice is sent once; what was delivered is recorded before, and stays so."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater

from elemta.delivery import DeliveryScheduler, Retries
from elemta.delivery.success_notices import SuccessNotices
from elemta.envelope import Client, Envelope, MailParameters, Notify
from elemta.errors import SpoolError, SpoolFull, UnknownMessage
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Outcome, Status
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, Submission
from tests.spool.mail import outcome
from tests.support.post import BODY, TRACE, Hop, Post, reactor, recipient

FIFTY = tuple(f"r{number}@example.com" for number in range(50))
Break = Callable[[pytest.MonkeyPatch, Post], None]


CLIENT = Client(session_id="S1")


async def send(post: Post, *names: str, body: bytes = BODY) -> str:
    """A message whose sender wants to hear of each delivery."""
    writer = post.spool.begin()
    writer.write(body)
    people = tuple(replace(recipient(name), notify=Notify.SUCCESS) for name in names)
    submission = Submission(post.sender, people, MailParameters(), CLIENT, TRACE, reactor.seconds())
    return (await post.spool.commit(writer, submission)).queue_id


def commits_fail_with(error: Exception) -> Break:
    def apply(patch: pytest.MonkeyPatch, post: Post) -> None:
        commit = Spool.commit

        def refuse(spool: Spool, writer: Any, submission: Submission, **how: Any) -> Deferred[Envelope]:
            if submission.sender:
                return commit(spool, writer, submission, **how)
            writer.discard()
            return fail(error)

        patch.setattr(Spool, "commit", refuse)

    return apply


def broken(place: str, error: Exception) -> Break:
    def apply(patch: pytest.MonkeyPatch, post: Post) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        patch.setattr(place, fails)

    return apply


ERRORS = (
    ValueError("v"),
    KeyError("k"),
    RecursionError(),
    MemoryError(),
    OSError(errno.EIO, "EIO"),
    UnicodeError("u"),
)
NOTICES = "elemta.delivery.success_notices."
TROUBLES: dict[str, Break] = {
    "the disk is full": commits_fail_with(SpoolFull("full")),
    "the disk fails": commits_fail_with(SpoolError("EIO")),
    "it is too large": broken("elemta.delivery.bounces._write", SpoolFull("too large")),
    **{f"making it: {error!r}": broken("elemta.delivery.bounces.build_dsn", error) for error in ERRORS},
    **{f"deciding: {error!r}": broken(f"{NOTICES}notices_for", error) for error in ERRORS},
    **{f"submitting: {error!r}": broken(f"{NOTICES}submit", error) for error in ERRORS},
    **{f"sending: {error!r}": broken(f"{NOTICES}SuccessNotices._send", error) for error in ERRORS},
}


def owed(post: Post) -> int:
    return len(rows(post, "SELECT 1 FROM recipient WHERE owed > 0"))


def rows(post: Post, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(post.directory / "spool" / "p0" / "queue.db")
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def told(post: Post, seconds: float = 20.0) -> list[str]:
    """The notices, once the message is gone."""
    for _ in range(int(seconds / 0.02)):
        if not await post.queued():
            return await post.bounces()
        await deferLater(reactor, 0.02)
    raise AssertionError("the message is still there")


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
@ensureDeferred
async def test_no_trouble_with_the_notice_delivers_to_anybody_twice(
    post: Post, monkeypatch: pytest.MonkeyPatch, trouble: Break
) -> None:
    hop = Hop()
    post.settings = replace(post.settings, retries=Retries((0.1,)), poll=0.05)
    route = await post.listen(hop)
    with monkeypatch.context() as patch:
        trouble(patch, post)
        post.start(route)
        queue_id = await send(post, *FIFTY)
        await post.until(lambda: owed(post) == 50)
        await deferLater(reactor, 0.5)
        assert len(hop.messages) == 1
        assert sum(line.startswith(b"RCPT") for line in hop.heard) == 50
        record = await post.show(queue_id)
        assert not any(each.pending for each in record.recipients)
        assert await post.bounces() == []
    (notice,) = await told(post)
    assert all(f"Final-Recipient: rfc822; {name}" in notice for name in FIFTY)
    await deferLater(reactor, 0.3)
    assert len(hop.messages) == 1
    assert len(await post.bounces()) == 1


@dataclass
class Raising:
    """A metric that looks into the queue when it is counted, and raises."""

    look: Callable[[], int] = lambda: 0
    seen: list[int] = field(default_factory=list)

    def labels(self, *_: object) -> None:
        self.seen.append(self.look())
        raise RuntimeError("a metric broke")


@ensureDeferred
async def test_a_delivery_is_recorded_before_anybody_is_told(post: Post) -> None:
    hop = Hop()
    counted = Raising(look=lambda: len(rows(post, "SELECT 1 FROM part")))
    metrics = DeliveryMetrics()
    metrics.attempts = counted  # type: ignore[assignment]
    hooks: list[int] = []

    class Told:
        asks, tells = False, True

        def attempted(self, outcome: Outcome, envelope: Envelope) -> None:
            hooks.append(counted.look())
            raise RuntimeError("a hook broke")

    post.delivery = DeliveryScheduler(
        Runtime.of(reactor),
        post.spool,
        [await post.listen(hop)],
        post.settings,
        metrics,
        hooks=cast(DeliveryHooks, Told()),
    )
    post.delivery.startService()
    await post.send(*FIFTY[:3])
    await post.until(lambda: len(counted.seen) == 3)
    assert counted.seen == [0, 0, 0]
    # One's failure is not another's.
    assert hooks == [0, 0, 0]
    await post.until(lambda: post.delivery is not None and not post.delivery.under_way)
    assert await post.queued() == []
    assert len(hop.messages) == 1


@pytest.mark.parametrize("cut", ["while the notice is made", "between the record and the notice"])
@ensureDeferred
async def test_a_notice_that_is_owed_survives_an_abandoned_stop(
    post: Post, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    hop = Hop()
    post.settings = replace(post.settings, poll=0.05)
    route = await post.listen(hop)
    with monkeypatch.context() as patch:
        if cut == "while the notice is made":
            patch.setattr(f"{NOTICES}content_for_notice", lambda *_: Deferred())
        else:
            patch.setattr(SuccessNotices, "send", lambda *_: Deferred())
            patch.setattr(SuccessNotices, "walk", lambda *_: deferLater(reactor, 0))
        patch.setattr("elemta.delivery.scheduler._LAST_WAIT", 0.05)
        delivery = post.start(route)
        await send(post, "a@example.com")
        await post.until(lambda: owed(post) == 1)
        await delivery.stop_within(0.05)
    assert await post.bounces() == []
    post.start(route)
    assert len(await told(post)) == 1
    assert len(hop.messages) == 1


@ensureDeferred
async def test_a_deferred_rest_changes_nothing_for_who_was_delivered(post: Post) -> None:
    hop = Hop({"RCPT": [b"250 ok\r\n", b"450 4.2.0 later\r\n", b"550 5.1.1 no\r\n", b"250 ok\r\n"]})
    post.settings = replace(post.settings, retries=Retries((0.2,)), poll=0.05)
    post.start(await post.listen(hop))
    await send(post, *FIFTY[:3])
    notices = await told(post)
    # No failure was asked for.
    assert sorted(
        notice.count("Action: delivered") + notice.count("Action: relayed") for notice in notices
    ) == [
        1,
        1,
    ]
    assert len(hop.messages) == 2


@ensureDeferred
async def test_the_notice_and_the_note_that_it_is_owed_are_one_transaction(post: Post) -> None:
    queue_id = await send(post, "bob@example.com")
    delivered = [replace(outcome(queue_id, "bob", Status.DELIVERED), final=True)]
    await post.spool.settle(
        queue_id, delivered, retry_at=None, hold_reason=None, owes=[delivered[0].recipient]
    )
    record = await post.show(queue_id)
    assert (record.message.state, record.message.pending, record.recipients[0].owed) == (
        MessageState.DEFERRED,
        (),
        True,
    )
    (found,) = await post.spool.owed(None, 10)
    assert [each.final for each in found.outcomes] == [True]
    assert await post.spool.owed(queue_id, 10) == []

    def notice() -> Deferred[Envelope]:
        writer = post.spool.begin()
        writer.write(b"Subject: a notice\r\n\r\n")
        about = Submission(post.sender, (recipient("s@example.org"),), MailParameters(), CLIENT, TRACE, 1.0)
        return post.spool.commit(writer, about, pays=found)

    first, second = notice(), notice()
    envelope = await first
    with pytest.raises(UnknownMessage):
        await second
    assert [line.queue_id for line in await post.spool.list()] == [envelope.queue_id]
    assert post.spool.messages == dict.fromkeys(MessageState, 0) | {MessageState.ACTIVE: 1}


@ensureDeferred
async def test_a_notice_that_can_never_be_queued_is_written_off(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post.settings = replace(post.settings, retries=Retries((0.05,), expire=0.5), poll=0.05)
    commits_fail_with(SpoolFull("full"))(monkeypatch, post)
    post.start(await post.listen(Hop()))
    await send(post, "a@example.com")
    assert await told(post) == []
