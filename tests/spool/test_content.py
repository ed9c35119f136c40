"""What was just committed is sent on without a look at the disk, and does not fill the memory."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from elemta.errors import UnknownMessage
from elemta.spool import MessageState, Spool
from elemta.spool.content import RecentContents
from tests.spool.mail import HEADER, put


async def taken_in(spool: Spool) -> str:
    """A message whose arrival delivery has heard of."""
    told: Deferred[str] = Deferred()
    spool.on_committed(lambda message: told.callback(message.queue_id))
    await put(spool, b"body")
    return await told


@ensureDeferred
async def test_a_new_message_is_in_memory_until_its_first_attempt(open_spool, monkeypatch):
    spool = await open_spool()
    looks = []
    from_disk = spool._queries.content
    monkeypatch.setattr(
        spool._queries, "content", lambda queue_id: looks.append(queue_id) or from_disk(queue_id)
    )
    queue_id = await taken_in(spool)
    for _ in range(2):
        with await spool.open_content(queue_id) as content:
            assert content.in_memory
            assert content.read() == HEADER + b"body"
    assert looks == []
    await spool.settle(queue_id, (), retry_at=2e9, hold_reason=None)
    with await spool.open_content(queue_id) as content:
        assert content.read() == HEADER + b"body"
    assert looks == [queue_id]


@ensureDeferred
async def test_a_message_that_was_deleted_is_not_in_memory_either(open_spool):
    spool = await open_spool()
    queue_id = await taken_in(spool)
    await spool.delete(queue_id)
    with pytest.raises(UnknownMessage):
        await spool.open_content(queue_id)


@ensureDeferred
async def test_nothing_is_kept_that_nobody_sends_on_or_that_waits_on_hold(open_spool):
    spool = await open_spool()
    await put(spool, b"body")
    await spool.stats()
    spool.on_committed(lambda message: None)
    await put(spool, b"body", hold_reason="look at it")
    await spool.stats()
    assert spool.messages[MessageState.HOLD] == 1
    assert len(spool._recent) == 0


def test_the_oldest_make_room_and_what_is_larger_than_all_the_room_is_not_kept():
    recent = RecentContents(100)
    for name in "abc":
        recent.add(name, b"", name.encode() * 40)
    assert recent.find("a") is None
    found = recent.find("b")
    assert (found.size, found.read()) == (40, b"b" * 40)
    recent.add("large", b"x", b"y" * 100)
    assert len(recent) == 0
    for name in "de":
        recent.add(name, b"", name.encode() * 50)
        recent.discard("nobody")
    assert len(recent) == 2
