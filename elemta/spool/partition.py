"""One partition of the spool on disk: its places, its modes, and the lock that says which process owns it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from elemta.errors import SpoolError, SpoolLocked
from elemta.spool.disk import Disk

TEMPORARY = "tmp."


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a partition are: ``DIR/pN/{lock,queue.db,reserve,bodies/}``."""

    directory: Path

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def database(self) -> Path:
        return self.directory / "queue.db"

    @property
    def reserve(self) -> Path:
        return self.directory / "reserve"

    @property
    def bodies(self) -> Path:
        return self.directory / "bodies"

    def body(self, queue_id: str) -> Path:
        return self.bodies / queue_id

    def unfinished_body(self, queue_id: str) -> Path:
        return self.bodies / (TEMPORARY + queue_id)


class Partition:
    """A partition that this process owns from `claim` to `leave`."""

    def __init__(self, root: Path, number: int, disk: Disk) -> None:
        self.places = Places(root / f"p{number}")
        self._root = root
        self._disk = disk
        self._lock: int | None = None

    def claim(self) -> None:
        """Create what is missing, synced, and take the lock.

        SpoolLocked: another process owns it. SpoolError: the directory can't be made or used.
        """
        places = self.places
        try:
            missing = [path for path in (places.bodies, *places.bodies.parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(0o700, exist_ok=True)
            self._lock = self._take_lock()
            self._touch(places.database)
            for path in {path.parent for path in missing} | {self._root, places.directory}:
                self._disk.sync_directory(path)
        except OSError as error:
            self.leave()
            raise SpoolError(f"the spool directory {self._root} can't be used: {error}") from error

    def leave(self) -> None:
        """Give the partition up; the kernel does the same when the process dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _touch(self, path: Path) -> None:
        # SQLite gives its side files the mode of the database, so the database gets the right one first.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _take_lock(self) -> int:
        descriptor = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise SpoolLocked(f"{who} owns the spool partition {self.places.directory}") from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        return descriptor
