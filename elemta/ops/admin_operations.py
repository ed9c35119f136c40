"""The operations that the admin API needs of the daemon, and the values that they return.

The composition root provides :class:`Operations`; nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.errors import Fault
from elemta.ops.limit_operations import LimitOperations
from elemta.ops.spool_operations import SpoolOperations
from elemta.policy.discovery import PluginInfo
from elemta.spool.filters import QueueFilter
from elemta.spool.records import Listing, MessageRecord, SpoolStats


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
class Status:
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


class Returned(Protocol):
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


class Queue(Protocol):
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
    def spool(self) -> Queue:
        """What waits here: in the open spool, and in those that were adopted."""

    @property
    def spools(self) -> SpoolOperations:
        """That spool and the adopted ones."""

    @property
    def limits(self) -> LimitOperations:
        """The limits in force."""

    async def nodes(self) -> NodeListing:
        """The nodes of the cluster that live, this one among them."""

    async def return_to_sender(self, queue_id: str) -> Returned:
        """Give up what is left of a message and tell its sender. Raises what the spool raises.

        SpoolError also where the sender is the null reverse-path, which gets no notice.
        """

    def status(self) -> Status: ...

    def plugins(self) -> Sequence[PluginInfo]:
        """Every installed policy plugin, those that can't be used too."""

    def reload(self) -> ReloadResult:
        """Read the configuration again and put it into force, or change nothing."""

    def drain(self) -> None:
        """Take no new session and end the others as soon as their message is done. A restart undoes it."""

    def config_dump(self) -> str:
        """The configuration in force as TOML, without secrets; what needs a restart is in it, too."""
