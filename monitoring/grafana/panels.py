"""What a dashboard is made of, and the queries that its panels have in common."""

from __future__ import annotations

from dataclasses import dataclass

#: Which nodes are looked at, by the dashboards' own choice.
NODE = 'node_id=~"$node"'
BY_NODE = "{{node_id}}"


@dataclass(frozen=True, slots=True)
class Query:
    """What Prometheus is asked, and what its lines are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``width`` in columns of 24, ``unit`` in Grafana's names."""

    title: str
    words: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard; ``name`` is its uid and the name of its file."""

    name: str
    title: str
    rows: tuple[Row, ...]


def rate(name: str, *by: str, where: str = "") -> str:
    """How often a counter moves in a second, over the chosen nodes."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({name}{{{NODE}{where}}}[$__rate_interval]))"


def quiet(name: str, *by: str) -> str:
    """The same for what has no series until it goes wrong for the first time: 0 until then."""
    return f"{rate(name, *by)} or vector(0)"


def quantile(part: float, name: str, *by: str) -> str:
    """A quantile of a histogram."""
    grouped = ", ".join((*by, "le"))
    rates = f"rate({name}_bucket{{{NODE}}}[$__rate_interval])"
    return f"histogram_quantile({part}, sum by ({grouped}) ({rates}))"


def gauge(name: str, *by: str, how: str = "sum", where: str = "") -> str:
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"{how}{grouped} ({name}{{{NODE}{where}}})"


def stat(title: str, words: str, expr: str, unit: str = "short", width: int = 4) -> Panel:
    return Panel(title, words, (Query(expr),), unit, "stat", width)


def quantiles(title: str, words: str, name: str, unit: str = "s") -> Panel:
    return Panel(title, words, (Query(quantile(0.5, name), "p50"), Query(quantile(0.99, name), "p99")), unit)
