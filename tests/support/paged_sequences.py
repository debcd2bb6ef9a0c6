"""Runs a decoder over sequences in a paged cache, chunk by chunk, without an engine.

Blocks are handed out in a shuffled order, so that a table never is a plain range.

Shape suffixes: T tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.decoder import Decoder
from expertmesh.models.experts import ExpertBank, all_experts
from expertmesh.models.interface import ForwardBatch, PagedCache


class PagedSequences:
    """A model with a cache of its own and any number of sequences, named by the caller."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        mode: ComputeMode | None = None,
        max_tokens: int = 2048,
        n_blocks: int = 200,
        block_tokens: int = 4,
        seed: int = 0,
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        spec, device, mode = checkpoint.spec, torch.device("cpu"), mode or ComputeMode()
        self.decoder = Decoder.load(
            checkpoint, spec, mode=mode, dtype=dtype, device=device, max_tokens=max_tokens
        )
        self.bank = ExpertBank.load(
            checkpoint, spec, all_experts(spec), mode=mode, dtype=dtype, device=device
        )
        self.exchange = FusedExchange(self.bank, spec.n_experts)
        self._mode = mode
        self._block_tokens = block_tokens
        self._n_blocks = n_blocks
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forgets all sequences."""
        self._cache: PagedCache = self.decoder.new_cache(self._n_blocks, self._block_tokens)
        for layer in self._cache.layers:
            layer.normal_()  # What a freed block left behind must not be seen.
        self._free = list(range(self._n_blocks))
        random.Random(self._seed).shuffle(self._free)
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    @torch.inference_mode()
    def step(self, chunks: dict[str, list[int]]) -> dict[str, Tensor]:
        """Appends tokens to sequences in one batch; gives the logits [tokens, V] of each chunk."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        contexts: list[int] = []
        for name, chunk in chunks.items():
            start = self._lengths.get(name, 0)
            table = self._tables.setdefault(name, [])
            while len(table) * self._block_tokens < start + len(chunk):
                table.append(self._free.pop())
            span = range(start, start + len(chunk))
            token_ids += chunk
            positions += span
            slots += [
                table[p // self._block_tokens] * self._block_tokens + p % self._block_tokens for p in span
            ]
            contexts.append(start)
            self._lengths[name] = start + len(chunk)
        padding = [0] * (-len(token_ids) % (self._mode.tile_rows or 1))
        longest = max(len(self._tables[name]) for name in chunks)
        tables = [self._tables[name] + [0] * (longest - len(self._tables[name])) for name in chunks]
        batch = ForwardBatch(
            token_ids_T=torch.tensor(token_ids + padding),
            positions_T=torch.tensor(positions + padding),
            slots_T=torch.tensor(slots),
            n_tokens=len(token_ids),
            query_lens=tuple(map(len, chunks.values())),
            context_lens=tuple(contexts),
            block_tables_SB=torch.tensor(tables),
        )
        hidden_TD = self.decoder.forward(batch, self._cache, self.exchange)
        logits_TV = self.decoder.logits(hidden_TD[: batch.n_tokens])
        return dict(zip(chunks, logits_TV.split(batch.query_lens), strict=True))
