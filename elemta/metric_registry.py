"""The types of metrics, and the registry that makes them and shows them to Prometheus.

Counters, gauges and histograms are used as those of ``prometheus_client``, which writes the text format.
Its own take a lock and several calls for each increment; these are plain numbers of the reactor thread.
"""

from __future__ import annotations

import enum
import functools
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, overload

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

#: One set of label values, in the order of the metric's labels, and its number.
LabelledValue = tuple[tuple[str, ...], float]
#: What comes behind the name of the metric, the labels beside its own, and the number.
Numbers = Iterable[tuple[str, dict[str, str], float]]


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


class Counter:
    """A number that only grows."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: float = 0

    def inc(self, amount: float = 1) -> None:
        self._value += amount

    def numbers(self) -> Numbers:
        return (("", {}, self._value),)


class Gauge(Counter):
    """A number that goes up and down."""

    __slots__ = ()

    def dec(self, amount: float = 1) -> None:
        self._value -= amount


class Histogram:
    """Observed numbers, counted in buckets with upper bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: float = 0

    def observe(self, number: float) -> None:
        self._counts[bisect_left(self._bounds, number)] += 1
        self._sum += number

    def numbers(self) -> Numbers:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", {"le": bound}, total
        yield "_count", {}, total
        yield "_sum", {}, self._sum


class _Child(Protocol):
    def numbers(self) -> Numbers: ...


_M = TypeVar("_M", bound=_Child)


class Labelled(Generic[_M]):
    """A metric with labels. ``labels("MAIL", 250)`` is the child with these values.

    A child is made once and cached. Label values never come from a client, so that there are few.
    """

    __slots__ = ("_children", "_make", "labels")

    def __init__(self, make: Callable[[], _M]) -> None:
        self._make = make
        self._children: dict[tuple[str, ...], _M] = {}
        self.labels = functools.cache(self._child)

    def _child(self, *values: Hashable) -> _M:
        words = tuple(str(each.value if isinstance(each, enum.Enum) else each) for each in values)
        child = self._children.get(words)
        if child is None:
            child = self._children[words] = self._make()
        return child

    def read(self) -> Iterator[tuple[tuple[str, ...], Numbers]]:
        """The label values and the numbers of each child."""
        for values, child in self._children.items():
            yield values, child.numbers()


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

    def read(self) -> Iterator[tuple[tuple[str, ...], Numbers]]:
        """The label values and the number of each sample."""
        for values, value in self._poll():
            yield values, (("", {}, value),)


class _Family(Collector):
    """A metric under its name, for the exposition."""

    def __init__(
        self,
        node_id: str,
        definition: MetricDefinition,
        read: Callable[[], Iterable[tuple[tuple[str, ...], Numbers]]],
    ) -> None:
        self._node_id = node_id
        self._definition = definition
        self._read = read

    def collect(self) -> Iterator[Metric]:
        definition = self._definition
        metric = Metric(definition.name.removesuffix("_total"), definition.words, definition.kind.value)
        for values, numbers in self._read():
            labels = dict(zip(("node_id", *definition.labels), (self._node_id, *values), strict=True))
            for suffix, more, number in numbers:
                metric.add_sample(definition.name + suffix, {**labels, **more}, number)
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
        return self._counted(MetricDefinition(name, MetricType.COUNTER, words, labels), Counter)

    @overload
    def gauge(self, name: str, words: str) -> Gauge: ...
    @overload
    def gauge(self, name: str, words: str, label: str, /, *labels: str) -> Labelled[Gauge]: ...
    def gauge(self, name: str, words: str, *labels: str) -> Gauge | Labelled[Gauge]:
        """A number that goes up and down."""
        return self._counted(MetricDefinition(name, MetricType.GAUGE, words, labels), Gauge)

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
        return self._counted(definition, lambda: Histogram(bounds))

    def reported_gauge(self, name: str, words: str, *labels: str) -> ReportedMetric:
        """A gauge that shows what is read elsewhere."""
        return self._reported(MetricDefinition(name, MetricType.GAUGE, words, labels))

    def reported_counter(self, name: str, words: str, *labels: str) -> ReportedMetric:
        """A counter that another process counts."""
        return self._reported(MetricDefinition(name, MetricType.COUNTER, words, labels))

    def labelled(self, definition: MetricDefinition, make: Callable[[], _M]) -> Labelled[_M]:
        """A metric with this definition, whose children are made by ``make``.

        Raises ValueError for a name that there is already. Without labels there is one child, from the start.
        """
        metric = Labelled(make)
        self._add(definition, metric.read)
        if not definition.labels:
            metric.labels()
        return metric

    def register(self, name: str, collector: Collector) -> None:
        """Collect these metrics, too. Raises ValueError for a name that there is already."""
        if name in self._collectors:
            raise ValueError(f"there is a metric {name} already")
        self._collectors[name] = collector

    def collect(self) -> Iterator[Metric]:
        for collector in tuple(self._collectors.values()):
            yield from collector.collect()

    def _counted(self, definition: MetricDefinition, make: Callable[[], _M]) -> _M | Labelled[_M]:
        metric = self.labelled(definition, make)
        return metric if definition.labels else metric.labels()

    def _reported(self, definition: MetricDefinition) -> ReportedMetric:
        metric = ReportedMetric()
        self._add(definition, metric.read)
        return metric

    def _add(
        self, definition: MetricDefinition, read: Callable[[], Iterable[tuple[tuple[str, ...], Numbers]]]
    ) -> None:
        self.register(definition.name, _Family(self.node_id, definition, read))
        self.definitions.append(definition)
