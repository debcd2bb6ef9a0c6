"""A step's batch as tensors, through the model, to the sampler.

Shape suffixes: T tokens of the batch (padded in deterministic mode), S sequences, B blocks of the
longest table, D hidden size, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.engine.batch import StepBatch, StepResult
from expertmesh.engine.drafting import Drafting
from expertmesh.engine.sampler import Sampler
from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.pages import Pages
from expertmesh.models.cache import CacheSize, PagedCache
from expertmesh.models.decoder import Decoder
from expertmesh.models.interface import ForwardBatch, MoeExchange, WindowPages
from expertmesh.models.parts.step import Step


@dataclass(frozen=True, slots=True)
class Runner:
    """Computes steps on one router. Holds no state of its own besides weights and cache.

    Running the same batch again gives the same result: cache entries are positional, and nothing
    else is written.
    """

    decoder: Decoder
    cache: PagedCache
    sampler: Sampler
    mode: ComputeMode
    device: torch.device
    mark: Callable[[str], None]

    def run(self, batch: StepBatch, exchange: MoeExchange) -> StepResult:
        """One step; may raise `GenerationLostError` out of the exchange."""
        forward = self._tensors(batch)
        self.mark("prepare")
        step = Step(forward, self.cache, exchange, self.mark)
        hidden = self.decoder.run(step)

        def logits_of(rows: list[int]) -> Tensor:
            rows_N = torch.tensor(rows, dtype=torch.int64, device=self.device)
            logits_NV = self.decoder.logits(hidden.final_TD[rows_N])
            self.mark("head")
            return logits_NV

        result = self.sampler(batch, logits_of)
        self.mark("sample")
        if self.decoder.spec.drafter is None:
            return result
        return Drafting(self.decoder, self.sampler, self._tensors)(batch, result, hidden, step)

    def _tensors(self, batch: StepBatch) -> ForwardBatch:
        return to_tensors(batch, self.cache.size, self.mode.tile_rows or 1, self.device)


def to_tensors(batch: StepBatch, size: CacheSize, row_multiple: int, device: torch.device) -> ForwardBatch:
    """The batch flattened, padded to a multiple of `row_multiple` rows."""
    block_tokens = size.block_tokens
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for sequence in batch.sequences:
        token_ids.extend(sequence.token_ids)
        span = range(sequence.n_context, sequence.n_context + sequence.n_tokens)
        positions.extend(span)
        table = sequence.block_table
        slots.extend(table[p // block_tokens] * block_tokens + p % block_tokens for p in span)
    n_tokens = len(token_ids)
    padding = [0] * (-n_tokens % row_multiple)

    def tensor(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return ForwardBatch(
        token_ids_T=tensor(token_ids + padding),
        positions_T=tensor(positions + padding),
        slots_T=tensor(slots),
        n_tokens=n_tokens,
        query_lens=tuple(s.n_tokens for s in batch.sequences),
        context_lens=tuple(s.n_context for s in batch.sequences),
        block_tables_SB=tensor(_padded([s.block_table for s in batch.sequences])),
        windows=tuple(
            _window(batch, index, size.window_block_tokens, device)
            for index in range(len(size.window_blocks))
        ),
    )


def _window(batch: StepBatch, index: int, block_tokens: int, device: torch.device) -> WindowPages:
    """The blocks of one window, in the order of the cache's layout."""
    tables = [s.windows[index] for s in batch.sequences]
    slots = [
        table.blocks[p // block_tokens] * block_tokens + p % block_tokens
        for table, s in zip(tables, batch.sequences, strict=True)
        for p in range(s.n_context - table.first_token, s.n_context + s.n_tokens - table.first_token)
    ]
    tables_SB = torch.tensor(_padded([t.blocks for t in tables]), dtype=torch.int64, device=device)
    return WindowPages(
        slots_T=torch.tensor(slots, dtype=torch.int64, device=device),
        pages=Pages(tables_SB, block_tokens, tuple(t.first_token for t in tables)),
    )


def _padded(tables: list[tuple[int, ...]]) -> list[list[int]]:
    longest = max(map(len, tables))
    return [[*table, *[0] * (longest - len(table))] for table in tables]
