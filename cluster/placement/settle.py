"""Gives every host its share of a layer's slots, with the fewest loads.

Here a layer's placement is a list with the experts of each host, `Hosts`. Only hosts that may keep what
they hold are given with it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from expertmesh.cluster.placement.matching import keepers

Hosts = list[list[int]]


def settle(held: Hosts, shares: Sequence[int], load: Sequence[float], nodes: Sequence[str]) -> Hosts:
    """The placement with full shares and every expert, that has the fewest loads.

    A host over its share gives away what takes it nearest to the mean load; free slots get the experts
    that nobody holds, then copies of the most loaded.

    A slot that no held copy can fill costs one load, and so does an expert of which no copy can be kept; as
    one load can serve both, the larger of the two numbers is the least, and is reached.

    Args:
        held: the distinct experts on each host now.
        shares: each host's slots; together at least one for each expert.
        load: of each logical expert; equal loads where nothing is known.
        nodes: of each host; copies of one expert go to different ones where they can.
    """
    kept = [list(experts) for experts in held]
    copies = Counter(expert for experts in kept for expert in experts)
    fixed: list[set[int]] = [set() for _ in held]
    if copies.total() - len(copies) > sum(shares) - len(load):
        fixed = keepers(held, shares)
    _give_away(kept, copies, shares, load, fixed)
    _make_room(kept, copies, shares, len(load), fixed)
    _fill(kept, copies, shares, load, nodes)
    return kept


def _give_away(
    kept: Hosts,
    copies: Counter[int],
    shares: Sequence[int],
    load: Sequence[float],
    fixed: Sequence[set[int]],
) -> None:
    mean = sum(load) / max(1, sum(share > 0 for share in shares))
    rate = {expert: load[expert] / n for expert, n in copies.items()}
    for host, experts in enumerate(kept):
        surplus = sum(rate[expert] for expert in experts) - mean
        for n_over in range(len(experts) - shares[host], 0, -1):
            misfit = [
                (expert in fixed[host], abs(rate[expert] - surplus / n_over), -at)
                for at, expert in enumerate(experts)
            ]
            expert = experts.pop(-min(misfit)[2])
            surplus -= rate[expert]
            copies[expert] -= 1


def _make_room(
    kept: Hosts, copies: Counter[int], shares: Sequence[int], n_experts: int, fixed: Sequence[set[int]]
) -> None:
    """Drops copies as long as there is no free slot for an expert that nobody holds."""
    n_missing = n_experts - sum(n > 0 for n in copies.values())
    n_lacking = n_missing - (sum(shares) - sum(map(len, kept)))
    for host, experts in enumerate(kept):
        for expert in list(experts):
            if n_lacking > 0 and copies[expert] > 1 and expert not in fixed[host]:
                experts.remove(expert)
                copies[expert] -= 1
                n_lacking -= 1


def _fill(
    kept: Hosts, copies: Counter[int], shares: Sequence[int], load: Sequence[float], nodes: Sequence[str]
) -> None:
    rows = [sum(load[expert] / copies[expert] for expert in experts) for experts in kept]
    free = {host for host, experts in enumerate(kept) if len(experts) < shares[host]}

    def place(expert: int, host: int) -> None:
        kept[host].append(expert)
        if len(kept[host]) == shares[host]:
            free.remove(host)
        before = load[expert] / copies[expert] if copies[expert] else 0.0
        copies[expert] += 1
        after = load[expert] / copies[expert]
        for other, experts in enumerate(kept):
            if expert in experts:
                rows[other] += after - (0.0 if other == host else before)

    for expert in sorted(set(range(len(load))) - set(+copies), key=lambda expert: (-load[expert], expert)):
        place(expert, min(free, key=lambda host: (rows[host], len(kept[host]) - shares[host], host)))

    n_copies = sum(shares) - sum(map(len, kept))
    spread = {i * len(load) // n_copies for i in range(n_copies)}  # of equally loaded experts, these first
    waiting = [
        (-load[expert] / copies[expert], expert not in spread, expert) for expert in range(len(load))
    ]
    heapq.heapify(waiting)
    while free:
        _, late, expert = heapq.heappop(waiting)
        on_node = {nodes[host] for host, experts in enumerate(kept) if expert in experts}
        lacking = [host for host in free if expert not in kept[host]]
        if lacking:
            place(expert, min(lacking, key=lambda host: (nodes[host] in on_node, rows[host], host)))
            heapq.heappush(waiting, (-load[expert] / copies[expert], late, expert))
