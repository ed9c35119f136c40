"""``services.outbox``: what a policy has to send on, kept on disk until it is sent.

Each policy's name has one below the spool directory, ``DIR/pN/outbox/NAME.db``. It outlives reloads and
restarts. Many records that are appended at the same time are written in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, fail

from elemta.envelope import Envelope
from elemta.errors import BackendError
from elemta.policy.outbox_file import OutboxFile
from elemta.policy.outbox_record import OutboxRecord, OutboxStart
from elemta.runtime import OrderedWorker, Runtime

R = TypeVar("R")

MAX_RECORD = 64 * 1024
"""Octets of one record."""

MOST_PENDING = 8 * 1024 * 1024
"""Octets of records that wait for the disk, in memory."""

_AT_ONCE = 1000


class Outbox(Protocol):
    """Records in the order in which they were appended, on stable storage, up to 64 MiB.

    Each method may raise :class:`~elemta.errors.BackendError`: the disk does not take or give it.
    """

    async def start(self) -> OutboxStart:
        """What an earlier run of the daemon left; called once, in the policy's ``start``."""

    async def caught_up(self) -> None:
        """What an earlier run may not have appended was appended now, where it was not complete."""

    def append(self, *records: bytes) -> Deferred[int]:
        """Append records of up to 64 KiB each.

        The Deferred fires when they are on stable storage, and so is all that was appended before, with the
        number of the oldest records that were dropped for want of space. To cancel it ends the wait only.
        It fails where the disk fails, or is so slow that 8 MiB wait for it: the records are lost then.
        """

    async def read(self, most: int = 100, octets: int = 256 * 1024) -> Sequence[OutboxRecord]:
        """The oldest records: at most so many, of about so many octets."""

    async def remove(self, number: int) -> None:
        """Remove the records up to this number: they were sent."""

    async def finish(self) -> None:
        """Write all that was appended, and note that nothing is missing; called last, in ``stop``."""


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Envelopes of messages in the queue; ``after`` is the queue id to go on behind, None at the end."""

    envelopes: Sequence[Envelope]
    after: str | None


class QueueView(Protocol):
    """``services.queue``: the messages that this node has in its queue."""

    async def received_since(self, at: float, after: str | None = None) -> QueuePage:
        """Messages that were received at ``at`` (seconds since the epoch) or later.

        A page may be short or empty with more behind it. BackendError: the queue can't be read.
        """


class NoQueue:
    """The queue of a process that has none, as ``--check``."""

    async def received_since(self, at: float, after: str | None = None) -> QueuePage:  # noqa: ARG002
        return QueuePage((), None)


class NoOutbox:
    """The outbox of a process that has no spool, as ``--check``."""

    async def start(self) -> OutboxStart:
        raise _no_spool()

    async def caught_up(self) -> None:
        raise _no_spool()

    def append(self, *records: bytes) -> Deferred[int]:  # noqa: ARG002
        return fail(_no_spool())

    async def read(self, most: int = 100, octets: int = 256 * 1024) -> Sequence[OutboxRecord]:  # noqa: ARG002
        raise _no_spool()

    async def remove(self, number: int) -> None:  # noqa: ARG002
        raise _no_spool()

    async def finish(self) -> None:
        raise _no_spool()


def check_records(records: Sequence[bytes]) -> None:
    """Raise ValueError for what an outbox can't keep."""
    if any(not isinstance(each, bytes) or len(each) > MAX_RECORD for each in records):
        raise ValueError(f"a record is at most {MAX_RECORD} octets")


def _no_spool() -> BackendError:
    return BackendError("there is no spool, and so no outbox")


class PolicyOutbox:
    """The :class:`Outbox` of one policy's name, in a thread of its own."""

    def __init__(self, path: Callable[[], Path | None], name: str, runtime: Runtime) -> None:
        self._path = path
        self._name = name
        self._runtime = runtime
        self._opened: tuple[OutboxFile, OrderedWorker] | None = None
        self._pending: list[tuple[Sequence[bytes], Deferred[int]]] = []
        self._octets = 0
        self._is_writing = False
        self._is_closed = False

    async def start(self) -> OutboxStart:
        file, worker = self._open()
        return await self._answer(worker.call(file.start, self._runtime.wall()))

    async def caught_up(self) -> None:
        # Behind all that waits.
        await self.append()
        file, worker = self._open()
        await self._answer(worker.call(file.caught_up))

    def append(self, *records: bytes) -> Deferred[int]:
        check_records(records)
        octets = sum(map(len, records))
        if self._octets + octets > MOST_PENDING:
            return fail(BackendError(f"{self._octets} octets wait for the disk already"))
        done: Deferred[int] = Deferred()
        self._pending.append((records, done))
        self._octets += octets
        if not self._is_writing:
            self._is_writing = True
            Deferred.fromCoroutine(self._write())
        return done

    async def read(self, most: int = 100, octets: int = 256 * 1024) -> Sequence[OutboxRecord]:
        file, worker = self._open()
        return await self._answer(worker.call(file.read, most, octets))

    async def remove(self, number: int) -> None:
        file, worker = self._open()
        await self._answer(worker.call(file.remove, number))

    async def finish(self) -> None:
        # Empty, and behind all that waits.
        await self.append()
        file, worker = self._open()
        await self._answer(worker.call(file.finish, self._runtime.wall()))

    def close(self) -> None:
        """The daemon ends, or no chain has the policy any more. What was appended is written.

        A policy that still has this outbox gets BackendError from then on.
        """
        waiting, self._pending = self._pending, []
        if waiting:
            Deferred.fromCoroutine(self._write_batch(waiting))
        # A thread that was started again would keep the process from its end.
        self._is_closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            file, worker = opened
            worker.start(file.close)
            worker.stop()

    def _open(self) -> tuple[OutboxFile, OrderedWorker]:
        if self._is_closed:
            raise BackendError(f"the outbox of {self._name} is closed")
        if self._opened is None:
            path = self._path()
            if path is None:
                raise _no_spool()
            file = OutboxFile(path, self._runtime.disk)
            self._opened = file, self._runtime.threads.ordered(f"elemta-outbox-{self._name}")
        return self._opened

    async def _write(self) -> None:
        """Write what waits until nothing does. It never fails."""
        while self._pending:
            batch, self._pending = self._pending[:_AT_ONCE], self._pending[_AT_ONCE:]
            await self._write_batch(batch)
        self._is_writing = False

    async def _write_batch(self, batch: Sequence[tuple[Sequence[bytes], Deferred[int]]]) -> None:
        records = [each for some, _ in batch for each in some]
        answer: int | BackendError
        try:
            file, worker = self._open()
            answer = await self._answer(worker.call(file.append, records, self._runtime.wall()))
        except BackendError as error:
            answer = error
        self._octets -= sum(map(len, records))
        _tell_all([done for _, done in batch], answer)

    async def _answer(self, asked: Deferred[R]) -> R:
        try:
            return await asked
        except (sqlite3.Error, OSError) as error:
            raise BackendError(f"the outbox of {self._name}: {error}") from error


def _tell_all(waiting: Sequence[Deferred[int]], answer: int | BackendError) -> None:
    for done in waiting:
        if done.called:
            continue  # its wait was cancelled
        if isinstance(answer, BackendError):
            done.errback(answer)
        else:
            done.callback(answer)
            # The first says how many were dropped: they count once.
            answer = 0
