"""Runs a decoder over sequences in a paged cache, chunk by chunk, without an engine.

Blocks are handed out in a shuffled order, so that a table never is a plain range.

Shape suffixes: T tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import torch
from torch import Tensor

from expertmesh.engine.batch import ScheduledSequence, StepBatch
from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.engine.request import RequestKey, SamplingParams
from expertmesh.engine.runner import to_tensors
from expertmesh.engine.window_blocks import WindowBlocks
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.cache import CacheSize
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.decoder import Decoder, Hidden
from expertmesh.models.experts import ExpertBank, all_experts
from expertmesh.models.parts.step import Step
from expertmesh.models.quantisation import HeldAs


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
        held_as: HeldAs = "as_stored",
        drafts: bool = False,
    ) -> None:
        checkpoint = Checkpoint.open(folder, drafts=drafts)
        spec, device, mode = checkpoint.spec, torch.device("cpu"), mode or ComputeMode()
        self.decoder = Decoder.load(
            checkpoint, spec, mode=mode, dtype=dtype, device=device, max_tokens=max_tokens
        )
        self.bank = ExpertBank.load(
            checkpoint, spec, all_experts(spec), mode=mode, dtype=dtype, device=device, held_as=held_as
        )
        self.exchange = FusedExchange(self.bank, spec.n_experts)
        self._mode = mode
        granule = spec.cache.granule_tokens
        self._window_block_tokens = block_tokens
        self._block_tokens = -(-block_tokens // granule) * granule
        self._n_blocks = n_blocks * block_tokens // self._block_tokens
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forgets all sequences."""
        layout = self.decoder.spec.cache
        self._windows = WindowBlocks(
            layout.windows, self._window_block_tokens, max_running=40, max_step_tokens=2048
        )
        size = CacheSize(
            self._n_blocks, self._block_tokens, self._windows.n_blocks, self._window_block_tokens
        )
        self._cache = self.decoder.new_cache(size)
        for pool in self._cache.tensors:
            pool.normal_()  # What a freed block left behind must not be seen.
        self._free = list(range(self._n_blocks))
        random.Random(self._seed).shuffle(self._free)
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    @torch.inference_mode()
    def step(self, chunks: dict[str, list[int]]) -> dict[str, Tensor]:
        """Appends tokens to sequences in one batch; gives the logits [tokens, V] of each chunk."""
        return self._step(chunks)[0]

    @torch.inference_mode()
    def step_and_draft(
        self, chunks: dict[str, list[int]], next_token_ids: dict[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same, and the drafter's logits for the token after the one behind each of the chunk's;
        `next_token_ids` are those behind the chunks.
        """
        logits, hidden, step = self._step(chunks)
        shifted = [t for name, chunk in chunks.items() for t in (*chunk[1:], next_token_ids[name])]
        padding = [0] * (len(step.batch.token_ids_T) - len(shifted))
        behind = dataclasses.replace(step.batch, token_ids_T=torch.tensor(shifted + padding))
        drafted = self.decoder.draft(hidden.state, dataclasses.replace(step, batch=behind))
        logits_TV = self.decoder.logits(drafted.final_TD[: behind.n_tokens])
        return logits, dict(zip(chunks, logits_TV.split(behind.query_lens), strict=True))

    def _step(self, chunks: dict[str, list[int]]) -> tuple[dict[str, Tensor], Hidden, Step]:
        sequences = []
        for name, chunk in chunks.items():
            start = self._lengths.get(name, 0)
            table = self._tables.setdefault(name, [])
            while len(table) * self._block_tokens < start + len(chunk):
                table.append(self._free.pop())
            sequences.append(
                ScheduledSequence(
                    key=RequestKey(name),
                    params=SamplingParams(max_tokens=1),
                    token_ids=tuple(chunk),
                    n_context=start,
                    block_table=tuple(table),
                    samples=False,
                    n_prompt=0,
                    windows=self._windows.cover(RequestKey(name), start + len(chunk)),
                )
            )
        batch = to_tensors(
            StepBatch(tuple(sequences)), self._cache.size, self._mode.tile_rows or 1, torch.device("cpu")
        )
        step = Step(batch, self._cache, self.exchange, lambda part: None)
        hidden = self.decoder.run(step)
        logits_TV = self.decoder.logits(hidden.final_TD[: batch.n_tokens])
        for sequence in sequences:
            end = sequence.n_context + sequence.n_tokens
            self._lengths[sequence.key.request_id] = end
            self._windows.trim(sequence.key, end)
        return dict(zip(chunks, logits_TV.split(batch.query_lens), strict=True)), hidden, step
