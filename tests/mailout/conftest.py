"""What the tests of mail out share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mailout.world import World
from tests.support.open_directory import open_directory


@pytest.fixture(scope="module", name="open_directory")
def _open_directory() -> Iterator[Path]:
    """A directory that the servers' own users can enter."""
    with open_directory("mailout-") as path:
        yield path


@pytest.fixture(scope="module")
def world(open_directory: Path) -> Iterator[World]:
    """Elemta and its next hops, and at the end a look at what they had to complain about."""
    with World(open_directory) as world:
        yield world
        assert list(world.faults()) == []
