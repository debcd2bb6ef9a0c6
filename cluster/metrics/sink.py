"""Where numbers go: the interface between what a process counts and what Ray exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from expertmesh.cluster.metrics.catalog import Metric


class MetricSink(Protocol):
    """Takes figures; labels are those that the catalogue gives the metric besides the common ones."""

    def total(self, metric: Metric, value: float, **labels: str) -> None:
        """A counter stands at `value`, since this process began."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """A gauge stands at `value`."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """A histogram gets one value."""

    def observe_counts(self, metric: Metric, counts: Sequence[int], **labels: str) -> None:
        """A histogram gets so many values in each of its buckets, the last one infinite."""


class NoMetrics:
    """Drops everything."""

    def total(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`."""

    def observe_counts(self, metric: Metric, counts: Sequence[int], **labels: str) -> None:
        """See `MetricSink`."""
