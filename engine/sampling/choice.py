"""Chooses each row's next token: the most probable one, or a draw.

A row's outcome depends on its own logits and parameters alone, never on the rows beside it: all
operations work row by row, and sums whose order could vary are taken over integers.

Shape suffixes: N rows, M rows of them that are drawn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from expertmesh.engine.batch import Draw
from expertmesh.engine.request import SamplingParams
from expertmesh.kernels.noise import exponential, seeds_tensor

_MIN_TEMPERATURE = 1e-5
_MASS_ONE = 1 << 40
"""Probability 1 as an integer."""
_CHUNK_LOGITS = 1 << 18
"""Logits that one pass works on, so that its many temporaries stay in a core's cache."""


def choose(logits_NV: Tensor, draws: Seq[Draw]) -> Tensor:
    """The next token of each row, int64 [N]; among equal logits the lowest id.

    Draws go by (seed, index of the new token in its sequence) and nothing else.
    """
    drawn = [i for i, s in enumerate(draws) if not s.params.greedy]
    if not drawn:
        return logits_NV.argmax(dim=-1)
    if len(drawn) == len(draws):
        return _draw_in_chunks(logits_NV, draws)
    rows_M = torch.tensor(drawn, device=logits_NV.device)
    chosen_N = logits_NV.argmax(dim=-1)
    chosen_N[rows_M] = _draw_in_chunks(logits_NV[rows_M], [draws[i] for i in drawn])
    return chosen_N


def _draw_in_chunks(logits_MV: Tensor, draws: Seq[Draw]) -> Tensor:
    n_rows = len(draws) if logits_MV.is_cuda else max(1, _CHUNK_LOGITS // logits_MV.shape[1])
    return torch.cat(
        [_draw(logits_MV[at : at + n_rows], draws[at : at + n_rows]) for at in range(0, len(draws), n_rows)]
    )


def _draw(logits_MV: Tensor, draws: Seq[Draw]) -> Tensor:
    device = logits_MV.device
    temperatures_M = torch.tensor(
        [max(s.params.temperature, _MIN_TEMPERATURE) for s in draws], dtype=torch.float32, device=device
    )
    probs_MV = torch.softmax(logits_MV / temperatures_M[:, None], dim=-1)
    truncate_(probs_MV, [s.params for s in draws])
    noise_MV = exponential(
        seeds_tensor([s.params.seed for s in draws], device),
        torch.tensor([s.index for s in draws], dtype=torch.int64, device=device),
        logits_MV.shape[1],
    )
    return probs_MV.div_(noise_MV).argmax(dim=-1)


def truncate_(probs_MV: Tensor, params: Seq[SamplingParams]) -> None:
    """Sets to 0, in place, what top-k, top-p (of what top-k left) and min-p exclude.

    Each keeps the tokens down to some probability, ties included, so that a row's tokens need no
    order: only the values are sorted, and only where a row asks for it.
    """
    device = probs_MV.device
    sort = [i for i, p in enumerate(params) if p.top_p < 1.0 or 0 < p.top_k < probs_MV.shape[1]]
    floors_M = torch.zeros(len(params), dtype=torch.float32, device=device)
    if any(p.min_p > 0.0 for p in params):
        min_p_M = torch.tensor([p.min_p for p in params], dtype=torch.float32, device=device)
        floors_M = min_p_M * probs_MV.amax(dim=-1)
    if sort:
        rows = torch.tensor(sort, device=device)
        probs = probs_MV if len(sort) == len(params) else probs_MV[rows]
        floors_M[rows] = torch.maximum(floors_M[rows], _sorted_floors(probs, [params[i] for i in sort]))
    elif not floors_M.any():
        return
    probs_MV.masked_fill_(probs_MV < floors_M[:, None], 0.0)


def _sorted_floors(probs_NV: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """The smallest probability that top-k and top-p keep, fp32 [N]; of one token at least."""
    vocab_size, device = probs_NV.shape[1], probs_NV.device
    sorted_NV = _sort_descending(probs_NV)
    top_k_N1 = torch.tensor([min(p.top_k, vocab_size) or vocab_size for p in params], device=device)[
        :, None
    ]
    # Equal to the k-th: kept too.
    n_kept_N1 = (sorted_NV >= sorted_NV.gather(1, top_k_N1 - 1)).sum(dim=-1, keepdim=True)
    mass_NV = (sorted_NV.to(torch.float64) * _MASS_ONE).to(torch.int64)
    above_NV = mass_NV.cumsum(dim=-1).sub_(mass_NV)
    total_N1 = (above_NV + mass_NV).gather(1, n_kept_N1 - 1)
    top_p_N1 = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)[:, None]
    bound_N1 = (top_p_N1 * total_N1).to(torch.int64)
    n_within_N1 = (above_NV < bound_N1).sum(dim=-1, keepdim=True).clamp_(min=1)
    n_kept_N1 = torch.where(top_p_N1 < 1.0, torch.minimum(n_kept_N1, n_within_N1), n_kept_N1)
    return sorted_NV.gather(1, n_kept_N1 - 1)[:, 0]


def _sort_descending(values_NV: Tensor) -> Tensor:
    if values_NV.is_cuda:
        return values_NV.sort(dim=-1, descending=True).values
    # Ten times as fast as torch's sort on CPUs, which carries the indices along.
    return torch.from_numpy(np.sort(values_NV.numpy(), axis=-1)).flip(-1)
