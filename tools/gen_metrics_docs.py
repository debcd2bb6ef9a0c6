"""Writes docs/metrics.md from the catalogue: `python tools/gen_metrics_docs.py`."""

from __future__ import annotations

from pathlib import Path

from expertmesh.cluster.metrics.catalog import CATALOG, COMMON_LABELS, Metric

TARGET = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
INTRO = """# Metrics

<!-- Written by tools/gen_metrics_docs.py from cluster/metrics/catalog.py (`make docs`). -->

Every process counts for itself and tells Ray of it once a second. Ray passes it on to its agent on the node
every `RAY_metrics_report_interval_ms` (10 s), and Prometheus scrapes that. `metrics.enabled: false` turns
all of it off.

- Names are those that Prometheus sees. Labels are `{labels}`
  besides those in the table; no label holds what a client sends. Ray adds `SessionName`, `NodeAddress`,
  `WorkerId` and others.
- A gauge of a process that is gone disappears two export intervals later (20 s). Counters and histograms
  stay until Ray's agent on the node ends, and stand still: use `rate` and `increase`.
- Ray has no zero for a counter: one that has not counted yet stands at 5e-324, so that `increase` sees its
  first count.
- Ray's agent knows of a histogram's values only which bucket they are in: `_bucket` and `_count` are exact,
  `_sum` takes every value for the middle of its bucket.
- The coordinator's counters begin anew when it is restarted.
"""


def render() -> str:
    """The whole page."""
    parts = [INTRO.format(labels="`, `".join(COMMON_LABELS))]
    for title, processes in _groups():
        rows = [_row(metric) for metric in CATALOG if metric.processes == processes]
        head = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {title}", "", *head, *rows]) + "\n")
    return "\n".join(parts)


def _groups() -> list[tuple[str, tuple[str, ...]]]:
    titles = {
        "gateway": "Gateways",
        "router": "Routers",
        "experts": "Expert hosts",
        "coordinator": "The coordinator",
    }
    found = list(dict.fromkeys(metric.processes for metric in CATALOG))
    return [
        (" and ".join(titles[p] for p in processes).replace("and E", "and e"), processes)
        for processes in found
    ]


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    meaning = f"{metric.help} Only if {metric.when}." if metric.when else metric.help
    return f"| `{metric.exported}` | {metric.kind} | {labels} | {meaning} |"


if __name__ == "__main__":
    TARGET.write_text(render())
