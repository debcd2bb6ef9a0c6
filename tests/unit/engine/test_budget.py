"""The step budget: prompts give way while anyone decodes."""

from __future__ import annotations

import random
import statistics

import pytest

from expertmesh.engine.budget import FIRST_CHUNK_TOKENS, HEADROOM, MOST_SHRINKING, StepBudget


def chunk(budget: StepBudget, *, decoding: bool = True, routers: int = 1) -> int | None:
    return budget.chunk_tokens(any_decoding=decoding, routers_prefilling=routers)


def steps(budget: StepBudget, n_steps: int, ms_per_token: float, decode_ms: float = 0.0) -> list[float]:
    """The milliseconds of steps that each take a whole chunk."""
    taken_ms = []
    for _ in range(n_steps):
        n_tokens = chunk(budget)
        assert n_tokens is not None
        taken_ms.append(decode_ms + n_tokens * ms_per_token)
        budget.observe(taken_ms[-1], n_tokens)
    return taken_ms


def test_no_bound_while_nobody_decodes() -> None:
    assert chunk(StepBudget(100, 8), decoding=False) is None


def test_a_first_guess_before_anything_is_known() -> None:
    assert chunk(StepBudget(100, 8)) == FIRST_CHUNK_TOKENS


@pytest.mark.parametrize("ms_per_token", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("decode_ms", [0.0, 40.0])
def test_steps_approach_the_aim_and_stay_within_the_budget(ms_per_token: float, decode_ms: float) -> None:
    taken_ms = steps(StepBudget(100, 8), 40, ms_per_token, decode_ms)
    assert taken_ms[-1] == pytest.approx(HEADROOM * 100, abs=2 * ms_per_token + 1)
    assert all(one <= 100 for one in taken_ms[8:])


@pytest.mark.parametrize(
    ("budget_ms", "prompt_tokens"), [(200, 1000), (200, 2000), (300, 6000), (1000, 6000)]
)
def test_steps_stay_within_the_budget_although_tokens_cost_more_and_more(
    budget_ms: float, prompt_tokens: int
) -> None:
    budget, noise = StepBudget(budget_ms, 8), random.Random(1)
    taken_ms = []
    for _ in range(30):
        context = 0
        while context < prompt_tokens:
            n_tokens = min(chunk(budget) or 0, prompt_tokens - context)
            # Measured with the demo checkpoint on two cores, and a little noise.
            ms_per_token = 0.1 + 0.00014 * (context + n_tokens / 2)
            taken_ms.append((15 + n_tokens * ms_per_token) * noise.uniform(0.92, 1.12))
            budget.observe(taken_ms[-1], n_tokens)
            context += n_tokens
    assert statistics.quantiles(taken_ms, n=100, method="inclusive")[-1] <= budget_ms
    assert statistics.median(taken_ms) > 0.3 * budget_ms, "not by crawling"


def test_one_slow_step_is_soon_forgotten() -> None:
    budget = StepBudget(100, 8)
    steps(budget, 30, 0.1)
    usual = chunk(budget)
    assert usual is not None
    budget.observe(step_ms=10_000, prefill_tokens=usual)
    assert chunk(budget) == int(usual / MOST_SHRINKING)
    steps(budget, 4, 0.1)
    assert chunk(budget) == pytest.approx(usual, rel=0.05)


def test_short_prompts_and_pure_decodes_tell_nothing_of_long_chunks() -> None:
    budget = StepBudget(100, 8)
    steps(budget, 30, 0.1)
    usual = chunk(budget)
    for _ in range(50):
        budget.observe(step_ms=5, prefill_tokens=20)
        budget.observe(step_ms=50, prefill_tokens=0)
    assert chunk(budget) == usual


def test_a_prompt_without_bound_teaches_too() -> None:
    budget = StepBudget(100, 8)
    budget.observe(step_ms=800, prefill_tokens=2000)
    assert chunk(budget) == int(2000 * HEADROOM * 100 / 800)


def test_routers_that_prefill_share_the_bound() -> None:
    assert chunk(StepBudget(100, 8), routers=2) == FIRST_CHUNK_TOKENS / 2


def test_a_prompt_always_advances() -> None:
    budget = StepBudget(1, 8)
    steps(budget, 20, 10.0, decode_ms=100.0)
    assert chunk(budget) == 8
    assert chunk(budget, routers=4) == 8
