"""One spool directory of another node, and the deliveries from it."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery import Delivery
from elemta.errors import NoSpool, SpoolError, SpoolLocked
from elemta.ops.spool_operations import SpoolStatus
from elemta.ownership import Title
from elemta.spool import Spool, State
from elemta.spool.adopted import AdoptionRecord
from elemta.spool.opening import Permit
from elemta.spool.partition import Partition, partitions_in

_log = Logger()

AT_ONCE = 0.0
"""The grace of deliveries from a spool that another node may have already."""


class Stage(enum.Enum):
    """Where an adoption stands."""

    OPENING = "opening"
    DELIVERING = "delivering"
    WAITING = "waiting"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What an adoption needs of its daemon.

    ``open`` opens a partition of a directory, ``deliver`` gives a delivery for it that is not started yet;
    ``in_thread`` does work that blocks.
    """

    node: str
    title: Callable[[], Title]
    open: Callable[[Path, int, Permit], Awaitable[Spool]]
    deliver: Callable[[Spool], Delivery]
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _Held:
    """A partition that is open, by what right, and its delivery."""

    spool: Spool
    title: Title
    delivery: Delivery | None = None


class Adoption:
    """All partitions of a directory, or none of them."""

    def __init__(self, directory: Path, workshop: Workshop) -> None:
        self.directory = directory
        self.stage = Stage.OPENING
        self.reason = ""
        self.left: tuple[str, ...] = ()
        self.recorded = False
        """Whether it is in the record, and so goes on after a restart."""
        self._workshop = workshop
        self._held: list[_Held] = []
        self.ending = False
        """Whether it is not to begin any more."""
        self._turn = DeferredLock()

    @property
    def spools(self) -> Sequence[Spool]:
        """Those that are open."""
        return [held.spool for held in self._held] if self.stage is Stage.DELIVERING else []

    @property
    def deliveries(self) -> Sequence[Delivery]:
        return [held.delivery for held in self._held if held.delivery is not None]

    @property
    def messages(self) -> Mapping[State, int] | None:
        """How many there are by state; None while it is not open."""
        if self.stage is not Stage.DELIVERING:
            return None
        return {state: sum(spool.messages[state] for spool in self.spools) for state in State}

    @property
    def is_empty(self) -> bool:
        """Whether everything in it is delivered, and noted."""
        messages = self.messages
        return (
            messages is not None
            and not any(messages.values())
            and not any(delivery.under_way for delivery in self.deliveries)
        )

    def status(self) -> SpoolStatus:
        return SpoolStatus(str(self.directory), self.stage.value, self.reason, self.messages, self.left)

    async def begin(self, note: Callable[[], Awaitable[None]] | None = None) -> None:
        """Open it and deliver from it, after ``note`` has noted it durably. Nothing is open where it fails.

        SpoolLocked: another owns it. NoSpool, SpoolError: it can't be used. What ``note`` raises.
        """
        await self._turn.acquire()
        try:
            if self.stage is Stage.DELIVERING:
                return
            self._go_on(Stage.OPENING)
            await self._open()
            if note is not None and not self.ending:
                await note()
            self._deliver()
        except BaseException as error:
            await self._close(AT_ONCE)
            self._go_on(Stage.WAITING, str(error))
            raise
        finally:
            self._turn.release()

    async def end(self, grace: float | None = None) -> None:
        """Finish what is under way within the grace (None: the settings'), close, and let others have it."""
        self.ending = True
        await self._turn.acquire()
        try:
            self._go_on(Stage.CLOSING)
            await self._close(grace)
        finally:
            self._turn.release()

    def wait(self, reason: str) -> None:
        """Do nothing for now, for this reason."""
        self._go_on(Stage.WAITING, reason)

    # Beginning

    async def _open(self) -> None:
        for number in await self._workshop.in_thread(self._numbers):
            title = self._workshop.title()
            try:
                spool = await self._workshop.open(self.directory, number, self._permit(title))
            except BaseException:
                await title.leave()
                raise
            self._held.append(_Held(spool, title))
        self.left = await self._workshop.in_thread(self._left)

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
            return tuple(map(str, AdoptionRecord(self.directory).read()))
        except SpoolError as error:
            _log.warn("a record of adoptions can't be read", event="spool.record_failed", reason=str(error))
            return ()

    def _permit(self, title: Title) -> Permit:
        async def permit(partition: Partition) -> None:
            if self.recorded and partition.last_node not in ("", self._workshop.node):
                words = f"node {partition.last_node} took {self.directory} back meanwhile"
                raise SpoolLocked(words, node=partition.last_node)
            await title.claim_adopted(partition)

        return permit

    def _deliver(self) -> None:
        gone = [held.title.gone for held in self._held if held.title.gone is not None]
        if gone or self.ending:
            raise SpoolError(gone[0] if gone else "it is not wanted any more")
        for held in self._held:
            held.delivery = self._workshop.deliver(held.spool)
        self._go_on(Stage.DELIVERING)
        for held in self._held:
            held.title.watch(self._cut_off)
        for delivery in self.deliveries:
            delivery.startService()

    # Ending

    def _cut_off(self, reason: str) -> None:
        """The right to it is gone: whatever is under way is given up."""
        if self.stage is not Stage.DELIVERING:
            return
        self._go_on(Stage.WAITING, reason)
        _log.error(
            "the deliveries from an adopted spool are cut off",
            event="spool.adoption_cut_off",
            directory=str(self.directory),
            reason=reason,
        )
        Deferred.fromCoroutine(self._close_in_turn()).addErrback(_tell_not_closed)

    async def _close_in_turn(self) -> None:
        # Its deliveries are stopped before anything is waited for.
        stopped = DeferredList([stop.addErrback(_tell_not_closed) for stop in self._stop_deliveries(AT_ONCE)])
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
        await DeferredList([stop.addErrback(_tell_not_closed) for stop in self._stop_deliveries(grace)])
        held, self._held = self._held, []
        for each in held:
            await _told(each.spool.close())
            await _told(each.title.leave())

    def _go_on(self, stage: Stage, reason: str = "") -> None:
        self.stage, self.reason = stage, reason


async def _told(work: Coroutine[Deferred[Any], Any, None]) -> None:
    await Deferred.fromCoroutine(work).addErrback(_tell_not_closed)


def _tell_not_closed(failure: Failure) -> None:
    _log.failure("an adopted spool could not be closed", failure, event="spool.adoption_not_closed")
