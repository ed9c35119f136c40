"""Spools in a directory of the test's own, closed when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from elemta.spool import Disk, Spool, SpoolSettings
from tests.spool.mail import Counted
from tests.support.runtime import runtime_of

OpenSpool = Callable[..., Awaitable[Spool]]


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def open_spool(tmp_path: Path, counted: Counted) -> Iterator[OpenSpool]:
    """Opens a spool; `directory`, `disk` and every setting may be given."""
    from twisted.internet import reactor

    opened: list[Spool] = []

    async def open_(directory: Path = tmp_path / "spool", disk: Disk | None = None, **settings: Any) -> Spool:
        settings.setdefault("minimum_free", 0)
        chosen = SpoolSettings(directory, **settings)
        runtime = runtime_of(reactor, disk=disk or Disk())
        spool = await Spool.open(chosen, runtime=runtime, metrics=counted)  # type: ignore[arg-type]
        opened.append(spool)
        return spool

    yield open_
    for spool in opened:
        pytest_twisted.blockon(Deferred.fromCoroutine(spool.close()))
