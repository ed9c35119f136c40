"""What these tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with the ``TABLES`` of the test's module."""
    daemon = Daemon(tmp_path / "node", request.module.TABLES).start()
    yield daemon
    daemon.kill()
