"""Log probabilities, ranks and alternatives."""

from __future__ import annotations

import pytest
import torch

from expertmesh.engine.sampling.scores import score


def test_values_ranks_and_order() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 2
    logprobs = torch.log_softmax(logits, dim=-1)
    tokens, counts = [0, 299, 7, 123, 50], [3, 0, 20, 1, 0]
    for row, token in enumerate(score(logits, tokens, counts)):
        order = logits[row].argsort(descending=True).tolist()
        assert token.token_id == tokens[row]
        assert [t for t, _ in token.logprobs] == [tokens[row], *order[: counts[row]]]
        assert [p for _, p in token.logprobs] == pytest.approx(
            [logprobs[row, t].item() for t, _ in token.logprobs], abs=1e-6
        )
        assert token.rank == order.index(tokens[row]) + 1


def test_among_equal_tokens_the_lowest_ids_come_first() -> None:
    logits = torch.zeros(2, 1000)
    logits[1, [500, 3, 999, 40]] = 1.0
    logits[1, 700] = 2.0
    first, second = score(logits, [600, 999], [3, 4])
    assert [t for t, _ in first.logprobs] == [600, 0, 1, 2]
    assert [t for t, _ in second.logprobs] == [999, 700, 3, 40, 500]
    assert (first.rank, second.rank) == (1, 2)


def test_no_more_alternatives_than_tokens() -> None:
    (token,) = score(torch.tensor([[0.0, 1.0, 2.0]]), [0], [20])
    assert [t for t, _ in token.logprobs] == [0, 2, 1, 0]
    assert token.rank == 3
