"""The change of generation that is under way, and those that have ended lately."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from expertmesh.cluster.types import Change, Generation

N_REMEMBERED = 100
"""Changes that have ended and are still told of."""


class ChangeLog:
    """Times are those of the state machine's clock."""

    def __init__(self) -> None:
        self.current: Change | None = None
        self._ended: deque[Change] = deque(maxlen=N_REMEMBERED)

    @property
    def last(self) -> Change | None:
        """The last change that has ended."""
        return self._ended[-1] if self._ended else None

    @property
    def ended(self) -> tuple[Change, ...]:
        """The last changes that have ended, oldest first."""
        return tuple(self._ended)

    def begin(self, generation: int, kind: str, reason: str, since_s: float) -> None:
        """A change was triggered; while one is under way, it goes on under its first reason."""
        if self.current is None:
            self.current = Change(generation, kind, reason, "under way", 0.0, since_s)

    def prepares(self, generation: int) -> None:
        """The change now has the number of a generation."""
        if self.current is not None:
            self.current = replace(self.current, generation=generation)

    def live(self, before: Generation | None, after: Generation, now_s: float) -> None:
        """The change is over, and brought the generation `after`."""
        if self.current is not None:
            self.current = replace(
                self.current,
                n_routers=after.n_routers,
                n_experts=after.n_experts,
                n_copies_placed=copies_placed(before, after),
            )
        self._end("live", now_s)

    def roll_back(self, now_s: float, why: str) -> None:
        """The change is over: given up for the reason `why`."""
        if self.current is not None:
            self.current = replace(self.current, reason=f"{self.current.reason}; {why}")
        self._end("rolled back", now_s)

    def _end(self, outcome: str, now_s: float) -> None:
        change, self.current = self.current, None
        if change is not None:
            seconds = now_s - change.ended_s
            self._ended.append(replace(change, outcome=outcome, seconds=seconds, ended_s=now_s))


def copies_placed(before: Generation | None, after: Generation) -> int:
    """Copies of experts in `after` that stand on a host which did not hold them in `before`."""
    held: dict[tuple[str, int], set[int]] = {}
    if before is not None:
        for layer, hosts in enumerate(before.placement.layers):
            for member, experts in zip(before.experts, hosts, strict=True):
                held[member.incarnation, layer] = set(experts)
    return sum(
        len(set(experts) - held.get((member.incarnation, layer), set()))
        for layer, hosts in enumerate(after.placement.layers)
        for member, experts in zip(after.experts, hosts, strict=True)
    )
