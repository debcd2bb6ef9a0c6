"""Hands figures over to Ray, whose agent on the node exports them to Prometheus.

One call of Ray's takes 2 to 4 us, so nothing here is called for a token or a step: processes count in plain
numbers, and pass them on once a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from expertmesh.cluster.metrics.catalog import COMMON_LABELS, Metric, Process
from expertmesh.cluster.metrics.sink import MetricSink, NoMetrics
from expertmesh.configs.schema import DeploymentConfig

NOTHING = 5e-324
"""The least that Ray counts. With it a counter is there before anything has happened; otherwise Prometheus
would not see it rise the first time. Added to anything else it vanishes."""

_Labels = tuple[tuple[str, str], ...]


def metric_sink(config: DeploymentConfig, process: Process, replica: str = "") -> MetricSink:
    """Where a process of a deployment tells of itself; nowhere when metrics are off.

    Args:
        config: the deployment's.
        process: which kind it is.
        replica: Serve's id of it; empty for the coordinator.
    """
    if not config.metrics.enabled:
        return NoMetrics()
    common = (config.name, config.served_name, process, replica)
    return RaySink(dict(zip(COMMON_LABELS, common, strict=True)))


class RaySink:
    """Implements `MetricSink` in a process of a Ray cluster.

    As Ray 2.60 does it (tried): a gauge has to be set again and again, or it is gone from the node's agent
    two export intervals later (20 s by default), and so are those of a process that has ended; a counter
    stands there until the agent ends; a counter that nobody has raised is not exported at all, and Ray does
    not raise it by 0.

    Args:
        common: values of the labels that every metric has.
    """

    def __init__(self, common: Mapping[str, str]) -> None:
        self._common = dict(common)
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._told: dict[tuple[str, _Labels], float] = {}

    def total(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`. A value below the last one is that of a counter that began anew."""
        key = (metric.name, tuple(labels.items()))
        new, before = key not in self._told, self._told.get(key, 0.0)
        self._told[key] = value
        grown = value - before if value >= before else value
        if grown > 0 or new:
            counter = self._of(metric)
            assert isinstance(counter, Counter), metric.name
            counter.inc(grown or NOTHING, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`."""
        gauge = self._of(metric)
        assert isinstance(gauge, Gauge), metric.name
        gauge.set(value, labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricSink`."""
        histogram = self._of(metric)
        assert isinstance(histogram, Histogram), metric.name
        histogram.observe(value, labels)

    def observe_counts(self, metric: Metric, counts: Sequence[int], **labels: str) -> None:
        """See `MetricSink`. Ray takes values alone, and its agent knows of them only the bucket: the middle
        of it stands for all that are in it."""
        lower = 0.0
        for count, upper in zip(counts, (*metric.bounds, 3 * metric.bounds[-1]), strict=True):
            for _ in range(count):
                self.observe(metric, (lower + upper) / 2, **labels)
            lower = upper

    def _of(self, metric: Metric) -> Counter | Gauge | Histogram:
        known = self._metrics.get(metric.name)
        if known is None:
            known = self._metrics[metric.name] = _new(metric)
            known.set_default_tags(self._common)
        return known


def _new(metric: Metric) -> Counter | Gauge | Histogram:
    keys = (*COMMON_LABELS, *metric.labels)
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.help, tag_keys=keys)
        case "gauge":
            return Gauge(metric.name, metric.help, tag_keys=keys)
        case "histogram":
            return Histogram(metric.name, metric.help, boundaries=list(metric.bounds), tag_keys=keys)
