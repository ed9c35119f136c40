"""A disk that stays broken: what can't be recorded is not delivered again, however many retries are due."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from elemta.delivery import Retries
from elemta.spool import Spool, SpoolSettings
from tests.spool.mail import FailingDisk
from tests.support.post import Hop, Post, reactor
from tests.support.runtime import runtime_of

MESSAGES = 20
RETRY = 0.2
RETRY_PERIODS = 12
FOR_EVER = 10**9
DEFERRED = b"450 4.2.0 later\r\n"


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest_twisted.async_yield_fixture
async def post(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[Post]:
    settings = SpoolSettings(tmp_path / "spool", minimum_free=0, first_reopen=0.05, longest_reopen=0.1)
    spool = await Spool.open(settings, runtime=runtime_of(reactor, disk=disk))
    post = Post(tmp_path, spool)
    post.settings = replace(post.settings, retries=Retries((RETRY,)), poll=0.05)
    yield post
    disk.times = 0
    await post.stop()
    await spool.close()
    await deferLater(reactor, 0)


def copies(hop: Hop) -> Counter[bytes]:
    """How often each message arrived, by its body."""
    return Counter(message.rpartition(b"number ")[2] for message in hop.messages)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("place", ["before commit", "after commit"])
@ensureDeferred
async def test_a_disk_that_stays_broken_sends_no_message_twice(
    post: Post, disk: FailingDisk, number: int, place: str
) -> None:
    hop = Hop({".": DEFERRED})
    route = await post.listen(hop)
    for each in range(MESSAGES):
        await post.send("a@example.com", body=b"Subject: s\r\n\r\nnumber %d\r\n" % each)
    post.start(route)
    await post.until(lambda: len(copies(hop)) == MESSAGES)
    await post.until(lambda: not post.delivery.under_way)
    hop.script["."] = b"250 2.0.0 ok\r\n"
    hop.messages.clear()
    disk.fail(place, FOR_EVER, number)
    await deferLater(reactor, RETRY * RETRY_PERIODS)
    # At most what was under way when the disk failed.
    assert max(copies(hop).values(), default=0) <= 1
    disk.times = 0
    await post.until(lambda: len(copies(hop)) == MESSAGES)
    await post.until(lambda: not post.delivery.under_way and post.spool.settled)
    assert await post.queued() == []
    assert copies(hop) == Counter({b"%d\r\n" % each: 1 for each in range(MESSAGES)})
