"""The operations of the admin API about limits, and the values that they return.

What the admin API needs to show the spools that a daemon works on, and to have others adopted.

The operations that the admin API needs of the daemon, and the values that they return.

The composition root provides :class:`Operations`; nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.errors import Fault
from elemta.policy.discovery import PluginInfo
from elemta.spool.filters import QueueFilter
from elemta.spool.records import Listing, MessageRecord, MessageState, SpoolStats


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """A limit in force, in the words of the configuration; ``per`` is empty where all count as one."""

    name: str
    per: tuple[str, ...]
    counts: str
    rates: tuple[str, ...]
    scope: str
    on_exceed: str
    when_valkey_is_down: str
    mode: str


@dataclass(frozen=True, slots=True)
class BoundFill:
    """``used`` of ``limit`` in the last ``window`` seconds, or open now where that is None."""

    used: int
    limit: int
    window: float | None


@dataclass(frozen=True, slots=True)
class LimitFill:
    """How full one limit is for one identity.

    ``retry_after`` is the seconds until one more would pass: 0 when it would pass now. ``refused_by`` are
    the nodes that refuse this identity now without asking, because they know until when they must.
    """

    limit: str
    identity: str
    counts: str
    mode: str
    bounds: tuple[BoundFill, ...]
    retry_after: float
    refused_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitListing:
    """Fills, and where they were counted: ``memory``, ``cluster``, or ``local`` while Valkey is away.

    ``complete`` is False where there was more than could be looked at.
    """

    fills: tuple[LimitFill, ...]
    counted_in: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class LimitReset:
    """Whether there was anything to forget for one identity of one limit."""

    limit: str
    identity: str
    was_counted: bool


class LimitOperations(Protocol):
    """What can be asked about the limits of a running daemon. All raise StoreUnavailable."""

    def all(self) -> Sequence[LimitTerms]:
        """The limits in force."""

    async def top(self, limit: str | None, count: int) -> LimitListing:
        """The fullest identities of one limit, or of all. KeyError when there is no such limit."""

    async def show(self, identity: str) -> LimitListing:
        """How full every limit is that knows such an identity; a limit's name may stand before it."""

    async def reset(self, identity: str) -> Sequence[LimitReset]:
        """Forget what is counted for an identity, on all nodes. Open connections stay counted."""


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One spool directory: the node's ``own``, or one that it adopted.

    ``state`` is ``own``, ``delivering``, ``waiting`` (for the ``reason``) or ``closing``. ``messages`` are by
    state; None while it is not open. ``left`` are directories that its dead node had adopted itself.
    """

    directory: str
    state: str
    reason: str = ""
    messages: Mapping[MessageState, int] | None = None
    left: tuple[str, ...] = ()


class SpoolOperations(Protocol):
    """The spools of a daemon."""

    def all(self) -> Sequence[SpoolStatus]:
        """The node's own first."""

    async def adopt(self, directory: str) -> SpoolStatus:
        """Deliver what is in another node's spool, until it is empty.

        SpoolLocked: another owner has it. NoSpool: there is none. SpoolError: it can't be used.
        """

    async def give_back(self, directory: str) -> SpoolStatus:
        """Stop delivering from a spool that was adopted, and let its node have it. NoSpool: it was not."""


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One listener: name, role and TLS as configured, the address it is bound to, its open connections."""

    name: str
    role: str
    tls: str
    address: str
    connections: int


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


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node of the cluster, as it described itself ``seen_at`` (seconds since the epoch).

    ``this`` is the node that was asked; ``mode`` as in :class:`LimiterStatus`; ``queue`` are messages.
    """

    node_id: str
    hostname: str
    version: str
    address: str
    started_at: float
    seen_at: float
    sessions: int
    queue: int
    mode: str
    this: bool = False


@dataclass(frozen=True, slots=True)
class NodeListing:
    """Nodes by name. Not ``complete`` while Valkey is away: then it is this one alone."""

    nodes: tuple[NodeStatus, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon at one moment.

    ``started_at`` is seconds since the epoch. ``state`` is ``starting``, ``serving``, ``draining`` or
    ``stopping``; ``not_ready`` says why mail would not be accepted now (empty when it would).
    ``sessions`` are the open ones on all listeners. ``needs_restart`` are keys that reloads changed and only
    a restart puts into force. ``notes`` are settings that were given and have no effect, or are dangerous.
    """

    version: str
    node_id: str
    hostname: str
    pid: int
    started_at: float
    state: str
    not_ready: tuple[str, ...]
    listeners: tuple[ListenerStatus, ...]
    sessions: int
    policies: tuple[str, ...]
    config_source: str
    spool_directory: str
    limiter: LimiterStatus = LimiterStatus()
    needs_restart: tuple[str, ...] = ()
    notes: tuple[Fault, ...] = ()


class ReturnResult(Protocol):
    """The result of returning a message: recipients that were given up, and notices to the sender."""

    @property
    def recipients(self) -> int: ...

    @property
    def notices(self) -> int: ...


class ReloadResult(Protocol):
    """The result of a reload: with faults nothing was changed; else what still waits for a restart."""

    @property
    def faults(self) -> Sequence[Fault]: ...

    @property
    def needs_restart(self) -> Sequence[str]: ...


class AdminQueue(Protocol):
    """What the admin API does with the spool. Raises what the spool raises."""

    async def find(self, chosen: QueueFilter, limit: int = 100, after: str | None = None) -> Listing: ...

    async def show(self, queue_id: str) -> MessageRecord: ...

    async def stats(self) -> SpoolStats: ...

    async def hold(self, queue_id: str, reason: str) -> None: ...

    async def release(self, queue_id: str) -> None: ...

    async def retry(self, queue_id: str) -> None: ...

    async def delete(self, queue_id: str) -> None: ...


class Operations(Protocol):
    """The operations of a running daemon."""

    @property
    def spool(self) -> AdminQueue:
        """What waits here: in the open spool, and in those that were adopted."""

    @property
    def spools(self) -> SpoolOperations:
        """That spool and the adopted ones."""

    @property
    def limits(self) -> LimitOperations:
        """The limits in force."""

    async def nodes(self) -> NodeListing:
        """The nodes of the cluster that live, this one among them."""

    async def return_to_sender(self, queue_id: str) -> ReturnResult:
        """Give up what is left of a message and tell its sender. Raises what the spool raises.

        SpoolError also where the sender is the null reverse-path, which gets no notice.
        """

    def status(self) -> DaemonStatus: ...

    def plugins(self) -> Sequence[PluginInfo]:
        """Every installed policy plugin, those that can't be used too."""

    def reload(self) -> ReloadResult:
        """Read the configuration again and put it into force, or change nothing."""

    def drain(self) -> None:
        """Take no new session and end the others as soon as their message is done. A restart undoes it."""

    def config_dump(self) -> str:
        """The configuration in force as TOML, without secrets; what needs a restart is in it, too."""
