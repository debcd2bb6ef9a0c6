"""An allowance that fills up with time: the token bucket, without a clock of its own."""

from __future__ import annotations

SECONDS_A_MINUTE = 60.0


class Bucket:
    """Starts full. What is taken may leave it in debt, which time pays off.

    Args:
        per_minute: how much comes in a minute, evenly; also the most that it holds, but never less than 1.
        now_s: the time; it must not go back.
    """

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_s = per_minute / SECONDS_A_MINUTE
        self.capacity = max(per_minute, 1.0)
        self._level = self.capacity
        self._at_s = now_s

    def set_rate(self, per_minute: float, now_s: float) -> None:
        """Fills up at another rate from now on; what is in it stays, as far as it holds it."""
        self._fill(now_s)
        self._per_s = per_minute / SECONDS_A_MINUTE
        self.capacity = max(per_minute, 1.0)
        self._level = min(self._level, self.capacity)

    def level(self, now_s: float) -> float:
        """What is in it; below 0 it is in debt."""
        self._fill(now_s)
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until this amount is in it, if nobody takes anything; 0 when it is."""
        return max(min(amount, self.capacity) - self.level(now_s), 0.0) / self._per_s

    def full_s(self, now_s: float) -> float:
        """Until it is full, if nobody takes anything."""
        return self.wait_s(self.capacity, now_s)

    def take(self, amount: float, now_s: float) -> None:
        """Takes an amount, whether it is there or not."""
        self._fill(now_s)
        self._level -= amount

    def _fill(self, now_s: float) -> None:
        self._level = min(self._level + max(now_s - self._at_s, 0.0) * self._per_s, self.capacity)
        self._at_s = max(now_s, self._at_s)
