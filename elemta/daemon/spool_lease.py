"""The lease of a spool in Valkey: its owner, for hosts whose locks do not reach each other.

``{prefix}spool:ID`` is a hash with the owner's ``boot``, ``place``, ``node`` and ``host``, which expires when
it is not renewed. The lock is what keeps two processes apart; the lease keeps apart what no lock does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable
from elemta.runtime import Runtime
from elemta.valkey import Script
from elemta.valkey.client import ScriptRunner

_log = Logger()

TIME_TO_LIVE = 30.0
"""Seconds after its last renewal in which a spool is its owner's."""

RENEWED_EVERY = 5.0
"""Seconds between two renewals."""

SURE_FOR = 18.0
"""Seconds after its last renewal in which the owner is sure of it, with time left to stop everything."""

DEADLINE = 1.0
"""Seconds that a call about a lease waits for Valkey."""

_OWN = Script.of_package("elemta.daemon", "scripts/own.lua")
_DISOWN = Script.of_package("elemta.daemon", "scripts/disown.lua")


SCRIPTS = {script.name: script for script in (_OWN, _DISOWN)}
"""The scripts about leases, by their names."""


@dataclass(frozen=True, slots=True)
class LeaseOwner:
    """The owner of a lease: a run of a node on a host, under the lock at ``place`` (see `Partition`)."""

    boot: str
    place: str
    node: str
    host: str

    def __str__(self) -> str:
        return f"node {self.node} on {self.host}"


class SpoolLease:
    """The lease of the spool ``spool_id`` for the ``owner`` that this process is."""

    def __init__(
        self,
        runtime: Runtime,
        valkey: ScriptRunner,
        *,
        prefix: str,
        spool_id: str,
        owner: LeaseOwner,
    ) -> None:
        self._clock: IReactorTime = runtime.reactor
        self._valkey = valkey
        self._key = f"{prefix}spool:{spool_id}".encode()
        self._owner = owner
        # A lease runs out while the system is suspended, too.
        self._seconds = runtime.since_boot
        self._renewed_at: float | None = None
        self._lost: Callable[[LeaseOwner], None] | None = None
        self._ran_out: Callable[[], None] | None = None
        self._watch: IDelayedCall | None = None
        self._renewals = LoopingCall(self._renew)
        self._renewals.clock = self._clock

    async def take(self) -> LeaseOwner | None:
        """Take or renew it; its owner, where that is another node. StoreUnavailable."""
        asked_at = self._seconds()
        owner = self._owner
        args = (int(TIME_TO_LIVE * 1000), owner.boot, owner.place, owner.node, owner.host)
        found = await self._valkey.run(_OWN, [self._key], args, deadline=DEADLINE)
        if found:
            return LeaseOwner(*((word or b"").decode("utf-8", "replace") for word in found))
        self._renewed_at = asked_at
        return None

    def keep(self, lost: Callable[[LeaseOwner], None], ran_out: Callable[[], None] | None = None) -> None:
        """Renew it from now on; where it is not taken yet, take it as soon as that can be.

        ``lost`` is called when another node has it, ``ran_out`` when it was not renewed for so long that
        another node may have it soon. Either ends the renewals.
        """
        self._lost, self._ran_out = lost, ran_out
        self._renewals.start(RENEWED_EVERY, now=self._renewed_at is None).addErrback(_renewals_ended)
        self._watch_over()

    async def give_up(self) -> None:
        """Renew it no more, and tell the others that it can be had."""
        self._end()
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            await self._valkey.run(_DISOWN, [self._key], [self._owner.boot], deadline=DEADLINE)
        except StoreUnavailable:
            _log.debug("the lease of a spool will run out by itself", event="spool.lease_not_released")

    def _end(self) -> None:
        self._lost = self._ran_out = None
        if self._renewals.running:
            self._renewals.stop()
        if self._watch is not None and self._watch.active():
            self._watch.cancel()

    def _renew(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._renew_once())

    async def _renew_once(self) -> None:
        try:
            owner = await self.take()
        except StoreUnavailable:
            return
        if owner is None:
            self._watch_over()
        elif self._lost is not None:
            lost = self._lost
            self._end()
            lost(owner)

    def _watch_over(self) -> None:
        """Have it noticed when this was the last renewal for too long."""
        if self._ran_out is None or self._renewed_at is None:
            return
        left = max(0.0, self._renewed_at + SURE_FOR - self._seconds())
        if self._watch is not None and self._watch.active():
            self._watch.reset(left)
        else:
            self._watch = self._clock.callLater(left, self._unsure)

    def _unsure(self) -> None:
        ran_out = self._ran_out
        if ran_out is not None:
            self._end()
            ran_out()


def _renewals_ended(failure: Failure) -> None:
    _log.failure("the renewal of the lease of a spool ended", failure, event="spool.lease_not_renewed")
