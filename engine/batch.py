"""One step's work, decided once: what the scheduler hands to the runner, free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh.engine.request import RequestKey, SamplingParams
from expertmesh.engine.window_blocks import WindowTable


@dataclass(frozen=True, slots=True)
class Draw:
    """One token to be chosen: by its logits and by this alone."""

    params: SamplingParams
    index: int
    """Of the new token in its sequence, prompt and output counted together."""
    n_prompt: int
    token_ids: tuple[int, ...] = ()
    """With penalties: all tokens before it, prompt then output."""

    @property
    def n_output(self) -> int:
        """Output tokens before it."""
        return self.index - self.n_prompt


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The part of one sequence that a step computes. Immutable, so that the step can run again."""

    key: RequestKey
    params: SamplingParams
    token_ids: tuple[int, ...]
    """The chunk to compute: positions n_context .. n_context + len(token_ids) - 1. The last `n_drafts` of
    them are drafts."""
    n_context: int
    """Tokens already in the cache."""
    block_table: tuple[int, ...]
    """Blocks for n_context + len(token_ids) tokens or more, and for the positions of drafts to be made."""
    samples: bool
    """Whether the chunk reaches the sequence's end, so that a next token is drawn."""
    n_prompt: int
    prompt_targets: tuple[int, ...] = ()
    """With prompt_logprobs: for the chunk's first positions, the token that follows each (empty when
    nothing of the chunk is to be scored); target i is scored by the logits of position n_context + i."""
    penalty_token_ids: tuple[int, ...] = ()
    """With penalties, and `samples`: all tokens of the sequence, prompt then output, drafts left out."""
    windows: tuple[WindowTable, ...] = ()
    """For each window of the cache's layout the blocks of the tokens that the chunk sees."""
    n_drafts: int = 0
    """Tokens of the chunk that the step verifies: each counts if it is the one that is drawn there."""
    drafts_wanted: int = 0
    """Drafts to make for the next step; more than one only if it is the most of the batch."""
    next_token_id: int | None = None
    """The token behind the chunk, where it is known without a draw."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.token_ids)

    @property
    def n_known(self) -> int:
        """Tokens of the chunk that are no drafts."""
        return len(self.token_ids) - self.n_drafts

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What is drawn if it `samples`: the next token, then one behind each draft."""
        first = self.n_context + self.n_known
        drafts = self.token_ids[self.n_known :]
        before = self.penalty_token_ids
        return tuple(
            Draw(self.params, first + i, self.n_prompt, before + drafts[:i] if before else ())
            for i in range(self.n_drafts + 1)
        )


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All that one step computes on one router; empty when it has no work."""

    sequences: tuple[ScheduledSequence, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(s.n_tokens for s in self.sequences)

    @property
    def n_decode_tokens(self) -> int:
        """Tokens of those that wait for their next token, drafts included."""
        return sum(s.n_tokens for s in self.sequences if s.n_known == 1 and s.n_context > 0)

    @property
    def n_draft_passes(self) -> int:
        """Passes of the drafter behind its first, which every step has that has a drafter."""
        return max((s.drafts_wanted - 1 for s in self.sequences if s.drafts_wanted), default=0)

    @property
    def n_draft_rows(self) -> int:
        """Tokens that each of them computes."""
        return sum(s.drafts_wanted > 1 for s in self.sequences)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the sampler drew for one sequence."""

    token_id: int
    logprobs: tuple[tuple[int, float], ...] = ()
    """(token, logprob): the token itself, then the alternatives. Empty when not asked for."""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """One sequence's outcome of a step, in the order of `StepBatch.sequences`."""

    sampled: tuple[SampledToken, ...] = ()
    """The drafts that are accepted, then the token behind them."""
    prompt_scored: tuple[SampledToken, ...] = ()
    """One entry for each of `prompt_targets`."""
    drafts: tuple[int, ...] = ()
    """Of the tokens behind `sampled`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of a step; the scheduler commits it."""

    results: tuple[SequenceResult, ...]


def logit_rows(batch: StepBatch) -> list[int]:
    """Rows of the step's flattened tokens whose logits are needed.

    For each sequence, in the batch's order: the rows that score its prompt, then those that its next
    tokens are drawn from.
    """
    rows: list[int] = []
    start = 0
    for sequence in batch.sequences:
        rows.extend(range(start, start + len(sequence.prompt_targets)))
        start += sequence.n_tokens
        if sequence.samples:
            rows.extend(range(start - 1 - sequence.n_drafts, start))
    return rows
