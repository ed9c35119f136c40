"""The schema: every setting of ``/etc/elemta.toml`` once: type, default, bounds, unit, sentence."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from elemta.config.choices import (
    BareNewline,
    Counts,
    Identity,
    ListenerTLS,
    LogFormat,
    LogLevel,
    Mode,
    OnError,
    OnExceed,
    Role,
    Scope,
    TLSVersion,
    WhenValkeyIsDown,
)
from elemta.config.ciphers import check_cipher_list
from elemta.config.endpoint import check_listener_endpoint, check_optional_endpoint
from elemta.config.names import (
    check_domain,
    check_domain_or_any,
    check_given_name,
    check_hostname,
    check_node_id,
)
from elemta.config.setting import REQUIRED, setting
from elemta.config.target import parse_route_target
from elemta.config.valkey_url import check_key_prefix, check_valkey_url
from elemta.config.values import Network, Rate, check_optional_rate
from elemta.route_tls import RouteTLS

DEFAULT_REFUSED_NETWORKS: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128", "169.254.0.0/16", "fe80::/10"),
        *("224.0.0.0/4", "ff00::/8", "100.64.0.0/10"),
    )
)
"""Loopback, unspecified, link-local, multicast, and what carriers share (RFC 6598)."""

_KIB: Final = 1024
_MIB: Final = 1024**2
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The ``[server]`` table: this host and its conversations."""

    hostname: str = setting(
        "",
        "The name of this host: in the greeting, in EHLO towards next hops and in Received fields.",
        check=check_hostname,
        example="mx1.example.org",
        default_words="this host's FQDN",
    )
    node_id: str = setting(
        "",
        "The name of this node in logs, metrics and Valkey; each node of a fleet has its own.",
        check=check_node_id,
        example="mx1",
        default_words="the value of hostname",
    )
    workers: int = setting(
        1, "Processes that take mail; 0 is one per core.", unit="processes", minimum=0, maximum=256
    )
    max_message_size: int = setting(
        50 * _MIB,
        "The largest message that is taken, and what SIZE says.",
        unit="bytes",
        minimum=1,
        maximum=2**40,
    )
    max_recipients: int = setting(
        1000, "Recipients of one message.", unit="recipients", minimum=1, maximum=1_000_000
    )
    bare_newline: BareNewline = setting(
        BareNewline.REJECT,
        "A bare CR or LF inside a message: reject refuses the message, normalize makes each a CRLF.",
    )
    command_timeout: float = setting(
        5 * _MINUTE,
        "How long a client may take for a whole command line.",
        unit="seconds",
        minimum=0.1,
        maximum=_DAY,
    )
    data_timeout: float = setting(
        10 * _MINUTE,
        "How long a client may pause within a message; a floor on its pace too, so that one byte a minute "
        "is no attack.",
        unit="seconds",
        minimum=0.1,
        maximum=_DAY,
    )
    shutdown_grace: float = setting(
        30.0,
        "How long sessions that are within a message may take to finish when the server stops.",
        unit="seconds",
        minimum=0,
        maximum=_DAY,
    )


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One ``[[listener]]`` table: a place where mail is taken."""

    name: str = setting(
        REQUIRED, "Its name in policies, limits, logs and metrics.", check=check_given_name, example="mx"
    )
    endpoint: str = setting(
        REQUIRED,
        "Any Twisted server endpoint: tcp, tcp6, unix, systemd or one that another package brings.",
        check=check_listener_endpoint,
        example="tcp:2525:interface=127.0.0.1",
    )
    role: Role = setting(
        Role.MX,
        "mx takes mail from anyone for local domains; submission requires AUTH and relays for its users.",
    )
    tls: ListenerTLS = setting(
        ListenerTLS.STARTTLS,
        "starttls is offered only where [tls] has a certificate; implicit speaks TLS from the first byte "
        "and needs one.",
    )
    proxy_protocol_from: tuple[Network, ...] = setting(
        (),
        "Networks of load balancers: from these a PROXY v1 or v2 header is required, from others it is "
        "refused.",
    )


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """The ``[tls]`` table: the certificate of this host."""

    certificate: str = setting(
        "", "A file with the certificate and its chain, PEM; reread on reload. Empty: no TLS."
    )
    private_key: str = setting(
        "", "A file with the private key, PEM; reread on reload. Empty: the key is in the certificate's file."
    )
    minimum: TLSVersion = setting(TLSVersion.TLS_1_2, "The oldest version of TLS that is spoken.")
    ciphers: str = setting(
        "",
        "The ciphers of TLS 1.2, as an OpenSSL list. Empty: those with forward secrecy and AEAD only.",
        check=check_cipher_list,
        example="ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES",
    )


@dataclass(frozen=True, slots=True)
class DomainsConfig:
    """The ``[domains]`` table: whom mail is taken for."""

    local: tuple[str, ...] = setting(
        (),
        "Domains whose mail ends here or is handed on by a route; in ASCII or Unicode.",
        check=check_domain,
        example=("example.com",),
        default_words="the value of hostname",
    )
    recipients: str = setting(
        "",
        "A file with one address or @domain a line: the mailboxes that exist. "
        "Empty: every address at a local domain exists, unless its route leads to a Maildir that does not "
        "(create_mailboxes).",
    )
    relay_from: tuple[Network, ...] = setting((), "Networks whose clients may send to any domain.")


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """The ``[auth]`` table: who may log in."""

    checkers: tuple[str, ...] = setting(
        (),
        "Where users are known from, as Twisted's strcred describes it, such as "
        '"elemta-users:/etc/elemta/users" (argon2 or scrypt hashes); asked in order.',
    )
    require_tls: bool = setting(True, "Whether AUTH is offered and taken only over TLS.")
    guesses_per_user: str = setting(
        "10/15m",
        "Failed logins of one name from one network (v4 /24, v6 /64), in the cluster; counted before the "
        "password is looked at. A user that logged in from an address before has a count of its own there. "
        "Empty: no such limit.",
        check=check_optional_rate,
    )
    guesses_per_network: str = setting(
        "50/15m",
        "Failed logins of all names from one network, in the cluster; users that logged in from this network "
        "before are exempt. Empty: no such limit.",
        check=check_optional_rate,
    )


@dataclass(frozen=True, slots=True)
class ResourcesConfig:
    """The ``[resources]`` table: connections, and the Valkey that a fleet counts in."""

    max_connections: int = setting(
        1000, "Open connections on this node.", unit="connections", minimum=1, maximum=1_000_000
    )
    max_connections_per_ip: int = setting(
        50,
        "Open connections per client IP, in the cluster.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    valkey_url: str = setting(
        "",
        "valkey:// valkeys:// (TLS) unix:// valkey+sentinel:// valkey+cluster://, also redis…; with "
        "user:password@, /db, and ?ca=FILE and others (docs/valkey.md). Empty: limits are kept in this "
        "node's memory.",
        check=check_valkey_url,
    )
    valkey_key_prefix: str = setting(
        "elemta:ratelimit:", "What every key in Valkey begins with.", check=check_key_prefix
    )
    rate_limit_window: int = setting(
        60, "The window of max_requests_per_window.", unit="seconds", minimum=1, maximum=31 * _DAY
    )
    max_requests_per_window: int = setting(
        100,
        "New connections per client IP per window, in the cluster; 0: no such limit.",
        unit="connections",
        minimum=0,
        maximum=1_000_000_000,
    )
    valkey_deadline: float = setting(
        0.05, "How long a session waits for Valkey at most.", unit="seconds", minimum=0.001, maximum=10
    )


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """One ``[[limit]]`` table: a limit of your own, beside the two of ``[resources]``; as many as wanted."""

    name: str = setting(
        REQUIRED,
        "Its name in replies, logs, metrics and keys.",
        check=check_given_name,
        example="mail-per-sender",
    )
    per: tuple[Identity, ...] = setting(
        REQUIRED,
        "What is counted apart: any of ip, network (v4 /24, v6 /64), user, helo, sender, sender_domain, "
        "recipient, recipient_domain, listener, destination (on the way out); [] is one count for all; "
        "several: their combination.",
        example=(Identity.SENDER,),
    )
    counts: Counts = setting(REQUIRED, "What is counted.", example=Counts.MESSAGES)
    rates: tuple[Rate, ...] = setting(
        REQUIRED,
        'How many in which rolling window; all must hold. For open_connections a plain number: ["20"]; '
        'for bytes a size: ["50MiB/1h"].',
        not_empty=True,
        example=(Rate(100, _MINUTE), Rate(1000, _HOUR)),
    )
    scope: Scope = setting(Scope.CLUSTER, "Whether the limit holds for the whole fleet or for each node.")
    on_exceed: OnExceed = setting(
        OnExceed.DEFER, "What the client gets: defer is 4xx, reject 5xx, disconnect 421, delay waits."
    )
    when_valkey_is_down: WhenValkeyIsDown = setting(
        WhenValkeyIsDown.LOCAL,
        "What holds meanwhile: local is this node's share of the limit, allow no limit, defer a 4xx.",
    )
    mode: Mode = setting(Mode.ENFORCE, "observe counts, logs and shows, but changes nothing.")
    except_: tuple[str, ...] = setting((), "Values or networks that are exempt.")


@dataclass(frozen=True, slots=True)
class PoliciesConfig:
    """The ``[policies]`` table: who is asked at every stage."""

    chain: tuple[str, ...] = setting(
        ("limits", "relay"),
        "The policies that are asked, in this order; each may have a table [policy.NAME].",
        check=check_given_name,
    )
    may_relay: tuple[str, ...] = setting(
        ("relay", "srs"),
        "Policies whose Accept, or whose replacement of a recipient, may grant relaying to any client. "
        "Nothing else grants it but a login and [domains] relay_from.",
        check=check_given_name,
    )


@dataclass(frozen=True, slots=True)
class PolicyCommon:
    """A ``[policy.NAME]`` table: every policy takes these four, beside its own options."""

    mode: Mode = setting(Mode.ENFORCE, "observe logs the policy's verdicts, but goes on as if it had none.")
    timeout: float = setting(
        5.0, "How long the policy may take for one answer.", unit="seconds", minimum=0.001, maximum=_HOUR
    )
    on_error: OnError = setting(OnError.DEFER, "The verdict when the policy fails or times out.")
    listeners: tuple[str, ...] = setting(
        (), "Names of the listeners whose clients it is asked about; empty: all."
    )


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """One ``[[route]]`` table: where mail goes; the first that matches wins.

    Mail for a local domain without a route goes to a Maildir below the spool directory
    (``mail/DOMAIN/LOCAL``), other mail to ``mx:``.
    """

    domains: tuple[str, ...] = setting(
        REQUIRED,
        'Domains of the recipients; "*" is any.',
        check=check_domain_or_any,
        not_empty=True,
        example=("example.com",),
    )
    to: str = setting(
        REQUIRED,
        "smtp://host:port, lmtp://host:port, lmtp+unix:///path, mx:, maildir:/var/mail/{domain}/{local} "
        "or hold:. {spool} in place of the path's first part is the spool directory.",
        check=parse_route_target,
        example="lmtp://127.0.0.1:24",
    )
    max_connections: int = setting(
        20,
        "Connections that may be open at once: to the next hop, or with mx: to each destination.",
        unit="connections",
        minimum=1,
        maximum=10_000,
    )
    tls: RouteTLS = setting(
        RouteTLS.MAY,
        "may uses TLS where it is offered, unverified, and else sends in the clear; require sends only over "
        "TLS with a certificate that is good for the host's name.",
    )
    credentials: str = setting(
        "",
        "A file whose one line user:password logs in to an smtp:// or lmtp:// next hop. Empty: no login.",
        example="/etc/elemta/smarthost",
    )
    refuse_networks: tuple[Network, ...] = setting(
        DEFAULT_REFUSED_NETWORKS,
        "Addresses that mx: never connects to, whatever DNS says. The default: loopback, unspecified, "
        "link-local and multicast addresses and 100.64.0.0/10. This host's listeners are refused anyway.",
    )
    create_mailboxes: bool = setting(
        False,
        "maildir: true makes a Maildir for any name. false makes one only for a name in recipients and for "
        "postmaster; RCPT answers 550 5.1.1 for any other name without a Maildir.",
    )


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """The ``[spool]`` table: the queue on disk."""

    directory: str = setting(
        "/var/spool/elemta", "Where messages and the admin socket are; on a local disk.", not_empty=True
    )
    retry: tuple[float, ...] = setting(
        (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR),
        "The waits between attempts; the last repeats.",
        unit="seconds",
        minimum=0.1,
        maximum=31 * _DAY,
        not_empty=True,
    )
    expire: float = setting(
        5 * _DAY, "How long delivery is tried.", unit="seconds", minimum=1, maximum=366 * _DAY
    )
    warn_after: float = setting(
        4 * _HOUR,
        "When the sender is told that a message is late; 0: never.",
        unit="seconds",
        minimum=0,
        maximum=366 * _DAY,
    )
    minimum_free: int = setting(
        256 * _MIB,
        "Free space on the spool's disk below which MAIL gets 452 4.3.1.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )
    bounce_size_limit: int = setting(
        50 * _KIB,
        "A DSN returns a message whole only up to this size, whatever RET says, else its header.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The ``[metrics]`` table: where monitoring asks."""

    endpoint: str = setting(
        "tcp:8080:interface=127.0.0.1",
        "Where /metrics, /healthz (alive) and /readyz (would accept mail now) are served. Empty: off.",
        check=check_optional_endpoint,
    )


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """The ``[console]`` table: the web console."""

    endpoint: str = setting(
        "tcp:8025:interface=127.0.0.1",
        "Where the web console and the admin API are served. Empty: off.",
        check=check_optional_endpoint,
    )
    users: str = setting(
        "/etc/elemta/console-users",
        "A file of who may log in. No file: one random token at the first start, kept 0600 in the spool "
        "directory, its place logged.",
    )


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """The ``[logging]`` table: the log on standard output."""

    format: LogFormat = setting(LogFormat.JSON, "json is one object a line, text is for people.")
    level: LogLevel = setting(LogLevel.INFO, "The least level that is logged.")


DEFAULT_LISTENER: Final = ListenerConfig(name="mx", endpoint="tcp:2525:interface=127.0.0.1")
"""The one listener there is when the configuration names none."""
