"""A worker of ``[server] workers``: the daemon on the supervisor's sockets, with a partition of its own.

``python -m elemta.daemon.worker ORDERS`` is started by the supervisor, and by nothing else.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
from typing import cast

from twisted.application.reactors import installReactor
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReactorSocket
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, globalLogBeginner

from elemta.config import load
from elemta.daemon.admin_operations import admin_calls
from elemta.daemon.components import Components, SharedResources, build_at_start
from elemta.daemon.composition import import_modules
from elemta.daemon.daemon_service import CLOSING_SECONDS
from elemta.daemon.service import Elemta
from elemta.daemon.supervised_membership import SupervisedMembership
from elemta.daemon.worker_orders import WorkerOrders
from elemta.daemon.worker_process import FACTS, FACTS_EVERY, FAILED, NOTIFY, WorkerFacts
from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.errors import ConfigError
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier
from elemta.runtime import Runtime
from elemta.workers.channel import Channel, open_channel

_log = Logger()

# sysexits.h
EX_CONFIG = 78


class SupervisorNotifier(Notifier):
    """Says to the supervisor what a daemon says to systemd."""

    def __init__(self, channel: Channel, runtime: Runtime) -> None:
        super().__init__({}, runtime)
        self._channel = channel

    def failed(self, reason: str) -> None:
        """The start has failed: the supervisor shows why."""
        super().failed(reason)
        self._send(f"{FAILED}={' '.join(reason.split())}")

    def _send(self, *lines: str) -> None:
        if lines:
            self._channel.tell(NOTIFY, "\n".join(lines).encode())


class WorkerCommands:
    """What the supervisor has a worker do, over the channel, and what the worker says of itself."""

    def __init__(self, channel: Channel, daemon: Elemta) -> None:
        self._channel = channel
        self._daemon = daemon
        self._facts = LoopingCall(self.tell_facts)
        self._facts.clock = daemon.reactor
        channel.handle("reload", self._reload)
        channel.handle("drain", self._drain)
        channel.handle("undrain", self._undrain)
        channel.on_close(self._alone)

    def start(self) -> None:
        """Say something about once a second from now on."""
        self._facts.start(FACTS_EVERY)

    def tell_facts(self) -> None:
        """What this worker does now."""
        daemon = self._daemon
        facts = WorkerFacts(daemon.state_name, daemon.why_not_ready(), daemon.sessions, daemon.queued)
        self._channel.tell(FACTS, facts.encode())

    def _reload(self, body: bytes) -> MaybeDeferred[bytes]:
        return run(self._reload_and_say(body.decode()))

    def _reload_and_say(self, text: str) -> Steps[bytes]:
        report = yield self._daemon.reload(text)
        faults = [[each.place, each.key, each.problem, each.hint] for each in report.faults]
        return json.dumps([faults, report.needs_restart]).encode()

    def _drain(self, _: bytes) -> bytes:
        self._daemon.drain()
        self.tell_facts()
        return b""

    def _undrain(self, _: bytes) -> bytes:
        self._daemon.undrain()
        self.tell_facts()
        return b""

    def _alone(self, reason: str) -> None:
        """Without a supervisor there are no limits over all workers, and no other worker is started."""
        # The supervisor would kill what does not end, and is not there to do it.
        signal.alarm(math.ceil(self._daemon.config.server.shutdown_grace + CLOSING_SECONDS))
        if self._facts.running:
            self._facts.stop()
        reactor = self._daemon.reactor
        if self._daemon.running and reactor.running:
            _log.error("the supervisor is gone; this worker ends", event="worker.alone", reason=reason)
            reactor.stop()


def main(arguments: list[str]) -> None:
    """Serve until a SIGTERM, or until the supervisor is gone."""
    orders = WorkerOrders.decode(arguments[1])
    if orders.reactor:
        installReactor(orders.reactor)
    from twisted.internet import reactor  # noqa: PLC0415 - installed by now

    # The supervisor hears of them, and says what is to be done.
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    runtime = Runtime.system(cast(ReactorBase, reactor))
    channel = Channel(runtime.reactor, "the supervisor")
    try:
        shared, components = _build(orders, runtime, channel)
    except ConfigError as error:
        sys.stderr.write(f"elemta: worker {orders.number}: the configuration can't be used: {error}\n")
        raise SystemExit(EX_CONFIG) from None
    config = components.own_config
    log_observer = LogObserver(
        config.logging.format,
        config.logging.level,
        node_id=config.server.node_id,
        stream=sys.stdout,
        journald=orders.journald,
        wall=runtime.wall,
        worker=orders.number,
    )
    globalLogBeginner.beginLoggingTo([log_observer])
    daemon = Elemta(
        shared=shared,
        components=components,
        admin_calls=admin_calls,
        config_path=orders.config,
        environ=os.environ,
        log_observer=log_observer,
        orders=orders,
        notifier=SupervisorNotifier(channel, runtime),
    )
    commands = WorkerCommands(channel, daemon)
    import_modules(shared, console=False)
    gc.collect()
    gc.freeze()
    daemon.privilegedStartService()
    open_channel(cast(IReactorSocket, reactor), channel, orders.channel)
    runtime.reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    runtime.reactor.callWhenRunning(daemon.startService)
    runtime.reactor.callWhenRunning(commands.start)
    runtime.reactor.run(installSignalHandlers=True)


def _build(orders: WorkerOrders, runtime: Runtime, channel: Channel) -> tuple[SharedResources, Components]:
    """What the configuration comes to that the supervisor hands on. Raises ConfigError."""
    with os.fdopen(orders.text, encoding="utf-8") as file:
        config = load(orders.config, os.environ, file.read())
    shared = SharedResources.from_config(
        config,
        runtime,
        lambda metrics: SupervisedMembership(runtime, config, metrics, channel, workers=orders.count),
    )
    return shared, build_at_start(config, shared)


if __name__ == "__main__":
    main(sys.argv)
