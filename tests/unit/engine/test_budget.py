"""The step budget: prompts give way while anyone decodes."""

from __future__ import annotations

import pytest

from expertmesh.engine.budget import FIRST_CHUNK_TOKENS, HEADROOM, MOST_CHANGE, StepBudget


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
    taken_ms = steps(StepBudget(100, 8), 30, ms_per_token, decode_ms)
    assert taken_ms[-1] == pytest.approx(HEADROOM * 100, abs=ms_per_token + 1)
    assert all(one <= 100 for one in taken_ms[8:])


def test_a_cost_that_grows_with_the_context_stays_within_the_budget() -> None:
    budget = StepBudget(100, 8)
    taken_ms = []
    for _ in range(5):
        context = 0
        while context < 4000:
            n_tokens = min(chunk(budget) or 0, 4000 - context)
            taken_ms.append(n_tokens * (0.1 + 0.00005 * (context + n_tokens / 2)))
            budget.observe(taken_ms[-1], n_tokens)
            context += n_tokens
    assert max(taken_ms) <= 100


def test_one_slow_step_is_soon_forgotten() -> None:
    budget = StepBudget(100, 8)
    steps(budget, 30, 0.1)
    usual = chunk(budget)
    assert usual is not None
    budget.observe(step_ms=10_000, prefill_tokens=usual)
    assert chunk(budget) == int(usual / MOST_CHANGE)
    steps(budget, 3, 0.1)
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
    assert chunk(budget) == 200


def test_routers_that_prefill_share_the_bound() -> None:
    assert chunk(StepBudget(100, 8), routers=2) == FIRST_CHUNK_TOKENS / 2


def test_a_prompt_always_advances() -> None:
    budget = StepBudget(1, 8)
    steps(budget, 20, 10.0, decode_ms=100.0)
    assert chunk(budget) == 8
    assert chunk(budget, routers=4) == 8
