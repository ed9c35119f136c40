"""Routes: which way a recipient's mail leaves, by the first that matches its domain."""

from __future__ import annotations

import enum
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elemta.address import Address
from elemta.config import Config, RouteConfig, RouteTLS, TargetKind, parse_target
from elemta.delivery.credentials import read_credentials
from elemta.domains import Domains, canonical_domain
from elemta.envelope import Recipient
from elemta.errors import ConfigError, Fault
from elemta.smtp.sasl import Credentials

ANY = "*"
AS_CONFIGURED = "the route says hold:"
_REMEMBERED = 4096


class Placeholder(enum.Enum):
    """What a Maildir path takes from the recipient."""

    DOMAIN = "domain"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Route:
    """Where mail for some domains goes.

    ``target`` is the text of the configuration, which outcomes and metrics carry; ``domains`` are in
    canonical form, ``*`` for any; ``max_connections`` bounds the connections to it at one time.
    """

    target: str
    domains: frozenset[str]
    max_connections: int = 20


@dataclass(frozen=True, slots=True)
class MaildirRoute(Route):
    """Final delivery to a Maildir; ``template`` is its path in parts."""

    template: tuple[str | Placeholder, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldRoute(Route):
    """Mail stays in the hold queue for ``reason``."""

    reason: str = AS_CONFIGURED


@dataclass(frozen=True, slots=True)
class MxRoute(Route):
    """Mail goes to the mail exchangers of its domain."""

    tls: RouteTLS = RouteTLS.MAY


@dataclass(frozen=True, slots=True)
class NextHopRoute(Route):
    """Mail goes to a server of the configuration: ``host`` and ``port``, or the Unix socket ``path``.

    With ``credentials`` nothing is sent but to a server that took them.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    lmtp: bool = False
    tls: RouteTLS = RouteTLS.MAY
    credentials: Credentials | None = None

    @property
    def name(self) -> str:
        """The server as the configuration names it, for outcomes and logs."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RouteTable:
    """Finds the route of a recipient: the first in order whose domains match."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._found: dict[str, Route] = {}

    def route(self, recipient: Address) -> Route:
        """The route for this recipient; without any match mail goes by MX."""
        found = self._found.get(recipient.domain)
        if found is None:
            found = self._first(canonical_domain(recipient.domain))
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[recipient.domain] = found
        return found

    def hold_reason(self, recipients: Iterable[Recipient]) -> str | None:
        """Why a message for these never leaves the hold queue by itself: all their routes say ``hold:``.

        Such a message can be stored on hold at once, and needs no attempt to get there.
        """
        for recipient in recipients:
            route = self.route(recipient.address)
            if not isinstance(route, HoldRoute) or route.reason != AS_CONFIGURED:
                return None
        return AS_CONFIGURED

    def _first(self, domain: str) -> Route:
        for route in self.routes:
            if domain in route.domains or ANY in route.domains:
                return route
        return _BY_MX


_BY_MX = MxRoute("mx:", frozenset({ANY}))


def routes_from_config(config: Config, domains: Domains) -> tuple[Route, ...]:
    """All routes in order: those of the configuration, then what goes without one.

    Without a matching ``[[route]]`` mail for local domains goes to a Maildir below the spool directory,
    and other mail to ``mx:``. Files of credentials are read here; ConfigError says which can't be used.
    """
    directory = str(config.spool.directory).rstrip("/")
    template = (f"{directory}/mail/", Placeholder.DOMAIN, "/", Placeholder.LOCAL)
    local = MaildirRoute(
        f"maildir:{directory}/mail/{{domain}}/{{local}}", _canonical_domains(domains.local), template=template
    )
    routes: list[Route] = []
    faults: list[Fault] = []
    for number, route in enumerate(config.routes, start=1):
        try:
            routes.append(route_of(route, f"route[{number}]"))
        except ConfigError as error:
            faults.extend(error.faults)
    if faults:
        raise ConfigError(faults)
    return (*routes, local, _BY_MX)


def route_of(config: RouteConfig, key: str = "route") -> Route:
    """One ``[[route]]`` as a route; ``key`` names it in a fault.

    The configuration has checked it; what it could not is a ValueError, or, where the file of credentials
    can't be used, a ConfigError.
    """
    target = parse_target(config.to)
    text, domains, most = config.to, _canonical_domains(config.domains), config.max_connections
    if target.kind is TargetKind.MAILDIR:
        return MaildirRoute(text, domains, most, template=_template(target.path))
    if target.kind is TargetKind.HOLD:
        return HoldRoute(text, domains, most)
    if target.kind is TargetKind.MX:
        return MxRoute(text, domains, most, tls=config.tls)
    return NextHopRoute(
        text,
        domains,
        most,
        host=target.host,
        port=target.port,
        path=target.path if target.kind is TargetKind.LMTP_UNIX else "",
        lmtp=target.kind is not TargetKind.SMTP,
        tls=config.tls,
        credentials=read_credentials(config.credentials, f"{key}.credentials")
        if config.credentials
        else None,
    )


def _canonical_domains(domains: Iterable[str]) -> frozenset[str]:
    return frozenset(canonical_domain(domain) for domain in domains)


def _template(path: str) -> tuple[str | Placeholder, ...]:
    parts: list[str | Placeholder] = []
    for literal, field, _, _ in string.Formatter().parse(path):
        if literal:
            parts.append(literal)
        if field is not None:
            parts.append(Placeholder(field))
    return tuple(parts)
