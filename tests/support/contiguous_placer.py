"""A placer that knows nothing of load or of what hosts hold: for tests of what is around it."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh.cluster.placement.contiguous import contiguous_placement
from expertmesh.cluster.placement.interface import HostSlots, PlacementStep
from expertmesh.cluster.types import Placement


class ContiguousPlacer:
    """`contiguous_placement` of the staying hosts, in one step."""

    def __init__(self, n_layers: int, n_experts: int) -> None:
        self._n_layers = n_layers
        self._n_experts = n_experts

    def __call__(self, hosts: Sequence[HostSlots], *, rebalance: bool, staged: bool) -> PlacementStep:
        """See `cluster.placement.interface.Placer`."""
        staying = [i for i, host in enumerate(hosts) if host.staying]
        placed = contiguous_placement(self._n_layers, self._n_experts, len(staying))
        layers = tuple(
            tuple(slots[staying.index(i)] if i in staying else () for i in range(len(hosts)))
            for slots in placed.layers
        )
        n_loads = sum(
            len(set(slots) - set(hosts[i].held[layer] if hosts[i].held else ()))
            for layer, of_hosts in enumerate(layers)
            for i, slots in enumerate(of_hosts)
        )
        return PlacementStep(Placement(layers), complete=True, n_loads=n_loads)
