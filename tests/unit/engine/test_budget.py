"""The step budget: prompts give way while anyone decodes."""

from __future__ import annotations

from expertmesh.engine.budget import FIRST_CHUNK_TOKENS, HEADROOM, StepBudget


def chunk(budget: StepBudget, *, decoding: bool = True, routers: int = 1) -> int | None:
    return budget.chunk_tokens(any_decoding=decoding, routers_prefilling=routers)


def test_no_bound_while_nobody_decodes() -> None:
    assert chunk(StepBudget(100, 8), decoding=False) is None


def test_a_first_guess_before_anything_is_known() -> None:
    assert chunk(StepBudget(100, 8)) == FIRST_CHUNK_TOKENS


def test_chunks_follow_the_measured_cost() -> None:
    budget = StepBudget(100, 8)
    budget.observe(step_ms=200, prefill_tokens=100)
    assert chunk(budget) == 50 * HEADROOM
    for _ in range(50):
        budget.observe(step_ms=400, prefill_tokens=100)
    assert chunk(budget) in (25 * HEADROOM, 25 * HEADROOM + 1)


def test_a_risen_cost_counts_at_once_and_a_fallen_one_slowly() -> None:
    budget = StepBudget(100, 1)
    budget.observe(step_ms=100, prefill_tokens=100)
    budget.observe(step_ms=300, prefill_tokens=100)
    after_rise = chunk(budget)
    assert after_rise is not None
    assert after_rise < 45 * HEADROOM
    budget.observe(step_ms=100, prefill_tokens=100)
    after_fall = chunk(budget)
    assert after_fall is not None
    assert after_rise < after_fall < 50 * HEADROOM


def test_decodes_take_their_part_of_the_budget() -> None:
    budget = StepBudget(100, 8)
    for _ in range(100):
        budget.observe(step_ms=50, prefill_tokens=0)
    budget.observe(step_ms=150, prefill_tokens=100)
    assert chunk(budget) in (50 * HEADROOM - 1, 50 * HEADROOM)


def test_routers_that_prefill_share_the_budget() -> None:
    budget = StepBudget(100, 8)
    budget.observe(step_ms=100, prefill_tokens=100)
    assert chunk(budget, routers=2) == 50 * HEADROOM


def test_a_prompt_always_advances() -> None:
    budget = StepBudget(1, 8)
    budget.observe(step_ms=1000, prefill_tokens=10)
    assert chunk(budget) == 8
