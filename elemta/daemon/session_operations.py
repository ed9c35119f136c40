"""The admin call about open SMTP sessions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from elemta.net.protocol import ESMTPProtocol
from elemta.net.registry import ConnectionRegistry
from elemta.ops.admin_calls import route
from elemta.ops.admin_json import Count


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """One open session: ``helo`` and ``user`` are empty and null until the client has said them."""

    session_id: str
    listener: str
    client_ip: str
    client_port: int
    helo: str
    user: str | None
    tls: str
    reverse_name: str | None


@dataclass(frozen=True, slots=True)
class SessionListing:
    """The oldest open sessions of this node, and how many there are in total."""

    sessions: tuple[SessionEntry, ...]
    total: int


class SessionOperations:
    """Shows the sessions in ``registry``."""

    def __init__(self, registry: ConnectionRegistry) -> None:
        self._registry = registry

    @route("GET", "/v1/sessions")
    async def list(self, limit: Annotated[int, Count()] = 100) -> SessionListing:
        """The open SMTP sessions of this node, the oldest first."""
        known = (each for each in self._registry.connections if isinstance(each, ESMTPProtocol))
        found = tuple(_entry(each) for each in islice(known, limit))
        return SessionListing(found, len(self._registry.connections))


def _entry(connection: ESMTPProtocol) -> SessionEntry:
    facts = connection.facts
    return SessionEntry(
        facts.id,
        facts.listener,
        str(facts.client_ip),
        facts.client_port,
        facts.helo,
        facts.user,
        f"{facts.tls.version} {facts.tls.cipher}" if facts.tls else "",
        facts.reverse_name,
    )
