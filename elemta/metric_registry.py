"""The registry that makes the metrics and shows them to Prometheus.

Counters, gauges and histograms are those of ``prometheus_client``, without its locks: only the reactor
thread counts. Those of plugins have the locks. Each child with its label values is looked up once and cached.
What is read elsewhere at each scrape is a :class:`ReportedMetric`.
"""

from __future__ import annotations

import enum
import functools
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast, overload

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

#: One set of label values, in the order of the metric's labels, and its number.
LabelledValue = tuple[tuple[str, ...], float]


class MetricType(enum.Enum):
    """The type of a metric, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """The name, type, text, labels and buckets of one metric.

    ``name`` is the whole name with its base unit (``_seconds``, ``_bytes``, ``_total``). ``labels`` are the
    labels beside ``node_id``, which every metric has. ``bounds`` are the upper bounds of the buckets.
    """

    name: str
    kind: MetricType
    words: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels with the one that every metric has."""
        return ("node_id", *self.labels)


class _Counter(Counter):
    """A counter that one thread counts."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add ``amount`` without a lock, in a seventh of the time. With an exemplar it takes the lock."""
        if amount < 0 or exemplar is not None:
            super().inc(amount, exemplar)
        else:
            self._value._value += amount


class _Gauge(Gauge):
    """A gauge that one thread moves."""

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``, without a lock."""
        self._value._value += amount

    def dec(self, amount: float = 1) -> None:
        """Take ``amount`` away, without a lock."""
        self._value._value -= amount


class _Histogram(Histogram):
    """A histogram that one thread fills."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count ``amount`` in its bucket without a lock. With an exemplar it takes the lock."""
        if exemplar is not None:
            super().observe(amount, exemplar)
            return
        self._sum._value += amount
        self._buckets[bisect_left(self._upper_bounds, amount)]._value += 1


_M = TypeVar("_M", bound=Counter | Gauge | Histogram)


class Labelled(Generic[_M]):
    """A metric with labels. ``labels("MAIL", 250)`` is the child with these values.

    A child is looked up once and cached. Label values never come from a client, so that there are few.
    """

    __slots__ = ("_metric", "_node_id", "labels")

    def __init__(self, metric: _M, node_id: str) -> None:
        self._metric = metric
        self._node_id = node_id
        self.labels = functools.cache(self._child)

    def _child(self, *values: Hashable) -> _M:
        words = (str(each.value if isinstance(each, enum.Enum) else each) for each in values)
        return cast(_M, self._metric.labels(self._node_id, *words))

    def children(self) -> Iterator[tuple[tuple[str, ...], _M]]:
        """Each child with its label values, in the order in which they were first counted."""
        for (_, *values), child in tuple(self._metric._metrics.items()):
            yield tuple(values), cast(_M, child)


def counts_of(counter: Labelled[Counter]) -> Iterator[tuple[tuple[str, ...], int]]:
    """What was counted under each set of label values."""
    for values, child in counter.children():
        yield values, int(child._value.get())


def histogram_quantile(share: float, histogram: Histogram) -> float | None:
    """The number that this share of what was observed does not exceed; None where nothing was observed.

    It is as exact as the buckets, as Prometheus' function of this name: what is between two bounds is taken
    as evenly spread, and what is above the last bound as the last bound.
    """
    counts = [bucket.get() for bucket in histogram._buckets]
    rank = share * sum(counts)
    if not rank:
        return None
    lower = before = 0.0
    for upper, count in zip(histogram._upper_bounds, counts, strict=True):
        if before + count >= rank:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - before) / count
        lower, before = upper, before + count
    return lower


class ReportedMetric:
    """Numbers that are not counted here, but read elsewhere. There is no sample before the first report.

    Either :meth:`set` reports a number, or :meth:`poll` names what is called at each scrape.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], float] = {}
        self._poll: Callable[[], Iterable[LabelledValue]] = self._values.items

    def set(self, value: float, *labels: str) -> None:
        """Show this number until there is another. A counter of another process may begin again."""
        self._values[labels] = value

    def poll(self, poll: Callable[[], float]) -> None:
        """Show at each scrape what ``poll()`` returns."""
        self._poll = lambda: [((), poll())]

    def poll_labelled(self, poll: Callable[[], Iterable[LabelledValue]]) -> None:
        """Show at each scrape the pairs of label values and number that ``poll()`` returns."""
        self._poll = poll

    def read(self) -> Iterable[LabelledValue]:
        """The label values and the number of each sample."""
        return self._poll()


class _ReportedFamily(Collector):
    """A reported metric under its name, for the exposition."""

    def __init__(self, node_id: str, definition: MetricDefinition, metric: ReportedMetric) -> None:
        self._node_id = node_id
        self._definition = definition
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        definition = self._definition
        metric = Metric(definition.name.removesuffix("_total"), definition.words, definition.kind.value)
        for values, value in self._metric.read():
            labels = dict(zip(definition.all_labels, (self._node_id, *values), strict=True))
            metric.add_sample(definition.name, labels, value)
        yield metric


class _CountedFamily(Collector):
    """A metric of ``prometheus_client`` without the times of creation, and with bounds without exponents.

    Prometheus has stored what it scraped before under these names.
    """

    def __init__(self, metric: Collector) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        for found in self._metric.collect():
            metric = Metric(found.name, found.documentation, found.type)
            for sample in found.samples:
                if sample.name.endswith("_created"):
                    continue
                labels = sample.labels
                if labels.get("le", "+Inf") != "+Inf":
                    labels = {**labels, "le": str(float(labels["le"]))}
                metric.add_sample(sample.name, labels, sample.value, exemplar=sample.exemplar)
            yield metric


class MetricRegistry(Collector):
    """Makes metrics, and collects them in the order in which they were made.

    Each node has one; a test that counts makes its own.
    """

    def __init__(self, node_id: str = "") -> None:
        self.node_id = node_id
        self._collectors: dict[str, Collector] = {}
        self.definitions: list[MetricDefinition] = []

    @overload
    def counter(self, name: str, words: str) -> Counter: ...
    @overload
    def counter(self, name: str, words: str, label: str, /, *labels: str) -> Labelled[Counter]: ...
    def counter(self, name: str, words: str, *labels: str) -> Counter | Labelled[Counter]:
        """A number that only grows. Its name ends in ``_total``."""
        definition = MetricDefinition(name, MetricType.COUNTER, words, labels)
        counted: Counter = _Counter(name, words, definition.all_labels, registry=None)
        metric = self._counted(definition, counted)
        return metric if labels else metric.labels()

    @overload
    def gauge(self, name: str, words: str) -> Gauge: ...
    @overload
    def gauge(self, name: str, words: str, label: str, /, *labels: str) -> Labelled[Gauge]: ...
    def gauge(self, name: str, words: str, *labels: str) -> Gauge | Labelled[Gauge]:
        """A number that goes up and down."""
        definition = MetricDefinition(name, MetricType.GAUGE, words, labels)
        counted: Gauge = _Gauge(name, words, definition.all_labels, registry=None)
        metric = self._counted(definition, counted)
        return metric if labels else metric.labels()

    @overload
    def histogram(self, name: str, words: str, bounds: tuple[float, ...]) -> Histogram: ...
    @overload
    def histogram(
        self, name: str, words: str, bounds: tuple[float, ...], label: str, /, *labels: str
    ) -> Labelled[Histogram]: ...
    def histogram(
        self, name: str, words: str, bounds: tuple[float, ...], *labels: str
    ) -> Histogram | Labelled[Histogram]:
        """Observed numbers, counted in buckets with these upper bounds."""
        definition = MetricDefinition(name, MetricType.HISTOGRAM, words, labels, bounds)
        counted: Histogram = _Histogram(name, words, definition.all_labels, registry=None, buckets=bounds)
        metric = self._counted(definition, counted)
        return metric if labels else metric.labels()

    def labelled_counter(self, definition: MetricDefinition) -> Labelled[Counter]:
        """A counter for any thread. Raises ValueError for a name that there is already."""
        name, words, labels = definition.name, definition.words, definition.all_labels
        return self._counted(definition, Counter(name, words, labels, registry=None))

    def labelled_histogram(self, definition: MetricDefinition) -> Labelled[Histogram]:
        """A histogram for any thread. Raises as :meth:`labelled_counter` does."""
        name, words, labels = definition.name, definition.words, definition.all_labels
        return self._counted(
            definition, Histogram(name, words, labels, registry=None, buckets=definition.bounds)
        )

    def reported_gauge(self, name: str, words: str, *labels: str) -> ReportedMetric:
        """A gauge that shows what is read elsewhere."""
        return self._reported(MetricDefinition(name, MetricType.GAUGE, words, labels))

    def reported_counter(self, name: str, words: str, *labels: str) -> ReportedMetric:
        """A counter that another process counts."""
        return self._reported(MetricDefinition(name, MetricType.COUNTER, words, labels))

    def register(self, name: str, collector: Collector) -> None:
        """Collect these metrics, too. Raises ValueError for a name that there is already."""
        if name in self._collectors:
            raise ValueError(f"there is a metric {name} already")
        self._collectors[name] = collector

    def collect(self) -> Iterator[Metric]:
        for collector in tuple(self._collectors.values()):
            yield from collector.collect()

    def _counted(self, definition: MetricDefinition, metric: _M) -> Labelled[_M]:
        self._add(definition, _CountedFamily(metric))
        labelled = Labelled(metric, self.node_id)
        if not definition.labels:
            # It is shown from the start.
            labelled.labels()
        return labelled

    def _reported(self, definition: MetricDefinition) -> ReportedMetric:
        metric = ReportedMetric()
        self._add(definition, _ReportedFamily(self.node_id, definition, metric))
        return metric

    def _add(self, definition: MetricDefinition, collector: Collector) -> None:
        self.register(definition.name, collector)
        self.definitions.append(definition)
