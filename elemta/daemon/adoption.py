"""The adoption of another node's spool: how its partitions are opened, and the deliveries from them."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config import Config
from elemta.daemon.components import SharedResources
from elemta.daemon.spool_ownership import PartitionOwnership
from elemta.errors import NoSpool, SpoolError, SpoolLocked
from elemta.spool import MessageState, Spool, SpoolSettings
from elemta.spool.partition import AdoptedSpools, Partition, partitions_in
from elemta.spool.startup import Permit

if TYPE_CHECKING:
    from elemta.delivery import DeliveryScheduler

_log = Logger()

AT_ONCE = 0.0
"""The grace of deliveries from a spool that another node may have already."""


NO_DELIVERY = "this daemon has no listener and delivers no mail: adopt it on a node that has one"


class AdoptionStage(enum.Enum):
    """Where an adoption stands."""

    OPENING = "opening"
    DELIVERING = "delivering"
    WAITING = "waiting"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One spool directory: the node's ``own``, or one that it adopted.

    ``state`` is ``own``, ``delivering``, ``waiting`` (for the ``reason``) or ``closing``. ``messages`` are
    counted as a whole and by state; None while it is not open. ``left`` are directories that its dead node
    had adopted itself.
    """

    directory: str
    state: str
    reason: str
    messages: int | None
    states: Mapping[MessageState, int] | None
    left: tuple[str, ...]

    @classmethod
    def of(
        cls,
        directory: str,
        state: str,
        reason: str = "",
        states: Mapping[MessageState, int] | None = None,
        left: tuple[str, ...] = (),
    ) -> SpoolStatus:
        messages = None if states is None else sum(states.values())
        return cls(directory, state, reason, messages, states, left)


@dataclass(frozen=True, slots=True)
class AdoptionEnvironment:
    """What an adoption needs of its daemon.

    ``open`` opens a partition of a directory, ``deliver`` gives a delivery for it that is not started yet
    (None: this daemon delivers nothing); ``in_thread`` does work that blocks.
    """

    node: str
    ownership: Callable[[], PartitionOwnership]
    open: Callable[[Path, int, Permit], Awaitable[Spool]]
    deliver: Callable[[Spool], DeliveryScheduler] | None
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _OpenPartition:
    """A partition that is open, by what right, and its delivery."""

    spool: Spool
    ownership: PartitionOwnership
    delivery: DeliveryScheduler | None = None


class Adoption:
    """All partitions of a directory, or none of them; ``numbers`` are those, where it is not all."""

    def __init__(
        self, directory: Path, environment: AdoptionEnvironment, numbers: tuple[int, ...] | None = None
    ) -> None:
        self.directory = directory
        self._only = numbers
        self.stage = AdoptionStage.OPENING
        self.reason = ""
        self.left: tuple[str, ...] = ()
        self.recorded = False
        """Whether it is in the record, and so goes on after a restart."""
        self._environment = environment
        self._held: list[_OpenPartition] = []
        self.ending = False
        """Whether it is not to begin any more."""
        self._turn = DeferredLock()

    @property
    def spools(self) -> Sequence[Spool]:
        """Those that are open."""
        return [held.spool for held in self._held] if self.stage is AdoptionStage.DELIVERING else []

    @property
    def deliveries(self) -> Sequence[DeliveryScheduler]:
        return [held.delivery for held in self._held if held.delivery is not None]

    @property
    def messages(self) -> Mapping[MessageState, int] | None:
        """How many there are by state; None while it is not open."""
        if self.stage is not AdoptionStage.DELIVERING:
            return None
        return {state: sum(spool.messages[state] for spool in self.spools) for state in MessageState}

    @property
    def is_empty(self) -> bool:
        """Whether everything in it is delivered, and noted."""
        messages = self.messages
        return (
            messages is not None
            and not any(messages.values())
            and not any(delivery.under_way for delivery in self.deliveries)
        )

    @property
    def is_leftover(self) -> bool:
        """Whether it is partitions of this node's own directory."""
        return self._only is not None

    def status(self) -> SpoolStatus:
        where = str(self.directory)
        if self._only is not None:
            where = " ".join(str(self.directory / f"p{number}") for number in self._only)
        return SpoolStatus.of(where, self.stage.value, self.reason, self.messages, self.left)

    async def begin(self, note: Callable[[], Awaitable[None]] | None = None) -> None:
        """Open it and deliver from it, after ``note`` has noted it durably. Nothing is open where it fails.

        SpoolLocked: another owns it. NoSpool, SpoolError: it can't be used. What ``note`` raises.
        """
        await self._turn.acquire()
        try:
            if self.stage is AdoptionStage.DELIVERING:
                return
            self._go_on(AdoptionStage.OPENING)
            await self._open()
            if note is not None and not self.ending:
                await note()
            self._deliver()
        except BaseException as error:
            await self._close(AT_ONCE)
            self._go_on(AdoptionStage.WAITING, str(error))
            raise
        finally:
            self._turn.release()

    async def end(self, grace: float | None = None) -> None:
        """Finish what is under way within the grace (None: the settings'), close, and let others have it."""
        self.ending = True
        await self._turn.acquire()
        try:
            self._go_on(AdoptionStage.CLOSING)
            await self._close(grace)
        finally:
            self._turn.release()

    def wait(self, reason: str) -> None:
        """Do nothing for now, for this reason."""
        self._go_on(AdoptionStage.WAITING, reason)

    # Beginning

    async def _open(self) -> None:
        numbers = self._only
        if numbers is None:
            numbers = await self._environment.in_thread(self._numbers)
        for number in numbers:
            ownership = self._environment.ownership()
            try:
                spool = await self._environment.open(self.directory, number, self._permit(ownership))
            except BaseException:
                await ownership.leave()
                raise
            self._held.append(_OpenPartition(spool, ownership))
        if self._only is None:
            self.left = await self._environment.in_thread(self._left)

    def _numbers(self) -> tuple[int, ...]:
        try:
            found = partitions_in(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            found = ()
        except OSError as error:
            raise SpoolError(f"{self.directory} can't be read: {error.strerror or error}") from error
        if not found:
            raise NoSpool(f"there is no spool in {self.directory}")
        return found

    def _left(self) -> tuple[str, ...]:
        """The spools that the dead node had adopted itself, which have no owner now."""
        try:
            return tuple(map(str, AdoptedSpools(self.directory).read()))
        except SpoolError as error:
            _log.warn("a record of adoptions can't be read", event="spool.record_failed", reason=str(error))
            return ()

    def _permit(self, ownership: PartitionOwnership) -> Permit:
        async def permit(partition: Partition) -> None:
            if self.recorded and partition.last_node not in ("", self._environment.node):
                words = f"node {partition.last_node} took {self.directory} back meanwhile"
                raise SpoolLocked(words, node=partition.last_node)
            await ownership.claim_adopted(partition)

        return permit

    def _deliver(self) -> None:
        gone = [held.ownership.gone for held in self._held if held.ownership.gone is not None]
        if gone or self.ending:
            raise SpoolError(gone[0] if gone else "it is not wanted any more")
        deliver = self._environment.deliver
        if deliver is None:
            raise SpoolError(NO_DELIVERY)
        for held in self._held:
            held.delivery = deliver(held.spool)
        self._go_on(AdoptionStage.DELIVERING)
        for held in self._held:
            held.ownership.watch(self._cut_off)
        for delivery in self.deliveries:
            delivery.startService()

    # Ending

    def _cut_off(self, reason: str) -> None:
        """The right to it is gone: whatever is under way is given up."""
        if self.stage is not AdoptionStage.DELIVERING:
            return
        self._go_on(AdoptionStage.WAITING, reason)
        _log.error(
            "the deliveries from an adopted spool are cut off",
            event="spool.adoption_cut_off",
            directory=str(self.directory),
            reason=reason,
        )
        Deferred.fromCoroutine(self._close_in_turn()).addErrback(_log_not_closed)

    async def _close_in_turn(self) -> None:
        # Its deliveries are stopped before anything is waited for.
        stopped = DeferredList([stop.addErrback(_log_not_closed) for stop in self._stop_deliveries(AT_ONCE)])
        await self._turn.acquire()
        try:
            await stopped
            await self._close(AT_ONCE)
        finally:
            self._turn.release()

    def _stop_deliveries(self, grace: float | None) -> list[Deferred[None]]:
        running = [delivery for delivery in self.deliveries if delivery.running]
        return [
            delivery.stopService() if grace is None else delivery.stop_within(grace) for delivery in running
        ]

    async def _close(self, grace: float | None) -> None:
        await DeferredList([stop.addErrback(_log_not_closed) for stop in self._stop_deliveries(grace)])
        held, self._held = self._held, []
        for each in held:
            await _ended(each.spool.close())
            await _ended(each.ownership.leave())

    def _go_on(self, stage: AdoptionStage, reason: str = "") -> None:
        self.stage, self.reason = stage, reason


async def _ended(work: Coroutine[Deferred[Any], Any, None]) -> None:
    await Deferred.fromCoroutine(work).addErrback(_log_not_closed)


def _log_not_closed(failure: Failure) -> None:
    _log.failure("an adopted spool could not be closed", failure, event="spool.adoption_not_closed")


_ADOPTED = "which has adopted it"


class SpoolOpener:
    """How spools are opened under one configuration, and by what right."""

    def __init__(self, shared: SharedResources, config: Config) -> None:
        self._shared = shared
        self._config = config

    async def open_own(
        self, goes_on: Callable[[], bool], number: int = 0
    ) -> tuple[Spool, PartitionOwnership]:
        """This process's partition of the spool. SpoolLocked: another has it. SpoolError."""
        ownership = self._ownership()

        async def permit(partition: Partition) -> None:
            await ownership.claim_own(partition, goes_on)

        try:
            return await self._open(Path(self._config.spool.directory), number, permit), ownership
        except BaseException:
            await ownership.leave()
            raise

    def adoption_environment(
        self, own: Spool, deliver: Callable[[Spool], DeliveryScheduler] | None
    ) -> AdoptionEnvironment:
        """What an adoption needs; what blocks is done in a thread of the spool ``own``."""

        def open_adopted(directory: Path, number: int, permit: Permit) -> Awaitable[Spool]:
            return self._open(directory, number, permit, _ADOPTED)

        return AdoptionEnvironment(
            node=self._config.server.node_id,
            ownership=self._ownership,
            open=open_adopted,
            deliver=deliver,
            in_thread=own.in_disk_thread,
        )

    def _ownership(self) -> PartitionOwnership:
        return PartitionOwnership(
            self._shared.fleet, self._shared.runtime.reactor, self._config.server.node_id
        )

    async def _open(self, directory: Path, number: int, permit: Permit, how: str = "") -> Spool:
        settings = SpoolSettings(
            directory,
            number,
            node=self._config.server.node_id,
            how=how,
            minimum_free=self._config.spool.minimum_free,
            keep_history=self._config.spool.history,
        )
        return await Spool.open(
            settings,
            runtime=self._shared.runtime,
            metrics=self._shared.metrics.spool,
            history_metrics=self._shared.metrics.history,
            permit=permit,
        )
