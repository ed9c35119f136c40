"""The cluster as this node sees it: where limits are counted, and which other nodes count there."""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta import __version__
from elemta.config import Config
from elemta.config.redaction import redacted_url
from elemta.config.valkey_url import parse_valkey_url
from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.spool_lease import LeaseOwner, SpoolLease
from elemta.deferred_value import Steps, run
from elemta.delivery.pool import HostSlots
from elemta.errors import ConfigError, StoreUnavailable
from elemta.limits import ILimitStore, LocalStore
from elemta.limits.failover import BreakerState, CountingMode
from elemta.limits.failover_store import FailoverStore
from elemta.limits.nodes import About, NodeInfo, Nodes, NodeState
from elemta.limits.override_registry import ClusterOverrides, LocalOverrides, OverrideRegistry
from elemta.limits.push_registry import RECORD, KeptVersion, PushRegistry
from elemta.limits.pushed import PushedLimits
from elemta.limits.refusals import RememberedRefusal
from elemta.limits.store import Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.metrics import Metrics, one_of
from elemta.net.registry import ClientCredit
from elemta.policy.policy_store import MemoryStore as MemoryPolicyStore
from elemta.policy.policy_store import Store, ValkeyStores
from elemta.runtime import Runtime
from elemta.spool.record_file import RecordFile
from elemta.valkey import ScriptRunner, Valkey


@dataclass(frozen=True, slots=True)
class RemoteRefusal:
    """A node refuses this identity from memory, for ``wait`` more seconds."""

    node_id: str
    limit: str
    identity: str
    wait: float

    @property
    def key(self) -> str:
        return f"{self.limit}:{self.identity}"


@dataclass(frozen=True, slots=True)
class ValkeyStatus:
    """Valkey as this node sees it: ``url`` without its password, whether it answers, the breaker's state.

    ``trouble`` says why limits are not counted there; empty while they are.
    """

    url: str
    up: bool
    breaker: str
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class LimiterStatus:
    """Where limits are counted.

    ``mode`` is ``memory`` where no Valkey is configured, ``cluster``, or ``local``: in this node's memory
    while Valkey is away. ``live_nodes`` is how many nodes were last known to live.
    """

    mode: str = "memory"
    live_nodes: int = 1
    valkey: ValkeyStatus | None = None


class NodeLife(enum.Enum):
    """What a node of the cluster does."""

    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node of the cluster, as it described itself ``seen_ago`` seconds ago, at ``last_seen_at``.

    ``this`` is the node that was asked; ``mode`` as in :class:`LimiterStatus`. ``queued`` are messages, and
    ``queue`` is the same number under its former name. A node that is ``gone`` had these sessions and
    messages; it ``left`` where it stopped in order. ``limits_version`` is that of the pushed limits that are
    in force there; 0 where its own configuration's are.
    """

    node_id: str
    this: bool
    hostname: str
    version: str
    address: str
    started_at: float
    uptime: float
    seen_ago: float
    sessions: int
    queue: int
    mode: str
    state: NodeLife = NodeLife.SERVING
    last_seen_at: float = 0.0
    queued: int = 0
    limits_version: int = 0
    left: bool = False


class LocalNode(Protocol):
    """What the fleet asks of this node."""

    @property
    def sessions(self) -> int:
        """Open ones."""

    @property
    def queued(self) -> int:
        """Messages in the queue, as of the last few seconds."""

    @property
    def draining(self) -> bool:
        """Whether it takes no new session."""

    def refused(self) -> Sequence[RememberedRefusal]:
        """The identities that this node refuses from memory."""

    async def take_limits(self) -> None:
        """Put the pushed limits of the fleet into force. Raises :class:`~elemta.errors.ConfigError`."""

    def forget(self, limit: str, identity: str) -> None:
        """Another node has reset a limit for an identity: ask anew."""


class PushesInForce(Protocol):
    """The pushed limits that this process has in force; where it can push some itself, a PushRegistry."""

    @property
    def in_force(self) -> PushedLimits | None: ...

    @property
    def version(self) -> int: ...

    def give_up(self, error: ConfigError) -> None: ...


class Membership(Protocol):
    """The nodes that count together, as this one sees them."""

    @property
    def store(self) -> ILimitStore:
        """Where limits are counted."""

    def start(self, member: LocalNode) -> None:
        """Look for the others, in the background."""

    async def joined(self) -> None:
        """Return when limits are counted together, or after a moment in which that did not come to pass."""

    async def stop(self) -> None:
        """Leave the others, within seconds, whatever they say."""

    def status(self) -> LimiterStatus: ...

    async def others(self) -> Sequence[NodeStatus]:
        """The other nodes that live. Raises StoreUnavailable."""

    async def gone(self) -> Sequence[NodeStatus]:
        """The nodes that left or died in the last week. Raises StoreUnavailable."""

    async def refusals(self) -> Sequence[RemoteRefusal]:
        """What other nodes refuse by themselves now; nothing where they can't be asked."""

    async def announce_reset(self, request: Request) -> None:
        """Let the other nodes forget, too, what each has counted for itself. Raises StoreUnavailable."""

    def on_own_reset(self, callback: Callable[[str, str], object]) -> None:
        """Have it called with a limit's name and an identity that this process has reset."""

    @property
    def overrides(self) -> OverrideRegistry:
        """The overrides of limits, and where they are made."""

    @property
    def pushed(self) -> PushesInForce | None:
        """The limits that were pushed to the fleet; None where there is no Valkey."""

    @property
    def questions(self) -> NodeQuestions | None:
        """How the other nodes are asked; None where there are none."""

    def policy_store(self, policy: str) -> Store:
        """Where a policy keeps what is shared with the other nodes."""

    @property
    def scripts(self) -> ScriptRunner | None:
        """What runs the scripts of leases; None where there are no other nodes, and for a worker."""

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:
        """The lease that shows the owner of a spool to other nodes; None where there are no others."""

    @property
    def credit(self) -> ClientCredit | None:
        """The part of the node's ``max_connections`` that this worker has; None where it is the node."""

    @property
    def slots(self) -> HostSlots | None:
        """The connections to next hops that the node's workers have together; None where it is the node."""


def endpoints(config: Config) -> str:
    """Where a node takes mail, in the words of its configuration."""
    return " ".join(listener.endpoint for listener in config.listeners)


class OwnResets:
    """What is to hear of the resets of this process."""

    __slots__ = ("callbacks",)

    def __init__(self) -> None:
        self.callbacks: list[Callable[[str, str], object]] = []

    def tell(self, request: Request) -> None:
        for callback in self.callbacks:
            callback(request.spec.name, request.identity)


class SingleNode:
    """A node that counts in its own memory, and knows no other."""

    scripts: ScriptRunner | None = None
    credit: ClientCredit | None = None
    slots: HostSlots | None = None

    def __init__(self, runtime: Runtime) -> None:
        self.store: ILimitStore = LocalStore(runtime)
        self.overrides: OverrideRegistry = LocalOverrides(runtime)
        self.pushed: PushRegistry | None = None
        self.questions: NodeQuestions | None = None
        self._seconds = runtime.monotonic
        self._own_resets = OwnResets()

    def start(self, member: LocalNode) -> None:  # noqa: ARG002 - there are no other nodes
        self.overrides.start()

    async def joined(self) -> None:
        """There are no other nodes."""

    async def stop(self) -> None:
        self.overrides.stop()

    def status(self) -> LimiterStatus:
        return LimiterStatus()

    async def others(self) -> Sequence[NodeStatus]:
        return ()

    async def gone(self) -> Sequence[NodeStatus]:
        return ()

    async def refusals(self) -> Sequence[RemoteRefusal]:
        return ()

    async def announce_reset(self, request: Request) -> None:
        """There are no other nodes; what listens here hears of it."""
        self._own_resets.tell(request)

    def on_own_reset(self, callback: Callable[[str, str], object]) -> None:
        self._own_resets.callbacks.append(callback)

    def policy_store(self, policy: str) -> Store:  # noqa: ARG002 - each has a memory of its own
        return MemoryPolicyStore(self._seconds)

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:  # noqa: ARG002 - there are no other nodes
        return None


_log = Logger()

JOIN_SECONDS = 1.0
"""Seconds that the start waits for Valkey: a node that begins alone admits a share that is not counted."""

_LEAVING = 5.0


class ClusterMembership:
    """The connection to Valkey, the store in it, the registry of nodes, and the store for when it is away.

    Nothing is opened before :meth:`start`.
    """

    credit: ClientCredit | None = None
    slots: HostSlots | None = None

    def __init__(self, runtime: Runtime, config: Config, metrics: Metrics) -> None:
        resources, server = config.resources, config.server
        reactor = runtime.reactor
        self._own_resets = OwnResets()
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
        self._renewals = LoopingCall(self._renew)
        self._renewals.clock = reactor

    def start(self, member: LocalNode) -> None:
        self._member = member
        self._show_in_metrics()
        self._nodes.on_reset(member.forget)
        self._valkey.start()
        self.store.start()
        self._nodes.start()
        self.overrides.start()
        self._pushed.start(member.take_limits)
        self._asked.start()
        if self.store.renewal is not None:
            self._renewals.start(self.store.renewal, now=False).addErrback(_renewals_ended)

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
        if self._renewals.running:
            self._renewals.stop()
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

    def on_own_reset(self, callback: Callable[[str, str], object]) -> None:
        self._own_resets.callbacks.append(callback)

    async def announce_reset(self, request: Request) -> None:
        self._own_resets.tell(request)
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

    def _renew(self) -> Any:
        return run(self._renew_leases())

    def _renew_leases(self) -> Steps[None]:
        # After a failure the next renewal comes in a few seconds.
        try:
            yield self.store.renew()
        except StoreUnavailable:
            return
        except Exception:
            _log.failure("the leases of open connections could not be renewed", event="limits.not_renewed")


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


def _renewals_ended(failure: Failure) -> None:
    _log.failure("the renewal of leases ended", failure, event="limits.not_renewed")


def _not_stopped(failure: Failure) -> None:
    _log.failure("the connection to Valkey could not be closed", failure, event="valkey.not_stopped")
