"""The write side of the queue database: one connection, used by the commit thread alone.

A batch is one transaction and one sync. A failure that leaves doubt about the disk closes the connection for
good: a failed sync may have thrown the written pages away while the system calls them clean, so nothing that
this connection or its write-ahead log believes counts. `reopen` starts from the file: it moves what the log
holds into the database, syncs that, begins a new log, takes back what was refused and only then is trusted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from twisted.logger import Logger

from elemta.errors import SpoolError, SpoolFormatError, SpoolFull
from elemta.runtime import Runtime
from elemta.runtime.disk import transaction
from elemta.spool.database import clean_up, connect, count, write_a_page
from elemta.spool.disk import DiskFailure, Reserve, failure_of, refusal
from elemta.spool.leftovers import Leftovers
from elemta.spool.operations import Batch, DeliveryResult, NewMessage, Operation, QueueCounts
from elemta.spool.partition import Places
from elemta.spool.records import SpoolSettings
from elemta.spool.sql import apply, remove

_log = Logger()

_PAGE = 4096
_MOST_UNSETTLED = 10_000
_VACUUM_PAGES = 256
_VACUUM_ROUNDS = 64


class QueueWriter:
    """Carries out batches, keeps the log short, and comes back from a failed disk."""

    def __init__(
        self,
        settings: SpoolSettings,
        places: Places,
        leftovers: Leftovers,
        runtime: Runtime,
    ) -> None:
        disk = runtime.disk
        self.reserve = Reserve(places.reserve, settings.reserve, disk)
        #: Why the disk is not trusted at the start.
        self.start_failure: BaseException | None = None
        self._checkpoint_bytes = max(settings.reserve // 2, 64 * _PAGE)
        self._places = places
        self._disk = disk
        self._leftovers = leftovers
        self._monotonic = runtime.monotonic
        self._history = settings.history
        self._connection: sqlite3.Connection | None = None
        self._since_checkpoint = 0
        self._refused: list[NewMessage] = []
        self._unsettled: list[DeliveryResult] = []
        self._durable_sample: list[int] = []

    @property
    def unsettled(self) -> int:
        """Results that could not be written yet; the next batch carries them."""
        return len(self._unsettled)

    @property
    def wants_checkpoint(self) -> bool:
        return self._since_checkpoint >= self._checkpoint_bytes

    def open(self) -> QueueCounts:
        """Connect, upgrade, begin a new write-ahead log, clean up after a crash, and count.

        SpoolFormatError: not ours or newer. SpoolError: it can't be opened.
        """
        try:
            try:
                counts = self._start()
            except sqlite3.Error as error:
                if failure_of(error) is not DiskFailure.FULL:
                    raise
                self.close()
                self.reserve.spend()
                counts = self._start()
            self.reserve.restore()
            self.start_failure = self._probe_disk()
            return counts
        except SpoolFormatError:
            self.close()
            raise
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise refusal(error, f"the queue database {self._places.database} can't be opened") from error

    def _start(self) -> QueueCounts:
        connection = self._connection = connect(self._disk, self._places)
        self._renew_log(connection)
        clean_up(connection, self._disk, self._places, self._leftovers)
        return count(connection)

    def _probe_disk(self) -> BaseException | None:
        """What keeps the disk from taking one page now: before that works, nothing may be delivered."""
        try:
            self._write_probe()
        except sqlite3.Error as error:
            if failure_of(error) is not DiskFailure.FULL:
                return error
        else:
            return None
        self.reserve.spend()
        try:
            self._write_probe()
        except sqlite3.Error as error:
            return error
        return None

    def _write_probe(self) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - it was just made
        with transaction(connection):
            write_a_page(connection)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.error("closing the queue database failed", event="spool.close_failed", reason=str(error))

    def apply(self, operations: Sequence[Operation]) -> Batch:
        """Carry out a batch in one synced transaction; never raises, the batch tells what became of it."""
        started = self._monotonic()
        unsettled, self._unsettled = self._unsettled, []
        batch = Batch([*unsettled, *operations])
        connection = self._connection
        try:
            if connection is None:
                raise SpoolError("the spool's disk failed and is not yet trusted again")  # noqa: TRY301
            if not self.reserve.held:
                batch.refuse(_new(batch.operations), SpoolFull("the spool's disk is full"))
            self._place_bodies(batch)
            self._commit(connection, batch)
        except Exception as error:
            try:
                self._give_up(batch, error)
            except Exception:
                # A fault of ours that stays: what was kept stays kept.
                self._unsettled = unsettled + self._unsettled
                raise
        try:
            self._remember(batch)
        except Exception:
            # What became of the batch is decided: what is on disk stays there, and is answered for.
            _log.failure("a batch could not be remembered", event="spool.batch_not_remembered")
        batch.unsettled = self.unsettled
        batch.seconds = self._monotonic() - started
        return batch

    def maintain(self) -> BaseException | None:
        """What is done now and then: shorten the log; after a full disk, put the reserve aside again.

        Gives a failure that breaks all trust.
        """
        connection = self._connection
        if connection is None:
            return None
        self.reserve.restore()
        if self.reserve.held:
            return self.checkpoint()
        try:
            for _ in range(_VACUUM_ROUNDS):
                if self.reserve.held or not connection.execute("PRAGMA freelist_count").fetchone()[0]:
                    break
                connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self.reserve.restore()
        except sqlite3.Error as error:
            return self._maintenance_failed(error)
        return None

    def checkpoint(self) -> BaseException | None:
        """Move the log into the database so that it can start over; gives a failure that breaks all trust."""
        if self._connection is None or not self._since_checkpoint:
            return None
        try:
            self._move_log(self._connection)
        except sqlite3.Error as error:
            return self._maintenance_failed(error)
        return None

    def _maintenance_failed(self, error: sqlite3.Error) -> BaseException | None:
        _log.error(
            "the queue database could not be tidied", event="spool.maintenance_failed", reason=str(error)
        )
        if failure_of(error) is not DiskFailure.BROKEN:
            return None
        self.close()
        return error

    def _move_log(self, connection: sqlite3.Connection) -> None:
        self._since_checkpoint = 0
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def reopen(self, late: list[DeliveryResult], doubtful: list[NewMessage]) -> QueueCounts:
        """After a failure: start from what is on disk, take back what was refused, and count anew.

        Raises SpoolError when the disk can't be trusted yet; what was delivered in vain is kept for later.
        What is kept here leaves the lists: what is still in them after a fault was not taken over.
        """
        self.keep(late)
        self._refused.extend(each for each in doubtful if each.pays is None)
        doubtful.clear()
        self.close()
        connection: sqlite3.Connection | None = None
        try:
            connection = connect(self._disk, self._places)
            if not self._renew_log(connection):
                raise SpoolError("another program keeps the queue database from a new log")  # noqa: TRY301
            self._verify(connection)
            self._take_back(connection)
            counts = count(connection)
        except (sqlite3.Error, OSError, SpoolError) as error:
            if connection is not None:
                connection.close()
            if failure_of(error) is DiskFailure.FULL:
                self.reserve.spend()
            raise refusal(error, "the spool's disk is not usable yet") from error
        self._connection = connection
        return counts

    def keep(self, late: list[DeliveryResult]) -> None:
        """Take results over that came while nothing could be written; the list is empty then."""
        self.retain(late)
        late.clear()

    def retain(self, results: Iterable[DeliveryResult]) -> None:
        """Keep results to write them later: what was delivered must not be delivered again.

        While any are kept, no attempt is made (see `Spool.settled`), so that they are no more than were under
        way when the disk failed. The bound is for a fault of ours.
        """
        self._unsettled.extend(result for result in results if result.tells)
        excess = len(self._unsettled) - _MOST_UNSETTLED
        if excess > 0:
            del self._unsettled[:excess]
            _log.error(
                "too many outcomes wait for the disk; some messages will be delivered again",
                event="spool.outcomes_dropped",
                messages=excess,
            )

    def _renew_log(self, connection: sqlite3.Connection) -> bool:
        """Rewrite and sync what the log holds into the database, and empty it.

        Pages of the log that a process left behind may be in memory and not on disk, and look clean after a
        failed sync; what is appended behind such a page would be lost with it.
        """
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._since_checkpoint = 0
        if busy:
            _log.warn(
                "another program reads the queue database; its log could not be renewed",
                event="spool.log_busy",
            )
        return not busy

    def _verify(self, connection: sqlite3.Connection) -> None:
        """Say loudly if the disk lost what it had confirmed: no software can bring that back."""
        for key in self._durable_sample:
            if not connection.execute("SELECT 1 FROM body WHERE id = ?", (key,)).fetchone():
                _log.critical(
                    "the disk lost a message that it had confirmed as written",
                    event="spool.data_lost",
                    row=key,
                )

    def _take_back(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        remove(connection, [message.key for message in self._refused])
        write_a_page(connection)
        connection.execute("COMMIT")
        refused, self._refused = self._refused, []
        self._drop_bodies(message.queue_id for message in refused if message.content is None)

    def _place_bodies(self, batch: Batch) -> None:
        """Give finished body files their names; the names are on disk before the rows are."""
        placed: list[NewMessage] = []
        for operation in _new(batch.open()):
            if operation.content is not None:
                continue
            queue_id = operation.queue_id
            try:
                self._disk.rename(self._places.unfinished_body(queue_id), self._places.body(queue_id))
            except OSError as error:
                batch.refuse([operation], refusal(error, "the body could not be stored"))
                self._leftovers.remove([self._places.unfinished_body(queue_id)])
            else:
                placed.append(operation)
        if not placed:
            return
        try:
            self._disk.sync_directory(self._places.bodies)
        except OSError as error:
            batch.refuse(placed, refusal(error, "the body could not be stored"))

    def _commit(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """Carry out the batch whole; if one operation spoils it, each apart; without space, nothing new."""
        for apart in (False, True):
            try:
                self._transact(connection, batch, apart=apart)
                return
            except Exception as error:
                trouble = self._roll_back(connection, batch, error)
                if trouble is not DiskFailure.OPERATION or apart:
                    failure = refusal(error, "the spool could not store it")
                    break
        batch.refuse(_new(batch.open()), failure)
        if trouble is DiskFailure.FULL:
            self._spend_reserve(connection)
        try:
            self._transact(connection, batch, apart=False)
        except Exception as error:
            self._roll_back(connection, batch, error)
            # The next batch finds out which of them can't be written, if that is the reason.
            self.retain(_results(batch.open()))
            batch.refuse(batch.open(), refusal(error, "the spool could not store it"))

    def _spend_reserve(self, connection: sqlite3.Connection) -> None:
        """Spend the reserve on moving the log, whose space then serves for what empties the queue."""
        self.reserve.spend()
        try:
            self._move_log(connection)
        except sqlite3.Error as error:
            self._roll_back(connection, Batch([]), error)

    def _transact(self, connection: sqlite3.Connection, batch: Batch, *, apart: bool) -> None:
        operations = batch.open()
        if not operations:
            return
        connection.execute("BEGIN IMMEDIATE")
        if apart:
            for operation in operations:
                self._carry_out_apart(connection, operation, batch)
        else:
            apply(connection, operations, batch, self._history)
        connection.execute("COMMIT")

    def _carry_out_apart(self, connection: sqlite3.Connection, operation: Operation, batch: Batch) -> None:
        one, error = self._tried(connection, operation)
        if error is not None and isinstance(operation, DeliveryResult):
            # Whatever a next hop's words do to the database: no host gets the message a second time.
            one, again = self._tried(connection, operation.bare())
            if again is None:
                error = None
            _log.error(
                "what became of an attempt can't be written as it is",
                event="spool.outcome_unwritable",
                queue_id=operation.queue_id,
                reason=str(error or "it was written without its texts"),
            )
        batch.errors.update(one.errors if error is None else {operation: error})
        batch.counts.add(one.counts)
        batch.freed.extend(one.freed)
        batch.gone.extend(one.gone)

    def _tried(self, connection: sqlite3.Connection, operation: Operation) -> tuple[Batch, SpoolError | None]:
        """One operation carried out, or undone for a reason of its own, which is given; raises any other."""
        one = Batch([operation])
        connection.execute("SAVEPOINT one")
        error = None
        try:
            apply(connection, [operation], one, self._history)
        except Exception as reason:
            if failure_of(reason) is not DiskFailure.OPERATION:
                raise
            connection.execute("ROLLBACK TO one")
            one, error = Batch([operation]), refusal(reason, "the spool could not store it")
        connection.execute("RELEASE one")
        return one, error

    def _roll_back(self, connection: sqlite3.Connection, batch: Batch, error: Exception) -> DiskFailure:
        """Undo the transaction and what the batch believes of it; raises where nothing may be believed."""
        trouble = failure_of(error)
        if trouble is DiskFailure.BROKEN:
            raise error
        batch.start_over()
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return trouble

    def fail(self, batch: Batch, error: Exception) -> None:
        """Count a batch as broken by a failure that nothing here foresaw, and trust nothing any more."""
        self._give_up(batch, error)
        batch.unsettled = self.unsettled

    def _give_up(self, batch: Batch, error: Exception) -> None:
        batch.broken = error
        batch.start_over()
        # A notice that pays is on disk together with its payment or not at all. To take it back alone would
        # lose it; to queue it again is refused where it is paid for.
        self._refused.extend(each for each in _new(batch.open()) if each.pays is None)
        self.retain(_results(batch.open()))
        batch.refuse(batch.open(), refusal(error, "the spool's disk failed"))
        self.close()

    def _remember(self, batch: Batch) -> None:
        touched = {operation.key for operation in batch.operations if type(operation) is not NewMessage}
        self._durable_sample = [key for key in self._durable_sample if key not in touched]
        if batch.broken is not None:
            return
        self._drop_bodies(message.queue_id for message in _new(batch.errors) if message.content is None)
        new = [message.key for message in _new(batch.open())]
        if new:
            self._durable_sample = new
        self._since_checkpoint += _PAGE + sum(_written(operation) for operation in batch.operations)

    def _drop_bodies(self, queue_ids: Iterable[str]) -> None:
        for queue_id in queue_ids:
            self._leftovers.remove([self._places.body(queue_id), self._places.unfinished_body(queue_id)])


def _new(operations: Iterable[Operation]) -> list[NewMessage]:
    return [operation for operation in operations if type(operation) is NewMessage]


def _results(operations: Iterable[Operation]) -> list[DeliveryResult]:
    return [operation for operation in operations if isinstance(operation, DeliveryResult)]


def _written(operation: Operation) -> int:
    """About what an operation adds to the log: a change rewrites the pages that it touches."""
    return operation.cost + (0 if type(operation) is NewMessage else 2 * _PAGE)
