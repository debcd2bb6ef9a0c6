"""Which copy of an expert computes a row.

Shape suffixes: T tokens, K experts a token, E logical experts, C copies of an expert at most, H experts
with several copies and one column for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expertmesh.engine.exchange.layout import RankLayout


class ReplicaChoice:
    """Where the rows of one router go in one generation: logical expert to physical slot.

    The rows of an expert with several copies take turns, so that within a step no copy gets two rows more
    than another. Which copy begins changes from step to step, from layer to layer and from router to
    router. Nothing here waits for the device.
    """

    def __init__(self, layout: RankLayout, n_experts: int, n_moe_layers: int, device: torch.device) -> None:
        self._layers: list[_OneCopyEach | _Copies] = []
        for layer in range(n_moe_layers):
            copies = layout.copies(layer, n_experts)
            several = any(len(c) > 1 for c in copies)
            self._layers.append(_Copies(copies, device) if several else _OneCopyEach(copies, device))

    def physical(self, moe_layer: int, topk_ids_TK: Tensor, first: int) -> Tensor:
        """The physical slot of every token-expert pair, int64 [T, K].

        Args:
            topk_ids_TK: logical experts, int64; a token's differ.
            first: the copy that begins, counted around. The answer's bits do not depend on it.
        """
        return self._layers[moe_layer](topk_ids_TK, first + moe_layer)


class _OneCopyEach:
    def __init__(self, copies: Sequence[Sequence[int]], device: torch.device) -> None:
        self._physical_E = torch.tensor([c[0] for c in copies], dtype=torch.int64, device=device)

    def __call__(self, topk_ids_TK: Tensor, first: int) -> Tensor:
        return self._physical_E[topk_ids_TK]


class _Copies:
    def __init__(self, copies: Sequence[Sequence[int]], device: torch.device) -> None:
        most = max(len(c) for c in copies)
        several = [expert for expert, c in enumerate(copies) if len(c) > 1]
        columns = {expert: column for column, expert in enumerate(several)}
        self._n_columns = len(several) + 1
        self._column_E = _table([columns.get(e, len(several)) for e in range(len(copies))], device)
        self._n_copies_E = _table([len(c) for c in copies], device)
        self._physical_EC = _table([[*c, *[c[0]] * (most - len(c))] for c in copies], device)

    def __call__(self, topk_ids_TK: Tensor, first: int) -> Tensor:
        columns_TK = self._column_E[topk_ids_TK]
        chosen_TH = torch.zeros(
            len(topk_ids_TK), self._n_columns, dtype=torch.int64, device=topk_ids_TK.device
        ).scatter_(1, columns_TK, 1)
        # How many rows of its expert have come before each row, and itself.
        nth_TK = chosen_TH.cumsum(0).gather(1, columns_TK)
        copy_TK = nth_TK.add_(first).remainder_(self._n_copies_E[topk_ids_TK])
        return self._physical_EC[topk_ids_TK, copy_TK]


def _table(rows: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)
