"""Mail to spool, and disks that tell or fail."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elemta.address import Address
from elemta.envelope import Client, Envelope, MailParameters, Recipient
from elemta.metrics import SpoolMetrics
from elemta.outcome import Outcome, Status
from elemta.spool import Disk, HoldCause, MessageWriter, QueuedMessage, Spool, Submission
from tests.support.metrics import record

SENDER = Address("alice", "example.org")
HEADER = b"Received: from client by mx; now\r\n"


def recipients(*names: str) -> tuple[Recipient, ...]:
    return tuple(Recipient(Address(name, "example.com")) for name in names)


def submission(
    *names: str, header: bytes = HEADER, hold_reason: str | None = None, at: float | None = None
) -> Submission:
    return Submission(
        SENDER,
        recipients(*(names or ("bob",))),
        MailParameters(),
        Client("192.0.2.1", "client.example", "mx", "SESSION"),
        header,
        time.time() if at is None else at,
        hold_reason,
    )


def written(spool: Spool, *pieces: bytes) -> MessageWriter:
    writer = spool.begin()
    for piece in pieces:
        writer.write(piece)
    return writer


async def put(
    spool: Spool,
    body: bytes,
    *names: str,
    hold_reason: str | None = None,
    hold: HoldCause = HoldCause.OPERATOR,
) -> Envelope:
    message = replace(submission(*names, hold_reason=hold_reason), hold=hold)
    return await spool.commit(written(spool, body), message)


async def due(
    spool: Spool, now: float, limit: int = 10, excluding: Sequence[str] = ()
) -> list[QueuedMessage]:
    """What is due in any destination, destination by destination."""
    destinations = {destination: limit for destination, _ in await spool.destinations(None, 1000)}
    known = {
        destination: [(queue_id, number) for queue_id in excluding for number in range(9)]
        for destination in destinations
    }
    return [message for found in await spool.due(now, destinations, known) for message in found.messages]


async def read(spool: Spool, queue_id: str) -> bytes:
    with await spool.open_content(queue_id) as content:
        return content.read()


def outcome(queue_id: str, name: str, status: Status, *, text: str = "said so", at: float = 1.0) -> Outcome:
    return Outcome(
        queue_id,
        Address(name, "example.com"),
        status,
        text,
        "smtp://hop:25",
        "hop[192.0.2.9]",
        at,
        0.5,
        250,
        "2.0.0",
    )


def body_for(queue_id: str) -> bytes:
    """A body that its queue id determines: mostly small, every fourth beyond what the database keeps."""
    digest = hashlib.sha256(queue_id.encode()).hexdigest().encode()
    return (digest + b"\r\n") * (2000 if digest[0] in b"0123" else 3 + digest[1] % 20)


class RecordingDisk(Disk):
    """The real disk, with a diary; sees the transactions too."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.set_trace_callback(self._statement)
        return connection

    def sync_file(self, descriptor: int) -> None:
        super().sync_file(descriptor)
        self.diary.append(f"fdatasync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name[:4]}")

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.diary.append(f"rename {source.name[:4]}")

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.diary.append(f"fsync {path.name}")

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.diary.append(f"unlink {path.name[:4]}")

    def _statement(self, statement: str) -> None:
        verb = statement.split(None, 3)
        if verb[0] == "COMMIT" or verb[:3] == ["INSERT", "INTO", "message"]:
            self.diary.append(" ".join(verb[:3]))


class _FailingConnection(sqlite3.Connection):
    fault: Callable[[str], None]

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> sqlite3.Cursor:  # type: ignore[override]
        if statement == "COMMIT":
            self.protocol_error("before commit")
            cursor = super().execute(statement)
            self.protocol_error("after commit")
            return cursor
        if statement.startswith("PRAGMA wal_checkpoint"):
            self.protocol_error("checkpoint")
        return super().execute(statement, values)


# What SQLite makes of the error numbers of a write.
_SQLITE_SAYS = {
    errno.ENOSPC: ("database or disk is full", sqlite3.SQLITE_FULL),
    errno.EDQUOT: ("disk I/O error", sqlite3.SQLITE_IOERR_WRITE),
    errno.EROFS: ("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
}


class FailingDisk(Disk):
    """A disk with faults to order: a place where it fails, how often, and with which error number."""

    def __init__(self) -> None:
        self.place = ""
        self.times = 0
        self.number = errno.EIO
        #: Places that fail as well, for as long as they are named here.
        self.broken: set[str] = set()

    def fail(self, place: str, times: int = 1, number: int = errno.EIO) -> None:
        self.place, self.times, self.number = place, times, number

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, factory=_FailingConnection
        )
        connection.protocol_error = self._database_fault
        return connection

    def write(self, descriptor: int, chunks: Sequence[bytes | bytearray]) -> None:
        self._fault("write")
        super().write(descriptor, chunks)

    def sync_file(self, descriptor: int) -> None:
        self._fault("fdatasync")
        super().sync_file(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._fault("close")

    def rename(self, source: Path, target: Path) -> None:
        self._fault("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._fault("fsync")
        super().sync_directory(path)

    def unlink(self, path: Path) -> None:
        self._fault("unlink")
        super().unlink(path)

    def _due(self, place: str) -> bool:
        if place in self.broken:
            return True
        if place != self.place or not self.times:
            return False
        self.times -= 1
        return True

    def _fault(self, place: str) -> None:
        if self._due(place):
            raise OSError(self.number, os.strerror(self.number))

    def _database_fault(self, place: str) -> None:
        if self._due(place):
            words, code = _SQLITE_SAYS.get(self.number, ("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC))
            error = sqlite3.OperationalError(words)
            error.sqlite_errorcode = code
            raise error


class Counted(SpoolMetrics):
    """Keeps what the spool counts, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = record(self, "commit_messages")
        self.failed = record(self, "failures")
        self.ended = record(self, "holds_ended")
