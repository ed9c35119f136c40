"""The metrics that policy plugins make for themselves, as ``elemta.policy.services`` describes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from elemta.ops.instruments import (
    FAST,
    CounterMetric,
    HistogramMetric,
    Instrument,
    Instruments,
    MetricDefinition,
    MetricType,
)

#: Sets of label values that one metric of a plugin may have; what comes after is counted under ``other``.
MAX_CHILDREN = 200

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = frozenset({"node_id", "le", "quantile"})


class PolicyCounter:
    """A counter of a policy, or one of its children with label values."""

    def __init__(self, counter: CounterMetric, values: tuple[str, ...] = ()) -> None:
        self._counter = counter
        self._values = values

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``. Raises ValueError below 0, and where the counter has labels that were not given."""
        if amount < 0:
            raise ValueError("a counter only grows")
        self._counter.inc(*_complete(self._counter.family, self._values), by=amount)

    def labels(self, *values: str) -> PolicyCounter:
        return PolicyCounter(self._counter, _bounded(self._counter, values))


class PolicyHistogram:
    """A histogram of a policy, or one of its children with label values."""

    def __init__(self, histogram: HistogramMetric, values: tuple[str, ...] = ()) -> None:
        self._histogram = histogram
        self._values = values

    def observe(self, amount: float) -> None:
        """Count ``amount``. Raises ValueError where the histogram has labels that were not given."""
        self._histogram.observe(amount, *_complete(self._histogram.family, self._values))

    def labels(self, *values: str) -> PolicyHistogram:
        return PolicyHistogram(self._histogram, _bounded(self._histogram, values))


class PluginMetricsRegistry:
    """Makes the instruments of plugins, by their full names (``elemta_plugin_POLICY_lookups_total``).

    The same name with the same labels gives the same numbers again, so that a reload, which builds every
    policy anew, goes on counting where it was.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> PolicyCounter:
        """A counter; ``_total`` is put at the end of its name where it is missing.

        Raises ValueError for a name or a label that is not ``[a-z][a-z0-9_]*``, and for one that was declared
        with other labels before.
        """
        family = _family(name.removesuffix("_total") + "_total", MetricType.COUNTER, words, labels)
        known = self._known(family)
        return PolicyCounter(known if isinstance(known, CounterMetric) else self._instruments.counter(family))

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> PolicyHistogram:
        """A histogram whose ``buckets`` are ascending upper bounds. Raises as :meth:`counter` does."""
        bounds = FAST if buckets is None else tuple(float(bound) for bound in buckets)
        if list(bounds) != sorted(set(bounds)):
            raise ValueError("the buckets of a histogram are ascending bounds")
        family = _family(name, MetricType.HISTOGRAM, words, labels, bounds)
        known = self._known(family)
        return PolicyHistogram(
            known if isinstance(known, HistogramMetric) else self._instruments.histogram(family)
        )

    def _known(self, family: MetricDefinition) -> Instrument | None:
        known = self._instruments.named(family.name)
        if known is not None and (known.family.kind, known.family.labels) != (family.kind, family.labels):
            raise ValueError(f"there is another metric {family.name} already")
        return known


def _family(
    name: str, kind: MetricType, words: str, labels: Sequence[str], bounds: tuple[float, ...] = ()
) -> MetricDefinition:
    for word in (name, *labels):
        if not _NAME.fullmatch(word) or word in _RESERVED:
            raise ValueError(f"{word!r} can't be the name of a metric or of a label")
    return MetricDefinition(name, kind, words, tuple(labels), bounds)


def _complete(family: MetricDefinition, values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) != len(family.labels):
        raise ValueError(f"{family.name} needs values for its labels {', '.join(family.labels)}")
    return values


def _bounded(instrument: CounterMetric | HistogramMetric, values: tuple[str, ...]) -> tuple[str, ...]:
    _complete(instrument.family, values)
    if values in instrument.children or len(instrument.children) < MAX_CHILDREN:
        return values
    return ("other",) * len(values)
