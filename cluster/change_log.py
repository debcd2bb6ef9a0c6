"""The change of generation that is under way, and the last one that has ended."""

from __future__ import annotations

from dataclasses import replace

from expertmesh.cluster.types import Change


class ChangeLog:
    """Times are those of the state machine's clock."""

    def __init__(self) -> None:
        self.current: Change | None = None
        self.last: Change | None = None

    def begin(self, generation: int, kind: str, reason: str, since_s: float) -> None:
        """A change was triggered; while one is under way, it goes on under its first reason."""
        if self.current is None:
            self.current = Change(generation, kind, reason, "under way", 0.0, since_s)

    def prepares(self, generation: int) -> None:
        """The change now has the number of a generation."""
        if self.current is not None:
            self.current = replace(self.current, generation=generation)

    def end(self, outcome: str, now_s: float, why: str = "") -> None:
        """The change is over: `live`, or `rolled back` for the reason `why`."""
        change, self.current = self.current, None
        if change is not None:
            reason = f"{change.reason}; {why}" if why else change.reason
            seconds = now_s - change.ended_s
            self.last = replace(change, reason=reason, outcome=outcome, seconds=seconds, ended_s=now_s)
