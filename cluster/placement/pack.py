"""Where the experts would best stand: the balancer's placement, with no expert twice on a host.

Shapes: L layers, E logical experts, H hosts, S slots over all hosts, X rows (layers, or layers by nodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh.cluster.placement.eplb import Floats, Ints, pack_balanced, replicate

Bools = NDArray[np.bool_]

NODE_PENALTY = 0.02
"""Of a host's mean load: so much more another node may be loaded and still get an expert's second copy."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A placement of all layers, for hosts whose shares are the same in it."""

    has_LHE: Bools
    """Whether a host holds an expert."""
    rows_LH: Floats
    """Load of each host."""


def host_rows(has_HE: Bools, load_E: Floats) -> Floats:
    """Each host's load in one layer, `[H]`: every copy of an expert gets an equal part."""
    rows_H: Floats = has_HE @ (load_E / np.maximum(has_HE.sum(axis=0), 1))
    return rows_H


def pack(load_LE: Floats, shares_LH: Ints, nodes: Sequence[int]) -> Packing:
    """The balancer's global policy: copies of the most loaded, each on the least loaded host that has room.

    Args:
        load_LE: the experts' loads, `[L, E]`.
        shares_LH: each host's slots, `[L, H]`; together equally many in every layer, at least E.
        nodes: each host's node, counted from 0; copies of an expert go to different ones.
    """
    has_LHE = _pack(load_LE, shares_LH, np.asarray(nodes))
    rows_LH = np.array([host_rows(has, load) for has, load in zip(has_LHE, load_LE, strict=True)])
    return Packing(*_even_over_layers(has_LHE, rows_LH, shares_LH, nodes))


def pack_groups(load_LE: Floats, shares_LH: Ints, nodes: Sequence[int], n_groups: int) -> Packing:
    """The balancer's hierarchical policy: every group of experts on one node, with all its copies.

    Args:
        load_LE: the experts' loads, `[L, E]`.
        shares_LH: each host's slots, `[L, H]`, all equal.
        nodes: each host's node, counted from 0, with equally many hosts each.
        n_groups: groups of neighbouring experts; a multiple of the number of nodes.
    """
    n_layers, n_experts = load_LE.shape
    n_nodes = max(nodes) + 1
    group_of_E = np.arange(n_experts) // (n_experts // n_groups)
    node_LG, _ = pack_balanced(load_LE.reshape(n_layers, n_groups, -1).sum(axis=2), n_nodes)
    node_LE = node_LG[:, group_of_E]
    has_LHE = np.zeros((n_layers, len(nodes), n_experts), np.bool_)
    rows_LH = np.zeros((n_layers, len(nodes)))
    for node in range(n_nodes):
        hosts = np.flatnonzero(np.asarray(nodes) == node)
        expert_LN = np.stack([np.flatnonzero(of_layer == node) for of_layer in node_LE])
        load_LN = np.take_along_axis(load_LE, expert_LN, axis=1)
        one_node = [0] * len(hosts)
        inner = pack(load_LN, shares_LH[:, hosts], one_node)
        for layer in range(n_layers):
            has_LHE[layer][np.ix_(hosts, expert_LN[layer])] = inner.has_LHE[layer]
        rows_LH[:, hosts] = inner.rows_LH
    return Packing(has_LHE, rows_LH)


def groups_are_together(has_HE: Bools, nodes: Sequence[int], n_groups: int) -> bool:
    """Whether every group of experts stands on one node alone."""
    n_nodes = max(nodes) + 1
    has_NE = np.stack([has_HE[np.asarray(nodes) == node].any(axis=0) for node in range(n_nodes)])
    has_NG = has_NE.reshape(n_nodes, n_groups, -1).any(axis=2)
    return bool((has_NG.sum(axis=0) == 1).all())


def _pack(load_LE: Floats, shares_LH: Ints, nodes_H: Ints) -> Bools:
    n_layers, n_experts = load_LE.shape
    n_hosts, n_nodes = shares_LH.shape[1], int(nodes_H.max()) + 1
    max_copies = int((shares_LH > 0).sum(axis=1).min())
    expert_LS, copies_LE = replicate(load_LE, int(shares_LH[0].sum()), max_copies)
    rate_LS = np.take_along_axis(load_LE / copies_LE, expert_LS, axis=1)
    order_LS = np.argsort(-rate_LS, axis=1, kind="stable")
    penalty_L = NODE_PENALTY * load_LE.sum(axis=1) / n_hosts
    has_LHE = np.zeros((n_layers, n_hosts, n_experts), np.bool_)
    on_node_LNE = np.zeros((n_layers, n_nodes, n_experts), np.bool_)
    rows_LH = np.zeros((n_layers, n_hosts))
    room_LH = shares_LH.copy()
    layers = np.arange(n_layers)
    left_over: list[tuple[int, int]] = []
    for slots in order_LS.T:
        experts, rates = expert_LS[layers, slots], rate_LS[layers, slots]
        cost_LH = (
            rows_LH + penalty_L[:, None] * on_node_LNE[layers[:, None], nodes_H[None], experts[:, None]]
        )
        cost_LH = np.where((room_LH > 0) & ~has_LHE[layers, :, experts], cost_LH, np.inf)
        hosts = cost_LH.argmin(axis=1)
        fits = np.isfinite(cost_LH[layers, hosts])
        left_over += [(int(layer), int(experts[layer])) for layer in np.flatnonzero(~fits)]
        at, hosts, experts = layers[fits], hosts[fits], experts[fits]
        has_LHE[at, hosts, experts] = True
        on_node_LNE[at, nodes_H[hosts], experts] = True
        rows_LH[at, hosts] += rates[fits]
        room_LH[at, hosts] -= 1
    for layer, expert in left_over:
        _place_left_over(has_LHE[layer], expert, load_LE[layer], shares_LH[layer])
    return has_LHE


def _place_left_over(has_HE: Bools, expert: int, load_E: Floats, shares_H: Ints) -> None:
    """Places a copy where only hosts that have one already have room: by a swap, or else another's copy."""
    host = int(np.argmax(shares_H - has_HE.sum(axis=1)))
    if has_HE[host, expert]:
        for other in np.argsort(host_rows(has_HE, load_E), kind="stable"):
            movable = np.flatnonzero(has_HE[other] & ~has_HE[host])
            if not has_HE[other, expert] and len(movable):
                least = movable[np.argmin(load_E[movable])]
                has_HE[other, least], has_HE[other, expert] = False, True
                expert = int(least)
                break
        else:
            lacking = np.flatnonzero(~has_HE[host])
            expert = int(lacking[np.argmax((load_E / np.maximum(has_HE.sum(axis=0), 1))[lacking])])
    has_HE[host, expert] = True


def _even_over_layers(
    has_LHE: Bools, rows_LH: Floats, shares_LH: Ints, nodes: Sequence[int]
) -> tuple[Bools, Floats]:
    """Exchanges hosts of one node and share within each layer, so that their loads over all are even."""
    total_H = np.zeros(rows_LH.shape[1])
    for layer, shares_H in enumerate(shares_LH):
        source_H = np.arange(len(total_H))
        for kind in sorted({(node, int(share)) for node, share in zip(nodes, shares_H, strict=True)}):
            alike = np.flatnonzero((np.asarray(nodes) == kind[0]) & (shares_H == kind[1]))
            heaviest = alike[np.argsort(-rows_LH[layer, alike], kind="stable")]
            source_H[alike[np.argsort(total_H[alike], kind="stable")]] = heaviest
        has_LHE[layer], rows_LH[layer] = has_LHE[layer, source_H], rows_LH[layer, source_H]
        total_H += rows_LH[layer]
    return has_LHE, rows_LH
