"""Metrics: what is counted comes out, as Prometheus reads it, under bounded labels."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.address import Address
from elemta.errors import SpoolError, ValkeyFailure
from elemta.limits.failover import BreakerState, CountingMode, ModeObserver
from elemta.net.observer import NetObserver
from elemta.ops import metric_definitions
from elemta.ops.metrics import POLL_DEADLINE, LoopLag, Metrics
from elemta.ops.plugin_metrics import MAX_CHILDREN
from elemta.outcome import Outcome, Status
from elemta.policy import PolicyObserver
from elemta.spool import MessageState, SpoolStats
from elemta.valkey import ValkeyInfo, ValkeyObserver


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and its labels but for node_id."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "node_id"))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_what_the_listeners_tell_is_counted() -> None:
    metrics = Metrics("mx1")
    net: NetObserver = metrics.net
    net.connection_opened("mx")
    net.connection_opened("mx")
    net.connection_closed("mx", 0.2)
    net.connection_refused("mx", "max_connections")
    net.health_check("mx")
    net.replied("MAIL", 250)
    net.replied("MAIL", 250)
    net.replied("?", 500)
    net.message_accepted("mx", 2000)
    net.message_refused("rcpt", "relay", False)
    net.message_refused("rcpt", "limits", True)
    net.tls_started("TLSv1.3")
    net.authenticated("refused")
    assert value(metrics, "elemta_connections_opened_total", listener="mx") == 2
    assert value(metrics, "elemta_connections_open", listener="mx") == 1
    assert value(metrics, "elemta_connections_refused_total", listener="mx", reason="max_connections") == 1
    assert value(metrics, "elemta_health_checks_total", listener="mx") == 1
    assert value(metrics, "elemta_session_duration_seconds_count", listener="mx") == 1
    assert value(metrics, "elemta_session_duration_seconds_sum", listener="mx") == 0.2
    assert value(metrics, "elemta_commands_total", verb="MAIL", code="250") == 2
    assert value(metrics, "elemta_commands_total", verb="?", code="500") == 1
    assert value(metrics, "elemta_messages_accepted_total", listener="mx") == 1
    assert value(metrics, "elemta_message_size_bytes_bucket", listener="mx", le="1024.0") == 0
    assert value(metrics, "elemta_message_size_bytes_bucket", listener="mx", le="4096.0") == 1
    assert value(metrics, "elemta_messages_rejected_total", stage="rcpt", policy="relay") == 1
    assert value(metrics, "elemta_messages_deferred_total", stage="rcpt", policy="limits") == 1
    assert value(metrics, "elemta_tls_connections_total", version="TLSv1.3") == 1
    assert value(metrics, "elemta_auth_attempts_total", outcome="refused") == 1


def test_what_the_chain_tells_is_counted_by_policy_and_stage() -> None:
    metrics = Metrics("mx1")
    chain: PolicyObserver = metrics.chain
    chain.asked("relay", "rcpt", "reject", 0.00002)
    chain.failed("greylist", "mail", "timeout")
    assert value(metrics, "elemta_policy_verdicts_total", policy="relay", stage="rcpt", verdict="reject") == 1
    assert value(metrics, "elemta_policy_duration_seconds_count", policy="relay", stage="rcpt") == 1
    assert (
        value(metrics, "elemta_policy_failures_total", policy="greylist", stage="mail", kind="timeout") == 1
    )


def test_the_breakers_of_the_policies_in_force_are_shown() -> None:
    metrics = Metrics("mx1")
    metrics.chain.watch_breakers(lambda: {"relay": False, "greylist": True})
    assert value(metrics, "elemta_policy_breaker_open", policy="relay") == 0
    assert value(metrics, "elemta_policy_breaker_open", policy="greylist") == 1
    metrics.chain.watch_breakers(lambda: {"relay": False})
    assert "greylist" not in metrics.render().decode()


def test_only_what_a_limit_refused_is_a_rejection() -> None:
    metrics = Metrics("mx1")
    for outcome in ("admitted", "refused", "observed", "error", "delayed", "refused"):
        metrics.limits.checked("ip", outcome, 0.0001)
    assert value(metrics, "smtp_rate_limit_rejections_total") == 2
    assert value(metrics, "elemta_limit_checks_total", limit="ip", outcome="observed") == 1
    assert value(metrics, "elemta_limit_check_duration_seconds_count") == 6


def test_rejections_are_zero_and_there_before_the_first() -> None:
    assert value(Metrics("mx1"), "smtp_rate_limit_rejections_total") == 0


def test_a_commit_of_three_messages_counts_once_with_three() -> None:
    metrics = Metrics("mx1")
    metrics.spool.committed(3, 0.002)
    metrics.spool.failed("io")
    assert value(metrics, "elemta_spool_commit_messages_sum") == 3
    assert value(metrics, "elemta_spool_commit_messages_bucket", le="2.0") == 0
    assert value(metrics, "elemta_spool_commit_messages_bucket", le="4.0") == 1
    assert value(metrics, "elemta_spool_commit_duration_seconds_count") == 1
    assert value(metrics, "elemta_spool_failures_total", kind="io") == 1


def test_a_delivery_attempt_is_counted_by_route_and_outcome_and_never_by_recipient() -> None:
    metrics = Metrics("mx1")
    for name in ("a", "b"):
        outcome = Outcome(
            queue_id="1",
            recipient=Address(name, "example.com"),
            status=Status.DEFERRED,
            text="busy",
            route="lmtp://127.0.0.1:24",
            next_hop="127.0.0.1",
            at=0.0,
            seconds=1.5,
        )
        metrics.delivery.attempted(outcome)
    name = "elemta_delivery_attempts_total"
    assert value(metrics, name, route="lmtp://127.0.0.1:24", outcome="deferred") == 2
    assert "example.com" not in metrics.render().decode()


def test_a_node_without_a_valkey_counts_in_memory_and_says_nothing_about_valkey() -> None:
    found = samples(Metrics("mx1"))
    assert found["elemta_limiter_mode", (("mode", "memory"),)] == 1
    assert not [name for name, _ in found if name.startswith("valkey_")]


def test_the_mode_of_the_limiter_is_one_of_three_and_its_changes_are_counted() -> None:
    metrics = Metrics("mx1")
    observer: ModeObserver = metrics.mode
    metrics.mode.watch(lambda: CountingMode.LOCAL, lambda: 3)
    observer.mode_changed(CountingMode.CLUSTER)
    observer.breaker_changed(BreakerState.HALF_OPEN)
    modes = {
        mode: value(metrics, "elemta_limiter_mode", mode=mode) for mode in ("memory", "cluster", "local")
    }
    assert modes == {"memory": 0, "cluster": 1, "local": 0}
    assert value(metrics, "elemta_limiter_mode_changes_total", mode="cluster") == 1
    assert value(metrics, "elemta_limiter_breaker_state", state="half_open") == 1
    assert value(metrics, "elemta_limiter_breaker_state", state="closed") == 0
    assert value(metrics, "elemta_live_nodes") == 3


def test_what_valkey_says_about_itself_is_shown_until_it_says_otherwise() -> None:
    metrics = Metrics("mx1")
    observer: ValkeyObserver = metrics.valkey
    answers = True
    metrics.valkey.watch(lambda: answers)
    said = ValkeyInfo(
        up=True, commands_processed=900, used_memory=2**20, maxmemory=2**30, keys_db0=7, primaries=1
    )
    observer.info(said)
    observer.failed(ValkeyFailure.DEADLINE)
    observer.failed(ValkeyFailure.DEADLINE)
    assert value(metrics, "valkey_up") == 1
    assert value(metrics, "valkey_commands_processed_total") == 900
    assert value(metrics, "valkey_used_memory_bytes") == 2**20
    assert value(metrics, "valkey_maxmemory_bytes") == 2**30
    assert value(metrics, "valkey_db0_keys") == 7
    assert value(metrics, "elemta_valkey_failures_total", kind="deadline") == 2
    # It was restarted: it has begun to count anew.
    observer.info(replace(said, commands_processed=3))
    assert value(metrics, "valkey_commands_processed_total") == 3
    answers = False
    observer.info(ValkeyInfo(up=False))
    assert value(metrics, "valkey_up") == 0
    assert value(metrics, "valkey_db0_keys") == 7


def test_the_node_is_on_every_sample_and_every_name_is_ours() -> None:
    metrics = Metrics("mx1.example.org")
    metrics.net.connection_opened("mx")
    parsed = list(text_string_to_metric_families(metrics.render().decode()))
    assert parsed
    for family in parsed:
        assert family.name.startswith(("elemta_", "valkey_", "smtp_rate_limit_rejections"))
        for sample in family.samples:
            assert sample.labels["node_id"] == "mx1.example.org"


@pytest.mark.parametrize("family", metric_definitions.ALL, ids=lambda family: family.name)
def test_a_declared_metric_is_exposed_under_its_name_with_its_words(
    family: metric_definitions.MetricDefinition,
) -> None:
    text = Metrics("mx1").render().decode()
    assert f"# TYPE {family.name} {family.kind.value}\n" in text
    assert f"# HELP {family.name} " in text
    assert re.fullmatch(r"(elemta|smtp|valkey)_[a-z0-9_]+", family.name)
    assert (family.kind is metric_definitions.MetricType.COUNTER) == family.name.endswith("_total")
    assert family.words.endswith(".")


def test_two_nodes_in_one_process_do_not_share_numbers() -> None:
    one, two = Metrics("one"), Metrics("two")
    one.net.replied("QUIT", 221)
    assert ("elemta_commands_total", (("code", "221"), ("verb", "QUIT"))) not in samples(two)


def test_a_label_value_with_quotes_and_newlines_can_not_forge_a_line() -> None:
    metrics = Metrics('a"\nelemta_forged 1\n')
    assert "\nelemta_forged" not in metrics.render().decode()


def test_the_lag_of_the_event_loop_is_how_late_a_timer_came() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    lag = LoopLag(metrics, clock, interval=0.5)
    lag.start()
    clock.advance(0.5)
    clock.advance(0.75)  # 0.25 s late
    assert value(metrics, "elemta_event_loop_lag_seconds_count") == 2
    assert value(metrics, "elemta_event_loop_lag_seconds_sum") == 0.25
    lag.stop()
    assert clock.getDelayedCalls() == []
    lag.stop()


@ensureDeferred
async def test_what_the_spool_holds_is_asked_at_each_scrape() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    asked = 0

    async def stats() -> SpoolStats:
        nonlocal asked
        asked += 1
        return SpoolStats(
            messages={MessageState.ACTIVE: asked, MessageState.DEFERRED: 0, MessageState.HOLD: 7},
            octets={MessageState.ACTIVE: 1000, MessageState.DEFERRED: 0, MessageState.HOLD: 50},
            oldest_age=7.5,
            free=123456,
            healthy=False,
        )

    metrics.watch_spool(stats)
    await metrics.scrape(clock)
    text = (await metrics.scrape(clock)).decode()
    assert 'elemta_spool_messages{node_id="mx1",state="active"} 2.0' in text
    assert 'elemta_spool_messages{node_id="mx1",state="hold"} 7.0' in text
    assert 'elemta_spool_bytes{node_id="mx1",state="active"} 1000.0' in text
    assert 'elemta_spool_oldest_message_age_seconds{node_id="mx1"} 7.5' in text
    assert 'elemta_spool_free_bytes{node_id="mx1"} 123456.0' in text
    assert 'elemta_spool_healthy{node_id="mx1"} 0.0' in text


@ensureDeferred
async def test_a_spool_that_can_not_be_asked_is_not_healthy() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    failing = False

    async def stats() -> SpoolStats:
        if failing:
            raise SpoolError("the disk is away")
        return SpoolStats(messages={MessageState.HOLD: 7}, octets={}, oldest_age=7.5, free=1, healthy=True)

    metrics.watch_spool(stats)
    await metrics.scrape(clock)
    assert value(metrics, "elemta_spool_healthy") == 1
    failing = True
    await metrics.scrape(clock)
    assert value(metrics, "elemta_spool_healthy") == 0
    assert value(metrics, "elemta_spool_messages", state="hold") == 7
    assert value(metrics, "elemta_metrics_poll_failures_total", source="spool") == 1


def test_a_poll_that_hangs_costs_the_scrape_its_deadline_and_no_other_figure() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    seen: list[str] = []

    async def hang() -> None:
        await Deferred()

    async def answer() -> None:
        seen.append("answered")

    async def fail() -> None:
        raise OSError("the disk is away")

    metrics.poll("hangs", hang)
    metrics.poll("fails", fail)
    metrics.poll("answers", answer)
    scrape = Deferred.fromCoroutine(metrics.scrape(clock))
    texts: list[bytes] = []
    scrape.addCallback(texts.append)
    clock.advance(POLL_DEADLINE - 0.1)
    assert texts == []
    clock.advance(0.2)
    assert len(texts) == 1
    assert seen == ["answered"]
    assert value(metrics, "elemta_metrics_poll_failures_total", source="hangs") == 1
    assert value(metrics, "elemta_metrics_poll_failures_total", source="fails") == 1
    assert clock.getDelayedCalls() == []


def test_a_plugins_counter_is_the_same_after_a_reload() -> None:
    metrics = Metrics("mx1")
    for _ in range(2):
        counter = metrics.plugins.counter("elemta_plugin_geo_lookups_total", "Lookups.", ["outcome"])
        counter.labels("hit").inc()
        counter.labels("hit").inc(2)
    assert value(metrics, "elemta_plugin_geo_lookups_total", outcome="hit") == 6


def test_a_plugins_histogram_has_its_own_buckets() -> None:
    metrics = Metrics("mx1")
    histogram = metrics.plugins.histogram("elemta_plugin_geo_distance_meters", "Far.", buckets=[10, 1000])
    histogram.observe(10)
    histogram.observe(2000)
    name = "elemta_plugin_geo_distance_meters"
    assert value(metrics, f"{name}_bucket", le="10.0") == 1
    assert value(metrics, f"{name}_bucket", le="+Inf") == 2
    assert value(metrics, f"{name}_sum") == 2010


def test_a_plugin_that_labels_by_what_clients_choose_has_a_bounded_number_of_children() -> None:
    metrics = Metrics("mx1")
    counter = metrics.plugins.counter("elemta_plugin_bad_seen_total", "Seen.", ["address"])
    histogram = metrics.plugins.histogram("elemta_plugin_bad_seconds", "Took.", ["address"])
    for number in range(MAX_CHILDREN + 50):
        counter.labels(f"user{number}@example.com").inc()
        histogram.labels(f"user{number}@example.com").observe(1)
    assert value(metrics, "elemta_plugin_bad_seen_total", address="user0@example.com") == 1
    assert value(metrics, "elemta_plugin_bad_seen_total", address="other") == 50
    assert value(metrics, "elemta_plugin_bad_seconds_count", address="other") == 50
    assert sum(name == "elemta_plugin_bad_seen_total" for name, _ in samples(metrics)) == MAX_CHILDREN + 1


def test_a_plugin_is_told_what_it_declared_wrongly() -> None:
    plugins = Metrics("mx1").plugins
    counter = plugins.counter("elemta_plugin_x_total", "X.", ["kind"])
    with pytest.raises(ValueError, match="kind"):
        counter.inc()
    with pytest.raises(ValueError, match="kind"):
        counter.labels("a", "b")
    with pytest.raises(ValueError, match="grows"):
        counter.labels("a").inc(-1)
    with pytest.raises(ValueError, match="already"):
        plugins.counter("elemta_plugin_x_total", "X.", ["other_label"])
    with pytest.raises(ValueError, match="already"):
        plugins.histogram("elemta_plugin_x_total", "X.", ["kind"])
    with pytest.raises(ValueError, match="ascending"):
        plugins.histogram("elemta_plugin_y_seconds", "Y.", buckets=[2, 1])
    for name in ("Elemta", "a-b", "", "node_id"):
        with pytest.raises(ValueError, match="name"):
            plugins.counter("elemta_plugin_z", "Z.", [name])
