"""The placement without knowledge of load: contiguous runs, the same for every layer."""

from __future__ import annotations

from expertmesh.cluster.placement.interface import PlacementError
from expertmesh.cluster.types import Placement


def contiguous_placement(
    n_layers: int, n_experts: int, n_hosts: int, slots_per_host: int | None = None
) -> Placement:
    """One replica of every expert, contiguous runs, the same for every layer.

    The result's `layers` has shape `[n_layers][n_hosts][slots]`; a layer's hosts have n_experts // n_hosts
    slots each, and the first n_experts % n_hosts one more, so that counts need not divide. Without
    hosts (fused mode) or without MoE layers it is empty. `slots_per_host` bounds a layer's experts on
    one host; None is no bound. Raises PlacementError when the experts do not fit.
    """
    if n_hosts == 0 or n_layers == 0:
        return Placement(())
    least, n_larger = divmod(n_experts, n_hosts)
    if least == 0:
        raise PlacementError(
            f"{n_hosts} expert hosts for {n_experts} experts a layer: use no more hosts than that"
        )
    if slots_per_host is not None and n_hosts * slots_per_host < n_experts:
        raise PlacementError(
            f"{n_experts} experts a layer do not fit in {n_hosts} hosts x {slots_per_host} slots; "
            f"{-(-n_experts // slots_per_host)} hosts are needed"
        )
    hosts = []
    first = 0
    for host in range(n_hosts):
        n = least + (host < n_larger)
        hosts.append(tuple(range(first, first + n)))
        first += n
    return Placement((tuple(hosts),) * n_layers)
