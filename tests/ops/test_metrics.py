"""Metrics: what is counted comes out, as Prometheus reads it, under bounded labels."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import elemta
from elemta.errors import SpoolError, ValkeyFailure
from elemta.metric_registry import (
    Labelled,
    MetricDefinition,
    MetricRegistry,
    MetricType,
    ReportedMetric,
)
from elemta.metrics import Metrics, one_of
from elemta.ops.metrics import POLL_DEADLINE, LoopLag, MetricsExporter
from elemta.ops.plugin_metrics import MAX_CHILDREN, PluginMetricsRegistry
from elemta.spool import MessageState, SpoolStats
from tests.support.metrics import samples, value


def test_a_refusal_is_counted_as_permanent_or_transient() -> None:
    metrics = Metrics()
    metrics.net.message_refused("rcpt", "relay", transient=False)
    metrics.net.message_refused("rcpt", "limits", transient=True)
    assert value(metrics.registry, "elemta_messages_rejected_total", stage="rcpt", policy="relay") == 1
    assert value(metrics.registry, "elemta_messages_deferred_total", stage="rcpt", policy="limits") == 1


def test_a_polled_metric_shows_what_there_is_at_the_scrape_and_nothing_else() -> None:
    metrics = Metrics()
    breakers = {"relay": 0, "greylist": 1}
    metrics.policy.breaker_open.poll_labelled(
        lambda: [((name,), is_open) for name, is_open in breakers.items()]
    )
    name = "elemta_policy_breaker_open"
    assert value(metrics.registry, name, policy="relay") == 0
    assert value(metrics.registry, name, policy="greylist") == 1
    del breakers["greylist"]
    assert [labels for found, labels in samples(metrics.registry) if found == name] == [
        (("policy", "relay"),)
    ]


def test_only_what_a_limit_refused_is_a_rejection() -> None:
    metrics = Metrics("mx1")
    for outcome in ("admitted", "refused", "observed", "error", "delayed", "refused"):
        metrics.limits.checked("ip", outcome, 0.0001)
    assert value(metrics.registry, "smtp_rate_limit_rejections_total") == 2
    assert value(metrics.registry, "elemta_limit_checks_total", limit="ip", outcome="observed") == 1
    assert value(metrics.registry, "elemta_limit_check_duration_seconds_count") == 6


def test_rejections_are_zero_and_there_before_the_first() -> None:
    assert value(Metrics().registry, "smtp_rate_limit_rejections_total") == 0


def test_an_observed_number_is_in_its_bucket_and_all_above() -> None:
    metrics = Metrics()
    for number in (2, 3):
        metrics.spool.commit_messages.observe(number)
    name = "elemta_spool_commit_messages"
    found = [value(metrics.registry, f"{name}_bucket", le=bound) for bound in ("1.0", "2.0", "4.0", "+Inf")]
    assert found == [0, 1, 2, 2]
    assert value(metrics.registry, f"{name}_sum") == 5
    assert value(metrics.registry, f"{name}_count") == 2


def test_the_bounds_of_buckets_have_no_exponent() -> None:
    """What Prometheus has stored is under these names."""
    metrics = Metrics()
    metrics.net.message_size.labels("mx").observe(2**20)
    metrics.loop_lag.observe(0.0001)
    text = generate_latest(metrics.registry).decode()
    assert 'le="1048576.0"' in text
    assert 'le="0.0001"' in text
    assert not re.search(r'le="[^"]*e[+-]', text)


def test_the_same_label_values_are_the_same_child_and_enums_have_their_values() -> None:
    metrics = Metrics()
    failures = metrics.valkey.failures
    assert failures.labels(ValkeyFailure.DEADLINE) is failures.labels(ValkeyFailure.DEADLINE)
    failures.labels(ValkeyFailure.DEADLINE).inc()
    failures.labels("deadline").inc()
    assert value(metrics.registry, "elemta_valkey_failures_total", kind="deadline") == 2


def test_a_node_without_a_valkey_counts_in_memory_and_says_nothing_about_valkey() -> None:
    found = samples(Metrics().registry)
    assert found["elemta_limiter_mode", (("mode", "memory"),)] == 1
    assert not [name for name, _ in found if name.startswith("valkey_")]


def test_the_mode_of_the_limiter_is_one_of_three() -> None:
    metrics = Metrics()
    modes = ("memory", "cluster", "local")
    metrics.limits.mode.poll_labelled(lambda: one_of(modes, "cluster"))
    found = {mode: value(metrics.registry, "elemta_limiter_mode", mode=mode) for mode in modes}
    assert found == {"memory": 0, "cluster": 1, "local": 0}


def test_a_counter_of_another_process_may_begin_again() -> None:
    metrics = Metrics()
    metrics.valkey.commands_processed.set(900)
    metrics.valkey.commands_processed.set(3)
    assert value(metrics.registry, "valkey_commands_processed_total") == 3


def test_the_node_is_on_every_sample_and_every_name_is_ours() -> None:
    metrics = Metrics("mx1.example.org")
    metrics.net.connections_opened.labels("mx").inc()
    parsed = list(text_string_to_metric_families(MetricsExporter(metrics).render().decode()))
    assert parsed
    for family in parsed:
        assert family.name.startswith(("elemta_", "valkey_", "smtp_rate_limit_rejections"))
        for sample in family.samples:
            assert sample.labels["node_id"] == "mx1.example.org"


@pytest.mark.parametrize("family", Metrics().registry.definitions, ids=lambda family: family.name)
def test_a_declared_metric_is_exposed_under_its_name_with_its_words(
    family: MetricDefinition,
) -> None:
    text = MetricsExporter(Metrics("mx1")).render().decode()
    assert f"# TYPE {family.name} {family.kind.value}\n" in text
    assert f"# HELP {family.name} " in text
    assert re.fullmatch(r"(elemta|smtp|valkey)_[a-z0-9_]+", family.name)
    assert (family.kind is MetricType.COUNTER) == family.name.endswith("_total")
    assert family.words.endswith(".")


def test_every_metric_that_is_defined_is_counted_or_reported_somewhere() -> None:
    code = "".join(path.read_text() for path in Path(elemta.__file__).parent.rglob("*.py"))
    counted = set(re.findall(r"\.(\w+)\.(?:labels|inc|observe|set|poll|poll_labelled)\b", code))
    metrics = Metrics()
    kinds = (Counter, Histogram, Labelled, ReportedMetric)
    groups = [metrics, *(each for each in vars(metrics).values() if type(each).__name__.endswith("Metrics"))]
    names = {name for group in groups for name, each in vars(group).items() if isinstance(each, kinds)}
    assert len(names) > 40
    assert names - counted == set()


def test_two_nodes_in_one_process_do_not_share_numbers() -> None:
    one, two = Metrics("one"), Metrics("two")
    one.net.replies.labels("QUIT", 221).inc()
    assert ("elemta_commands_total", (("code", "221"), ("verb", "QUIT"))) not in samples(two.registry)


def test_a_label_value_with_quotes_and_newlines_can_not_forge_a_line() -> None:
    metrics = Metrics('a"\nelemta_forged 1\n')
    assert "\nelemta_forged" not in MetricsExporter(metrics).render().decode()


def test_the_lag_of_the_event_loop_is_how_late_a_timer_came() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    lag = LoopLag(metrics, clock, interval=0.5)
    lag.start()
    clock.advance(0.5)
    clock.advance(0.75)  # 0.25 s late
    assert value(metrics.registry, "elemta_event_loop_lag_seconds_count") == 2
    assert value(metrics.registry, "elemta_event_loop_lag_seconds_sum") == 0.25
    lag.stop()
    assert clock.getDelayedCalls() == []
    lag.stop()


@ensureDeferred
async def test_what_the_spool_holds_is_asked_at_each_scrape() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    exporter = MetricsExporter(metrics)
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

    exporter.watch_spool(stats)
    await exporter.scrape(clock)
    text = (await exporter.scrape(clock)).decode()
    assert 'elemta_spool_messages{node_id="mx1",state="active"} 2.0' in text
    assert 'elemta_spool_messages{node_id="mx1",state="hold"} 7.0' in text
    assert 'elemta_spool_bytes{node_id="mx1",state="active"} 1000.0' in text
    assert 'elemta_spool_oldest_message_age_seconds{node_id="mx1"} 7.5' in text
    assert 'elemta_spool_free_bytes{node_id="mx1"} 123456.0' in text
    assert 'elemta_spool_healthy{node_id="mx1"} 0.0' in text


@ensureDeferred
async def test_a_spool_that_can_not_be_asked_is_not_healthy() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    exporter = MetricsExporter(metrics)
    failing = False

    async def stats() -> SpoolStats:
        if failing:
            raise SpoolError("the disk is away")
        return SpoolStats(messages={MessageState.HOLD: 7}, octets={}, oldest_age=7.5, free=1, healthy=True)

    exporter.watch_spool(stats)
    await exporter.scrape(clock)
    assert value(metrics.registry, "elemta_spool_healthy") == 1
    failing = True
    await exporter.scrape(clock)
    assert value(metrics.registry, "elemta_spool_healthy") == 0
    assert value(metrics.registry, "elemta_spool_messages", state="hold") == 7
    assert value(metrics.registry, "elemta_metrics_poll_failures_total", source="spool") == 1


def test_a_poll_that_hangs_costs_the_scrape_its_deadline_and_no_other_figure() -> None:
    metrics, clock = Metrics("mx1"), Clock()
    exporter = MetricsExporter(metrics)
    seen: list[str] = []

    async def hang() -> None:
        await Deferred()

    async def answer() -> None:
        seen.append("answered")

    async def fail() -> None:
        raise OSError("the disk is away")

    exporter.poll("hangs", hang)
    exporter.poll("fails", fail)
    exporter.poll("answers", answer)
    scrape = Deferred.fromCoroutine(exporter.scrape(clock))
    texts: list[bytes] = []
    scrape.addCallback(texts.append)
    clock.advance(POLL_DEADLINE - 0.1)
    assert texts == []
    clock.advance(0.2)
    assert len(texts) == 1
    assert seen == ["answered"]
    assert value(metrics.registry, "elemta_metrics_poll_failures_total", source="hangs") == 1
    assert value(metrics.registry, "elemta_metrics_poll_failures_total", source="fails") == 1
    assert clock.getDelayedCalls() == []


def test_a_plugins_counter_is_the_same_after_a_reload() -> None:
    metrics = Metrics("mx1")
    plugins = PluginMetricsRegistry(metrics.registry)
    for _ in range(2):
        counter = plugins.counter("elemta_plugin_geo_lookups_total", "Lookups.", ["outcome"])
        counter.labels("hit").inc()
        counter.labels("hit").inc(2)
    assert value(metrics.registry, "elemta_plugin_geo_lookups_total", outcome="hit") == 6


def test_a_plugins_histogram_has_its_own_buckets() -> None:
    metrics = Metrics("mx1")
    plugins = PluginMetricsRegistry(metrics.registry)
    histogram = plugins.histogram("elemta_plugin_geo_distance_meters", "Far.", buckets=[10, 1000])
    histogram.observe(10)
    histogram.observe(2000)
    name = "elemta_plugin_geo_distance_meters"
    assert value(metrics.registry, f"{name}_bucket", le="10.0") == 1
    assert value(metrics.registry, f"{name}_bucket", le="+Inf") == 2
    assert value(metrics.registry, f"{name}_sum") == 2010


def test_a_plugin_that_labels_by_what_clients_choose_has_a_bounded_number_of_children() -> None:
    metrics = Metrics("mx1")
    plugins = PluginMetricsRegistry(metrics.registry)
    counter = plugins.counter("elemta_plugin_bad_seen_total", "Seen.", ["address"])
    histogram = plugins.histogram("elemta_plugin_bad_seconds", "Took.", ["address"])
    for number in range(MAX_CHILDREN + 50):
        counter.labels(f"user{number}@example.com").inc()
        histogram.labels(f"user{number}@example.com").observe(1)
    assert value(metrics.registry, "elemta_plugin_bad_seen_total", address="user0@example.com") == 1
    assert value(metrics.registry, "elemta_plugin_bad_seen_total", address="other") == 50
    assert value(metrics.registry, "elemta_plugin_bad_seconds_count", address="other") == 50
    assert (
        sum(name == "elemta_plugin_bad_seen_total" for name, _ in samples(metrics.registry))
        == MAX_CHILDREN + 1
    )


def in_threads(work: Callable[[int], object], number: int = 4) -> None:
    """Do ``work`` in this many threads at once, which interrupt each other as often as they can."""
    together = Barrier(number)

    def begin(index: int) -> None:
        together.wait(10)
        work(index)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(number) as pool:
            for done in [pool.submit(begin, index) for index in range(number)]:
                done.result(60)
    finally:
        sys.setswitchinterval(interval)


def test_a_plugin_that_counts_in_its_threads_loses_no_count() -> None:
    metrics = Metrics("mx1")
    plugins = PluginMetricsRegistry(metrics.registry)
    counter = plugins.counter("elemta_plugin_geo_lookups_total", "Lookups.", ["outcome"])
    histogram = plugins.histogram("elemta_plugin_geo_seconds", "Took.", buckets=[1, 10])

    def work(_: int) -> None:
        for _ in range(5000):
            counter.labels("hit").inc()
            histogram.observe(2)

    in_threads(work)
    assert value(metrics.registry, "elemta_plugin_geo_lookups_total", outcome="hit") == 20_000
    assert value(metrics.registry, "elemta_plugin_geo_seconds_sum") == 40_000
    assert value(metrics.registry, "elemta_plugin_geo_seconds_bucket", le="10.0") == 20_000


def test_the_children_of_a_plugins_metric_are_bounded_whichever_threads_count() -> None:
    class Switching(set[Any]):
        """Lets other threads run between the look at its size and the next addition."""

        def __len__(self) -> int:
            size = super().__len__()
            time.sleep(0.0001)
            return size

    plugins = PluginMetricsRegistry(MetricRegistry())
    metric = plugins.counter("elemta_plugin_bad_seen_total", "Seen.", ["address"])._counter
    metric._known = Switching()
    in_threads(lambda index: [metric.child((f"{index}-{number}",)) for number in range(MAX_CHILDREN)])
    assert set.__len__(metric._known) == MAX_CHILDREN + 1


def test_a_counter_of_our_own_shows_its_exemplar_and_does_not_go_down() -> None:
    registry = MetricRegistry("mx1")
    counter = registry.counter("elemta_x_total", "X.")
    histogram = registry.histogram("elemta_y_seconds", "Y.", (1.0,))
    for exemplar in (None, {"session": "s1"}):
        counter.inc(2, exemplar)
        histogram.observe(0.5, exemplar)
    with pytest.raises(ValueError, match="non-negative"):
        counter.inc(-1)
    assert value(registry, "elemta_x_total") == 4
    assert value(registry, "elemta_y_seconds_count") == 2
    shown = [sample.exemplar for family in registry.collect() for sample in family.samples]
    assert [each.labels for each in shown if each is not None] == [{"session": "s1"}] * 2


def test_a_plugin_is_told_what_it_declared_wrongly() -> None:
    plugins = PluginMetricsRegistry(MetricRegistry())
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


def test_a_metric_of_our_own_that_another_thread_counts_is_found(elsewhere_counted: list[str]) -> None:
    """So no test passes in which one is: tests/conftest.py looks at each."""
    metrics = Metrics("mx1")
    in_threads(lambda _: metrics.spool.commit_messages.observe(1), number=1)
    assert [each.partition(" ")[0] for each in elsewhere_counted] == ["elemta_spool_commit_messages"]
    elsewhere_counted.clear()
