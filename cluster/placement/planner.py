"""The placer of a deployment: what new, leaving and lost hosts require, and where the load is to go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from expertmesh.cluster.placement.advance import UNLIMITED, advance
from expertmesh.cluster.placement.eplb import Floats
from expertmesh.cluster.placement.interface import HostSlots, PlacementStep
from expertmesh.cluster.placement.rebalance import Balancer, experts_on
from expertmesh.cluster.placement.settle import Hosts, settle
from expertmesh.cluster.placement.shares import host_shares, usable_rooms
from expertmesh.cluster.types import Placement

LoadOf = Callable[[], Sequence[Sequence[float]] | None]
"""`[layer][logical expert]`: rows in the window; None while nothing worth acting upon is known."""


def no_load() -> None:
    """Nothing is known of the load."""


class ExpertPlacer:
    """Places the experts of all MoE layers; see `cluster.placement.interface.Placer`.

    Args:
        n_layers: MoE layers.
        n_experts: logical experts of each.
        n_groups: groups of neighbouring experts that the gate chooses by; each keeps to a node if it can.
        redundant_slots: slots of each layer beyond one for each expert.
        staging_slots: experts of one layer that a host may load in a step beside those that it holds; a
            host that holds none of the layer fills its own slots. None is no bound.
        load: asked with every plan.
    """

    def __init__(
        self,
        n_layers: int,
        n_experts: int,
        *,
        n_groups: int = 1,
        redundant_slots: int = 0,
        staging_slots: int | None = None,
        load: LoadOf = no_load,
    ) -> None:
        self._n_layers = n_layers
        self._n_experts = n_experts
        self._n_groups = n_groups
        self._redundant_slots = redundant_slots
        self._staging_slots = staging_slots
        self._load_of = load

    def __call__(self, hosts: Sequence[HostSlots], *, rebalance: bool, staged: bool) -> PlacementStep:
        """See `cluster.placement.interface.Placer`.

        A placement that follows a loss (not `staged`) loads only experts that nobody holds, and what fills
        new hosts; lost copies of others are loaded by the next step, while it serves.
        """
        if not hosts or not self._n_layers:
            return PlacementStep(Placement(()), complete=True, n_loads=0)
        rooms, n_slots = usable_rooms(hosts, self._n_experts, self._redundant_slots)
        plan = _Plan(hosts, rooms, n_slots, self._load(), self._n_layers, self._n_experts, self._n_groups)
        if not any(any(host.held) for host in hosts):
            layers, complete = plan.from_nothing(), True
        elif staged:
            layers, complete = plan.settled(self._staging_slots)
        else:
            layers, complete = plan.recovered()
        if rebalance and complete:
            layers, complete = plan.rebalanced(layers, self._staging_slots if staged else None)
        return plan.step(layers, complete)

    def _load(self) -> Floats | None:
        load = self._load_of()
        if load is None:
            return None
        load_LE = np.asarray(load, np.float64)
        if load_LE.shape != (self._n_layers, self._n_experts):
            expected = f"{self._n_layers} layers x {self._n_experts} experts"
            raise ValueError(f"the load has shape {load_LE.shape}, expected {expected}")
        return load_LE if load_LE.sum() > 0 else None


class _Plan:
    """One plan: the hosts, how many slots they are to share, and the load."""

    def __init__(
        self,
        hosts: Sequence[HostSlots],
        rooms: Sequence[int],
        n_slots: int,
        load_LE: Floats | None,
        n_layers: int,
        n_experts: int,
        n_groups: int,
    ) -> None:
        self._hosts = hosts
        self._rooms = rooms
        self._n_slots = n_slots
        self._load_LE = load_LE
        self._n_groups = n_groups
        self._n_experts = n_experts
        self._nodes = [host.node for host in hosts]
        self._held: list[Hosts] = [
            [list(dict.fromkeys(host.held[layer])) if host.held else [] for host in hosts]
            for layer in range(n_layers)
        ]
        self._shares = lru_cache(maxsize=None)(self._shares_of)

    def from_nothing(self) -> list[Hosts]:
        """The balancer's placement; without load contiguous runs, the same for every layer."""
        shares = self._shares((0,) * len(self._hosts), self._n_slots)
        if self._load_LE is not None:
            active = [host for host, share in enumerate(shares) if share]
            layers = self._balancer([[list(range(share)) for share in shares]] * len(self._held), active)
            return [self._spread(experts_on(has_HE), active) for has_HE in layers.best.has_LHE]
        one_each = self._shares((0,) * len(self._hosts), self._n_experts)
        ends = np.cumsum(one_each).tolist()
        runs = [list(range(end - n, end)) for n, end in zip(one_each, ends, strict=True)]
        return [settle(runs, shares, [1.0] * self._n_experts, self._nodes)] * len(self._held)

    def settled(self, staging_slots: int | None) -> tuple[list[Hosts], bool]:
        """A step towards full shares, and whether it gets there."""
        layers: list[Hosts] = []
        complete = True
        for layer, held in enumerate(self._held):
            target = self._settle(layer, self._n_slots)
            placed = advance(held, target, self._budgets(layer, staging_slots))
            complete &= all(set(a) == set(b) for a, b in zip(placed, target, strict=True))
            layers.append(placed)
        return layers, complete

    def recovered(self) -> tuple[list[Hosts], bool]:
        """Even shares of no more slots than the staying hosts have filled and lost experts need."""
        layers = []
        for layer in range(len(self._held)):
            copies = Counter(expert for experts in self._keepable(layer) for expert in experts)
            n_slots = min(self._n_slots, self._n_experts + copies.total() - len(copies))
            layers.append(self._settle(layer, n_slots))
        return layers, all(sum(map(len, hosts)) == self._n_slots for hosts in layers)

    def rebalanced(self, layers: list[Hosts], staging_slots: int | None) -> tuple[list[Hosts], bool]:
        """A step from settled layers to an even load, and whether it gets there."""
        if self._load_LE is None:
            return layers, True
        active = [host for host in range(len(self._hosts)) if layers[0][host]]
        balancer = self._balancer(layers, active)
        budgets = [
            [
                budget - len(set(hosts[host]) - set(self._held[layer][host]))
                for host, budget in enumerate(self._budgets(layer, staging_slots))
            ]
            for layer, hosts in enumerate(layers)
        ]
        of_active = [[of_layer[host] for host in active] for of_layer in budgets]
        while True:
            now = [[hosts[host] for host in active] for hosts in layers]
            step, complete = balancer.step(now, of_active)
            layers = [self._spread(hosts, active) for hosts in step]
            # Where copies were dropped to get here, an exchange may only bring them back, which is no step.
            if complete or self._n_loads(layers):
                return layers, complete

    def step(self, layers: list[Hosts], complete: bool) -> PlacementStep:
        """The answer: experts that a host has keep their order, new ones come behind them."""
        ordered = tuple(
            tuple(
                (*(e for e in before if e in after), *sorted(set(after) - set(before)))
                for before, after in zip(held, placed, strict=True)
            )
            for held, placed in zip(self._held, layers, strict=True)
        )
        return PlacementStep(Placement(ordered), complete, self._n_loads(layers))

    def _n_loads(self, layers: list[Hosts]) -> int:
        return sum(
            len(set(after) - set(before))
            for held, placed in zip(self._held, layers, strict=True)
            for before, after in zip(held, placed, strict=True)
        )

    def _settle(self, layer: int, n_slots: int) -> Hosts:
        keepable = self._keepable(layer)
        shares = self._shares(tuple(map(len, keepable)), n_slots)
        load = self._load_LE[layer].tolist() if self._load_LE is not None else [1.0] * self._n_experts
        return settle(keepable, shares, load, self._nodes)

    def _keepable(self, layer: int) -> Hosts:
        return [
            experts if room else [] for experts, room in zip(self._held[layer], self._rooms, strict=True)
        ]

    def _budgets(self, layer: int, staging_slots: int | None) -> list[int]:
        """How many experts each host may load."""
        held = self._held[layer]
        if (
            staging_slots is None
            or len({expert for experts in held for expert in experts}) < self._n_experts
        ):
            return [UNLIMITED] * len(held)
        return [staging_slots if experts else UNLIMITED for experts in held]

    def _balancer(self, layers: list[Hosts], active: Sequence[int]) -> Balancer:
        assert self._load_LE is not None
        shares_LH = np.array([[len(hosts[host]) for host in active] for hosts in layers])
        numbers: dict[str, int] = {}
        nodes = [numbers.setdefault(self._nodes[host], len(numbers)) for host in active]
        return Balancer(self._load_LE, shares_LH, nodes, self._n_groups)

    def _spread(self, hosts: Hosts, active: Sequence[int]) -> Hosts:
        """The active hosts' experts in their places among all hosts."""
        spread: Hosts = [[] for _ in self._hosts]
        for host, experts in zip(active, hosts, strict=True):
            spread[host] = experts
        return spread

    def _shares_of(self, n_held: tuple[int, ...], n_slots: int) -> list[int]:
        return host_shares(n_slots, self._rooms, n_held)
