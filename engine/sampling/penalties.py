"""Repetition, presence and frequency penalties.

Shape suffixes: N rows, V vocabulary, C cells (row, token) that a penalty touches.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expertmesh.engine.batch import Draw


@dataclass(frozen=True, slots=True)
class _Cells:
    """Tokens that stand in rows' sequences, each once a row."""

    indices_C: Tensor
    """Into the flattened logits."""
    rows_C: Tensor
    counts_C: Tensor
    """fp32: how often the token stands there."""


def penalise(logits_NV: Tensor, draws: Seq[Draw]) -> Tensor:
    """Logits after the penalties, [N, V]; `logits_NV` itself, never changed, when no row has any.

    The repetition penalty counts prompt and output tokens (arXiv:1909.05858: a positive logit is
    divided, a negative one multiplied); presence and frequency count output tokens alone, as in
    OpenAI's interface. Repetition comes first.
    """
    if not any(s.params.penalised for s in draws):
        return logits_NV
    logits_NV = logits_NV.clone()
    flat = logits_NV.view(-1)
    vocab_size, device = logits_NV.shape[1], logits_NV.device

    def of_rows(values: Iterable[float], cells: _Cells) -> Tensor:
        return torch.tensor(list(values), dtype=logits_NV.dtype, device=device)[cells.rows_C]

    seen = [s.token_ids if s.params.repetition_penalty != 1.0 else () for s in draws]
    if any(seen):
        cells = _cells(seen, vocab_size, device)
        factors_C = of_rows((s.params.repetition_penalty for s in draws), cells)
        values_C = flat[cells.indices_C]
        flat[cells.indices_C] = torch.where(values_C < 0, values_C * factors_C, values_C / factors_C)

    written = [
        s.token_ids[s.n_prompt :]
        if s.params.presence_penalty != 0.0 or s.params.frequency_penalty != 0.0
        else ()
        for s in draws
    ]
    if any(written):
        cells = _cells(written, vocab_size, device)
        frequency_C = of_rows((s.params.frequency_penalty for s in draws), cells)
        presence_C = of_rows((s.params.presence_penalty for s in draws), cells)
        flat[cells.indices_C] -= cells.counts_C * frequency_C + presence_C
    return logits_NV


def _cells(token_ids: Seq[tuple[int, ...]], vocab_size: int, device: torch.device) -> _Cells:
    keys = np.concatenate(
        [np.array(ids, dtype=np.int64) + row * vocab_size for row, ids in enumerate(token_ids)]
    )
    indices, counts = np.unique(keys, return_counts=True)
    return _Cells(
        torch.from_numpy(indices).to(device),
        torch.from_numpy(indices // vocab_size).to(device),
        torch.from_numpy(counts.astype(np.float32)).to(device),
    )
