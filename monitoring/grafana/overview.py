"""The dashboard of the fleet: mail in, policies, queue, mail out, processes."""

from __future__ import annotations

from panels import BY_NODE, NODE, Dashboard, Panel, Query, Row, gauge, quantile, quantiles, quiet, rate, stat

OVERVIEW = Dashboard(
    "elemta-overview",
    "Elemta: overview",
    (
        Row(
            "The fleet",
            (
                stat("Nodes that answer", "Nodes whose metrics Prometheus gets.", 'sum(up{job="elemta"})'),
                stat(
                    "Messages accepted",
                    "Messages a second that got their 250.",
                    rate("elemta_messages_accepted_total"),
                    "mps",
                ),
                stat(
                    "Connections open",
                    "Sessions with clients, over all nodes.",
                    gauge("elemta_connections_open"),
                ),
                stat(
                    "In the queue",
                    "Messages that wait for delivery or for their next attempt, without those on hold.",
                    gauge("elemta_spool_messages", where=', state=~"active|deferred"'),
                ),
                stat(
                    "Oldest message",
                    "Age of the oldest message in any queue: held ones included, undeliverable notices not.",
                    gauge("elemta_spool_oldest_message_age_seconds", how="max"),
                    "s",
                ),
                stat(
                    "Nodes that count in Valkey",
                    "The others count by themselves: while Valkey is away, or where none is configured.",
                    gauge("elemta_limiter_mode", where=', mode="cluster"'),
                ),
            ),
        ),
        Row(
            "Mail in",
            (
                Panel(
                    "Messages accepted, by node",
                    "Messages a second that got their 250.",
                    (Query(rate("elemta_messages_accepted_total", "node_id"), BY_NODE),),
                    "mps",
                    stacked=True,
                ),
                Panel(
                    "Refused for good",
                    "5xx a second, by the policy that refused and the stage.",
                    (
                        Query(
                            rate("elemta_messages_rejected_total", "policy", "stage"),
                            "{{policy}} at {{stage}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Refused for now",
                    "4xx a second, by the policy that refused and the stage.",
                    (
                        Query(
                            rate("elemta_messages_deferred_total", "policy", "stage"),
                            "{{policy}} at {{stage}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Connections open, by node",
                    "Sessions of each node, as a load balancer spreads them.",
                    (Query(gauge("elemta_connections_open", "node_id"), BY_NODE),),
                ),
                Panel(
                    "Connections opened and refused",
                    "Connections a second; refused at a limit of connections, or by a node that drains.",
                    (
                        Query(rate("elemta_connections_opened_total", "listener"), "{{listener}} opened"),
                        Query(
                            rate("elemta_connections_refused_total", "listener", "reason"),
                            "{{listener}} refused: {{reason}}",
                        ),
                    ),
                    "cps",
                ),
                quantiles(
                    "How long sessions last", "From accept to close.", "elemta_session_duration_seconds"
                ),
                Panel(
                    "Replies, by code",
                    "Replies a second.",
                    (Query(rate("elemta_commands_total", "code"), "{{code}}"),),
                    "reqps",
                ),
                quantiles("Size of messages", "Of those accepted.", "elemta_message_size_bytes", "bytes"),
                Panel(
                    "TLS and logins",
                    "Handshakes a second by version, and AUTH by outcome.",
                    (
                        Query(rate("elemta_tls_connections_total", "version"), "{{version}}"),
                        Query(rate("elemta_auth_attempts_total", "outcome"), "AUTH: {{outcome}}"),
                    ),
                    "ops",
                ),
            ),
        ),
        Row(
            "Policies and limits",
            (
                Panel(
                    "How long policies take (p99)",
                    "Until the verdict is there.",
                    (Query(quantile(0.99, "elemta_policy_duration_seconds", "policy"), "{{policy}}"),),
                    "s",
                ),
                Panel(
                    "Verdicts",
                    "Verdicts a second.",
                    (
                        Query(
                            rate("elemta_policy_verdicts_total", "policy", "verdict"),
                            "{{policy}}: {{verdict}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Policies that fail",
                    "on_error verdicts a second; 1 for a policy that answers no client.",
                    (
                        Query(
                            quiet("elemta_policy_failures_total", "policy", "kind"), "{{policy}}: {{kind}}"
                        ),
                        Query(
                            gauge("elemta_policy_breaker_open", "policy", how="max"),
                            "{{policy}} answers no client",
                        ),
                    ),
                ),
                Panel(
                    "Checks of limits",
                    "Checks a second, by limit and outcome.",
                    (Query(rate("elemta_limit_checks_total", "limit", "outcome"), "{{limit}}: {{outcome}}"),),
                    "ops",
                ),
                quantiles(
                    "How long checks of limits take",
                    "Valkey included.",
                    "elemta_limit_check_duration_seconds",
                ),
                Panel(
                    "Refused by limits, by node",
                    "Refusals a second.",
                    (Query(rate("smtp_rate_limit_rejections_total", "node_id"), BY_NODE),),
                    "reqps",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Queue",
            (
                Panel(
                    "Messages, by state",
                    "In the queues of all nodes.",
                    (Query(gauge("elemta_spool_messages", "state"), "{{state}}"),),
                    stacked=True,
                ),
                Panel(
                    "Messages, by node",
                    "One that grows while the others do not is cut off from its next hops.",
                    (Query(gauge("elemta_spool_messages", "node_id"), BY_NODE),),
                ),
                Panel(
                    "Oldest message, by node",
                    "Held ones included, undeliverable notices not.",
                    (Query(gauge("elemta_spool_oldest_message_age_seconds", "node_id", how="max"), BY_NODE),),
                    "s",
                ),
                quantiles(
                    "How long a commit takes",
                    "From its start until it is on stable storage.",
                    "elemta_spool_commit_duration_seconds",
                ),
                quantiles(
                    "Messages in one commit",
                    "They share one sync. More of them mean more load, not a failure.",
                    "elemta_spool_commit_messages",
                    "short",
                ),
                Panel(
                    "Space on the disk",
                    "Free octets where the spool is, and what the spool holds.",
                    (
                        Query(gauge("elemta_spool_free_bytes", "node_id", how="min"), "{{node_id}} free"),
                        Query(gauge("elemta_spool_bytes", "node_id"), "{{node_id}} used by mail"),
                    ),
                    "bytes",
                ),
                Panel(
                    "Disks that fail",
                    "Failures a second, and nodes that do not trust their disk.",
                    (
                        Query(
                            quiet("elemta_spool_failures_total", "node_id", "kind"), "{{node_id}}: {{kind}}"
                        ),
                        Query(
                            f"count({gauge('elemta_spool_healthy', 'node_id', how='min')} == 0) or vector(0)",
                            "nodes with a disk that failed",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Mail out",
            (
                Panel(
                    "Attempts",
                    "Attempts a second, one for each recipient, by outcome.",
                    (Query(rate("elemta_delivery_attempts_total", "outcome"), "{{outcome}}"),),
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Attempts that do not deliver, by route",
                    "Deferred and failed, a second.",
                    (
                        Query(
                            rate(
                                "elemta_delivery_attempts_total",
                                "route",
                                "outcome",
                                where=', outcome!="delivered"',
                            ),
                            "{{route}} {{outcome}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "How long attempts take (p95), by route",
                    "From the start of the attempt to its outcome.",
                    (Query(quantile(0.95, "elemta_delivery_duration_seconds", "route"), "{{route}}"),),
                    "s",
                ),
                Panel(
                    "Connections to next hops",
                    "Open now, and a second: opened, reused, or failed to be made.",
                    (
                        Query(gauge("elemta_delivery_connections_open"), "open"),
                        Query(rate("elemta_delivery_connections_total", "outcome"), "{{outcome}}, a second"),
                    ),
                ),
                Panel(
                    "Destinations with mail",
                    "Those that may be tried, and those that are down and wait.",
                    (Query(gauge("elemta_delivery_destinations", "state"), "{{state}}"),),
                ),
                Panel(
                    "TLS to next hops",
                    "Handshakes a second, by the version that was agreed on, or failed.",
                    (Query(rate("elemta_delivery_tls_total", "outcome"), "{{outcome}}"),),
                    "ops",
                ),
            ),
        ),
        Row(
            "The processes",
            (
                Panel(
                    "CPU",
                    "Cores used. The event loop has one; the disk's thread comes on top.",
                    (Query(rate("elemta_process_cpu_seconds_total", "node_id"), BY_NODE),),
                    "percentunit",
                    width=6,
                ),
                Panel(
                    "Lateness of the event loop (p99)",
                    "The delay of a timer. Near 0 the node has capacity left.",
                    (Query(quantile(0.99, "elemta_event_loop_lag_seconds", "node_id"), BY_NODE),),
                    "s",
                    width=6,
                ),
                Panel(
                    "Memory",
                    "Resident.",
                    (Query(gauge("elemta_process_resident_memory_bytes", "node_id"), BY_NODE),),
                    "bytes",
                    width=6,
                ),
                Panel(
                    "Certificates: time left",
                    "Until each certificate expires; below 0 it has. A reload counts a renewed one.",
                    (
                        Query(
                            f"min by (file) (elemta_certificate_not_after_seconds{{{NODE}}}) - time()",
                            "{{file}}",
                        ),
                    ),
                    "s",
                    width=6,
                ),
                Panel(
                    "File descriptors",
                    "As a share of what the process may have.",
                    (
                        Query(
                            f"elemta_process_open_fds{{{NODE}}} / elemta_process_max_fds{{{NODE}}}", BY_NODE
                        ),
                    ),
                    "percentunit",
                    width=6,
                ),
            ),
        ),
    ),
)
