"""Routes: which way a recipient's mail leaves, by the first that matches its domain.

:func:`read_credentials` reads the file that holds what a route logs in with: one line ``user:password``.
"""

from __future__ import annotations

import enum
import os.path
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from elemta.address import Address
from elemta.config import (
    DEFAULT_REFUSED_NETWORKS,
    Config,
    RouteConfig,
    RouteTarget,
    RouteTLS,
    TargetKind,
    parse_route_target,
)
from elemta.delivery.connection_terms import DEFAULT_TERMS, ConnectionTerms
from elemta.delivery.transport import ConfiguredRoute, transport_of
from elemta.domains import Domains, canonical_domain
from elemta.envelope import Recipient
from elemta.errors import ConfigError, Fault, FaultCollector
from elemta.ip import IPNetwork, with_port
from elemta.policy.route_choice import RouteChoice
from elemta.smtp.sasl import Credentials

_LONGEST = 4096
_SUBMISSIONS = 465


def read_credentials(path: str, key: str) -> Credentials:
    """Read a file of credentials; ``key`` names the setting that says where it is.

    Raises :class:`~elemta.errors.ConfigError` without anything of what is in the file.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror or error}")]) from error
    problem = "is longer than 4096 octets" if len(text) > _LONGEST else ""
    line = text.removesuffix(b"\n").removesuffix(b"\r")
    username, colon, password = line.partition(b":")
    try:
        name = username.decode("utf-8")
    except UnicodeDecodeError:
        name, problem = "", problem or "has a user name that is not UTF-8"
    if not problem and (not colon or not name or not password):
        problem = "must hold one line user:password"
    if not problem and any(octet < 0x20 or octet == 0x7F for octet in line):
        problem = "must hold one line user:password, without control characters and without a second line"
    if problem:
        raise ConfigError([Fault(path, key, problem)])
    return Credentials(name, password)


# Destinations that are no next hop: held, delivered here.
HELD = "hold:"
LOCAL = "maildir:"

ANY = "*"
AS_CONFIGURED = "the route says hold:"
_REMEMBERED = 4096
_NO_DOMAINS = Domains(frozenset())


class Placeholder(enum.Enum):
    """What a Maildir path takes from the recipient."""

    DOMAIN = "domain"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Route:
    """Where mail for some domains goes.

    ``target`` is the text of the configuration, which outcomes and metrics carry; ``domains`` are in
    canonical form, ``*`` for any; ``max_connections`` bounds the connections to it at one time.

    Mail that stays on this host waits in the destination ``stays_in``. Other mail waits in a destination of
    the route's own, or with ``each_domain`` in one for each domain, which ``max_connections`` is for, too.
    """

    target: str
    domains: frozenset[str]
    max_connections: int = 20
    stays_in: ClassVar[str] = LOCAL
    each_domain: ClassVar[bool] = False

    @property
    def next_hop(self) -> str:
        """What outcomes name where nothing was reached."""
        return ""

    @property
    def hold_reason(self) -> str:
        """Why mail stays in the hold queue; empty where it does not."""
        return ""

    def destination(self, recipient: Recipient) -> str:
        """The destination in which a recipient waits."""
        if self.stays_in:
            return self.stays_in
        return (canonical_domain(recipient.domain) if self.each_domain else "") or self.target

    def limited_as(self, destination: str) -> str | None:
        """What the limits on the way out call the destination; None where mail stays here."""
        if self.stays_in:
            return None
        return destination if self.each_domain else self.next_hop


@dataclass(frozen=True, slots=True)
class MaildirRoute(Route):
    """Final delivery to a Maildir; ``template`` is its path in parts.

    A missing Maildir is made where ``create_mailboxes`` says so, or where ``domains_named`` names the
    recipient. ``root`` is the directory that is there whenever the file system with the Maildirs is.
    """

    template: tuple[str | Placeholder, ...] = ()
    create_mailboxes: bool = False
    root: str = ""
    domains_named: Domains | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_config(cls, configured: ConfiguredRoute) -> MaildirRoute:
        """The route of a ``[[route]]``."""
        template = _template(configured.target.path)
        config = configured.config
        return cls(
            config.to,
            configured.domains,
            config.max_connections,
            template,
            config.create_mailboxes,
            os.path.dirname(str(template[0])),
            configured.domains_named,
        )

    def makes(self, recipient: Address) -> bool:
        """Whether a Maildir is made for the recipient where there is none."""
        if self.create_mailboxes:
            return True
        return self.domains_named is not None and self.domains_named.names(recipient)

    def mailbox(self, recipient: Address) -> Address:
        """The mailbox that a recipient is here: what names its Maildir."""
        return (self.domains_named or _NO_DOMAINS).keys.mailbox_here(recipient)


@dataclass(frozen=True, slots=True)
class HoldRoute(Route):
    """Mail stays in the hold queue for ``reason``."""

    reason: str = AS_CONFIGURED
    stays_in: ClassVar[str] = HELD

    @property
    def hold_reason(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class MxRoute(Route):
    """Mail goes to the mail exchangers of its domain, but to none in ``refuse_networks``."""

    tls: RouteTLS = RouteTLS.MAY
    refuse_networks: tuple[IPNetwork, ...] = DEFAULT_REFUSED_NETWORKS
    terms: ConnectionTerms = DEFAULT_TERMS
    stays_in: ClassVar[str] = ""
    each_domain: ClassVar[bool] = True

    @classmethod
    def from_config(cls, configured: ConfiguredRoute) -> MxRoute:
        """The route of a ``[[route]]``; its file of authorities is read here. ConfigError."""
        config = configured.config
        return cls(
            config.to,
            configured.domains,
            config.max_connections,
            config.tls,
            config.refuse_networks,
            ConnectionTerms.of(config, configured.key),
        )


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
    terms: ConnectionTerms = DEFAULT_TERMS
    stays_in: ClassVar[str] = ""

    @classmethod
    def from_config(cls, configured: ConfiguredRoute) -> NextHopRoute:
        """The route of a ``[[route]]``; its files are read here. ConfigError."""
        config, target = configured.config, configured.target
        credentials, terms, faults = None, DEFAULT_TERMS, FaultCollector()
        with faults:
            if config.credentials:
                credentials = read_credentials(config.credentials, f"{configured.key}.credentials")
        with faults:
            terms = ConnectionTerms.of(config, configured.key)
        faults.check()
        return cls(
            config.to,
            configured.domains,
            config.max_connections,
            target.host,
            _port(target, config.tls),
            target.path,
            target.kind is not TargetKind.SMTP,
            config.tls,
            credentials,
            terms,
        )

    @property
    def next_hop(self) -> str:
        """The server as the configuration names it."""
        if self.path:
            return self.path
        return with_port(self.host, self.port)


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
            if route.hold_reason != AS_CONFIGURED:
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
        f"maildir:{directory}/mail/{{domain}}/{{local}}",
        _canonical_domains(domains.local),
        template=template,
        # Not the directory "mail", which comes with the first Maildir.
        root=directory,
        domains_named=domains,
    )
    routes: list[Route] = []
    faults: list[Fault] = []
    for number, route in enumerate(config.routes, start=1):
        try:
            routes.append(route_of(route, f"route[{number}]", domains, directory))
        except ConfigError as error:
            faults.extend(error.faults)
    if faults:
        raise ConfigError(faults)
    return (*routes, local, _BY_MX)


def route_of(
    config: RouteConfig, key: str = "route", domains_named: Domains | None = None, spool: str = "/"
) -> Route:
    """One ``[[route]]`` as a route.

    ``key`` names it in a fault, ``domains_named`` knows mailboxes by name, ``spool`` is the spool directory.

    The configuration has checked it; what it could not is a ValueError, or, where the file of credentials
    can't be used, a ConfigError.
    """
    configured = ConfiguredRoute(
        config, parse_route_target(config.to, spool), _canonical_domains(config.domains), key, domains_named
    )
    transport = transport_of(configured.target.kind)
    if transport is None:
        return HoldRoute(config.to, configured.domains, config.max_connections)
    return transport.route(configured)


def chosen_route(
    choice: RouteChoice, configured: Route | None = None, domains_named: Domains | None = None
) -> Route:
    """The route that a policy chose.

    What the choice does not say is as in ``configured``, the ``[[route]]`` with the same target, else the
    default of a ``[[route]]``.
    """
    route = configured or route_of(RouteConfig(domains=(ANY,), to=choice.target), domains_named=domains_named)
    if choice.names_target_only or not isinstance(route, NextHopRoute | MxRoute):
        return route
    terms = replace(
        route.terms,
        family=route.terms.family if choice.family is None else choice.family,
        source=route.terms.source if choice.source is None else choice.source,
        chosen=True,
    )
    tls = route.tls if choice.tls is None else choice.tls
    if isinstance(route, MxRoute):
        return replace(route, tls=tls, terms=terms)
    port = _port(parse_route_target(choice.target), tls)
    credentials = choice.credentials or route.credentials
    return replace(route, tls=tls, terms=terms, port=port, credentials=credentials)


def _port(target: RouteTarget, tls: RouteTLS) -> int:
    # RFC 8314 §3.3: TLS from the first byte has a port of its own.
    implicit = tls is RouteTLS.IMPLICIT and target.kind is TargetKind.SMTP
    return _SUBMISSIONS if implicit and not target.names_port else target.port


def _canonical_domains(domains: Iterable[str]) -> frozenset[str]:
    return frozenset(canonical_domain(domain) for domain in domains)


def _template(path: str) -> tuple[str | Placeholder, ...]:
    parts: list[str | Placeholder] = []
    for literal, name, _, _ in string.Formatter().parse(path):
        if literal:
            parts.append(literal)
        if name is not None:
            parts.append(Placeholder(name))
    return tuple(parts)
