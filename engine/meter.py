"""What a router's steps did, in plain numbers that another thread reads once in a while. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from expertmesh.engine.batch import StepBatch
from expertmesh.engine.request import RequestKey, SequenceNews
from expertmesh.engine.tally import Tally


class StepMeter:
    """Totals since the start, and histograms since they were last taken.

    Args:
        step_bounds_s: buckets of `step_s`.
        wait_bounds_s: buckets of `wait_s`.
        batch_bounds: buckets of `sequences`.
    """

    def __init__(
        self, step_bounds_s: Sequence[float], wait_bounds_s: Sequence[float], batch_bounds: Sequence[float]
    ) -> None:
        self.step_s = Tally(step_bounds_s)
        """Committed steps."""
        self.wait_s = Tally(wait_bounds_s)
        """Requests, from their arrival to their first step."""
        self.sequences = Tally(batch_bounds)
        """Of committed steps."""
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.steps_repeated = 0
        self._arrived_s: dict[RequestKey, float] = {}

    def arrived(self, key: RequestKey) -> None:
        """A request came, on any thread."""
        self._arrived_s[key] = time.monotonic()

    def gone(self, key: RequestKey) -> None:
        """A request ends, perhaps before its first step; on any thread."""
        self._arrived_s.pop(key, None)

    def told(self, news: Sequence[SequenceNews]) -> None:
        """Of requests that were refused."""
        if self._arrived_s:
            for item in news:
                if item.finish_reason is not None:
                    self.gone(item.key)

    def scheduled(self, batch: StepBatch) -> None:
        """A step is about to run for the first time."""
        if not self._arrived_s:
            return
        now_s = time.monotonic()
        for sequence in batch.sequences:
            arrived_s = self._arrived_s.pop(sequence.key, None)
            if arrived_s is not None:
                self.wait_s.add(now_s - arrived_s)

    def committed(self, n_sequences: int, n_tokens: int, n_decode_tokens: int, step_ms: float) -> None:
        """A step is over."""
        self.step_s.add(step_ms * 1e-3)
        self.sequences.add(n_sequences)
        self.decode_tokens += n_decode_tokens
        self.prefill_tokens += n_tokens - n_decode_tokens
