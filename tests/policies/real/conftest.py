"""What the tests of policies with real programs share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Path]:
    """A directory that the filters' own users can enter, which pytest's are not, with a short name."""
    with tempfile.TemporaryDirectory(prefix="filters-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
