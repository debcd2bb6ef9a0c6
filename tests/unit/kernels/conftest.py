"""Inputs shared by the kernel tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from expertmesh.kernels.attention import mla_paged_attention
from expertmesh.kernels.mode import ComputeMode


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One compute thread: spinning threads stall where tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute types."""
    assert isinstance(request.param, torch.dtype)
    return request.param


@dataclass(frozen=True)
class AttentionCase:
    """Sequences with random queries and cache entries, to be attended to in any batch and chunks."""

    entries: list[Tensor]
    """For each sequence [L, C]."""
    queries: list[Tensor]
    """For each sequence [L, H, C]."""
    value_dim: int
    scale: float = 0.17

    def run(
        self,
        chunks: Sequence[tuple[int, int, int]],
        mode: ComputeMode,
        *,
        block_tokens: int = 16,
        extra_blocks: int = 0,
        table_seed: int = 0,
        padding_rows: int = 0,
        garbage: float = 0.0,
    ) -> list[Tensor]:
        """For each (sequence, start, end) of one batch its queries' outputs [end - start, H, V].

        Blocks lie at random places, free ones and the tails of used ones hold `garbage`.
        """
        dtype = self.entries[0].dtype
        blocks = [-(-end // block_tokens) for _, _, end in chunks]
        n_blocks = sum(blocks) + extra_blocks + 1
        free = torch.randperm(n_blocks, generator=torch.Generator().manual_seed(table_seed)).tolist()
        width = self.entries[0].shape[1]
        cache = torch.full((n_blocks, block_tokens, width), garbage, dtype=dtype)
        tables = torch.zeros(len(chunks), max(blocks, default=0) + extra_blocks, dtype=torch.int64)
        for row, ((sequence, _, end), n) in enumerate(zip(chunks, blocks, strict=True)):
            own = [free.pop() for _ in range(n)]
            tables[row, :n] = torch.tensor(own)
            for position in range(end):
                block = own[position // block_tokens]
                cache[block, position % block_tokens] = self.entries[sequence][position]
        queries = [self.queries[s][start:end] for s, start, end in chunks]
        padding = torch.ones(padding_rows, *self.queries[0].shape[1:], dtype=dtype)
        out = mla_paged_attention(
            torch.cat([*queries, padding]),
            cache,
            query_lens=tuple(end - start for _, start, end in chunks),
            context_lens=tuple(start for _, start, _ in chunks),
            block_tables_SB=tables,
            value_dim=self.value_dim,
            softmax_scale=self.scale,
            mode=mode,
        )
        lens = [end - start for _, start, end in chunks]
        *parts, behind = out.split([*lens, padding_rows])
        assert torch.equal(behind, torch.zeros_like(behind))
        return parts


@pytest.fixture(scope="session")
def attention_case() -> Callable[..., AttentionCase]:
    """Makes an AttentionCase of the given sequence lengths."""

    def make(
        lengths: Sequence[int],
        dtype: torch.dtype,
        *,
        n_heads: int = 3,
        width: int = 40,
        value_dim: int = 32,
        seed: int = 0,
    ) -> AttentionCase:
        generator = torch.Generator().manual_seed(seed)
        return AttentionCase(
            entries=[torch.randn(n, width, generator=generator).to(dtype) for n in lengths],
            queries=[torch.randn(n, n_heads, width, generator=generator).to(dtype) for n in lengths],
            value_dim=value_dim,
        )

    return make
