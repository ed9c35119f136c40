"""The tables of what receives mail: this host, its listeners, their TLS, domains, users and logins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from elemta.config.choices import BareNewline, EarlyTalkers, ListenerTLS, Role, Senders, TLSVersion
from elemta.config.ciphers import check_cipher_list
from elemta.config.endpoint import check_listener_endpoint
from elemta.config.names import check_delimiter, check_domain, check_given_name, check_hostname, check_node_id
from elemta.config.schema.units import DAY, MIB, MINUTE
from elemta.config.setting import REQUIRED, setting
from elemta.config.values import check_optional_rate
from elemta.ip import IPNetwork


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
        1,
        "Processes that receive and deliver mail, behind one more that keeps them; 0 is one per core. With 1 "
        "there is one process and no other.",
        unit="processes",
        minimum=0,
        maximum=256,
    )
    max_message_size: int = setting(
        50 * MIB,
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
        5 * MINUTE,
        "The time that a client has for a whole command line.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    data_timeout: float = setting(
        10 * MINUTE,
        "The time that a client may pause within a message. Its longest pause apart, a message also has a "
        "minimum rate: 500 octets a second on average after the first 10 seconds.",
        unit="seconds",
        minimum=0.1,
        maximum=DAY,
    )
    shutdown_grace: float = setting(
        30.0,
        "The time that a session within a message has to finish it when the server stops.",
        unit="seconds",
        minimum=0,
        maximum=DAY,
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
    proxy_protocol_from: tuple[IPNetwork, ...] = setting(
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
    relay_from: tuple[IPNetwork, ...] = setting((), "Networks whose clients may send to any domain.")
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


DEFAULT_LISTENER: Final = ListenerConfig(name="mx", endpoint="tcp:2525:interface=127.0.0.1")
"""The listener of a configuration that names none."""
