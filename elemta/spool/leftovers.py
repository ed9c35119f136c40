"""Files that no message needs: removed at once, and again and again where the disk refuses that."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from twisted.logger import Logger

from elemta.runtime.disk import Disk

_log = Logger()

# Each costs some hundred octets; beyond that the next start has to find them.
_MOST = 100_000


class Leftovers:
    """Removes body files. Its methods block, but for ``waiting``; any thread may call them."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        # In the order in which they are tried.
        self._left: dict[Path, None] = {}
        self._turn = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many files could not be removed yet."""
        return len(self._left)

    def remove(self, paths: Iterable[Path]) -> bool:
        """Remove files, now or at a later :meth:`retry`; one that is not there is no error.

        Whether all of them are gone now.
        """
        gone = True
        for path in paths:
            error = self._unlink(path)
            if error is not None:
                self._keep(path, error)
                gone = False
        return gone

    def retry(self) -> None:
        """Try again what could not be removed, until one still can't be, which is the last one next time."""
        with self._turn:
            left = tuple(self._left)
        for path in left:
            stays = self._unlink(path) is not None
            with self._turn:
                self._left.pop(path, None)
                if stays:
                    self._left[path] = None
            if stays:
                return
        if not self._left:
            _log.info("the body files that were left are removed", event="spool.bodies_removed")

    def _unlink(self, path: Path) -> OSError | None:
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error
        return None

    def _keep(self, path: Path, error: OSError) -> None:
        with self._turn:
            kept = len(self._left) < _MOST
            if kept:
                self._left[path] = None
        _log.warn(
            "a body file could not be removed; it is tried again",
            event="spool.orphan_body",
            file=path.name,
            reason=str(error) if kept else f"{error}; too many are left, so the next start removes it",
        )
