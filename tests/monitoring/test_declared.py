"""The dashboards and the alerts speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elemta.metric_registry import MetricType
from elemta.metrics import Metrics
from tests.interop.programs import program

MONITORING = Path(__file__).parents[2] / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
ALERTS = MONITORING / "prometheus" / "alerts.yml"
NAMED = re.compile(r"\b(?:elemta|valkey|smtp)_\w+")
#: What outside dashboards, and users' own, have always read.
FIXED = {
    "valkey_up",
    "valkey_commands_processed_total",
    "valkey_used_memory_bytes",
    "valkey_maxmemory_bytes",
    "valkey_db0_keys",
    "smtp_rate_limit_rejections_total",
}
PROCESS = {
    f"elemta_process_{name}" for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds")
}


def sampled() -> set[str]:
    """The names of everything that a node may serve, with those that histograms get."""
    names = set(PROCESS)
    for family in Metrics().registry.definitions:
        parts = ("_bucket", "_sum", "_count") if family.kind is MetricType.HISTOGRAM else ("",)
        names |= {family.name + part for part in parts}
    return names


def panels(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def test_the_dashboards_are_what_their_source_says() -> None:
    run = subprocess.run(
        [sys.executable, "-B", str(MONITORING / "grafana" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [path.stem for path in DASHBOARDS] == ["elemta-overview", "valkey-monitoring"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_metrics_that_there_are_and_explains_itself(path: Path) -> None:
    for panel in panels(path):
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            named = set(NAMED.findall(target["expr"]))
            assert named or "up{" in target["expr"]
            assert named <= sampled(), panel["title"]
    numbers = [panel["id"] for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_no_panel_of_a_dashboard_lies_on_another(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_names_that_dashboards_have_always_read_are_kept() -> None:
    """A counter ends in _total, as its name did before there was a convention to follow."""
    text = "".join(path.read_text(encoding="utf-8") for path in DASHBOARDS)
    assert set(NAMED.findall(text)) >= FIXED
    assert sampled() >= FIXED


def test_every_counter_ends_in_total_and_nothing_else_does() -> None:
    for family in Metrics().registry.definitions:
        assert family.name.endswith("_total") == (family.kind is MetricType.COUNTER), family.name


def test_every_alert_is_about_metrics_that_there_are_and_has_a_case() -> None:
    text = ALERTS.read_text(encoding="utf-8")
    cases = (MONITORING / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    page = (MONITORING / "README.md").read_text(encoding="utf-8")
    alerts = re.split(r"^      - alert: ", text, flags=re.MULTILINE)[1:]
    assert len(alerts) > 15
    for alert in alerts:
        name = alert.partition("\n")[0]
        expression = alert.partition("labels:")[0]
        named = set(NAMED.findall(expression))
        assert named or "up{" in expression, name
        assert named <= sampled(), name
        told = re.compile(rf"alertname: {name}\n\s+eval_time: \S+\n\s+exp_alerts:")
        assert told.search(cases), f"{name} is never told in alerts_test.yml"
        assert f"`{name}`" in page, f"{name} is not in monitoring/README.md"
        assert "summary:" in alert
        assert "description:" in alert


@pytest.mark.servers
@pytest.mark.parametrize(
    "command", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")], ids=" ".join
)
def test_promtool_takes_the_configuration_and_the_alerts_are_told_when_they_should(
    command: tuple[str, ...],
) -> None:
    run = subprocess.run(
        [program("promtool"), *command],
        cwd=MONITORING / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "rules found" in run.stdout or "SUCCESS" in run.stdout
