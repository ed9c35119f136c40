"""What a fault of ours leaves behind: a hold with its reason, an owed notice, a spool that starts over."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from elemta.delivery import Retries
from elemta.delivery.notices import notice_settings, return_to_sender
from elemta.envelope import Client, Envelope, MailParameters, Notify
from elemta.errors import SpoolError, UnknownMessage
from elemta.message.notice import Notice
from elemta.outcome import Status
from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, SpoolSettings, Submission
from elemta.spool.group_commit import GroupCommit
from elemta.spool.records import HoldCause
from elemta.spool.writer import QueueWriter
from tests.spool.mail import outcome
from tests.support.post import BODY, TRACE, Hop, Post, files, reactor, recipient

ODD_SUBJECT = b"Subject: =?utf-8?b?//8=?= \xff\xfe\r\n\r\nx\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 40_000


def settings_for(directory: Path) -> SpoolSettings:
    return SpoolSettings(directory, minimum_free=0, first_reopen=0.02, longest_reopen=0.05, refresh=0.1)


async def open_post(directory: Path) -> Post:
    settings = settings_for(directory / "spool")
    made = Post(directory, await Spool.open(settings, runtime=Runtime.of(reactor)))
    made.settings = replace(made.settings, retries=Retries((0.05,)), poll=0.05)
    return made


@pytest_twisted.async_yield_fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    made = await open_post(tmp_path)
    yield made
    await made.stop()
    await made.spool.close()


async def delivered_and_owed(post: Post) -> Notice:
    """A delivery that is recorded, and whose notice the sender asked for."""
    writer = post.spool.begin()
    writer.write(BODY)
    people = (replace(recipient("bob@example.com"), notify=Notify.SUCCESS),)
    submission = Submission(post.sender, people, MailParameters(), Client(session_id="S"), TRACE, time.time())
    queue_id = (await post.spool.commit(writer, submission)).queue_id
    delivered = [replace(outcome(queue_id, "bob", Status.DELIVERED), final=True)]
    await post.spool.settle(
        queue_id, delivered, retry_at=None, hold_reason=None, owes=[delivered[0].recipient]
    )
    (owed,) = await post.spool.owed(None, 10)
    return owed


@pytest.mark.parametrize("broken", ["conclusion", "attempt"])
@pytest.mark.parametrize("unreadable", ["subject", "body"])
@ensureDeferred
async def test_a_part_whose_attempts_break_twice_is_held_shown_and_can_be_returned(
    post: Post, monkeypatch: pytest.MonkeyPatch, broken: str, unreadable: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("odd words")

    place = "follow_up" if broken == "conclusion" else "rest_of"
    monkeypatch.setattr(f"elemta.delivery.attempt.{place}", fails)
    if broken == "attempt":
        monkeypatch.setattr("elemta.delivery.attempt.Outcome", fails)
        monkeypatch.setattr("elemta.delivery.attempt.AttemptRunner._record_rest", fails)
    hop = Hop({"RCPT": b"450 4.2.0 greylisted\r\n"})
    post.start(await post.listen(hop))
    queue_id = await post.send("bob@example.com", body=ODD_SUBJECT if unreadable == "subject" else LARGE)
    record = await post.reached(queue_id, MessageState.HOLD)
    assert record.message.hold_reason is not None
    assert "ValueError('odd words')" in record.message.hold_reason
    assert sum(line.startswith(b"RCPT") for line in hop.heard) == 2
    (bob,) = record.recipients
    assert record.message.attempts == 2
    if broken == "conclusion":
        assert bob.outcome is not None
        assert bob.outcome.status is Status.DEFERRED
        assert "greylisted" in bob.outcome.text
    (held,) = await post.spool.held(time.time() + 1, 10)
    assert held.hold is HoldCause.FAULT
    if unreadable == "body":
        for path in files(post.directory / "spool"):
            if path.parent.name == "bodies":
                path.unlink()
    returned = await return_to_sender(post.spool, queue_id, notice_settings(post.settings), time.time)
    assert (returned.recipients, returned.notices) == (1, 1)
    assert await post.queued() == []
    (queued,) = await post.spool.list()
    with await post.spool.open_content(queued.queue_id) as content:
        assert b"bob@example.com" in content.read()


@ensureDeferred
async def test_a_notice_owed_at_a_kill_is_sent_once_after_the_next_start(tmp_path: Path) -> None:
    first = await open_post(tmp_path / "first")
    await delivered_and_owed(first)
    # What a kill leaves: the files as they are.
    (tmp_path / "killed").mkdir()
    shutil.copytree(tmp_path / "first" / "spool", tmp_path / "killed" / "spool")
    await first.spool.close()
    hop = Hop()
    for expected in (1, 1):
        again = await open_post(tmp_path / "killed")
        again.start(await again.listen(hop))
        until = time.monotonic() + 20
        while await again.queued() or len(await again.bounces()) < expected:
            assert time.monotonic() < until
            await deferLater(reactor, 0.02)
        await deferLater(reactor, 0.2)
        assert len(await again.bounces()) == expected
        await again.stop()
        await again.spool.close()
    assert hop.messages == []


@ensureDeferred
async def test_results_that_came_late_survive_a_fault_in_opening_the_spool_anew(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_id = await post.send("bob@example.com")
    kept, broken = QueueWriter.keep, list(range(3))

    def keep(writer: QueueWriter, late: list[Any]) -> None:
        if broken:
            broken.pop()
            raise MemoryError
        kept(writer, late)

    monkeypatch.setattr(QueueWriter, "keep", keep)
    post.spool._commits.distrust(OSError("EIO"))
    with pytest.raises(SpoolError):
        await post.spool.settle(
            queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
        )
    await post.until(lambda: post.spool.settled)
    assert broken == []
    assert await post.queued() == []


@pytest.mark.parametrize(
    ("place", "times"),
    [
        ("_finished", 1),
        ("_run_next", 1),
        ("_conclude", 1),
        ("_conclude", 2),
        ("_conclude", 3),
        ("_conclude", 4),
        ("_observe", 1),
    ],
)
@ensureDeferred
async def test_a_fault_in_a_commit_neither_loses_nor_doubles_a_notice_and_its_payment(
    post: Post, monkeypatch: pytest.MonkeyPatch, place: str, times: int
) -> None:
    owed = await delivered_and_owed(post)

    def notice() -> Deferred[Envelope]:
        writer = post.spool.begin()
        writer.write(b"Subject: a notice\r\n\r\n")
        about = Submission(
            post.sender, (recipient("s@example.org"),), MailParameters(), Client(session_id="S"), TRACE, 1.0
        )
        return post.spool.commit(writer, about, pays=owed)

    whole, broken = getattr(GroupCommit, place), [True] * times

    def fails(*args: Any) -> Any:
        if broken:
            broken.pop()
            raise KeyError(place)
        return whole(*args)

    monkeypatch.setattr(GroupCommit, place, fails)
    for _ in range(5):
        try:
            await notice()
        except UnknownMessage:
            break
        except SpoolError:
            await post.until(lambda: post.spool.settled)
    assert broken == []
    assert await post.spool.owed(None, 10) == []
    assert [line.state for line in await post.spool.list()] == [MessageState.ACTIVE]


@ensureDeferred
async def test_a_spool_whose_threads_take_no_work_for_a_while_starts_over_and_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = await open_post(tmp_path)
    queue_id = await post.send("bob@example.com")
    threads = type(post.spool._threads.commit)
    with monkeypatch.context() as patch:

        def fails(*_: object, **__: object) -> None:
            raise MemoryError

        patch.setattr(threads, "call", fails)
        patch.setattr(threads, "start", fails)
        patch.setattr(threads, "start_or", fails)
        with pytest.raises(SpoolError):
            await post.spool.settle(
                queue_id, [outcome(queue_id, "bob", Status.DELIVERED)], retry_at=None, hold_reason=None
            )
        # Some tries to open it anew, and some refreshes.
        await deferLater(reactor, 0.4)
        assert not post.spool.settled
    await post.until(lambda: post.spool.settled)
    assert await post.queued() == []
    await post.spool.close()
