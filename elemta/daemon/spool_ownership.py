"""By what right this node works on a spool: the lock, which the spool takes itself, and a lease in Valkey."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from elemta.daemon.membership import Membership
from elemta.daemon.spool_lease import TIME_TO_LIVE, LeaseOwner, SpoolLease
from elemta.errors import SpoolError, SpoolLocked, StoreUnavailable
from elemta.spool.partition import Partition

_log = Logger()

_ASK_AGAIN = 0.5
_LONGEST_WAIT = TIME_TO_LIVE + 5.0


class PartitionOwnership:
    """The right to one partition. Where there is no Valkey it is as good as the lock.

    ``gone`` says why there is no right to it any more.
    """

    def __init__(self, fleet: Membership, clock: IReactorTime, node: str) -> None:
        self.gone: str | None = None
        self._over: Callable[[str], object] = _ignore
        self._fleet = fleet
        self._clock = clock
        self._node = node
        self._lease: SpoolLease | None = None

    async def claim_own(self, partition: Partition, goes_on: Callable[[], bool]) -> None:
        """The right to this node's own spool; without Valkey it is there, too, until another has it.

        What this node had before it was restarted elsewhere is waited for, as long as it can last.
        SpoolLocked: another node has it.
        """
        await self._fleet.joined()
        lease = self._lease_of(partition)
        if lease is None:
            return
        waited = 0.0
        while (owner := await _owner(lease)) is not None:
            if owner.node != self._node or waited >= _LONGEST_WAIT or not goes_on():
                raise _owned(owner, partition)
            if not waited:
                _log.warn(
                    "waiting for the lease of the spool to run out",
                    event="spool.lease_awaited",
                    partition=partition.places.directory.name,
                    owner=str(owner),
                )
            waited += _ASK_AGAIN
            await deferLater(self._clock, _ASK_AGAIN)
        lease.keep(self._lost)

    async def claim_adopted(self, partition: Partition) -> None:
        """The right to another node's spool: none while Valkey can't confirm that no other node has it.

        SpoolLocked: another owner has it. SpoolError: the owner is unknown.
        """
        lease = self._lease_of(partition)
        if lease is None:
            return
        try:
            owner = await lease.take()
        except StoreUnavailable as error:
            raise SpoolError(
                f"Valkey can't confirm the owner of {partition.places.directory}: {error}"
            ) from error
        if owner is not None:
            raise _owned(owner, partition)
        lease.keep(self._lost, self._expired)

    def watch(self, over: Callable[[str], object]) -> None:
        """Have it called with the reason when there is no right any more, now if it is so already."""
        self._over = over
        if self.gone is not None:
            over(self.gone)

    async def leave(self) -> None:
        """Let others have it."""
        lease, self._lease = self._lease, None
        self._over = _ignore
        if lease is not None:
            await lease.give_up()

    def _lease_of(self, partition: Partition) -> SpoolLease | None:
        self._lease = self._fleet.lease(partition.id, partition.place)
        return self._lease

    def _lost(self, owner: LeaseOwner) -> None:
        self._end(f"{owner} owns it now")

    def _expired(self) -> None:
        self._end("its lease could not be renewed: Valkey does not answer")

    def _end(self, reason: str) -> None:
        self.gone = reason
        self._over(reason)


def _owned(owner: LeaseOwner, partition: Partition) -> SpoolLocked:
    words = f"{owner} owns the spool partition {partition.places.directory}, by its lease in Valkey"
    return SpoolLocked(words, node=owner.node)


async def _owner(lease: SpoolLease) -> LeaseOwner | None:
    """The other owner; None where that can't be asked."""
    try:
        return await lease.take()
    except StoreUnavailable:
        return None


def _ignore(_: str) -> None:
    """The end of a right that nothing works by."""
