"""Where a transaction goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from elemta.config import RouteTLS
from elemta.delivery.connection_terms import DEFAULT_TERMS, ConnectionTerms
from elemta.delivery.local_faults import ON_A_KEPT_CONNECTION, works_by_host
from elemta.delivery.routes import NextHopRoute
from elemta.ip import IPAddress
from elemta.outcome import LocalFault
from elemta.smtp.sasl import Credentials


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
    limit beside that (0: that of the settings). ``works`` is what an answer over a new connection shows to
    work here; ``by_route`` says that a route names the hop itself. ``terms`` is how connections are made.
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
    works: LocalFault = LocalFault.NONE
    by_route: bool = False
    terms: ConnectionTerms = DEFAULT_TERMS
    #: The same for an answer over a connection that was kept.
    works_when_kept: LocalFault = field(init=False, compare=False, repr=False)
    #: What a connection has to have in common with this, to be one for this message.
    requirements: tuple[object, ...] = field(init=False, compare=False, repr=False)
    #: Where such a connection may lead: host (or the path of a socket) and port.
    places: tuple[tuple[str, int], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        requirements = (self.route, self.destination, self.lmtp, self.tls, self.credentials, self.terms)
        places = tuple([(each.host, each.port) for each in self.candidates]) or ((self.path, 0),)
        object.__setattr__(self, "works_when_kept", ON_A_KEPT_CONNECTION[self.works])
        object.__setattr__(self, "requirements", requirements)
        object.__setattr__(self, "places", places)


def hop_of(route: NextHopRoute) -> NextHop:
    """The next hop that a route names itself."""
    return NextHop(
        route.next_hop,
        () if route.path else (Candidate(route.host, route.port),),
        route.path,
        route.lmtp,
        route.tls,
        route.credentials,
        route.target,
        route.max_connections,
        works=works_by_host(route.host),
        by_route=True,
        terms=route.terms,
    )
