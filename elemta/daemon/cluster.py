"""The cluster as this node sees it: where limits are counted, and which other nodes count there."""

from __future__ import annotations

import enum
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta import __version__
from elemta.config import Config
from elemta.config.redaction import redacted_url
from elemta.config.valkey_url import parse_valkey_url
from elemta.daemon.membership import (
    LimiterStatus,
    LocalNode,
    NodeLife,
    NodeStatus,
    OwnResets,
    RemoteRefusal,
    ValkeyStatus,
    endpoints,
)
from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.spool_lease import LeaseOwner, SpoolLease
from elemta.errors import StoreUnavailable
from elemta.limits import LocalStore
from elemta.limits.failover import BreakerState, CountingMode
from elemta.limits.failover_store import FailoverStore
from elemta.limits.lease_renewal import LeaseRenewal
from elemta.limits.nodes import About, NodeInfo, Nodes, NodeState
from elemta.limits.override_registry import ClusterOverrides, OverrideRegistry
from elemta.limits.push_registry import RECORD, KeptVersion, PushRegistry
from elemta.limits.store import Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.metrics import Metrics, one_of
from elemta.policy.policy_store import Store, ValkeyStores
from elemta.runtime import Runtime
from elemta.spool.record_file import RecordFile
from elemta.valkey.client import ScriptRunner, Valkey

if TYPE_CHECKING:
    from elemta.delivery.pool import HostSlots
    from elemta.net.registry import ClientCredit
    from elemta.net.shared_handshakes import HostHandshakes

_log = Logger()

JOIN_SECONDS = 1.0
"""Seconds that the start waits for Valkey: a node that begins alone admits a share that is not counted."""

_LEAVING = 5.0


class ClusterMembership(OwnResets):
    """The connection to Valkey, the store in it, the registry of nodes, and the store for when it is away.

    Nothing is opened before :meth:`start`.
    """

    credit: ClientCredit | None = None
    handshakes: HostHandshakes | None = None
    slots: HostSlots | None = None

    def __init__(self, runtime: Runtime, config: Config, metrics: Metrics) -> None:
        super().__init__()
        resources, server = config.resources, config.server
        reactor = runtime.reactor
        self._runtime = runtime
        self._url = redacted_url(resources.valkey_url)
        self._metrics = metrics
        prefix = self._prefix = resources.valkey_key_prefix
        self._node_id, self._host = server.node_id, socket.gethostname()
        self._boot = runtime.token(8)
        self._valkey = Valkey(
            runtime,
            parse_valkey_url(resources.valkey_url),
            name=f"elemta:{server.node_id}",
            deadline=resources.valkey_deadline,
            prefix=prefix,
            metrics=metrics.valkey,
        )
        self.scripts: ScriptRunner | None = self._valkey
        self._remote = ValkeyStore(self._valkey, prefix=prefix, node_id=server.node_id, runtime=runtime)
        self._member: LocalNode | None = None
        self._nodes = Nodes(
            runtime,
            self._valkey,
            prefix=prefix,
            node_id=server.node_id,
            about=About(__version__, server.hostname, endpoints(config), runtime.wall()),
            state=self._state,
        )
        self.store = FailoverStore(
            reactor,
            self._valkey,
            self._remote,
            LocalStore(runtime),
            nodes=self._nodes,
            metrics=metrics.limits,
        )
        self.overrides: OverrideRegistry = ClusterOverrides(runtime, self._valkey, prefix)
        kept = RecordFile(Path(config.spool.directory), RECORD, runtime.disk)
        self._pushed = PushRegistry(runtime, self._valkey, prefix, KeptVersion(kept))
        self.pushed: PushRegistry | None = self._pushed
        self._asked = NodeQuestions(runtime, self._valkey, prefix, server.node_id)
        self.questions: NodeQuestions | None = self._asked
        self._policy_stores = ValkeyStores(self._valkey, self.store, prefix)
        self._renewal = LeaseRenewal(reactor, self.store)

    def start(self, member: LocalNode) -> None:
        self._member = member
        self._show_in_metrics()
        self._nodes.on_reset(member.forget)
        self._valkey.start()
        self.store.start()
        self._nodes.start()
        self.overrides.start()
        self._pushed.start(member.take_limits, lambda: member.shares_limits)
        self._asked.start()
        self._renewal.start()

    def _show_in_metrics(self) -> None:
        limits, store = self._metrics.limits, self.store
        limits.mode.poll_labelled(lambda: one_of(("memory", *_values(CountingMode)), store.mode.value))
        limits.breaker.poll_labelled(lambda: one_of(_values(BreakerState), store.breaker.value))
        limits.live_nodes.poll(lambda: store.live_nodes)
        self._metrics.valkey.up.poll(lambda: int(self._answers))

    async def joined(self) -> None:
        await self.store.joined(JOIN_SECONDS)

    async def stop(self) -> None:
        if self._member is None:
            return
        self._member = None
        self._renewal.stop()
        self.store.stop()
        self.overrides.stop()
        self._pushed.stop()
        self._asked.stop()
        leaving = Deferred.fromCoroutine(self._leave()).addTimeout(_LEAVING, self._runtime.reactor)
        leaving.addErrback(lambda failure: failure.trap(OutOfTime, StoreUnavailable) and None)
        await leaving
        stopped = self._valkey.stop().addTimeout(_LEAVING, self._runtime.reactor)
        await stopped.addErrback(_not_stopped)

    async def _leave(self) -> None:
        await self._remote.leave()
        await self._nodes.stop()

    @property
    def _answers(self) -> bool:
        """Whether Valkey answered in time what it was asked last, by a probe while the breaker is open."""
        return self._valkey.answers and self.store.breaker is not BreakerState.OPEN

    def status(self) -> LimiterStatus:
        trouble = self._valkey.trouble or self.store.reason
        valkey = ValkeyStatus(self._url, self._answers, self.store.breaker.value, trouble)
        # What is not answered in time is decided from the share, before the breaker opens, too.
        mode = self.store.mode if self._answers else CountingMode.LOCAL
        return LimiterStatus(mode.value, self.store.live_nodes, valkey)

    async def others(self) -> Sequence[NodeStatus]:
        return [_status(node, self._runtime.wall()) for node in await self._nodes.list() if not node.this]

    async def gone(self) -> Sequence[NodeStatus]:
        live = [self._node_id, *(node.node_id for node in await self._nodes.list())]
        return [_status(node, self._runtime.wall()) for node in await self._nodes.list_gone(live)]

    async def refusals(self) -> Sequence[RemoteRefusal]:
        try:
            nodes = await self._nodes.list()
        except StoreUnavailable:
            return ()
        return [
            RemoteRefusal(node.node_id, refused.limit, refused.identity, refused.seconds)
            for node in nodes
            if not node.this
            for refused in node.state.refused
        ]

    async def announce_reset(self, request: Request) -> None:
        self._tell_own_reset(request)
        if not request.spec.cluster:
            # Of the others the store itself tells.
            await self._nodes.announce_reset(request.spec.name, request.identity)

    def policy_store(self, policy: str) -> Store:
        return self._policy_stores.of_policy(policy)

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:
        return SpoolLease(
            self._runtime,
            self._valkey,
            prefix=self._prefix,
            spool_id=spool_id,
            owner=LeaseOwner(self._boot, place, self._node_id, self._host),
        )

    # What this node says of itself

    def _state(self) -> NodeState:
        if self._member is None:
            return NodeState()
        member = self._member
        refused = tuple(member.refused())
        return NodeState(
            member.sessions,
            member.queued,
            self.store.mode.value,
            refused,
            draining=member.draining,
            limits_version=self._pushed.version,
        )


def _values(kind: type[enum.Enum]) -> list[str]:
    return [each.value for each in kind]


def _status(node: NodeInfo, now: float) -> NodeStatus:
    serving = NodeLife.DRAINING if node.state.draining else NodeLife.SERVING
    return NodeStatus(
        node_id=node.node_id,
        this=node.this,
        hostname=node.about.hostname,
        version=node.about.version,
        address=node.about.address,
        started_at=node.about.started_at,
        uptime=max(0.0, now - node.age - node.about.started_at),
        seen_ago=max(0.0, node.age),
        sessions=node.state.sessions,
        queue=node.state.queue,
        mode=node.state.mode,
        state=NodeLife.GONE if node.gone else serving,
        last_seen_at=now - max(0.0, node.age),
        queued=node.state.queue,
        limits_version=node.state.limits_version,
        left=node.left,
    )


def _not_stopped(failure: Failure) -> None:
    _log.failure("the connection to Valkey could not be closed", failure, event="valkey.not_stopped")
