"""Penalties against plain numpy and against transformers."""

from __future__ import annotations

import numpy as np
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from expertmesh.engine.batch import Draw
from expertmesh.engine.request import SamplingParams
from expertmesh.engine.sampling.penalties import penalise

V = 50


def draw(prompt: list[int], output: list[int], **penalties: float) -> Draw:
    """The next token of a sequence."""
    params = SamplingParams(max_tokens=9, **penalties)  # type: ignore[arg-type]
    return Draw(params, len(prompt) + len(output), len(prompt), tuple(prompt + output))


def by_hand(logits: np.ndarray, seq: Draw) -> np.ndarray:
    """The penalties, one token after the other."""
    logits = logits.copy()
    output = seq.token_ids[seq.n_prompt :]
    for token_id in set(seq.token_ids):
        r = np.float32(seq.params.repetition_penalty)
        logits[token_id] = logits[token_id] * r if logits[token_id] < 0 else logits[token_id] / r
    for token_id in set(output):
        logits[token_id] -= seq.params.presence_penalty
        logits[token_id] -= seq.params.frequency_penalty * output.count(token_id)
    return logits


def test_all_penalties_by_hand() -> None:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(0, V, (6, 12)).tolist(), rng.integers(0, V, (6, 30)).tolist()
    sequences = [
        draw(prompts[0], outputs[0], repetition_penalty=1.3),
        draw(prompts[1], outputs[1], presence_penalty=0.7),
        draw(prompts[2], outputs[2]),
        draw(prompts[3], outputs[3], frequency_penalty=-0.4),
        draw(prompts[4], outputs[4], repetition_penalty=0.8, presence_penalty=-1, frequency_penalty=0.25),
        draw(prompts[5], [], repetition_penalty=1.1, presence_penalty=2.0),
    ]
    logits = rng.normal(size=(6, V)).astype(np.float32) * 4
    given = torch.from_numpy(logits.copy())
    result = penalise(given, sequences)
    np.testing.assert_array_equal(given.numpy(), logits)
    for row, seq in enumerate(sequences):
        np.testing.assert_allclose(result[row].numpy(), by_hand(logits[row], seq), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result[2].numpy(), logits[2])


def test_repetition_is_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, V, generator=generator) * 5
    ids = torch.randint(0, V, (1, 40), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    tokens = ids[0].tolist()
    assert torch.equal(penalise(logits, [draw(tokens[:10], tokens[10:], repetition_penalty=1.7)]), expected)


def test_nothing_is_copied_without_penalties() -> None:
    logits = torch.randn(2, V)
    assert penalise(logits, [draw([1], []), draw([2], [3])]) is logits
