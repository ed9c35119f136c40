"""Open sessions, as an operator sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elemta.smtp.session import ServerSession


@dataclass(frozen=True, slots=True)
class LiveSession:
    """One open session.

    ``state`` is where the client is in its conversation, ``waiting_for`` what the next step is up to, and
    ``seconds`` how long it is open. ``recipients`` counts those of the transaction under way, and ``size``
    the octets of its message so far. ``tls`` is the protocol's version and the cipher; empty without TLS.
    """

    session_id: str
    client_ip: str
    client_port: int
    listener: str
    helo: str
    user: str | None
    tls: str
    reverse_name: str | None
    state: str
    waiting_for: str
    seconds: float
    sender: str | None
    recipients: int
    size: int

    @classmethod
    def of(cls, session: ServerSession, seconds: float, waiting_for: str) -> LiveSession:
        """One session that is open for so many seconds."""
        facts, transaction = session.facts, session.transaction
        return cls(
            facts.id,
            str(facts.client_ip),
            facts.client_port,
            facts.listener,
            facts.helo,
            facts.user,
            "" if facts.tls is None else f"{facts.tls.version} {facts.tls.cipher}",
            facts.reverse_name,
            session.state.phase.value,
            waiting_for,
            seconds,
            None if transaction is None else str(transaction.sender),
            0 if transaction is None else len(transaction.recipients),
            0 if transaction is None else transaction.size,
        )
