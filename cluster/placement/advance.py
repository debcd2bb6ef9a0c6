"""One step from a placement of a layer towards another, within what each host may load at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from expertmesh.cluster.placement.settle import Hosts

UNLIMITED = 2**31
"""Loads that a host may always do."""


def advance(held: Hosts, target: Hosts, budgets: Sequence[int]) -> Hosts:
    """Does as many of the target's loads as the budgets allow, and at least one where all are positive.

    An expert stays where it is until it stands where the target has it. No host has more experts than now
    or in the target, whichever is more; and only what is over the target's count is dropped, so that steps
    between placements with equal counts keep these.

    Args:
        held: the distinct experts on each host; together every expert that the target does not load.
        target: every expert, in the same number of hosts.
        budgets: how many experts each host may load.
    """
    return _Step(held, target, budgets).result()


class _Step:
    def __init__(self, held: Hosts, target: Hosts, budgets: Sequence[int]) -> None:
        self._now = [set(experts) for experts in held]
        self._target = [set(experts) for experts in target]
        self._rooms = [max(len(a), len(b)) for a, b in zip(self._now, self._target, strict=True)]
        self._budgets = list(budgets)
        self._copies = Counter(expert for experts in self._now for expert in experts)

    def result(self) -> Hosts:
        emptied = {
            e for now, target in zip(self._now, self._target, strict=True) if not target for e in now
        }
        pending = [
            (expert in self._copies and expert not in emptied, expert, host)
            for host, target in enumerate(self._target)
            for expert in target - self._now[host]
        ]
        for _, expert, host in sorted(pending):
            while expert not in self._now[host] and (chain := self._chain(host, expert)):
                self._apply(chain)
        self._drop_surplus()
        return [sorted(experts) for experts in self._now]

    def _chain(self, host: int, expert: int) -> list[tuple[int, int, int | None]]:
        """Loads that are possible together: (host, what it loads, what it drops for it), or none.

        A full host drops an expert that has to stand elsewhere first, whose host may be full as well, and
        so on, until one has room or the chain has closed.
        """
        chain: list[tuple[int, int, int | None]] = []
        while self._budgets[host] > 0:
            at = next((i for i, link in enumerate(chain) if link[0] == host), None)
            if at is not None:  # the chain has closed; what led to it does not belong to the ring
                return [(host, expert, chain[at][2]), *chain[at + 1 :]]
            if len(self._now[host]) < self._rooms[host]:
                return [*chain, (host, expert, None)]
            unwanted = sorted(self._now[host] - self._target[host])
            spare = next((e for e in unwanted if self._copies[e] > 1), None)
            if spare is not None:
                return [*chain, (host, expert, spare)]
            onward = next(
                (
                    (to, e)
                    for e in unwanted
                    for to, t in enumerate(self._target)
                    if e in t and self._budgets[to] > 0
                ),
                None,
            )
            if onward is None:
                break
            chain.append((host, expert, onward[1]))
            host, expert = onward
        return []

    def _apply(self, chain: list[tuple[int, int, int | None]]) -> None:
        for host, expert, dropped in chain:
            self._now[host].add(expert)
            self._copies[expert] += 1
            self._budgets[host] -= 1
            if dropped is not None:
                self._now[host].remove(dropped)
                self._copies[dropped] -= 1

    def _drop_surplus(self) -> None:
        for host, (now, target) in enumerate(zip(self._now, self._target, strict=True)):
            for expert in sorted(now - target):
                if len(now) > len(target) and self._copies[expert] > 1:
                    self._now[host].remove(expert)
                    self._copies[expert] -= 1
