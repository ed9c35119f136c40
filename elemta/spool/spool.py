"""The durable queue as the rest of Elemta sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from elemta.address import Address
from elemta.errors import SpoolError
from elemta.history.history import MessageHistory
from elemta.message.notice import Notice
from elemta.metrics import HistoryMetrics, SpoolMetrics
from elemta.outcome import Outcome
from elemta.runtime import Runtime
from elemta.runtime.disk import FreeSpace
from elemta.spool.bodies import Bodies
from elemta.spool.content import RecentContents
from elemta.spool.damaged_rows import DamagedRows
from elemta.spool.disk import space_for_mail
from elemta.spool.group_commit import GroupCommit, PendingOperation
from elemta.spool.history_feed import allowance, feed, history_of, keep_discarded, spared
from elemta.spool.holds import Holds
from elemta.spool.intake import Intake, payment
from elemta.spool.leftovers import Leftovers
from elemta.spool.lookups import QueueLookups
from elemta.spool.operations import (
    Assignment,
    Batch,
    DeliveryResult,
    NewMessage,
    OperatorAction,
    OperatorChange,
    QueueCounts,
)
from elemta.spool.partition import Partition
from elemta.spool.queries import Queries
from elemta.spool.queue_id import QueueIds, known_key, row_key, unknown_message
from elemta.spool.queue_list import QueueList
from elemta.spool.queue_listeners import QueueListeners
from elemta.spool.reader import Reader
from elemta.spool.records import (
    HeldPart,
    HoldCause,
    MessageState,
    Plan,
    PlannedPart,
    QueuedMessage,
    SpoolSettings,
    Submission,
)
from elemta.spool.schedule import Schedule
from elemta.spool.space_watch import SpaceWatch
from elemta.spool.startup import Permit, take_up
from elemta.spool.threads import SpoolThreads
from elemta.spool.writer import QueueWriter

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")


class Spool(QueueLookups, Intake):
    """One partition of the queue, owned by this process. Made by `open`; all is for the reactor thread.

    What a Deferred or coroutine of the spool confirms is on stable storage. Nothing that it gives out can be
    cancelled half way: giving up waiting does not undo the work.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        *,
        runtime: Runtime,
        metrics: SpoolMetrics,
        partition: Partition,
        threads: SpoolThreads,
        store: QueueWriter,
        leftovers: Leftovers,
        counts: QueueCounts,
        space: FreeSpace,
        history: MessageHistory | None = None,
    ) -> None:
        now = runtime.wall
        self.settings = settings
        #: What became of messages; None where the settings name none.
        self.history = history
        self._runtime = runtime
        self._now = now
        disk = runtime.disk
        self._partition = partition
        self._threads = threads
        self._store = store
        self._leftovers = leftovers
        self._reader = Reader(partition.places, disk)
        self._queries = Queries(self._reader)
        self._listing = QueueList(self._reader)
        self.waits = None
        self._held_from = self._changes_of_holds = 0
        self._schedule = Schedule(self._reader)
        self._commits = GroupCommit(
            settings,
            runtime=runtime,
            threads=threads.commit,
            store=store,
            metrics=metrics,
            counts=counts,
            after_batch=self._after_batch,
            settled=self._notify_settled,
        )
        self._holds = Holds(
            self,
            lambda: self._commits.counts,
            metrics,
            minimum_free=settings.minimum_free,
            now=now,
        )
        self._damaged = DamagedRows(self._commits.submit, now)
        super().__init__(
            QueueIds(now, runtime.fast_randomness()),
            Bodies(settings, partition.places, disk, threads.files, metrics, leftovers=leftovers),
            self._commits.submit,
            QueueListeners(),
            RecentContents(settings.recent),
        )
        self._closed = False
        self._space_watch = SpaceWatch(
            runtime.reactor,
            settings.refresh,
            space,
            upkeep=self._upkeep,
            ask=lambda: threads.files.call(space_for_mail, disk, partition.places),
            found=self._look,
        )
        if history is not None:
            history.open()
        self._look(space)
        if store.start_failure is not None:
            self._commits.distrust(store.start_failure)

    @classmethod
    async def open(
        cls,
        settings: SpoolSettings,
        *,
        runtime: Runtime,
        metrics: SpoolMetrics | None = None,
        history_metrics: HistoryMetrics | None = None,
        permit: Permit | None = None,
    ) -> Spool:
        """Take the partition, upgrade its format, clean up after a crash, and count.

        SpoolLocked: another process owns it, or ``permit`` says so. SpoolFormatError: written by a newer
        Elemta, or no spool. SpoolError: it can't be used.
        """
        disk = runtime.disk
        root, how = settings.directory, settings.how
        partition = Partition(root, settings.partition, runtime, node=settings.node, how=how)
        leftovers = Leftovers(disk)
        store = QueueWriter(settings, partition.places, leftovers, runtime)
        threads = SpoolThreads(runtime.threads, settings.file_threads)
        try:
            counts, space = await take_up(partition, store, threads, permit, disk=disk)
        except BaseException:
            threads.stop()
            raise
        history = history_of(settings, partition.places, runtime, history_metrics)
        if history is not None:
            await threads.read.call(history.prepare)
        _log.info(
            "the spool is open",
            event="spool.opened",
            partition=settings.partition,
            active=counts.messages[MessageState.ACTIVE],
            deferred=counts.messages[MessageState.DEFERRED],
            hold=counts.messages[MessageState.HOLD],
            quarantine=counts.messages[MessageState.QUARANTINE],
            undeliverable=counts.messages[MessageState.UNDELIVERABLE],
        )
        return cls(
            settings,
            runtime=runtime,
            metrics=metrics or SpoolMetrics(),
            partition=partition,
            threads=threads,
            store=store,
            leftovers=leftovers,
            counts=counts,
            space=space,
            history=history,
        )

    async def close(self) -> None:
        """Finish what is under way, then give up the partition. What comes meanwhile is refused."""
        if self._closed:
            return
        self._closed = True
        self._space_watch.stop()
        await self._close_intake()
        await self._commits.close()
        if self.history is not None:
            await self.history.close()
        self._retry_leftovers()
        await self._threads.read.call(self._reader.close)
        await self._threads.commit.call(self._store.close)
        self._threads.stop()
        self._partition.leave()

    @property
    def directory(self) -> Path:
        """The directory of the partition."""
        return self._partition.places.directory

    @property
    def healthy(self) -> bool:
        """Whether the disk is trusted. While it is not, everything new gets SpoolError at once."""
        return self._commits.healthy

    @property
    def commit_seconds(self) -> float:
        """How long the commit that is under way has taken so far; 0.0 where there is none."""
        return self._commits.seconds

    @property
    def settled(self) -> bool:
        """Whether an attempt may be made: the disk is trusted, and all that came of earlier ones is written.

        A delivery whose result can't be written would be made again; see `on_settled`.
        """
        return self._commits.settled and not self._closed

    @property
    def messages(self) -> dict[MessageState, int]:
        """How many messages there are by state, without asking the disk."""
        return {state: self._commits.counts.messages[state] for state in MessageState}

    def has_space(self, size: int = 0) -> bool:
        """Whether a message of this size leaves ``minimum_free`` on the disk, as of a few seconds ago."""
        space = self._space_watch.space
        return (
            self._store.reserve.held and space.free - size >= self.settings.minimum_free and space.files != 0
        )

    def keep_discarded(self, queue_id: str, size: int, submission: Submission) -> None:
        """Note in the history a message that was accepted and is stored nowhere."""
        keep_discarded(self.history, queue_id, size, submission)

    def settle(
        self,
        queue_id: str,
        outcomes: Sequence[Outcome],
        *,
        part: int | None = None,
        retry_at: float | None,
        hold_reason: str | None,
        warned: bool = False,
        attempted: bool = True,
        hold: HoldCause = HoldCause.FAULT,
        owes: Collection[Address] = (),
    ) -> Deferred[None]:
        """Record what became of an attempt for a part (None: all of them); fires when that is durable.

        Recipients with a delivered or failed outcome are done; when none is left, the part is gone, and with
        the last part the message. With ``retry_at`` the part is DEFERRED until then. With ``hold_reason``
        failed recipients stay pending and the part goes to HOLD, but for those that are deferred and have a
        ``retry_at``; ``hold`` says what put it there, and so how that ends. With neither it keeps its state.
        ``warned`` notes that the sender got a notice of the delay; what was not ``attempted`` only waits, and
        does not count. Of deliveries to those in ``owes`` the sender has still to hear; see `owed`.
        A message that is gone meanwhile is no error. SpoolError: not stored yet; the spool keeps the outcomes
        in memory and stores them as soon as the disk lets it.
        """
        key = row_key(queue_id)
        if key is None:
            return fail(unknown_message(queue_id))
        self._recent.discard(queue_id)
        result = DeliveryResult(
            key,
            queue_id,
            tuple(outcomes),
            retry_at,
            hold_reason,
            part,
            warned,
            attempted,
            hold,
            self._now(),
            owes=owes,
        )
        return self._commits.submit(result)

    async def write_off(self, owed: Notice) -> None:
        """Drop the notices of these deliveries. UnknownMessage: that is so already; SpoolError."""
        await self._commits.submit(payment(owed))

    async def end_hold(self, held: HeldPart, outcomes: Sequence[Outcome], reason: str) -> None:
        """Let a part on hold go; see `Holds.end`. SpoolError."""
        await self._holds.end(held, outcomes, reason)

    async def end_settled(self, held: HeldPart, outcomes: Sequence[Outcome]) -> bool:
        """Record that a part's recipients failed, unless an operator held or released it. SpoolError."""
        message = held.message
        result = DeliveryResult(
            known_key(message.queue_id),
            message.queue_id,
            tuple(outcomes),
            None,
            None,
            message.part,
            ends_hold=True,
            skipped=True,
            at=self._now(),
        )
        await self._commits.submit(result)
        return not result.skipped

    def assign(self, queue_id: str, part: int, parts: Sequence[PlannedPart]) -> Deferred[None]:
        """Give recipients of a part other destinations, each group as a part of its own. SpoolError.

        A message or part that is gone meanwhile is no error.
        """
        key = row_key(queue_id)
        if key is None:
            return fail(unknown_message(queue_id))
        return self._commits.submit(Assignment(key, queue_id, part, tuple(parts)))

    async def hold(self, queue_id: str, reason: str | None = None, *, by: str = "") -> None:
        """Keep a message from being delivered; without a reason a held one keeps the one that it has.

        Here and in what follows ``by`` is the operator, for the history. UnknownMessage; SpoolError.
        """
        await self._change(queue_id, OperatorAction.HOLD, by, reason)

    async def release(self, queue_id: str, *, by: str = "") -> None:
        """Deliver a held message now; no effect on one that is not held. UnknownMessage; SpoolError."""
        await self._change(queue_id, OperatorAction.RELEASE, by)

    async def retry(self, queue_id: str, *, by: str = "") -> None:
        """Attempt a deferred message now. UnknownMessage; SpoolError, also for a message on hold."""
        await self._change(queue_id, OperatorAction.RETRY, by)

    async def delete(self, queue_id: str, *, by: str = "") -> None:
        """Remove a message for good, whatever its state. UnknownMessage; SpoolError."""
        observer = self.observer
        if observer is None or not observer.tells_end:
            await self._change(queue_id, OperatorAction.DELETE, by)
            return
        message = (await self.show(queue_id)).message
        await self._change(queue_id, OperatorAction.DELETE, by)
        observer.deleted(message)

    def on_committed(self, callback: Callable[[QueuedMessage], None]) -> None:
        """Call this with each new active message, in the reactor thread, after its commit."""
        self._listeners.committed.append(callback)

    def use_plan(self, plan: Plan) -> None:
        """From now on ask this for the parts of a new message; without it each message is one part."""
        self._listeners.plan = plan

    def on_due(self, callback: Callable[[Collection[str]], None]) -> None:
        """Call this with destinations in which an operator made something due (`retry`, `release`)."""
        self._listeners.due.append(callback)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call this when `settled` is true again."""
        self._listeners.settled.append(callback)

    def token(self, octets: int) -> str:
        """So many octets that no client can guess, in hexadecimal."""
        return self._runtime.token(octets)

    def in_disk_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """Do blocking work on a message's content, such as a read, in one of the spool's threads."""
        return self._threads.files.call(work, *args, **kwargs)

    def _notify_settled(self) -> None:
        if not self._closed:
            self._listeners.notify_settled()

    def _refusal(self) -> SpoolError | None:
        if self._closed:
            return SpoolError("the spool is closed")
        if not self._commits.healthy:
            return SpoolError("the spool's disk failed and is not yet trusted again")
        return None

    async def _change(
        self, queue_id: str, action: OperatorAction, by: str, reason: str | None = None
    ) -> None:
        change = OperatorChange(known_key(queue_id), queue_id, action, self._now(), reason, by=by)
        await self._commits.submit(change)
        self._recent.discard(queue_id)
        if change.woken:
            self._listeners.notify_due(change.woken)

    def _after_batch(self, entries: Sequence[PendingOperation], batch: Batch) -> None:
        if self.history is not None:
            feed(self.history, batch, self._now())
        places = self._partition.places
        # The rows of what was freed are gone for good, so the files may go. What was refused is not done with
        # under its own name before the store knows that no row of it is on disk, which is the store's care.
        idle = [places.body(queue_id) for queue_id in batch.freed]
        for each in batch.errors:
            if isinstance(each, NewMessage) and each.content is None:
                idle.append(places.unfinished_body(each.queue_id))
        if idle:
            self._threads.files.start(self._leftovers.remove, idle)
        if MessageState.HOLD in batch.counts.messages or MessageState.QUARANTINE in batch.counts.messages:
            self._held_from = 0
            self._changes_of_holds += 1
        if batch.counts.undeliverable > 0 and not self._closed:
            self._holds.keep_share()
        self._conclude_intake(entries, batch)

    def _retry_leftovers(self) -> None:
        if self._leftovers.waiting:
            self._threads.files.start(self._leftovers.retry)

    def _upkeep(self) -> None:
        self._commits.maintain()
        self._retry_leftovers()

    def _look(self, space: FreeSpace) -> None:
        """Let what may take only its share of the disk know how that is now."""
        self._holds.look(space)
        if self.history is not None:
            may = allowance(self.history, space, self.settings.minimum_free)
            self.history.tidy(may, spared(space))
