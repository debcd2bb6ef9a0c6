"""Keeps an answer from ending before its least length.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from expertmesh.engine.batch import Draw


def forbid_stops(logits_NV: Tensor, draws: Seq[Draw]) -> Tensor:
    """Logits [N, V] with the stop tokens of rows below their `min_tokens` at minus infinity.

    `logits_NV` itself, never changed, when no row is below. Like the penalties this goes by the new
    token's index in the output alone, those delivered before a resume included.
    """
    cells = [
        (row, token_id)
        for row, s in enumerate(draws)
        if s.n_output < s.params.min_tokens
        for token_id in s.params.stop_token_ids
    ]
    if not cells:
        return logits_NV
    rows, token_ids = zip(*cells, strict=True)
    logits_NV = logits_NV.clone()
    logits_NV[torch.tensor(rows), torch.tensor(token_ids)] = -torch.inf
    return logits_NV
