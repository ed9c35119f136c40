"""Every metric of Elemta, declared once. The instruments and ``docs/metrics.md`` are made from these."""

from __future__ import annotations

from elemta.ops.instruments import COUNTS, FAST, OCTETS, SLOW, MetricDefinition, MetricType


def _counter(name: str, words: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, MetricType.COUNTER, words, labels)


def _gauge(name: str, words: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, MetricType.GAUGE, words, labels)


def _histogram(name: str, words: str, bounds: tuple[float, ...], *labels: str) -> MetricDefinition:
    return MetricDefinition(name, MetricType.HISTOGRAM, words, labels, bounds)


BUILD_INFO = _gauge(
    "elemta_build_info", "Always 1; the labels have the versions.", "version", "python", "twisted"
)

CONNECTIONS_OPENED = _counter("elemta_connections_opened_total", "Connections accepted.", "listener")
CONNECTIONS_OPEN = _gauge("elemta_connections_open", "Connections open now.", "listener")
CONNECTIONS_REFUSED = _counter(
    "elemta_connections_refused_total", "Connections refused, by reason.", "listener", "reason"
)
HEALTH_CHECKS = _counter(
    "elemta_health_checks_total",
    "Health checks of a load balancer; no other count of connections or replies includes them.",
    "listener",
)
SESSION_MEMORY = _gauge(
    "elemta_session_memory_bytes",
    "Memory of all sessions beyond that of idle ones, as Python takes it: input that waits, replies that "
    "clients did not read yet, envelopes.",
    "kind",
)
SESSION_DURATION = _histogram("elemta_session_duration_seconds", "From accept to close.", SLOW, "listener")
COMMANDS = _counter(
    "elemta_commands_total",
    "Replies sent, by the command that they answer and by code. The verb is empty for the greeting, "
    '"?" for an unknown command, and "." for the end of a message.',
    "verb",
    "code",
)
MESSAGES_ACCEPTED = _counter(
    "elemta_messages_accepted_total", "Messages that got their 250 after the end of data.", "listener"
)
MESSAGES_REJECTED = _counter(
    "elemta_messages_rejected_total", "Permanent refusals (5xx), by stage and policy.", "stage", "policy"
)
MESSAGES_DEFERRED = _counter(
    "elemta_messages_deferred_total", "Temporary refusals (4xx), by stage and policy.", "stage", "policy"
)
MESSAGE_SIZE = _histogram("elemta_message_size_bytes", "Size of accepted messages.", OCTETS, "listener")
TLS_CONNECTIONS = _counter("elemta_tls_connections_total", "Finished TLS handshakes, by version.", "version")
AUTH_ATTEMPTS = _counter("elemta_auth_attempts_total", "AUTH exchanges, by outcome.", "outcome")

POLICY_VERDICTS = _counter(
    "elemta_policy_verdicts_total", "Verdicts that policies gave.", "policy", "stage", "verdict"
)
POLICY_FAILURES = _counter(
    "elemta_policy_failures_total",
    "Times that a policy's on_error verdict applied: the policy raised, timed out, returned an invalid "
    "verdict, did not answer in the short time of an open breaker, or was not called because too many of its "
    "calls were unanswered.",
    "policy",
    "stage",
    "kind",
)
POLICY_DURATION = _histogram(
    "elemta_policy_duration_seconds", "The time until a policy answered.", FAST, "policy", "stage"
)

POLICY_BREAKER_OPEN = _gauge(
    "elemta_policy_breaker_open",
    "1 while Elemta waits only shortly for a policy because it answered no network, else 0.",
    "policy",
)

LIMIT_CHECKS = _counter(
    "elemta_limit_checks_total",
    "Checks of limits, by outcome: admitted, refused, delayed (refused at first, and checked once more), "
    "observed (would have been refused), error, or throttled (outbound mail).",
    "limit",
    "outcome",
)
LIMIT_CHECK_DURATION = _histogram(
    "elemta_limit_check_duration_seconds", "The duration of checks of limits.", FAST
)
RATE_LIMIT_REJECTIONS = _counter(
    "smtp_rate_limit_rejections_total",
    "Refusals by limits, under the name that Elemta's dashboards have always read.",
)
LIMITER_MODE = _gauge(
    "elemta_limiter_mode",
    "1 for the place where limits are counted now: memory (no Valkey is configured), cluster, or local (by "
    "this node alone while Valkey is away).",
    "mode",
)
LIMITER_MODE_CHANGES = _counter(
    "elemta_limiter_mode_changes_total", "Changes of the place where limits are counted, by place.", "mode"
)
LIMITER_BREAKER = _gauge(
    "elemta_limiter_breaker_state",
    "1 for the state of the breaker between this node and Valkey: closed, open (no calls), or half_open "
    "(probes succeed again).",
    "state",
)
LIVE_NODES = _gauge("elemta_live_nodes", "Nodes that were last known to be alive, this one included.")
VALKEY_FAILURES = _counter("elemta_valkey_failures_total", "Commands to Valkey that failed, by kind.", "kind")
VALKEY_UP = _gauge(
    "valkey_up", "1 while Valkey answers in time, else 0; of a cluster, while every primary does."
)
VALKEY_COMMANDS = _counter(
    "valkey_commands_processed_total", "Commands that Valkey processed, from all clients."
)
VALKEY_MEMORY = _gauge("valkey_used_memory_bytes", "Memory that Valkey uses; of a cluster, its primaries.")
VALKEY_MAXMEMORY = _gauge("valkey_maxmemory_bytes", "Memory that Valkey may use; 0 means no bound.")
VALKEY_KEYS = _gauge("valkey_db0_keys", "Keys in Valkey's database 0.")
VALKEY_EVICTED = _counter(
    "valkey_evicted_keys_total",
    "Keys that Valkey evicted because its memory was full: each was a limit that is reset.",
)
VALKEY_CLIENTS = _gauge("valkey_connected_clients", "Connections to Valkey, of all clients.")

SPOOL_MESSAGES = _gauge("elemta_spool_messages", "Messages in the spool, by state.", "state")
SPOOL_BYTES = _gauge("elemta_spool_bytes", "Octets of the messages in the spool, by state.", "state")
SPOOL_FREE = _gauge("elemta_spool_free_bytes", "Free space on the spool's disk.")
SPOOL_HEALTHY = _gauge("elemta_spool_healthy", "1 while the spool's disk can be trusted, 0 after it failed.")
SPOOL_OLDEST_AGE = _gauge(
    "elemta_spool_oldest_message_age_seconds", "Age of the oldest message in the spool; 0 when it is empty."
)
SPOOL_COMMIT_DURATION = _histogram(
    "elemta_spool_commit_duration_seconds", "From the start of a commit until it is on stable storage.", FAST
)
SPOOL_COMMIT_MESSAGES = _histogram(
    "elemta_spool_commit_messages", "Messages that shared one commit, and so one sync.", COUNTS
)
SPOOL_UNDELIVERABLE = _gauge(
    "elemta_spool_undeliverable_bytes",
    "Space that undeliverable notices on hold take: at most a tenth of the disk, the oldest go first.",
)
HOLDS_ENDED = _counter(
    "elemta_spool_holds_ended_total",
    "Holds that ended: removed or returned to the sender after their time, or over_share (the oldest "
    "undeliverable notices, when all took too much of the disk).",
    "reason",
)
SPOOL_FAILURES = _counter("elemta_spool_failures_total", "Failed disk operations, by kind.", "kind")

DELIVERY_ATTEMPTS = _counter(
    "elemta_delivery_attempts_total",
    "Delivery attempts, one for each recipient, by the route's target as configured and by outcome.",
    "route",
    "outcome",
)
DELIVERY_DURATION = _histogram(
    "elemta_delivery_duration_seconds", "The duration of delivery attempts.", SLOW, "route", "outcome"
)
DELIVERY_CONNECTIONS = _counter(
    "elemta_delivery_connections_total",
    "Connections to next hops, by outcome: opened or reused for a message, or failed.",
    "outcome",
)
DELIVERY_CONNECTIONS_OPEN = _gauge(
    "elemta_delivery_connections_open",
    "Connections to next hops that are open now, idle ones included.",
)
DELIVERY_TLS = _counter(
    "elemta_delivery_tls_total",
    "TLS handshakes with next hops, by negotiated version, or failed.",
    "outcome",
)
DELIVERY_DESTINATIONS = _gauge(
    "elemta_delivery_destinations",
    "Destinations with mail in the queue, by state: those that may be tried, and those that are down.",
    "state",
)

LOOP_LAG = _histogram(
    "elemta_event_loop_lag_seconds", "The delay between the time of a timer and its call.", FAST
)
POLL_FAILURES = _counter(
    "elemta_metrics_poll_failures_total",
    "Figures that were not available in time for a scrape.",
    "source",
)

ALL = (
    BUILD_INFO,
    CONNECTIONS_OPENED,
    CONNECTIONS_OPEN,
    CONNECTIONS_REFUSED,
    HEALTH_CHECKS,
    SESSION_DURATION,
    COMMANDS,
    MESSAGES_ACCEPTED,
    MESSAGES_REJECTED,
    MESSAGES_DEFERRED,
    MESSAGE_SIZE,
    TLS_CONNECTIONS,
    AUTH_ATTEMPTS,
    POLICY_VERDICTS,
    POLICY_FAILURES,
    POLICY_DURATION,
    POLICY_BREAKER_OPEN,
    LIMIT_CHECKS,
    LIMIT_CHECK_DURATION,
    RATE_LIMIT_REJECTIONS,
    LIMITER_MODE,
    LIMITER_MODE_CHANGES,
    LIMITER_BREAKER,
    LIVE_NODES,
    VALKEY_FAILURES,
    VALKEY_UP,
    VALKEY_COMMANDS,
    VALKEY_MEMORY,
    VALKEY_MAXMEMORY,
    VALKEY_KEYS,
    VALKEY_EVICTED,
    VALKEY_CLIENTS,
    SPOOL_MESSAGES,
    SPOOL_BYTES,
    SPOOL_OLDEST_AGE,
    SPOOL_FREE,
    SPOOL_HEALTHY,
    SPOOL_COMMIT_DURATION,
    SPOOL_COMMIT_MESSAGES,
    SPOOL_UNDELIVERABLE,
    HOLDS_ENDED,
    SPOOL_FAILURES,
    DELIVERY_ATTEMPTS,
    DELIVERY_DURATION,
    DELIVERY_CONNECTIONS,
    DELIVERY_CONNECTIONS_OPEN,
    DELIVERY_TLS,
    DELIVERY_DESTINATIONS,
    LOOP_LAG,
    POLL_FAILURES,
)
