"""The system calls that durability rests on. A test makes one of them fail, or records their order."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_IOV_MAX = 512
_sync_data = getattr(os, "fdatasync", os.fsync)


#: Text of a damaged row must not fail the page that it is on.
read_text = partial(str, encoding="utf-8", errors="replace")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written within it, or undo all of that where anything fails, the commit included."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """Free space for this process, in bytes and in files (None: the file system does not count them).

    ``total`` is the size of the whole disk; None where nothing is known of it.
    """

    free: int
    files: int | None
    total: int | None = None


class Disk:
    """The disk of this system. All methods block."""

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection whose transactions are all explicit; threads take turns with it."""
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=5.0, cached_statements=512
        )
        connection.text_factory = read_text
        return connection

    def create(self, path: Path) -> int:
        """Open a new file for appending; it must not be there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, chunks: Sequence[bytes | bytearray]) -> None:
        """Write all chunks, however short the single writes are."""
        waiting = [memoryview(chunk) for chunk in chunks if chunk]
        while waiting:
            written = os.writev(descriptor, waiting[:_IOV_MAX])
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]

    def sync_file(self, descriptor: int) -> None:
        """Return when the file's data are on stable storage. A failure is final for this file."""
        _sync_data(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def allocate(self, path: Path, size: int) -> None:
        """Make a file of this size whose space is really taken."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def sync_directory(self, path: Path) -> None:
        """Return when the directory's entries (new names, renames) are on stable storage."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def names(self, path: Path) -> list[str]:
        return os.listdir(path)

    def free_space(self, path: Path) -> FreeSpace:
        status = os.statvfs(path)
        return FreeSpace(
            status.f_bavail * status.f_frsize,
            status.f_favail if status.f_files else None,
            status.f_blocks * status.f_frsize,
        )
