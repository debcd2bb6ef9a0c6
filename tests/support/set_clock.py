"""A clock that stands until a test sets it."""

from __future__ import annotations


class SetClock:
    """Gives `now_s`, which the test moves."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
