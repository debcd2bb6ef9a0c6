"""Drafts for the next step, out of the hidden states of the one that was just sampled.

The drafter's first pass takes every token of the step with the one behind it: so its cache is filled along
with the model's, prompts included. Behind a rejected draft it computes rows that nobody reads before the
next step writes them again. Further passes take one token a sequence, each the draft before.

Shape suffixes: T tokens with padding, N sequences that draft, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.engine.batch import Draw, ScheduledSequence, StepBatch, StepResult
from expertmesh.engine.sampler import Sampler
from expertmesh.models.decoder import Decoder, Hidden
from expertmesh.models.interface import ForwardBatch
from expertmesh.models.parts.step import Step


@dataclass(slots=True)
class _Draft:
    """One sequence that drafts."""

    scheduled: ScheduledSequence
    row: int
    """Of its last token in the pass."""
    position: int
    """Of that token."""
    known: tuple[int, ...]
    """With penalties: all tokens of the sequence, those that the step brought included."""
    token_ids: tuple[int, ...] = ()
    """The drafts so far."""

    @property
    def draw(self) -> Draw:
        """Of the token that the pass foretells: the one after the next."""
        before = self.known + self.token_ids if self.known else ()
        return Draw(self.scheduled.params, self.position + 2, self.scheduled.n_prompt, before)


@dataclass(frozen=True, slots=True)
class Drafting:
    """Makes the drafts of a step.

    Args:
        tensors: gives a batch as tensors, padded as the step's own.
    """

    decoder: Decoder
    sampler: Sampler
    tensors: Callable[[StepBatch], ForwardBatch]

    def __call__(self, batch: StepBatch, result: StepResult, hidden: Hidden, step: Step) -> StepResult:
        """The step's result with drafts; fills the drafter's cache entries of the batch's tokens.

        Args:
            hidden: out of the model's pass over the batch, `step`.
        """
        step = _with_tokens(step, _tokens_behind(batch, result))
        hidden = self.decoder.draft(hidden.state, step)
        drafts = _first_drafts(batch, result)
        self._draw(list(drafts.values()), hidden)
        chain = [draft for draft in drafts.values() if draft.scheduled.drafts_wanted > 1]
        for _ in range(batch.n_draft_passes):
            hidden = self._further(chain, hidden, step)
            self._draw(chain, hidden)
        step.mark("draft")
        return StepResult(
            tuple(
                dataclasses.replace(outcome, drafts=drafts[i].token_ids) if i in drafts else outcome
                for i, outcome in enumerate(result.results)
            )
        )

    def _draw(self, drafts: list[_Draft], hidden: Hidden) -> None:
        if not drafts:
            return
        rows_N = _rows(drafts, hidden.final_TD)
        logits_NV = self.decoder.logits(hidden.final_TD[rows_N])
        drawn = self.sampler.draw(logits_NV, [draft.draw for draft in drafts])
        for draft, token_id in zip(drafts, drawn, strict=True):
            draft.token_ids += (token_id,)

    def _further(self, drafts: list[_Draft], hidden: Hidden, step: Step) -> Hidden:
        """A pass over the drafts that were made last, each at the position behind."""
        rows_N = _rows(drafts, hidden.state)
        for row, draft in enumerate(drafts):
            draft.row, draft.position = row, draft.position + 1
        batch = self.tensors(StepBatch(tuple(map(_last_draft, drafts))))
        n_padding = len(batch.token_ids_T) - len(drafts)
        state = hidden.state[rows_N]
        if n_padding:
            # Padding belongs to nobody; any finite row does.
            state = state[rows_N.new_tensor([*range(len(drafts)), *[0] * n_padding])]
        return self.decoder.draft(state, Step(batch, step.cache, step.exchange, step.mark))


def _rows(drafts: list[_Draft], like: Tensor) -> Tensor:
    return like.new_tensor([draft.row for draft in drafts], dtype=torch.int64)


def _last_draft(draft: _Draft) -> ScheduledSequence:
    """The last draft of a sequence as a chunk of its own."""
    return dataclasses.replace(
        draft.scheduled, token_ids=draft.token_ids[-1:], n_context=draft.position, n_drafts=0, samples=False
    )


def _tokens_behind(batch: StepBatch, result: StepResult) -> list[int]:
    """The token behind each of the batch's tokens; behind a rejected draft, any."""
    token_ids: list[int] = []
    for scheduled, outcome in zip(batch.sequences, result.results, strict=True):
        token_ids.extend(scheduled.token_ids[1 : scheduled.n_known])
        sampled = [token.token_id for token in outcome.sampled]
        n_missing = scheduled.n_drafts + 1 - len(sampled)
        if not sampled:
            sampled, n_missing = [scheduled.next_token_id or 0], 0
        token_ids.extend(sampled + sampled[-1:] * n_missing)
    return token_ids


def _first_drafts(batch: StepBatch, result: StepResult) -> dict[int, _Draft]:
    """Who drafts, by index in the batch, at the last token that is sure to stay."""
    drafts = {}
    start = 0
    for index, (scheduled, outcome) in enumerate(zip(batch.sequences, result.results, strict=True)):
        if scheduled.drafts_wanted and outcome.sampled:
            offset = scheduled.n_known - 1 + len(outcome.sampled) - 1
            known = scheduled.penalty_token_ids
            if known:
                known += tuple(token.token_id for token in outcome.sampled)
            drafts[index] = _Draft(scheduled, start + offset, scheduled.n_context + offset, known)
        start += scheduled.n_tokens
    return drafts


def _with_tokens(step: Step, token_ids: list[int]) -> Step:
    """The same pass over other tokens."""
    old_T = step.batch.token_ids_T
    new_T = old_T.new_tensor(token_ids + [0] * (len(old_T) - len(token_ids)))
    return dataclasses.replace(step, batch=dataclasses.replace(step.batch, token_ids_T=new_T))
