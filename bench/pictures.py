"""The tables and pictures of a run of the suite, for docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import worker_pairs
from busy import MOST

BEGIN = "<!-- bench/suite: begin -->"
END = "<!-- bench/suite: end -->"
TIE = 1.3
Results = Mapping[str, Any]

_WIDTH, _LEFT, _BAR, _GAP = 760, 250, 13, 14
# Seen by all eyes, on light and dark ground (Okabe and Ito).
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#e69f00", "#cc79a7", "#f0e442", "#999999", "#000000")


def medians(results: Results, part: str, figure: str) -> dict[str, dict[str, float]]:
    """The median of a figure of all rounds, by scenario and server."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in results["runs"]:
        if run["part"] == part:
            found.setdefault(run["scenario"], {}).setdefault(run["server"], []).append(run[figure])
    return {
        scenario: {server: statistics.median(values) for server, values in servers.items()}
        for scenario, servers in found.items()
    }


def busy_runs(results: Results) -> list[str]:
    """The runs during which other programs used the machine, in words."""
    return [
        f"{run['part']} {run['scenario']}, {run['server']}: {run['others']:.0%}"
        for part in ("runs", "workers", "idle", "queue", "limits")
        for run in results.get(part, ())
        if run["others"] > MOST
    ]


# Tables


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(heads), "|---" * len(heads) + "|", *map(_row, rows)])


def figures(results: Results, part: str, figure: str, digits: int, divisor: float = 1.0) -> str:
    """A figure of all servers, a row for each scenario."""
    found, short = medians(results, part, figure), results["short"]
    servers = [each for each in short if any(each in row for row in found.values())]
    rows = [
        [results["words"][part][scenario]]
        + [f"{row[each] / divisor:,.{digits}f}" if each in row else "-" for each in servers]
        for scenario, row in found.items()
    ]
    return _table(["", *(short[each] for each in servers)], rows)


def ratios(results: Results, part: str, other: str) -> str:
    """The rate of each Elemta to that of another server: the median, and that of each round."""
    rows = []
    for scenario, servers in medians(results, part, "rate").items():
        for server in servers:
            if not server.startswith("Elemta") or other not in servers:
                continue
            rates = {
                (run["server"], run["round"]): run["rate"]
                for run in results["runs"]
                if (run["part"], run["scenario"]) == (part, scenario)
            }
            each = [
                rate / rates[other, number]
                for (name, number), rate in rates.items()
                if name == server and (other, number) in rates
            ]
            if each:
                median = statistics.median(each)
                tie = " (tie)" if 1 / TIE < median < TIE else ""
                rounds = " ".join(f"{ratio:.2f}" for ratio in each)
                words = results["words"][part][scenario]
                rows.append([words, results["short"][server], f"{median:.2f}{tie}", rounds])
    return _table(["", "", "ratio", "of each round"], rows)


def page(results: Results, pictures: str) -> str:
    """The part of the page between the two marks. ``pictures`` is where they are, as the page sees it."""
    where = results["machine"]
    parts = [
        BEGIN,
        f"`bench/suite` wrote this section from one run, of {results['at']}. Rounds: {results['rounds']}.",
        "\n".join(f"- {name}: {value}" for name, value in where.items()),
        "Messages have 1 KB where a row does not say otherwise. Connections are *reused* for many messages.",
    ]
    busy = busy_runs(results)
    if results["quick"]:
        parts.append("**A quick run: too short for figures that hold.**")
    if busy:
        parts.append(f"**Other programs used more than {MOST:.0%} of the cores during {len(busy)} runs.**")
    if results.get("scale", 1.0) != 1.0:
        parts.append(f"Each scenario had {results['scale']:g} times its messages.")
    if results["skipped"]:
        parts.append("Not in it:\n\n" + "\n".join(f"- {each}" for each in results["skipped"]))
    for part, words in (("accept", "Accepted"), ("relay", "Relayed")):
        if not medians(results, part, "rate"):
            continue
        parts += [
            f"### {words}: messages a second",
            f"![{words} messages a second]({pictures}/{part}.svg)",
            figures(results, part, "rate", 0),
            f"### {words}: CPU seconds for 1,000 messages",
            f"![CPU for 1,000 {words.lower()} messages]({pictures}/{part}-cpu.svg)",
            figures(results, part, "cpu", 2),
            f"### {words}: MiB of memory behind the run",
            figures(results, part, "memory", 0, 2**20),
        ]
        if any(each == "Postfix, tuned" for row in medians(results, part, "rate").values() for each in row):
            parts += [f"### {words}: ratio to tuned Postfix", ratios(results, part, "Postfix, tuned")]
    parts += _others(results)
    return "\n\n".join([*parts, END])


def _others(results: Results) -> list[str]:
    parts = []
    # A run that was kept by an earlier suite has none.
    if workers := results.get("workers"):
        parts += [
            "### Workers: the account of the CPU",
            worker_pairs.ACCOUNTED,
            _table(worker_pairs.ACCOUNT_HEADS, worker_pairs.account_rows(workers)),
            "### Workers: ratio to one process",
            worker_pairs.BY_CPU,
            _table(worker_pairs.RATIO_HEADS, worker_pairs.ratio_rows(workers)),
        ]
    if results["calls"]:
        rows = [[words, f"{calls:,.0f}"] for words, calls in results["calls"].items()]
        parts += ["### Functions that a relayed message calls", _table(["", "functions"], rows)]
    if results["idle"]:
        rows = [
            [f"{each['sessions']:,}", f"{each['octets']:,.0f}", f"{each['seconds']:.1f}"]
            for each in results["idle"]
        ]
        heads = ["sessions", "octets for each", "seconds to open all"]
        parts += ["### Sessions that do nothing", _table(heads, rows)]
    if results["queue"]:
        rows = [
            [
                f"{each['messages']:,}",
                f"{each['start']:.1f}",
                f"{each['list']:.2f}",
                f"{each['memory'] / 2**20:,.0f}",
                f"{each['drain']:,.0f}",
            ]
            for each in results["queue"]
        ]
        heads = ["messages", "start, s", "`queue list`, s", "memory, MiB", "messages/s that leave"]
        parts += ["### A large queue", _table(heads, rows)]
    if results["limits"]:
        rows = [
            [
                each["words"],
                str(each["in flight"]),
                f"{each['rate']:,.0f}",
                f"{each['cpu us']:.1f}",
                f"{each['p50 ms']:.2f}",
                f"{each['p99 ms']:.2f}",
            ]
            for each in results["limits"]
        ]
        heads = ["", "in flight", "decisions/s", "CPU each, µs", "p50, ms", "p99, ms"]
        parts += ["### Limits", _table(heads, rows)]
    return parts


# Pictures


def picture(results: Results, part: str, figure: str, title: str) -> str:
    """Bars of all servers, grouped by scenario, as SVG."""
    found, short = medians(results, part, figure), results["short"]
    most = max((value for row in found.values() for value in row.values()), default=1.0) or 1.0
    colours = dict(zip(short, _COLOURS, strict=False))
    lines, y = [], 46
    for scenario, row in found.items():
        middle = y + len(row) * _BAR / 2
        words = escape(results["words"][part][scenario])
        lines.append(f'<text x="{_LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{words}</text>')
        for server in (each for each in short if each in row):
            value = row[server]
            width = max(1.0, value / most * (_WIDTH - _LEFT - 70))
            text = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            lines.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{colours[server]}">'
                f"<title>{escape(server)}: {text}</title></rect>"
                f'<text x="{_LEFT + width + 5:.0f}" y="{y + _BAR - 4}" font-size="10">{text}</text>'
            )
            y += _BAR
        y += _GAP
    for place, server in enumerate(each for each in short if any(each in row for row in found.values())):
        x, line = 10 + place % 4 * 185, y + place // 4 * 18
        lines.append(
            f'<rect x="{x}" y="{line}" width="11" height="11" fill="{colours[server]}"/>'
            f'<text x="{x + 16}" y="{line + 10}">{escape(server)}</text>'
        )
    height = y + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' font-family="sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="10" y="24" font-size="16">{escape(title)}</text>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def write(results: Results, target: Path) -> list[Path]:
    """Put the section between the marks of a page, and the pictures beside it."""
    text = target.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{target} has no place for the figures: {BEGIN} … {END}")
    directory = target.with_suffix("")
    directory.mkdir(exist_ok=True)
    written = [target]
    for part, words in (("accept", "Accepted"), ("relay", "Relayed")):
        if not medians(results, part, "rate"):
            continue
        for figure, suffix, unit in (
            ("rate", "", "messages a second"),
            ("cpu", "-cpu", "CPU seconds for 1,000 messages"),
        ):
            path = directory / f"{part}{suffix}.svg"
            path.write_text(picture(results, part, figure, f"{words}: {unit}"), encoding="utf-8")
            written.append(path)
    target.write_text(before + page(results, directory.name) + behind, encoding="utf-8")
    return written
