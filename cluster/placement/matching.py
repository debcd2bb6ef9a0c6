"""Two classic matchings, small and exact: experts to hosts with room, and one order of hosts to another."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh.cluster.placement.eplb import Ints


def keepers(held: Sequence[Sequence[int]], shares: Sequence[int]) -> list[set[int]]:
    """For as many experts as possible one host of those that hold it; no host more than its share.

    Returns the experts that each host is the keeper of (Kuhn's augmenting paths).
    """
    holders: dict[int, list[int]] = {}
    for host, experts in enumerate(held):
        for expert in experts:
            holders.setdefault(expert, []).append(host)
    kept: list[set[int]] = [set() for _ in held]
    exhausted: set[int] = set()  # what one failed search has seen leads no later one anywhere

    def find(expert: int, seen: set[int]) -> bool:
        for host in holders[expert]:
            if host in seen or host in exhausted:
                continue
            seen.add(host)
            if len(kept[host]) < shares[host]:
                kept[host].add(expert)
                return True
            for other in sorted(kept[host]):
                if find(other, seen):
                    kept[host].remove(other)
                    kept[host].add(expert)
                    return True
        return False

    for expert in sorted(holders, key=lambda expert: (len(holders[expert]), expert)):
        seen: set[int] = set()
        if not find(expert, seen):
            exhausted |= seen
    return kept


def best_assignment(gain_NN: Ints) -> list[int]:
    """The column for each row, all different, with the largest sum of `gain_NN[row, column]`.

    The Hungarian method with potentials, in O(N^3).
    """
    n = len(gain_NN)
    cost = (int(gain_NN.max(initial=0)) - gain_NN).tolist()
    row_potential, column_potential = [0] * (n + 1), [0] * (n + 1)
    row_of = [n] * (n + 1)  # for each column; the last one is where a search starts
    for row in range(n):
        row_of[n] = row
        column = n
        slack, came_from, used = [2**62] * n, [n] * n, [False] * (n + 1)
        while row_of[column] != n:
            used[column] = True
            at, step, nearest = row_of[column], 2**62, n
            for j in range(n):
                if used[j]:
                    continue
                reduced = cost[at][j] - row_potential[at] - column_potential[j]
                if reduced < slack[j]:
                    slack[j], came_from[j] = reduced, column
                if slack[j] < step:
                    step, nearest = slack[j], j
            for j in range(n + 1):
                if used[j]:
                    row_potential[row_of[j]] += step
                    column_potential[j] -= step
                elif j < n:
                    slack[j] -= step
            column = nearest
        while column != n:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    columns = [0] * n
    for column in range(n):
        columns[row_of[column]] = column
    return columns
