"""A directory that the users of other programs can enter, too."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_directory(prefix: str) -> Iterator[Path]:
    """A directory with a short name that every user can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
