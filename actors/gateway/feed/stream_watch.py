"""What this gateway's streams bring: tokens, the gaps between them, the waits for the first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expertmesh.actors.gateway.completion import Completion


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """What came since the figures were taken last."""

    n_tokens: int
    """Tokens of answers."""
    gaps_ms: tuple[float, ...]
    """Between two messages of tokens of one completion, in ascending order."""
    first_waits_ms: tuple[float, ...]
    """From a completion's admission to its first token, in ascending order."""


class StreamWatch:
    """Looks on at completions for as long as somebody wants to know.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began_s: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        """Tokens of each open completion when it was seen last, and when that was."""
        self._n_tokens = 0
        self._gaps_ms: list[float] = []
        self._first_waits_ms: list[float] = []

    def admitted(self, request_id: str) -> None:
        """A completion begins."""
        self._began_s[request_id] = self._now_s()

    def news(self, completion: Completion) -> None:
        """A completion has received something."""
        now_s, n_tokens, request_id = self._now_s(), completion.n_tokens, completion.request_id
        began_s = self._began_s.pop(request_id, None)
        before = self._seen.get(request_id)
        if before is None:
            # One that began before anybody looked on: what it has received by now is no news.
            n_new = n_tokens if began_s is not None else 0
            if began_s is not None and n_tokens:
                self._first_waits_ms.append((now_s - began_s) * 1e3)
        else:
            n_new = n_tokens - before[0]
            if n_new > 0:
                self._gaps_ms.append((now_s - before[1]) * 1e3)
        if n_new > 0 or before is None:
            self._n_tokens += n_new
            self._seen[request_id] = (n_tokens, now_s)

    def ended(self, request_id: str) -> None:
        """A completion is over."""
        self._began_s.pop(request_id, None)
        self._seen.pop(request_id, None)

    def take(self) -> StreamFigures:
        """The figures since the last call."""
        figures = StreamFigures(
            self._n_tokens, tuple(sorted(self._gaps_ms)), tuple(sorted(self._first_waits_ms))
        )
        self._n_tokens = 0
        self._gaps_ms, self._first_waits_ms = [], []
        return figures


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None of nothing."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
