"""Delivery with its real parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted
from twisted.internet.task import deferLater

from elemta.runtime import Runtime
from elemta.spool import Spool, SpoolSettings
from tests.support.post import Post, reactor


@pytest_twisted.async_yield_fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    spool = await Spool.open(SpoolSettings(tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor))
    post = Post(tmp_path, spool)
    yield post
    await post.stop()
    await spool.close()
    await deferLater(reactor, 0)
