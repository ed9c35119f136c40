"""The nodes that count together: what the daemon asks of them, and the node that is alone."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from elemta.config import Config
from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.spool_lease import SpoolLease
from elemta.errors import ConfigError
from elemta.limits import ILimitStore, LocalStore
from elemta.limits.override_registry import LocalOverrides, OverrideRegistry
from elemta.limits.push_registry import PushRegistry
from elemta.limits.pushed_limits import PushedLimits
from elemta.limits.refusals import RememberedRefusal
from elemta.limits.store import Request
from elemta.policy.policy_store import MemoryStore as MemoryPolicyStore
from elemta.policy.policy_store import Store
from elemta.runtime import Runtime
from elemta.valkey.client import ScriptRunner

if TYPE_CHECKING:
    from elemta.delivery.pool import HostSlots
    from elemta.net.registry import ClientCredit
    from elemta.net.shared_handshakes import HostHandshakes


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

    @property
    def shares_limits(self) -> bool:
        """Whether pushed limits hold on this node, and not those of its own file alone."""

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
    def handshakes(self) -> HostHandshakes | None:
        """The TLS handshakes of the node's workers together; None where it is the node."""

    @property
    def slots(self) -> HostSlots | None:
        """The connections to next hops that the node's workers have together; None where it is the node."""


def endpoints(config: Config) -> str:
    """Where a node takes mail, in the words of its configuration."""
    return " ".join(listener.endpoint for listener in config.listeners)


class OwnResets:
    """The part of each membership that tells of the resets of this process."""

    def __init__(self) -> None:
        self._resets_told_to: list[Callable[[str, str], object]] = []

    def on_own_reset(self, callback: Callable[[str, str], object]) -> None:
        self._resets_told_to.append(callback)

    def _tell_own_reset(self, request: Request) -> None:
        for callback in self._resets_told_to:
            callback(request.spec.name, request.identity)


class NoOtherNodes(OwnResets):
    """The part of a membership that knows no other nodes."""

    scripts: ScriptRunner | None = None
    questions: NodeQuestions | None = None

    async def others(self) -> Sequence[NodeStatus]:
        return ()

    async def gone(self) -> Sequence[NodeStatus]:
        return ()

    async def refusals(self) -> Sequence[RemoteRefusal]:
        return ()


class SingleNode(NoOtherNodes):
    """A node that counts in its own memory, and knows no other."""

    credit: ClientCredit | None = None
    handshakes: HostHandshakes | None = None
    slots: HostSlots | None = None

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.store: ILimitStore = LocalStore(runtime)
        self.overrides: OverrideRegistry = LocalOverrides(runtime)
        self.pushed: PushRegistry | None = None
        self._seconds = runtime.monotonic

    def start(self, member: LocalNode) -> None:  # noqa: ARG002
        self.overrides.start()

    async def joined(self) -> None:
        """There are no other nodes."""

    async def stop(self) -> None:
        self.overrides.stop()

    def status(self) -> LimiterStatus:
        return LimiterStatus()

    async def announce_reset(self, request: Request) -> None:
        """There are no other nodes; what listens here hears of it."""
        self._tell_own_reset(request)

    def policy_store(self, policy: str) -> Store:  # noqa: ARG002
        return MemoryPolicyStore(self._seconds)

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:  # noqa: ARG002
        return None
