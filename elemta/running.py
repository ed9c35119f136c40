"""The parts that are open once the daemon has started."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.assembly import Assembly, Lasting
from elemta.delivery import Delivery
from elemta.delivery.pace import Pace
from elemta.doors import Place
from elemta.ops.admin import AdminSite
from elemta.ops.admin_operations import Operations
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket
from elemta.ops.metrics import LoopLag
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
    delivery: Delivery
    pace: Pace
    admin: AdminSocket
    loops: tuple[LoopingCall, ...]
    lag: LoopLag

    @classmethod
    def open(
        cls,
        spool: Spool,
        operations: Operations,
        *,
        reactor: ReactorBase,
        lasting: Lasting,
        assembly: Assembly,
        places: Sequence[Place],
        tasks: Sequence[Task],
    ) -> Running:
        """Open everything beside the spool, in order; ``places`` are where this host takes mail itself."""
        admin = AdminSocket(
            Path(spool.settings.directory) / SOCKET_NAME, AdminSite(operations, reactor), reactor
        )
        admin.open()
        assembly.authenticator.start()
        lasting.resolver.start()
        pace = Pace(assembly.limiter)
        delivery = Delivery(
            reactor,
            spool,
            assembly.routes,
            replace(assembly.delivery, own_addresses=tuple(places)),
            lasting.metrics.delivery,
            resolver=lasting.resolver,
            pace=pace,
            hooks=assembly.chain.delivery_hooks,
        )
        delivery.startService()
        lag = LoopLag(lasting.metrics, reactor)
        lag.start()
        loops = tuple(_every(reactor, seconds, call) for seconds, call in tasks)
        running = cls(reactor, lasting, assembly, spool, delivery, pace, admin, loops, lag)
        lasting.metrics.watch_spool(spool.stats)
        lasting.metrics.chain.watch_breakers(running._open_breakers)
        return running

    def follow(self, assembly: Assembly, places: Sequence[Place]) -> None:
        """Go on under another assembly."""
        previous, self.assembly = self.assembly, assembly
        assembly.authenticator.start()
        self.pace.limiter = assembly.limiter
        settings = replace(assembly.delivery, own_addresses=tuple(places))
        self.delivery.reconfigure(assembly.routes, settings, assembly.chain.delivery_hooks)
        # A session that began under the old terms may still ask the old checkers.
        retire = Deferred.fromCoroutine(previous.authenticator.stop())
        retire.addErrback(lambda f: _log.failure("old checkers did not stop", f, event="auth.stop_failed"))

    async def close(self) -> None:
        """Close everything; delivery has been stopped, and no session is left."""
        await self.admin.close()
        for loop in self.loops:
            loop.stop()
        self.lag.stop()
        await self.lasting.resolver.stop()
        await self.spool.close()

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
        lambda failure: _log.failure("a periodic task ended", failure, event="daemon.task_failed")
    )
    return loop
