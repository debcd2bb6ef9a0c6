"""A histogram in plain numbers: cheap enough for every step and every token. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Tally:
    """Counts values by bucket. One thread adds, another may take.

    Args:
        bounds: the upper bounds of the buckets, rising; one more is open above.
    """

    __slots__ = ("_bounds", "_counts")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)

    def add(self, value: float) -> None:
        """One more value; one that equals a bound is below it, as in Prometheus."""
        self._counts[bisect_left(self._bounds, value)] += 1

    def take(self) -> list[int]:
        """The counts since the last call. A value that comes just now may be lost."""
        taken, self._counts = self._counts, [0] * (len(self._bounds) + 1)
        return taken
