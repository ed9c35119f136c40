"""The tables of what limits and decides: resources, limits, policies and the policy service."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.config.choices import (
    ChargeMessagesAt,
    Counts,
    Identity,
    Mode,
    OnError,
    OnExceed,
    Scope,
    WhenValkeyIsDown,
)
from elemta.config.endpoint import check_listener_endpoint
from elemta.config.names import check_given_name
from elemta.config.schema.units import DAY, HOUR, MINUTE
from elemta.config.setting import REQUIRED, setting
from elemta.config.valkey_url import check_key_prefix, check_valkey_url
from elemta.config.values import Rate


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
        60, "The window of max_requests_per_window.", unit="seconds", minimum=1, maximum=31 * DAY
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
        example=(Rate(100, MINUTE), Rate(1000, HOUR)),
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
class LimitSharingConfig:
    """The ``[limits]`` table: the limits that ``elemtactl limits push`` gives to the whole fleet."""

    shared: bool = setting(
        True,
        "Limits that were pushed to the fleet hold in place of this file's [[limit]] tables; false: only "
        "this file's do. Without valkey_url there is no fleet.",
    )


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
        5.0, "The time that the policy has for one answer.", unit="seconds", minimum=0.001, maximum=HOUR
    )
    on_error: OnError = setting(OnError.DEFER, "The verdict when the policy fails or times out.")
    listeners: tuple[str, ...] = setting(
        (), "The names of the listeners for whose clients the policy is called; empty: all."
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
