"""Multi-head latent attention over a paged cache, in its absorbed form (arXiv:2405.04434).

All heads share one key per token, the cached entry (compressed latent, then rotary key); the value
is the key's first `value_dim` features.

Shape suffixes: T query tokens, H heads, C features of a cache entry, V its first value_dim,
N cache blocks, P tokens a block, S sequences, B blocks of a table, L keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.kernels.mode import ComputeMode
from expertmesh.kernels.native.ops import native_ops
from expertmesh.kernels.tiles import n_tiles

_MAX_SCORES = 1 << 24
"""Scores (fp32) held at once; longer chunks are computed in parts."""
_LEAST_QUERIES = 2
"""Of one batched product in deterministic mode: a batch of one is rounded otherwise than larger ones."""
_MAX_GATHERED_KEYS = 1 << 14
"""Keys copied out of the cache at once in deterministic mode."""


def mla_paged_attention(
    q_THC: Tensor,
    cache_NPC: Tensor,
    *,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    block_tables_SB: Tensor,
    value_dim: int,
    softmax_scale: float,
    mode: ComputeMode,
) -> Tensor:
    """Causal attention of each sequence's queries over its own cached entries: [T, H, V].

    `q_THC` holds the sequences' queries one after the other; rows behind sum(query_lens) are
    padding and come out as zeros. The cache must already hold the entries of the queries' own
    tokens: query i of sequence s sees its first `context_lens[s]` + i + 1 entries. Scores are
    weighted by a softmax in fp32. In deterministic mode a query's result depends only on its
    sequence's entries up to its own.
    """
    make = q_THC.new_empty if sum(query_lens) == q_THC.shape[0] else q_THC.new_zeros
    out_THV = make((*q_THC.shape[:2], value_dim))
    ops = native_ops(q_THC) if mode.native else None
    if ops is not None and q_THC.stride(-1) == 1 and cache_NPC.is_contiguous():
        ops.attention(
            q_THC,
            cache_NPC,
            out_THV,
            query_lens=tuple(query_lens),
            context_lens=tuple(context_lens),
            block_tables_SB=block_tables_SB,
            softmax_scale=softmax_scale,
            tile_keys=mode.tile_keys,
        )
        return out_THV
    keys = _PagedKeys(cache_NPC, block_tables_SB, value_dim, softmax_scale)
    if mode.deterministic:
        n_tokens = sum(query_lens)
        if n_tokens:
            out_THV[:n_tokens] = _attend_in_key_tiles(
                q_THC[:n_tokens], keys, query_lens, context_lens, mode.tile_keys
            )
        return out_THV
    starts = _starts(query_lens)
    decodes = [s for s, n in enumerate(query_lens) if n == 1]
    for bucket in _length_buckets(decodes, context_lens):
        rows = _index([starts[s] for s in bucket], q_THC)
        out_THV[rows] = _attend_decodes(q_THC[rows], keys, bucket, [context_lens[s] for s in bucket])
    for s, n_queries in enumerate(query_lens):
        if n_queries > 1:
            rows_slice = slice(starts[s], starts[s] + n_queries)
            out_THV[rows_slice] = _attend_chunk(q_THC[rows_slice], keys, s, context_lens[s])
    return out_THV


@dataclass(frozen=True, slots=True)
class _PagedKeys:
    cache_NPC: Tensor
    block_tables_SB: Tensor
    value_dim: int
    softmax_scale: float

    @property
    def block_tokens(self) -> int:
        return self.cache_NPC.shape[1]

    @property
    def entries(self) -> Tensor:
        """The cache as [slot, C]."""
        return self.cache_NPC.flatten(0, 1)


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _starts(lens: Sequence[int]) -> list[int]:
    starts, total = [], 0
    for n in lens:
        starts.append(total)
        total += n
    return starts


def _length_buckets(sequences: Sequence[int], context_lens: Sequence[int]) -> list[list[int]]:
    """Sequences whose lengths are within a factor of two, so that padding at most doubles the work."""
    buckets: dict[int, list[int]] = {}
    for s in sequences:
        buckets.setdefault(max(64, context_lens[s]).bit_length(), []).append(s)
    return list(buckets.values())


def _attend_decodes(
    q_SHC: Tensor, keys: _PagedKeys, sequences: Sequence[int], context_lens: Sequence[int]
) -> Tensor:
    """One query a sequence, all at once over keys padded to the longest: [S, H, V]."""
    n_blocks = n_tiles(max(context_lens) + 1, keys.block_tokens)
    tables_SB = keys.block_tables_SB[_index(sequences, q_SHC), :n_blocks]
    k_SLC = keys.cache_NPC[tables_SB].flatten(1, 2)
    scores_SHL = torch.bmm(q_SHC, k_SLC.transpose(1, 2)).float() * keys.softmax_scale
    visible_S = _index(context_lens, q_SHC) + 1
    hidden_SL = torch.arange(k_SLC.shape[1], device=q_SHC.device) >= visible_S.unsqueeze(1)
    weights_SHL = scores_SHL.masked_fill_(hidden_SL.unsqueeze(1), float("-inf")).softmax(-1)
    return torch.bmm(weights_SHL.to(q_SHC.dtype), k_SLC[..., : keys.value_dim])


def _attend_chunk(q_THC: Tensor, keys: _PagedKeys, sequence: int, context_len: int) -> Tensor:
    """Successive queries of one sequence: [T, H, V]."""
    n_queries, n_heads, _ = q_THC.shape
    n_keys = context_len + n_queries
    table_B = keys.block_tables_SB[sequence, : n_tiles(n_keys, keys.block_tokens)]
    k_LC = keys.cache_NPC[table_B].flatten(0, 1)[:n_keys]
    positions_L = torch.arange(n_keys, device=q_THC.device)
    parts = []
    part_queries = max(1, _MAX_SCORES // (n_heads * n_keys))
    for start in range(0, n_queries, part_queries):
        part_THC = q_THC[start : start + part_queries]
        last_T = positions_L[context_len + start : context_len + start + part_THC.shape[0]]
        visible = int(context_len + start + part_THC.shape[0])
        scores = (part_THC.flatten(0, 1) @ k_LC[:visible].T).float() * keys.softmax_scale
        scores_THL = scores.view(-1, n_heads, visible)
        hidden_TL = positions_L[:visible] > last_T.unsqueeze(1)
        weights_THL = scores_THL.masked_fill_(hidden_TL.unsqueeze(1), float("-inf")).softmax(-1)
        weights = weights_THL.to(q_THC.dtype).flatten(0, 1)
        parts.append((weights @ k_LC[:visible, : keys.value_dim]).view(-1, n_heads, keys.value_dim))
    return torch.cat(parts)


def _attend_in_key_tiles(
    q_THC: Tensor,
    keys: _PagedKeys,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    tile_keys: int,
) -> Tensor:
    """Each query by itself, over key tiles whose borders are multiples of `tile_keys`: [T, H, V].

    One matrix product for each (query, tile), always H rows by `tile_keys` keys: what else is in
    the batch only changes how many of them there are. Queries are taken in order of length so that
    few tiles are computed that a query does not see; those it does not see change nothing.
    """
    sequence_of: list[int] = []
    last_of: list[int] = []
    for s, (n_queries, n_context) in enumerate(zip(query_lens, context_lens, strict=True)):
        sequence_of += [s] * n_queries
        last_of += range(n_context, n_context + n_queries)
    order = sorted(range(len(last_of)), key=last_of.__getitem__, reverse=True)
    out_THV = q_THC.new_empty(*q_THC.shape[:2], keys.value_dim)
    part_queries = max(1, _MAX_GATHERED_KEYS // tile_keys)
    for start in range(0, len(order), part_queries):
        part = order[start : start + part_queries]
        part += part[-1:] * (_LEAST_QUERIES - len(part))
        rows = _index(part, q_THC)
        tables_TB = keys.block_tables_SB[_index([sequence_of[t] for t in part], q_THC)]
        out_THV[rows] = _online_softmax(q_THC[rows], keys, tables_TB, [last_of[t] for t in part], tile_keys)
    return out_THV


def _online_softmax(
    q_THC: Tensor, keys: _PagedKeys, tables_TB: Tensor, last: Sequence[int], tile_keys: int
) -> Tensor:
    """Queries with their own block tables; `last` (falling) is each one's last visible position."""
    device, value_dim = q_THC.device, keys.value_dim
    n_queries, n_heads, _ = q_THC.shape
    last_T = _index(last, q_THC)
    max_TH1 = torch.full((n_queries, n_heads, 1), float("-inf"), device=device)
    sum_TH1 = torch.zeros(n_queries, n_heads, 1, device=device)
    out_THV = torch.zeros(n_queries, n_heads, value_dim, device=device)
    n_active = n_queries
    for first_key in range(0, last[0] + 1, tile_keys):
        while n_active > _LEAST_QUERIES and last[n_active - 1] < first_key:
            n_active -= 1
        active = slice(0, n_active)
        positions_L = torch.arange(first_key, first_key + tile_keys, device=device)
        hidden_TL = positions_L > last_T[active].unsqueeze(1)
        # Keys a query does not see are read from its table's first entry and get weight zero.
        seen_TL = positions_L.masked_fill(hidden_TL, 0)
        blocks_TL = tables_TB[active].gather(1, seen_TL // keys.block_tokens)
        slots_TL = blocks_TL * keys.block_tokens + seen_TL % keys.block_tokens
        k_TLC = keys.entries[slots_TL]
        scores_THL = torch.bmm(q_THC[active], k_TLC.transpose(1, 2)).float() * keys.softmax_scale
        scores_THL = scores_THL.masked_fill_(hidden_TL.unsqueeze(1), float("-inf"))
        new_max_TH1 = torch.maximum(max_TH1[active], scores_THL.amax(-1, keepdim=True))
        kept_TH1 = torch.exp(max_TH1[active] - new_max_TH1)
        weights_THL = torch.exp(scores_THL - new_max_TH1)
        tile_THV = torch.bmm(weights_THL.to(q_THC.dtype), k_TLC[..., :value_dim]).float()
        sum_TH1[active] = sum_TH1[active] * kept_TH1 + weights_THL.sum(-1, keepdim=True)
        out_THV[active] = out_THV[active] * kept_TH1 + tile_THV
        max_TH1[active] = new_max_TH1
    return (out_THV / sum_TH1).to(q_THC.dtype)
