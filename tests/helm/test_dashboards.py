"""The Grafana dashboard is one that Grafana takes, names metrics that exist, and fits Ray's dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from promql import metric_names

from expertmesh.cluster.metrics.catalog import CATALOG

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((REPOSITORY / "helm" / "dashboards").glob("*.json"))
RAY_PAGES = Path(ray.__file__).parent / "dashboard" / "client" / "build" / "static" / "js"
ROWS = ["Traffic", "Latency", "Engine", "Experts", "Changes", "Autoscaler"]
pytestmark = pytest.mark.xdist_group("helm")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    [path] = DASHBOARDS
    return json.loads(path.read_text())


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Every expression, Grafana's variables replaced by what they stand for."""
    found = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    return [e.replace("$__rate_interval", "1m").replace("$application", ".*") for e in found]


def test_it_is_a_dashboard(dashboard):
    assert dashboard["uid"] == "expertmesh"
    assert dashboard["schemaVersion"] >= 36
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == ROWS
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert metric_names(re.search(r"\((\w+),", variables["application"]["definition"])[1]) <= {
        metric.exported for metric in CATALOG
    }
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_panels_lie_beside_each_other(dashboard):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_expression_parses_and_names_series_that_exist(dashboard):
    known = {name for metric in CATALOG for name in metric.series}
    for expression in expressions(dashboard):
        named = metric_names(expression)
        assert named
        assert named <= known, f"{expression}: {sorted(named - known)}"
        assert expression.count('application=~".*"') == len(re.findall(r"ray_expertmesh_\w+\{", expression))


def test_every_metric_that_says_something_of_the_whole_is_on_it(dashboard):
    named = set().union(*map(metric_names, expressions(dashboard)))
    left_out = [m.name for m in CATALOG if not set(m.series) & named]
    assert left_out == ["expertmesh_logical_expert_rows"], (
        "one series for each expert: for queries of one's own"
    )


def test_rays_page_of_serve_finds_the_panels_that_it_embeds(dashboard):
    """Ray asks Grafana for panels by their numbers, of the dashboard with the uid that it is told."""
    [page] = RAY_PAGES.glob("main.*.js")
    text = page.read_text()
    wanted = set()
    for title in ("QPS per application", "Ongoing HTTP Requests"):
        listed = re.search(rf'\[\{{title:"{title}".*?\]', text)
        assert listed, f"Ray's page has no list of panels with {title!r} any more"
        wanted |= {int(n) for n in re.findall(r'panelId=(\d+)"', listed[0])}
    assert len(wanted) > 5
    assert wanted <= {panel["id"] for panel in panels(dashboard)}
    # The page gives the data source and nothing else that would have to be a variable.
    assert '"&var-datasource="' in text


def test_the_chart_brings_it_and_ray_is_told_of_it(chart):
    values = Path(__file__).parent / "values" / "gpu.yaml"
    rendering = chart.render((values,))
    config_map = rendering.one("ConfigMap", "mesh-expertmesh-dashboards")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["metadata"]["annotations"]["grafana_folder"] == "Models"
    assert config_map["data"] == {path.name: path.read_text() for path in DASHBOARDS}
    cluster = rendering.one("RayService")["spec"]["rayClusterConfig"]
    [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in head["env"]}
    assert environment["RAY_GRAFANA_HOST"] == environment["RAY_GRAFANA_IFRAME_HOST"]
    assert environment["RAY_GRAFANA_SERVE_DASHBOARD_UID"] == json.loads(DASHBOARDS[0].read_text())["uid"]
    for group in cluster["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            assert not [v for v in container["env"] if v["name"].startswith("RAY_GRAFANA")]


def test_by_default_there_is_none(chart):
    assert chart.render().of("ConfigMap", "mesh-expertmesh-dashboards") == []
