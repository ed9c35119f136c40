"""The metrics of several processes of one node as those of one daemon.

Counters and histograms are summed, and stay what they were where a process ends or does not answer: a sum
that falls would be a restart to Prometheus. Gauges are summed where they count, and are the largest or the
smallest where they state something. Metrics about a process itself have the label ``worker``; those about
Valkey and the fleet are the supervisor's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

PROCESS_PREFIX = "elemta_process_"
_SUPERVISOR = "supervisor"
_STARTED = "elemta_process_start_time_seconds"

LARGEST = frozenset(
    {
        "elemta_build_info",
        "elemta_certificate_not_after_seconds",
        "elemta_history_oldest_age_seconds",
        "elemta_overloaded",
        "elemta_policy_breaker_open",
        "elemta_spool_oldest_message_age_seconds",
    }
)
"""Gauges whose largest value holds for the node: states and ages."""

OF_NODE = frozenset(
    {
        "elemta_limiter_breaker_state",
        "elemta_limiter_mode",
        "elemta_limiter_mode_changes_total",
        "elemta_live_nodes",
        "valkey_commands_processed_total",
        "valkey_connected_clients",
        "valkey_db0_keys",
        "valkey_evicted_keys_total",
        "valkey_maxmemory_bytes",
        "valkey_up",
        "valkey_used_memory_bytes",
    }
)
"""Metrics of what only the supervisor has: the connection to Valkey, and the place in the fleet."""

SMALLEST = frozenset({"elemta_spool_free_bytes", "elemta_spool_healthy"})
"""Gauges whose smallest value holds for the node."""

SUMMED_GAUGES = frozenset(
    {
        "elemta_connections_open",
        "elemta_delivery_connections_open",
        "elemta_delivery_destinations",
        "elemta_history_bytes",
        "elemta_history_messages",
        "elemta_policy_service_connections_open",
        "elemta_session_memory_bytes",
        "elemta_spool_bytes",
        "elemta_spool_messages",
        "elemta_spool_undeliverable_bytes",
    }
)
"""Gauges of what each process has a part of."""


@dataclass(slots=True)
class MetricSamples:
    """The samples of one family, by name and labels as they are written; ``head`` are its HELP and TYPE."""

    head: list[str] = field(default_factory=list)
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


Families = dict[str, MetricSamples]


def read_families(text: str) -> Families:
    """The families of a text in Prometheus' format; what is no sample is left out."""
    families: Families = {}
    current = MetricSamples()
    for line in text.splitlines():
        if line.startswith("#"):
            words = line.split(" ", 3)
            if len(words) < 4:
                continue
            current = families.setdefault(words[2], MetricSamples())
            current.head.append(line)
            if words[1] == "TYPE":
                current.kind = words[3]
            continue
        key, _, number = line.rpartition(" ")
        try:
            current.samples[key] = float(number)
        except ValueError:
            continue
    return families


@dataclass(slots=True)
class _Process:
    """What one process said last, and what those before it had counted."""

    families: Families = field(default_factory=dict)
    answers: bool = False
    before: dict[str, float] = field(default_factory=dict)
    started: float = 0.0


class JoinedMetrics:
    """The metrics of the processes of a node, by name; ``own`` renders those of this process."""

    def __init__(self, own: Callable[[], bytes]) -> None:
        self._own = own
        self._processes: dict[str, _Process] = {}

    def take(self, name: str, text: str) -> None:
        """What the process of this name says now."""
        process = self._processes.setdefault(name, _Process())
        families = read_families(text)
        started = _start_of(families)
        if process.families and started != process.started:
            _add_counts(process.before, process.families)
        process.families, process.started, process.answers = families, started, True

    def missed(self, name: str) -> None:
        """The process of this name does not answer: what it counted stays, its gauges do not."""
        self._processes.setdefault(name, _Process()).answers = False

    def keep_gauges_of(self, names: Collection[str]) -> None:
        """Only the processes of these names are there: of the others, only what they counted stays."""
        for name, process in self._processes.items():
            process.answers = process.answers and name in names

    def render(self) -> bytes:
        """All of them, in Prometheus' text format."""
        joined: Families = {}
        own = read_families(self._own().decode("utf-8"))
        self._add(joined, own, _SUPERVISOR, live=True)
        for name, process in self._processes.items():
            self._add(joined, process.families, name, live=process.answers)
            for key, value in process.before.items():
                # The family is there: another process of this name had it, and has ended.
                family, _, sample = key.partition("\0")
                if family in joined:
                    samples = joined[family].samples
                    samples[sample] = samples.get(sample, 0.0) + value
        return "".join(_lines(joined)).encode("utf-8")

    def _add(self, joined: Families, families: Families, name: str, *, live: bool) -> None:
        for family, found in families.items():
            if name != _SUPERVISOR and (family in OF_NODE or not (live or is_counted(family, found.kind))):
                continue
            whole = joined.setdefault(family, MetricSamples(found.head, found.kind))
            about_process = family.startswith(PROCESS_PREFIX)
            for key, value in found.samples.items():
                sample = _with_worker(key, name) if about_process else key
                known = whole.samples.get(sample)
                whole.samples[sample] = value if known is None else _joined(family, known, value)


def is_counted(family: str, kind: str) -> bool:
    """Whether a family is a sum that must not fall when a process ends."""
    counts = kind in ("counter", "histogram", "summary")
    return counts and family not in OF_NODE and not family.startswith(PROCESS_PREFIX)


def _joined(family: str, one: float, other: float) -> float:
    if family in LARGEST:
        return max(one, other)
    if family in SMALLEST or family.endswith("_created"):
        return min(one, other)
    return one + other


def _start_of(families: Families) -> float:
    found = families.get(_STARTED)
    return 0.0 if found is None else next(iter(found.samples.values()), 0.0)


def _add_counts(before: dict[str, float], families: Families) -> None:
    for family, found in families.items():
        if is_counted(family, found.kind):
            for sample, value in found.samples.items():
                key = f"{family}\0{sample}"
                before[key] = before.get(key, 0.0) + value


def _with_worker(sample: str, name: str) -> str:
    head, brace, labels = sample.partition("{")
    more = f'worker="{name}"'
    return f"{head}{{{more},{labels}" if brace else f"{head}{{{more}}}"


def _lines(families: Mapping[str, MetricSamples]) -> Iterator[str]:
    for found in families.values():
        yield from (f"{line}\n" for line in _once(found.head))
        yield from (f"{sample} {_number(value)}\n" for sample, value in found.samples.items())


def _once(lines: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(lines)


def _number(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
