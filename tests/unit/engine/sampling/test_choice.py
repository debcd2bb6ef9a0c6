"""Truncation against transformers' warpers, and draws against the distribution they should follow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from expertmesh.engine.batch import Draw
from expertmesh.engine.request import SamplingParams
from expertmesh.engine.sampling.choice import choose, truncate_


def drawing(seed: int = 0, position: int = 5, **params: Any) -> Draw:
    """The draw of the token at `position`."""
    return Draw(SamplingParams(max_tokens=9, seed=seed, **params), position, position)


def warped(logits: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities that transformers would draw from."""
    scores = logits[None] / params.temperature
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return torch.softmax(scores, dim=-1)[0]


BOUNDS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 300, "top_p": 0.99, "min_p": 0.01},
    {"top_p": 0.5, "min_p": 0.2},
]


@pytest.mark.parametrize("vocab_size", [700, 32000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_tokens_that_stay_are_those_of_transformers(vocab_size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(11)
    params = [SamplingParams(max_tokens=1, temperature=t, **b) for b in BOUNDS for t in (0.7, 1.0, 1.5)]
    logits = torch.randn(len(params), vocab_size, generator=generator) * spread
    temperatures = torch.tensor([p.temperature for p in params])
    probs = torch.softmax(logits / temperatures[:, None], dim=-1)
    truncate_(probs, params)
    for row, p in enumerate(params):
        expected = warped(logits[row], p)
        assert torch.equal(probs[row] > 0, expected > 0), p
        torch.testing.assert_close(probs[row] / probs[row].sum(), expected, rtol=1e-4, atol=1e-8)


def test_equal_tokens_at_the_border_stay_together() -> None:
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.4, 0.2, 0.2, 0.2], [0.25] * 4])
    truncate_(
        probs,
        [
            SamplingParams(max_tokens=1, top_k=2),
            SamplingParams(max_tokens=1, top_p=0.5),
            SamplingParams(max_tokens=1, top_k=1),
        ],
    )
    assert (probs > 0).all()


def test_top_p_ends_with_the_token_that_reaches_it() -> None:
    probs = torch.tensor([[0.25, 0.5, 0.125, 0.125]] * 3)
    truncate_(probs, [SamplingParams(max_tokens=1, top_p=p) for p in (0.5, 0.5001, 0.75)])
    assert (probs > 0).tolist() == [[False, True, False, False]] + [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.0},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.15, "top_k": 12},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    n = 20_000
    logits = torch.randn(20, generator=torch.Generator().manual_seed(5)) * 1.5
    sequences = [drawing(seed=i % 200, position=1 + i // 200, **params) for i in range(n)]
    expected = warped(logits, sequences[0].params).double() * n
    counts = torch.bincount(choose(logits.expand(n, -1), sequences), minlength=20).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's approximation of the 0.999 quantile of chi-square.
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound


def test_neighbouring_positions_draw_independently() -> None:
    n = 20_000
    probs = torch.tensor([0.5, 0.3, 0.2])
    sequences = [drawing(seed=7, position=i + 1) for i in range(n)]
    tokens = choose(probs.log().expand(n, -1), sequences)
    pairs = torch.bincount(tokens[:-1] * 3 + tokens[1:], minlength=9).double()
    expected = (probs[:, None] * probs[None]).reshape(-1).double() * (n - 1)
    # 0.999 quantile of chi-square with 8 degrees of freedom.
    assert float(((pairs - expected) ** 2 / expected).sum()) < 26.12


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    logits = torch.zeros(3, 40_000)
    logits[1, 77] = logits[1, 39_999] = 2.0
    logits[2, 39_998:] = 1.0
    assert choose(logits, [drawing(temperature=0.0)] * 3).tolist() == [0, 77, 39_998]


def test_extreme_parameters_still_name_a_token() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(2)) * 30
    best = logits.argmax(dim=-1).tolist()
    sequences = [
        drawing(temperature=1e-9),
        drawing(top_p=1e-30),
        drawing(top_k=1),
        drawing(min_p=1.0),
        drawing(temperature=100.0, top_k=1, seed=(1 << 64) - 1),
        drawing(temperature=0.01),
    ]
    assert choose(logits, sequences).tolist() == best
