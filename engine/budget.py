"""How long a prompt's chunk may be, so that nobody's next token waits longer than the step budget."""

from __future__ import annotations

SMOOTHING = 0.3
RISE, FALL = 0.7, 0.1
"""Smoothing of a prefill token's cost when it has risen and when it has fallen. It grows with the context:
the next chunk is better planned with the end of the last prompt than with its beginning."""
HEADROOM = 0.8
"""Part of what decodes leave of the budget that a chunk is planned to fill; an aim at the whole of it would
be missed by every second step."""
FIRST_CHUNK_TOKENS = 128


class StepBudget:
    """Learns what prefill tokens cost and bounds a step's chunk by `step_budget_ms`.

    All ranks step together, so one router's long prompt would stall the others: the bound holds
    while any router decodes, and is shared by the routers that prefill.

    Args:
        step_budget_ms: the aim for the length of a step.
        min_chunk_tokens: smallest chunk, so that a prompt always advances.
    """

    def __init__(self, step_budget_ms: float, min_chunk_tokens: int) -> None:
        self._budget_ms = step_budget_ms
        self._min_chunk_tokens = min_chunk_tokens
        self._decode_ms = 0.0
        self._prefill_ms_per_token: float | None = None

    def observe(self, step_ms: float, prefill_tokens: int) -> None:
        """Learns from a finished step; `prefill_tokens` counts those of all routers."""
        if prefill_tokens == 0:
            self._decode_ms += SMOOTHING * (step_ms - self._decode_ms)
            return
        if prefill_tokens < self._min_chunk_tokens:
            return
        cost_ms = max(step_ms - self._decode_ms, 0.0) / prefill_tokens
        known = self._prefill_ms_per_token
        if known is None:
            self._prefill_ms_per_token = cost_ms
        else:
            smoothing = RISE if cost_ms > known else FALL
            self._prefill_ms_per_token = known + smoothing * (cost_ms - known)

    def chunk_tokens(self, *, any_decoding: bool, routers_prefilling: int) -> int | None:
        """Most prefill tokens of this router's next step; None for no bound."""
        if not any_decoding:
            return None
        if not self._prefill_ms_per_token:
            return max(self._min_chunk_tokens, FIRST_CHUNK_TOKENS)
        left_ms = HEADROOM * max(self._budget_ms - self._decode_ms, 0.0) / max(routers_prefilling, 1)
        return max(self._min_chunk_tokens, int(left_ms / self._prefill_ms_per_token))
