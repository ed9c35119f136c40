"""What failures of the disk mean, and the reserve that lets a full disk empty the queue.

Removing a message writes, too: pages go to the log, the log moves to the database. Without a reserve a disk
that others filled would leave delivered messages in the queue, to be delivered again.
"""

from __future__ import annotations

import enum
import errno
import sqlite3
from pathlib import Path

from twisted.logger import Logger

from elemta.errors import SpoolError, SpoolFull
from elemta.runtime.disk import Disk, FreeSpace
from elemta.spool.partition import Places


class DiskFailure(enum.Enum):
    """What a failure says about the disk and the database connection.

    FULL: no space; the transaction is rolled back and the connection still good. BUSY: another process holds
    the database. OPERATION: this one operation can't be done. BROKEN: nothing that this connection
    believes may be trusted any more.
    """

    FULL = "full"
    BUSY = "busy"
    OPERATION = "operation"
    BROKEN = "disk"


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_BY_CODE = {
    sqlite3.SQLITE_FULL: DiskFailure.FULL,
    sqlite3.SQLITE_BUSY: DiskFailure.BUSY,
    sqlite3.SQLITE_LOCKED: DiskFailure.BUSY,
    sqlite3.SQLITE_CONSTRAINT: DiskFailure.OPERATION,
    sqlite3.SQLITE_MISMATCH: DiskFailure.OPERATION,
    sqlite3.SQLITE_TOOBIG: DiskFailure.OPERATION,
    sqlite3.SQLITE_RANGE: DiskFailure.OPERATION,
}


def failure_of(error: BaseException) -> DiskFailure:
    """Classify a failure. What is not known for certain to be harmless is BROKEN."""
    if isinstance(error, OSError):
        return DiskFailure.FULL if error.errno in _NO_SPACE else DiskFailure.BROKEN
    if isinstance(error, sqlite3.Error):
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is None:
            # The sqlite3 module itself refused (a value that can't be bound): SQLite never saw it.
            return DiskFailure.OPERATION
        return _BY_CODE.get(code & 0xFF, DiskFailure.BROKEN)
    return DiskFailure.OPERATION


def refusal(error: BaseException, what: str) -> SpoolError:
    """The error that a caller gets: SpoolFull (452) where there is no space, else SpoolError (451)."""
    if isinstance(error, SpoolError):
        return error
    kind = SpoolFull if failure_of(error) is DiskFailure.FULL else SpoolError
    refused = kind(f"{what}: {error}")
    refused.__cause__ = error
    return refused


def space_for_mail(disk: Disk, places: Places) -> FreeSpace:
    """The free space where a partition writes mail. OSError.

    The partition, or its large bodies, may be on a file system of their own; then it is that with less space.
    """
    found = [disk.free_space(path) for path in (places.directory, places.bodies)]
    least = min(found, key=lambda space: space.free)
    files = min((space.files for space in found if space.files is not None), default=None)
    return FreeSpace(least.free, files, least.total)


_log = Logger()


class Reserve:
    """A file that takes up space until the space is needed. While it is spent, nothing new is accepted."""

    def __init__(self, path: Path, size: int, disk: Disk) -> None:
        self.held = False
        self._reported = False
        self._path = path
        self._size = size
        self._disk = disk

    def restore(self) -> None:
        """Put the space aside again, if the disk has it."""
        if self.held:
            return
        try:
            self._disk.allocate(self._path, self._size)
        except OSError as error:
            self._remove()
            if not self._reported:
                self._reported = True
                _log.warn(
                    "no space can be kept aside; nothing new is accepted",
                    event="spool.reserve_failed",
                    reason=str(error),
                )
            return
        self.held = True
        if self._reported:
            self._reported = False
            _log.info("there is space on the spool's disk again", event="spool.space_recovered")

    def spend(self) -> None:
        """Free the space for what empties the queue."""
        if self.held:
            self.held = False
            self._reported = True
            _log.warn("the spool's disk is full; nothing new is accepted", event="spool.disk_full")
        self._remove()

    def _remove(self) -> None:
        try:
            self._disk.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.error(
                "the space kept aside can't be freed", event="spool.reserve_not_freed", reason=str(error)
            )
