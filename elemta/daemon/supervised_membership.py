"""The membership of a worker: all of it is the supervisor's.

The other end: :mod:`elemta.daemon.membership_server`.

A worker has no other way to the cluster::

    SharedResources.from_config(
        config,
        runtime,
        lambda metrics: SupervisedMembership(runtime, config, metrics, channel, workers=4),
    )
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config import Config
from elemta.daemon.cluster import JOIN_SECONDS
from elemta.daemon.lease_link import SupervisorScripts
from elemta.daemon.membership import LimiterStatus, LocalNode, NoOtherNodes, ValkeyStatus
from elemta.daemon.spool_lease import LeaseOwner, SpoolLease
from elemta.daemon.worker_orders import WITHOUT_VALKEY_SECONDS
from elemta.limits.failover import BreakerState, CountingMode
from elemta.limits.lease_renewal import LeaseRenewal
from elemta.limits.memory import LocalStore
from elemta.limits.nodes import MAX_PUBLISHED
from elemta.limits.store import Request
from elemta.metrics import Metrics, one_of
from elemta.policy.policy_store import Store
from elemta.runtime import Runtime
from elemta.workers.channel import Channel
from elemta.workers.handshake_places import WorkerHandshakes
from elemta.workers.host_state import HostState
from elemta.workers.limit_bodies import distrust, read, text, write
from elemta.workers.limit_client import as_unavailable, worker_store
from elemta.workers.limit_server import FORGET
from elemta.workers.policy_stores import WorkerPolicyStores
from elemta.workers.slot_client import ConnectionCredit, WorkerSlots

_log = Logger()

ANNOUNCE, REFUSED = "host.announce_reset", "host.refused"
_REFUSED_SECONDS = 1.0
_ANNOUNCE_SECONDS = 2.0


class WorkerNodes:
    """By how many a worker divides a limit while it decides alone: the workers of all nodes.

    Every node is taken to have as many workers as this one.
    """

    def __init__(self, node_id: str, workers: int, live_nodes: Callable[[], int]) -> None:
        self.node_id = node_id
        self._workers = workers
        self._live_nodes = live_nodes
        self._callbacks: list[Callable[[str, str], object]] = []

    @property
    def live(self) -> int:
        return self._workers * self._live_nodes()

    def announce_reset(self, limit: str, identity: str) -> None:
        """Nothing: the supervisor, which was asked to reset it, tells the other workers."""

    def on_reset(self, callback: Callable[[str, str], object]) -> None:
        self._callbacks.append(callback)

    def take_reset(self, body: bytes) -> None:
        """The supervisor says that a limit was reset for an identity."""
        with distrust("a reset"):
            limit, identity = map(text, read(body))
        for callback in self._callbacks:
            callback(limit, identity)


class SupervisedMembership(NoOtherNodes):
    """The membership of one of ``workers`` workers: all of it is the supervisor's.

    The supervisor knows the other nodes: here there are none.
    """

    def __init__(
        self, runtime: Runtime, config: Config, metrics: Metrics, channel: Channel, *, workers: int
    ) -> None:
        super().__init__()
        resources = config.resources
        deadline = resources.valkey_deadline if resources.valkey_url else WITHOUT_VALKEY_SECONDS
        self._runtime = runtime
        self._prefix = resources.valkey_key_prefix if resources.valkey_url else None
        self._owner = LeaseOwner(runtime.token(8), "", config.server.node_id, socket.gethostname())
        self._channel = channel
        self._metrics = metrics
        self._state = HostState(runtime, channel)
        self._nodes = WorkerNodes(config.server.node_id, workers, self._live_nodes)
        self.store = worker_store(
            runtime.reactor,
            channel,
            LocalStore(runtime),
            nodes=self._nodes,
            deadline=deadline,
            metrics=metrics.limits,
        )
        self.overrides = self._state.overrides
        self.pushed = self._state.pushed
        self._policy_stores = WorkerPolicyStores(channel, self.store, deadline)
        self.credit = ConnectionCredit(runtime.reactor, channel)
        self.handshakes = WorkerHandshakes(runtime.reactor, channel, workers=workers)
        self.slots = WorkerSlots(runtime.reactor, channel)
        self._renewal = LeaseRenewal(runtime.reactor, self.store)
        self._member: LocalNode | None = None
        self._told_refused = False
        self._tells = LoopingCall(self._tell_refused)
        self._tells.clock = runtime.reactor
        channel.handle_notice(FORGET, self._nodes.take_reset)

    def start(self, member: LocalNode) -> None:
        limits, store = self._metrics.limits, self.store
        limits.mode.poll_labelled(lambda: one_of(("memory", *map(_value, CountingMode)), self.status().mode))
        limits.breaker.poll_labelled(lambda: one_of([*map(_value, BreakerState)], store.breaker.value))
        limits.live_nodes.poll(self._live_nodes)
        self._nodes.on_reset(member.forget)
        store.start()
        self._state.start(member.take_limits)
        self.credit.start(lambda: member.sessions)
        self._member = member
        self._tells.start(_REFUSED_SECONDS, now=False).addErrback(_tells_ended)
        self._renewal.start()

    async def joined(self) -> None:
        if await self._state.known(JOIN_SECONDS):
            await self.credit.known(JOIN_SECONDS)
            await self.store.joined(JOIN_SECONDS)

    async def stop(self) -> None:
        self._renewal.stop()
        if self._tells.running:
            self._tells.stop()
        self.store.stop()
        self._state.stop()
        self.credit.stop()

    def _live_nodes(self) -> int:
        return self._said.live_nodes

    @property
    def _said(self) -> LimiterStatus:
        """What the supervisor said last."""
        words = self._state.status
        if words is None:
            return LimiterStatus()
        mode, live_nodes, valkey = words
        return LimiterStatus(mode, live_nodes, None if valkey is None else ValkeyStatus(*valkey))

    def status(self) -> LimiterStatus:
        said = self._said
        if self.store.mode is CountingMode.CLUSTER:
            return said
        return replace(said, mode=CountingMode.LOCAL.value)

    async def announce_reset(self, request: Request) -> None:
        self._tell_own_reset(request)
        if not request.spec.cluster:
            body = write([request.spec.name, request.identity])
            await self._channel.ask(ANNOUNCE, body, _ANNOUNCE_SECONDS).addErrback(_not_announced)

    def policy_store(self, policy: str) -> Store:
        return self._policy_stores.of_policy(policy)

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:
        if self._prefix is None:
            return None
        return SpoolLease(
            self._runtime,
            SupervisorScripts(self._channel),
            prefix=self._prefix,
            spool_id=spool_id,
            owner=replace(self._owner, place=place),
        )

    def _tell_refused(self) -> None:
        """The supervisor tells the fleet."""
        refused = () if self._member is None else tuple(self._member.refused())[:MAX_PUBLISHED]
        if refused or self._told_refused:
            self._told_refused = bool(refused)
            words = [[one.limit, one.identity, round(one.seconds, 3)] for one in refused]
            self._channel.tell(REFUSED, write(words))


def _value(each: Any) -> str:
    return str(each.value)


def _not_announced(failure: Failure) -> Any:
    raise as_unavailable(failure)


def _tells_ended(failure: Failure) -> None:
    _log.failure("the supervisor hears of no refusals", failure, event="worker.internal_error")
