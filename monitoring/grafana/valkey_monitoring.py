"""The dashboard of what the fleet counts in Valkey."""

from __future__ import annotations

from panels import BY_NODE, NODE, Dashboard, Panel, Query, Row, gauge, quantiles, quiet, rate, stat

VALKEY = Dashboard(
    "valkey-monitoring",
    "Elemta: Valkey and limits",
    (
        Row(
            "Valkey",
            (
                stat(
                    "Up",
                    "1 while any node gets answers.",
                    gauge("valkey_up", how="max"),
                    "bool_on_off",
                ),
                stat(
                    "Commands",
                    "A second, from all clients, as the best informed node knows.",
                    f"max(rate(valkey_commands_processed_total{{{NODE}}}[$__rate_interval]))",
                    "ops",
                ),
                stat("Memory", "What Valkey uses.", gauge("valkey_used_memory_bytes", how="max"), "bytes"),
                stat(
                    "Tracked keys",
                    "Keys in database 0: each is a client, sender, … that something counts for.",
                    gauge("valkey_db0_keys", how="max"),
                ),
                stat(
                    "Refused by limits",
                    "Refusals a second, over all nodes.",
                    rate("smtp_rate_limit_rejections_total"),
                    "reqps",
                ),
                stat(
                    "Nodes that live",
                    "As the nodes themselves know by their heartbeats; the lowest answer.",
                    gauge("elemta_live_nodes", how="min"),
                ),
                Panel(
                    "Up, as each node sees it",
                    "1 while it answers; of a cluster, while every primary does.",
                    (Query(gauge("valkey_up", "node_id", how="min"), BY_NODE),),
                ),
                Panel(
                    "Commands a second",
                    "From all clients; of a cluster, all primaries together.",
                    (
                        Query(
                            f"max(rate(valkey_commands_processed_total{{{NODE}}}[$__rate_interval]))",
                            "commands",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Memory used and allowed",
                    "The bound is maxmemory; 0 means no bound.",
                    (
                        Query(gauge("valkey_used_memory_bytes", how="max"), "used"),
                        Query(gauge("valkey_maxmemory_bytes", how="max"), "maxmemory"),
                    ),
                    "bytes",
                ),
                Panel(
                    "Tracked keys",
                    "Keys in database 0.",
                    (Query(gauge("valkey_db0_keys", how="max"), "keys"),),
                ),
                Panel(
                    "Evicted keys",
                    "A second. Each is a limit that was reset: must be 0, by maxmemory-policy noeviction.",
                    (
                        Query(
                            f"max(rate(valkey_evicted_keys_total{{{NODE}}}[$__rate_interval]))",
                            "evicted",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Connections to Valkey",
                    "Connections of all clients.",
                    (Query(gauge("valkey_connected_clients", how="max"), "connections"),),
                ),
            ),
        ),
        Row(
            "Limits",
            (
                Panel(
                    "Rejections, by node",
                    "What limits refused, a second.",
                    (Query(rate("smtp_rate_limit_rejections_total", "node_id"), BY_NODE),),
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Checks, by limit",
                    "Checks a second, by outcome.",
                    (Query(rate("elemta_limit_checks_total", "limit", "outcome"), "{{limit}}: {{outcome}}"),),
                    "ops",
                ),
                quantiles(
                    "How long checks take",
                    "From the question to the answer. No session waits for longer than valkey_deadline.",
                    "elemta_limit_check_duration_seconds",
                ),
                Panel(
                    "Nodes that count together, and alone",
                    "Nodes by where they count: in the cluster, or local while Valkey is away.",
                    (Query(gauge("elemta_limiter_mode", "mode"), "{{mode}}"),),
                    stacked=True,
                ),
                Panel(
                    "Changes of where limits are counted",
                    "In ten minutes.",
                    (
                        Query(
                            "sum by (node_id, mode) "
                            f"(increase(elemta_limiter_mode_changes_total{{{NODE}}}[10m]))",
                            "{{node_id}} to {{mode}}",
                        ),
                    ),
                ),
                Panel(
                    "Breaker",
                    "Nodes by the state of their breaker.",
                    (Query(gauge("elemta_limiter_breaker_state", "state"), "{{state}}"),),
                    stacked=True,
                ),
                Panel(
                    "Calls that failed",
                    "A second, by kind; docs/valkey.md says what each is.",
                    (
                        Query(
                            quiet("elemta_valkey_failures_total", "node_id", "kind"), "{{node_id}}: {{kind}}"
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Nodes that know of each other",
                    "Must be the same number everywhere: limits are divided by it while Valkey is away.",
                    (Query(gauge("elemta_live_nodes", "node_id", how="min"), BY_NODE),),
                ),
                Panel(
                    "Commands of Valkey for each check",
                    "A check is one script call at most and what that calls; heartbeats and INFO on top.",
                    (
                        Query(
                            f"max(rate(valkey_commands_processed_total{{{NODE}}}[$__rate_interval]))"
                            f" / (sum(rate(elemta_limit_checks_total{{{NODE}}}[$__rate_interval])) > 0)",
                            "commands a check",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
