"""The metrics that policy plugins make for themselves, as ``elemta.policy.services`` describes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Lock
from typing import Generic, TypeVar

from prometheus_client import Counter, Histogram

from elemta.metric_registry import (
    Labelled,
    MetricDefinition,
    MetricRegistry,
    MetricType,
)
from elemta.metrics import FAST

#: Sets of label values that one metric of a plugin may have; what comes after is counted under ``other``.
MAX_CHILDREN = 200

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = frozenset({"node_id", "le", "quantile"})


_M = TypeVar("_M", bound=Counter | Histogram)


class PluginMetric(Generic[_M]):
    """A metric of a policy, and the sets of label values that it has so far."""

    def __init__(self, definition: MetricDefinition, metric: Labelled[_M]) -> None:
        self.definition = definition
        self._metric = metric
        self._known: set[tuple[str, ...]] = set()
        self._lock = Lock()

    def check(self, values: tuple[str, ...]) -> None:
        """Raises ValueError where a label has no value."""
        if len(values) != len(self.definition.labels):
            labels = ", ".join(self.definition.labels)
            raise ValueError(f"{self.definition.name} needs values for its labels {labels}")

    def child(self, values: tuple[str, ...]) -> _M:
        """What counts for these label values. Raises ValueError where some are missing."""
        self.check(values)
        if values not in self._known:
            # A plugin may count in any of its threads.
            with self._lock:
                if len(self._known) >= MAX_CHILDREN and values not in self._known:
                    values = ("other",) * len(values)
                self._known.add(values)
        return self._metric.labels(*values)


class PolicyCounter:
    """A counter of a policy, or one of its children with label values."""

    def __init__(self, counter: PluginMetric[Counter], values: tuple[str, ...] = ()) -> None:
        self._counter = counter
        self._values = values

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``. Raises ValueError below 0, and where the counter has labels that were not given."""
        if amount < 0:
            raise ValueError("a counter only grows")
        self._counter.child(self._values).inc(amount)

    def labels(self, *values: str) -> PolicyCounter:
        self._counter.check(values)
        return PolicyCounter(self._counter, values)


class PolicyHistogram:
    """A histogram of a policy, or one of its children with label values."""

    def __init__(self, histogram: PluginMetric[Histogram], values: tuple[str, ...] = ()) -> None:
        self._histogram = histogram
        self._values = values

    def observe(self, amount: float) -> None:
        """Count ``amount``. Raises ValueError where the histogram has labels that were not given."""
        self._histogram.child(self._values).observe(amount)

    def labels(self, *values: str) -> PolicyHistogram:
        self._histogram.check(values)
        return PolicyHistogram(self._histogram, values)


class PluginMetricsRegistry:
    """Makes the metrics of plugins, by their full names (``elemta_plugin_POLICY_lookups_total``).

    The same name with the same labels gives the same numbers again, so that a reload, which builds every
    policy anew, goes on counting where it was.
    """

    def __init__(self, registry: MetricRegistry) -> None:
        self._registry = registry
        self._counters: dict[str, PluginMetric[Counter]] = {}
        self._histograms: dict[str, PluginMetric[Histogram]] = {}

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> PolicyCounter:
        """A counter; ``_total`` is put at the end of its name where it is missing.

        Raises ValueError for a name or a label that is not ``[a-z][a-z0-9_]*``, and for one that was declared
        with other labels before.
        """
        definition = _definition(name.removesuffix("_total") + "_total", MetricType.COUNTER, words, labels)
        known = self._counters.get(definition.name)
        if known is None or known.definition.labels != definition.labels:
            known = PluginMetric(definition, self._registry.labelled_counter(definition))
            self._counters[definition.name] = known
        return PolicyCounter(known)

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> PolicyHistogram:
        """A histogram whose ``buckets`` are ascending upper bounds.

        Raises as :meth:`counter` does.
        """
        bounds = FAST if buckets is None else tuple(float(bound) for bound in buckets)
        if list(bounds) != sorted(set(bounds)):
            raise ValueError("the buckets of a histogram are ascending bounds")
        definition = _definition(name, MetricType.HISTOGRAM, words, labels, bounds)
        known = self._histograms.get(definition.name)
        if known is None or known.definition.labels != definition.labels:
            known = PluginMetric(definition, self._registry.labelled_histogram(definition))
            self._histograms[definition.name] = known
        return PolicyHistogram(known)


def _definition(
    name: str, kind: MetricType, words: str, labels: Sequence[str], bounds: tuple[float, ...] = ()
) -> MetricDefinition:
    for word in (name, *labels):
        if not _NAME.fullmatch(word) or word in _RESERVED:
            raise ValueError(f"{word!r} can't be the name of a metric or of a label")
    return MetricDefinition(name, kind, words, tuple(labels), bounds)
