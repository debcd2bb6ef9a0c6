"""Answers do not end before their least length."""

from __future__ import annotations

import torch

from expertmesh.engine.batch import Draw
from expertmesh.engine.request import SamplingParams
from expertmesh.engine.sampling.stops import forbid_stops


def draw(n_prompt: int, n_output: int, min_tokens: int) -> Draw:
    """The next token behind so many output tokens."""
    params = SamplingParams(max_tokens=9, min_tokens=min_tokens, stop_token_ids=frozenset({1, 3}))
    return Draw(params, n_prompt + n_output, n_prompt)


def test_stop_tokens_are_impossible_below_the_least_length_and_there_alone() -> None:
    logits = torch.zeros(3, 5)
    rows = [draw(4, 1, 2), draw(4, 2, 2), draw(1, 0, 1)]
    out = forbid_stops(logits, rows)
    assert torch.isneginf(out[0]).tolist() == [False, True, False, True, False]
    assert torch.equal(out[1], logits[1])
    assert torch.isneginf(out[2]).tolist() == [False, True, False, True, False]
    assert not logits.any(), "the model's own logits are scored later"


def test_nothing_is_copied_when_no_row_is_below() -> None:
    logits = torch.zeros(1, 5)
    assert forbid_stops(logits, [draw(4, 2, 0)]) is logits
