"""The metrics of several processes as those of one: sums that never fall, states, and what is each one's."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from elemta.metrics import Metrics
from elemta.ops.joined_metrics import (
    LARGEST,
    OF_NODE,
    PROCESS_PREFIX,
    SMALLEST,
    SUMMED_GAUGES,
    JoinedMetrics,
    read_families,
)
from elemta.ops.metrics import MetricsExporter


class Process:
    """A worker with metrics of its own."""

    def __init__(self, started: float = 1.0) -> None:
        self.metrics = Metrics("mx1")
        self.exporter = MetricsExporter(self.metrics)
        self.started = started

    @property
    def text(self) -> str:
        """What it shows, with the start that the test wants."""
        shown = self.exporter.render().decode()
        return re.sub(r"(?m)^(elemta_process_start_time_seconds.*) .*$", rf"\1 {self.started}", shown)


class Node:
    """A supervisor and its workers."""

    def __init__(self) -> None:
        self.supervisor = Process()
        self.joined = JoinedMetrics(self.supervisor.exporter.render)

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one sample; None where it is not shown."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.joined.render().decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, found
        return found[0] if found else None


def test_each_gauge_has_its_way_of_becoming_one() -> None:
    families = read_families(MetricsExporter(Metrics("mx1")).render().decode())
    gauges = {name for name, found in families.items() if found.kind == "gauge"}
    gauges = {name for name in gauges if not name.startswith(PROCESS_PREFIX)}
    ways = [LARGEST, SMALLEST, SUMMED_GAUGES, {name for name in OF_NODE if not name.endswith("_total")}]
    assert gauges == set().union(*ways)
    assert len(gauges) == sum(map(len, ways))
    assert set(families) >= OF_NODE


def test_what_is_counted_is_summed_and_what_is_stated_is_not() -> None:
    node, first, second = Node(), Process(), Process()
    for number, process in enumerate((first, second), 1):
        metrics = process.metrics
        metrics.net.messages_accepted.labels("mx").inc(number)
        metrics.net.message_size.labels("mx").observe(1000 * number)
        metrics.spool.messages.set(number, "hold")
        metrics.spool.oldest_age.set(10 * number)
        metrics.spool.free.set(100 * number)
        metrics.spool.healthy.set(number - 1)
        metrics.policy.breaker_open.poll_labelled(lambda number=number: [(("limits",), number - 1)])
        node.joined.take(str(number), process.text)
    node.supervisor.metrics.limits.mode.poll_labelled(lambda: [(("cluster",), 1), (("memory",), 0)])
    assert node.value("elemta_messages_accepted_total", listener="mx") == 3
    assert node.value("elemta_message_size_bytes_count") == 2
    assert node.value("elemta_message_size_bytes_sum") == 3000
    assert node.value("elemta_message_size_bytes_bucket", le="+Inf") == 2
    assert node.value("elemta_spool_messages", state="hold") == 3
    assert node.value("elemta_spool_oldest_message_age_seconds") == 20
    assert node.value("elemta_spool_free_bytes") == 100
    assert node.value("elemta_spool_healthy") == 0
    assert node.value("elemta_policy_breaker_open", policy="limits") == 1
    assert node.value("elemta_build_info") == 1
    # The supervisor is the node.
    assert node.value("elemta_limiter_mode", mode="cluster") == 1
    assert node.value("elemta_limiter_mode", mode="memory") == 0
    for worker in ("supervisor", "1", "2"):
        assert node.value("elemta_process_resident_memory_bytes", worker=worker, node_id="mx1") is not None
    heads = [line for line in node.joined.render().decode().splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads))


@pytest.mark.parametrize("dies", [False, True])
def test_a_sum_never_falls_when_a_worker_is_silent_or_starts_again(dies: bool) -> None:
    node, first, second = Node(), Process(), Process()
    first.metrics.net.messages_accepted.labels("mx").inc(5)
    second.metrics.net.messages_accepted.labels("mx").inc(7)
    second.metrics.spool.messages.set(3, "hold")
    node.joined.take("1", first.text)
    node.joined.take("2", second.text)
    if dies:
        node.joined.keep_gauges_of(["1"])
    else:
        node.joined.missed("2")
    assert node.value("elemta_messages_accepted_total", listener="mx") == 12
    assert node.value("elemta_spool_messages", state="hold") is None
    assert node.value("elemta_process_open_fds", worker="2") is None
    if dies:
        for started in (2.0, 3.0):
            second = Process(started)
            node.joined.take("2", second.text)
            assert node.value("elemta_messages_accepted_total", listener="mx") == 12
    second.metrics.net.messages_accepted.labels("mx").inc(1)
    node.joined.take("2", second.text)
    assert node.value("elemta_messages_accepted_total", listener="mx") == 13


def test_labels_with_blanks_and_braces_and_lines_that_are_none() -> None:
    joined = JoinedMetrics(lambda: b"")
    head, sample = "# HELP a_total x\n# TYPE a_total counter\n", 'a_total{l="x y} 1"}'
    for name in "12":
        joined.take(name, f"{head}{sample} 2.0\nnonsense\n\n# x\n")
    assert joined.render().decode() == f"{head}{sample} 4.0\n"
