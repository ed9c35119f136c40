"""``[server] workers`` above 1: the process that owns the sockets and keeps the workers, and takes no mail.

It is the node of the fleet: to the other nodes, to Valkey, to systemd and to operators. Each worker is the
daemon of :mod:`elemta.daemon.service`, on the sockets that are bound here, with a partition of the spool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IProcessTransport, IReactorSocket
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.daemon.components import Components, SharedResources
from elemta.daemon.daemon_service import DaemonService, DaemonState, log_reload_failure
from elemta.daemon.membership_server import MembershipServer
from elemta.daemon.reload import ReloadReport, refused
from elemta.daemon.worker_process import FACTS_EVERY, WorkerLauncher, WorkerProcess, WorkerState
from elemta.deferred_value import Steps
from elemta.errors import ChannelClosed, ChannelError, ElemtaError, Fault
from elemta.limits.refusals import RememberedRefusal
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier
from elemta.workers.channel import Channel, open_channel

_log = Logger()

# A reload reads files and starts policies, each within its own deadline.
_COMMAND_SECONDS = 60.0
# A look at the workers that is later than this was kept from being done, and so was hearing them.
_STANDSTILL = 5.0


class Supervisor(DaemonService):
    """Binds before privileges go, starts the workers, is ready when each of them serves or has failed.

    ``launcher`` gives what starts a worker, once the sockets are bound. The rest is as in
    :class:`~elemta.daemon.daemon_service.DaemonService`.
    """

    def __init__(
        self,
        *,
        shared: SharedResources,
        components: Components,
        count: int,
        launcher: Callable[[Supervisor], WorkerLauncher],
        open_operations: Callable[[Supervisor], Any],
        config_path: str | None,
        environ: Mapping[str, str],
        log_observer: LogObserver | None = None,
        in_background: bool = False,
    ) -> None:
        DaemonService.__init__(
            self,
            shared=shared,
            components=components,
            notifier=Notifier(environ, shared.runtime, alive=self._workers_live),
            config_path=config_path,
            environ=environ,
            log_observer=log_observer,
            in_background=in_background,
        )
        self._launcher = launcher
        self._open_operations = open_operations
        self._operations: Any = None
        self._served = MembershipServer(
            shared.runtime,
            shared.fleet,
            prefix=components.config.resources.valkey_key_prefix,
            max_connections=lambda: self.config.resources.max_connections,
        )
        # How often another configuration came into force, and how often it had when each worker was started.
        self._changes = 0
        self._launched_after: dict[int, int] = {}
        self.workers = tuple(self._worker(number) for number in range(count))
        self._looks = LoopingCall(self._look)
        self._looks.clock = shared.runtime.reactor
        self._looked_at = 0.0

    def _worker(self, number: int) -> WorkerProcess:
        runtime = self.shared.runtime
        return WorkerProcess(
            number,
            runtime.reactor,
            launch=self._launch_worker,
            open_channel=partial(_open, runtime.reactor),
            speak=self._speak,
            serves=self._worker_serves,
            write=self._write_lines,
        )

    @property
    def serving(self) -> Sequence[WorkerProcess]:
        """The workers that run, in the order of their numbers."""
        return [worker for worker in self.workers if worker.state is WorkerState.RUNNING]

    def _bind(self) -> None:
        self.listeners.bind(self.config, self.why_not_ready)
        self._launch = self._launcher(self)

    def startService(self) -> None:
        DaemonService.startService(self)
        self._reload_on_hang_up()
        # Not before the reactor hears of the ends of processes.
        self.reactor.callWhenRunning(self._begin)

    # Start

    async def _start(self) -> None:
        self.listeners.open_monitoring()
        self.fleet.start(self)
        self._served.start()
        await self.fleet.joined()
        if self.state is DaemonState.STOPPING:
            return
        self._looked_at = self.reactor.seconds()
        self._looks.start(FACTS_EVERY, now=False)
        for worker in self.workers:
            worker.start()
        await DeferredList([worker.settled for worker in self.workers])
        if not self.running:
            return
        if not self.serving:
            raise ElemtaError(f"no worker serves: {self.workers[0].trouble}")
        self._operations = await self._open_operations(self)
        self.state = DaemonState.SERVING
        self._notifier.ready(self._status())
        self._say_ready()

    def _launch_worker(self, number: int, channel: int, protocol: ProcessProtocol) -> IProcessTransport:
        self._launched_after[number] = self._changes
        return self._launch(number, channel, protocol)

    def _speak(self, channel: Channel) -> None:
        """Answer what a worker asks over its new channel."""
        self._served.serve(channel)

    def _worker_serves(self, worker: WorkerProcess) -> None:
        """One that was started again joins a drain of the others, and has a reload that came meanwhile."""
        if self._launched_after[worker.number] != self._changes:
            log_reload_failure(Deferred.fromCoroutine(self._reload_worker(worker)))
        if self.state is DaemonState.DRAINING:
            self._command([worker], "drain")

    def _write_lines(self, lines: str) -> None:
        if self._log_observer is not None:
            self._log_observer.pass_on(lines)

    # While it runs

    def _look(self) -> None:
        """Whether the workers live, and what they do."""
        now = self.reactor.seconds()
        late, self._looked_at = now - self._looked_at > _STANDSTILL, now
        for worker in self.workers:
            if late:
                worker.excuse(now)
            worker.check(now)
        self._notifier.status(self._status())

    def _workers_live(self) -> bool:
        """Whether systemd may hear that the daemon lives: a worker that hangs is killed before that."""
        now = self.reactor.seconds()
        return not any(worker.is_silent(now) for worker in self.workers)

    def _status(self) -> str:
        words = f"{len(self.serving)} of {len(self.workers)} workers, queue {self.queued}"
        return f"{words}, sessions {self.sessions}"

    def why_not_ready(self) -> tuple[str, ...]:
        """Why mail would not be accepted now; empty when any worker would accept it."""
        if self.state is not DaemonState.SERVING:
            return (self.state.value,)
        reasons = {reason: None for worker in self.workers for reason in worker.facts.not_ready}
        if any(not worker.facts.not_ready for worker in self.serving):
            return ()
        return tuple(reasons)

    @property
    def sessions(self) -> int:
        return sum(worker.facts.sessions for worker in self.workers)

    @property
    def queued(self) -> int:
        return sum(worker.facts.queued for worker in self.workers)

    def refused(self) -> Sequence[RememberedRefusal]:
        return self._served.refused()

    def forget(self, limit: str, identity: str) -> None:
        self.components.limiter.forget(limit, identity)
        self._served.forget(limit, identity)

    def _reload_in_turn(self, text: str | None) -> Steps[ReloadReport]:
        """Check the configuration here, then have all workers put it into force.

        Where it can't be used here nothing is changed. A worker that refuses it all the same is named in the
        result, by its fault, and goes on as it was.
        """
        report = yield from self._reloading.reload(text)
        if report.faults:
            return report
        faults: list[Fault] = []
        for worker in self.serving:
            faults += yield Deferred.fromCoroutine(self._reload_worker(worker))
        return ReloadReport(tuple(faults), report.needs_restart)

    async def _reload_worker(self, worker: WorkerProcess) -> Sequence[Fault]:
        problem = f"worker {worker.number} did not put it into force"
        try:
            text = self.components.own_config.text or ""
            faults, _ = json.loads(await self.command(worker, "reload", text.encode()))
        except ChannelClosed:
            # It died, perhaps while another had its turn: the process that takes its place starts with it.
            return ()
        except ChannelError as error:
            faults = [[self.config.source, "", str(error), ""]]
        found = [Fault(place, key, f"{problem}: {what}", hint) for place, key, what, hint in faults]
        return refused(found).faults if found else ()

    def command(self, worker: WorkerProcess, name: str, body: bytes = b"") -> Deferred[bytes]:
        """Have a worker do something. Fails with ChannelError."""
        return worker.ask(name, body, _COMMAND_SECONDS)

    def _put_into_force(self, components: Components) -> Steps[tuple[str, ...] | None]:
        yield from ()
        if self.state is DaemonState.STOPPING:
            return None
        components.inherit(self.components)
        self.components = components
        self._changes += 1
        self._served.clear_outages()
        return self.needs_restart

    # End

    def drain(self) -> Deferred[Any]:
        """Have all workers take no new session; delivery goes on. Fires when they have heard it."""
        return self._command(self.serving, "drain") if self._begin_drain() else succeed(None)

    def undrain(self) -> Deferred[Any]:
        """End a drain: take new sessions again. Fires when the workers have heard it."""
        return self._command(self.serving, "undrain") if self._end_drain() else succeed(None)

    def _command(self, workers: Sequence[WorkerProcess], name: str) -> Deferred[Any]:
        return DeferredList(
            [self.command(each, name).addErrback(self._not_done, each.number, name) for each in workers]
        )

    def _not_done(self, failure: Failure, number: int, name: str) -> None:
        failure.trap(ChannelError)
        _log.error(
            "a worker did not do a command",
            event="worker.command_failed",
            worker=number,
            command=name,
            reason=failure.getErrorMessage(),
        )

    async def _stop_parts(self, grace: float) -> None:
        # First of all: a start waits for them.
        ended = DeferredList([worker.stop(grace) for worker in self.workers])
        if self._starting is not None:
            await self._starting
        if self._operations is not None:
            await self._operations.close()
        await self.listeners.close()
        await ended
        if self._looks.running:
            self._looks.stop()
        self._served.stop()


def _open(reactor: ReactorBase, channel: Channel, end: Any) -> None:
    open_channel(cast(IReactorSocket, reactor), channel, end)
