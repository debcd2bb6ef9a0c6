"""The exchange in plain torch, without a process group: what the real ones are compared with.

Shape suffixes: T tokens, K experts a token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ReferenceHandle:
    """A token batch and its choice."""

    moe_layer: int
    x_TD: Tensor
    topk_ids_TK: Tensor


class ReferenceExchange:
    """`models.interface.MoeExchange` one token and one expert at a time.

    Args:
        expert: (MoE layer, logical expert, x [1, D]) to its output [1, D].
    """

    def __init__(self, expert: Callable[[int, int, Tensor], Tensor]) -> None:
        self._expert = expert

    def dispatch(self, moe_layer: int, x_TD: Tensor, topk_ids_TK: Tensor) -> ReferenceHandle:
        """Remembers the batch."""
        return ReferenceHandle(moe_layer, x_TD, topk_ids_TK)

    def combine(self, handle: ReferenceHandle, topk_weights_TK: Tensor) -> Tensor:
        """The weighted sum, fp32 [T, D], in top-k order."""
        sum_TD = torch.zeros(handle.x_TD.shape, dtype=torch.float32)
        for t, expert_ids in enumerate(handle.topk_ids_TK.tolist()):
            for k, expert in enumerate(expert_ids):
                y_1D = self._expert(handle.moe_layer, expert, handle.x_TD[t : t + 1])
                sum_TD[t] += topk_weights_TK[t, k].float() * y_1D[0].float()
        return sum_TD
