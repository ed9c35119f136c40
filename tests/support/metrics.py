"""The numbers of a registry, and metrics that keep what was counted in order."""

from __future__ import annotations

from typing import Any

from elemta.metric_registry import MetricRegistry


def samples(registry: MetricRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and its labels but for node_id."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "node_id"))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def value(registry: MetricRegistry, name: str, **labels: str) -> float:
    """The number of one sample, which has to be there."""
    return samples(registry)[name, tuple(sorted(labels.items()))]


class Recorded:
    """Stands for a metric. ``seen`` has the label values that were counted, and the numbers observed."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def labels(self, *values: Any) -> _RecordedChild:
        return _RecordedChild(self.seen, values[0] if len(values) == 1 else values)

    def inc(self) -> None:
        self.seen.append(())

    def dec(self) -> None:
        self.seen.append("down")

    def observe(self, number: float) -> None:
        self.seen.append(number)


class _RecordedChild:
    def __init__(self, seen: list[Any], values: Any) -> None:
        self._seen = seen
        self._values = values

    def inc(self) -> None:
        self._seen.append(self._values)

    def observe(self, number: float) -> None:
        self._seen.append((self._values, number))


def record(metrics: object, name: str) -> list[Any]:
    """What is counted in the metric of this name from now on, in order."""
    recorded = Recorded()
    assert hasattr(metrics, name)
    setattr(metrics, name, recorded)
    return recorded.seen
