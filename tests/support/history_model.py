"""A "language model" in plain Python: each next token is a hash of all tokens before it.

It writes tokens into a paged cache at the places that a batch's block tables name, and reads the
history back from there. A block given to two sequences, a chunk left out or a table too short
therefore changes its answers.
"""

from __future__ import annotations

import zlib

from expertmesh.engine.batch import SampledToken, ScheduledSequence, SequenceResult, StepBatch, StepResult
from expertmesh.engine.request import Request

VOCAB_SIZE = 13


def next_token(history: list[int]) -> int:
    """What follows the tokens."""
    return zlib.crc32(bytes(history)) % VOCAB_SIZE


def expected_output(request: Request, max_context_tokens: int) -> tuple[list[int], str]:
    """All output tokens of a request that runs alone on an endless cache, and how it ends."""
    output = list(request.output_token_ids)
    while len(output) < request.params.max_tokens:
        history = [*request.prompt_token_ids, *output]
        if len(history) >= max_context_tokens:
            break
        output.append(next_token(history))
        if output[-1] in request.params.stop_token_ids:
            return output, "stop"
    return output, "length"


class HistoryModel:
    """Runs batches. Running the same batch again changes nothing, as on a real router."""

    def __init__(self, n_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._slots = [-1] * (n_blocks * block_tokens)

    def run(self, batch: StepBatch) -> StepResult:
        """The outcome of a step."""
        tables = [block for s in batch.sequences for block in s.block_table]
        assert len(tables) == len(set(tables)), "a block stands in two tables"
        return StepResult(tuple(map(self._run_one, batch.sequences)))

    def _run_one(self, sequence: ScheduledSequence) -> SequenceResult:
        slots = [
            b * self._block_tokens + i for b in sequence.block_table for i in range(self._block_tokens)
        ]
        end = sequence.n_context + sequence.n_tokens
        for position, token_id in zip(range(sequence.n_context, end), sequence.token_ids, strict=True):
            self._slots[slots[position]] = token_id
        history = [self._slots[slot] for slot in slots[:end]]
        scored = []
        for i, target in enumerate(sequence.prompt_targets):
            # The "logprob" of a target names its whole history, so that a wrong row is seen.
            mark = -float(zlib.crc32(bytes(history[: sequence.n_context + i + 1])))
            scored.append(SampledToken(target, ((target, mark),), 1))
        sampled: list[SampledToken] = []
        drafts = sequence.token_ids[sequence.n_known :]
        for n_accepted in range(sequence.n_drafts + 1 if sequence.samples else 0):
            if n_accepted and drafts[n_accepted - 1] != sampled[-1].token_id:
                break
            token_id = next_token(history[: end - sequence.n_drafts + n_accepted])
            wanted = sequence.params.logprobs is not None
            sampled.append(SampledToken(token_id, ((token_id, -1.0),) if wanted else (), int(wanted)))
        return SequenceResult(tuple(sampled), tuple(scored), self._drafts(sequence, history, sampled))

    def _drafts(
        self, sequence: ScheduledSequence, history: list[int], sampled: list[SampledToken]
    ) -> tuple[int, ...]:
        """As many as wanted, right for two of three histories."""
        if not sequence.drafts_wanted:
            return ()
        known = history[: sequence.n_context + sequence.n_known] + [token.token_id for token in sampled]
        drafts: list[int] = []
        for _ in range(sequence.drafts_wanted):
            right = next_token(known + drafts)
            drafts.append((right + (zlib.adler32(bytes(known + drafts)) % 3 == 0)) % VOCAB_SIZE)
        return tuple(drafts)


def prompt_mark(prompt: tuple[int, ...], position: int) -> float:
    """The "logprob" that the model gives the prompt token at a position."""
    return -float(zlib.crc32(bytes(prompt[:position])))
