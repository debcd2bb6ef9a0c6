"""The catalogue keeps to Prometheus' conventions, and docs/metrics.md says what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.catalog import CATALOG, COMMON_LABELS, Metric

REPOSITORY = Path(__file__).resolve().parents[4]
UNBOUNDED = {"request_id", "prompt", "user", "key", "reason_text", "incarnation", "error"}
"""What a label must never be: Prometheus keeps a series for each value."""


def test_it_holds_every_metric_of_the_module_once():
    defined = [value for value in vars(catalog).values() if isinstance(value, Metric)]
    assert sorted(m.name for m in CATALOG) == sorted(m.name for m in defined)
    assert len({m.name for m in CATALOG}) == len(CATALOG)


@pytest.mark.parametrize("metric", CATALOG, ids=lambda m: m.name)
def test_names_and_labels_follow_the_conventions(metric):
    assert re.fullmatch(r"expertmesh_[a-z][a-z0-9_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|millis|us|kb|mb|percent)(_|$)", metric.name)
    assert metric.help.endswith(".")
    assert not set(metric.labels) & (set(COMMON_LABELS) | UNBOUNDED | {"le", "quantile"})
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert all(bound > 0 for bound in metric.bounds), "Ray takes no others"


def test_the_page_is_current():
    path = REPOSITORY / "tools" / "gen_metrics_docs.py"
    spec = importlib.util.spec_from_file_location("gen_metrics_docs", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert page == generator.render(), "run `make docs`"
    assert [m.name for m in CATALOG if f"| `{m.exported}` |" not in page] == []
