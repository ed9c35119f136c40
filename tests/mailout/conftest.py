"""What the tests of mail out share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mailout.world import World


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Path]:
    """A directory that the servers' own users can enter, which pytest's are not, with a short name."""
    with tempfile.TemporaryDirectory(prefix="mailout-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def world(open_directory: Path) -> Iterator[World]:
    """Elemta and its next hops, and at the end a look at what they had to complain about."""
    with World(open_directory) as world:
        yield world
        assert list(world.faults()) == []
