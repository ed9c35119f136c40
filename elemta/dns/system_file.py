"""A small file of the system, such as /etc/hosts: read and parsed once for each change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_AGAIN = 5.0
"""Seconds from one look at a file to the next."""

_LONGEST = 1024 * 1024


class SystemFile(Generic[T]):
    """The contents of the file at ``path``, as ``parse`` makes them of its lines.

    A file that can't be read has no lines. ``seconds`` is a clock that only goes forward.
    """

    def __init__(
        self, path: str, parse: Callable[[tuple[str, ...]], T], seconds: Callable[[], float]
    ) -> None:
        self.path = path
        self._parse = parse
        self._seconds = seconds
        self._looked_at = float("-inf")
        self._version: tuple[int, int, int] | None = None
        self._contents = parse(())

    def contents(self) -> T:
        """The contents; the same object until the file changes."""
        now = self._seconds()
        if now - self._looked_at >= LOOK_AGAIN:
            self._looked_at = now
            self._look()
        return self._contents

    def _look(self) -> None:
        lines: tuple[str, ...] = ()
        version = None
        try:
            status = os.stat(self.path)
            found = (status.st_mtime_ns, status.st_ino, status.st_size)
            if found == self._version:
                return
            with Path(self.path).open(encoding="utf-8", errors="replace") as file:
                lines = tuple(file.read(_LONGEST).splitlines())
            version = found
        except OSError:
            if self._version is None:
                return
        self._version = version
        self._contents = self._parse(lines)
