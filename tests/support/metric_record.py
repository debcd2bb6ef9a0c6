"""A sink that remembers what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from expertmesh.cluster.metrics.catalog import Metric

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class MetricRecord:
    """Implements `MetricSink`; holds every metric to its kind and labels."""

    values: dict[Key, float] = field(default_factory=dict)
    observed: dict[Key, list[float]] = field(default_factory=dict)
    counts: dict[Key, list[int]] = field(default_factory=dict)

    def total(self, metric: Metric, value: float, **labels: str) -> None:
        self.values[_key(metric, "counter", labels)] = value

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self.values[_key(metric, "gauge", labels)] = value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self.observed.setdefault(_key(metric, "histogram", labels), []).append(value)

    def observe_counts(self, metric: Metric, counts: Sequence[int], **labels: str) -> None:
        key = _key(metric, "histogram", labels)
        assert len(counts) == len(metric.bounds) + 1
        before = self.counts.get(key, [0] * len(counts))
        self.counts[key] = [a + b for a, b in zip(before, counts, strict=True)]

    def value(self, metric: Metric, **labels: str) -> float | None:
        """What a counter or gauge was last told; None when it was not."""
        return self.values.get((metric.name, tuple(sorted(labels.items()))))

    def count(self, metric: Metric, **labels: str) -> int:
        """How many values a histogram was given."""
        key = (metric.name, tuple(sorted(labels.items())))
        return sum(self.counts.get(key, [])) + len(self.observed.get(key, []))


def _key(metric: Metric, kind: str, labels: dict[str, str]) -> Key:
    assert metric.kind == kind, metric.name
    assert set(labels) == set(metric.labels), metric.name
    return metric.name, tuple(sorted(labels.items()))
