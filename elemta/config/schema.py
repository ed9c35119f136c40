"""The schema: every setting of ``/etc/elemta.toml`` once, with type, default, bounds, unit and text."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from elemta.config.choices import (
    AddressFamily,
    BareNewline,
    ChargeMessagesAt,
    Counts,
    EarlyTalkers,
    Identity,
    ListenerTLS,
    LogFormat,
    LogLevel,
    Mode,
    OnError,
    OnExceed,
    Role,
    Scope,
    Senders,
    TLSVersion,
    WhenValkeyIsDown,
)
from elemta.config.ciphers import check_cipher_list
from elemta.config.endpoint import check_listener_endpoint, check_optional_endpoint
from elemta.config.names import (
    check_delimiter,
    check_domain,
    check_domain_or_any,
    check_given_name,
    check_hostname,
    check_keyword,
    check_node_id,
    check_source,
)
from elemta.config.setting import REQUIRED, setting
from elemta.config.target import TARGET_WORDS, parse_route_target
from elemta.config.valkey_url import check_key_prefix, check_valkey_url
from elemta.config.values import Address, Network, Rate, check_optional_rate
from elemta.route_tls import RouteTLS

DEFAULT_REFUSED_NETWORKS: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128", "169.254.0.0/16", "fe80::/10"),
        *("224.0.0.0/4", "ff00::/8", "100.64.0.0/10"),
    )
)
"""Loopback, unspecified, link-local, multicast, and the shared address space (RFC 6598)."""

_KIB: Final = 1024
_MIB: Final = 1024**2
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The ``[server]`` table: this host and its sessions."""

    hostname: str = setting(
        "",
        "The name of this host in the greeting, in EHLO to next hops and in Received fields.",
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
        1, "Processes that receive mail; 0 is one per core.", unit="processes", minimum=0, maximum=256
    )
    max_message_size: int = setting(
        50 * _MIB,
        "The largest message that is accepted; EHLO offers it as SIZE.",
        unit="bytes",
        minimum=1,
        maximum=2**40,
    )
    max_recipients: int = setting(
        1000, "The most recipients of one message.", unit="recipients", minimum=1, maximum=1_000_000
    )
    bare_newline: BareNewline = setting(
        BareNewline.REJECT,
        "What a bare CR or LF inside a message leads to: reject refuses the message, normalize makes each a "
        "CRLF. From users that logged in and clients in relay_from it is always made a CRLF, unless the "
        "listener is strict.",
    )
    command_timeout: float = setting(
        5 * _MINUTE,
        "The time that a client has for a whole command line.",
        unit="seconds",
        minimum=0.1,
        maximum=_DAY,
    )
    data_timeout: float = setting(
        10 * _MINUTE,
        "The time that a client may pause within a message. Its longest pause apart, a message also has a "
        "minimum rate: 500 octets a second on average after the first 10 seconds.",
        unit="seconds",
        minimum=0.1,
        maximum=_DAY,
    )
    shutdown_grace: float = setting(
        30.0,
        "The time that a session within a message has to finish it when the server stops.",
        unit="seconds",
        minimum=0,
        maximum=_DAY,
    )


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One ``[[listener]]`` table: a socket on which mail is received."""

    name: str = setting(
        REQUIRED,
        "The listener's name in policies, limits, logs and metrics.",
        check=check_given_name,
        example="mx",
    )
    endpoint: str = setting(
        REQUIRED,
        "A Twisted server endpoint: tcp, tcp6, unix, systemd or one that another package brings.",
        check=check_listener_endpoint,
        example="tcp:2525:interface=127.0.0.1",
    )
    role: Role = setting(
        Role.MX,
        "mx accepts mail from any client for local domains. submission requires AUTH and relays for its "
        "users.",
    )
    tls: ListenerTLS = setting(
        ListenerTLS.STARTTLS,
        "starttls offers STARTTLS where [tls] has a certificate. implicit uses TLS from the first byte and "
        "needs a certificate.",
    )
    proxy_protocol_from: tuple[Network, ...] = setting(
        (),
        "Networks of load balancers. From these a PROXY v1 or v2 header is required, from others it is "
        "refused.",
    )
    strict: bool = setting(
        False,
        "true keeps to the grammar of RFC 5321. false also takes what real clients write instead and what "
        "can mean only one thing; docs/leniency.md lists it.",
    )
    early_talkers: EarlyTalkers = setting(
        EarlyTalkers.WAIT,
        "What happens to input before the greeting: it waits for its turn, or the client gets 554. With "
        "reject the greeting comes half a second late, because such input may still be on its way.",
    )


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """The ``[tls]`` table: the certificate of this host."""

    certificate: str = setting(
        "", "A PEM file with the certificate and its chain; a reload reads it again. Empty: no TLS."
    )
    private_key: str = setting(
        "",
        "A PEM file with the private key; a reload reads it again. Empty: the key is in the certificate's "
        "file.",
    )
    minimum: TLSVersion = setting(TLSVersion.TLS_1_2, "The oldest version of TLS that is accepted.")
    ciphers: str = setting(
        "",
        "The ciphers of TLS 1.2, as an OpenSSL list. Empty: only ciphers with forward secrecy and AEAD.",
        check=check_cipher_list,
        example="ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES",
    )


@dataclass(frozen=True, slots=True)
class CertificateConfig:
    """One ``[[certificate]]`` table: one more certificate, chosen by the name that a client asks for (SNI).

    The names are read from the certificate, wildcards too. A client that asks for no name, or for an unknown
    one, gets the certificate of ``[tls]``. A name may have an RSA and an ECDSA certificate.
    """

    certificate: str = setting(
        REQUIRED,
        "A PEM file with the certificate and its chain; a reload reads it again.",
        not_empty=True,
        example="/etc/ssl/other.pem",
    )
    private_key: str = setting(
        "",
        "A PEM file with the private key; a reload reads it again. Empty: the key is in the certificate's "
        "file.",
        example="/etc/ssl/other.key",
    )


@dataclass(frozen=True, slots=True)
class DomainsConfig:
    """The ``[domains]`` table: the domains that mail is accepted for."""

    local: tuple[str, ...] = setting(
        (),
        "Domains whose mail is delivered here or by a route, in ASCII or Unicode.",
        check=check_domain,
        example=("example.com",),
        default_words="the value of hostname",
    )
    recipients: str = setting(
        "",
        "A file with one address or @domain a line: the mailboxes that exist. "
        "Empty: every address at a local domain exists, unless its route leads to a Maildir that does not "
        "exist (create_mailboxes).",
    )
    relay_from: tuple[Network, ...] = setting((), "Networks whose clients may send to any domain.")
    recipient_delimiter: str = setting(
        "+",
        "The character that parts a tag from a local-part: anna+shop@ is the mailbox anna@, for recipients, "
        "aliases, limits and {local} of a Maildir. Empty: no tags.",
        check=check_delimiter,
    )
    aliases: str = setting(
        "",
        "A file with one mapping a line: an address of a local domain, and the addresses that its mail goes "
        "to (docs/aliases.md). A reload reads it again.",
        example="/etc/elemta/aliases",
    )


@dataclass(frozen=True, slots=True)
class SubmissionConfig:
    """The ``[submission]`` table: mail of users, of clients in relay_from, and of elemta-sendmail."""

    add_missing: bool = setting(
        True, "Whether a message without Date, Message-ID or From gets them; From is the envelope's sender."
    )
    remove_bcc: bool = setting(True, "Whether Bcc and Resent-Bcc fields are removed.")
    senders: Senders = setting(
        Senders.OWN,
        "The senders that a user may name in MAIL FROM, From and Sender: own is the user's own addresses, "
        "any is every address. Clients in relay_from may name any.",
    )
    sender_map: str = setting(
        "",
        "A file with further addresses that are a user's own: one user a line, then addresses or @domain, "
        "with commas between (docs/submission.md). A reload reads it again.",
        example="/etc/elemta/senders",
    )
    hide_client: bool = setting(
        False, "Whether the Received field leaves out the address and the HELO name of the client."
    )


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """The ``[auth]`` table: logins."""

    checkers: tuple[str, ...] = setting(
        (),
        "The checkers of passwords, as Twisted's strcred describes them, such as "
        '"elemta-users:/etc/elemta/users" (argon2 or scrypt hashes). They are asked in order.',
    )
    require_tls: bool = setting(True, "Whether AUTH is offered and accepted only over TLS.")
    guesses_per_user: str = setting(
        "10/15m",
        "Failed logins of one name from one network (v4 /24, v6 /64), in the cluster. They are charged "
        "before the password is checked. A user that logged in from an address before has a count of its "
        "own there. Empty: no such limit.",
        check=check_optional_rate,
    )
    guesses_per_network: str = setting(
        "50/15m",
        "Failed logins of all names from one network, in the cluster. Users that logged in from this network "
        "before are exempt. Empty: no such limit.",
        check=check_optional_rate,
    )


@dataclass(frozen=True, slots=True)
class ResourcesConfig:
    """The ``[resources]`` table: connections, and the Valkey in which a fleet counts."""

    max_connections: int = setting(
        1000, "The most open connections on this node.", unit="connections", minimum=1, maximum=1_000_000
    )
    max_connections_per_ip: int = setting(
        50,
        "The most open connections per client IP, in the cluster.",
        unit="connections",
        minimum=1,
        maximum=1_000_000,
    )
    valkey_url: str = setting(
        "",
        "The URL of Valkey: valkey:// valkeys:// (TLS) unix:// valkey+sentinel:// valkey+cluster://, also "
        "redis…; with user:password@, /db, and ?ca=FILE and others (docs/valkey.md). Empty: limits are "
        "counted in this node's memory.",
        check=check_valkey_url,
    )
    valkey_key_prefix: str = setting(
        "elemta:ratelimit:", "The beginning of every key in Valkey.", check=check_key_prefix
    )
    rate_limit_window: int = setting(
        60, "The window of max_requests_per_window.", unit="seconds", minimum=1, maximum=31 * _DAY
    )
    max_requests_per_window: int = setting(
        100,
        "The most new connections per client IP per window, in the cluster; 0: no such limit.",
        unit="connections",
        minimum=0,
        maximum=1_000_000_000,
    )
    valkey_deadline: float = setting(
        0.05, "The longest time that a session waits for Valkey.", unit="seconds", minimum=0.001, maximum=10
    )


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """One ``[[limit]]`` table: a limit of your own, beside the two of ``[resources]``; any number of them."""

    name: str = setting(
        REQUIRED,
        "The limit's name in replies, logs, metrics and keys.",
        check=check_given_name,
        example="mail-per-sender",
    )
    per: tuple[Identity, ...] = setting(
        REQUIRED,
        "The identities that have a count of their own: any of ip, network (v4 /24, v6 /64), user, helo, "
        "sender, sender_domain, recipient, recipient_domain, listener, destination (outbound mail). [] is "
        "one count for all clients, several count each combination.",
        example=(Identity.SENDER,),
    )
    counts: Counts = setting(REQUIRED, "What is counted.", example=Counts.MESSAGES)
    rates: tuple[Rate, ...] = setting(
        REQUIRED,
        'How many in which rolling window; all must hold. For open_connections it is a plain number: ["20"], '
        'for bytes a size: ["50MiB/1h"].',
        not_empty=True,
        example=(Rate(100, _MINUTE), Rate(1000, _HOUR)),
    )
    scope: Scope = setting(Scope.CLUSTER, "Whether the limit holds for the whole fleet or for each node.")
    on_exceed: OnExceed = setting(
        OnExceed.DEFER,
        "The reply when the limit is full: defer is 4xx, reject 5xx, disconnect 421; delay waits first.",
    )
    when_valkey_is_down: WhenValkeyIsDown = setting(
        WhenValkeyIsDown.LOCAL,
        "What applies while Valkey is away: local is this node's share of the limit, allow no limit, defer a "
        "4xx.",
    )
    mode: Mode = setting(Mode.ENFORCE, "observe counts, logs and shows, and changes nothing.")
    except_: tuple[str, ...] = setting((), "Values or networks that are exempt.")


@dataclass(frozen=True, slots=True)
class PoliciesConfig:
    """The ``[policies]`` table: the policies that are called at every stage."""

    chain: tuple[str, ...] = setting(
        ("limits", "relay"),
        "The policies that are called, in this order. Each may have a table [policy.NAME].",
        check=check_given_name,
    )
    may_relay: tuple[str, ...] = setting(
        ("relay", "srs"),
        "Policies whose Accept, or whose replacement of a recipient, may grant relaying to any client. "
        "Otherwise only a login and [domains] relay_from grant it.",
        check=check_given_name,
    )


@dataclass(frozen=True, slots=True)
class PolicyCommon:
    """A ``[policy.NAME]`` table: every policy takes these four, beside its own options."""

    mode: Mode = setting(Mode.ENFORCE, "observe logs the policy's verdicts and goes on as if it had none.")
    timeout: float = setting(
        5.0, "The time that the policy has for one answer.", unit="seconds", minimum=0.001, maximum=_HOUR
    )
    on_error: OnError = setting(OnError.DEFER, "The verdict when the policy fails or times out.")
    listeners: tuple[str, ...] = setting(
        (), "The names of the listeners for whose clients the policy is called; empty: all."
    )


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
    source: tuple[Address, ...] = setting(
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
    refuse_networks: tuple[Network, ...] = setting(
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
        (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR),
        "The times between attempts; the last repeats.",
        unit="seconds",
        minimum=0.1,
        maximum=31 * _DAY,
        not_empty=True,
    )
    expire: float = setting(
        5 * _DAY, "The time for which delivery is tried.", unit="seconds", minimum=1, maximum=366 * _DAY
    )
    warn_after: float = setting(
        4 * _HOUR,
        "The time after which the sender gets a notice that a message is delayed; 0: never.",
        unit="seconds",
        minimum=0,
        maximum=366 * _DAY,
    )
    minimum_free: int = setting(
        256 * _MIB,
        "The free space on the spool's disk below which MAIL gets 452 4.3.1.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )
    bounce_size_limit: int = setting(
        50 * _KIB,
        "The size up to which a DSN returns the whole message, whatever RET says. Of a larger message it "
        "returns the header.",
        unit="bytes",
        minimum=0,
        maximum=2**50,
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The ``[metrics]`` table: the port for monitoring."""

    endpoint: str = setting(
        "tcp:8080:interface=127.0.0.1",
        "The endpoint of /metrics, /healthz (alive) and /readyz (would accept mail now). Empty: off.",
        check=check_optional_endpoint,
    )


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """The ``[console]`` table: the web console."""

    endpoint: str = setting(
        "tcp:8025:interface=127.0.0.1",
        "The endpoint of the web console and the admin API. Empty: off.",
        check=check_optional_endpoint,
    )
    users: str = setting(
        "/etc/elemta/console-users",
        "A file with the users of the console. Without a file the first start makes one random token, keeps "
        "it with mode 0600 in the spool directory and logs its path.",
    )


@dataclass(frozen=True, slots=True)
class PolicyServiceConfig:
    """One ``[[policy_service]]`` table: Postfix's policy delegation protocol, for the limits."""

    name: str = setting(
        REQUIRED,
        'The service\'s name in logs and metrics, and for limits per = ["listener"].',
        check=check_given_name,
        example="postfix",
    )
    endpoint: str = setting(
        REQUIRED,
        "A Twisted server endpoint: tcp, tcp6, unix, systemd or one that another package brings. The "
        "protocol has no login: only Postfix should reach it.",
        check=check_listener_endpoint,
        example="tcp:10031:interface=127.0.0.1",
    )
    charge_messages_at: ChargeMessagesAt = setting(
        ChargeMessagesAt.END_OF_MESSAGE,
        "The state at which limits of messages and bytes are charged. end_of_message: where Postfix asks in "
        "smtpd_end_of_data_restrictions. rcpt: once for each message, at its first recipient.",
    )


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """The ``[logging]`` table: the log on standard output."""

    format: LogFormat = setting(LogFormat.JSON, "json is one object a line; text is for people.")
    level: LogLevel = setting(LogLevel.INFO, "The lowest level that is logged.")


DEFAULT_LISTENER: Final = ListenerConfig(name="mx", endpoint="tcp:2525:interface=127.0.0.1")
"""The listener of a configuration that names none."""
