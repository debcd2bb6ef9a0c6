"""How long a prompt's chunk may be, so that nobody's next token waits longer than the step budget."""

from __future__ import annotations

FIRST_CHUNK_TOKENS = 128
HEADROOM = 0.8
"""Part of the budget that a step is planned to take: a prompt's later tokens cost more than its earlier
ones, and an aim at the whole budget would be missed by every second step."""
MOST_CHANGE = 2.0
"""Factor by which one step may change the bound; a single hiccup, or a lucky step, does not decide."""
FULL = 0.9
"""A chunk that fills this part of the bound tells that more might fit; a shorter one tells nothing."""


class StepBudget:
    """Bounds the prefill tokens of a step, and corrects the bound by the time that steps take.

    All ranks step together, so one router's long prompt would stall the others: the bound holds
    while any router decodes, and is shared by the routers that prefill. It follows the whole step,
    decodes and waits included, so that it needs no model of what a token costs.

    Args:
        step_budget_ms: the longest that a step should take.
        min_chunk_tokens: smallest chunk, so that a prompt always advances.
    """

    def __init__(self, step_budget_ms: float, min_chunk_tokens: int) -> None:
        self._aim_ms = HEADROOM * step_budget_ms
        self._min_chunk_tokens = min_chunk_tokens
        self._bound_tokens = float(max(FIRST_CHUNK_TOKENS, min_chunk_tokens))

    def observe(self, step_ms: float, prefill_tokens: int) -> None:
        """Learns from a finished step; `prefill_tokens` counts those of all routers."""
        if prefill_tokens == 0:
            return
        bound = self._bound_tokens
        fitting = prefill_tokens * self._aim_ms / max(step_ms, 1e-3)
        if step_ms > self._aim_ms:
            bound = max(fitting, bound / MOST_CHANGE)
        elif prefill_tokens >= FULL * bound:
            bound = min(fitting, MOST_CHANGE * prefill_tokens)
        self._bound_tokens = max(bound, float(self._min_chunk_tokens))

    def chunk_tokens(self, *, any_decoding: bool, routers_prefilling: int) -> int | None:
        """Most prefill tokens of this router's next step; None for no bound."""
        if not any_decoding:
            return None
        return max(self._min_chunk_tokens, int(self._bound_tokens / max(routers_prefilling, 1)))
