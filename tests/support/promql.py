"""Which metrics Prometheus expressions name, by the parser that Prometheus' own grammar gives."""

from __future__ import annotations

import promql_parser


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression selects; ValueError when it is none."""
    names: set[str] = set()
    _collect(promql_parser.parse(expression), names)
    return names


def _collect(node: object, names: set[str]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        names.add(node.name)
        return
    for field in ("expr", "lhs", "rhs", "param", "vector_selector", "args", "vs"):
        child = getattr(node, field, None)
        for part in child if isinstance(child, list | tuple) else [child]:
            if part is not None and not isinstance(part, str):
                _collect(part, names)
