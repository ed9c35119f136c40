"""The admin call about the nodes of the fleet, as this one sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from elemta import __version__
from elemta.config import Config
from elemta.daemon.membership import Membership, NodeLife, NodeStatus, endpoints
from elemta.errors import StoreUnavailable
from elemta.ops.admin_calls import route
from elemta.ops.admin_json import Flag


@dataclass(frozen=True, slots=True)
class NodeListing:
    """Nodes by name, those that live first. Not ``complete`` while Valkey is away: then it is this one."""

    nodes: tuple[NodeStatus, ...]
    complete: bool


class ListedNode(Protocol):
    """The daemon that is this node: one process, or the supervisor of several."""

    @property
    def config(self) -> Config: ...

    @property
    def fleet(self) -> Membership: ...

    @property
    def started_at(self) -> float: ...

    @property
    def sessions(self) -> int: ...

    @property
    def queued(self) -> int: ...

    @property
    def draining(self) -> bool: ...


class NodeOperations:
    """Lists the nodes of the fleet."""

    def __init__(self, node: ListedNode, now: Callable[[], float]) -> None:
        self._node = node
        self._now = now

    @route("GET", "/v1/nodes")
    async def nodes(self, all_: Annotated[bool, Flag()] = False) -> NodeListing:
        """The nodes of the cluster that are alive; ``all``: those of the last week that are gone, too."""
        node, now = self._node, self._now()
        config, fleet = node.config, node.fleet
        own = NodeStatus(
            node_id=config.server.node_id,
            this=True,
            hostname=config.server.hostname,
            version=__version__,
            address=endpoints(config),
            started_at=node.started_at,
            uptime=max(0.0, now - node.started_at),
            seen_ago=0.0,
            sessions=node.sessions,
            queue=node.queued,
            mode=fleet.status().mode,
            state=NodeLife.DRAINING if node.draining else NodeLife.SERVING,
            last_seen_at=now,
            queued=node.queued,
            limits_version=0 if fleet.pushed is None else fleet.pushed.version,
        )
        try:
            others = await fleet.others()
            gone = await fleet.gone() if all_ else ()
        except StoreUnavailable:
            return NodeListing((own,), complete=False)
        live = sorted((own, *others), key=lambda each: each.node_id)
        return NodeListing((*live, *gone), complete=True)
