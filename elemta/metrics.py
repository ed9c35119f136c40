"""Every metric of Elemta, defined once, in one class for each package that counts.

A package is given its class and counts where a thing happens: ``metrics.health_checks.labels(name).inc()``.
``docs/metrics.md`` is generated from these definitions. All counting is done in the reactor thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from elemta.metric_registry import LabelledValue, MetricRegistry

#: Seconds: from a dictionary look-up to a slow disk.
FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: Seconds: things that talk to other hosts.
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Octets: from a short note to the largest attachment.
OCTETS = (1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0)
#: Things taken together.
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class NetMetrics:
    """Connections, sessions and replies."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.connections_opened = new.counter(
            "elemta_connections_opened_total", "Connections accepted.", "listener"
        )
        self.connections_open = new.gauge("elemta_connections_open", "Connections open now.", "listener")
        self.connections_refused = new.counter(
            "elemta_connections_refused_total", "Connections refused, by reason.", "listener", "reason"
        )
        self.health_checks = new.counter(
            "elemta_health_checks_total",
            "Health checks of a load balancer; no other count of connections or replies includes them.",
            "listener",
        )
        self.overloaded = new.gauge(
            "elemta_overloaded", "1 while new connections are refused since there is more to do than time."
        )
        self.session_memory = new.reported_gauge(
            "elemta_session_memory_bytes",
            "Memory of all sessions beyond that of idle ones, as Python takes it: input that waits, replies "
            "that clients did not read yet, envelopes.",
            "kind",
        )
        self.session_duration = new.histogram(
            "elemta_session_duration_seconds", "From accept to close.", SLOW, "listener"
        )
        self.replies = new.counter(
            "elemta_commands_total",
            "Replies sent, by the command that they answer and by code. The verb is empty for the greeting, "
            '"?" for an unknown command, and "." for the end of a message.',
            "verb",
            "code",
        )
        self.leniency = new.counter(
            "elemta_leniency_total",
            "Commands and messages outside of the grammar that were taken for what they can only mean, by "
            "kind; docs/leniency.md lists the kinds.",
            "kind",
        )
        self.messages_accepted = new.counter(
            "elemta_messages_accepted_total", "Messages that got their 250 after the end of data.", "listener"
        )
        self.messages_rejected = new.counter(
            "elemta_messages_rejected_total",
            "Permanent refusals (5xx), by stage and policy.",
            "stage",
            "policy",
        )
        self.messages_deferred = new.counter(
            "elemta_messages_deferred_total",
            "Temporary refusals (4xx), by stage and policy.",
            "stage",
            "policy",
        )
        self.message_size = new.histogram(
            "elemta_message_size_bytes", "Size of accepted messages.", OCTETS, "listener"
        )
        self.tls_connections = new.counter(
            "elemta_tls_connections_total", "Finished TLS handshakes, by version.", "version"
        )
        self.certificate_not_after = new.reported_gauge(
            "elemta_certificate_not_after_seconds",
            "When each certificate of the server that is in use expires, in seconds since the epoch.",
            "file",
        )
        self.auth_attempts = new.counter(
            "elemta_auth_attempts_total", "AUTH exchanges, by outcome.", "outcome"
        )

    def message_refused(self, stage: str, policy: str, *, transient: bool) -> None:
        """Count a refusal with 4xx (``transient``) or 5xx."""
        (self.messages_deferred if transient else self.messages_rejected).labels(stage, policy).inc()


class PolicyMetrics:
    """The verdicts and failures of policies."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.verdicts = new.counter(
            "elemta_policy_verdicts_total", "Verdicts that policies gave.", "policy", "stage", "verdict"
        )
        self.failures = new.counter(
            "elemta_policy_failures_total",
            "Times that a policy's on_error verdict applied: the policy raised, timed out, returned an "
            "invalid verdict, did not answer in the short time of an open breaker, or was not called because "
            "too many of its calls were unanswered.",
            "policy",
            "stage",
            "kind",
        )
        self.duration = new.histogram(
            "elemta_policy_duration_seconds",
            "The time until a policy answered.",
            FAST,
            "policy",
            "stage",
        )
        self.breaker_open = new.reported_gauge(
            "elemta_policy_breaker_open",
            "1 while Elemta waits only shortly for a policy because it answered no network, else 0.",
            "policy",
        )


class LimitMetrics:
    """The checks of limits, and where they are counted: in memory, until it is reported otherwise."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.checks = new.counter(
            "elemta_limit_checks_total",
            "Checks of limits, by outcome: admitted, refused, delayed (refused at first, and checked once "
            "more), observed (would have been refused), error, or throttled (outbound mail).",
            "limit",
            "outcome",
        )
        self.check_duration = new.histogram(
            "elemta_limit_check_duration_seconds", "The duration of checks of limits.", FAST
        )
        self.rejections = new.counter(
            "smtp_rate_limit_rejections_total",
            "Refusals by limits, under the name that Elemta's dashboards have always read.",
        )
        self.mode = new.reported_gauge(
            "elemta_limiter_mode",
            "1 for the place where limits are counted now: memory (no Valkey is configured), cluster, or "
            "local (by this node alone while Valkey is away).",
            "mode",
        )
        self.mode_changes = new.counter(
            "elemta_limiter_mode_changes_total",
            "Changes of the place where limits are counted, by place.",
            "mode",
        )
        self.breaker = new.reported_gauge(
            "elemta_limiter_breaker_state",
            "1 for the state of the breaker between this node and Valkey: closed, open (no calls), or "
            "half_open (probes succeed again).",
            "state",
        )
        self.live_nodes = new.reported_gauge(
            "elemta_live_nodes", "Nodes that were last known to be alive, this one included."
        )
        self.mode.set(1, "memory")

    def checked(self, limit: str, outcome: str, seconds: float) -> None:
        """Count one check of one limit.

        ``outcome`` is ``admitted``, ``refused``, ``delayed`` (refused for now, and checked once more),
        ``observed`` (would have been refused) or ``error``; for outbound mail ``throttled`` in place of
        ``refused``.
        """
        self.checks.labels(limit, outcome).inc()
        self.check_duration.observe(seconds)
        if outcome == "refused":
            self.rejections.inc()


class ValkeyMetrics:
    """Commands to Valkey that failed, and what Valkey reports of itself."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.failures = new.counter(
            "elemta_valkey_failures_total", "Commands to Valkey that failed, by kind.", "kind"
        )
        self.up = new.reported_gauge(
            "valkey_up", "1 while Valkey answers in time, else 0; of a cluster, while every primary does."
        )
        self.commands_processed = new.reported_counter(
            "valkey_commands_processed_total", "Commands that Valkey processed, from all clients."
        )
        self.used_memory = new.reported_gauge(
            "valkey_used_memory_bytes", "Memory that Valkey uses; of a cluster, its primaries."
        )
        self.maxmemory = new.reported_gauge(
            "valkey_maxmemory_bytes", "Memory that Valkey may use; 0 means no bound."
        )
        self.keys = new.reported_gauge("valkey_db0_keys", "Keys in Valkey's database 0.")
        self.evicted_keys = new.reported_counter(
            "valkey_evicted_keys_total",
            "Keys that Valkey evicted because its memory was full: each was a limit that is reset.",
        )
        self.connected_clients = new.reported_gauge(
            "valkey_connected_clients", "Connections to Valkey, of all clients."
        )


class SpoolMetrics:
    """The spool's commits and failures, and what it holds."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.messages = new.reported_gauge(
            "elemta_spool_messages",
            "Messages in the spool, by state: active (never tried), deferred, hold, quarantine, and "
            "undeliverable (notices that failed and whose sender is <>).",
            "state",
        )
        self.octets = new.reported_gauge(
            "elemta_spool_bytes", "Octets of the messages in the spool, by state.", "state"
        )
        self.oldest_age = new.reported_gauge(
            "elemta_spool_oldest_message_age_seconds",
            "Age of the oldest message in the spool that is no undeliverable notice; 0 where there is none.",
        )
        self.free = new.reported_gauge("elemta_spool_free_bytes", "Free space on the spool's disk.")
        self.healthy = new.reported_gauge(
            "elemta_spool_healthy", "1 while the spool's disk can be trusted, 0 after it failed."
        )
        self.commit_duration = new.histogram(
            "elemta_spool_commit_duration_seconds",
            "From the start of a commit until it is on stable storage.",
            FAST,
        )
        self.commit_messages = new.histogram(
            "elemta_spool_commit_messages", "Messages that shared one commit, and so one sync.", COUNTS
        )
        self.undeliverable = new.reported_gauge(
            "elemta_spool_undeliverable_bytes",
            "Space that undeliverable notices on hold take: at most a tenth of the disk, the oldest go "
            "first.",
        )
        self.holds_ended = new.counter(
            "elemta_spool_holds_ended_total",
            "Holds that ended: removed or returned to the sender after their time, or over_share (the oldest "
            "undeliverable notices, when all took too much of the disk).",
            "reason",
        )
        self.failures = new.counter("elemta_spool_failures_total", "Failed disk operations, by kind.", "kind")


class HistoryMetrics:
    """The history of messages: what it has, and what it could not keep."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.messages = new.reported_gauge("elemta_history_messages", "Messages in the history.")
        self.octets = new.reported_gauge(
            "elemta_history_bytes", "Space that the history takes on the spool's disk."
        )
        self.oldest_age = new.reported_gauge(
            "elemta_history_oldest_age_seconds",
            "Age of the oldest part of the history; 0 when there is none.",
        )
        self.dropped = new.counter(
            "elemta_history_dropped_total",
            "What the history does not have: events that could not be written (disk), came faster than they "
            "are written (backlog) or can't be kept (fault), and messages and events for which there is no "
            "space (space).",
            "reason",
        )


class DeliveryMetrics:
    """Delivery attempts, and the connections that they take."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.attempts = new.counter(
            "elemta_delivery_attempts_total",
            "Delivery attempts, one for each recipient, by the route's target as configured and by outcome.",
            "route",
            "outcome",
        )
        self.duration = new.histogram(
            "elemta_delivery_duration_seconds",
            "The duration of delivery attempts.",
            SLOW,
            "route",
            "outcome",
        )
        self.connections = new.counter(
            "elemta_delivery_connections_total",
            "Connections to next hops, by outcome: opened or reused for a message, or failed.",
            "outcome",
        )
        self.connections_open = new.gauge(
            "elemta_delivery_connections_open",
            "Connections to next hops that are open now, idle ones included.",
        )
        self.tls = new.counter(
            "elemta_delivery_tls_total",
            "TLS handshakes with next hops, by negotiated version, or failed.",
            "outcome",
        )
        self.destinations = new.reported_gauge(
            "elemta_delivery_destinations",
            "Destinations with mail in the queue, by state: those that may be tried, those that are down, "
            "and those that an operator paused.",
            "state",
        )


class DnsMetrics:
    """The questions of policies and deliveries to the resolver."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.questions = new.counter(
            "elemta_dns_questions_total",
            "Questions that policies and deliveries asked, by record type and outcome: answered, empty (the "
            "name has no such record), nonexistent (there is no such name), or failed.",
            "type",
            "outcome",
        )
        self.cache_hits = new.counter(
            "elemta_dns_cache_hits_total", "Questions that the cache answered, failures included."
        )
        self.duration = new.histogram(
            "elemta_dns_question_duration_seconds",
            "The time until a question that the cache could not answer had its outcome.",
            SLOW,
        )


class PolicyServiceMetrics:
    """Requests of Postfix's policy delegation protocol."""

    def __init__(self, registry: MetricRegistry | None = None) -> None:
        new = registry or MetricRegistry()
        self.requests = new.counter(
            "elemta_policy_service_requests_total",
            "Requests answered, by the kind of answer: dunno, defer, reject, disconnect.",
            "service",
            "action",
        )
        self.refused_requests = new.counter(
            "elemta_policy_service_refused_total",
            "Connections closed for a request that is too long, too slow or no request.",
            "service",
        )
        self.connections = new.gauge(
            "elemta_policy_service_connections_open", "Connections open now.", "service"
        )
        self.seconds = new.histogram(
            "elemta_policy_service_duration_seconds", "From a whole request to its answer.", FAST, "service"
        )


class Metrics:
    """All metrics of one node, and the registry that collects them."""

    def __init__(self, node_id: str = "") -> None:
        new = self.registry = MetricRegistry(node_id)
        self.build_info = new.reported_gauge(
            "elemta_build_info", "Always 1; the labels have the versions.", "version", "python", "twisted"
        )
        self.net = NetMetrics(new)
        self.policy = PolicyMetrics(new)
        self.limits = LimitMetrics(new)
        self.valkey = ValkeyMetrics(new)
        self.spool = SpoolMetrics(new)
        self.history = HistoryMetrics(new)
        self.delivery = DeliveryMetrics(new)
        self.dns = DnsMetrics(new)
        self.policy_service = PolicyServiceMetrics(new)
        self.loop_lag = new.histogram(
            "elemta_event_loop_lag_seconds", "The delay between the time of a timer and its call.", FAST
        )
        self.poll_failures = new.counter(
            "elemta_metrics_poll_failures_total",
            "Figures that were not available in time for a scrape.",
            "source",
        )
        self.worker_scrapes_missed = new.counter(
            "elemta_worker_scrapes_missed_total",
            "Scrapes that a worker did not answer in time; its gauges are left out of them.",
            "worker",
        )


def one_of(words: Iterable[str], current: str) -> list[LabelledValue]:
    """1 for the current word, and 0 for each other."""
    return [((word,), int(word == current)) for word in words]
