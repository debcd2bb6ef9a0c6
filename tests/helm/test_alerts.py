"""Alerts name metrics that exist: in this repository's code, in Serve's or in Ray's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ray
import yaml
from promql import metric_names

from expertmesh.cluster.metrics.catalog import CATALOG

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(ray.__file__).parent
SOURCES = (RAY / "serve/_private", RAY / "dashboard/modules/reporter")
OWN = {name for metric in CATALOG for name in metric.series}
SPARE = "monitoring.prometheusRule.spareHost=true"
pytestmark = pytest.mark.xdist_group("helm")


@pytest.fixture(scope="module")
def rules(chart):
    rendering = chart.render((), "monitoring.prometheusRule.enabled=true", SPARE)
    [group] = rendering.one("PrometheusRule")["spec"]["groups"]
    return group["rules"]


def metrics_of_ray() -> set[str]:
    """Every literal in Serve's and the agent's sources that could be a metric's name, as it is exported.

    Ray puts ray_ before every name, and Prometheus' convention _total behind a counter's.
    """
    found: set[str] = set()
    for folder in SOURCES:
        for path in folder.rglob("*.py"):
            found |= set(re.findall(r"""["']([a-z][a-z0-9_{}]+)["']""", path.read_text()))
    names = {f"ray_{name.replace('{protocol_name}', p)}" for name in found for p in ("http", "grpc")}
    return names | {f"{name}_total" for name in names}


def test_every_expression_parses_and_names_metrics_that_exist(rules):
    known = OWN | metrics_of_ray()
    for rule in rules:
        named = metric_names(rule["expr"])
        assert named, rule["alert"]
        assert named <= known, f"{rule['alert']}: {sorted(named - known)}"


def test_alerts_look_at_this_release_alone(rules):
    """Each selector names the namespace, and the application where the metric has it."""
    for rule in rules:
        for selector in re.findall(r"\w+\{[^}]*\}", rule["expr"]):
            assert 'namespace="' in selector, rule["alert"]
            assert 'application="' in selector or selector.startswith(
                ("ray_node_", "ray_expertmesh_scale_")
            )


def test_every_alert_says_what_it_means_and_operations_says_what_to_do(rules):
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert f"`{rule['alert']}`" in page, f"docs/operations.md does not name {rule['alert']}"


def test_labels_of_alerts_are_the_releases(chart):
    values = Path(__file__).parent / "values" / "gpu.yaml"
    rule = chart.render((values,)).one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert all(r["labels"]["team"] == "inference" for r in rule["spec"]["groups"][0]["rules"])
    assert 'application="deepseek"' in yaml.safe_dump(rule)
