"""The sampler over whole batches: who is drawn, who is scored, and that no row sees its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from expertmesh.engine.batch import ScheduledSequence, SequenceResult, StepBatch
from expertmesh.engine.request import RequestKey, SamplingParams
from expertmesh.engine.sampler import Sampler

CPU = torch.device("cpu")

MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 4},
    {"temperature": 0.7, "logprobs": 0},
    {"temperature": 1.3, "top_p": 0.9, "logprobs": 11},
    {"top_k": 50},
    {"top_k": 3, "top_p": 0.5, "min_p": 0.05},
    {"min_p": 0.02, "repetition_penalty": 1.2},
    {"temperature": 0.0, "presence_penalty": 3.0, "frequency_penalty": 0.5, "logprobs": 2},
]


def sequence(name: int, params: SamplingParams, n_tokens: int = 1, **rest: Any) -> ScheduledSequence:
    """A chunk that ends in a draw unless told otherwise."""
    generator = torch.Generator().manual_seed(name)
    seen = tuple(torch.randint(0, 97, (60,), generator=generator).tolist())
    return ScheduledSequence(
        **{
            "key": RequestKey(str(name)),
            "params": params,
            "token_ids": (1,) * n_tokens,
            "n_context": 60 - n_tokens,
            "block_table": (0,),
            "samples": True,
            "n_prompt": 20,
            "penalty_token_ids": seen if params.penalised else (),
            **rest,
        }
    )


def run(sampler: Sampler, sequences: list[ScheduledSequence], logits: list[Tensor]) -> list[SequenceResult]:
    """The sampler over sequences, each with the logits of its own tokens."""
    rows = torch.cat(logits)
    return list(sampler(StepBatch(tuple(sequences)), lambda wanted: rows[wanted]).results)


@pytest.mark.parametrize("vocab_size", [97, 32001])
def test_a_row_is_bit_equal_alone_and_among_31_others(vocab_size: int) -> None:
    sampler = Sampler(vocab_size, CPU)
    generator = torch.Generator().manual_seed(9)
    sequences = [
        sequence(
            i,
            SamplingParams(
                max_tokens=9, seed=i << 40, prompt_logprobs=i % 4 or None, **MIXED[i % len(MIXED)]
            ),
            n_tokens=3,
            prompt_targets=(5, 6) if i % 4 else (),
        )
        for i in range(32)
    ]
    logits = [torch.randn(3, vocab_size, generator=generator) * 3 for _ in sequences]
    together = run(sampler, sequences, logits)
    alone = [run(sampler, [s], [x])[0] for s, x in zip(sequences, logits, strict=True)]
    assert together == alone
    assert run(sampler, sequences, logits) == together
    back = run(sampler, sequences[::-1], logits[::-1])
    assert back[::-1] == together


def test_draws_go_by_seed_and_position_alone() -> None:
    sampler = Sampler(500, CPU)
    logits = torch.zeros(1, 500)

    def draw(seed: int, **rest: Any) -> int:
        params = SamplingParams(max_tokens=9, seed=seed)
        (result,) = run(
            sampler, [sequence(1, params, **rest)], [logits.expand(rest.get("n_tokens", 1), -1)]
        )
        (sampled,) = result.sampled
        return sampled.token_id

    # A decode and the last chunk of a recomputed prompt draw the same token.
    assert draw(5) == draw(5, n_tokens=7) == draw(5, n_tokens=60, n_prompt=3, block_table=(4, 2))
    assert len({draw(seed) for seed in range(50)}) > 40
    assert len({draw(5, n_context=n) for n in range(50)}) > 40


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.randn(1, 97, generator=torch.Generator().manual_seed(4)) * 3
    params = SamplingParams(max_tokens=9, temperature=0.3, top_k=2, repetition_penalty=2.0, logprobs=3)
    (result,) = run(Sampler(97, CPU), [sequence(1, params)], [logits])
    (sampled,) = result.sampled
    expected = torch.log_softmax(logits[0], dim=-1)
    for token_id, logprob in sampled.logprobs:
        assert logprob == pytest.approx(expected[token_id].item(), abs=1e-6)
    assert [t for t, _ in sampled.logprobs[1:]] == logits[0].topk(3).indices.tolist()


def test_prompts_are_scored_in_slices_and_draws_in_one_call() -> None:
    vocab_size = 97
    sampler = Sampler(vocab_size, CPU)
    table = torch.randn(900, vocab_size, generator=torch.Generator().manual_seed(8))
    calls: list[list[int]] = []

    def logits_of(rows: list[int]) -> Tensor:
        calls.append(rows)
        return table[rows]

    targets = tuple(i % vocab_size for i in range(600))
    scored = SamplingParams(max_tokens=9, temperature=0.0, prompt_logprobs=2)
    greedy = SamplingParams(max_tokens=9, temperature=0.0)
    batch = StepBatch(
        (
            sequence(0, greedy),
            sequence(1, scored, n_tokens=601, n_context=0, prompt_targets=targets),
            sequence(2, scored, n_tokens=200, n_context=0, samples=False, prompt_targets=targets[:200]),
            sequence(3, greedy, n_tokens=50, samples=False),
            sequence(4, greedy),
        )
    )
    results = sampler(batch, logits_of).results
    assert calls[0] == [0, 601, 852]
    assert max(map(len, calls)) == 256
    assert [row for call in calls[1:] for row in call] == [*range(1, 601), *range(602, 802)]
    assert [len(r.sampled) == 1 for r in results] == [True, True, False, False, True]
    assert [len(r.prompt_scored) for r in results] == [0, 600, 200, 0, 0]
    expected = torch.log_softmax(table, dim=-1)
    for i, token in enumerate(results[2].prompt_scored):
        assert token.token_id == targets[i]
        assert token.logprobs[0] == (
            targets[i],
            pytest.approx(expected[602 + i, targets[i]].item(), abs=1e-6),
        )
        assert len(token.logprobs) == 3


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(len(MIXED), 97)
    before = logits.clone()
    sequences = [sequence(i, SamplingParams(max_tokens=9, **p)) for i, p in enumerate(MIXED)]
    Sampler(97, CPU)(StepBatch(tuple(sequences)), lambda _: logits)
    assert torch.equal(logits, before)


def test_nothing_is_asked_of_the_head_without_need() -> None:
    def no_logits(rows: list[int]) -> Tensor:
        raise AssertionError(rows)

    batch = StepBatch((sequence(0, SamplingParams(max_tokens=9), n_tokens=4, samples=False),))
    assert Sampler(97, CPU)(batch, no_logits).results == (SequenceResult(),)
    assert Sampler(97, CPU)(StepBatch(), no_logits).results == ()


@pytest.mark.parametrize(
    "head", [lambda rows: torch.zeros(len(rows), 96), lambda rows: torch.zeros(len(rows), 97).bfloat16()]
)
def test_a_head_of_another_shape_or_type_is_named(head: Callable[[list[int]], Tensor]) -> None:
    batch = StepBatch((sequence(0, SamplingParams(max_tokens=9)),))
    with pytest.raises(ValueError, match=r"expected fp32 \[1, 97\]"):
        Sampler(97, CPU)(batch, head)


@pytest.mark.parametrize("options", MIXED, ids=str)
def test_a_verified_row_is_drawn_as_it_would_be_alone(options: dict[str, Any]) -> None:
    """Token by token without drafts, then all in one step with drafts that are right up to some place."""
    vocab_size, n_drafts = 97, 3
    sampler = Sampler(vocab_size, CPU)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(n_drafts + 1, vocab_size, generator=generator) * 3
    stops = frozenset(range(0, vocab_size, 2))
    params = SamplingParams(max_tokens=90, min_tokens=42, seed=3, stop_token_ids=stops, **options)
    first = sequence(1, params)
    alone = []
    for place in range(n_drafts + 1):
        drawn = tuple(token.token_id for token in alone)
        one = replace(
            first,
            n_context=first.n_context + place,
            penalty_token_ids=first.penalty_token_ids + drawn if params.penalised else (),
        )
        ((token,),) = (r.sampled for r in run(sampler, [one], [logits[place : place + 1]]))
        alone.append(token)
    # Of the 40 output tokens before and those drawn, two are too few to stop.
    assert [token.token_id in stops for token in alone[:2]] == [False, False]
    right = [token.token_id for token in alone]
    for n_right in range(n_drafts + 1):
        drafts = [*right[:n_right], *((t + 1) % vocab_size for t in right[n_right:n_drafts])]
        verify = replace(first, token_ids=(1, *drafts), n_drafts=n_drafts)
        (result,) = run(sampler, [verify], [logits])
        assert list(result.sampled) == alone[: n_right + 1]
