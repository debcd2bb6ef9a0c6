"""From logits to tokens: a pure function of a step's batch, so that the step can run again.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from expertmesh.engine.batch import Draw, SampledToken, SequenceResult, StepBatch, StepResult
from expertmesh.engine.sampling.choice import choose
from expertmesh.engine.sampling.penalties import penalise
from expertmesh.engine.sampling.scores import score
from expertmesh.engine.sampling.stops import forbid_stops

MAX_PROMPT_ROWS = 256
MAX_PROMPT_LOGITS = 1 << 25
"""Logits held at once for scoring prompts: rows times vocabulary."""


class Sampler:
    """Draws next tokens and scores prompts. Holds no state between steps."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._slice_rows = max(1, min(MAX_PROMPT_ROWS, MAX_PROMPT_LOGITS // vocab_size))

    def __call__(self, batch: StepBatch, logits_of: Callable[[list[int]], Tensor]) -> StepResult:
        """The outcome of a step.

        `logits_of` gives fp32 logits [N, V] for rows of the step's flattened tokens; it is called
        once for all rows that a token is drawn from, and for prompt scores in slices.
        """
        sampled = self._sample(batch, logits_of)
        scored = self._score_prompts(batch, logits_of)
        return StepResult(
            tuple(
                SequenceResult(sampled.get(i, ()), scored.get(i, ())) for i in range(len(batch.sequences))
            )
        )

    def _logits(self, logits_of: Callable[[list[int]], Tensor], rows: list[int]) -> Tensor:
        logits_NV = logits_of(rows)
        if logits_NV.shape != (len(rows), self._vocab_size) or logits_NV.dtype != torch.float32:
            raise ValueError(
                f"the model's head gave {logits_NV.dtype} logits of shape {tuple(logits_NV.shape)}; "
                f"expected fp32 [{len(rows)}, {self._vocab_size}]"
            )
        return logits_NV

    def draw(self, logits_NV: Tensor, draws: Seq[Draw]) -> list[int]:
        """The token of each row."""
        token_ids: list[int] = choose(forbid_stops(penalise(logits_NV, draws), draws), draws).tolist()
        return token_ids

    def _sample(
        self, batch: StepBatch, logits_of: Callable[[list[int]], Tensor]
    ) -> dict[int, tuple[SampledToken, ...]]:
        """The next tokens of each sequence that draws any, by its index in the batch."""
        draws: dict[int, tuple[Draw, ...]] = {}
        rows: list[int] = []
        end = 0
        for index, sequence in enumerate(batch.sequences):
            end += sequence.n_tokens
            if sequence.samples:
                draws[index] = sequence.draws
                rows.extend(range(end - 1 - sequence.n_drafts, end))
        if not rows:
            return {}
        logits_NV = self._logits(logits_of, rows)
        drawn = self.draw(logits_NV, [draw for of_sequence in draws.values() for draw in of_sequence])
        tokens: dict[int, list[SampledToken]] = {}
        asked: list[tuple[int, int, int]] = []
        """(sequence, place among its tokens, row)"""
        at = 0
        for index, of_sequence in draws.items():
            sequence = batch.sequences[index]
            accepted = accept(sequence.token_ids[sequence.n_known :], drawn[at : at + len(of_sequence)])
            tokens[index] = [SampledToken(token_id) for token_id in accepted]
            if sequence.params.logprobs is not None:
                asked.extend((index, place, at + place) for place in range(len(accepted)))
            at += len(of_sequence)
        if asked:
            asked_rows = [row for _, _, row in asked]
            if len(asked_rows) < len(rows):
                logits_NV = logits_NV[torch.tensor(asked_rows, device=self._device)]
            counts = [batch.sequences[index].params.logprobs or 0 for index, _, _ in asked]
            scores = score(logits_NV, [drawn[row] for row in asked_rows], counts)
            for (index, place, _), token in zip(asked, scores, strict=True):
                tokens[index][place] = token
        return {index: tuple(of_sequence) for index, of_sequence in tokens.items()}

    def _score_prompts(
        self, batch: StepBatch, logits_of: Callable[[list[int]], Tensor]
    ) -> dict[int, tuple[SampledToken, ...]]:
        """The scores of each sequence's prompt targets, by its index in the batch."""
        rows: list[int] = []
        targets: list[int] = []
        counts: list[int] = []
        start = 0
        for sequence in batch.sequences:
            n = len(sequence.prompt_targets)
            rows.extend(range(start, start + n))
            targets.extend(sequence.prompt_targets)
            counts.extend([sequence.params.prompt_logprobs or 0] * n)
            start += sequence.n_tokens
        if not rows:
            return {}
        scores: list[SampledToken] = []
        for at in range(0, len(rows), self._slice_rows):
            part = slice(at, at + self._slice_rows)
            scores.extend(score(self._logits(logits_of, rows[part]), targets[part], counts[part]))
        scored: dict[int, tuple[SampledToken, ...]] = {}
        at = 0
        for index, sequence in enumerate(batch.sequences):
            n = len(sequence.prompt_targets)
            if n:
                scored[index] = tuple(scores[at : at + n])
                at += n
        return scored


def accept(drafts: Seq[int], drawn: Seq[int]) -> Seq[int]:
    """The tokens that a verification brings: the drafts as far as they are what was drawn in their places,
    and the token that was drawn behind them."""
    n_accepted = 0
    while n_accepted < len(drafts) and drafts[n_accepted] == drawn[n_accepted]:
        n_accepted += 1
    return drawn[: n_accepted + 1]
