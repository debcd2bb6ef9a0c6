"""How evenly a placement spreads a load over the hosts."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh.cluster.types import Placement

Load = Sequence[Sequence[float]]
"""`[layer][logical expert]`: rows that the experts got."""


def expected_rows(placement: Placement, load: Load) -> tuple[tuple[float, ...], ...]:
    """`[layer][host]`: the rows that reach each host, when every copy of an expert gets an equal part."""
    return tuple(
        tuple(
            sum(load[layer][expert] / len(placement.replicas(layer, expert)) for expert in set(experts))
            for experts in hosts
        )
        for layer, hosts in enumerate(placement.layers)
    )


def expected_host_rows(placement: Placement, load: Load) -> tuple[float, ...]:
    """The rows that reach each host, summed over the layers."""
    return tuple(sum(of_host) for of_host in zip(*expected_rows(placement, load), strict=True))


def imbalance(host_rows: Sequence[float]) -> float:
    """The most loaded host's rows over the mean; 1 is even, as is no load at all."""
    total = sum(host_rows)
    return max(host_rows) * len(host_rows) / total if total > 0 else 1.0
