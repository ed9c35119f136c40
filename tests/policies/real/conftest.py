"""What the tests of policies with real programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.open_directory import open_directory


@pytest.fixture(scope="module", name="open_directory")
def _open_directory() -> Iterator[Path]:
    """A directory that the filters' own users can enter."""
    with open_directory("filters-") as path:
        yield path
