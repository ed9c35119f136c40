"""Every panel of the dashboards, and every alert, in a real Prometheus that scrapes a busy fleet."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from elemta.metric_registry import MetricType
from elemta.metrics import Metrics
from tests.interop.programs import program
from tests.monitoring.observed import MONITORING, Bustle, Prometheus, fleet, next_hop, until
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

SECONDS = 90.0
#: What has no series on a healthy fleet: these show 0 until they go wrong.
UNSEEN = {"elemta_policy_failures_total", "elemta_spool_failures_total", "elemta_metrics_poll_failures_total"}
#: The fleet has no load balancer.
UNSEEN |= {"elemta_health_checks_total"}
#: The fleet has its next hops by address.
UNSEEN |= {"elemta_dns_questions_total"}
#: The fleet's clients write SMTP as the RFCs have it.
UNSEEN |= {"elemta_leniency_total"}
#: The fleet asks for limits by SMTP only.
UNSEEN |= {
    "elemta_policy_service_requests_total",
    "elemta_policy_service_refused_total",
    "elemta_policy_service_connections_open",
    "elemta_policy_service_duration_seconds",
}
#: A hold ends days after it began.
UNSEEN |= {"elemta_spool_holds_ended_total"}
#: The fleet's nodes have no workers.
UNSEEN |= {"elemta_worker_scrapes_missed_total"}
#: The fleet's disk takes all of the history.
UNSEEN |= {"elemta_history_dropped_total"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped a fleet with mail in and out, refusals, logins, and an outage of Valkey."""
    program("prometheus")
    directory = tmp_path_factory.mktemp("monitoring")
    hop = next_hop(directory / "hop").start()
    try:
        with valkey_server(maxmemory="64mb") as valkey, fleet(directory / "fleet", valkey.url, hop) as nodes:
            targets = [f"127.0.0.1:{node.metrics_port}" for node in nodes.nodes]
            with Prometheus(directory / "prometheus", targets) as server, Bustle(nodes):
                nodes.introduce()
                stumble(valkey)
                yield server
    finally:
        hop.kill()


def stumble(valkey: ValkeyServer) -> None:
    """An outage long enough for calls to fail, and short enough that no connection is given up."""
    valkey.pause()
    time.sleep(1.0)
    valkey.resume()


def questions() -> list[tuple[str, str]]:
    """Each panel's title and query, as Grafana would ask it."""
    asked = []
    for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for panel in document["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "30s").replace("$node", ".*")
                asked.append((f"{path.stem}: {panel['title']} [{target['refId']}]", query))
    assert len(asked) > 60
    return asked


def has_data(prometheus: Prometheus, query: str) -> bool:
    return any(not math.isnan(value) for value in prometheus.query(query))


def test_every_panel_of_the_dashboards_has_data(prometheus: Prometheus) -> None:
    def empty() -> list[str]:
        return [title for title, query in questions() if not has_data(prometheus, query)]

    until("panels without data", empty, SECONDS)
    assert not has_data(prometheus, "rate(elemta_no_such_thing_total[30s])")
    assert not has_data(prometheus, "0 * up / 0")


def test_every_metric_that_is_documented_is_there_when_its_time_has_come(prometheus: Prometheus) -> None:
    """So that no panel has its data from "or vector(0)" alone."""

    def absent() -> list[str]:
        names = [
            family.name + ("_count" if family.kind is MetricType.HISTOGRAM else "")
            for family in Metrics().registry.definitions
            if family.name not in UNSEEN
        ]
        return [name for name in names if not prometheus.query(name)]

    until("metrics that nobody has", absent, SECONDS)


def test_all_three_nodes_are_in_each_figure_that_is_by_node(prometheus: Prometheus) -> None:
    def lacking() -> list[str]:
        asked = [(title, query) for title, query in questions() if re.match(r"\w+ by \(node_id\)", query)]
        assert len(asked) > 8
        return [title for title, query in asked if len(prometheus.query(query)) != 3]

    until("panels without all nodes", lacking, SECONDS)


def test_the_figures_of_the_fixed_names_are_those_of_the_fleet(prometheus: Prometheus) -> None:
    def wrong() -> list[str]:
        checks = {
            "max(valkey_up) == 1": 1,
            "valkey_maxmemory_bytes": 3,
            "valkey_used_memory_bytes > 1e6": 3,
            "valkey_db0_keys > 3": 3,
            "rate(valkey_commands_processed_total[30s]) > 1": 3,
            "smtp_rate_limit_rejections_total > 0": 3,
        }
        return [query for query, series in checks.items() if len(prometheus.query(query)) != series]

    until("figures that are not", wrong, SECONDS)
    assert set(prometheus.query("valkey_maxmemory_bytes")) == {64 * 2**20}
    labels = prometheus.get("series", **{"match[]": "smtp_rate_limit_rejections_total"})
    assert {series["node_id"] for series in labels} == {"n0", "n1", "n2"}


def test_every_alert_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until("alerts not yet evaluated", lambda: [r["name"] for r in rules() if r["health"] == "unknown"], 30.0)
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    assert {rule["name"] for rule in rules()} >= {"ElemtaNodeDown", "ElemtaValkeyDown", "ElemtaSpoolBroken"}
