"""How long a prompt's chunk may be, so that nobody's next token waits longer than the step budget."""

from __future__ import annotations

FIRST_CHUNK_TOKENS = 128
HEADROOM = 0.75
"""Part of the budget that a step is planned to take; the rest is for what a plan can't know."""
MOST_GROWTH = 1.25
MOST_SHRINKING = 2.0
"""Factors by which one step may change the bound, so that a hiccup does not decide. It grows slowly,
because a prompt's first tokens, which have little to attend to, tell little about its last ones."""
FULL = 0.9
"""A chunk that fills this part of the bound tells whether more would fit; a shorter one does not."""


class StepBudget:
    """Bounds the prefill tokens of a step, and corrects the bound by the time that steps take.

    All ranks step together, so one router's long prompt would stall the others: the bound holds
    while any router decodes, and is shared by the routers that prefill. It follows the whole step,
    decodes and waits included. A token's cost rises along a prompt, so the next one is expected to
    have risen as much as the last.

    Args:
        step_budget_ms: the longest that a step should take.
        min_chunk_tokens: smallest chunk, so that a prompt always advances.
    """

    def __init__(self, step_budget_ms: float, min_chunk_tokens: int) -> None:
        self._aim_ms = HEADROOM * step_budget_ms
        self._min_chunk_tokens = min_chunk_tokens
        self._bound_tokens = float(max(FIRST_CHUNK_TOKENS, min_chunk_tokens))
        self._last_ms_per_token: float | None = None

    def observe(self, step_ms: float, prefill_tokens: int) -> None:
        """Learns from a finished step; `prefill_tokens` counts those of all routers."""
        if prefill_tokens == 0:
            return
        ms_per_token = max(step_ms, 1e-3) / prefill_tokens
        rise_ms = max(ms_per_token - (self._last_ms_per_token or ms_per_token), 0.0)
        self._last_ms_per_token = ms_per_token
        fitting = self._aim_ms / (ms_per_token + rise_ms)
        bound = self._bound_tokens
        full = prefill_tokens >= FULL * bound
        if fitting > bound and full:
            bound = min(fitting, MOST_GROWTH * prefill_tokens)
        elif fitting < bound and (full or step_ms > self._aim_ms):
            bound = max(fitting, bound / MOST_SHRINKING)
        self._bound_tokens = max(bound, float(self._min_chunk_tokens))

    def chunk_tokens(self, *, any_decoding: bool, routers_prefilling: int) -> int | None:
        """Most prefill tokens of this router's next step; None for no bound."""
        if not any_decoding:
            return None
        return max(self._min_chunk_tokens, int(self._bound_tokens / max(routers_prefilling, 1)))
