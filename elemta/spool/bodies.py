"""Bodies on their way in: small ones stay in memory, large ones stream to a file in the disk's threads.

Memory is counted as Python takes it: a piece of two octets that is an object of its own takes 60.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import SpoolError
from elemta.metrics import SpoolMetrics
from elemta.runtime import OrderedWorker
from elemta.runtime.disk import Disk
from elemta.spool.disk import refusal
from elemta.spool.leftovers import Leftovers
from elemta.spool.partition import Places
from elemta.spool.records import SpoolSettings

_log = Logger()

HEAD = 64 * 1024
# Smaller pieces are joined: the object around a piece, and its place in a list, are up to 60 octets.
_JOINED_BELOW = 1024

Piece = bytes | bytearray


class BodyFile:
    """A body under way to its file. Its methods block; threads take turns."""

    def __init__(self, path: Path, disk: Disk, leftovers: Leftovers) -> None:
        self.path = path
        self._disk = disk
        self._leftovers = leftovers
        self._descriptor: int | None = None
        # Whether the file is there, and this object's to remove.
        self._is_ours = False
        self._abandoned = False
        self._turn = threading.Lock()

    def append(self, chunks: Sequence[Piece]) -> None:
        """Write the next octets; the first call creates the file. A file that was given up stays away."""
        with self._turn:
            if self._abandoned:
                return
            if self._descriptor is None:
                self._descriptor = self._disk.create(self.path)
                self._is_ours = True
            try:
                self._disk.write(self._descriptor, chunks)
            except BaseException:
                # At once: what it wrote may be the space that others need.
                self._abandoned = True
                self._remove()
                raise

    def finish(self) -> None:
        """Sync and close. After a failure the file is gone: a second sync of it would prove nothing."""
        with self._turn:
            descriptor = self._descriptor
            if descriptor is None:
                raise SpoolError("the body was never written")
            try:
                self._disk.sync_file(descriptor)
                self._descriptor = None
                self._disk.close(descriptor)
            except BaseException:
                self._remove()
                raise
            self._is_ours = False

    def abandon(self) -> None:
        """Remove an unfinished file; a finished one is no longer this object's."""
        with self._turn:
            self._abandoned = True
            self._remove()

    def _remove(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if not self._is_ours:
            return
        self._is_ours = False
        if descriptor is not None:
            # What close says of octets that are thrown away does not count.
            with suppress(OSError):
                self._disk.close(descriptor)
        self._leftovers.remove([self.path])


class Bodies:
    """What the writers of one spool share: directory, threads, and the memory that they may use together."""

    def __init__(
        self,
        settings: SpoolSettings,
        places: Places,
        disk: Disk,
        threads: OrderedWorker,
        metrics: SpoolMetrics,
        *,
        leftovers: Leftovers,
    ) -> None:
        self.settings = settings
        self.threads = threads
        self.metrics = metrics
        self.in_memory = 0
        self.writers: dict[MessageWriter, None] = {}
        self._places = places
        self._disk = disk
        self._leftovers = leftovers

    def new_file(self, queue_id: str) -> BodyFile:
        return BodyFile(self._places.unfinished_body(queue_id), self._disk, self._leftovers)

    @property
    def crowded(self) -> bool:
        """Whether all writers together hold as much memory as they may."""
        return self.in_memory > self.settings.memory


class MessageWriter:
    """Takes the body of one message, piece by piece, and never blocks.

    ``queue_id`` is the message's from the start; ``size`` the octets written so far; ``failure`` what went
    wrong with the disk (then what is written is dropped and the commit fails).
    """

    def __init__(self, queue_id: str, bodies: Bodies) -> None:
        self.queue_id = queue_id
        self.size = 0
        self.failure: SpoolError | None = None
        self._bodies = bodies
        self._chunks: list[Piece] = []
        self._unwritten = 0
        # The memory that chunks, head and what is on its way to the disk take; and two parts of that.
        self._held = 0
        self._held_by_chunks = 0
        self._held_by_disk = 0
        self._file: BodyFile | None = None
        #: Whether the body goes to a file.
        self.in_file = False
        # The first octets of a body in a file; of any other the chunks are all there is.
        self._head = bytearray()
        self._writing = False
        #: Whether the writer was committed or discarded.
        self.ended = False
        self._waiting: list[Deferred[None]] = []

    def write(self, data: bytes) -> None:
        """Take the next octets. Returns at once; `congested` tells when to stop giving."""
        if self.ended:
            raise SpoolError("the message is already committed or discarded")
        if not data:
            return
        self.size += len(data)
        if self.failure is not None:
            return
        self._add(data)
        if self._file is not None:
            self._extend_head(data)
            self._write_out()
        elif self.size > self._bodies.settings.inline_limit or self._bodies.crowded:
            self._spill()

    @property
    def head(self) -> bytes:
        """The first 64 KiB of the body, or as much as there is; after a failure, as much as came before."""
        return bytes(self._head) if self._file is not None else self._joined()[:HEAD]

    @property
    def congested(self) -> bool:
        """Whether the disk is behind: more than a MiB is unwritten, or memory is scarce and anything is."""
        if self._file is None:
            return False
        unwritten = self._unwritten
        return unwritten > self._bodies.settings.congestion or (unwritten > 0 and self._bodies.crowded)

    def when_drained(self) -> Deferred[None]:
        """Fires when all that was written so far is with the disk (or has failed); at once if it is."""
        done: Deferred[None] = Deferred()
        if self._writing:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def open(self) -> BinaryIO:
        """The body so far as a binary file. For one that is in a file, wait for `when_drained` first.

        SpoolError: the disk failed, or is still writing.
        """
        if self.failure is not None:
            raise self.failure
        if self._file is None:
            return io.BytesIO(self._joined())
        if self._writing:
            raise SpoolError("the body is still being written")
        try:
            return self._file.path.open("rb")
        except OSError as error:
            raise refusal(error, "the body can't be read") from error

    def discard(self) -> None:
        """Forget the message; harmless after a commit."""
        if self.ended:
            return
        self.ended = True
        self._chunks = []
        # What the disk still works on stays in memory, and counted, until it is done with it.
        self._release(self._held - self._held_by_disk)
        self._drop_file()

    def give_way(self) -> Deferred[None]:
        """Discard the message for another with its queue id; fires when no file of it is in the way.

        What was opened before can still be read.
        """
        gone: Deferred[None] = Deferred()
        file, self._file = self._file, None
        self.in_file = False
        self.discard()
        if file is None:
            gone.callback(None)
            return gone
        self._bodies.writers.pop(self, None)
        return self._bodies.threads.call(file.abandon)

    def take(self) -> bytes:
        """The whole body of a message in memory; the writer takes no more. The memory stays counted."""
        self.ended = True
        body, self._chunks = self._joined(), []
        return body

    def finish(self) -> Deferred[None]:
        """Sync and close the file, still under its unfinished name; the writer takes no more.

        Fails with SpoolFull or SpoolError; then the file is gone.
        """
        self.ended = True
        done: Deferred[None] = Deferred()
        self.when_drained().addCallback(self._sync, done)
        return done

    def release(self) -> None:
        """Give back the memory that the body took: it is on disk, or refused."""
        self._release(self._held)
        self._bodies.writers.pop(self, None)

    def _joined(self) -> bytes:
        chunks = self._chunks
        if len(chunks) != 1 or type(chunks[0]) is not bytes:
            chunks[:] = [b"".join(chunks)]
        return chunks[0]  # type: ignore[return-value]  # a cast is a call

    def _add(self, data: bytes) -> None:
        self._unwritten += len(data)
        last = self._chunks[-1] if self._chunks else None
        if type(last) is bytearray and len(data) < _JOINED_BELOW:
            before = last.__sizeof__()
            last += data
            taken = last.__sizeof__() - before
        else:
            # A piece that comes alone, as nearly every small message does, is kept as it is.
            piece = bytearray(data) if last is not None and len(data) < _JOINED_BELOW else data
            self._chunks.append(piece)
            taken = piece.__sizeof__()
        self._held_by_chunks += taken
        self._hold(taken)

    def _hold(self, octets: int) -> None:
        self._held += octets
        self._bodies.in_memory += octets

    def _release(self, octets: int) -> None:
        self._held -= octets
        self._bodies.in_memory -= octets

    def _spill(self) -> None:
        self._file = self._bodies.new_file(self.queue_id)
        self.in_file = True
        self._bodies.writers[self] = None
        for chunk in self._chunks:
            self._extend_head(chunk)
        self._write_out()

    def _extend_head(self, data: Piece) -> None:
        """Add octets that were not added before: each goes through here once, whenever it is written."""
        missing = HEAD - len(self._head)
        if missing > 0:
            before = self._head.__sizeof__()
            self._head += data[:missing]
            self._hold(self._head.__sizeof__() - before)

    def _write_out(self) -> None:
        if self._writing or self._file is None:
            return
        self._writing = True
        chunks, self._chunks = self._chunks, []
        self._held_by_disk, self._held_by_chunks = self._held_by_chunks, 0
        octets = sum(map(len, chunks))
        self._bodies.threads.call(self._file.append, chunks).addCallbacks(
            self._written, self._failed, callbackArgs=(octets,), errbackArgs=(octets,)
        )

    def _written(self, _: None, octets: int) -> None:
        self._disk_is_done(octets)
        if self._chunks:
            self._write_out()
        else:
            self._drained()

    def _failed(self, failure: Failure, octets: int) -> None:
        self._disk_is_done(octets)
        self._fail(failure, "the body could not be written")
        self._drained()

    def _disk_is_done(self, octets: int) -> None:
        self._writing = False
        self._unwritten -= octets
        self._release(self._held_by_disk)
        self._held_by_disk = 0

    def _fail(self, failure: Failure, what: str) -> None:
        error: BaseException = failure.value  # type: ignore[assignment]  # None only before a failure is made
        self.failure = refusal(error, what)
        self._bodies.metrics.failures.labels("body").inc()
        _log.error(
            "the body of a message could not be stored",
            event="spool.body_failed",
            queue_id=self.queue_id,
            reason=str(error),
        )
        if not self.ended:
            self._release(self._held_by_chunks)
        self._held_by_chunks = self._unwritten = 0
        self._chunks = []
        self._drop_file()

    def _drained(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _drop_file(self) -> None:
        self._bodies.writers.pop(self, None)
        if self._file is not None:
            self._bodies.threads.start(self._file.abandon)

    def _sync(self, _: None, done: Deferred[None]) -> None:
        if self.failure is not None or self._file is None:
            done.errback(self.failure or SpoolError("the body is not in a file"))
            return
        self._bodies.threads.call(self._file.finish).addCallbacks(
            done.callback, self._unsynced, errbackArgs=(done,)
        )

    def _unsynced(self, failure: Failure, done: Deferred[None]) -> None:
        self._fail(failure, "the body could not be synced")
        done.errback(self.failure or failure)
