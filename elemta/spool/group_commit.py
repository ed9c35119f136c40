"""Group commit: what is asked for while one transaction syncs goes into the next, all of it with one sync."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import SpoolError, SpoolFull
from elemta.metrics import SpoolMetrics
from elemta.runtime import OrderedWorker, Runtime
from elemta.spool.commit_state import (
    IN_BATCH,
    IN_REOPENING,
    TRUSTED,
    CommitChange,
    CommitState,
    next_state,
)
from elemta.spool.disk import DiskFailure, failure_of, refusal
from elemta.spool.operations import Batch, DeliveryResult, NewMessage, Operation, QueueCounts
from elemta.spool.records import SpoolSettings
from elemta.spool.writer import QueueWriter

_log = Logger()


@dataclass(slots=True)
class PendingOperation:
    """An operation on its way: the Deferred that waits for it, and the value that it gets."""

    operation: Operation
    done: Deferred[Any]
    value: object


class GroupCommit:
    """Collects operations in the reactor thread; one thread carries them out, a batch at a time.

    After a failure that leaves doubt about the disk, everything is refused at once until the store has been
    opened anew, which is tried again and again with growing pauses. Results that could not be written are
    kept, and written when that works again; ``settled`` is called when all of them are.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        *,
        runtime: Runtime,
        threads: OrderedWorker,
        store: QueueWriter,
        metrics: SpoolMetrics,
        counts: QueueCounts,
        after_batch: Callable[[Sequence[PendingOperation], Batch], None],
        settled: Callable[[], None],
    ) -> None:
        #: Whether the disk is trusted.
        self.healthy = True
        self.counts = counts
        self._state = CommitState.IDLE
        self._settings = settings
        self._reactor = runtime.reactor
        self._monotonic = runtime.monotonic
        self._threads = threads
        self._store = store
        self._metrics = metrics
        self._after_batch = after_batch
        self._notify_settled = settled
        self._pending: list[PendingOperation] = []
        self._closing = False
        self._maintenance_due = False
        self._start_call: IDelayedCall | None = None
        self._reopen_call: IDelayedCall | None = None
        self._pause = settings.first_reopen
        self._late: list[DeliveryResult] = []
        self._unsettled = 0
        # Batches in the thread or on their way from it, and new messages that it may have written or not.
        self._at_work: list[tuple[list[PendingOperation], list[DeliveryResult]]] = []
        self._doubtful: list[NewMessage] = []
        self._idle: list[Deferred[None]] = []
        self._begun_at = 0.0

    @property
    def seconds(self) -> float:
        """How long the transaction that is under way has taken so far; 0.0 where there is none."""
        return self._monotonic() - self._begun_at if self._at_work else 0.0

    @property
    def settled(self) -> bool:
        """Whether the disk is trusted, and no result is kept that could not be written."""
        return self.healthy and not self._unsettled and not self._late

    def submit(self, operation: Operation, value: object = None) -> Deferred[Any]:
        """Have an operation done; fires with the value once it is on stable storage. SpoolFull, SpoolError.

        The Deferred has no canceller: giving up waiting does not undo the operation.
        """
        done: Deferred[Any] = Deferred()
        if not self.healthy or self._closing:
            if isinstance(operation, DeliveryResult) and operation.tells:
                self._late.append(operation)
            why = (
                "the spool is closing"
                if self._closing
                else "the spool's disk failed and is not yet trusted again"
            )
            refused = Batch([operation], {operation: SpoolError(why)})
            self._conclude([PendingOperation(operation, done, value)], refused)
            return done
        self._pending.append(PendingOperation(operation, done, value))
        if self._state not in IN_BATCH and self._start_call is None:
            # At the end of this turn of the reactor: all that it still brings goes along.
            start: Deferred[None] = Deferred()
            start.addCallback(self._start).addErrback(self._broke)
            self._start_call = self._reactor.callLater(0, start.callback, None)
        return done

    def maintain(self) -> None:
        """Write what is left from a full disk, and tidy the log; to be called now and then."""
        self._maintenance_due = True
        if self._state not in (*TRUSTED, *IN_REOPENING) and not self._is_reopen_due:
            # A fault of ours ended the tries.
            self._schedule_reopen()
        if self._state is CommitState.IDLE and not self._closing:
            try:
                self._run_next()
            except Exception:
                self._broke(Failure())

    async def close(self) -> None:
        """Finish what was asked for, then stop."""
        self._closing = True
        if self._reopen_call is not None and self._reopen_call.active():
            self._reopen_call.cancel()
            self._reopen_call = None
        while self._pending or self._state in (*IN_BATCH, *IN_REOPENING):
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        if not self.settled:
            await self._threads.call(self._settle_at_last)
            self._late = []
        unsettled = self._store.unsettled
        if unsettled:
            _log.error(
                "outcomes could not be stored before the end; those messages will be attempted again",
                event="spool.outcomes_lost",
                messages=unsettled,
            )
        if self._start_call is not None:
            self._start_call.cancel()
            self._start_call = None

    def _settle_at_last(self) -> None:
        """In the commit thread: the last chance for what could not be written."""
        if self.healthy:
            self._store.keep(self._late)
        else:
            try:
                self._store.reopen(self._late, self._doubtful)
            except SpoolError as error:
                _log.error("the spool's disk still fails", event="spool.disk_still_fails", reason=str(error))
                return
        self._store.apply([])

    def _start(self, _: None) -> None:
        self._start_call = None
        if self._state in IN_BATCH:
            return
        if self._pending:
            self._run_next()
        else:
            self._notify_idle()

    @property
    def _is_reopen_due(self) -> bool:
        return self._reopen_call is not None and self._reopen_call.active()

    def _next_batch(self) -> list[PendingOperation]:
        pending = self._pending
        octets = 0
        for count, entry in enumerate(pending):
            octets += entry.operation.cost
            if count and (octets > self._settings.batch_bytes or count >= self._settings.batch_operations):
                self._pending = pending[count:]
                return pending[:count]
        self._pending = []
        return pending

    def _run_next(self) -> None:
        """Hand what waits to the commit thread, at most a batch."""
        entries = self._next_batch()
        try:
            self._state = next_state(self._state, CommitChange.BEGIN)
            maintain, self._maintenance_due = self._maintenance_due, False
            late, self._late = self._late, []
            self._unsettled += len(late)
            self._at_work.append((entries, late))
            self._begun_at = self._monotonic()
            done: Deferred[Batch] = Deferred()
            done.addCallback(self._finished, entries, late).addErrback(self._broke)
            work = partial(self._work, entries, late, maintain, done)
            self._threads.start_or(partial(self._not_done, done), work)
        except Exception:
            self._pending = entries + self._pending
            raise

    def _not_done(self, done: Deferred[Batch], failure: Failure) -> None:
        """The thread could not even begin, or failed behind its answer."""
        if done.called:
            _log.failure("tidying the queue database failed", failure, event="spool.thread_failed")
        else:
            done.errback(failure)

    def _broke(self, failure: Failure) -> None:
        """A fault of ours with a batch: it counts as a failure of the disk, since what is on it is unknown.

        Callers get an error, results are written again, and new messages are taken back.
        """
        _log.failure("a batch failed in an unforeseen way", failure, event="spool.batch_failed")
        self._change(CommitChange.END)
        self._start_call = None
        at_work, self._at_work = self._at_work, []
        for entries, late in at_work:
            operations = [entry.operation for entry in entries if not entry.done.called]
            kept = [each for each in operations if isinstance(each, DeliveryResult) and each.tells]
            self._late += [*late, *kept]
            self._doubtful += [each for each in operations if isinstance(each, NewMessage)]
            batch = Batch(list(operations))
            batch.refuse(operations, SpoolError("a fault inside Elemta; the log has it"))
            self._conclude_refused(entries, batch)
        self.distrust(failure.value or RuntimeError("unknown"))

    def _work(
        self,
        entries: list[PendingOperation],
        late: list[DeliveryResult],
        maintain: bool,
        done: Deferred[Batch],
    ) -> None:
        """In the commit thread: carry out a batch, and say what became of it in one call of the reactor."""
        batch = Batch([entry.operation for entry in entries])
        try:
            if late:
                self._store.keep(late)
            if entries or self._store.unsettled:
                batch = self._store.apply(batch.operations)
        except Exception as error:
            # A fault of ours. Callers must get an error, and the store has to start over.
            _log.failure("a batch failed in an unforeseen way", event="spool.batch_failed")
            self._store.fail(batch, error)
        self._reactor.callFromThread(done.callback, batch)
        try:
            self._tidy(maintain)
        except Exception:
            _log.failure("tidying the queue database failed", event="spool.thread_failed")

    def _tidy(self, maintain: bool) -> None:
        if maintain:
            doubt = self._store.maintain()
        elif self._store.wants_checkpoint:
            doubt = self._store.checkpoint()
        else:
            return
        if doubt is not None:
            self._reactor.callFromThread(self.distrust, doubt)

    def _finished(self, batch: Batch, entries: list[PendingOperation], late: list[DeliveryResult]) -> None:
        self._state = next_state(self._state, CommitChange.END)
        was_settled = self.settled
        # What a fault kept the store from taking over.
        self._late += late
        self._unsettled = batch.unsettled
        self.counts.add(batch.counts)
        try:
            self._observe(entries, batch)
        except Exception:
            _log.failure("a commit could not be counted", event="spool.not_observed")
        if batch.broken is not None:
            self.distrust(batch.broken)
        # The next batch starts before the answers of this one are worked through.
        if self._pending:
            self._run_next()
        self._conclude(entries, batch)
        self._at_work = [each for each in self._at_work if each[0] is not entries]
        if self.settled and not was_settled:
            self._notify_settled()
        if self._state not in IN_BATCH:
            self._notify_idle()

    def _conclude(self, entries: list[PendingOperation], batch: Batch) -> None:
        _answer(entries, batch)
        try:
            self._after_batch(entries, batch)
        except Exception:
            _log.failure("the spool could not tidy up after a commit", event="spool.cleanup_failed")

    def _conclude_refused(self, entries: list[PendingOperation], batch: Batch) -> None:
        """Conclude what was refused. While a fault of ours stays, callers get an error and no more."""
        try:
            self._conclude(entries, batch)
        except Exception:
            _log.failure("a batch could not be answered", event="spool.answer_failed")
            for entry in entries:
                if not entry.done.called:
                    entry.done.errback(SpoolError("a fault inside Elemta; the log has it"))

    def _observe(self, entries: list[PendingOperation], batch: Batch) -> None:
        messages = sum(
            1
            for entry in entries
            if isinstance(entry.operation, NewMessage) and entry.operation not in batch.errors
        )
        if messages:
            self._metrics.commit_duration.observe(batch.seconds)
            self._metrics.commit_messages.observe(messages)
        kinds = {_kind(error) for error in batch.errors.values()}
        for kind in sorted(kinds - {None}, key=str):
            self._metrics.failures.labels(str(kind)).inc()

    def distrust(self, error: BaseException) -> None:
        """Refuse everything until the disk has proved anew that it works."""
        if not self.healthy:
            return
        self._change(CommitChange.FAIL)
        _log.critical(
            "the spool's disk failed; nothing is accepted until it is trusted again",
            event="spool.disk_failed",
            reason=str(error),
        )
        # They leave the line when they have their answer, and not before: a fault here must lose none.
        pending = self._pending
        results = (entry.operation for entry in pending if isinstance(entry.operation, DeliveryResult))
        self._late.extend(result for result in results if result.tells)
        refused = Batch([entry.operation for entry in pending])
        refused.refuse(refused.operations, refusal(error, "the spool's disk failed"))
        self._conclude_refused(pending, refused)
        self._pending = []
        self._notify_idle()
        self._schedule_reopen()

    def _schedule_reopen(self) -> None:
        if self._closing:
            return
        self._reopen_call = self._reactor.callLater(self._pause, self._reopen)
        self._pause = min(self._pause * 2, self._settings.longest_reopen)

    def _reopen(self) -> None:
        self._reopen_call = None
        self._change(CommitChange.REOPEN)
        late, self._late = self._late, []
        doubtful, self._doubtful = self._doubtful, []
        try:
            opened = self._threads.call(self._store.reopen, late, doubtful)
        except Exception:
            opened = fail(Failure())
        opened.addCallbacks(self._reopened, self._still_broken).addErrback(self._still_broken)
        opened.addBoth(self._take_back, late, doubtful)

    def _take_back(self, _: object, late: list[DeliveryResult], doubtful: list[NewMessage]) -> None:
        """Keep what a fault kept the store from taking over."""
        self._late[:0] = late
        self._doubtful[:0] = doubtful

    def _reopened(self, counts: QueueCounts) -> None:
        self._change(CommitChange.TRUST)
        self._pause = self._settings.first_reopen
        self.counts = counts
        # The thread that changes it has nothing to do at this moment.
        self._unsettled = self._store.unsettled
        _log.info("the spool's disk is trusted again", event="spool.disk_trusted")
        if self._closing:
            self._notify_idle()
            return
        self._pending = [entry for entry in self._pending if not entry.done.called]
        self.maintain()
        if self.settled:
            self._notify_settled()

    def _still_broken(self, failure: Any) -> None:
        self._change(CommitChange.FAIL)
        _log.error("the spool's disk still fails", event="spool.disk_still_fails", reason=str(failure.value))
        self._notify_idle()
        self._schedule_reopen()

    def _change(self, change: CommitChange) -> None:
        self._state = next_state(self._state, change)
        self.healthy = self._state in TRUSTED

    def _notify_idle(self) -> None:
        idle, self._idle = self._idle, []
        for done in idle:
            done.callback(None)


def _answer(entries: Iterable[PendingOperation], batch: Batch) -> None:
    errors = batch.errors
    for entry in entries:
        if entry.done.called:
            continue  # it has its answer from before something broke
        try:
            error = errors.get(entry.operation) if errors else None
            if error is None:
                entry.done.callback(entry.value)
            else:
                entry.done.errback(error)
        except Exception:
            # One caller that spoiled its Deferred must not keep the others waiting.
            _log.failure("an answer of the spool could not be given", event="spool.answer_failed")


def _kind(error: SpoolError) -> str | None:
    """The kind of a failure; None for what is only an answer, such as that a message is unknown."""
    if isinstance(error, SpoolFull):
        return DiskFailure.FULL.value
    cause = error.__cause__
    return None if cause is None else failure_of(cause).value
