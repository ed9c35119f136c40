"""A result that the spool can't write and does not keep: what was delivered is not delivered again."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from elemta.delivery import Retries
from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings
from elemta.spool.operations import DeliveryResult
from elemta.spool.parts import StoredMessage, settle
from tests.support.post import Hop, Post, reactor


@pytest_twisted.async_yield_fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    settings = SpoolSettings(tmp_path / "spool", minimum_free=0, refresh=0.1)
    made = Post(tmp_path, await Spool.open(settings, runtime=Runtime.of(reactor)))
    made.settings = replace(made.settings, retries=Retries((0.05,)), poll=0.05)
    yield made
    await made.stop()
    await made.spool.close()


@ensureDeferred
async def test_a_delivery_that_can_not_be_written_is_not_made_again(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool is healthy and refuses this one: its outcome can't be recorded, in whatever words."""
    stubborn, asked = set[str](), Counter[str]()

    def refuse(message: StoredMessage, result: DeliveryResult) -> None:
        asked[result.queue_id] += 1
        if result.queue_id in stubborn:
            raise ValueError("this can't be")
        settle(message, result)

    monkeypatch.setattr("elemta.spool.sql.settle", refuse)
    hop = Hop()
    route = await post.listen(hop)
    queue_id = await post.send("bob@example.com")
    stubborn.add(queue_id)
    post.start(route)
    await post.until(lambda: asked[queue_id] > 10)
    assert len(hop.messages) == 1
    assert post.spool.settled
    # Mail of others passes.
    other = await post.send("eve@example.com")
    await post.until(lambda: len(hop.messages) == 2)
    stubborn.clear()
    while await post.queued():
        await deferLater(reactor, 0.01)
    assert asked[other] > 0
    assert len(hop.messages) == 2
