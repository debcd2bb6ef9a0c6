"""Where a step's time goes, by part."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

EXCHANGE_PARTS = frozenset(("wait", "dispatch", "combine"))
"""Parts in which a member mostly waits for other ranks: headers and rows on their way."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Totals over the decode steps since the start."""

    steps: int
    part_ms: dict[str, float]


@dataclass(slots=True)
class PartTimer:
    """Attributes the time between marks to parts; keeps totals of decode steps alone, and how long all
    steps kept this member busy.

    A step's parts count only once it is committed, so that an interrupted step leaves no trace.
    """

    _part_s: dict[str, float] = field(default_factory=dict)
    _total_s: dict[str, float] = field(default_factory=dict)
    _steps: int = 0
    _busy_s: float = 0.0
    _last_s: float = 0.0
    _begun_s: float = 0.0

    def begin(self) -> None:
        """A step starts now."""
        self._part_s.clear()
        self._begun_s = self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        """The time since the last mark belongs to `part`."""
        now_s = time.perf_counter()
        self._part_s[part] = self._part_s.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def commit(self, *, decode: bool) -> float:
        """The step is done; gives its milliseconds. Only decode steps enter the totals of the parts."""
        self._busy_s += sum(s for part, s in self._part_s.items() if part not in EXCHANGE_PARTS)
        if decode:
            self._steps += 1
            for part, part_s in self._part_s.items():
                self._total_s[part] = self._total_s.get(part, 0.0) + part_s
        return (time.perf_counter() - self._begun_s) * 1e3

    @property
    def busy_s(self) -> float:
        """Seconds in steps since the start, the exchange with other ranks apart."""
        return self._busy_s

    def profile(self) -> StepProfile:
        """The totals so far. Callable from another thread: a torn read is off by one step at most."""
        totals = dict(self._total_s)
        return StepProfile(self._steps, {part: total_s * 1e3 for part, total_s in totals.items()})
