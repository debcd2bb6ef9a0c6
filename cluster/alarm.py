"""A timer on the event loop that follows the next deadline of a state machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

GRACE_S = 0.2
"""Between a deadline and acting on it: after a pause of this process, what its members sent meanwhile is
read first."""


class Alarm:
    """Rings a grace after the next deadline.

    Args:
        due_s: the next deadline by the event loop's clock; None: there is none.
        ring: called once a deadline has passed; may set the alarm again.
    """

    def __init__(self, due_s: Callable[[], float | None], ring: Callable[[], None]) -> None:
        self._due_s = due_s
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._in_grace = False

    def set(self) -> None:
        """Follows the next deadline; a timer that fires early does no harm and is left."""
        due_s = self._due_s()
        if due_s is None or self._in_grace:
            return
        loop = asyncio.get_running_loop()
        due_s = max(due_s, loop.time())
        if self._timer:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due_s, self._on_deadline)

    def cancel(self) -> None:
        """Does not ring any more, until it is set again."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._in_grace = False

    def _on_deadline(self) -> None:
        self._in_grace = True
        self._timer = asyncio.get_running_loop().call_later(GRACE_S, self._after_grace)

    def _after_grace(self) -> None:
        self._timer = None
        self._in_grace = False
        self._ring()
