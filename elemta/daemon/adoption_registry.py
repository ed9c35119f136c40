"""The spools of other nodes that this one delivers from: which they are, from one start to the next."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.daemon.adoption import NO_DELIVERY, Adoption, AdoptionEnvironment, AdoptionStage, SpoolStatus
from elemta.errors import NoSpool, SpoolError, SpoolLocked
from elemta.runtime import Runtime
from elemta.spool import Spool
from elemta.spool.combined_queue import CombinedQueue
from elemta.spool.partition import AdoptedSpools

if TYPE_CHECKING:
    from elemta.delivery import DeliveryScheduler

_log = Logger()

LOOK_EVERY = 1.0
"""Seconds between two looks whether a spool is empty."""

TRY_EVERY = 5.0
"""Seconds between two tries to have a spool that can't be had now."""

GIVING_BACK = 10.0
"""Seconds that deliveries under way have when a spool is given back."""


@dataclass(slots=True, eq=False)
class _AdoptionTask:
    """An adoption, when it is tried again, and what is being done about it."""

    adoption: Adoption
    again_at: float = 0.0
    busy: bool = False
    logged: str = ""


class AdoptionRegistry:
    """Adopts spools, looks after them until they are empty, and remembers them in the spool ``own``.

    ``queue`` is the own spool and all adopted ones together. ``leftover`` are partitions of the own directory
    that no worker has any more; they are no other node's, and so are not recorded. ``record_in`` is where the
    record is kept when that is not the spool's directory.
    """

    def __init__(
        self,
        runtime: Runtime,
        own: Spool,
        environment: AdoptionEnvironment,
        *,
        leftover: tuple[int, ...] = (),
        record_in: Path | None = None,
    ) -> None:
        self.queue = CombinedQueue(own, lambda: self.spools)
        self._clock: IReactorTime = runtime.reactor
        self._own = own
        self._root = Path(own.settings.directory)
        self._environment = environment
        self._record = AdoptedSpools(record_in or self._root, runtime.disk)
        self._leftover = leftover
        self._known: dict[Path, _AdoptionTask] = {}
        self._writing = DeferredLock()
        self._unreadable: SpoolError | None = None
        self._stopping = False
        self._looks = LoopingCall(self._look)
        self._looks.clock = self._clock

    @property
    def spools(self) -> Sequence[Spool]:
        """The adopted spools that are open."""
        return [spool for care in self._known.values() for spool in care.adoption.spools]

    @property
    def deliveries(self) -> Sequence[DeliveryScheduler]:
        return [delivery for care in self._known.values() for delivery in care.adoption.deliveries]

    def start(self) -> None:
        """Take up again what was adopted before. A record that can't be read is left alone, and logged."""
        Deferred.fromCoroutine(self._take_up()).addErrback(_log_failure)

    async def _take_up(self) -> None:
        try:
            directories = await self._environment.in_thread(self._record.read)
        except SpoolError as error:
            self._unreadable = error
            _log.error(
                "the record of adoptions can't be read", event="spool.record_failed", reason=str(error)
            )
            directories = ()
        if self._stopping:
            return
        for directory in directories:
            care = self._known[directory] = _AdoptionTask(Adoption(directory, self._environment))
            care.adoption.recorded = True
            care.adoption.wait("it is taken up again")
        if self._leftover:
            adoption = Adoption(self._root, self._environment, self._leftover)
            self._known[self._root] = _AdoptionTask(adoption)
            adoption.wait("no worker has it")
        self._looks.start(LOOK_EVERY).addErrback(
            lambda failure: _log.failure(
                "the maintenance of adopted spools ended", failure, event="spool.internal_error"
            )
        )

    async def stop(self) -> None:
        """Finish what is under way within delivery's grace, and close all of them; a start goes on."""
        self._stopping = True
        if self._looks.running:
            self._looks.stop()
        ends = [Deferred.fromCoroutine(care.adoption.end()) for care in self._known.values()]
        await DeferredList([end.addErrback(_log_failure) for end in ends])

    # What an operator does

    def all(self) -> Sequence[SpoolStatus]:
        """The node's own first."""
        own = SpoolStatus.of(str(self._root), "own", states=self._own.messages)
        return [own, *(care.adoption.status() for _, care in sorted(self._known.items()))]

    async def adopt(self, directory: str) -> SpoolStatus:
        """Deliver what is in another node's spool, until it is empty.

        SpoolLocked: another owner has it. NoSpool: there is none. SpoolError: it can't be used.
        """
        path = await self._real(directory)
        if path == await self._real(str(self._root)):
            raise SpoolLocked(f"{path} is this node's own spool", node=self._environment.node)
        if self._stopping or self._unreadable is not None:
            raise self._unreadable or SpoolError("the daemon is stopping")
        if self._environment.deliver is None:
            raise SpoolError(NO_DELIVERY)
        care = self._known.setdefault(path, _AdoptionTask(Adoption(path, self._environment), busy=True))
        if care.adoption.stage is AdoptionStage.DELIVERING:
            return care.adoption.status()
        await _to_its_end(self._begin(care))
        return care.adoption.status()

    async def give_back(self, directory: str) -> SpoolStatus:
        """Stop delivering from a spool that was adopted, and let its node have it. NoSpool: it was not."""
        path = await self._real(directory)
        care = self._known.get(path)
        if care is None or care.adoption.is_leftover:
            raise NoSpool(f"this node has not adopted {path}")
        messages = care.adoption.messages
        await _to_its_end(self._give_back(care))
        return SpoolStatus.of(str(path), "given back", states=messages)

    async def _give_back(self, care: _AdoptionTask) -> None:
        adoption = care.adoption
        care.busy = adoption.ending = True
        try:
            await self._forget(care)
        except BaseException:
            care.busy = adoption.ending = False
            raise
        await adoption.end(GIVING_BACK)
        self._known.pop(adoption.directory, None)
        _log.info("a spool was given back", event="spool.given_back", directory=str(adoption.directory))

    async def _begin(self, care: _AdoptionTask) -> None:
        adoption = care.adoption
        care.busy = True
        try:
            await adoption.begin(None if adoption.is_leftover else lambda: self._note(care))
        except BaseException:
            if not adoption.recorded and not adoption.is_leftover:
                self._known.pop(adoption.directory, None)
            raise
        finally:
            care.busy = False
            care.again_at = self._clock.seconds() + TRY_EVERY
        care.logged = ""
        messages = adoption.messages or {}
        _log.info(
            "a spool was adopted",
            event="spool.adopted",
            directory=str(adoption.directory),
            messages=sum(messages.values()),
            adopted_by_it=adoption.left,
        )

    # What becomes of them

    def _look(self) -> None:
        for care in tuple(self._known.values()):
            if care.busy:
                continue
            if care.adoption.is_empty:
                self._do(care, self._finish(care))
            elif care.adoption.stage is AdoptionStage.WAITING and care.again_at <= self._clock.seconds():
                self._do(care, self._try_again(care))

    def _do(self, care: _AdoptionTask, work: Coroutine[Deferred[Any], Any, None]) -> None:
        def done(result: object) -> None:
            care.busy = False
            care.again_at = self._clock.seconds() + TRY_EVERY
            if isinstance(result, Failure):
                care.adoption.wait(result.getErrorMessage())
                _log_failure(result)

        care.busy = True
        Deferred.fromCoroutine(work).addBoth(done)

    async def _finish(self, care: _AdoptionTask) -> None:
        directory = care.adoption.directory
        await self._forget(care)
        await care.adoption.end()
        self._known.pop(directory, None)
        _log.info(
            "an adopted spool is empty and closed", event="spool.adoption_done", directory=str(directory)
        )

    async def _try_again(self, care: _AdoptionTask) -> None:
        try:
            await self._begin(care)
        except SpoolLocked as error:
            if error.node not in ("", self._environment.node):
                await self._lose(care, error)
                return
            self._log_waiting(care, error)
        except SpoolError as error:
            self._log_waiting(care, error)

    async def _lose(self, care: _AdoptionTask, error: SpoolLocked) -> None:
        directory = care.adoption.directory
        await self._forget(care)
        self._known.pop(directory, None)
        _log.warn(
            "the adoption of a spool ended: another node owns it",
            event="spool.adoption_lost",
            directory=str(directory),
            owner=error.node,
            reason=str(error),
        )

    def _log_waiting(self, care: _AdoptionTask, error: SpoolError) -> None:
        if care.logged != str(error):
            care.logged = str(error)
            _log.warn(
                "an adopted spool can't be opened now",
                event="spool.adoption_delayed",
                directory=str(care.adoption.directory),
                reason=str(error),
            )

    # What is remembered

    async def _note(self, care: _AdoptionTask) -> None:
        if not care.adoption.recorded:
            self._known[care.adoption.directory] = care
            care.adoption.recorded = True
            try:
                await self._write()
            except BaseException:
                care.adoption.recorded = False
                raise

    async def _forget(self, care: _AdoptionTask) -> None:
        care.adoption.recorded = False
        try:
            await self._write()
        except BaseException:
            care.adoption.recorded = True
            raise

    async def _write(self) -> None:
        await self._writing.acquire()
        try:
            recorded = [path for path, care in self._known.items() if care.adoption.recorded]
            await self._environment.in_thread(lambda: self._record.write(sorted(recorded)))
        finally:
            self._writing.release()

    async def _real(self, directory: str) -> Path:
        def real() -> Path:
            if not os.path.isabs(directory):
                raise NoSpool(f"{directory} is no absolute path")
            return Path(os.path.realpath(directory))

        found: Path = await self._environment.in_thread(real)
        return found


def _to_its_end(work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
    """The result of work that goes on after its caller has gone."""
    waiting: Deferred[None] = Deferred()
    Deferred.fromCoroutine(work).addCallbacks(waiting.callback, waiting.errback)
    return waiting


def _log_failure(failure: Failure) -> None:
    _log.failure("the maintenance of an adopted spool failed", failure, event="spool.internal_error")
