"""Writes docs/metrics.md from the definitions in elemta/metrics.py.

python docs/generate_metrics.py           writes docs/metrics.md
python docs/generate_metrics.py --check   fails when it is stale
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from generated_file import write_or_check

from elemta.metric_registry import MetricDefinition
from elemta.metrics import Metrics

DEFINITIONS = Metrics().registry.definitions
TARGET = Path(__file__).resolve().parent / "metrics.md"

HEAD = """# Metrics

`make generate` writes this page from the definitions in `elemta/metrics.py`. `[metrics] endpoint`
serves the metrics as `/metrics`, beside `/healthz` (alive) and `/readyz` (would accept mail now; else 503
and the reasons). Losing Valkey does not make a node unready: each limit does what it says for that case.
[monitoring](../monitoring/README.md) says what to scrape, and has alerts and dashboards.

Every metric also has the label `node_id`. No label ever has a value that a client chose. Units are base
units: seconds and bytes.

"""

TAIL = """
Elemta also exports `elemta_process_*` (CPU seconds, memory, file descriptors, start time), and
`elemta_plugin_POLICY_NAME`, the metrics of a policy. Each of those has at most 200 sets of label values;
further ones are counted under `other`.

Of a daemon with several worker processes, a scrape of the supervisor has the metrics of all.
Counters and histograms are summed; what a worker counted stays in the sum when it ends, or does not
answer the scrape within three seconds (`elemta_worker_scrapes_missed_total`). Gauges that count are
summed over the workers that answer. Of states and ages the largest is shown, and the smallest of
`elemta_spool_healthy` and `elemta_spool_free_bytes`. `elemta_limiter_mode`,
`elemta_limiter_breaker_state`, `elemta_live_nodes` and `valkey_*` are the supervisor's.
`elemta_process_*` has the label `worker`: its number, or `supervisor`.

## Buckets

These are the upper bounds of the histograms' buckets:

"""


def entry(family: MetricDefinition) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    kind = f"{family.kind.value}; {labels}" if labels else family.kind.value
    return wrapped(f"- `{family.name}` ({kind}): {family.words}")


def wrapped(item: str) -> str:
    return (
        textwrap.fill(item, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        + "\n"
    )


def buckets() -> str:
    bounds = sorted({family.bounds for family in DEFINITIONS if family.bounds})
    lines = []
    for each in bounds:
        names = ", ".join(f"`{family.name}`" for family in DEFINITIONS if family.bounds == each)
        lines.append(wrapped(f"- {', '.join(f'{bound:g}' for bound in each)}: {names}"))
    return "".join(lines)


def render() -> str:
    """The text of docs/metrics.md."""
    return HEAD + "".join(entry(family) for family in DEFINITIONS) + TAIL + buckets()


def main(arguments: list[str]) -> int:
    return write_or_check({TARGET: render()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
