"""DeepSeek's expert parallelism load balancer (github.com/deepseek-ai/EPLB) on numpy arrays.

Replicate the hot, pack the balanced, and keep groups of experts on a node where the counts allow it.

Shapes: L layers, E logical experts, S slots (physical experts) over all hosts, N items, X rows. All indices
are int64. Ties go to the lowest index, so that the same load gives the same placement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pack_balanced(weight_XN: Floats, n_packs: int) -> tuple[Ints, Ints]:
    """Packs items so that every pack has equally many and about the same weight.

    The heaviest item goes first, into the lightest pack that has room.

    Args:
        weight_XN: the items' weights, `[X, N]`; every row is packed by itself.
        n_packs: packs; N must be a multiple of it.

    Returns:
        Each item's pack, and its place within the pack; both `[X, N]`.
    """
    n_rows, n_items = weight_XN.shape
    size = _whole(n_items, n_packs, "items", "packs")
    if size == 1:
        pack = np.tile(np.arange(n_items), (n_rows, 1))
        return pack, np.zeros_like(pack)
    pack_XN = np.zeros((n_rows, n_items), np.int64)
    place_XN = np.zeros((n_rows, n_items), np.int64)
    load_XP = np.zeros((n_rows, n_packs))
    count_XP = np.zeros((n_rows, n_packs), np.int64)
    rows = np.arange(n_rows)
    for items in np.argsort(-weight_XN, axis=1, kind="stable").T:
        packs = np.where(count_XP < size, load_XP, np.inf).argmin(axis=1)
        pack_XN[rows, items] = packs
        place_XN[rows, items] = count_XP[rows, packs]
        load_XP[rows, packs] += weight_XN[rows, items]
        count_XP[rows, packs] += 1
    return pack_XN, place_XN


def replicate(weight_XE: Floats, n_slots: int, max_copies: int | None = None) -> tuple[Ints, Ints]:
    """Gives the slots beyond one for each expert to whichever then has the most load a copy.

    Args:
        weight_XE: the experts' loads, `[X, E]`.
        n_slots: S, at least E and at most E * max_copies.
        max_copies: an expert has no more copies than that; None is no bound.

    Returns:
        The expert in each slot, `[X, S]` (slots 0 .. E-1 hold expert 0 .. E-1), and each expert's copies,
        `[X, E]`.
    """
    n_rows, n_experts = weight_XE.shape
    limit = n_slots if max_copies is None else max_copies
    if not n_experts <= n_slots <= n_experts * limit:
        raise ValueError(f"{n_slots} slots for {n_experts} experts with at most {limit} copies each")
    expert_XS = np.tile(np.arange(n_slots), (n_rows, 1))
    copies_XE = np.ones((n_rows, n_experts), np.int64)
    rows = np.arange(n_rows)
    for slot in range(n_experts, n_slots):
        hottest = np.where(copies_XE < limit, weight_XE / copies_XE, -1.0).argmax(axis=1)
        expert_XS[:, slot] = hottest
        copies_XE[rows, hottest] += 1
    return expert_XS, copies_XE


def rebalance_hierarchical(
    weight_LE: Floats, n_slots: int, n_groups: int, n_nodes: int, n_hosts: int
) -> tuple[Ints, Ints]:
    """Packs groups of experts to nodes, replicates within each node, and packs the copies to its hosts.

    Args:
        weight_LE: the experts' loads, `[L, E]`.
        n_slots: S, a multiple of n_hosts.
        n_groups: groups of E / n_groups neighbouring experts; a multiple of n_nodes.
        n_nodes: nodes of n_hosts / n_nodes neighbouring hosts.
        n_hosts: hosts with S / n_hosts neighbouring slots each.

    Returns:
        The expert in each slot, `[L, S]`, and each expert's copies, `[L, E]`.
    """
    n_layers, n_experts = weight_LE.shape
    group_size = _whole(n_experts, n_groups, "experts", "groups")
    groups_per_node = _whole(n_groups, n_nodes, "groups", "nodes")
    hosts_per_node = _whole(n_hosts, n_nodes, "hosts", "nodes")
    _whole(n_slots, n_hosts, "slots", "hosts")
    node_experts, node_slots = n_experts // n_nodes, n_slots // n_nodes

    # "Local" order: the experts sorted by node, whole groups side by side.
    weight_LG = weight_LE.reshape(n_layers, n_groups, group_size).sum(axis=2)
    node_LG, place_LG = pack_balanced(weight_LG, n_nodes)
    first_LG = (node_LG * groups_per_node + place_LG) * group_size
    local_LE = (first_LG[:, :, None] + np.arange(group_size)).reshape(n_layers, n_experts)
    expert_of_local_LE = np.argsort(local_LE, axis=1)

    weight_XE = np.take_along_axis(weight_LE, expert_of_local_LE, axis=1).reshape(-1, node_experts)
    local_XS, copies_XE = replicate(weight_XE, node_slots)
    copy_weight_XS = np.take_along_axis(weight_XE / copies_XE, local_XS, axis=1)
    host_XS, place_XS = pack_balanced(copy_weight_XS, hosts_per_node)
    slot_XS = host_XS * (node_slots // hosts_per_node) + place_XS
    local_XS = np.take_along_axis(local_XS, np.argsort(slot_XS, axis=1), axis=1)

    of_node = np.arange(0, n_experts, node_experts)[None, :, None]
    local_LS = (local_XS.reshape(n_layers, n_nodes, node_slots) + of_node).reshape(n_layers, n_slots)
    expert_LS = np.take_along_axis(expert_of_local_LE, local_LS, axis=1)
    copies_LE = np.take_along_axis(copies_XE.reshape(n_layers, n_experts), local_LE, axis=1)
    return expert_LS, copies_LE


def rebalance_global(weight_LE: Floats, n_slots: int, n_hosts: int) -> tuple[Ints, Ints]:
    """Replicates and packs without regard to groups and nodes; see `rebalance_hierarchical`."""
    return rebalance_hierarchical(weight_LE, n_slots, 1, 1, n_hosts)


def rebalance_experts(
    weight_LE: Floats, n_slots: int, n_groups: int, n_nodes: int, n_hosts: int
) -> tuple[Ints, Ints]:
    """The hierarchical policy where groups divide evenly among nodes, else the global one.

    Arguments and results are those of `rebalance_hierarchical`.
    """
    if n_groups % n_nodes == 0:
        return rebalance_hierarchical(weight_LE, n_slots, n_groups, n_nodes, n_hosts)
    return rebalance_global(weight_LE, n_slots, n_hosts)


def _whole(n: int, parts: int, of: str, into: str) -> int:
    if parts < 1 or n % parts:
        raise ValueError(f"{n} {of} do not divide evenly among {parts} {into}")
    return n // parts
