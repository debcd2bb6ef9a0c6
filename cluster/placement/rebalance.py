"""Evens out the load of a placement with few loads, in steps that the hosts have staging slots for.

The balancer's placement (`pack`) says how even a layer can get. A layer within TOLERANCE of that is left
alone; otherwise single exchanges (`search`) bring it there, or where these get stuck the balancer's
placement itself, in the order of hosts that has the most in common with what they hold.

Shapes: L layers, E logical experts, H hosts that hold experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expertmesh.cluster.placement.advance import advance
from expertmesh.cluster.placement.eplb import Floats, Ints
from expertmesh.cluster.placement.matching import best_assignment
from expertmesh.cluster.placement.pack import (
    Bools,
    Packing,
    groups_are_together,
    host_rows,
    pack,
    pack_groups,
)
from expertmesh.cluster.placement.search import ROUNDING, Exchange, even_layer, even_total
from expertmesh.cluster.placement.settle import Hosts

TOLERANCE = 0.02
"""Hosts may have so much more than the best known maximum of a layer, and than the mean over all layers."""


class Balancer:
    """The best placement for a load, and steps towards one as even.

    Args:
        load_LE: the experts' loads, none negative, `[L, E]`.
        shares_LH: each host's slots, `[L, H]`, all positive.
        nodes: each host's node, counted from 0.
        n_groups: of neighbouring experts, that keep to one node where hosts and groups divide evenly.
    """

    def __init__(self, load_LE: Floats, shares_LH: Ints, nodes: Sequence[int], n_groups: int) -> None:
        idle_L = load_LE.sum(axis=1) <= 0
        self._load_LE = np.where(idle_L[:, None], 0.0, load_LE)
        self._nodes = nodes
        self._n_groups = n_groups
        self._by_group = _is_hierarchical(shares_LH, nodes, n_groups, load_LE.shape[1])
        packed_LE = np.where(idle_L[:, None], 1.0, load_LE)
        if self._by_group:
            self._best = pack_groups(packed_LE, shares_LH, nodes, n_groups)
        else:
            self._best = pack(packed_LE, shares_LH, nodes)
        self._limits_L = np.where(idle_L, 0.0, self._best.rows_LH.max(axis=1) * (1 + TOLERANCE))

    @property
    def best(self) -> Packing:
        """The balancer's placement, for hosts that hold nothing yet."""
        return self._best

    def step(self, layers: list[Hosts], budgets: list[list[int]]) -> tuple[list[Hosts], bool]:
        """A step towards an even placement, and whether it gets there.

        Args:
            layers: which experts each host holds, `[layer][host]`, with the shares' counts.
            budgets: how many experts each host may load, `[layer][host]`.
        """
        now_LHE = np.stack([mask_of(hosts, self._load_LE.shape[1]) for hosts in layers])
        has_LHE = now_LHE.copy()
        ends = [
            self._step_layer(has_LHE[layer], layer, hosts, budgets[layer])
            for layer, hosts in enumerate(layers)
        ]
        complete = all(ends)
        if complete:
            moves = even_total(
                has_LHE.copy(), self._load_LE, self._limits_L, TOLERANCE, self._nodes, self._by_group
            )
            for layer, exchange in moves:
                if not _exchange(has_LHE[layer], now_LHE[layer], exchange, budgets[layer]):
                    complete = False
                    break
        return [experts_on(has_HE) for has_HE in has_LHE], complete

    def _step_layer(self, has_HE: Bools, layer: int, hosts: Hosts, budgets: list[int]) -> bool:
        """Changes a layer's mask; whether it gets to where it is to be."""
        load_E, limit = self._load_LE[layer], float(self._limits_L[layer])
        together = not self._by_group or groups_are_together(has_HE, self._nodes, self._n_groups)
        if together and host_rows(has_HE, load_E).max() <= limit * (1 + ROUNDING):
            return True
        moves = (
            list(even_layer(has_HE.copy(), load_E, limit, self._nodes, self._by_group))
            if together
            else [None]
        )
        if moves[-1] is not None:
            now_HE = has_HE.copy()
            return all(_exchange(has_HE, now_HE, move, budgets) for move in moves if move is not None)
        target = self._relabelled(has_HE, layer)
        placed = advance(hosts, experts_on(target), budgets)
        has_HE[:] = mask_of(placed, len(load_E))
        return bool((has_HE == target).all())

    def _relabelled(self, has_HE: Bools, layer: int) -> Bools:
        """The balancer's placement of a layer, for the hosts (and nodes) that lack the least of it.

        Only hosts with equally many slots may change places; with copies spread over nodes, or groups
        kept to them, only those of one node, or of whole nodes.
        """
        best_HE = self._best.has_LHE[layer]
        overlap_HH = has_HE.astype(np.int64) @ best_HE.T.astype(np.int64)
        nodes_H, shares_H = np.asarray(self._nodes), best_HE.sum(axis=1)
        n_nodes = int(nodes_H.max()) + 1
        of_node = [np.flatnonzero(nodes_H == node) for node in range(n_nodes)]
        node_for = list(range(n_nodes))
        if self._by_group:
            gain_NN = np.array([[_assign(overlap_HH, a, b)[0] for b in of_node] for a in of_node])
            node_for = best_assignment(gain_NN)
        source_H = np.arange(len(nodes_H))
        for node, hosts in enumerate(of_node):
            sources = of_node[node_for[node]]
            for share in np.unique(shares_H[hosts]):
                mine, theirs = hosts[shares_H[hosts] == share], sources[shares_H[sources] == share]
                source_H[mine] = _assign(overlap_HH, mine, theirs)[1]
        relabelled: Bools = best_HE[source_H]
        return relabelled


def _is_hierarchical(shares_LH: Ints, nodes: Sequence[int], n_groups: int, n_experts: int) -> bool:
    n_nodes = max(nodes) + 1
    counts = [list(nodes).count(node) for node in range(n_nodes)]
    return (
        n_nodes > 1
        and n_groups > 1
        and n_groups % n_nodes == 0
        and n_experts % n_groups == 0
        and min(counts) == max(counts)
        and bool((shares_LH == shares_LH[0, 0]).all())
        and int(shares_LH[0, 0]) <= n_experts // n_nodes
    )


def _assign(overlap_HH: Ints, mine: Ints, theirs: Ints) -> tuple[int, Ints]:
    """The largest overlap of two equally large sets of hosts, and whose place each of mine takes."""
    gain = overlap_HH[np.ix_(mine, theirs)]
    columns = best_assignment(gain)
    return int(gain[np.arange(len(mine)), columns].sum()), theirs[columns]


def _exchange(has_HE: Bools, now_HE: Bools, exchange: Exchange, budgets: list[int]) -> bool:
    """Does an exchange if the hosts may load what they then lack; otherwise changes nothing."""
    for host, dropped, loaded in exchange:
        has_HE[host, dropped], has_HE[host, loaded] = False, True
    n_loads_H = (has_HE & ~now_HE).sum(axis=1)
    if all(n_loads_H[host] <= budgets[host] for host, _, _ in exchange):
        return True
    for host, dropped, loaded in exchange:
        has_HE[host, dropped], has_HE[host, loaded] = True, False
    return False


def mask_of(hosts: Hosts, n_experts: int) -> Bools:
    has_HE = np.zeros((len(hosts), n_experts), np.bool_)
    for host, experts in enumerate(hosts):
        has_HE[host, experts] = True
    return has_HE


def experts_on(has_HE: Bools) -> Hosts:
    return [np.flatnonzero(experts).tolist() for experts in has_HE]
