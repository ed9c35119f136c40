"""The admin calls about clients: the sessions that are open, and what was refused lately."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_network
from itertools import islice
from typing import Annotated

from elemta.daemon.joined_answers import NodeAnswer
from elemta.ip import IPNetwork, unmapped_network
from elemta.net.live_sessions import LiveSession
from elemta.net.recent_refusals import MOST_REFUSALS, ClientRefusal
from elemta.net.registry import ConnectionRegistry
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count


@dataclass(frozen=True, slots=True)
class SessionListing:
    """The longest open sessions of this node, and how many there are in all."""

    sessions: tuple[LiveSession, ...]
    total: int


@dataclass(frozen=True, slots=True)
class RefusalListing:
    """What was refused lately, the newest first.

    Each node keeps its last 1,000 refusals. ``total`` counts all since the start of each, ``nodes`` are those
    that were asked. In a fleet each refusal has the ``node_id`` of its node.
    """

    refused: tuple[ClientRefusal, ...]
    total: int
    nodes: tuple[NodeAnswer, ...]


class SessionOperations:
    """Shows the clients of one node."""

    def __init__(self, registry: ConnectionRegistry, node_id: str) -> None:
        self._registry = registry
        self._node_id = node_id

    @route("GET", "/v1/sessions")
    async def sessions(
        self, client: str | None = None, limit: Annotated[int, Count()] = 100
    ) -> SessionListing:
        """The open sessions, the oldest first; of one address or network, or of all clients."""
        wanted = None if client is None else network_of_text(client)
        connections = self._registry.connections
        open_now = (each.describe() for each in connections if wanted is None or each.client_ip in wanted)
        found = islice((each for each in open_now if each is not None), limit)
        return SessionListing(tuple(found), len(connections))

    @route("GET", "/v1/refused")
    async def refused(
        self,
        policy: str | None = None,
        limit: str | None = None,
        client: str | None = None,
        count: Annotated[int, Count(1, MOST_REFUSALS)] = 100,
    ) -> RefusalListing:
        """What was refused lately, with the reply: by a policy, by a limit, of a client, or all."""
        refusals = self._registry.refusals
        wanted = None if client is None else network_of_text(client)
        found = refusals.latest(policy=policy, limit=limit, client=wanted)
        rows = tuple(islice(found, count))
        return RefusalListing(rows, refusals.total, (NodeAnswer(self._node_id),))


def network_of_text(text: str) -> IPNetwork:
    """An address or a network as an operator types it. Raises :class:`AdminRefusal`."""
    try:
        found = ip_network(text.strip(), strict=False)
    except ValueError:
        problem = f"{text[:64]!r} is no IP address and no network"
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, "such as 192.0.2.7 or 2001:db8::/48") from None
    return unmapped_network(found)
