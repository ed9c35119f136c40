"""Where a transaction goes, and what came of sending it there."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from elemta.config import RouteTLS
from elemta.delivery.local_faults import LocalFault
from elemta.delivery.routes import NextHopRoute
from elemta.smtp.client_results import RecipientResult
from elemta.smtp.sasl import Credentials
from elemta.smtp.session_info import TLSInfo

IPAddress = IPv4Address | IPv6Address
Results = tuple[RecipientResult, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One host that would take the message: its name (or address as text), port and addresses.

    The name is what TLS verifies and what outcomes say. Without ``addresses`` they are looked up, the way
    the system does, when its turn comes.
    """

    host: str
    port: int
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class NextHop:
    """The next hop of a transaction: candidates in the order in which to try them, or a Unix socket.

    ``name`` stands in outcomes where nothing was reached. ``route`` (the target as configured) is what
    ``max_connections`` is counted for; ``destination``, where it is not empty, has ``per_destination`` as its
    limit beside that (0: that of the settings).
    """

    name: str
    candidates: tuple[Candidate, ...] = ()
    path: str = ""
    lmtp: bool = False
    tls: RouteTLS = RouteTLS.MAY
    credentials: Credentials | None = None
    route: str = ""
    max_connections: int = 20
    destination: str = ""
    per_destination: int = 0


class ReachedStage(enum.Enum):
    """How far a transaction came; it says which party a failure is about.

    NOTHING_FREE: no connection was allowed in time, which is no fault of the next hop. NOWHERE: no
    candidate could be connected to, or none was ready to talk. ANSWERED: the next hop answered for this
    very message, or broke off while it was doing so.
    """

    NOTHING_FREE = "nothing free"
    NOWHERE = "nowhere"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What came of one transaction: a result for each recipient, in order.

    ``next_hop`` names the host that the results are from, ``tls`` what protected the way (None: nothing);
    ``reused`` says that the connection had carried messages before; ``seconds`` is how long it took,
    without the wait for a connection to become free. ``local`` is what may be wrong on this side where
    nothing was reached, as for a destination by ``mx:``.
    """

    results: Results
    next_hop: str
    reached: ReachedStage
    tls: TLSInfo | None = None
    reused: bool = False
    seconds: float = 0.0
    local: LocalFault = LocalFault.NONE


def hop_of(route: NextHopRoute) -> NextHop:
    """The next hop that a route names itself."""
    return NextHop(
        route.name,
        () if route.path else (Candidate(route.host, route.port),),
        route.path,
        route.lmtp,
        route.tls,
        route.credentials,
        route.target,
        route.max_connections,
    )
