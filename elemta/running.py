"""The parts that are open once the daemon has started."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.adopting import Adoptions
from elemta.adoption import Workshop
from elemta.assembly import Assembly, Lasting
from elemta.delivering import Delivering
from elemta.delivery import Delivery
from elemta.doors import Place
from elemta.ops.admin import AdminSite
from elemta.ops.admin_operations import Operations
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket
from elemta.ops.metrics import LoopLag
from elemta.ownership import Title
from elemta.spool import Spool

_log = Logger()

Task = tuple[float, Callable[[], object]]
"""What is done again and again, and every how many seconds."""


@dataclass(slots=True)
class Running:
    """The spool and what works on it, under the assembly of the moment."""

    reactor: ReactorBase
    lasting: Lasting
    assembly: Assembly
    spool: Spool
    title: Title
    delivering: Delivering
    delivery: Delivery
    adoptions: Adoptions
    admin: AdminSocket
    loops: tuple[LoopingCall, ...]
    lag: LoopLag

    @classmethod
    def open(
        cls,
        spool: Spool,
        title: Title,
        *,
        operations: Callable[[Adoptions], Operations],
        workshop: Callable[[Callable[[Spool], Delivery]], Workshop],
        reactor: ReactorBase,
        lasting: Lasting,
        assembly: Assembly,
        places: Sequence[Place],
        tasks: Sequence[Task],
    ) -> Running:
        """Open everything beside the spool, in order; ``places`` are where this host takes mail itself."""
        delivering = Delivering(reactor, lasting, assembly, places)
        delivery = delivering.from_own(spool)
        adoptions = Adoptions(reactor, spool, workshop(delivering.from_adopted))
        admin = AdminSocket(
            Path(spool.settings.directory) / SOCKET_NAME,
            AdminSite(operations(adoptions), reactor, now=lasting.clocks.wall),
            reactor,
        )
        admin.open()
        assembly.authenticator.start()
        lasting.resolver.start()
        delivery.startService()
        lag = LoopLag(lasting.metrics, reactor)
        lag.start()
        loops = tuple(_every(reactor, seconds, call) for seconds, call in tasks)
        running = cls(
            reactor,
            lasting,
            assembly,
            spool,
            title,
            delivering=delivering,
            delivery=delivery,
            adoptions=adoptions,
            admin=admin,
            loops=loops,
            lag=lag,
        )
        lasting.metrics.watch_spool(adoptions.queue.stats)
        lasting.metrics.chain.watch_breakers(running._open_breakers)
        adoptions.start()
        return running

    def follow(self, assembly: Assembly, places: Sequence[Place]) -> None:
        """Go on under another assembly."""
        previous, self.assembly = self.assembly, assembly
        assembly.authenticator.start()
        self.delivering.follow(assembly, places, (self.delivery, *self.adoptions.deliveries))
        # A session that began under the old terms may still ask the old checkers.
        retire = Deferred.fromCoroutine(previous.authenticator.stop())
        retire.addErrback(
            lambda f: _log.failure(
                "credentials checkers of the old configuration did not stop", f, event="auth.stop_failed"
            )
        )

    def stop_deliveries(self) -> Deferred[Any]:
        """Stop all of them at the same time; fires when nothing is under way any more."""
        return DeferredList([self.delivery.stopService(), Deferred.fromCoroutine(self.adoptions.stop())])

    async def close(self) -> None:
        """Close everything; delivery has been stopped, and no session is left."""
        await self.admin.close()
        for loop in self.loops:
            loop.stop()
        self.lag.stop()
        await self.lasting.resolver.stop()
        await self.spool.close()
        await self.title.leave()

    def _open_breakers(self) -> Mapping[str, bool]:
        return self.assembly.chain.open_breakers()


def _every(reactor: ReactorBase, seconds: float, call: Callable[[], object]) -> LoopingCall:
    def once() -> object:
        # Twisted 22.4's LoopingCall would let a coroutine lie.
        result = call()
        return Deferred.fromCoroutine(result) if isinstance(result, Coroutine) else result

    loop = LoopingCall(once)
    loop.clock = reactor
    loop.start(seconds, now=False).addErrback(
        lambda failure: _log.failure(
            "a periodic task ended with an internal error", failure, event="daemon.task_failed"
        )
    )
    return loop
