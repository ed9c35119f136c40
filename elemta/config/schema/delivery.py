"""The tables of what leaves: the routes and the queue on disk."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from elemta.config.choices import AddressFamily
from elemta.config.names import check_domain_or_any, check_keyword, check_source
from elemta.config.schema.units import DAY, HOUR, KIB, MIB, MINUTE
from elemta.config.setting import REQUIRED, setting
from elemta.config.target import TARGET_WORDS, parse_route_target
from elemta.ip import IPAddress, IPNetwork
from elemta.route_tls import RouteTLS

DEFAULT_REFUSED_NETWORKS: Final[tuple[IPNetwork, ...]] = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128", "169.254.0.0/16", "fe80::/10"),
        *("224.0.0.0/4", "ff00::/8", "100.64.0.0/10"),
    )
)
"""Loopback, unspecified, link-local, multicast, and the shared address space (RFC 6598)."""


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """One ``[[route]]`` table: the next hop of mail; the first route that matches wins.

    Without a matching route, mail for a local domain goes to a Maildir below the spool directory
    (``mail/DOMAIN/LOCAL``), and other mail to ``mx:``.
    """

    domains: tuple[str, ...] = setting(
        REQUIRED,
        'The domains of the recipients; "*" is any domain.',
        check=check_domain_or_any,
        not_empty=True,
        example=("example.com",),
    )
    to: str = setting(
        REQUIRED,
        f"The next hop: {TARGET_WORDS}. {{spool}} in place of the path's first part is the spool directory.",
        check=parse_route_target,
        example="lmtp://127.0.0.1:24",
    )
    max_connections: int = setting(
        20,
        "The most connections that are open at once: to the next hop, or with mx: to each destination.",
        unit="connections",
        minimum=1,
        maximum=10_000,
    )
    tls: RouteTLS = setting(
        RouteTLS.MAY,
        "may uses TLS without verification where it is offered, and else sends in the clear. require sends "
        "only over TLS with a certificate that is valid for the host's name. implicit is require with TLS "
        "from the first byte, as on port 465.",
    )
    ca: str = setting(
        "",
        "A PEM file with the authorities that this route trusts. Empty: those of the system.",
        example="/etc/elemta/smarthost-ca.pem",
    )
    credentials: str = setting(
        "",
        "A file with one line user:password, the login at an smtp:// or lmtp:// next hop. Empty: no login.",
        example="/etc/elemta/smarthost",
    )
    address_family: AddressFamily = setting(
        AddressFamily.ANY,
        "The addresses to connect to: any tries IPv6 first, prefer_ipv4 IPv4 first; ipv4 and ipv6 use no "
        "others.",
    )
    source: tuple[IPAddress, ...] = setting(
        (),
        "The addresses of this host to connect from, at most one IPv4 and one IPv6. Empty, or for a family "
        "without one: as the system chooses.",
        check=check_source,
        example=("192.0.2.7",),
    )
    ignore_offers: tuple[str, ...] = setting(
        (),
        "EHLO keywords of these next hops that are not believed.",
        check=check_keyword,
        example=("CHUNKING",),
    )
    refuse_networks: tuple[IPNetwork, ...] = setting(
        DEFAULT_REFUSED_NETWORKS,
        "Addresses that mx: never connects to, whatever DNS says. The default is loopback, unspecified, "
        "link-local and multicast addresses and 100.64.0.0/10. This host's listeners are always refused.",
    )
    create_mailboxes: bool = setting(
        False,
        "For maildir: only. true makes a Maildir for any name. false makes one only for a name in recipients "
        "or on the right of an alias, and for postmaster; RCPT answers 550 5.1.1 for any other name without "
        "a Maildir.",
    )


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """The ``[spool]`` table: the queue on disk."""

    directory: str = setting(
        "/var/spool/elemta",
        "The directory of the messages and of the admin socket, on a local disk.",
        not_empty=True,
    )
    retry: tuple[float, ...] = setting(
        (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR),
        "The times between attempts; the last repeats.",
        unit="seconds",
        minimum=0.1,
        maximum=31 * DAY,
        not_empty=True,
    )
    expire: float = setting(
        5 * DAY, "The time for which delivery is tried.", unit="seconds", minimum=1, maximum=366 * DAY
    )
    warn_after: float = setting(
        4 * HOUR,
        "The time after which the sender gets a notice that a message is delayed; 0: never.",
        unit="seconds",
        minimum=0,
        maximum=366 * DAY,
    )
    minimum_free: int = setting(
        256 * MIB,
        "The free space on the spool's disk below which MAIL gets 452 4.3.1.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )
    history: float = setting(
        7 * DAY,
        "The time for which it can be found what became of a message, after its end; 0: not at all.",
        unit="seconds",
        minimum=0,
        maximum=10 * 366 * DAY,
    )
    bounce_size_limit: int = setting(
        50 * KIB,
        "The size up to which a DSN returns the whole message, whatever RET says. Of a larger message it "
        "returns the header.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )
